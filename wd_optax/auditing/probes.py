"""Probe parameters and gradients, on the real shapes or on small stand-ins.

Probe parameters are random signs times values in [½, 1½]·r, where r is the leaf's own root mean square, or 1 for
shapes without values. Probe gradients have the same magnitudes. Entries come in pairs: the two parameters are equal,
the two gradients have opposite signs. Therefore f(g) is orthogonal to h(p) for all elementwise odd functions f and h,
and g + λp has the same norm as g − λp, so the effect of clipping or of a trust ratio on the gradient is not mistaken
for decay. An entry without a partner is probed with both signs of its gradient.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.dtypes import is_random_key
from wd_optax.masking import roles

LARGEST = 32  # dimension of a stand-in
SAMPLE = 4096  # entries of a leaf that are compared
CACHED = 2**18  # entries; scaled copies of a larger model might not fit in memory


class Probes(NamedTuple):
    """Probe values for every leaf, in JAX's order."""

    parameters: list[roles.Parameter]  # path, real shape, dtype, role
    treedef: Any
    values: list[np.ndarray]  # parameters in float64 or complex128; integers and the like as they are
    gradients: list[np.ndarray]
    flipped: list[np.ndarray]  # the gradients, with that of the unpaired entry negated
    small: bool  # whether the shapes are those of stand-ins
    unpaired: bool  # whether any leaf has an unpaired entry

    @property
    def real_shapes(self) -> dict[str, roles.Shape]:
        """Path -> the real shape of the parameter."""
        return {p.path: p.shape for p in self.parameters}


class ProbeTrees:
    """The probes as trees of JAX arrays at any scale, in float64 or in the parameters' own dtypes."""

    def __init__(self, probes: Probes, float64: bool) -> None:
        self.probes, self.float64 = probes, float64
        self.entries = sum(x.size for x in probes.values)
        self.cached = probes.small or self.entries <= CACHED
        self._cache: dict[tuple[float, str], Any] = {}

    def params(self, s: float) -> optax.Params:
        """The probe parameters times s."""
        return self._scaled(self.probes.values, s, "values")

    def gradients(self, k: float, flipped: bool = False) -> optax.Updates:
        """The probe gradients times k."""
        if flipped:
            return self._scaled(self.probes.flipped, k, "flipped")
        return self._scaled(self.probes.gradients, k, "gradients")

    def _scaled(self, arrays: list[np.ndarray], scale: float, name: str) -> Any:
        if (scale, name) in self._cache:
            return self._cache[scale, name]
        leaves = []
        for x, p in zip(arrays, self.probes.parameters, strict=True):
            x = x * scale if jnp.issubdtype(x.dtype, jnp.inexact) else x
            leaves.append(jax.device_put(x if self.float64 else x.astype(p.dtype)))  # which compiles nothing
        tree = self.probes.treedef.unflatten(leaves)
        if self.cached:
            self._cache[scale, name] = tree
        return tree


def build_probes(params: optax.Params, stand_ins: bool, largest: int = LARGEST) -> Probes:
    """Probes for a tree of arrays or of `jax.ShapeDtypeStruct`s.

    Args:
      params: the tree.
      stand_ins: whether to use small shapes.
      largest: the largest dimension of a stand-in.
    """
    leaves, treedef = jax.tree.flatten(params)
    parameters = []
    for p in roles.parameters(params):  # JAX stores NumPy's float64 as float32
        parameters.append(p._replace(dtype=jax.dtypes.canonicalize_dtype(p.dtype)))
    shapes = [p.shape for p in parameters]
    shapes = small_shapes(shapes, largest) if stand_ins else shapes
    made = []
    for p, shape, leaf in zip(parameters, shapes, leaves, strict=True):
        real = () if isinstance(leaf, jax.ShapeDtypeStruct) else real_values(leaf)
        size = float(np.sqrt(np.mean(np.abs(real) ** 2))) if len(real) else 1.0
        made.append(_probe(np.random.default_rng(math.prod(shape)), p.dtype, shape, size))
    values, gradients, flipped = map(list, zip(*made, strict=True)) if made else ([], [], [])
    unpaired = any(bool(np.any(a != b)) for a, b in zip(gradients, flipped, strict=True))
    return Probes(parameters, treedef, values, gradients, flipped, stand_ins, unpaired)


def real_values(leaf: Any) -> np.ndarray:
    """A sample of a parameter's finite and nonzero values."""
    values = sample(leaf)
    finite: np.ndarray = values[np.isfinite(values) & (values != 0)]
    return finite


def without_keys(params: optax.Params) -> optax.Params:
    """Replaces random keys, which no optimizer trains, by None."""
    return jax.tree.map(lambda x: None if is_random_key(x) else x, params)


def _probe(
    random: np.random.Generator, dtype: Any, shape: tuple[int, ...], size: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameter, gradient, and the gradient with its unpaired entry negated."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return (np.zeros(shape, dtype),) * 3
    n = math.prod(shape)
    half, at = (n + 1) // 2, random.permutation(n)
    unit = np.sqrt(1j) if jnp.issubdtype(dtype, jnp.complexfloating) else 1.0

    def twice(x: np.ndarray) -> np.ndarray:
        return np.repeat(x, 2)[:n]

    def scattered(x: np.ndarray) -> np.ndarray:
        found = np.empty_like(x)
        found[at] = x
        return np.asarray(unit * found).reshape(shape)

    magnitude = twice(size * random.uniform(0.5, 1.5, half))
    p = magnitude * twice(random.integers(0, 2, half) * 2.0 - 1.0)
    g = magnitude * twice(random.integers(0, 2, half) * 2.0 - 1.0) * np.resize([1.0, -1.0], n)
    other = g * np.where(np.arange(n) == n - 1, -1.0, 1.0) if n % 2 else g
    return scattered(p), scattered(g), scattered(other)


def small_shapes(shapes: list[tuple[int, ...]], largest: int = LARGEST) -> list[tuple[int, ...]]:
    """Shapes of the same ranks with dimensions of at most `largest`, in the same order of size where that fits.

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
    """Up to 8192 evenly spaced entries, in float64 or complex128; integers and the like as they are."""
    flat = np.ravel(np.asarray(x))
    flat = flat[:: max(1, flat.size // SAMPLE)]
    if jnp.issubdtype(flat.dtype, jnp.inexact):
        return flat.astype(complex if jnp.issubdtype(flat.dtype, jnp.complexfloating) else float)
    return flat
