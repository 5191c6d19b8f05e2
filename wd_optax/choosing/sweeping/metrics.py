"""The metrics of all runs as they come in, and the dataset that they become."""

from typing import Any, NamedTuple

import jax
import numpy as np

from wd_optax.choosing.sweeping import multihost
from wd_optax.choosing.sweeping.grid import Grid, Program
from wd_optax.choosing.sweeping.trace import TracedRun, dims_of
from wd_optax.optional import require


class Metric(NamedTuple):
    """One metric of one run."""

    shape: tuple[int, ...]
    dtype: np.dtype  # float32 or float64, which hold every value that train returns and NaN; or an integer of 64 bits


class MetricTable:
    """Arrays over the flattened grid."""

    def __init__(self, metrics: dict[str, Metric], size: int):
        self.metrics = metrics
        self.done, self.diverged = np.zeros((2, size), bool)
        fill = lambda m: 0 if m.dtype.kind in "iu" else np.nan
        self.arrays = {name: np.full((size, *m.shape), fill(m), m.dtype) for name, m in metrics.items()}

    def clean(self, found: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Which runs diverged, shape=(runs,), and the metrics, without infinities and other signs of it.

        A run diverged if one of its scalars isn't finite, or if one of its curves has an infinite entry or no finite
        one. NaN entries beside finite ones are steps at which nothing was recorded.
        """
        arrays = {name: np.array(found[name], m.dtype) for name, m in self.metrics.items()}
        diverged = np.logical_or.reduce([_diverged(x.reshape(len(x), -1)) for x in arrays.values()])
        for x in arrays.values():
            if x.dtype.kind == "f":
                x[diverged if x.ndim == 1 else ~np.isfinite(x)] = np.nan
        return diverged, arrays

    def add(self, runs: np.ndarray, diverged: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Runs by their positions in the grid, shape=(runs,), with what `clean` made of them."""
        self.done[runs] = True
        self.diverged[runs] = diverged
        for name, x in arrays.items():
            self.arrays[name][runs] = x

    def share(self) -> None:
        """Gives every process of a multi-host job what process 0 has."""
        self.diverged = multihost.broadcast(self.diverged)
        self.arrays = {name: multihost.broadcast(x) for name, x in self.arrays.items()}

    def dataset(self, grid: Grid, attrs: dict[str, Any]) -> Any:
        """The `xarray.Dataset` of `SweepResult`."""
        dims = [*(axis.name for axis in grid.axes), "seed"]
        shaped = lambda x: x.reshape(*grid.shape, *x.shape[1:])
        variables = {
            name: ([*dims, *dims_of(name, self.metrics[name])], shaped(with_nan(x, self.diverged)))
            for name, x in self.arrays.items()
        }
        coords = {axis.name: axis.labels for axis in grid.axes} | {"seed": list(grid.seeds)}
        return require("xarray").Dataset(variables | {"diverged": (dims, shaped(self.diverged))}, coords, attrs)


def common(programs: list[Program], functions: list[TracedRun]) -> dict[str, Metric]:
    """The metrics, the same for every static value.

    Raises:
      ValueError: for other names or shapes, by name and static value.

    """
    first = functions[0].metrics
    for program, function in zip(programs[1:], functions[1:], strict=True):
        for name in sorted(first.keys() | function.metrics.keys()):
            old, new = (f.get(name) for f in (first, function.metrics))
            if old is None or new is None or old.shape != new.shape:
                show = lambda x: "nothing" if x is None else f"shape {x.shape}"
                raise ValueError(
                    f"train returned {name!r} with {show(old)} for {programs[0]}, with {show(new)} for {program}: "
                    "every run must return the same metrics"
                )
    return {name: Metric(first[name].shape, _dtype(*(f.metrics[name].dtype for f in functions))) for name in first}


def with_nan(array: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Integers in a type that has NaN, which the scalars of diverged runs are: float64, if it holds each of them.

    Otherwise they stay integers, or with a diverged run become Python's integers beside NaN, which keep every bit.

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


def _dtype(*dtypes: Any) -> np.dtype:
    """float32 for 8 and 16 bits and for float32, an integer of 64 bits as it is, else float64."""
    if len(set(dtypes)) == 1 and dtypes[0].kind in "iu" and dtypes[0].itemsize == 8:
        return np.dtype(dtypes[0])
    small = lambda dtype: np.float32 if jax.dtypes.issubdtype(dtype, np.floating) and dtype.itemsize < 4 else dtype
    return np.result_type(np.float32, *map(small, dtypes))


def _diverged(rows: np.ndarray) -> np.ndarray:
    """Of one metric, shape=(runs, entries)."""
    if rows.dtype.kind != "f":
        return np.zeros(len(rows), bool)
    return np.isinf(rows).any(1) | np.isnan(rows).all(1)
