"""Values of an axis: Python's numbers, and the scalars of NumPy, JAX, PyTorch, xarray and pandas."""

import collections
import decimal
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax.dtypes import is_random_key


def to_python(value: Any) -> Any:
    """Converts a scalar of an array library to Python's number or bool; returns anything else unchanged.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from wd_optax.choosing.sweeping import values
      >>> values.to_python(np.bool_(True)), values.to_python(jnp.float32(2)), values.to_python("adam")
      (True, 2.0, 'adam')

    """
    if not _is_array(value) or ndim(value) != 0:
        return value
    array = np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return float(array)  # bfloat16's item() isn't a Python float
    return array.item() if array.dtype.kind in "biuU" else value


def ndim(value: Any) -> int | None:
    """The number of dimensions of an array of any library; None for anything else."""
    return len(value.shape) if _is_array(value) and isinstance(getattr(value, "shape", None), tuple) else None


def _is_array(value: Any) -> bool:
    if isinstance(value, jax.Array) and is_random_key(value):
        return False
    return hasattr(value, "__array__") and not isinstance(value, type)


def is_number(value: Any) -> bool:
    """Whether the value is a real number, which can be traced.

    Example:
      >>> from fractions import Fraction
      >>> from wd_optax.choosing.sweeping import values
      >>> values.is_number(Fraction(1, 3)), values.is_number(True)
      (True, False)

    """
    return isinstance(value, (numbers.Real, decimal.Decimal)) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether the value is an integer of Python or NumPy, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def duplicates(found: Iterable[Any]) -> list[Any]:
    """The values that occur more than once."""
    return [value for value, count in collections.Counter(found).items() if count > 1]
