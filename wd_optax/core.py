"""The one mechanism: apply a transformation, and decay along a rule before or after it.

    p ← p + step − c_t·m·r(p)

Every transform and optimizer of this library is a call of `decayed(...)`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wd_optax import dtypes
from wd_optax.hyperparams import ScalarOrSchedule, evaluate, init_leaves, is_static, keep
from wd_optax.masking import forms, masks
from wd_optax.masking.errors import check_updates, explaining
from wd_optax.masking.paths import is_masked
from wd_optax.masking.slices import Slices, axes_tree, check_slices, slice_axes
from wd_optax.prox.metrics import ProxMetric
from wd_optax.prox.steps import Prox
from wd_optax.rules import apply
from wd_optax.rules.apply import Rule
from wd_optax.rules.norms import use_slices
from wd_optax.rules.step import Step
from wd_optax.watching import Decay, note


class DecayState(NamedTuple):
    """State of every transform and optimizer here: arrays only, the same tree for any mask or schedule.

    `hyperparams` are live: a value given as a Python or NumPy number is read from here at each step, so it can be
    logged, swept with `vmap` and edited: `optax.tree.set(state, weight_decay=jnp.float32(0))`, and under
    `nnx.Optimizer` `optimizer.opt_state.hyperparams["weight_decay"][...] = 0`. A schedule's value is recorded here. A
    JAX array is the caller's and has no leaf, so that under `optax.inject_hyperparams` each name is found once.

    The counter is called `step`, so that `optax.tree.get(state, "count")` finds the `count` of the wrapped optimizer,
    unless a rule has one, too.
    """

    step: jax.Array  # shape=(), dtype=int32: steps taken
    hyperparams: dict[str, jax.Array]  # shapes=(), dtype: JAX's default float
    rule: optax.OptState  # the rule's state, such as an anchor; () for one without arrays
    inner: optax.OptState  # the wrapped optimizer's state


Rate = Callable[[Mapping[str, jax.Array]], jax.Array]  # this step's hyperparameters -> what r(p) is multiplied by
LeafRates = Callable[[optax.Params, Mapping[str, jax.Array]], Any]  # the same per leaf, as a tree of scalars


def decayed(
    name: str,
    inner: optax.GradientTransformation,
    hyperparams: dict[str, ScalarOrSchedule],
    *,
    mask: masks.Mask,
    rate: Rate,
    place: Literal["before", "after"],
    given: Literal["gradients", "direction", "step"] = "gradients",
    descends: bool = False,
    rule: Rule | None = None,
    slices: Slices = None,
    prox: Prox | None = None,
    metric: ProxMetric | None = None,
    leaf_rates: LeafRates | None = None,
    largest: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Builds a transformation that applies `inner` and decays before or after it.

    Args:
      name: what to call it in errors.
      inner: the wrapped transformation; its extra arguments pass through.
      hyperparams: numbers, arrays or schedules; numbers and schedules become leaves of the state.
      mask: see `wd_optax.masking`.
      rate: what r(p) is multiplied by, from this step's hyperparameters.
      place: "before": u + rate·m·r(p) goes into `inner`; "after": step − rate·m·r(p) is what comes out.
      given: what `update` is called with; a rule sees gradients where it is these.
      descends: whether `inner` returns a direction u, so that the step is −η·u; else it returns the step.
      rule: see `wd_optax.rules`; None is r(p) = p.
      slices: which axes count weights, see `wd_optax.masking.slices`.
      prox: a proximal step in place of the difference, see `wd_optax.prox`.
      metric: its metric, from the inner state; None is 1.
      leaf_rates: the rate of each leaf, where they differ, in place of `rate`.
      largest: the largest fraction removed per step where m = 1, if it is known: then m·c must be below 1.
    """
    apply.check(rule)
    check_slices(slices)
    inner = optax.with_extra_args_support(inner)
    verb = "decays" if {"weight_decay", "rate"} & {*hyperparams} else "projects"

    def rates(params: optax.Params, values: Mapping[str, jax.Array], multipliers: Any) -> tuple[jax.Array, Any]:
        c = rate(values)
        if leaf_rates:
            return c, jax.tree.map(_times, multipliers, leaf_rates(params, values))
        known = functools.cache(lambda m: _times(m, c))  # leaves of one multiplier share a product
        return c, jax.tree.map(lambda m: known(m) if isinstance(m, float) else _times(m, c), multipliers)

    def init(params: optax.Params) -> DecayState:
        params = dtypes.as_arrays(params)
        masks.warn_if_nothing_decays(mask, params, "decays" if verb == "decays" else "is projected")
        if largest is not None:
            _check_multipliers(mask, params, largest)
        count = jnp.zeros((), jnp.int32)
        values, inner_state = init_leaves(hyperparams, count), inner.init(params)
        axes = slice_axes(slices, params)
        if rule is None and not leaf_rates:
            return DecayState(count, values, (), inner_state)
        descent = params if place == "before" or descends else None
        gradients, finished = params if given == "gradients" else None, params if place == "after" else None
        now, multipliers = evaluate(hyperparams, count, values), masks.multipliers(mask, params)
        step = Step(count, now, *rates(params, now, multipliers), inner_state, gradients, descent, finished)
        with use_slices(axes):
            rule_state = apply.start(rule, params, multipliers, step, proximal=name if prox else "")
        return DecayState(count, values, rule_state, inner_state)

    def update(updates: Any, state: DecayState, params: Any = None, **extra: Any) -> tuple[Any, DecayState]:
        if params is None:
            raise ValueError(f"{name} {verb} the parameters, so update needs them: tx.update(grads, state, params)")
        check_state(name, state, hyperparams)
        updates, params = dtypes.as_arrays(updates), dtypes.as_arrays(params)
        gradients = updates if given == "gradients" else None
        values = evaluate(hyperparams, state.step, state.hyperparams)
        multipliers, axes = masks.multipliers(mask, params), slice_axes(slices, params)
        c, each = rates(params, values, multipliers)

        def decay(updates: Any, inner_state: Any, descent: Any, finished: Any) -> tuple[Any, Any]:
            note(Decay(name, rule, prox, metric))
            step = Step(state.step, values, c, each, inner_state, gradients, descent, finished)
            with use_slices(axes):
                r, k, rule_state, gated = apply.direction(rule, params, multipliers, state.rule, step)
            if prox is not None:
                scale = metric(inner_state) if metric else jax.tree.map(lambda p: 1.0, params)
                trees = r, k, axes_tree(axes, params), scale
                return _map(_proximal(prox), updates, params, *trees), rule_state
            return _map(_along(grows=place == "before", gated=gated), updates, params, r, k), rule_state

        if place == "before":
            check_updates(name, updates, params)
            descent = None if rule is None else jax.tree.map(jnp.negative, updates)
            updates, rule_state = decay(updates, state.inner, descent, None)
            updates, inner_state = inner.update(updates, state.inner, params, **extra)
            updates = _descend(updates, values, rule)[1] if descends else updates
        else:
            with explaining(name, updates, params):
                updates, inner_state = inner.update(updates, state.inner, params, **extra)
            check_updates(name, updates, params)
            descent, updates = _descend(updates, values, rule) if descends else (None, updates)
            updates, rule_state = decay(updates, inner_state, descent, updates)
        step = optax.safe_increment(state.step)
        return updates, DecayState(step, keep(hyperparams, values), rule_state, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


Term = Callable[..., tuple[jax.Array, jax.Array]]  # (u, p, r, k, ...) -> (u with decay, where), in k's type


def _map(term: Term, updates: Any, params: Any, r: Any, rates: Any, *rest: Any) -> Any:
    """Maps `term` over the leaves that decay.

    Computed in float32 or wider, returned in the update's type. Where k is 0, or a gate says 0, the update comes back
    bit for bit, also where p is infinite; None leaves and leaves whose multiplier is 0 are not touched at all.
    """

    def decay(u: Any, p: Any, r: Any, k: Any, *rest: Any) -> Any:
        if u is None or forms.is_zero(k):
            return u
        dtype = dtypes.arithmetic(p.dtype, u.dtype)
        decayed, where = term(u.astype(dtype), jnp.asarray(r).astype(dtype), k.astype(dtype), *rest)
        decayed = decayed.astype(u.dtype)
        same = decayed.shape == u.shape and where.shape in ((), u.shape)
        return lax.select(where, decayed, u) if same else jnp.where(where, decayed, u)

    return jax.tree.map(decay, updates, params, r, rates, *rest, is_leaf=lambda x: x is None)


def _along(*, grows: bool, gated: bool) -> Term:
    """u + k·r before the inner transformation, and step − k·r after it."""
    known: dict[int, tuple[jax.Array, jax.Array, jax.Array]] = {}  # most leaves have one k

    def term(u: jax.Array, r: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        if id(k) not in known:
            # A step takes off (−k)·r, not k·r, and asks whether −k is 0: XLA on CPUs fuses other products otherwise.
            signed = k if grows else -k
            known[id(k)] = k, signed, signed != 0
        _, k, decays = known[id(k)]
        return u + k * r, decays & (r != 0) if gated else decays

    return term


def _proximal(prox: Prox) -> Term:
    def term(u: jax.Array, r: jax.Array, k: jax.Array, axes: Any, metric: Any) -> tuple[jax.Array, jax.Array]:
        metric = jnp.ones((), k.dtype) if is_masked(metric) else jnp.asarray(metric, k.dtype)
        return prox(u, r, k, metric, axes), k != 0

    return term


def _times(m: Any, rate: jax.Array) -> Any:
    """rate·m, where a multiplier that is known to be 0 stays it."""
    if forms.is_zero(m):
        return m
    return rate if isinstance(m, float) and m == 1 else rate * jnp.asarray(m, rate.dtype)


def _descend(
    direction: optax.Updates, values: dict[str, jax.Array], rule: apply.Rule | None
) -> tuple[optax.Updates | None, optax.Updates]:
    """−u, for a rule, and −η·u, with η rounded to the update's type as Optax does: λ = 0 is bitwise Optax's optimizer.

    With a rule both in terms of −u: XLA on CPUs writes an expensive u to memory if a sign and a product each read it.
    """
    if rule is None:
        minus_eta = -values["learning_rate"]
        return None, jax.tree.map(lambda u: minus_eta.astype(u.dtype) * u, direction)
    descent = jax.tree.map(jnp.negative, direction)
    return descent, jax.tree.map(lambda d: values["learning_rate"].astype(d.dtype) * d, descent)


def check_state(name: str, state: Any, hyperparams: Mapping[str, ScalarOrSchedule]) -> None:
    """Raises for the state of another optimizer, such as an Optax checkpoint's, and for one of other arguments."""
    if not isinstance(state, DecayState):
        kind = type(state).__name__
        if isinstance(state, tuple) and not hasattr(state, "_fields"):
            kind += f" of {', '.join(type(x).__name__ for x in state)}"
        raise TypeError(
            f"{name}: state is a {kind}, expected a DecayState. Start with state = optimizer.init(params), or resume a "
            "checkpoint of another optimizer with state = wd.migrate_state(opt_state, optimizer, params)"
        )
    missing = [key for key, value in hyperparams.items() if is_static(value) and key not in state.hyperparams]
    if missing:
        raise ValueError(
            f"{name}: state has no {missing[0]!r}, which is a number here; it is of other arguments, and has "
            f"{sorted(state.hyperparams)}. Start with state = optimizer.init(params), or resume with "
            "state = wd.migrate_state(opt_state, optimizer, params)"
        )


def _check_multipliers(mask: masks.Mask, params: optax.Params, c: float) -> None:
    """Raises where m·c ≥ 1: that removes the whole weight, and more would flip its sign."""
    m, path = masks.largest_multiplier(mask, params)
    if m * c >= 1:
        raise ValueError(
            f"mask: the multiplier {m:g} of {path!r} times c = {c:.3g} removes {m * c:.3g} of the weight per step; "
            f"it must be below 1: pass a multiplier below {1 / c:.3g}, or lower the decay"
        )
