"""Moments in fewer bits, rounded so that they keep moving."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax import state_fields
from wd_optax.precision import casts, random_bits
from wd_optax.precision.rounding import RoundState, upcast


def low_precision_state(
    inner: optax.GradientTransformation, *, rounding: str = "stochastic", key: Any = 0, **dtypes: Any
) -> optax.GradientTransformationExtraArgs:
    """`inner`, whose state's fields are kept in the types that are given; it computes with them in float32.

    A second moment in bfloat16 with nearest rounding stops where (1 − b2)·|g² − v| is under half a unit in the last
    place of v, with b2 = 0.999 everywhere but near v = 0; stochastic rounding keeps its mean right.

    Args:
      inner: any Optax transformation.
      rounding: "nearest" or "stochastic" ("compensated" would store as many bits again as it saves).
      key: an int or a `jax.random` key, see `wd_optax.precision.round_updates`.
      **dtypes: field of the state -> type, as `mu=jnp.bfloat16, nu=jnp.bfloat16` for Adam, `trace=` for momentum.

    Returns:
      A transformation with a `wd_optax.precision.RoundState` around `inner`'s state.

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
    dtypes = {field: dtype for field, dtype in dtypes.items() if dtype is not None}
    inner = optax.with_extra_args_support(inner)

    def store(state: Any, like: Any, seed: jax.Array, step: jax.Array) -> Any:
        numbers = itertools.count()  # two stages may have a field of one name

        def cast(dtype: Any, name: str, path: Any, x: Any) -> Any:
            if dtype == x.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            if rounding == "nearest" or jnp.dtype(dtype).itemsize >= 4:
                return x.astype(dtype)
            stream = random_bits.name_of(name + jax.tree_util.keystr(path))
            bits = random_bits.bits(x.shape, seed=seed, stream=stream, step=step)
            return casts.stochastic(x.astype(jnp.float32), dtype, bits)

        def change(field: state_fields.Field) -> Any:
            if field.name not in dtypes:
                return field.value
            dtype, name = dtypes[field.name], f"{next(numbers)} {field.name}"
            return jax.tree_util.tree_map_with_path(lambda path, x: cast(dtype, name, path, x), field.value)

        return state_fields.transform(change, state, like)

    def init(params: Any) -> RoundState:
        state = inner.init(upcast(params))
        fields = {field.name for field in state_fields.find(state, params)}
        for field in dtypes:
            if jax.tree.leaves(params) and field not in fields:
                names = ", ".join(sorted(fields)) or "none at all"
                raise ValueError(f"{field}={dtypes[field]}: the optimizer's state has no such field: it has {names}")
        step, seed = jnp.zeros((), jnp.int32), random_bits.seed(key)
        return RoundState(step, seed, (), store(state, params, seed, step))

    def update(updates: Any, state: RoundState, params: Any = None, **extra: Any) -> Any:
        like = updates
        updates, new = inner.update(updates, upcast(state.inner), params, **extra)
        step = optax.safe_increment(state.step)
        return updates, state._replace(step=step, inner=store(new, like, state.seed, step))

    return optax.GradientTransformationExtraArgs(init, update)
