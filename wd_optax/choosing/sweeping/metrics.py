"""The metrics of all runs of a sweep: collected in arrays over the grid, then a dataset."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wd_optax.choosing.sweeping import multihost
from wd_optax.choosing.sweeping.chunk import Chunk
from wd_optax.choosing.sweeping.grid import Grid, StaticGroup
from wd_optax.choosing.sweeping.trace import TracedRun, curve_dims
from wd_optax.optional import require


class Metric(NamedTuple):
    """Shape and stored type of one metric of one run."""

    shape: tuple[int, ...]
    dtype: np.dtype  # float32 or float64, whichever holds all values of `train`, and NaN; or int64 or uint64


class MetricTable:
    """Arrays of metrics over the flattened grid."""

    def __init__(self, metrics: dict[str, Metric], size: int):
        self.metrics = metrics
        self.done, self.diverged = np.zeros((2, size), bool)
        self.arrays = {
            name: np.full((size, *m.shape), 0 if m.dtype.kind in "iu" else np.nan, m.dtype)
            for name, m in metrics.items()
        }

    def clean(self, found: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Marks diverged runs: returns a mask of shape=(runs,), and the metrics with NaN for what isn't finite.

        A run diverged if one of its scalars isn't finite, or if one of its curves has an infinite entry or no finite
        one. NaN entries beside finite ones are steps at which nothing was recorded.
        """
        arrays = {name: np.array(found[name], m.dtype) for name, m in self.metrics.items()}
        diverged = np.logical_or.reduce([_diverged(x.reshape(len(x), -1)) for x in arrays.values()])
        for x in arrays.values():
            if x.dtype.kind == "f":
                x[diverged if x.ndim == 1 else ~np.isfinite(x)] = np.nan
        return diverged, arrays

    def add(self, chunk: Chunk) -> None:
        """Adds finished runs."""
        self.done[chunk.runs] = True
        self.diverged[chunk.runs] = chunk.diverged
        for name, x in chunk.metrics.items():
            self.arrays[name][chunk.runs] = x

    def share(self) -> None:
        """Copies the table of process 0 to every process of a multi-host job."""
        self.diverged = multihost.broadcast(self.diverged)
        self.arrays = {name: multihost.broadcast(x) for name, x in self.arrays.items()}

    def dataset(self, grid: Grid, attrs: dict[str, Any]) -> Any:
        """The `xarray.Dataset` of `SweepResult`."""
        dims = [*(axis.name for axis in grid.axes), "seed"]
        variables = {
            name: ([*dims, *curve_dims(name, m.shape)], self._finished(with_nan(self.arrays[name], self.diverged)))
            for name, m in self.metrics.items()
        } | {"diverged": (dims, self.diverged)}
        shaped = {name: (names, x.reshape(*grid.shape, *x.shape[1:])) for name, (names, x) in variables.items()}
        coords = {axis.name: axis.labels for axis in grid.axes} | {"seed": list(grid.seeds)}
        return require("xarray").Dataset(shaped, coords, attrs)

    def _finished(self, array: np.ndarray) -> np.ndarray:
        """The array with NaN for the runs of other parts."""
        if self.done.all():
            return array
        array = array if array.dtype.kind in "fO" else array.astype(object)
        array[~self.done] = np.nan
        return array


def common_metrics(groups: Sequence[StaticGroup], functions: Sequence[TracedRun]) -> dict[str, Metric]:
    """The metrics, which must be the same for every static group.

    Raises:
      ValueError: for other names or shapes, by name and static value.

    """
    first = functions[0].metrics
    for group, function in zip(groups[1:], functions[1:], strict=True):
        for name in sorted(first.keys() | function.metrics.keys()):
            shapes = [f.metrics[name].shape if name in f.metrics else None for f in (functions[0], function)]
            if None in shapes or shapes[0] != shapes[1]:
                old, new = ("nothing" if shape is None else f"shape {shape}" for shape in shapes)
                raise ValueError(
                    f"train returned {name!r} with {old} for {groups[0]}, with {new} for {group}: "
                    "every run must return the same metrics"
                )
    return {name: Metric(first[name].shape, _dtype([f.metrics[name].dtype for f in functions])) for name in first}


def with_nan(array: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Converts integers to float64, so that scalars of diverged runs can be NaN, if it holds each of them.

    Otherwise they stay integers. If a scalar diverged, they become Python's integers, beside NaN.

    Example:
      >>> import numpy as np
      >>> from wd_optax.choosing.sweeping.metrics import with_nan
      >>> with_nan(np.array([1, 2**53 + 1]), np.array([False, False]))
      array([               1, 9007199254740993])

    """
    if array.dtype.kind == "f":
        return array
    scalars = array.ndim == 1
    used = array[~diverged] if scalars else array
    exact = all(int(x) <= 2**53 for x in (used.max(initial=0), 0 - int(used.min(initial=0))))
    if not exact and not (scalars and diverged.any()):
        return array
    floats = array.astype(np.float64 if exact else object)
    if scalars:
        floats[diverged] = np.nan
    return floats


def _dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """float32 for floats and integers of up to 16 bits, the type itself for integers of 64 bits, float64 otherwise."""
    if len(set(dtypes)) == 1 and dtypes[0].kind in "iu" and dtypes[0].itemsize == 8:
        return np.dtype(dtypes[0])
    small = [np.float32 if jnp.issubdtype(d, jnp.floating) and d.itemsize < 4 else d for d in dtypes]
    return np.dtype(np.result_type(np.float32, *small))


def _diverged(rows: np.ndarray) -> np.ndarray:
    """A mask of shape=(runs,) for one metric of shape=(runs, entries)."""
    if rows.dtype.kind != "f":
        return np.zeros(len(rows), bool)
    return np.asarray(np.isinf(rows).any(1) | np.isnan(rows).all(1))
