"""Random bits from counters: no key per leaf, no state, the same on every device and for any sharding.

The hash is pcg3d of Jarzynski & Olano 2020, "Hash Functions for GPU Rendering", Journal of Computer Graphics
Techniques 9(3): 32-bit integer arithmetic alone, which every backend fuses into the loop that uses the bits. JAX's
threefry would cost more than the optimizer step around it.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp


def seed(key: Any) -> jax.Array:
    """An int, or a key of `jax.random`, as a scalar uint32 in a buffer of its own."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.random.bits(key)
    return jnp.array(key, dtype=jnp.uint32)


def name_of(path: str) -> int:
    """A leaf's path as 32 bits (CRC-32), so that a leaf keeps its bits whatever stands beside it."""
    return zlib.crc32(path.encode())


def bits(shape: tuple[int, ...], *, seed: jax.Array, stream: int, step: jax.Array, offsets: Any = None) -> jax.Array:
    """32 uniform bits per entry, a function of (seed, stream, step, position) alone.

    Args:
      shape: of the leaf.
      seed: scalar uint32, the same for all leaves.
      stream: 32 bits that name the leaf.
      step: scalar int32.
      offsets: None, or where this shard begins in the whole leaf: the whole shape and an index per dimension.

    Returns:
      uint32 of the given shape. Positions are counted modulo 2³².
    """
    # Hashing the words that all entries share first spreads keys, leaves and steps that differ in high bits alone;
    # an even word is an odd factor inside pcg3d, which no run of zero bits can weaken.
    start, y, z = pcg3d(seed, jnp.uint32(stream), step.astype(jnp.uint32))
    one = jnp.uint32(1)
    return pcg3d(_positions(shape, offsets) + start, y << one, z << one)[0]


def pcg3d(x: jax.Array, y: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hashes three words of 32 bits to three."""
    x, y, z = (v * jnp.uint32(1664525) + jnp.uint32(1013904223) for v in (x, y, z))
    x = x + y * z
    y = y + z * x
    z = z + x * y
    x, y, z = (v ^ (v >> jnp.uint32(16)) for v in (x, y, z))
    x = x + y * z
    y = y + z * x
    return x, y, z + x * y


def _positions(shape: tuple[int, ...], offsets: Any) -> jax.Array:
    """The row-major index of every entry, as a sum of iotas, which shards without communication."""
    whole, starts = offsets if offsets is not None else (shape, (0,) * len(shape))
    position, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis) + jnp.asarray(starts[axis]).astype(jnp.uint32)
        position = position + index * jnp.uint32(stride % 2**32)
        stride *= whole[axis]
    return position
