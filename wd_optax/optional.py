"""Packages that only some functions need, imported when they are called."""

import importlib
from typing import Any

EXTRAS = {  # module: its extra
    "matplotlib": "sweep",
    "matplotlib.figure": "sweep",
    "optuna": "search",
    "pandas": "pandas",
    "tqdm": "sweep",
    "xarray": "sweep",
}


def require(module: str) -> Any:
    """Imports one of the modules in `EXTRAS`.

    Raises:
      ImportError: if it isn't installed, with the extra that installs it.

    Example:
      >>> from wd_optax.optional import require
      >>> require("xarray").DataArray([1.0, 3.0]).mean().item()
      2.0

    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ImportError(f'this call needs {package}: pip install "wd_optax[{EXTRAS[module]}]"') from None
