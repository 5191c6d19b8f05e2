"""What a claim is: a published statement, what is measured of it, and the bounds that were fixed beforehand."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import intervals
import numpy as np


class Expected(NamedTuple):
    """Bounds of a measured number; a row holds if the whole 95 % interval of its mean is within them."""

    low: float
    high: float
    text: str

    def verdict(self, runs: Any) -> str:
        """The verdict on numbers of one seed each, or on one number that no seed changes.

        Args:
          runs: shape=(seeds,) with at least `intervals.FEWEST` seeds, or shape=().

        Returns:
          "holds" or "does not show at this scale"; a NaN doesn't show.

        Raises:
          ValueError: for one or two seeds.

        Example:
          >>> at_most(0.0).verdict([-1.0, -1.1, -0.9]), at_most(0.0).verdict([-1.0, 1.1, -0.9])
          ('holds', 'does not show at this scale')
        """
        mean, half = interval(runs)
        return "holds" if self.low <= mean - half and mean + half <= self.high else "does not show at this scale"


def at_most(high: float) -> Expected:
    """The number is `high` or less; with 0 and paired differences: significantly less at 5 %."""
    return Expected(-math.inf, high, f"≤ {high:.6g}")


def at_least(low: float) -> Expected:
    """The number is `low` or more; with 0 and paired differences: significantly more at 5 %."""
    return Expected(low, math.inf, f"≥ {low:.6g}")


def between(low: float, high: float) -> Expected:
    """The number is from `low` to `high`."""
    return Expected(low, high, f"{low:.3g} to {high:.6g}")


def exactly(value: float) -> Expected:
    """The number is `value` to the last bit."""
    return Expected(value, value, f"{value:.5g}")


def interval(runs: Any) -> tuple[float, float]:
    """The mean and half of its 95 % interval, 0 for one number that no seed changes."""
    runs = np.asarray(runs, float)
    if runs.ndim == 0:
        return float(runs), 0.0
    if runs.ndim > 1 or len(runs) < intervals.FEWEST:
        raise ValueError(f"runs has shape {runs.shape}, expected (seeds,) with at least {intervals.FEWEST}, or ()")
    return float(runs.mean()), float(intervals.half_width(runs))


class Measured(NamedTuple):
    """What a claim's program returns."""

    rows: Mapping[str, Any]  # the name of a row -> its numbers, shape=(seeds,) or ()
    curves: Any  # what the picture shows


class Claim(NamedTuple):
    """A published statement and the program that measures it; each file of this folder with a `CLAIM` has one."""

    title: str  # a few words
    papers: tuple[str, ...]  # arXiv ids
    statement: str  # what the papers say, in our words
    expected: Mapping[str, Expected]  # the name of a row -> its bounds
    measure: Callable[[], Measured]
    draw: Callable[[Any, Any], None]  # (axes, curves)
    quick: bool = False  # takes under two seconds and is exact: a test asserts every row
