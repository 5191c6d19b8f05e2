"""Where the optimum of one axis is along another: λ* at every width, and the power law λ* ∝ widthᵃ."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wd_optax import tables
from wd_optax.choosing.schedules import as_float
from wd_optax.choosing.sweeping import optimum_plot, power_law
from wd_optax.choosing.sweeping.dataset import DataArray, Mode

LEAST_POINTS = 3  # points that a fit needs
USED = ""  # the flag of an optimum that the law uses
EDGE, TOO_FLAT, TOO_FEW = "at the grid's edge", "too flat to tell", "too few runs converged"
BESIDE = "beside diverged runs"


class Optimum(NamedTuple):
    """The optimum at one value of the other axis."""

    at: float  # of `over`
    value: float  # of `of`
    low: float  # the 95 % interval over seeds; nan with one seed
    high: float
    flag: str  # "", or why the law leaves it out
    diverged: int  # runs


@dataclasses.dataclass(frozen=True, eq=False)
class Optima:
    """The result of `SweepResult.optimum`; `print` shows the optima, what is wrong with them, and the law.

    Attributes:
      of, over, metric, mode: as asked.
      points: an `Optimum` for each value of `over`.
      seeds: how many.
      law: the line through log optimum over log `over`, or None if fewer than two points tell.
      curves: the losses that the optima were read from, for the picture.

    """

    of: str
    over: str
    metric: str
    mode: Mode
    points: tuple[Optimum, ...]
    seeds: int
    law: power_law.Line | None
    curves: tuple[tuple[np.ndarray, np.ndarray], ...] = dataclasses.field(repr=False)

    @property
    def exponent(self) -> float:
        """a of optimum ∝ overᵃ; nan without a law."""
        return self.law.slope if self.law else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the exponent; nan where one seed and two points can't tell."""
        if self.law is None:
            return math.nan, math.nan
        half = self.law.quantile * math.sqrt(self.law.covariance[1, 1])
        return self.law.slope - half, self.law.slope + half

    def predict(self, at: float) -> Optimum:
        """The law's optimum at another value of `over`, with its 95 % interval.

        The interval is that of the fit. Far outside of the values that were swept, it assumes that the law goes on.

        Raises:
          ValueError: without a law, or for a value that isn't positive.

        """
        if self.law is None:
            raise ValueError(f"no law to predict from: {self._why_no_law()}")
        if not (at := as_float("at", at)):
            raise ValueError(f"at=0: pass a positive value of {self.over}")
        middle, half = self.law.predict(math.log(at))
        return Optimum(at, math.exp(middle), math.exp(middle - half), math.exp(middle + half), USED, 0)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """A picture: the metric along `of` for each value of `over`, and the optima with the law.

        Args:
          path: a file to write it to, in the format of its suffix.

        Returns:
          A `matplotlib.figure.Figure`.

        Raises:
          ImportError: without matplotlib.

        """
        band: Callable[[float], tuple[float, float, float]] | None = None
        if self.law is not None:
            band = lambda at: self.predict(at)[1:4]
        good = [point.flag == USED for point in self.points]
        names = optimum_plot.Names(self.of, self.over, self.metric, str(self).splitlines()[-1])
        points = np.array([point[:4] for point in self.points])
        return optimum_plot.draw_optima(names, points, good, self.curves, band, path)

    def lines(self) -> list[tuple[str, ...]]:
        """The cells of the table, header first."""
        head = (self.over, f"best {self.of}", "95 % interval", "diverged", "")
        return [head, *map(_optimum_cells, self.points)]

    def __str__(self) -> str:
        return f"{tables.align(self.lines())}\n{self._law_text()}"

    def _repr_html_(self) -> str:
        return tables.to_html([*self.lines(), (self._law_text(),)])

    def _law_text(self) -> str:
        if self.law is None:
            return f"No law: {self._why_no_law()}."
        low, high = self.interval
        used = sum(point.flag == USED for point in self.points)
        interval = f"95 % interval {low:+.2f} to {high:+.2f}" if math.isfinite(low) else "no interval from one seed"
        residuals = "one seed: from the residuals" if math.isfinite(low) else "one seed"
        seeds = f"{self.seeds} seeds" if self.seeds > 1 else residuals
        return (
            f"{self.of} ∝ {self.over}^{self.exponent:+.2f}, {interval} "
            f"({seeds}; {used} of {len(self.points)} optima tell)"
        )

    def _why_no_law(self) -> str:
        used = sum(point.flag == USED for point in self.points)
        reasons = sorted({point.flag for point in self.points if point.flag})
        return f"{used} of {len(self.points)} optima tell" + f" ({', '.join(reasons)})" * bool(reasons)


def measure_optima(values: DataArray, mode: Mode, of: str, over: str, points: int, resamples: int) -> Optima:
    """See `SweepResult.optimum`; `values` is a metric over axes and seeds."""
    if not isinstance(points, int | np.integer) or points < LEAST_POINTS:
        raise ValueError(f"points={points!r}: a fit needs a whole number of points, at least {LEAST_POINTS}")
    if not isinstance(resamples, int | np.integer) or resamples < 2:
        raise ValueError(f"resamples={resamples!r} must be a whole number, at least 2; 1000 by default")
    axis, places = (_numbers_of(values, name) for name in _two_axes(values, of, over))
    if (axis > 0).sum() < LEAST_POINTS:
        raise ValueError(f"axis {of!r} has {(axis > 0).sum()} positive values: a fit needs at least {LEAST_POINTS}")
    if not places.all():
        raise ValueError(f"axis {over!r} has 0, which has no logarithm: leave it out, result.data.sel({over}=...)")
    others = [dim for dim in values.dims if dim not in (of, over, "seed")]
    sign = 1 if mode == "min" else -1
    losses = sign * values.transpose(over, of, *others, "seed").values
    losses = losses.reshape(*losses.shape[:2], -1, losses.shape[-1])[places.argsort()][:, axis.argsort()]
    axis, places, seeds = np.sort(axis), np.sort(places), losses.shape[-1]
    weights = np.full((1, seeds), 1 / seeds)
    if seeds > 1:  # the first row is the mean; the others resample the seeds, the same way everywhere (runs are paired)
        draws = np.random.default_rng(0).integers(seeds, size=(resamples, seeds))
        weights = np.concatenate([weights, (draws[..., None] == np.arange(seeds)).mean(axis=1)])
    found = [_optimum(place, axis, grid, weights, points) for place, grid in zip(places, losses, strict=True)]
    good = np.array([point.flag == USED for point, _ in found])
    law = None
    if good.sum() >= 2:
        logs = np.stack([logs for point, logs in found if point.flag == USED], axis=1)
        law = power_law.fit_line(np.log(places[good]), logs[0], logs[1:], seeds)
    curves = tuple((axis, sign * _profile(grid, weights[:1])[0]) for grid in losses)
    return Optima(of, over, str(values.name), mode, tuple(point for point, _ in found), seeds, law, curves)


def _two_axes(values: DataArray, of: str, over: str) -> tuple[str, str]:
    names = [str(dim) for dim in values.dims if dim != "seed"]
    for word, name in (("of", of), ("over", over)):
        if name not in names:
            raise ValueError(f"{word}={name!r} is not an axis of the sweep: use one of {', '.join(map(repr, names))}")
    if of == over:
        raise ValueError(f"of={of!r} and over={over!r}: pass two axes")
    return of, over


def _numbers_of(values: DataArray, name: str) -> np.ndarray:
    """The values of an axis, of numbers or of labels that are numbers."""
    try:
        numbers = np.asarray(values[name].values.tolist(), float)
    except ValueError:
        labels = ", ".join(map(repr, values[name].values.tolist()))
        raise ValueError(
            f"axis {name!r} has {labels}: an optimum along it needs numbers, or names that are numbers"
        ) from None
    if not (numbers >= 0).all():
        raise ValueError(
            f"axis {name!r} has negative values, and logarithms are taken: pass an axis of positive numbers"
        )
    return numbers


def _profile(grid: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean loss along `of` under each row of seeds' weights, least over other axes; nan where runs diverged.

    Args:
      grid: shape=(of, others, seeds).
      weights: shape=(rows, seeds).

    Returns:
      shape=(rows, of).

    """
    means = np.einsum("aos,rs->rao", np.where(np.isfinite(grid), grid, np.nan), weights)
    least = np.where(np.isnan(means), np.inf, means).min(axis=-1)
    return np.where(np.isfinite(least), least, np.nan)


def _optimum(
    place: float, axis: np.ndarray, grid: np.ndarray, weights: np.ndarray, points: int
) -> tuple[Optimum, np.ndarray]:
    """The optimum and its logarithm under each row of seeds' weights."""
    losses = _profile(grid, weights)
    usable = np.isfinite(losses[0]) & (axis > 0)
    diverged, logs = int((~np.isfinite(grid)).sum()), np.log(np.where(axis > 0, axis, np.nan))
    if usable.sum() < LEAST_POINTS:
        return Optimum(float(place), math.nan, math.nan, math.nan, TOO_FEW, diverged), np.full(len(weights), math.nan)
    found = power_law.find_vertices(losses[:, usable], logs[usable], points)
    half = math.nan
    if (seeds := weights.shape[1]) > 1:
        spread = found.at[1:].std() * math.sqrt(seeds / (seeds - 1))
        half = power_law.student_quantile(seeds - 1) * spread
    middle = found.at[0].item()
    flag = USED
    zero_is_best = bool((losses[0][axis == 0] <= losses[0][usable].min()).any())
    if not np.ptp(losses[0][usable]):
        flag = TOO_FLAT
    elif found.best[0] in (0, usable.sum() - 1) or zero_is_best:
        end = np.flatnonzero(usable)[found.best[0]]
        flag = EDGE if zero_is_best or end in (np.argmax(axis > 0), len(axis) - 1) else BESIDE
    elif not found.curved[0] or 2 * half > np.ptp(logs[usable]) / 2:  # an interval of half of the axis
        flag = TOO_FLAT
    interval = math.exp(middle - half), math.exp(middle + half)
    return Optimum(float(place), math.exp(middle), *interval, flag, diverged), found.at


def _optimum_cells(point: Optimum) -> tuple[str, ...]:
    interval = f"{point.low:.3g} to {point.high:.3g}" if math.isfinite(point.low) else "-"
    return f"{point.at:g}", f"{point.value:.3g}", interval, str(point.diverged), point.flag
