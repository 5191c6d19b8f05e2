"""A rule at work: its state at `init`, and the direction of decay at each step."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes, hyperparams, init_checks
from wd_optax.masking import forms, roles
from wd_optax.masking.paths import is_masked
from wd_optax.rules.cautious import is_gated
from wd_optax.rules.step import Displacement, Step, tree_map
from wd_optax.rules.toward import AnchorState

Rule: TypeAlias = optax.GradientTransformation
_L1 = "drop penalty= or the gate; a gate fits the gradient of a penalty, rule=optax.chain(wd.rules.l1(), gate)"
_TREES = ("updates", "descent", "gradients")  # of a `Step`, the last in a step first


def check(rule: Any) -> None:
    """Raises unless `rule` is None or an Optax transformation."""
    if isinstance(rule, str):
        call = f"toward({rule!r})" if rule == "init" else f"{rule}()" if rule.isidentifier() else "cautious()"
        raise TypeError(f"rule={rule!r}: a rule is an Optax transformation, as wd.rules.{call}")
    if isinstance(rule, tuple | list) and not hasattr(rule, "init"):
        raise TypeError("rule: got a sequence, expected one rule: optax.chain(*rules) applies them one after another")
    if rule is not None:
        hyperparams.check_transformation("rule", rule)


def start(
    rule: Rule | None, params: optax.Params, multipliers: Any, step: Step, *, proximal: str = ""
) -> optax.OptState:
    """The rule's state; () without a rule, and for a rule without arrays, so that a checkpoint fits them all.

    The rule is tried on these parameters, with gradients and an inner state of ones. It is refused where it changes a
    shape or its state's structure, or makes a finite parameter infinite or NaN; its state takes the types it returns.

    Args:
      rule: the rule.
      params: all parameters.
      multipliers: the mask's, like the parameters.
      step: with the inner optimizer's state and hyperparameters at init.
      proximal: the transformation whose decay is a proximal step, which takes no gate; "" for others.
    """
    if rule is None:
        return ()
    state = _init(rule, params, multipliers)
    if is_gated(state) and proximal:
        called, fix = ("proximal", "use wd.shrink") if proximal == "proximal" else (f"{proximal}(penalty=...)", _L1)
        raise ValueError(
            f"rule: {called} takes no gate such as cautious(), because a step without a penalty is no proximal step: "
            f"{fix}"
        )

    @jax.jit  # traced once for the types and the values
    def attempt(params: optax.Params, state: optax.OptState, inner: optax.OptState, one: jax.Array) -> Any:
        trees = {name: _ones(getattr(step, name), one) for name in _TREES}
        seen = step._replace(inner_state=_ones(inner, one, counts=step.updates is not None), **trees)
        r, _, new, _ = direction(rule, params, multipliers, state, seen, stable=False)
        return tree_map(lambda r, p: jnp.all(jnp.isfinite(r) | ~jnp.isfinite(p)), r, params), new

    # A traced 1, because XLA would fold reductions of a literal one, which takes long.
    given = (params, state, step.inner_state, jnp.ones(()))
    try:
        _, new = jax.eval_shape(attempt, *given)
    except Exception as error:
        error.add_note("The rule was tried at init. Trees of its Step hold every leaf: see wd.rules.tree_map.")
        raise
    if jax.tree.leaves(state) and _shapes(state) != _shapes(new):
        raise ValueError(f"rule: update turns its state {_shapes(state)} into {_shapes(new)}: both must be alike")
    if init_checks.is_possible(_is_traced(given)):
        for path, finite in roles.flatten(jax.jit(lambda *x: attempt(*x)[0])(*given))[0]:
            refused = ValueError(
                f"rule: its direction of decay at {path!r} is infinite or NaN where the parameter is finite, as "
                "after a division by a norm of 0: give the leaf another rule with optax.partition, or the "
                "multiplier 0 in the mask"
            )
            init_checks.demand(finite, refused)
    if _is_empty(state, params):
        return ()
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), state, new) if jax.tree.leaves(state) else state


def direction(
    rule: Rule | None, params: optax.Params, multipliers: Any, state: optax.OptState, step: Step, *, stable: bool = True
) -> tuple[optax.Params, Any, optax.OptState, bool]:
    """(r(p), what it is multiplied by, the rule's new state, whether there is a gate in the rule).

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
        return params, step.rates, state, False
    trees = {name: _filled(getattr(step, name), params) for name in _TREES}
    given = next(tree for tree in (getattr(step, name) for name in _TREES) if tree is not None)
    step = step._replace(**trees, rates=_zero_where_none(given, step.rates))
    like = _filled(given, params)
    decaying = _decaying(params, multipliers)
    decaying = tree_map(lambda p, u: p.astype(dtypes.arithmetic(p.dtype, u.dtype)), decaying, like)
    if not jax.tree.leaves(state):
        state = _without_arrays(rule, params, multipliers)
    try:
        returned, new = optax.with_extra_args_support(rule).update(decaying, state, decaying, step=step)
    except AttributeError as error:
        _refuse_other(rule, params, multipliers, state, error)
        raise
    r = jax.tree.map(lambda x: x.value if isinstance(x, Displacement) else x, returned)
    _check_shapes(r, decaying)
    one = lambda x, k: jnp.ones_like(k) if isinstance(x, Displacement) else k
    rates = jax.tree.map(one, returned, step.rates, is_leaf=is_masked)
    if stable:
        new = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new, state)
    return r, rates, new if jax.tree.leaves(new) else (), is_gated(state)


def _init(rule: Rule, params: optax.Params, multipliers: Any) -> optax.OptState:
    """The state for parameters in the types that `update` sees, float32 or wider; anchors keep the stored types."""
    decaying = _decaying(params, multipliers)
    upcast = tree_map(lambda p: jnp.asarray(p).astype(dtypes.arithmetic(p.dtype)), decaying)
    stored = lambda node: node.stored_like(params) if isinstance(node, AnchorState) else node
    return jax.tree.map(stored, rule.init(upcast), is_leaf=lambda node: isinstance(node, AnchorState))


def _without_arrays(rule: Rule, params: optax.Params, multipliers: Any) -> optax.OptState:
    """The state of a rule that has no arrays, which isn't kept."""
    state = _init(rule, params, multipliers)
    if jax.tree.leaves(state):
        raise ValueError(
            "rule: the optimizer's state has nothing for this rule, which keeps arrays, such as an anchor: start with "
            "state = optimizer.init(params), or resume with state = wd.migrate_state(opt_state, optimizer, params)"
        )
    return state


def _refuse_other(
    rule: Rule, params: optax.Params, multipliers: Any, state: optax.OptState, error: AttributeError
) -> None:
    """Raises where a rule failed on the state of another one."""
    own: Any = jax.tree.structure(jax.eval_shape(lambda p: _init(rule, p, multipliers), params))
    if own != jax.tree.structure(state):
        raise ValueError(
            "rule: the optimizer's state is of another rule: start with state = optimizer.init(params), or resume with "
            "state = wd.migrate_state(opt_state, optimizer, params)"
        ) from error


def _decaying(params: optax.Params, multipliers: Any) -> optax.Params:
    """The parameters with `optax.MaskedNode` for leaves that are known not to decay, as `optax.masked` has it."""
    return jax.tree.map(lambda p, m: optax.MaskedNode() if forms.is_zero(m) else p, params, multipliers)


def _ones(tree: Any, one: jax.Array, *, counts: bool = False) -> Any:
    """`one` for floats; with `counts` for integer scalars, too: after a step, a count is at least 1."""
    kinds = (jnp.inexact, jnp.integer) if counts else (jnp.inexact,)

    def fill(x: Any) -> Any:
        is_kind = any(jnp.issubdtype(jnp.result_type(x), kind) for kind in kinds)
        filled = is_kind and not (_is_integer(x) and jnp.ndim(x))
        return jnp.broadcast_to(one.astype(jnp.result_type(x)), jnp.shape(x)) if filled else x

    return jax.tree.map(fill, tree)


def _filled(tree: Any, params: optax.Params) -> Any:
    """A tree of `Step` with zeros for leaves that are None."""
    fill = lambda u, p: optax.tree.zeros_like(p) if u is None else u  # None may be a leaf or a whole subtree
    return tree if tree is None else jax.tree.map(fill, tree, params, is_leaf=lambda x: x is None)


def _zero_where_none(given: Any, rates: Any) -> Any:
    """The rates with 0.0 where the update is None, and comes back as it is."""
    fill = lambda u, k: jax.tree.map(lambda _: 0.0, k) if u is None else k  # None may be a leaf or a whole subtree
    return jax.tree.map(fill, given, rates, is_leaf=lambda x: x is None)


def _is_empty(state: optax.OptState, params: optax.Params) -> bool:
    """Whether a state has no arrays; `optax.tree.map_params` passes a placeholder without leaves as parameters."""
    if jax.tree.leaves(params):
        return not jax.tree.leaves(state)
    return not jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, type(params)))


def _is_traced(tree: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _is_integer(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.integer))


def _shapes(state: optax.OptState) -> Any:
    return jax.tree.map(jnp.shape, state)


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
