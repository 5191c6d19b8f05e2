"""Random bits from counters: no key per leaf, no state, the same on every device and for any sharding.

It is 32-bit integer arithmetic, which every backend fuses into the loop that uses the bits. An entry takes three
multiplications; with the nine of `pcg3d` for every entry the TPU's compiler splits the step into two loops (tests/tpu).
JAX's threefry would cost more than the optimizer step itself.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Key = int | np.integer[Any] | np.ndarray[Any, Any] | jax.Array  # a number, or a key of `jax.random`
Stream = tuple[int, int]  # two words of 32 bits that name a leaf
LeafKey = tuple[jax.Array, jax.Array]  # two words of 32 bits, which all entries of a leaf share in a step
Offsets = tuple[Sequence[int], Sequence[jax.Array | int]]  # the shape of the whole leaf; the shard's first indices


def seed(key: Key) -> jax.Array:
    """Turns an int, or a key of `jax.random`, into a scalar uint32 in a buffer of its own.

    It accepts `jax.random.key(0)` and the words of `jax.random.PRNGKey(0)`, with the same result.
    """
    if isinstance(key, jax.Array | np.ndarray) and _is_one_key(key):
        return jax.random.bits(jnp.asarray(key))
    if isinstance(key, int | np.integer) and not isinstance(key, bool) and 0 <= key < 2**32:
        return jnp.array(key, dtype=jnp.uint32)
    if isinstance(key, jax.Array | np.ndarray) and key.shape == () and jnp.issubdtype(key.dtype, jnp.integer):
        return jnp.array(key).astype(jnp.uint32)
    what = repr(key)
    if isinstance(key, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        what = f"an array of type {key.dtype} and shape {key.shape}"
    raise ValueError(f"key is {what}: pass an int in [0, 2³²), or one key, as jax.random.key(0)")


def _is_one_key(key: np.ndarray[Any, Any] | jax.Array) -> bool:
    """Whether an array is a key of `jax.random`, typed or as the words of the default generator."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return bool(key.shape == ())
    return bool(key.dtype == jnp.uint32 and key.shape == jax.eval_shape(lambda: jax.random.PRNGKey(0)).shape)


def stream_of(path: str) -> Stream:
    """Hashes a leaf's path to 64 bits, so that a leaf keeps its random bits whatever other leaves the tree has.

    With 32 bits, 1 % of models with 10,000 leaves would have two that collide; CRC-32 has "plumless" equal "buckeroo".
    """
    low, high = np.frombuffer(hashlib.blake2b(path.encode(), digest_size=8).digest(), "<u4").tolist()
    return low, high


def leaf_keys(streams: Iterable[Stream], *, seed: jax.Array, step: jax.Array) -> dict[Stream, LeafKey]:
    """Hashes (seed, stream, step) to the key of every stream, in one vector: on a GPU it would be a kernel per leaf.

    Args:
      streams: of the leaves, see `stream_of`.
      seed: scalar uint32, the same for all leaves.
      step: scalar int32.
    """
    names = list(dict.fromkeys(streams))
    low, high = jnp.asarray(np.array(names, np.uint32).reshape(-1, 2).T)
    y, z = leaf_key(*(jnp.broadcast_to(word, low.shape) for word in (seed, low, high, step)))
    return dict(zip(names, zip(jnp.unstack(y), jnp.unstack(z), strict=True), strict=True))


def leaf_key(seed: jax.Array, low: jax.Array, high: jax.Array, step: jax.Array) -> LeafKey:
    """Hashes four words to two, entry by entry of arrays of one shape."""
    x, y, z = pcg3d(seed, low, step.astype(jnp.uint32))
    _, y, z = pcg3d(x, y ^ high, z)
    return y, z


def bits(shape: tuple[int, ...], key: LeafKey, offsets: Offsets | None = None) -> jax.Array:
    """Draws 32 uniform bits per entry, a function of its leaf's key and its position alone.

    Args:
      shape: of the leaf.
      key: the leaf's, of `leaf_keys`.
      offsets: None, or where this shard begins in the whole leaf: the whole shape, and an index per dimension.

    Returns:
      uint32 of the given shape. Positions are counted modulo 2³².
    """
    return mix(_positions(shape, offsets), *key)


def mix(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    """Hashes one word, with two words as the key: triple32 of Wellons 2018 (github.com/skeeto/hash-prospector).

    The key isn't added to `x` itself: keys that differ by 5 would give the same bits 5 positions apart.
    """
    x = _xorshift(x, 17) * jnp.uint32(0xED5AD4BB)
    x = _xorshift(x + y, 11) * jnp.uint32(0xAC4C1B51)
    x = _xorshift(x + z, 15) * jnp.uint32(0x31848BAB)
    return _xorshift(x, 14)


def _xorshift(x: jax.Array, n: int) -> jax.Array:
    mixed: jax.Array = x ^ (x >> jnp.uint32(n))
    return mixed


def pcg3d(x: jax.Array, y: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hashes three words to three: Jarzynski & Olano 2020, Journal of Computer Graphics Techniques 9(3)."""
    x, y, z = (v * jnp.uint32(1664525) + jnp.uint32(1013904223) for v in (x, y, z))
    x = x + y * z
    y = y + z * x
    z = z + x * y
    x, y, z = (v ^ (v >> jnp.uint32(16)) for v in (x, y, z))
    x = x + y * z
    y = y + z * x
    return x, y, z + x * y


def _positions(shape: tuple[int, ...], offsets: Offsets | None) -> jax.Array:
    """The row-major index of every entry, as a sum of vectors, which shards without communication.

    Vectors are added first, columns last, so that an entry takes one addition: with more of them, as for
    sharded columns, the TPU's compiler splits the step into two loops (tests/tpu).
    """
    whole, starts = (shape, (0,) * len(shape)) if offsets is None else offsets
    position, stride = jnp.zeros((1,) * len(shape), jnp.uint32), 1
    terms = []
    for axis in reversed(range(len(shape))):
        along = tuple(n if i == axis else 1 for i, n in enumerate(shape))
        index = jax.lax.broadcasted_iota(jnp.uint32, along, axis) + jnp.asarray(starts[axis]).astype(jnp.uint32)
        terms.append(index * jnp.uint32(stride % 2**32))
        stride *= whole[axis]
    for term in terms[1:] + terms[:1]:  # columns last
        position = position + term
    return position
