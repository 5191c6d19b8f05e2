"""In which types decay computes, whatever the parameters are stored in."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def arithmetic(*dtypes: Any) -> np.dtype:
    """The widest of float32 and the given types, the 8- and 16-bit floats counting as float32."""
    wide = (np.dtype(d) for d in dtypes if np.dtype(d).itemsize >= 4)
    return functools.reduce(np.promote_types, wide, np.dtype(np.float32))


def as_arrays(tree: Any) -> Any:
    """The tree with Python numbers as JAX arrays, which have a type and a shape: Optax takes both as parameters."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, bool | int | float | complex) else x, tree)


def is_random_key(x: Any) -> bool:
    """Whether `x` is an array of random keys (`jax.random.key`), concrete or abstract."""
    return bool(hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
