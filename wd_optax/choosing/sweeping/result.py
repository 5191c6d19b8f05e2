"""The result of a sweep: a dataset, its best point, a map, and a number for the shape of the good region."""

import dataclasses
import itertools
import os
from typing import Any, NamedTuple

import numpy as np

from wd_optax import tables
from wd_optax.choosing.sweeping import heatmap, optimum, separability
from wd_optax.choosing.sweeping.dataset import DataArray, Dataset, Mode, all_runs, axis_names, map_axes, scalar_metric

MAX_ROWS = 30  # of the table in a notebook


class Point(NamedTuple):
    """A point of the grid."""

    hyperparams: dict[str, Any]
    mean: float  # over seeds
    standard_error: float  # nan with one seed


class Best(NamedTuple):
    """The best point, and the points that can't be distinguished from it."""

    hyperparams: dict[str, Any]
    mean: float  # over seeds
    standard_error: float  # nan with one seed
    neighbours: tuple[Point, ...]  # the other points whose mean is within this standard error, best first
    diverged: int  # runs of the whole grid

    def __str__(self) -> str:
        """A table of the best point and its neighbours."""
        points = [Point(self.hyperparams, self.mean, self.standard_error), *self.neighbours]
        lines = [[*map(_show, p.hyperparams.values()), f"{p.mean:.4g} ± {p.standard_error:.2g}"] for p in points]
        return tables.align([[*self.hyperparams, "mean ± standard error"], *lines])


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The result of `wd_optax.sweep`. A saved dataset becomes one again by `SweepResult(xarray.open_dataset(...))`.

    Attributes:
      data: an `xarray.Dataset` with a variable for each metric over the axes, in the order given, and "seed". A curve
        has more dimensions, such as "loss_0" for the metric "loss". "diverged" is True for runs with a scalar that
        isn't finite, or a curve with an infinite entry or without a finite one. Scalars of diverged runs are NaN, and
        so are entries of curves that aren't finite. A curve may be padded with NaN, so return its last entry as a
        scalar too if NaN there means divergence. Integers are converted to float64, which has NaN, unless it can't hold
        one of them. The attrs say how the sweep ran.

    Example: λ was best at 0.1 for both seeds.
      >>> import wd_optax as wd
      >>> train = lambda hparams, key: {"loss": (hparams["weight_decay"] - 0.1) ** 2}
      >>> result = wd.sweep(train, {"weight_decay": [0.01, 0.1, 1.0]}, seeds=2)
      >>> print(result.best("loss", mode="min"))
      weight_decay  mean ± standard error
      0.1           0 ± 0

    """

    data: Dataset

    def _repr_html_(self) -> str:
        """A table of points with the mean of each scalar metric over seeds."""
        names = [name for name, x in self.data.data_vars.items() if x.dims == self.data["diverged"].dims]
        metrics, axes = [str(name) for name in names if name != "diverged"], axis_names(self.data)
        seeds, size = self.data.sizes["seed"], int(np.prod([self.data.sizes[name] for name in axes]))
        means = [
            scalar_metric(self.data, name, "min").mean("seed", skipna=False).transpose(*axes).values for name in metrics
        ]
        lines = [[*axes, *metrics]]
        for index in itertools.islice(np.ndindex(*(self.data.sizes[name] for name in axes)), MAX_ROWS):
            point = [self.data[name].values.tolist()[i] for name, i in zip(axes, index, strict=True)]
            lines.append([*map(_show, point), *(f"{mean[index]:.4g}" for mean in means)])
        more = f", the first {MAX_ROWS} of them here" if size > MAX_ROWS else ""
        text = f"{size} points{more}; means over {seeds} seeds; {int(self.data['diverged'].sum())} runs diverged"
        return f"{tables.to_html(lines)}<p>{text}</p>"

    def best(self, metric: str, mode: Mode) -> Best:
        """The point with the best mean over seeds, of those without a diverged run.

        The best of many means is an optimistic estimate: run the best point again with other seeds.

        Args:
          metric: the name of a scalar metric.
          mode: "max" or "min".

        Raises:
          KeyError: for an unknown metric.
          ValueError: for a curve, another mode, or if every point has a diverged run.

        Example: a run that isn't finite is never best.
          >>> import jax.numpy as jnp, wd_optax as wd
          >>> train = lambda hparams, key: {"accuracy": jnp.log(hparams["weight_decay"])}
          >>> wd.sweep(train, {"weight_decay": [-1.0, 1.0, 2.0]}, seeds=1).best("accuracy", "max").hyperparams
          {'weight_decay': 2.0}

        """
        values = scalar_metric(self.data, metric, mode)
        axes = axis_names(self.data)
        mean = values.mean("seed", skipna=False).transpose(*axes)
        if not np.isfinite(mean).any():
            raise ValueError(f"{metric!r}: every point has a diverged run; sweep lower learning rates")
        seeds, sign = values.sizes["seed"], 1 if mode == "max" else -1
        spread = values.std("seed", ddof=1, skipna=False) if seeds > 1 else mean * np.nan
        error = spread.transpose(*axes) / np.sqrt(seeds)
        order = np.argsort(-sign * mean.values, axis=None, kind="stable")
        points = [self._point(mean, error, np.unravel_index(i, mean.shape)) for i in order]
        best = points[0]
        near = tuple(p for p in points[1:] if sign * (best.mean - p.mean) <= best.standard_error)
        return Best(*best, neighbours=near, diverged=int(self.data["diverged"].sum()))

    def _point(self, mean: DataArray, error: DataArray, index: tuple[Any, ...]) -> Point:
        names = {name: mean.coords[name].values.tolist()[i] for name, i in zip(mean.dims, index, strict=True)}
        return Point(names, float(mean.values[index]), float(error.values[index]))

    def heatmap(
        self,
        metric: str,
        *,
        mode: Mode,
        path: str | os.PathLike[str] | None = None,
        x: str | None = None,
        y: str | None = None,
        vmin: float | None = None,
        vmax: float | None = None,
    ) -> Any:
        """A map of the mean over seeds, with a panel for each value of the other axes, all on one colour scale.

        Axes with positive values are logarithmic; 0 beside positive values is a cell of its own, after a gap. In each
        panel the star is the best point, and the dots are the points within its standard error. Points with a diverged
        run are hatched grey.

        Args:
          metric: the name of a scalar metric.
          mode: "max" or "min": which values are best, and bright.
          path: a file to write the map to, in the format of its suffix.
          x: the horizontal axis; by default the first that holds numbers.
          y: the vertical axis; by default the second.
          vmin: the lower end of the colour scale; by default the least mean.
          vmax: the upper end; by default the largest mean.

        Returns:
          A `matplotlib.figure.Figure`.

        Raises:
          ImportError: without matplotlib.
          ValueError: without two axes that hold numbers; otherwise as in `best`.

        Example:
          >>> import wd_optax as wd
          >>> train = lambda hparams, key: {"loss": hparams["learning_rate"] * hparams["weight_decay"]}
          >>> result = wd.sweep(train, {"learning_rate": [0.1, 1.0], "weight_decay": [0.01, 0.1]}, seeds=1)
          >>> [panel.get_xscale() for panel in result.heatmap("loss", mode="min").axes[:1]]
          ['log']

        """
        values = scalar_metric(self.data, metric, mode)
        return heatmap.draw(values, mode, map_axes(self.data, x, y), path, vmin, vmax)

    def separability(
        self,
        metric: str,
        mode: Mode,
        *,
        x: str | None = None,
        y: str | None = None,
        share: float = 0.2,
        resamples: int = 1000,
    ) -> Dataset:
        """How diagonal the good region is: the correlation of log x and log y over the best fifth of the map.

            ρ = corr(log η, log λ)  over the points whose mean over seeds is among the best `share` of all points

        The AdamW paper (Figure 2) says that the best λ depends on η under L2, and not under decoupled decay. ρ = 0 if
        the good region is a rectangle or an ellipse along the axes, so that η and λ can be tuned one after the other.
        ρ → −1 if it is a ridge along η·λ = const, ρ → +1 along η/λ = const. If the metric has elliptic level sets
        inside the map, ρ is the correlation of the ellipse. Only ranks matter, so a monotone function of the metric or
        other units of η and λ give the same ρ. A region that the edge of the map cuts diagonally, or one without a
        corner, such as η·λ < const, lies in between.

        Args:
          metric: the name of a scalar metric.
          mode: "max" or "min".
          x: the first axis; by default the first that holds numbers. Logarithms are taken if all values are positive;
            0 beside positive values is left out.
          y: the second axis; by default the second that holds numbers.
          share: of the map that is good, in (0, 1). Points that equal the last of them are good, too. A point with a
            diverged run is never good, but counts for the size of the map.
          resamples: how often the seeds are resampled, the same way at every point (runs of one seed are paired).

        Returns:
          An `xarray.Dataset` over the other axes: "correlation" in [−1, 1], 0 if the region lies along one axis, NaN if
          it is one point; "low" and "high", the 95 % bootstrap interval, NaN with one seed. Three seeds have only ten
          different resamples, so their interval is rough and too narrow.

        Raises:
          ValueError: for a share outside of (0, 1); otherwise as in `heatmap`.

        References:
          Loshchilov & Hutter 2019, arXiv 1711.05101.

        Example: good where η·λ = 0.01, so λ must follow η.
          >>> import jax.numpy as jnp, numpy as np, wd_optax as wd
          >>> train = lambda h, key: {"loss": jnp.log(h["learning_rate"] * h["weight_decay"] / 0.01) ** 2}
          >>> grid = np.logspace(-2, 0, 5)
          >>> result = wd.sweep(train, {"learning_rate": grid, "weight_decay": grid}, seeds=2)
          >>> print(f"{result.separability('loss', 'min')['correlation'].item():.3f}")
          -1.000

        """
        values = scalar_metric(all_runs(self.data), metric, mode)
        return separability.measure_separability(values, mode, map_axes(self.data, x, y), share, resamples)

    def optimum(
        self, metric: str, *, of: str, over: str, mode: Mode, points: int = 5, resamples: int = 1000
    ) -> optimum.Optima:
        """The best value of one axis at each value of another, and the power law optimum ∝ overᵃ with its interval.

        The optimum is the minimum of a cubic in log `of` through the `points` nearest the best one (a parabola for 3 or
        4 of them). Seeds are resampled, and intervals are Student's with seeds − 1 degrees of freedom. An optimum at
        the edge of what converged, or one too flat to tell, is marked and left out of the law. At each value of `of`,
        axes other than these two have their best values.

        Args:
          metric: the name of a scalar metric.
          of: the axis to optimise, such as "weight_decay"; 0 is left out, unless it is best.
          over: the axis to follow, of positive numbers or of names that are numbers, {"32": 32, "64": 64}.
          mode: "max" or "min".
          points: that the cubic is fitted to, at least 3.
          resamples: of the seeds.

        Example: the best λ grows with the square root of the width.
          >>> import jax.numpy as jnp, numpy as np, wd_optax as wd
          >>> train = lambda h, key: {"loss": jnp.log(h["weight_decay"] / 0.01 / h["width"] ** 0.5) ** 2}
          >>> axes = {"width": [16.0, 64.0, 256.0], "weight_decay": np.logspace(-3, 0, 9)}
          >>> found = wd.sweep(train, axes, seeds=2).optimum("loss", of="weight_decay", over="width", mode="min")
          >>> print(f"{found.exponent:.2f} {found.predict(1024).value:.3f}")
          0.50 0.320

        """
        values = scalar_metric(all_runs(self.data), metric, mode)
        return optimum.measure_optima(values, mode, of, over, points, resamples)


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
