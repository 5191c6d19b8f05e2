"""The picture of optima along an axis: the curves that they were read from, and the power law through them."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from wd_optax.optional import require

Band = Callable[[float], tuple[float, float, float]]  # value of `over` -> optimum, low, high


class Names(NamedTuple):
    """What the axes are called, and the title."""

    of: str
    over: str
    metric: str
    title: str


def draw_optima(
    names: Names,
    points: np.ndarray,
    good: Sequence[bool],
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    band: Band | None,
    path: str | os.PathLike[str] | None,
) -> Any:
    """See `Optima.plot`.

    Args:
      names: of the axes.
      points: shape=(n, 4): place, optimum, low, high.
      good: whether the law uses the point; others are hollow.
      curves: for each point, the axis and the metric along it.
      band: the law.
      path: a file to write to, or None.

    """
    figure = require("matplotlib.figure").Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = require("matplotlib").colormaps["viridis"](np.linspace(0, 0.9, len(points)))
    for (axis, metric), (place, *_), colour in zip(curves, points, colours, strict=True):
        left.plot(axis[axis > 0], metric[axis > 0], marker="o", markersize=3, color=colour, label=f"{place:g}")
    left.set_xscale("log")
    left.set_xlabel(names.of, parse_math=False)
    left.set_ylabel(names.metric, parse_math=False)
    left.legend(title=names.over, fontsize="small")
    _draw_law(right, points, band)
    for (place, value, low, high), use, colour in zip(points, good, colours, strict=True):
        bars = np.array([[value - low], [high - value]]) if np.isfinite(low) else None
        face = colour if use else "white"
        right.errorbar([place], [value], bars, marker="o", color=colour, markerfacecolor=face, capsize=3)
        left.axvline(value, color=colour, linestyle=":" if use else "None", linewidth=1)
    right.set(xscale="log", yscale="log")
    right.set_xlabel(names.over, parse_math=False)
    right.set_ylabel(f"best {names.of} (hollow: not used)", parse_math=False)
    figure.suptitle(names.title, fontsize="medium", parse_math=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_law(axes: Any, points: np.ndarray, band: Band | None) -> None:
    if band is None:
        return
    at = np.geomspace(points[:, 0].min(), points[:, 0].max(), 50)
    middle, low, high = np.array([band(x) for x in at]).T
    axes.plot(at, middle, color="black")
    if np.isfinite(low).all():
        axes.fill_between(at, low, high, color="black", alpha=0.15, linewidth=0)
