"""What a sweep found: a dataset, its best point, a map, and a number for the shape of the good region."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import numpy as np

from wd_optax import tables
from wd_optax.choosing.sweeping import heatmap, separability
from wd_optax.choosing.sweeping.dataset import axes_of, scalar

ROWS = 30  # of the table in a notebook


class Point(NamedTuple):
    """A point of the grid, over its seeds."""

    hyperparams: dict[str, Any]
    mean: float
    standard_error: float  # nan with one seed


class Best(NamedTuple):
    """The best point, and those that can't be distinguished from it."""

    hyperparams: dict[str, Any]
    mean: float
    standard_error: float  # over seeds; nan with one seed
    neighbours: tuple[Point, ...]  # the other points whose mean is within this standard error, best first
    diverged: int  # runs of the whole grid

    def __str__(self) -> str:
        """A table of the best point and its neighbours."""
        points = [Point(self.hyperparams, self.mean, self.standard_error), *self.neighbours]
        lines = [[*map(_show, p.hyperparams.values()), f"{p.mean:.4g} ± {p.standard_error:.2g}"] for p in points]
        return tables.align([[*self.hyperparams, "mean ± standard error"], *lines])


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What `wd_optax.sweep` returns; a dataset that was saved makes one again: `SweepResult(xarray.open_dataset(...))`.

    Attributes:
      data: an `xarray.Dataset` with a variable for each metric over the axes, in the order given, and "seed"; a curve
        has more dimensions, "loss_0" for the metric "loss". "diverged" is True for runs with a scalar that isn't
        finite, or a curve with an infinite entry or without a finite one: their scalars are NaN, and so are such
        entries of their curves. A curve may be padded with NaN, so return its last entry as a scalar too if NaN there
        means divergence. Integers come as float64, because they may be NaN too, unless it can't hold one of them.
        Its attrs say how it was run.

    Example: λ was best at 0.1 for either seed.
      >>> import wd_optax as wd
      >>> from wd_optax.choosing.sweeping.sweep import sweep
      >>> train = lambda hparams, key: {"loss": (hparams["weight_decay"] - 0.1) ** 2}
      >>> result = sweep(train, {"weight_decay": [0.01, 0.1, 1.0]}, seeds=2)
      >>> print(result.best("loss", mode="min"))
      weight_decay  mean ± standard error
      0.1           0 ± 0

    """

    data: Any

    def _repr_html_(self) -> str:
        """Its points with the mean of each scalar metric over seeds, for a notebook."""
        names = [name for name, x in self.data.data_vars.items() if x.dims == self.data["diverged"].dims]
        metrics, axes = [str(name) for name in names if name != "diverged"], axes_of(self.data)
        seeds, size = self.data.sizes["seed"], int(np.prod([self.data.sizes[name] for name in axes]))
        means = [scalar(self.data, name, "min").mean("seed", skipna=False).transpose(*axes).values for name in metrics]
        lines = [[*axes, *metrics]]
        for index in itertools.islice(np.ndindex(*(self.data.sizes[name] for name in axes)), ROWS):
            point = [self.data[name].values.tolist()[i] for name, i in zip(axes, index, strict=True)]
            lines.append([*map(_show, point), *(f"{mean[index]:.4g}" for mean in means)])
        more = f", the first {ROWS} of them here" if size > ROWS else ""
        text = f"{size} points{more}; means over {seeds} seeds; {int(self.data['diverged'].sum())} runs diverged"
        return f"{tables.to_html(lines)}<p>{text}</p>"

    def best(self, metric: str, mode: str) -> Best:
        """The point whose mean over seeds is best; a point with a diverged run never is.

        The best of many means is an optimistic estimate of itself: run the winner again with other seeds.

        Args:
          metric: a scalar one.
          mode: "max" or "min".

        Raises:
          KeyError: for a metric that isn't there.
          ValueError: for a curve, another mode, or where no point is without a diverged run.

        Example: one seed, so no standard error, and a run that isn't finite doesn't win.
          >>> import jax.numpy as jnp
          >>> from wd_optax.choosing.sweeping.sweep import sweep
          >>> train = lambda hparams, key: {"accuracy": jnp.log(hparams["weight_decay"])}
          >>> sweep(train, {"weight_decay": [-1.0, 1.0, 2.0]}, seeds=1).best("accuracy", "max").hyperparams
          {'weight_decay': 2.0}

        """
        values = scalar(self.data, metric, mode)
        axes = axes_of(self.data)
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

    def _point(self, mean: Any, error: Any, index: Any) -> Point:
        names = {name: mean.coords[name].values.tolist()[i] for name, i in zip(mean.dims, index, strict=True)}
        return Point(names, float(mean.values[index]), float(error.values[index]))

    def heatmap(
        self,
        metric: str,
        *,
        mode: str,
        path: Any = None,
        x: str | None = None,
        y: str | None = None,
        vmin: float | None = None,
        vmax: float | None = None,
    ) -> Any:
        """A map of the mean over seeds, a panel for each value of the other axes, all on one colour scale.

        Axes are logarithmic where all values are positive; 0 beside them is a cell of its own, after a gap. In each
        panel the star is the best point, the dots are those within its standard error; hatched grey is where a run
        diverged.

        Args:
          metric: a scalar one.
          mode: "max" or "min": which is best, and bright.
          path: where to write it as well, in the format of its suffix.
          x: the horizontal axis; the first that holds numbers, unless given.
          y: the vertical axis; the second.
          vmin: the scale's lower end; the least mean, unless given.
          vmax: its upper end.

        Returns:
          A `matplotlib.figure.Figure`.

        Raises:
          ImportError: without matplotlib.
          ValueError: without two axes that hold numbers; otherwise what `best` raises.

        Example:
          >>> from wd_optax.choosing.sweeping.sweep import sweep
          >>> train = lambda hparams, key: {"loss": hparams["learning_rate"] * hparams["weight_decay"]}
          >>> result = sweep(train, {"learning_rate": [0.1, 1.0], "weight_decay": [0.01, 0.1]}, seeds=1)
          >>> [panel.get_xscale() for panel in result.heatmap("loss", mode="min").axes[:1]]
          ['log']

        """
        scalar(self.data, metric, mode)
        return heatmap.draw(self.data, metric, mode, axes_of(self.data, x, y), path, vmin, vmax)

    def separability(
        self,
        metric: str,
        mode: str,
        *,
        x: str | None = None,
        y: str | None = None,
        share: float = 0.2,
        resamples: int = 1000,
    ) -> Any:
        """How diagonal the good region is: the correlation of log x and log y over the best fifth of the map.

            ρ = corr(log η, log λ)  over the points whose mean over seeds is among the best `share` of all points

        The AdamW paper (Figure 2) says that L2 ties λ to η and decoupled decay doesn't. In this number: ρ = 0 where the
        good region is a rectangle or an ellipse along the axes, so that η and λ can be tuned one after the other;
        ρ → −1 where it is a ridge along η·λ = const, ρ → +1 along η/λ = const. For a basin with elliptic level sets
        inside the map ρ is the ellipse's own correlation; ranks alone decide, so any monotone function of the metric
        gives the same number; so do other units of η and λ. A region that the map's edge cuts diagonally, or one with
        a corner missing, such as η·λ < const, lies between.

        Args:
          metric: a scalar one.
          mode: "max" or "min".
          x: the first axis; the first that holds numbers, unless given. Logarithms where all values are positive;
            0 beside them has none, and its points are left out.
          y: the second.
          share: of the map that is called good, in (0, 1); points as good as the last of them belong to it. A point
            with a diverged run is never good, but counts for the size of the map.
          resamples: of the seeds, with replacement, the same ones at every point (runs of one seed are paired).

        Returns:
          An `xarray.Dataset` over the other axes: "correlation" in [−1, 1], 0 where the region lies along one axis, NaN
          where it is one point; "low" and "high", the 95 % bootstrap interval. Three seeds have only ten different
          resamples, and their interval is rough and too narrow; NaN with one seed.

        Raises:
          ValueError: for a share out of (0, 1); otherwise what `heatmap` raises.

        References:
          Loshchilov & Hutter 2019, arXiv 1711.05101.

        Example: good where η·λ = 0.01, so λ must follow η.
          >>> import jax.numpy as jnp, numpy as np
          >>> from wd_optax.choosing.sweeping.sweep import sweep
          >>> train = lambda h, key: {"loss": jnp.log(h["learning_rate"] * h["weight_decay"] / 0.01) ** 2}
          >>> grid = np.logspace(-2, 0, 5)
          >>> result = sweep(train, {"learning_rate": grid, "weight_decay": grid}, seeds=2)
          >>> print(f"{result.separability('loss', 'min')['correlation'].item():.3f}")
          -1.000

        """
        values = scalar(self.data, metric, mode)
        return separability.measure(values, mode, axes_of(self.data, x, y), share, resamples)


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
