"""Cautious decay: only where the step doesn't move the other way."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax.rules.step import Step, tree_map


class GateState(NamedTuple):
    """No arrays: it marks a rule that says 0 for entries that must not decay; their updates are kept bit for bit."""


def is_gated(rule_state: optax.OptState) -> bool:
    """Whether there is a gate among the rules that a state belongs to, in any wrapper."""
    is_gate = lambda node: isinstance(node, GateState)
    return any(map(is_gate, jax.tree.leaves(rule_state, is_leaf=is_gate)))


def cautious(strict: bool = False) -> optax.GradientTransformationExtraArgs:
    """r(p) = p where p·s ≤ 0 for the step s, else 0: entries decay where the step doesn't grow them.

    With `strict`, where p·s < 0: entries decay only where the step shrinks them, and those without a step don't (as in
    the Adam of modded-nanogpt; rows of an embedding that no gradient reaches keep their values).

    The sign of s is that of the descent direction, before the learning rate, where the transformation knows it:
    an η of 0 or a step that underflows still has one. `wd_optax.with_decay` sees only the finished step: at η_t = 0
    nothing decays there, and entries whose step underflows to 0 do.

    With `optax.chain(wd.rules.toward(a), wd.rules.cautious())` entries decay toward a where the step doesn't move away
    from it. With exact gradients and η → 0 the minimum of the loss is unbiased; at a finite η correlated weights open
    each other's gates and stay O(η·λ) away from it. Under noise it is pulled toward zero, less than by plain decay:
    `wd_optax.choosing.equilibrium.cautious_minimum` says where to.

    Args:
      strict: whether an entry with a step of 0 keeps its value.

    Returns:
      A rule without arrays: checkpoints fit optimizers with and without it.

    Raises:
      TypeError: where `strict` is no bool.

    Example: u = 1 takes w down; u = −1 would take it up, and decay waits. Where u = 0 it goes by `strict`.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"kernel": jnp.array([[2.0, 2.0, 2.0]])}
      >>> for strict in (False, True):
      ...     tx = wd.sgdw(0.1, weight_decay=0.5, rule=wd.rules.cautious(strict))
      ...     updates, _ = tx.update({"kernel": jnp.array([[1.0, -1.0, 0.0]])}, tx.init(params), params)
      ...     print([f"{u:.1f}" for u in updates["kernel"][0]])
      ['-0.2', '0.1', '-0.1']
      ['-0.2', '0.1', '-0.0']

    Reference: Chen et al. 2025, arXiv 2510.12402.
    """
    if not isinstance(strict, bool):
        raise TypeError(f"strict={strict!r}: expected True or False")

    def update(
        updates: optax.Params, state: GateState, params: Any = None, *, step: Step
    ) -> tuple[optax.Params, GateState]:
        del params
        moves = jnp.bool_(True)
        if step.descent is None and "learning_rate" in step.hyperparams:  # a step of 0 doesn't show its direction
            moves = step.hyperparams["learning_rate"] != 0

        def gate(r: jax.Array, s: jax.Array) -> jax.Array:
            growth = jnp.real(jnp.sign(jnp.conj(s.astype(r.dtype))) * jnp.sign(r))
            agrees = growth < 0 if strict else growth <= 0
            return jnp.where(agrees & moves, r, jnp.zeros_like(r))

        return tree_map(gate, updates, step.updates if step.descent is None else step.descent), state

    return optax.GradientTransformationExtraArgs(lambda params: GateState(), update)
