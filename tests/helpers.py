"""Trees and bits: what several test files need."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": x} as {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[name] = leaf
    return tree


def bits(x: Any) -> np.ndarray:
    """The array as integers: equal means equal to the bit, including the sign of zero and NaNs."""
    return np.asarray(x).view(f"u{x.dtype.itemsize}")


def assert_same_bits(a: Any, b: Any) -> None:
    chex.assert_trees_all_equal_structs(a, b)
    chex.assert_trees_all_equal_dtypes(a, b)
    chex.assert_trees_all_equal(jax.tree.map(bits, a), jax.tree.map(bits, b))
