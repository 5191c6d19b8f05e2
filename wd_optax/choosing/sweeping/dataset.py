"""Accessors of a sweep's dataset: its axes, the two axes of a map, their scales, a scalar metric."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Dataset = Any  # of xarray, which is optional
DataArray = Any
Mode = Literal["max", "min"]  # which values of a metric are best


def axis_names(data: Dataset) -> list[str]:
    """The names of the axes in order, without "seed"."""
    return [str(name) for name in data["diverged"].dims if name != "seed"]


def map_axes(data: Dataset, x: str | None, y: str | None) -> list[str]:
    """The two axes of a map. None is the first axis that holds numbers and isn't taken.

    Raises:
      ValueError: for a name that isn't an axis of numbers, or if there are no two.

    Example:
      >>> import xarray
      >>> from wd_optax.choosing.sweeping.dataset import axis_names, map_axes
      >>> coords = {"optimizer": ["sgd"], "lr": [0.1], "λ": [1.0], "seed": [0]}
      >>> data = xarray.Dataset({"diverged": (list(coords), [[[[False]]]])}, coords)
      >>> axis_names(data), map_axes(data, None, "lr")
      (['optimizer', 'lr', 'λ'], ['λ', 'lr'])

    """
    numbers = [name for name in axis_names(data) if data[name].dtype.kind in "if"]
    free = iter(name for name in numbers if name not in (x, y))
    chosen = [str(name if name is not None else next(free, "nothing")) for name in (x, y)]
    if not set(chosen) <= set(numbers) or len(set(chosen)) < len(chosen):
        raise ValueError(f"x, y = {chosen}: a map needs two axes that hold numbers, of {numbers}")
    return chosen


def is_logarithmic(numbers: np.ndarray | Sequence[float]) -> bool:
    """Whether an axis has a logarithmic scale: all its values are positive, or 0 if at least two are positive.

    Example:
      >>> from wd_optax.choosing.sweeping.dataset import is_logarithmic
      >>> is_logarithmic([0.0, 0.01, 0.1]), is_logarithmic([0.0, 1.0]), is_logarithmic([-1.0, 1.0])
      (True, False, False)

    """
    numbers = np.asarray(numbers, float)
    positive = int((numbers > 0).sum())
    return positive == numbers.size or (positive >= 2 and not (numbers < 0).any())


def scalar_metric(data: Dataset, metric: str, mode: Mode) -> DataArray:
    """A scalar metric over axes and seeds, as floats.

    Raises:
      KeyError: for an unknown metric.
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


def all_runs(data: Dataset) -> Dataset:
    """The dataset.

    Raises:
      ValueError: for a part of a sweep, whose other runs are NaN as if they had diverged.

    """
    if part := data.attrs.get("part"):
        raise ValueError(f"this result has the runs of part {part}: merge the parts, wd.sweep(...) without part")
    return data
