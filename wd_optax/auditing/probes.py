"""What an audit feeds to an optimizer: probe parameters and gradients, on real shapes or on small stand-ins.

Probe parameters are random signs times values in [½, 1½]·r, with r the leaf's own root mean square where it has
one and 1 otherwise; probe gradients are as large, entry by entry. Entries come in pairs: both parameters have one sign
and size, and both gradients one size and opposite signs. So f(g) is orthogonal to h(p) for all odd functions f and h
that work entry by entry, and the norm of g + λp is that of g − λp: what clipping or a trust ratio makes of a gradient
can't be mistaken for decay. An entry without a partner takes its gradient with both signs, one after the other.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax.masking import roles

LARGEST = 32  # of a stand-in's dimensions
SAMPLE = 4096  # entries of a leaf that are looked at


class Probes(NamedTuple):
    """The parameters as an audit sees them, leaves in JAX's order."""

    found: list[roles.Parameter]  # path, real shape, dtype, role
    treedef: Any
    values: list[Any]  # NumPy; parameters in float64 (complex128), others as they are
    gradients: list[Any]  # likewise
    flipped: list[Any]  # likewise, with the gradient of the entry without a partner negated
    small: bool  # whether shapes are those of stand-ins


def make(params: Any, stand_ins: bool, largest: int = LARGEST) -> Probes:
    """Probes for a tree of arrays or of `jax.ShapeDtypeStruct`s.

    Args:
      params: the tree.
      stand_ins: whether to use small shapes.
      largest: what a dimension of a stand-in is at most.
    """
    stored = lambda p: p._replace(dtype=jax.dtypes.canonicalize_dtype(p.dtype))  # NumPy's float64 becomes float32
    found = [*map(stored, roles.parameters(params))]
    leaves, treedef = jax.tree.flatten(params)
    shapes = [p.shape for p in found]
    shapes = small_shapes(shapes, largest) if stand_ins else shapes
    made = []
    for p, shape, leaf in zip(found, shapes, leaves, strict=True):
        real = () if isinstance(leaf, jax.ShapeDtypeStruct) else real_values(leaf)
        size = float(np.sqrt(np.mean(np.abs(real) ** 2))) if len(real) else 1.0
        made.append(_probe(np.random.default_rng(math.prod(shape)), p.dtype, shape, size))
    values, gradients, flipped = map(list, zip(*made, strict=True)) if made else ([], [], [])
    return Probes(found, treedef, values, gradients, flipped, stand_ins)


def real_values(leaf: Any) -> np.ndarray:
    """A sample of a parameter's values, those that are finite and not zero."""
    values = sample(leaf)
    return values[np.isfinite(values) & (values != 0)]


def without_keys(params: Any) -> Any:
    """The tree with None for random keys, which no optimizer trains."""
    return jax.tree.map(lambda x: None if is_key(x) else x, params)


def is_key(x: Any) -> bool:
    """Whether a leaf is an array of random keys."""
    return bool(hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _probe(random: np.random.Generator, dtype: Any, shape: tuple[int, ...], size: float) -> tuple[Any, Any, Any]:
    """Parameter, gradient, and the gradient with its unpaired entry negated."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return (np.zeros(shape, dtype),) * 3
    n = math.prod(shape)
    half, at = (n + 1) // 2, random.permutation(n)
    twice = lambda x: np.repeat(x, 2)[:n]
    signs = lambda: random.integers(0, 2, half) * 2.0 - 1.0
    unit = np.sqrt(1j) if jnp.issubdtype(dtype, jnp.complexfloating) else 1.0
    magnitude = twice(size * random.uniform(0.5, 1.5, half))
    p, g = magnitude * twice(signs()), magnitude * twice(signs()) * np.resize([1.0, -1.0], n)
    other = g * np.where(np.arange(n) == n - 1, -1.0, 1.0) if n % 2 else g
    scatter = lambda x: np.asarray(unit * x[np.argsort(at)]).reshape(shape)
    return scatter(p), scatter(g), scatter(other)


def small_shapes(shapes: list[tuple[int, ...]], largest: int = LARGEST) -> list[tuple[int, ...]]:
    """The same ranks with dimensions of at most `largest`; equal sizes stay equal and larger ones larger.

    Example:
      >>> small_shapes([(4096, 32, 128), (4096,), (2, 128)])
      [(7, 5, 6), (7,), (2, 6)]

    """
    sizes = sorted({size for shape in shapes for size in shape if size > 4})
    if largest > LARGEST:
        return [tuple(min(size, largest) for size in shape) for shape in shapes]
    small = {size: min(5 + i, LARGEST) for i, size in enumerate(sizes)}
    return [tuple(small.get(size, size) for size in shape) for shape in shapes]


def sample(x: Any) -> np.ndarray:
    """Up to 4096 to 8192 evenly spaced entries, in float64, complex128 or as they are."""
    flat = np.ravel(np.asarray(x))
    flat = flat[:: max(1, flat.size // SAMPLE)]
    if jnp.issubdtype(flat.dtype, jnp.inexact):
        return flat.astype(complex if jnp.issubdtype(flat.dtype, jnp.complexfloating) else float)
    return flat
