"""Reading a sweep's dataset: its axes, the two of a map, their scales, a scalar metric."""

from typing import Any

import numpy as np


def axes_of(data: Any, *pair: str | None) -> list[str]:
    """The axes' names in order; with a pair, each None the first axis that holds numbers and isn't taken: that pair.

    Raises:
      ValueError: for a name that isn't an axis of numbers, or where there are no two.

    Example:
      >>> import xarray
      >>> from wd_optax.choosing.sweeping.dataset import axes_of
      >>> coords = {"optimizer": ["sgd"], "lr": [0.1], "λ": [1.0], "seed": [0]}
      >>> data = xarray.Dataset({"diverged": (list(coords), [[[[False]]]])}, coords)
      >>> axes_of(data), axes_of(data, None, "lr")
      (['optimizer', 'lr', 'λ'], ['λ', 'lr'])

    """
    axes = [name for name in data["diverged"].dims if name != "seed"]
    if not pair:
        return axes
    numbers = [name for name in axes if data[name].dtype.kind in "if"]
    free = iter(name for name in numbers if name not in pair)
    chosen = [str(name if name is not None else next(free, "nothing")) for name in pair]
    if not set(chosen) <= set(numbers) or len(set(chosen)) < len(chosen):
        raise ValueError(f"x, y = {chosen}: a map needs two axes that hold numbers, of {numbers}")
    return chosen


def logarithmic(numbers: Any) -> bool:
    """Whether an axis has a logarithmic scale: its values are positive, or 0 beside two positive ones.

    Example:
      >>> from wd_optax.choosing.sweeping.dataset import logarithmic
      >>> logarithmic([0.0, 0.01, 0.1]), logarithmic([0.0, 1.0]), logarithmic([-1.0, 1.0])
      (True, False, False)

    """
    numbers = np.asarray(numbers, float)
    positive = int((numbers > 0).sum())
    return positive == numbers.size or (positive >= 2 and not (numbers < 0).any())


def scalar(data: Any, metric: str, mode: str) -> Any:
    """The metric over axes and seeds, as floats.

    Raises:
      KeyError: for a metric that isn't there.
      ValueError: for a curve, or another mode.

    """
    metrics = [str(name) for name in data.data_vars if name != "diverged"]
    if metric not in metrics:
        raise KeyError(f"no metric {metric!r}; train returned {', '.join(metrics)}")
    if mode not in ("max", "min"):
        raise ValueError(f"mode={mode!r}: pass 'max' or 'min'")
    if curve := [dim for dim in data[metric].dims if dim not in data["diverged"].dims]:
        raise ValueError(f"{metric!r} is a curve over {curve}: have train return a scalar too, such as its last entry")
    return data[metric] if data[metric].dtype.kind == "f" else data[metric].astype(float)
