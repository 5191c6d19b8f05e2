"""What an audit feeds to an optimizer: probe parameters and gradients, on real shapes or on small stand-ins.

Probe parameters are random signs times values in [½, 1½]·r, with r the leaf's own root mean square where it has
one and 1 otherwise; probe gradients are as large, entry by entry, with signs of their own. No entry is near zero,
so that no ordinary step crosses it, and a gradient always outweighs λ·p.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax import roles

LARGEST = 32  # of a stand-in's dimensions
SAMPLE = 4096  # entries of a leaf that are looked at


class Probes(NamedTuple):
    """The parameters as an audit sees them, leaves in JAX's order."""

    found: list[roles.Parameter]  # path, real shape, dtype, role
    treedef: Any
    values: list[Any]  # NumPy; parameters in float64 (complex128), others as they are
    gradients: list[Any]  # likewise
    own: list[Any]  # a sample of the real values, zeros left out; () where there are none
    small: bool  # whether shapes are those of stand-ins


def make(params: Any, stand_ins: bool | None) -> Probes:
    """Probes for a tree of arrays or of `jax.ShapeDtypeStruct`s, which are always probed on stand-ins."""
    found = roles.parameters(params)
    leaves, treedef = jax.tree.flatten(params)
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    if abstract and stand_ins is False:
        raise ValueError("stand_ins=False, and params are jax.ShapeDtypeStructs without values: drop stand_ins")
    small = abstract or bool(stand_ins)
    shapes = small_shapes([p.shape for p in found]) if small else [p.shape for p in found]
    own = [() if isinstance(leaf, jax.ShapeDtypeStruct) else sample(leaf) for leaf in leaves]
    own = [values[np.isfinite(values) & (values != 0)] if len(values) else () for values in own]
    random = np.random.default_rng(0)
    values, gradients = [], []
    for p, shape, real in zip(found, shapes, own, strict=True):
        v, g = _probe(random, p.dtype, shape, float(np.sqrt(np.mean(np.abs(real) ** 2))) if len(real) else 1.0)
        values.append(v)
        gradients.append(g)
    return Probes(found, treedef, values, gradients, own, small)


def _probe(random: np.random.Generator, dtype: Any, shape: tuple[int, ...], size: float) -> tuple[Any, Any]:
    if not jnp.issubdtype(dtype, jnp.inexact):
        return np.zeros(shape, dtype), np.zeros(shape, dtype)
    signs = lambda: random.integers(0, 2, shape) * 2.0 - 1.0
    magnitude = size * random.uniform(0.5, 1.5, shape)
    unit = np.sqrt(1j) if jnp.issubdtype(dtype, jnp.complexfloating) else 1.0
    return np.asarray(unit * magnitude * signs()), np.asarray(unit * magnitude * signs())


def small_shapes(shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The same ranks with dimensions of at most 32; equal sizes stay equal and larger ones larger.

    Example:
      >>> small_shapes([(4096, 32, 128), (4096,), (2, 128)])
      [(7, 5, 6), (7,), (2, 6)]

    """
    sizes = sorted({size for shape in shapes for size in shape if size > 4})
    small = {size: min(5 + i, LARGEST) for i, size in enumerate(sizes)}
    return [tuple(small.get(size, size) for size in shape) for shape in shapes]


def sample(x: Any) -> np.ndarray:
    """Up to 4096 to 8192 evenly spaced entries, in float64, complex128 or as they are."""
    flat = np.ravel(np.asarray(x))
    flat = flat[:: max(1, flat.size // SAMPLE)]
    if jnp.issubdtype(flat.dtype, jnp.inexact):
        return flat.astype(complex if jnp.issubdtype(flat.dtype, jnp.complexfloating) else float)
    return flat
