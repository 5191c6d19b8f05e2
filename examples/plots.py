"""What the pictures of the examples share: colours that everyone can tell apart, dashes for who can't, one size."""

import io
import pathlib
from typing import Any

import numpy as np
from scipy.stats import sem

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
    """Colour and dashes of the i-th line, for `axes.plot(x, y, **plots.line(i))`; 28 differ."""
    return {"color": list(COLOURS.values())[i % 7], "linestyle": ("-", "--", "-.", ":")[i % 4]}


def figure(columns: int, rows: int = 1, **shared: Any) -> tuple[Any, list[Any]]:
    """A figure and its panels with a grid, row by row; `shared` as in Figure.subplots, such as sharey=True."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(4.5 * columns, 3.6 * rows), layout="constrained")
    panels = list(made.subplots(rows, columns, squeeze=False, **shared).flat)
    for axes in panels:
        axes.grid(alpha=0.3)
    return made, panels


def band(axes: Any, at: np.ndarray, runs: np.ndarray, label: str, i: int) -> None:
    """The i-th line: the mean over runs, shape=(runs, points), and two standard errors each side."""
    mean, error = runs.mean(axis=0), 2 * sem(runs)
    axes.plot(at, mean, label=label, **line(i))
    axes.fill_between(at, mean - error, mean + error, color=line(i)["color"], alpha=0.2)


def save(made: Any, folder: str | pathlib.Path, name: str) -> pathlib.Path:
    """Writes the figure to folder/name in few colours, makes the folder where it isn't there, returns the path."""
    from PIL import Image  # matplotlib comes with it

    path = pathlib.Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(drawn := io.BytesIO(), dpi=80)
    few = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(path, optimize=True)  # a third of the bytes
    return path
