"""Decay toward a norm: weights keep their direction, and their length goes to R."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax.hyperparams import Scalar, check_scalar
from wd_optax.rules.checks import check_has_state, check_is_first
from wd_optax.rules.norms import check_per_slice, slice_norms
from wd_optax.rules.step import tree_map


class NormState(NamedTuple):
    """The norms that weights decay toward, in float32 or wider; `optax.MaskedNode` for leaves that don't decay."""

    radius: optax.Params  # per slice: a leaf's shape with 1 for the axes that `slices` doesn't name


def toward_norm(norm: Literal["init"] | Scalar = "init", *, ratio: Scalar = 1.0) -> optax.GradientTransformation:
    """r(p) = p·(1 − R/‖p‖), with R = ratio·‖p₀‖ or ratio·norm: without gradients ‖p‖ goes to R at rate 1 − c per step.

    ‖p‖ − R shrinks by c per step, from above and from below: shorter weights grow. It is a norm per slice, see
    `slices` of the optimizer. R is kept in the state and not computed again from the present norm, which would drift.
    A weight of norm 0 has no direction, and stays: r = 0. One that starts at 0 has R = 0 and decays as usual.

    Args:
      norm: "init" (‖p₀‖, of the parameters at `init`), or one number for every weight.
      ratio: what it is multiplied by. Tracers aren't checked.

    Returns:
      A rule with a `NormState`, one number per slice; without arrays where R is a number.

    Raises:
      ValueError: for another string or a negative number; where "init" comes after another rule in a chain, because
        ‖p₀‖ is of the parameters.

    Example: from ‖p‖ = 10 to R = 5, 10 % of the difference per step.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=1.0, rule=wd.rules.toward_norm("init"))
      >>> state, params = tx.init({"kernel": jnp.array([[3.0, 4.0]])}), {"kernel": jnp.array([[6.0, 8.0]])}
      >>> for _ in range(3):
      ...     print(f"{jnp.linalg.norm(params['kernel']).item():.3f}")
      ...     updates, state = tx.update(optax.tree.zeros_like(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      10.000
      9.500
      9.050

    Reference: Loshchilov 2023, arXiv 2311.11446 (weight norm control, AdamWN).
    """
    at_init = isinstance(norm, str)
    if at_init and norm != "init":
        raise ValueError(f'norm={norm!r}: use "init" (the norm at init) or a number')
    check_scalar("ratio", ratio)
    if not isinstance(norm, str):
        check_scalar("norm", norm)

    def given(like: jax.Array) -> jax.Array:
        return jnp.asarray(ratio, like.dtype) * jnp.full_like(like, 0.0 if isinstance(norm, str) else norm)

    def init(params: optax.Params) -> Any:
        if not at_init:
            return optax.EmptyState()
        return NormState(jax.tree.map(lambda n: jnp.asarray(ratio, n.dtype) * n, slice_norms(params)))

    def update(updates: optax.Params, state: Any, params: Any = None) -> tuple[optax.Params, Any]:
        if at_init:
            fix = "it goes first, or takes a number, as in wd.rules.toward_norm(1.0)"
            check_is_first('toward_norm("init")', updates, params, fix)
            check_has_state("radius", updates, state.radius)
            check_per_slice("toward_norm", state.radius, updates)
        norms = slice_norms(updates)
        radius = state.radius if at_init else jax.tree.map(given, norms)
        return tree_map(_beyond, updates, norms, radius), state

    return optax.GradientTransformation(init, update)


def _beyond(p: jax.Array, norm: jax.Array, radius: jax.Array) -> jax.Array:
    """p − R·p/‖p‖, where p/‖p‖ is finite however small p is."""
    unit = p / jnp.where(norm > 0, norm, 1).astype(p.dtype)
    return jnp.where(norm > 0, p - radius.astype(p.dtype) * unit, jnp.zeros_like(p))
