"""The metrics of all runs as they come in, and the dataset that they become."""

from typing import Any, NamedTuple

import jax
import numpy as np

from wd_optax.sweeping import hosts
from wd_optax.sweeping.extras import need
from wd_optax.sweeping.grid import Grid, Program
from wd_optax.sweeping.traced import Traced, dims_of


class Metric(NamedTuple):
    """One metric of one run."""

    shape: tuple[int, ...]
    dtype: np.dtype  # float32 or float64, which hold every value that train returns, and NaN


class Gathered:
    """Arrays over the flattened grid."""

    def __init__(self, metrics: dict[str, Metric], size: int):
        self.metrics = metrics
        self.done, self.diverged = np.zeros((2, size), bool)
        self.arrays = {name: np.full((size, *m.shape), np.nan, m.dtype) for name, m in metrics.items()}

    def clean(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As floats; in a run that diverged, scalars are NaN, and so are the entries of curves that aren't finite."""
        floats = {name: np.array(found[name], m.dtype) for name, m in self.metrics.items()}
        bad = _any(floats, lambda x: ~np.isfinite(x))
        for x in floats.values():
            x[bad if x.ndim == 1 else ~np.isfinite(x)] = np.nan
        return floats

    def add(self, runs: np.ndarray, floats: dict[str, np.ndarray]) -> None:
        """Runs by their positions in the grid, shape=(runs,), with `clean` metrics."""
        self.done[runs] = True
        self.diverged[runs] = _any(floats, np.isnan)
        for name, x in floats.items():
            self.arrays[name][runs] = x

    def share(self) -> None:
        """Gives every process of a multi-host job what process 0 has."""
        self.diverged = hosts.broadcast(self.diverged)
        self.arrays = {name: hosts.broadcast(x) for name, x in self.arrays.items()}

    def dataset(self, grid: Grid, attrs: dict[str, Any]) -> Any:
        """The `xarray.Dataset` of `SweepResult`."""
        dims = [*(axis.name for axis in grid.axes), "seed"]
        shaped = lambda x: x.reshape(*grid.shape, *x.shape[1:])
        variables = {name: ([*dims, *dims_of(name, self.metrics[name])], shaped(x)) for name, x in self.arrays.items()}
        coords = {axis.name: axis.labels for axis in grid.axes} | {"seed": list(grid.seeds)}
        return need("xarray").Dataset(variables | {"diverged": (dims, shaped(self.diverged))}, coords, attrs)


def common(programs: list[Program], functions: list[Traced]) -> dict[str, Metric]:
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
    return {name: Metric(first[name].shape, _float(*(f.metrics[name].dtype for f in functions))) for name in first}


def _float(*dtypes: Any) -> np.dtype:
    """float32 for 8 and 16 bits and for float32, else float64."""
    small = lambda dtype: np.float32 if jax.dtypes.issubdtype(dtype, np.floating) and dtype.itemsize < 4 else dtype
    return np.result_type(np.float32, *map(small, dtypes))


def _any(arrays: dict[str, np.ndarray], test: Any) -> np.ndarray:
    """Which runs have such a value in any of the metrics."""
    return np.logical_or.reduce([test(x).reshape(len(x), -1).any(1) for x in arrays.values()])
