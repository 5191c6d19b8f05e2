"""Low-precision optimizer state with stochastic rounding, so that small updates are not lost."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from wd_optax import state_fields
from wd_optax.precision import casts, random_bits
from wd_optax.precision.rounding import RoundState, StateRounding
from wd_optax.precision.upcasting import upcast


def low_precision_state(
    inner: optax.GradientTransformation,
    *,
    rounding: StateRounding = "stochastic",
    key: random_bits.Key = 0,
    **dtypes: DTypeLike | None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps `inner` so that the named state fields are stored in the given dtypes, and upcast to float32 for updates.

    A second moment in bfloat16 with nearest rounding stops where (1 − b2)·|g² − v| is under half a unit in the last
    place of v, with b2 = 0.999 everywhere but near v = 0; stochastic rounding keeps its mean right.

    Args:
      inner: any Optax transformation.
      rounding: "nearest" or "stochastic" ("compensated" would store as many bits again as it saves).
      key: an int or a `jax.random` key, see `wd_optax.precision.round_updates`.
      **dtypes: field of the state -> dtype, as `mu=jnp.bfloat16, nu=jnp.bfloat16` for Adam, `trace=` for momentum.

    Returns:
      A transformation with a `wd_optax.precision.rounding.RoundState` around `inner`'s state.

    Raises:
      ValueError: for an unknown rounding; at `init` for a field that the state doesn't have.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.precision.low_precision_state(optax.scale_by_adam(), mu=jnp.bfloat16, nu=jnp.bfloat16)
      >>> tx.init({"w": jnp.ones(3)}).inner.nu["w"].dtype
      dtype(bfloat16)
    """
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f'rounding={rounding!r}: a state is rounded "nearest" or "stochastic"')
    stored = {field: dtype for field, dtype in dtypes.items() if dtype is not None}
    inner = optax.with_extra_args_support(inner)

    def store(state: optax.OptState, params: optax.Params, seed: jax.Array, step: jax.Array) -> optax.OptState:
        numbers = itertools.count()  # two stages may have a field of one name

        def cast(dtype: DTypeLike, name: str, path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            if dtype == x.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            if rounding == "nearest" or jnp.dtype(dtype).itemsize >= 4:
                return x.astype(dtype)
            stream = random_bits.stream_of(name + jax.tree_util.keystr(path))
            bits = random_bits.bits(x.shape, seed=seed, stream=stream, step=step)
            return casts.stochastic(x.astype(jnp.float32), dtype, bits)

        def change(field: state_fields.Field) -> Any:
            if field.name not in stored:
                return field.value
            dtype, name = stored[field.name], f"{next(numbers)} {field.name}"
            return jax.tree.map_with_path(functools.partial(cast, dtype, name), field.value)

        return state_fields.map_fields(change, state, params)

    def init(params: optax.Params) -> RoundState:
        state = inner.init(upcast(params))
        fields = {field.name for field in state_fields.fields(state, params)}
        for field in stored:
            if jax.tree.leaves(params) and field not in fields:
                names = ", ".join(sorted(fields)) or "none at all"
                raise ValueError(f"{field}={stored[field]}: the optimizer's state has no such field: it has {names}")
        step, seed = jnp.zeros((), jnp.int32), random_bits.seed(key)
        return RoundState(step, seed, (), store(state, params, seed, step))

    def update(
        updates: optax.Updates, state: RoundState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, RoundState]:
        new_updates, new = inner.update(updates, upcast(state.inner), params, **extra)
        step = optax.safe_increment(state.step)
        # `params` may be None; the gradients have their structure.
        return new_updates, state._replace(step=step, inner=store(new, updates, state.seed, step))

    return optax.GradientTransformationExtraArgs(init, update)
