"""What only a sweep needs is imported when it is needed."""

import importlib
from typing import Any

PACKAGES = {"xarray": "xarray", "matplotlib.figure": "matplotlib", "tqdm": "tqdm"}


def require(module: str) -> Any:
    """The module, one of `PACKAGES`.

    Raises:
      ImportError: naming the extra that has it.

    Example:
      >>> from wd_optax.optional import require
      >>> require("xarray").DataArray([1.0, 3.0]).mean().item()
      2.0

    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f'wd_optax.sweep needs {PACKAGES[module]}: pip install "wd_optax[sweep]"') from None
