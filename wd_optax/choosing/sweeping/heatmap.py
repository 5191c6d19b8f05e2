"""A heatmap of a metric over two axes, with a panel for each value of the others."""

import itertools
import math
import os
import textwrap
from typing import Any, NamedTuple

import numpy as np

from wd_optax.choosing.sweeping.dataset import DataArray, Mode, is_logarithmic
from wd_optax.optional import require

TITLE_WIDTH = 36  # characters per line of a panel's title
Figure = Any  # of matplotlib, which is optional
Axes = Any


def draw(
    values: DataArray,
    mode: Mode,
    pair: list[str],
    path: str | os.PathLike[str] | None,
    vmin: float | None,
    vmax: float | None,
) -> Figure:
    """See `SweepResult.heatmap`; `values` is a metric over axes and seeds."""
    values, metric = values.sortby(pair), str(values.name)
    mean = values.mean("seed", skipna=False)
    if not np.isfinite(mean).any():
        raise ValueError(f"{metric!r}: every point has a diverged run; sweep lower learning rates")
    others = [dim for dim in mean.dims if dim not in pair]
    points = list(itertools.product(*(range(mean.sizes[dim]) for dim in others)))
    figure, panels, columns = _figure(len(points))
    colours = {
        "cmap": "viridis" if mode == "max" else "viridis_r",
        "vmin": float(mean.min()) if vmin is None else vmin,
        "vmax": float(mean.max()) if vmax is None else vmax,
    }
    scales = [_scale(values[name].values) for name in pair]
    for i, (axes, index) in enumerate(zip(panels, points, strict=True)):
        where = dict(zip(others, index, strict=True))
        image = _panel(axes, values.isel(where), pair, mode, scales, colours)
        _label_axes(axes, pair, scales, bottom=i + columns >= len(panels), left=i % columns == 0)
        title = ", ".join(f"{dim} = {mean[dim].values[i]}" for dim, i in where.items())
        axes.set_title(textwrap.fill(title, TITLE_WIDTH), parse_math=False)
    runs = f"mean of {values.sizes['seed']} seeds" if values.sizes["seed"] > 1 else "one seed"
    figure.colorbar(image, ax=panels).set_label(f"{metric}, {runs}", parse_math=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _figure(count: int) -> tuple[Figure, list[Axes], int]:
    """An empty figure, its panels, and the number of columns."""
    rows = math.ceil(count / 4)
    columns = math.ceil(count / rows)
    figure = require("matplotlib.figure").Figure(figsize=(1.2 + 3.6 * columns, 3.4 * rows), layout="constrained")
    figure.supxlabel("star: best; dots: within its standard error; hatched: diverged", fontsize="small")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count], columns


class _Scale(NamedTuple):
    """Positions of an axis' values. On a logarithmic axis, 0 is one more cell at the lower end, after a gap."""

    log: bool
    places: np.ndarray
    edges: np.ndarray  # of the cells
    broken: bool  # whether there is such a gap


def _scale(given: np.ndarray) -> _Scale:
    numbers = np.asarray(given, float)
    log = is_logarithmic(numbers)
    broken = log and bool((numbers == 0).any())
    if broken:
        least, second = numbers[1:3]  # numbers are sorted
        numbers = np.array([least * (least / second), *numbers[1:]])
    return _Scale(log, numbers, _edges(numbers, log), broken)


def _label_axes(axes: Axes, pair: list[str], scales: list[_Scale], *, bottom: bool, left: bool) -> None:
    """Sets labels and ticks, but tick labels only for the bottom and left panels."""
    axes.tick_params(labelbottom=bottom, labelleft=left, which="both")
    axes.set_xlabel(pair[0] if bottom else "", parse_math=False)
    axes.set_ylabel(pair[1] if left else "", parse_math=False)
    for axis, scale in zip((axes.xaxis, axes.yaxis), scales, strict=True):
        if len(scale.places) == 1:
            axis.set_ticks(scale.places, [f"{scale.places[0]:g}"])
            axis.set_ticks([], minor=True)
        elif scale.broken:
            decades = range(math.ceil(np.log10(scale.edges[1])), math.floor(np.log10(scale.edges[-1])) + 1)
            at = [10.0**k for k in decades] or [float(scale.places[1]), float(scale.places[-1])]
            axis.set_ticks([scale.places[0], *at], ["0", *(f"{x:g}" for x in at)])
            axis.set_ticks([], minor=True)


def _panel(
    axes: Axes, values: DataArray, pair: list[str], mode: Mode, scales: list[_Scale], colours: dict[str, Any]
) -> Any:
    """Draws one map and returns it for the colour bar."""
    x, y = pair
    runs = values.transpose(y, x, "seed").values
    mean, error = runs.mean(-1), _standard_error(runs)
    axes.set_facecolor("0.85")
    axes.patch.set(hatch="////", edgecolor="0.6")
    axes.set(xscale="log" if scales[0].log else "linear", yscale="log" if scales[1].log else "linear")
    image = axes.pcolormesh(*(scale.edges for scale in scales), np.ma.masked_invalid(mean), **colours)
    for line, scale in zip((axes.axvline, axes.axhline), scales, strict=True):
        if scale.broken:
            line(scale.edges[1], color="white", linewidth=4)
    if np.isfinite(mean).any():
        score = np.where(np.isfinite(mean), mean if mode == "max" else -mean, -np.inf)
        best = np.unravel_index(np.argmax(score), score.shape)
        near = np.argwhere(score >= score[best] - np.nan_to_num(error[best]))
        across, up = scales[0].places, scales[1].places
        axes.scatter(across[near[:, 1]], up[near[:, 0]], s=12, color="white", edgecolors="black", linewidths=0.7)
        axes.scatter(across[best[1]], up[best[0]], s=160, marker="*", color="red", edgecolors="white", linewidths=0.8)
    return image


def _standard_error(runs: np.ndarray) -> np.ndarray:
    n = runs.shape[-1]
    return np.asarray(runs.std(-1, ddof=1) / math.sqrt(n)) if n > 1 else np.full(runs.shape[:-1], np.nan)


def _edges(numbers: np.ndarray, log: bool) -> np.ndarray:
    """The edges of cells: half way between neighbours, or half a decade or 0.5 around a single value."""
    at = np.log10(numbers) if log else numbers
    middle = (at[1:] + at[:-1]) / 2
    first, last = (2 * at[0] - middle[0], 2 * at[-1] - middle[-1]) if len(middle) else (at[0] - 0.5, at[0] + 0.5)
    edges = np.array([first, *middle, last])
    return 10**edges if log else edges
