"""Norms and projections of sampled arrays."""

from typing import Any

import jax
import numpy as np


def norm(x: Any) -> float:
    """The Euclidean norm of all entries. `np.linalg.norm` calls BLAS, whose threads cost more than these sums."""
    x = np.ravel(x)
    return float(np.sqrt(np.einsum("i,i->", x, x.conj()).real))


def to_host(tree: Any) -> list[np.ndarray]:
    """The leaves as NumPy arrays; all copies are started before the first is waited for, where they take time."""
    leaves = jax.tree.leaves(tree)
    return [*map(np.asarray, leaves if jax.default_backend() == "cpu" else jax.device_get(leaves))]


def odd_parts(plus: list[np.ndarray], minus: list[np.ndarray]) -> list[np.ndarray]:
    """Half the difference of two steps, per leaf."""
    with np.errstate(invalid="ignore"):  # infinite updates
        return [(a - b) / 2 for a, b in zip(plus, minus, strict=True)]


def removed_fraction(d: np.ndarray, p: np.ndarray) -> float:
    """The c for which −c·p is closest to d."""
    square = float(np.vdot(p, p).real)
    return -float(np.vdot(p, d).real) / square if square else 0.0
