"""Casts from float32 to a narrower float: to the nearest, or up or down at random so that the mean is exact."""

from typing import Any

import jax
import jax.numpy as jnp


def nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """`x.astype(dtype)` for a result that is widened again: XLA may drop a cast down and up (openxla/xla 41605, GPUs).

    Args:
      x: float32.
      dtype: a float type of 8 or 16 bits.

    """
    if dtype == jnp.bfloat16:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(dtype)
    return jax.lax.optimization_barrier(x.astype(dtype))  # reduce_precision knows no subnormals


def stochastic(x: jax.Array, dtype: Any, bits: jax.Array) -> jax.Array:
    """One of the two neighbours of x in `dtype`, the nearer one the likelier: E[result] = x.

    Args:
      x: float32.
      dtype: a float type of 8 or 16 bits.
      bits: uint32 of x's shape, uniform; bfloat16 uses 16 of them, other types 24.

    Returns:
      x's shape in `dtype`. Values of `dtype` are returned as they are, and so is the nearest value for those
      past its largest finite number, where no unbiased choice exists.
    """
    if dtype == jnp.bfloat16:  # the upper half of a float32: add noise to the lower half and cut it off
        noisy = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits >> jnp.uint32(16))
        cut = jax.lax.bitcast_convert_type(noisy & jnp.uint32(0xFFFF0000), jnp.float32)  # a TPU fuses no 16-bit words
        return jnp.where(jnp.abs(x) <= jnp.float32(jnp.finfo(dtype).max), cut, x).astype(dtype)
    near = nearest(jnp.abs(x), dtype)  # the sign comes back at the end: some types have no −0 to count from
    word = jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
    wide = near.astype(jnp.float32)
    step = jnp.where(jnp.abs(x) > wide, 1, -1).astype(word)  # away from zero or toward it; −1 wraps
    far = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(near, word) + step, dtype)
    gap = far.astype(jnp.float32) - wide
    uniform = (bits >> jnp.uint32(8)).astype(jnp.float32) * jnp.float32(2**-24)
    # an exact x has no other neighbour to go to; past the range there is none
    rest = jnp.abs(x) - wide
    go = (rest != 0) & jnp.isfinite(gap) & (uniform * gap / rest < 1)
    return jnp.copysign(jnp.where(go, far, near).astype(x.dtype), x).astype(dtype)
