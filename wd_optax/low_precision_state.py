"""Moments in fewer bits, rounded so that they keep moving."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax import casts, precision, random_bits


def low_precision_state(
    inner: optax.GradientTransformation, *, rounding: str = "stochastic", key: Any = 0, **dtypes: Any
) -> optax.GradientTransformationExtraArgs:
    """`inner`, whose state's fields are kept in the types that are given; it computes with them in float32.

    A second moment in bfloat16 with nearest rounding stops where (1 − b2)·|g² − v| is under half a unit in the last
    place of v, with b2 = 0.999 everywhere but near v = 0; stochastic rounding keeps its mean right.

    Args:
      inner: any Optax transformation.
      rounding: "nearest" or "stochastic" ("compensated" would store as many bits again as it saves).
      key: an int or a `jax.random` key, see `wd_optax.round_updates`.
      **dtypes: field of the state -> type, as `mu=jnp.bfloat16, nu=jnp.bfloat16` for Adam, `trace=` for momentum.

    Returns:
      A transformation with a `wd_optax.precision.RoundState` around `inner`'s state.

    Raises:
      ValueError: for an unknown rounding; at `init` for a field that the state doesn't have.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.low_precision_state(optax.scale_by_adam(), mu=jnp.bfloat16, nu=jnp.bfloat16)
      >>> tx.init({"w": jnp.ones(3)}).inner.nu["w"].dtype
      dtype(bfloat16)
    """
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f'rounding={rounding!r}: a state is rounded "nearest" or "stochastic"')
    dtypes = {field: dtype for field, dtype in dtypes.items() if dtype is not None}
    inner = optax.with_extra_args_support(inner)

    def store(state: Any, seed: jax.Array, step: jax.Array) -> Any:
        def cast(path: Any, x: Any) -> Any:
            dtype = next((dtypes[name] for entry in path if (name := getattr(entry, "name", None)) in dtypes), None)
            if dtype is None or x.dtype != jnp.float32:
                return x
            if rounding == "nearest" or jnp.dtype(dtype).itemsize >= 4:
                return x.astype(dtype)
            stream = random_bits.name_of(jax.tree_util.keystr(path))
            return casts.stochastic(x, dtype, random_bits.bits(x.shape, seed=seed, stream=stream, step=step))

        return jax.tree_util.tree_map_with_path(cast, state)

    def init(params: Any) -> precision.RoundState:
        state = inner.init(precision.widen(params))
        fields = {getattr(e, "name", None) for path, _ in jax.tree_util.tree_leaves_with_path(state) for e in path}
        for field in dtypes:
            if jax.tree.leaves(params) and field not in fields:
                raise ValueError(f"{field}={dtypes[field]}: the optimizer's state has no such field, only {fields}")
        count, seed = jnp.zeros((), jnp.int32), random_bits.seed(key)
        return precision.RoundState(count, seed, (), store(state, seed, count))

    def update(updates: Any, state: precision.RoundState, params: Any = None, **extra: Any) -> Any:
        updates, new = inner.update(updates, precision.widen(state.inner), params, **extra)
        count = optax.safe_increment(state.count)
        return updates, state._replace(count=count, inner=store(new, state.seed, count))

    return optax.GradientTransformationExtraArgs(init, update)
