"""Decay that survives low precision: round the sum p + u well, and return the update that moves p exactly there.

With bfloat16 parameters p + u rounds back to p whenever |u| is under half a unit in the last place, a relative step
of 2⁻⁹ to 2⁻⁸: at every ordinary setting, decay is lost entirely. The transforms here return u' = round(p + u) − p in
float32, so that an unchanged `optax.apply_updates` gives the right bits: those of p + u, rounded to float32 and then to
p's type. The exceptions are

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
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.masking import roles
from wd_optax.masking.errors import check_updates
from wd_optax.precision import exact_steps, random_bits
from wd_optax.precision.upcasting import in_float32, is_float, is_low_precision

Rounding = Literal["nearest", "stochastic", "compensated", "compensated_all"]
StateRounding = Literal["nearest", "stochastic"]  # a residual would need as many bits as `low_precision_state` saves


class RoundingMode(NamedTuple):
    """What a value of `rounding` means."""

    rounds: Callable[[Any], bool]  # which leaves
    compensates: bool = False  # adds what rounding left over to the next update
    draws_bits: bool = False  # for the parameter; a low-precision residual always needs them
    state: StateRounding = "stochastic"  # how low-precision moments are rounded with it


ROUNDINGS: dict[str, RoundingMode] = {
    "nearest": RoundingMode(is_low_precision, state="nearest"),
    "stochastic": RoundingMode(is_low_precision, draws_bits=True),
    "compensated": RoundingMode(is_low_precision, compensates=True),
    "compensated_all": RoundingMode(is_float, compensates=True),
}


def parse_rounding(rounding: str) -> RoundingMode:
    """The mode of a rounding, or a ValueError that lists the roundings."""
    if rounding not in tuple(ROUNDINGS):
        raise ValueError(f"rounding={rounding!r}: use one of {', '.join(map(repr, ROUNDINGS))}")
    return ROUNDINGS[rounding]


def for_state(rounding: Rounding | None) -> StateRounding:
    """How an optimizer with this `rounding` rounds its moments, if they are low-precision."""
    return "nearest" if rounding is None else parse_rounding(rounding).state


class RoundState(NamedTuple):
    """State of `round_updates` and `low_precision_state`: arrays only."""

    step: jax.Array  # shape=(), dtype=int32: steps taken; `count` is the wrapped optimizer's
    seed: jax.Array  # shape=(), dtype=uint32
    residual: optax.Params  # "compensated*": like the rounded parameters, what rounding left over; else ()
    inner: optax.OptState = ()  # the wrapped optimizer's state


def round_updates(
    rounding: Rounding, *, key: random_bits.Key = 0, partition: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Replaces u by u' = round(p + u) − p in float32, for parameters of 8 or 16 bits; goes last in a chain.

    "nearest" rounds to the nearest value, "stochastic" to the value above or below with E[p + u'] = p + u,
    "compensated" to the nearest, adding what that left over to the next update (Kahan), in one more leaf of the
    parameter's type, itself rounded at random so that E[p + u' + residual] = p + u. Parameters of 32 bits and more are
    left alone, except by "compensated_all", whose residuals of them are exact: float32 loses a decay under 3·10⁻⁸ per
    step altogether, and much of one under 10⁻⁶.

    What is too small for float32 is lost still: c < 2⁻²⁵ per step for "stochastic", where p + u is formed in float32,
    and u < 2⁻²⁵ of the residual for "compensated", whose residual is at most half a unit of p: c < 2⁻³³ in bfloat16.

    Random bits are a function of `key`, the step, the leaf's path and the entry's position: the same on every
    replica and for any sharding under `jit`, different for every leaf and step.

    Args:
      rounding: "nearest", "stochastic", "compensated" or "compensated_all".
      key: an int or a `jax.random` key; it is a leaf of the state, and only "nearest" doesn't use it.
      partition: inside `shard_map`, where a leaf is only this device's shard, a tree of `PartitionSpec` objects like
        the parameters, so that positions are counted in the whole leaf. Not needed anywhere else.

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
    mode = parse_rounding(rounding)

    def init(params: optax.Params) -> RoundState:
        params = dtypes.as_arrays(params)
        residual = jax.tree.map(lambda p: jnp.zeros_like(p) if mode.rounds(p) else jnp.zeros((), p.dtype), params)
        return RoundState(jnp.zeros((), jnp.int32), random_bits.seed(key), residual if mode.compensates else ())

    def update(
        updates: optax.Updates, state: RoundState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, RoundState]:
        del extra
        if params is None:
            raise ValueError(
                "round_updates rounds the parameters, so update needs them: tx.update(grads, state, params)"
            )
        updates, params, residual = dtypes.as_arrays(updates), dtypes.as_arrays(params), state.residual
        check_updates("round_updates", updates, params)
        draw = functools.partial(_draw_bits, params, state, partition)
        if mode.compensates:
            updates, residual = _compensate(mode, updates, params, residual, draw("residual of "))
        rounded = _round_to_params(updates, params, draw("") if mode.draws_bits else None)
        return rounded, state._replace(step=optax.safe_increment(state.step), residual=residual)

    return optax.GradientTransformationExtraArgs(init, update)


def rounded(
    optimizer: optax.GradientTransformationExtraArgs, rounding: Rounding | None, key: random_bits.Key
) -> optax.GradientTransformationExtraArgs:
    """The `rounding` argument of every optimizer: None, or `optimizer` in float32 and then `round_updates`."""
    if rounding is None:
        return optimizer
    tx = optax.chain(in_float32(optimizer), round_updates(rounding, key=key))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        is_chain = isinstance(state, tuple) and len(state) == 2
        # The state of another optimizer goes to `optimizer`, whose error names both.
        updates, state = (tx if is_chain else optimizer).update(updates, state, params, **extra)
        return updates, state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _is_none(x: Any) -> bool:
    return x is None


def _compensate(
    mode: RoundingMode, updates: optax.Updates, params: optax.Params, residual: optax.Params, bits: Any
) -> tuple[optax.Updates, optax.Params]:
    """Updates with the last step's residual added, and the residual that rounding them will leave."""
    add = lambda u, p, r: u if u is None or not mode.rounds(p) else exact_steps.add_residual(u, r)
    updates = jax.tree.map(add, updates, params, residual, is_leaf=_is_none)
    left = lambda u, p, r, b: r if u is None or not mode.rounds(p) else exact_steps.left_over(u, p, b)
    residual = jax.tree.map(left, updates, params, residual, bits, is_leaf=_is_none)
    return jax.tree.map(exact_steps.subtract_residual, updates, params, residual, is_leaf=_is_none), residual


def _round_to_params(updates: optax.Updates, params: optax.Params, bits: Any) -> optax.Updates:
    """Rounds every low-precision leaf; at random where there are `bits`."""
    bits = jax.tree.map(lambda p: None, params) if bits is None else bits
    leaf = lambda u, p, b: u if u is None or not is_low_precision(p) else exact_steps.round_to_param(u, p, b)
    return jax.tree.map(leaf, updates, params, bits, is_leaf=_is_none)


def _draw_bits(params: optax.Params, state: RoundState, partition: Any, purpose: str) -> Any:
    """A tree like `params`: random bits named by purpose and path for low-precision leaves, None for others."""
    leaves = roles.flatten(params)[0]
    streams = [random_bits.stream_of(purpose + path) if is_low_precision(p) else None for path, p in leaves]
    keys = random_bits.leaf_keys(filter(None, streams), seed=state.seed, step=state.step)
    is_spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)
    specs = () if partition is None else (jax.tree.broadcast(partition, params, is_leaf=is_spec),)
    named = jax.tree.unflatten(jax.tree.structure(params), streams)

    def leaf(
        p: jax.Array, stream: random_bits.Stream | None, spec: jax.sharding.PartitionSpec | None = None
    ) -> jax.Array | None:
        if stream is None:
            return None
        return random_bits.bits(p.shape, keys[stream], None if spec is None else _offsets(p.shape, spec))

    return jax.tree.map(leaf, params, named, *specs)


def _offsets(shape: tuple[int, ...], spec: jax.sharding.PartitionSpec) -> random_bits.Offsets:
    """Inside `shard_map`: the whole leaf's shape, and where this device's shard begins in it."""
    whole, starts = list(shape), [jnp.uint32(0)] * len(shape)
    for axis, names in enumerate(spec):
        if names is not None:
            whole[axis] *= jax.lax.axis_size(names)
            starts[axis] = jax.lax.axis_index(names).astype(jnp.uint32) * jnp.uint32(shape[axis])
    return whole, starts
