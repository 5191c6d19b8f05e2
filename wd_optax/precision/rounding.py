"""Decay that survives low precision: round the sum p + u well, and hand Optax an update that lands exactly on it.

With bfloat16 parameters p + u rounds back to p whenever |u| is under half a unit in the last place, a relative step
of 2⁻⁹ to 2⁻⁸: at every ordinary setting, decay is lost entirely. The transforms here return u' = round(p + u) − p in
float32, so that an unchanged `optax.apply_updates` lands on the right bits: those of p + u, rounded to float32 and then
to p's type. All of them, but for

    - steps that make an entry more than 2¹⁶ times smaller (float16: 2¹³, float8_e5m2: 2²¹), off by up to 2⁻²⁴·|p| where
      u carries more bits than float32: under `jit`, where p + a·b may become one operation, and in master weights;
    - the sign of a zero: −0.0 made of another entry comes out as +0.0, and a zero keeps its sign;
    - float32's subnormals: XLA on CPUs takes p, u, p + u and u' under 2⁻¹²⁶ for zero, off by up to 2⁻¹²⁴ and a unit;
    - a move |u'| past float32's largest number, which becomes infinite.

`optax.apply_if_finite` wants updates of the gradients' type, so it goes inside, where both are float32:
`optax.chain(in_float32(optax.apply_if_finite(wd.adamw(...), 5)), round_updates("stochastic"))`; or cast the gradients,
as in `wd.adamw(..., rounding="stochastic")` in `apply_if_finite` with `optax.tree.cast(grads, jnp.float32)`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.masking import roles
from wd_optax.precision import casts, random_bits

ROUNDINGS = ("nearest", "stochastic", "compensated", "compensated_all")


class RoundState(NamedTuple):
    """What rounding remembers: arrays only."""

    step: jax.Array  # shape=(), dtype=int32: steps taken; `count` is the wrapped optimizer's
    seed: jax.Array  # shape=(), dtype=uint32
    residual: Any  # "compensated*": like the parameters that are rounded, what rounding left over; else ()
    inner: Any = ()  # the wrapped optimizer's state


def is_low_precision(x: Any) -> bool:
    """Whether a leaf is a float of 8 or 16 bits."""
    return x is not None and jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits in (8, 16)


def check(rounding: Any) -> None:
    """Raises for a string that names no rounding."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding!r}: use one of {', '.join(map(repr, ROUNDINGS))}")


def round_updates(rounding: str, *, key: Any = 0, partition: Any = None) -> optax.GradientTransformationExtraArgs:
    """Rounds p + u well, as u' = round(p + u) − p in float32, for parameters of 8 or 16 bits: stands last.

    "nearest" rounds to the nearest value, "stochastic" to the value above or below with E[p + u'] = p + u,
    "compensated" to the nearest, adding what that left over to the next update (Kahan), in one more leaf of the
    parameter's type. Wider parameters are left alone, but for "compensated_all", which compensates them too: float32
    loses a decay under 3·10⁻⁸ per step altogether, and much of one under 10⁻⁶.

    What is too small for them is lost still: c < 2⁻²⁵ per step for "stochastic" (p + u is formed in float32), and
    c < 2⁻¹⁸ for "compensated" in bfloat16, whose residual has 8 bits itself.

    Stochastic bits are a function of `key`, the step, the leaf's path and the entry's position: the same on every
    replica and for any sharding under `jit`, different for every leaf and step.

    Args:
      rounding: "nearest", "stochastic", "compensated" or "compensated_all".
      key: an int or a `jax.random` key; it is a leaf of the state, and only "stochastic" uses it.
      partition: inside `shard_map`, where a leaf is only this device's shard, a tree of `PartitionSpec`s like the
        parameters, so that positions are counted in the whole leaf. Not needed anywhere else.

    Returns:
      A transformation with a `RoundState`. Updates of low-precision leaves become float32.

    Raises:
      ValueError: for an unknown rounding; at update where the parameters are missing.

    Example: a bfloat16 weight under a decay of 0.1 % per step, which nearest rounding loses.
      >>> import jax, jax.numpy as jnp, optax, wd_optax as wd
      >>> for rounding in ("nearest", "stochastic", "compensated"):
      ...     tx = optax.chain(wd.shrink(1e-3), wd.precision.round_updates(rounding))
      ...     params = {"w": jnp.ones(1000, jnp.bfloat16)}
      ...     def step(carry, _):
      ...         updates, state = tx.update(optax.tree.zeros_like(carry[0]), carry[1], carry[0])
      ...         return (optax.apply_updates(carry[0], updates), state), None
      ...     (end, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=1000)
      ...     print(rounding, round(float(end["w"].astype(float).mean()), 2))  # exact: 0.37
      nearest 1.0
      stochastic 0.37
      compensated 0.37

    References:
      Zamirai et al. 2020, arXiv 2010.06192 (both, for training in bfloat16); Kahan 1965, doi 10.1145/363707.363723.
    """
    check(rounding)
    compensates = rounding.startswith("compensated")
    rounds = _is_float if rounding == "compensated_all" else is_low_precision

    def init(params: Any) -> RoundState:
        params = dtypes.as_arrays(params)
        residual = jax.tree.map(lambda p: jnp.zeros_like(p) if rounds(p) else jnp.zeros((), p.dtype), params)
        return RoundState(jnp.zeros((), jnp.int32), random_bits.seed(key), residual if compensates else ())

    def update(updates: Any, state: RoundState, params: Any = None, **extra: Any) -> tuple[Any, RoundState]:
        del extra
        if params is None:
            raise ValueError(
                "round_updates rounds the parameters, so update needs them: tx.update(grads, state, params)"
            )
        updates, params, residual = dtypes.as_arrays(updates), dtypes.as_arrays(params), state.residual
        if compensates:
            add = lambda u, p, r: u if u is None or not rounds(p) else _add_residual(u, r)
            updates = jax.tree.map(add, updates, params, residual, is_leaf=_is_none)
            left = lambda u, p, r: r if u is None or not rounds(p) else _left_over(u, p)
            residual = jax.tree.map(left, updates, params, residual, is_leaf=_is_none)
            updates = jax.tree.map(_take_off, updates, params, residual, is_leaf=_is_none)
        draw = functools.partial(random_bits.bits, seed=state.seed, step=state.step)
        rounded = _round_to_params(updates, params, draw if rounding == "stochastic" else None, partition)
        return rounded, state._replace(step=optax.safe_increment(state.step), residual=residual)

    return optax.GradientTransformationExtraArgs(init, update)


def rounded(
    optimizer: optax.GradientTransformationExtraArgs, rounding: str | None, key: Any
) -> optax.GradientTransformationExtraArgs:
    """The `rounding` argument of every optimizer: None, or `optimizer` in float32 and then `round_updates`."""
    if rounding is None:
        return optimizer
    tx = optax.chain(in_float32(optimizer), round_updates(rounding, key=key))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if isinstance(state, tuple) and len(state) == 2:
            return tx.update(updates, state, params, **extra)
        return optimizer.update(updates, state, params, **extra)  # another optimizer's state, which it refuses by name

    return optax.GradientTransformationExtraArgs(tx.init, update)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner`, which sees parameters and gradients of 8 and 16 bits as float32: its state and updates are float32.

    Without it, an update is rounded to the gradient's type before anything can be done about it. Put `round_updates`
    behind it: `optax.chain(wd.precision.in_float32(optax.adamw(...)), wd.precision.round_updates("stochastic"))`.

    Args:
      inner: any Optax optimizer; extra arguments of `update` reach it.

    Returns:
      A transformation with `inner`'s state, made of float32 parameters.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"w": jnp.ones(2, jnp.bfloat16)}
      >>> tx = wd.precision.in_float32(optax.adamw(1e-3))
      >>> tx.update(params, tx.init(params), params)[0]["w"].dtype, tx.init(params)[0].mu["w"].dtype
      (dtype('float32'), dtype('float32'))
    """
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return inner.update(upcast(updates), state, upcast(params), **extra)

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(upcast(params)), update)


def upcast(tree: Any) -> Any:
    """The tree with its floats of 8 and 16 bits as float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_low_precision(x) else x, dtypes.as_arrays(tree))


def _is_none(x: Any) -> bool:
    return x is None


def _round_to_param(u: Any, p: Any, stream: Any, draw: Any, offsets: Any) -> Any:
    """round(p + u) − p, exact in float32, or the update as it is where p is wide."""
    if u is None or not is_low_precision(p):
        return u
    wide = p.astype(jnp.float32)
    total = wide + u.astype(jnp.float32)
    if draw is None:
        target = casts.nearest(total, p.dtype)
    else:
        target = casts.stochastic(total, p.dtype, draw(p.shape, stream=stream, offsets=offsets))
    return _like(u.astype(jnp.float32), difference(target, p))


@jax.custom_jvp
def _like(u: jax.Array, landed: jax.Array) -> jax.Array:
    """`landed` with u's derivatives: those of a rounding would be 0, and of round(p + u) − p with it."""
    del u
    return landed


_like.defjvps(lambda tangent, out, u, landed: tangent, None)


def difference(target: jax.Array, p: jax.Array) -> jax.Array:
    """The float32 u' with p + u' = target. −0.0 where nothing moves: p + (−0.0) is p to the bit, infinities too."""
    return jnp.where(target == p, jnp.float32(-0.0), target.astype(jnp.float32) - p.astype(jnp.float32))


def _is_float(x: Any) -> bool:
    return is_low_precision(x) or (x is not None and jnp.issubdtype(x.dtype, jnp.inexact))


def _add_residual(u: jax.Array, residual: jax.Array) -> jax.Array:
    wide = dtypes.arithmetic(residual.dtype)
    return u.astype(wide) + residual.astype(wide)


def _left_over(u: jax.Array, p: jax.Array) -> jax.Array:
    """What rounding p + u will leave over, in p's type; nothing where that is infinite, as p or the step are."""
    if is_low_precision(p):
        rest = u - _round_to_param(u, p, 0, None, None)
    else:  # p + u is rounded by whoever adds it: Knuth's two-sum finds its error
        total = p + u
        added = total - p
        rest = (p - (total - added)) + (u - added)
    return jnp.where(jnp.abs(rest) <= float(jnp.finfo(p.dtype).max), rest, 0).astype(p.dtype)


def _take_off(u: Any, p: Any, rest: Any) -> Any:
    """u less its rest, which rounds to the same: a TPU makes one loop of p, rest and moments that form a chain."""
    return u if u is None or not is_low_precision(p) else u - rest.astype(u.dtype)


def _round_to_params(updates: Any, params: Any, draw: Any, partition: Any) -> Any:
    """`_round_to_param` on every leaf; each has two words that name it by its path, and perhaps a `PartitionSpec`."""
    names = [random_bits.name_of(path) for path, _ in roles.flatten(params)[0]]
    streams = jax.tree.unflatten(jax.tree.structure(params), names)
    if partition is None:
        return jax.tree.map(
            lambda u, p, s: _round_to_param(u, p, s, draw, None), updates, params, streams, is_leaf=_is_none
        )
    specs = jax.tree.broadcast(partition, params, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
    land = lambda u, p, s, spec: _round_to_param(u, p, s, draw, _offsets(p.shape, spec))
    return jax.tree.map(land, updates, params, streams, specs, is_leaf=_is_none)


def _offsets(shape: tuple[int, ...], spec: jax.sharding.PartitionSpec) -> Any:
    """Inside `shard_map`: the whole leaf's shape, and where this device's shard begins in it."""
    whole, starts = list(shape), [jnp.uint32(0)] * len(shape)
    for axis, names in enumerate(spec):
        if names is not None:
            whole[axis] *= jax.lax.axis_size(names)
            starts[axis] = jax.lax.axis_index(names).astype(jnp.uint32) * jnp.uint32(shape[axis])
    return whole, starts
