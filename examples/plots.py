"""Shared plotting helpers: colour-blind-safe lines, confidence bands, one figure size."""

import pathlib
from typing import Any

import intervals
import numpy as np

# Okabe & Ito (2008).
COLOURS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
}


def line(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line, for `axes.plot(x, y, **plots.line(i))`; repeats after 28."""
    return {"color": list(COLOURS.values())[i % 7], "linestyle": ("-", "--", "-.", ":")[i % 4]}


def figure(columns: int, rows: int = 1, **shared: Any) -> tuple[Any, list[Any]]:
    """A figure and its panels with a grid, row by row; `shared` as in Figure.subplots, such as sharey=True."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(4.5 * columns, 3.6 * rows), layout="constrained")
    panels = list(made.subplots(rows, columns, squeeze=False, **shared).flat)
    for axes in panels:
        axes.grid(alpha=0.3)
    return made, panels


def band(axes: Any, at: np.ndarray, runs: np.ndarray, label: str, style: dict[str, Any]) -> None:
    """Plots the mean over runs, shape=(runs, points), as a line with its 95 % interval as a band."""
    mean, half = runs.mean(axis=0), intervals.half_width(runs)
    axes.plot(at, mean, label=label, **style)
    axes.fill_between(at, mean - half, mean + half, color=style["color"], alpha=0.2, linewidth=0)


def bars(axes: Any, at: Any, runs: np.ndarray, style: dict[str, Any], **options: Any) -> None:
    """Plots the mean over runs, shape=(runs, points), as markers with 95 % error bars; options as in axes.errorbar."""
    half = intervals.half_width(runs)
    axes.errorbar(at, runs.mean(axis=0), half, **{"marker": "o", "capsize": 3} | style | options)


def save(made: Any, folder: str | pathlib.Path, name: str) -> pathlib.Path:
    """Writes the figure to folder/name at 144 dpi in 256 colours, creating the folder if needed; returns the path."""
    from PIL import Image

    path = pathlib.Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=144)
    pixels = Image.open(path).convert("RGB")
    pixels.quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=1).save(path, optimize=True)  # a third of the bytes
    return path
