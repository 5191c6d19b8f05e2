"""Directions of other frameworks as Optax transformations, each written as a function of one parameter.

    def _adagrad(g, slots, t): ...        # -> (u, the slots' new values)
    per_leaf(_adagrad, total=0.0)

The function computes in float32 or wider, whatever the parameters are; t is 1 in the first step. Complex parameters
are pairs of real numbers, as in PyTorch (`view_as_real`).
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.core import decayed
from wd_optax.hyperparams import check_number
from wd_optax.masking.masks import Mask

Slots = Mapping[str, jax.Array]  # the state of one parameter
Initial = float | Callable[[jax.Array], jax.Array]  # what fills a slot like the parameter, or a function of it
# (gradient, slots, t, and by name what `uses` lists) -> (direction, new slots)
LeafUpdate = Callable[..., tuple[jax.Array, Slots]]


class SlotsState(NamedTuple):
    """State of a direction: the steps taken, and one tree like the parameters per slot."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in Optax; shape=(), dtype=int32
    slots: dict[str, Any]


def per_leaf(
    step: LeafUpdate, *, uses: tuple[str, ...] = (), real: bool = True, **initial: Initial
) -> optax.GradientTransformationExtraArgs:
    """A direction from a function of one parameter.

    Args:
      step: (g, slots, t) -> (u, new slots), t a scalar of g's type.
      uses: what else it takes by name: "params", or an extra argument of `update` such as "learning_rate".
      real: whether complex gradients are pairs of real numbers to it.
      **initial: the slots: a number that fills an array like the parameter, or a function of the parameter.
    """

    def start(p: jax.Array, value: Initial) -> jax.Array:
        p = _as_real(p) if real else p
        return value(p) if callable(value) else jnp.full_like(p, value)

    def init(params: optax.Params) -> SlotsState:
        params = dtypes.as_arrays(params)
        slots = {name: jax.tree.map(lambda p, v=v: start(p, v), params) for name, v in initial.items()}
        return SlotsState(jnp.zeros((), jnp.int32), slots)

    def update(updates: Any, state: SlotsState, params: Any = None, **extra: Any) -> tuple[Any, SlotsState]:
        count = optax.safe_increment(state.count)
        given = {name: extra[name] for name in uses if name != "params"}
        trees = [state.slots[name] for name in initial] + [params] * ("params" in uses)

        def one(g: Any, *values: Any) -> tuple[Any, Slots]:
            slots = dict(zip(initial, values, strict=False))
            return _update_leaf(
                step, g, slots, count, given | dict(zip(("params",), values[len(slots) :], strict=False)), real
            )

        out = jax.tree.map(one, updates, *trees)  # (u, slots) in place of each leaf
        new = {name: jax.tree.map(lambda g, o, name=name: o[1][name], updates, out) for name in initial}
        return jax.tree.map(lambda g, o: o[0], updates, out), SlotsState(count, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _update_leaf(
    step: LeafUpdate, g: Any, slots: Slots, count: jax.Array, given: Mapping[str, Any], real: bool
) -> tuple[jax.Array, Slots]:
    """One parameter's direction, in g's type, and its slots, in theirs."""
    g = jnp.asarray(g)
    wide = dtypes.arithmetic(g.dtype)
    scalar = jnp.finfo(wide).dtype  # of the real part
    x = _as_real(g).astype(scalar) if real else g.astype(wide)
    at = {name: jnp.asarray(v).astype(wide if name == "params" else scalar) for name, v in given.items()}
    upcast = {name: s.astype(dtypes.arithmetic(s.dtype)) for name, s in slots.items()}
    u, new = step(x, upcast, count.astype(scalar), **at)
    u = _as_complex(u) if real and jnp.iscomplexobj(g) else u
    return u.astype(g.dtype), {name: new[name].astype(s.dtype) for name, s in slots.items()}


def _as_real(x: jax.Array) -> jax.Array:
    """Complex numbers as pairs along a new last axis; real ones as they are."""
    return jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x


def _as_complex(x: jax.Array) -> jax.Array:
    return jax.lax.complex(x[..., 0], x[..., 1])


def pairs(direction: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An elementwise direction of Optax's on complex parameters as pairs of real numbers; its state stays the same."""
    inner = optax.with_extra_args_support(direction)

    def init(params: Any) -> Any:
        return inner.init(jax.tree.map(_as_real, dtypes.as_arrays(params)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        real = jax.tree.map(_as_real, dtypes.as_arrays(updates))
        u, state = inner.update(real, state, None, **extra)
        return jax.tree.map(lambda u, g: _as_complex(u) if jnp.iscomplexobj(g) else u, u, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def flipped(optimizer: optax.GradientTransformation, maximize: bool = True) -> optax.GradientTransformationExtraArgs:
    """`maximize=True`: the optimizer with the sign of its gradients flipped, before all else; its state stays."""
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = inner.update(jax.tree.map(jnp.negative, updates), state, params, **extra)
        return updates, state

    return optax.GradientTransformationExtraArgs(inner.init, update) if maximize else inner


def with_learning_rate(
    optimizer: optax.GradientTransformation, learning_rate: Any
) -> optax.GradientTransformationExtraArgs:
    """Passes η_t, the state's live leaf or a schedule's value, to `update` as the extra argument `learning_rate`.

    For `wd.with_decay` around steps that aren't η·u, such as η inside the momentum: its inner optimizer gets η.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if callable(learning_rate):
            eta = jnp.asarray(learning_rate(state.step))
        else:
            eta = learning_rate if isinstance(learning_rate, jax.Array) else state.hyperparams["learning_rate"]
        updates, state = inner.update(updates, state, params, **{**extra, "learning_rate": eta})
        return updates, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def with_l2(
    step: optax.GradientTransformation, *, learning_rate: Any, weight_decay: Any, mask: Mask
) -> optax.GradientTransformationExtraArgs:
    """g ← g + λ·m·p before a finished step that takes η as the extra argument `learning_rate`; both are live leaves.

    The counterpart of `with_learning_rate(with_decay(step, ...), learning_rate)` for L2.
    """
    check_number("learning_rate", learning_rate)
    check_number("weight_decay", weight_decay)
    hyperparams = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    rate = operator.itemgetter("weight_decay")
    tx = decayed("with_l2", step, hyperparams, mask=mask, rate=rate, place="before")
    return with_learning_rate(tx, learning_rate)
