"""Fits of optima: a polynomial through the points near the best one, and a power law through the optima."""

import math
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
CUBIC = 5  # points from which on the polynomial is a cubic


class Vertices(NamedTuple):
    """The minima of several curves over one axis."""

    at: np.ndarray  # shape=(curves,), on the axis
    best: np.ndarray  # shape=(curves,), the index of each curve's least point
    curved: np.ndarray  # shape=(curves,), whether the polynomial has a minimum


class Line(NamedTuple):
    """y = mean + slope·(x − centre) with the covariance of (mean, slope)."""

    centre: float
    mean: float
    slope: float
    covariance: np.ndarray  # shape=(2, 2)
    quantile: float  # half-widths of intervals are so many standard errors

    def predict(self, x: float) -> tuple[float, float]:
        """The line at x, and half of the width of its interval."""
        at = np.array([1.0, x - self.centre])
        return self.mean + self.slope * at[1].item(), self.quantile * math.sqrt(at @ self.covariance @ at)


def find_vertices(losses: np.ndarray, axis: np.ndarray, points: int) -> Vertices:
    """The minimum of the least-squares polynomial through the `points` neighbours of the least loss, for each curve.

    The polynomial is a cubic through five points or more, else a parabola. Losses rise faster above the best λ than
    below it; a parabola through five points of such a curve is off by 0.15 to 0.4 decades to the flatter side.

    Args:
      losses: shape=(curves, n), finite, n ≥ 3.
      axis: shape=(n,), increasing.
      points: at least 3; all n if there are fewer.

    Returns:
      `Vertices`. A minimum outside of the points it is fitted to is moved to the nearest of them, and a polynomial
      without a minimum has its least point.

    Example: (x − 1.25)² at x = 0, 1, 2, 4.
      >>> import numpy as np
      >>> from wd_optax.choosing.sweeping.power_law import find_vertices
      >>> axis = np.array([0.0, 1.0, 2.0, 4.0])
      >>> round(find_vertices((axis[None] - 1.25) ** 2, axis, points=3).at.item(), 12)
      1.25

    """
    n, size = len(axis), min(points, len(axis))
    degree = 3 if size >= CUBIC else 2
    best = losses.argmin(axis=1)
    start = np.clip(best - size // 2, 0, n - size)
    windows = np.arange(n - size + 1)[:, None] + np.arange(size)
    centres = axis[windows].mean(axis=1, keepdims=True)
    fits = np.linalg.pinv((axis[windows] - centres)[..., None] ** np.arange(degree + 1))  # (windows, degree + 1, size)
    near = np.take_along_axis(losses, windows[start], axis=1)
    _, b, c, *cubic = np.einsum("rcw,rw->cr", fits[start], near)
    # b + 2cx + 3dx² = 0 where 2c + 6dx > 0: x = −b/(c + √(c² − 3bd))
    square = c**2 - 3 * b * (cubic[0] if cubic else 0.0)
    below = c + np.sqrt(np.maximum(square, 0))
    curved = (square >= 0) & (below > 0)
    vertex = centres[start, 0] - b / np.where(curved, below, 1.0)
    vertex = np.clip(vertex, axis[start], axis[start + size - 1])
    return Vertices(np.where(curved, vertex, axis[best]), best, curved)


def fit_line(x: np.ndarray, y: np.ndarray, resampled: np.ndarray, seeds: int) -> Line:
    """The least-squares line through (x, y), with intervals from resampled seeds, or from the residuals of one seed.

    Where the points lie further from the line than their seeds explain, standard errors grow by that factor (Birge's
    ratio), since the line is then not the whole truth.

    Args:
      x: shape=(n,), n ≥ 2.
      y: shape=(n,).
      resampled: shape=(resamples, n), y of each resample of the seeds; of no use with one seed.
      seeds: how many.

    Returns:
      A `Line`; with one seed and two points its covariance is NaN.

    """
    centre = x.mean()
    basis = np.stack([np.ones_like(x), x - centre])
    fit = basis / (basis**2).sum(axis=1, keepdims=True)  # rows are orthogonal
    mean, slope = fit @ y
    free = len(x) - 2
    scatter = ((y - mean - slope * basis[1]) ** 2).sum() / free if free else math.nan
    if seeds == 1:
        return Line(centre.item(), mean.item(), slope.item(), scatter * (fit @ fit.T), _quantile_or_nan(free))
    spread = np.cov(resampled @ fit.T, rowvar=False) * seeds / (seeds - 1)
    noise = resampled.var(axis=0).mean() * seeds / (seeds - 1)
    birge = max(1.0, scatter / noise) if free and noise else 1.0
    return Line(centre.item(), mean.item(), slope.item(), spread * birge, student_quantile(seeds - 1))


def _quantile_or_nan(freedom: int) -> float:
    return student_quantile(freedom) if freedom else math.nan


def student_quantile(freedom: int) -> float:
    """t with P(|T| < t) = 0.95 for Student's T with so many degrees of freedom, by bisection of the exact finite sum.

    Example:
      >>> from wd_optax.choosing.sweeping.power_law import student_quantile
      >>> print(f"{student_quantile(1):.3f} {student_quantile(2):.3f} {student_quantile(100):.3f}")
      12.706 4.303 1.984

    """
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < CONFIDENCE else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t): Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = total = 1.0 if not odd else math.cos(angle)
    for k in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))
