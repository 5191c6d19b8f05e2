"""The dtypes that decay computes in, whatever the parameters are stored in."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def arithmetic(*dtypes: DTypeLike) -> np.dtype[Any]:
    """Promotes float32 and the given types, where 8- and 16-bit floats count as float32."""
    large = (jnp.dtype(d) for d in dtypes if jnp.dtype(d).itemsize >= 4)
    return functools.reduce(np.promote_types, large, np.dtype(np.float32))


def as_arrays(tree: Any) -> Any:
    """The tree with Python numbers, which Optax takes as parameters too, as JAX arrays."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, bool | int | float | complex) else x, tree)


def is_random_key(x: Any) -> bool:
    """Whether `x` is an array of random keys (`jax.random.key`), concrete or abstract."""
    return bool(hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
