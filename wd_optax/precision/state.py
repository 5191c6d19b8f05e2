"""Low-precision optimizer state with stochastic rounding, so that small updates are not lost."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from wd_optax import state_fields
from wd_optax.precision import casts, random_bits
from wd_optax.precision.rounding import RoundState, StateRounding
from wd_optax.precision.upcasting import upcast


@dataclasses.dataclass(frozen=True)
class _Draw:
    """What is rounded at random, in the place of a leaf, until the keys of all leaves are known."""

    x: jax.Array
    dtype: jnp.dtype[Any]
    stream: random_bits.Stream
    shift: int  # of the bits: 0 or 16

    def cast(self, bits: Callable[[tuple[int, ...], random_bits.Stream], jax.Array]) -> jax.Array:
        drawn = bits(self.x.shape, self.stream) << jnp.uint32(self.shift)
        return casts.stochastic(self.x.astype(jnp.float32), self.dtype, drawn)


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
      rounding: "nearest" or "stochastic" ("compensated" would store as many bits again as it saves). The initial state
        is rounded to the nearest value either way.
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

    def store(state: optax.OptState, params: optax.Params, seed_and_step: tuple[jax.Array, ...]) -> optax.OptState:
        """The state in its dtypes, rounded at random if there are a seed and a step."""
        numbers = itertools.count()  # two stages may have a field of one name

        def change(field: state_fields.Field) -> Any:
            if field.name not in stored:
                return field.value
            number, dtype = next(numbers), jnp.dtype(stored[field.name])
            name, half = f"{number} {field.name}", 0
            if dtype == jnp.bfloat16:  # takes 16 random bits, so two fields share a word
                name, half = f"{number // 2} bfloat16", number % 2

            def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array | _Draw:
                if dtype == x.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
                    return x
                if not seed_and_step or dtype.itemsize >= 4:
                    return x.astype(dtype)
                return _Draw(x, dtype, random_bits.stream_of(name + jax.tree_util.keystr(path)), 16 * half)

            return jax.tree.map_with_path(cast, field.value)

        leaves, structure = jax.tree.flatten(state_fields.map_fields(change, state, params))
        if draws := [leaf for leaf in leaves if isinstance(leaf, _Draw)]:
            seed, step = seed_and_step
            keys = random_bits.leaf_keys((draw.stream for draw in draws), seed=seed, step=step)
            bits = functools.cache(lambda shape, stream: random_bits.bits(shape, keys[stream]))
            leaves = [leaf.cast(bits) if isinstance(leaf, _Draw) else leaf for leaf in leaves]
        return jax.tree.unflatten(structure, leaves)

    def init(params: optax.Params) -> RoundState:
        state = inner.init(upcast(params))
        fields = {field.name for field in state_fields.fields(state, params)}
        for field in stored:
            if jax.tree.leaves(params) and field not in fields:
                names = ", ".join(sorted(fields)) or "none at all"
                raise ValueError(f"{field}={stored[field]}: the optimizer's state has no such field: it has {names}")
        step, seed = jnp.zeros((), jnp.int32), random_bits.seed(key)
        return RoundState(step, seed, (), store(state, params, ()))

    def update(
        updates: optax.Updates, state: RoundState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, RoundState]:
        new_updates, new = inner.update(updates, upcast(state.inner), params, **extra)
        step = optax.safe_increment(state.step)
        seed_and_step = (state.seed, step) if rounding == "stochastic" else ()
        # `params` may be None; the gradients have their structure.
        return new_updates, state._replace(step=step, inner=store(new, updates, seed_and_step))

    return optax.GradientTransformationExtraArgs(init, update)
