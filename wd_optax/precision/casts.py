"""Casts from float32 to 8 or 16 bits: to the nearest value, or up or down at random so that the mean is exact."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def nearest(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`x.astype(dtype)`, for a result that is cast to float32 again: XLA's GPU compiler may drop the pair of casts.

    (openxla/xla 41605; tests/test_precision.py: test_a_cast_down_and_up_is_not_two_converts)

    Args:
      x: float32.
      dtype: a float type of 8 or 16 bits.

    """
    if dtype == jnp.bfloat16:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(dtype)
    rounded: jax.Array = jax.lax.optimization_barrier(x.astype(dtype))  # reduce_precision flushes subnormals
    return rounded


def stochastic(x: jax.Array, dtype: DTypeLike, bits: jax.Array) -> jax.Array:
    """Rounds x to one of its two neighbours in `dtype`, with the probabilities that make E[result] = x.

    Args:
      x: float32.
      dtype: a float type of 8 or 16 bits.
      bits: uint32 of x's shape, uniform; bfloat16 uses 16 of them, other types 24.

    Returns:
      x's shape in `dtype`. Values of `dtype` are returned as they are. Past its largest finite number, where no
      unbiased choice exists, the result is the nearest value.
    """
    if dtype == jnp.bfloat16:  # the upper half of a float32: add noise to the lower half, then truncate
        noisy = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits >> jnp.uint32(16))
        # A mask on 32-bit words and a cast of floats: the TPU's compiler fuses no 16-bit words (tests/tpu).
        cut = jax.lax.bitcast_convert_type(noisy & jnp.uint32(0xFFFF0000), jnp.float32)
        return jnp.where(jnp.abs(x) <= jnp.float32(jnp.finfo(dtype).max), cut, x).astype(dtype)
    near = nearest(jnp.abs(x), dtype)  # the sign is restored at the end: some types have no −0 to count from
    word = jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
    near32 = near.astype(jnp.float32)
    step = jnp.where(jnp.abs(x) > near32, 1, -1).astype(word)  # away from zero or toward it; −1 wraps
    far = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(near, word) + step, dtype)
    gap = far.astype(jnp.float32) - near32
    uniform = (bits >> jnp.uint32(8)).astype(jnp.float32) * jnp.float32(2**-24)
    # An exact x has no second neighbour, and past the range there is none.
    rest = jnp.abs(x) - near32
    go = (rest != 0) & jnp.isfinite(gap) & (uniform * gap / rest < 1)
    return jnp.copysign(jnp.where(go, far, near).astype(x.dtype), x).astype(dtype)
