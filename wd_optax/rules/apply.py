"""A rule at work: its state at `init`, and the direction of decay at each step."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes, hyperparams
from wd_optax.masking import forms, roles
from wd_optax.rules.cautious import GateState, is_gated
from wd_optax.rules.step import Step, tree_map
from wd_optax.rules.toward import AnchorState

Rule: TypeAlias = optax.GradientTransformation


def check(rule: Any) -> None:
    """Raises unless `rule` is None or an Optax transformation."""
    if isinstance(rule, str):
        raise TypeError(f"rule={rule!r}: a rule is an Optax transformation, as wd.rules.toward({rule!r})")
    if isinstance(rule, tuple | list) and not hasattr(rule, "init"):
        raise TypeError("rule: got a sequence, expected one rule: optax.chain(*rules) applies them one after another")
    if rule is not None:
        hyperparams.check_transformation("rule", rule)


def start(rule: Rule | None, params: optax.Params, multipliers: Any, step: Step) -> optax.OptState:
    """The rule's state; () without a rule, and for a rule without arrays, so that a checkpoint fits them all.

    `step` has the inner optimizer's state, and hyperparameters, at init.

    The rule is tried on these parameters, with gradients and a state of ones: its state takes the types that it returns
    (a moving average of bfloat16 parameters is float32), and it is refused where it changes a shape or makes a finite
    parameter infinite or NaN.
    """
    if rule is None:
        return ()
    decaying = _decaying(params, multipliers)
    state = rule.init(decaying)
    _check_order(state)

    def attempt(params: optax.Params, state: optax.OptState, inner: optax.OptState) -> Any:
        trees = {name: _ones(getattr(step, name)) for name in ("gradients", "descent", "updates")}
        seen = step._replace(inner_state=_ones(inner), **trees)
        r, new, _ = direction(rule, params, multipliers, state, seen, stable=False)
        finite = tree_map(lambda r, p: jnp.all(jnp.isfinite(r) | ~jnp.isfinite(p)), r, params)
        return finite, new

    given = (params, state, step.inner_state)
    _, new = jax.eval_shape(attempt, *given)
    state = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), state, new) if jax.tree.leaves(state) else ()
    if not _is_traced(given):
        for path, finite in roles.flatten(jax.jit(attempt)(*given)[0])[0]:
            if not _is_traced(finite) and not finite:  # a rule may close over a tracer
                raise ValueError(
                    f"rule: its direction of decay at {path!r} is infinite or NaN where the parameter is finite, as "
                    "after a division by a norm of 0: give the leaf another rule with optax.partition, or the "
                    "multiplier 0 in the mask"
                )
    return state


def direction(
    rule: Rule | None, params: optax.Params, multipliers: Any, state: optax.OptState, step: Step, *, stable: bool = True
) -> tuple[optax.Params, optax.OptState, bool]:
    """(r(p), the rule's new state, whether there is a gate in the rule).

    r(p) is like the parameters, in float32 or wider, `optax.MaskedNode` where nothing decays.

    Args:
      rule: None is r(p) = p.
      params: all parameters.
      multipliers: the mask's, like the parameters.
      state: the rule's.
      step: what the rule may look at.
      stable: keep the types of the state.
    """
    if rule is None:
        return params, state, False
    trees = {name: _filled(getattr(step, name), params) for name in ("gradients", "descent", "updates")}
    step = step._replace(**trees)
    like = next(tree for tree in (step.updates, step.descent, step.gradients) if tree is not None)
    decaying = _decaying(params, multipliers)
    decaying = tree_map(lambda p, u: p.astype(dtypes.arithmetic(p.dtype, u.dtype)), decaying, like)
    if not jax.tree.leaves(state):
        state = _without_arrays(rule, decaying)
    r, new = optax.with_extra_args_support(rule).update(decaying, state, decaying, step=step)
    _check_shapes(r, decaying)
    if stable:
        new = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new, state)
    return r, new if jax.tree.leaves(new) else (), is_gated(state)


def _without_arrays(rule: Rule, decaying: optax.Params) -> optax.OptState:
    """The state of a rule that has no arrays, which isn't kept."""
    state = rule.init(decaying)
    if jax.tree.leaves(state):
        raise ValueError(
            "rule: the optimizer's state has nothing for this rule, which keeps arrays, such as an anchor: start with "
            "state = optimizer.init(params), or resume with state = wd.migrate_state(opt_state, optimizer, params)"
        )
    return state


def _decaying(params: optax.Params, multipliers: Any) -> optax.Params:
    """The parameters with `optax.MaskedNode` for leaves that are known not to decay, as `optax.masked` has it."""
    return jax.tree.map(lambda p, m: optax.MaskedNode() if forms.is_zero(m) else p, params, multipliers)


def _check_order(state: optax.OptState) -> None:
    """Raises for a gate before an anchor in a chain: what the gate sets to 0, the anchor would move to −a."""
    is_ours = lambda x: isinstance(x, GateState | AnchorState)
    stages = state if type(state) is tuple else ()
    kinds = [{type(x) for x in jax.tree.leaves(stage, is_leaf=is_ours)} for stage in stages]
    for i, kind in enumerate(kinds):
        if GateState in kind and any(AnchorState in later for later in kinds[i + 1 :]):
            raise ValueError(
                "rule: cautious() comes before toward(...), and would gate decay to zero: the anchor goes first, as "
                'optax.chain(wd.rules.toward("init"), wd.rules.cautious())'
            )


def _ones(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.ones_like(x) if _is_float(x) else x, tree)


def _filled(tree: Any, params: optax.Params) -> Any:
    """A tree of `Step` with zeros for leaves that are None."""
    return tree if tree is None else jax.tree.map(lambda p, u: jnp.zeros_like(p) if u is None else u, params, tree)


def _is_traced(tree: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))


def _check_shapes(r: optax.Params, params: optax.Params) -> None:
    """Raises where the direction isn't a tree of arrays like the parameters."""
    got: Any = jax.tree.structure(r)
    if got != jax.tree.structure(params):
        raise ValueError(
            f"rule returned {got}, expected a tree like the parameters that decay, "
            f"{jax.tree.structure(params)}: map over them with wd.rules.tree_map, which keeps optax.MaskedNode"
        )
    for (path, p), x in zip(roles.flatten(params)[0], jax.tree.leaves(r), strict=True):
        if jnp.shape(x) != jnp.shape(p):
            raise ValueError(
                f"rule returned shape {jnp.shape(x)} at {path!r}, expected {jnp.shape(p)}, the parameter's"
            )
