"""Random bits from counters: no key per leaf, no state, the same on every device and for any sharding.

32-bit integer arithmetic alone, which every backend fuses into the loop that uses the bits: three multiplications per
entry, for with more of them the TPU's compiler cuts the step in two. JAX's threefry would cost more than the optimizer
step around it.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def seed(key: Any) -> jax.Array:
    """An int, or a key of `jax.random`, as a scalar uint32 in a buffer of its own.

    Both kinds of keys are taken: `jax.random.key(0)` and the words of `jax.random.PRNGKey(0)`, with the same result.
    """
    if isinstance(key, jax.Array | np.ndarray) and _is_one_key(key):
        return jax.random.bits(jnp.asarray(key))
    number = isinstance(key, int | np.integer) and not isinstance(key, bool) and 0 <= key < 2**32
    scalar = isinstance(key, jax.Array | np.ndarray) and key.shape == () and jnp.issubdtype(key.dtype, jnp.integer)
    if not (number or scalar):
        what = f"an array of type {key.dtype} and shape {key.shape}" if hasattr(key, "shape") else repr(key)
        raise ValueError(f"key is {what}: pass an int in [0, 2³²), or one key, as jax.random.key(0)")
    return jnp.array(key).astype(jnp.uint32) if scalar else jnp.array(key, dtype=jnp.uint32)


def _is_one_key(key: Any) -> bool:
    """Whether an array is a key of `jax.random`, typed or as the words of the default generator."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return bool(key.shape == ())
    return bool(key.dtype == jnp.uint32 and key.shape == jax.eval_shape(lambda: jax.random.PRNGKey(0)).shape)


def name_of(path: str) -> tuple[int, int]:
    """A leaf's path as two words of 32 bits, so that a leaf keeps its bits whatever is beside it.

    In 32 bits a model of 10,000 leaves has two of one name in 1 % of all cases, and "plumless" is "buckeroo" in CRC-32.
    """
    low, high = np.frombuffer(hashlib.blake2b(path.encode(), digest_size=8).digest(), "<u4").tolist()
    return low, high


def bits(
    shape: tuple[int, ...], *, seed: jax.Array, stream: tuple[Any, Any], step: jax.Array, offsets: Any = None
) -> jax.Array:
    """32 uniform bits per entry, a function of (seed, stream, step, position) alone.

    Args:
      shape: of the leaf.
      seed: scalar uint32, the same for all leaves.
      stream: two words of 32 bits that name the leaf.
      step: scalar int32.
      offsets: None, or where this shard begins in the whole leaf: the whole shape and an index per dimension.

    Returns:
      uint32 of the given shape. Positions are counted modulo 2³².
    """
    # Hashed once for all entries, keys, leaves and steps differ in every bit even where they differed in the highest.
    low, high = map(jnp.uint32, stream)
    x, y, z = pcg3d(seed, low, step.astype(jnp.uint32))
    return mix(_positions(shape, offsets), *pcg3d(x, y ^ high, z))


def mix(x: jax.Array, start: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    """One word to one, with three words as its key: triple32 of Wellons 2018 (github.com/skeeto/hash-prospector)."""
    shifted = lambda x, n: x ^ (x >> jnp.uint32(n))
    x = shifted(x + start, 17) * jnp.uint32(0xED5AD4BB)
    x = shifted(x + y, 11) * jnp.uint32(0xAC4C1B51)
    x = shifted(x + z, 15) * jnp.uint32(0x31848BAB)
    return shifted(x, 14)


def pcg3d(x: jax.Array, y: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three words to three: Jarzynski & Olano 2020, Journal of Computer Graphics Techniques 9(3)."""
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
