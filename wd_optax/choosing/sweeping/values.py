"""What a list of hyperparameters may hold: Python's numbers, and the scalars of NumPy, JAX, PyTorch, xarray, pandas."""

import collections
import decimal
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def plain(value: Any) -> Any:
    """A scalar of an array library as Python's number, bool or text; anything else as it is.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from wd_optax.choosing.sweeping import values
      >>> values.plain(np.bool_(True)), values.plain(jnp.float32(2)), values.plain("adam")
      (True, 2.0, 'adam')

    """
    if not _is_array(value) or rank(value) != 0:
        return value
    array = np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return float(array)  # bfloat16 too, whose item() is its own
    return array.item() if array.dtype.kind in "biuU" else value


def rank(value: Any) -> int | None:
    """Dimensions of an array of any library; None for what isn't one."""
    return len(value.shape) if _is_array(value) and isinstance(getattr(value, "shape", None), tuple) else None


def _is_array(value: Any) -> bool:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return False
    return hasattr(value, "__array__") and not isinstance(value, type)


def is_number(value: Any) -> bool:
    """Whether it can be traced.

    Example:
      >>> from fractions import Fraction
      >>> from wd_optax.choosing.sweeping import values
      >>> values.is_number(Fraction(1, 3)), values.is_number(True)
      (True, False)

    """
    return isinstance(value, (numbers.Real, decimal.Decimal)) and not isinstance(value, bool)


def twice(found: Iterable[Any]) -> list[Any]:
    """Those that are there more than once."""
    return [value for value, count in collections.Counter(found).items() if count > 1]
