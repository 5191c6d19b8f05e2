"""Random bits from counters: no key per leaf, no state, the same on every device and for any sharding.

It is 32-bit integer arithmetic, which every backend fuses into the loop that uses the bits. An entry takes three
multiplications; with the nine of `pcg3d` for every entry the TPU's compiler splits the step into two loops (tests/tpu).
JAX's threefry would cost more than the optimizer step itself.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Key = int | np.integer[Any] | np.ndarray[Any, Any] | jax.Array  # a number, or a key of `jax.random`
Stream = tuple[int, int]  # two words of 32 bits that name a leaf
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


def bits(
    shape: tuple[int, ...],
    *,
    seed: jax.Array,
    stream: Stream,
    step: jax.Array,
    offsets: Offsets | None = None,
    short_key: bool = False,
) -> jax.Array:
    """Draws 32 uniform bits per entry, a function of (seed, stream, step, position) alone.

    Args:
      shape: of the leaf.
      seed: scalar uint32, the same for all leaves.
      stream: the leaf's, see `stream_of`.
      step: scalar int32.
      offsets: None, or where this shard begins in the whole leaf: the whole shape, and an index per dimension.
      short_key: whether the entries share one word as the key instead of three: see `mix`. Two leaves then have the
        same bits in one step in 2³².

    Returns:
      uint32 of the given shape. Positions are counted modulo 2³².
    """
    # Hash the words that all entries share: seeds that differ in one high bit would correlate otherwise.
    low, high = map(jnp.uint32, stream)
    x, y, z = pcg3d(seed, low, step.astype(jnp.uint32))
    x, y, z = pcg3d(x, y ^ high, z)
    zero = jnp.uint32(0)
    # Not as the first word: keys that differ by 5 would give the same bits 5 positions apart.
    start, *key = (zero, x, zero) if short_key else (x, y, z)
    return mix(_positions(shape, offsets, start), *key)


def mix(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    """Hashes one word, with two words as the key: triple32 of Wellons 2018 (github.com/skeeto/hash-prospector).

    Every word of the key is a scalar operand of the step's loop, which the TPU's compiler has few of: three hashes
    with three words each make two loops of AdamW with a residual and two low-precision moments (tests/tpu).
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


def _positions(shape: tuple[int, ...], offsets: Offsets | None, start: jax.Array) -> jax.Array:
    """`start` plus the row-major index of every entry, as a sum of vectors, which shards without communication.

    Vectors are added first, columns last, so that an entry takes one addition: with more of them, as for
    sharded columns, the TPU's compiler splits the step into two loops (tests/tpu).
    """
    whole, starts = (shape, (0,) * len(shape)) if offsets is None else offsets
    position, stride = jnp.broadcast_to(start, (1,) * len(shape)), 1
    terms = []
    for axis in reversed(range(len(shape))):
        along = tuple(n if i == axis else 1 for i, n in enumerate(shape))
        index = jax.lax.broadcasted_iota(jnp.uint32, along, axis) + jnp.asarray(starts[axis]).astype(jnp.uint32)
        terms.append(index * jnp.uint32(stride % 2**32))
        stride *= whole[axis]
    for term in terms[1:] + terms[:1]:  # columns last
        position = position + term
    return position
