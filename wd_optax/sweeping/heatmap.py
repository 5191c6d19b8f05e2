"""The map of a metric over two axes, a panel for each value of the others."""

import itertools
import math
from typing import Any

import numpy as np

from wd_optax.sweeping.extras import need


def draw(data: Any, metric: str, mode: str, pair: list[str], path: Any, vmin: float | None, vmax: float | None) -> Any:
    """See `SweepResult.heatmap`."""
    figure_module = need("matplotlib.figure")
    values = data[metric].sortby(pair)
    mean = values.mean("seed", skipna=False)
    if not np.isfinite(mean).any():
        raise ValueError(f"{metric!r}: every point has a diverged run; sweep lower learning rates")
    others = [dim for dim in mean.dims if dim not in pair]
    panels = list(itertools.product(*(range(mean.sizes[dim]) for dim in others)))
    rows = math.ceil(len(panels) / 4)
    columns = math.ceil(len(panels) / rows)  # six panels are two rows of three
    figure = figure_module.Figure(figsize=(1.2 + 3.6 * columns, 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    scale = {
        "cmap": "viridis" if mode == "max" else "viridis_r",
        "vmin": float(mean.min()) if vmin is None else vmin,
        "vmax": float(mean.max()) if vmax is None else vmax,
    }
    for axes, index in itertools.zip_longest(grid.flat, panels):
        if index is None:
            axes.remove()
            continue
        where = dict(zip(others, index, strict=True))
        image = _panel(axes, values.isel(where), pair, mode, scale)
        axes.label_outer()
        axes.set_title(", ".join(f"{dim} = {mean[dim].values[i]}" for dim, i in where.items()))
    runs = f"mean of {values.sizes['seed']} seeds" if values.sizes["seed"] > 1 else "one seed"
    figure.colorbar(image, ax=list(grid.flat[: len(panels)]), label=f"{metric}, {runs}")
    figure.supxlabel("star: best; dots: within its standard error; hatched: diverged", fontsize="small")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _panel(axes: Any, values: Any, pair: list[str], mode: str, scale: dict[str, Any]) -> Any:
    """One map."""
    x, y = pair
    runs = values.transpose(y, x, "seed").values
    mean, error = runs.mean(-1), _standard_error(runs)
    axes.set_facecolor("0.85")
    axes.patch.set(hatch="////", edgecolor="0.6")
    edges = []
    for name, direction in ((x, "x"), (y, "y")):
        numbers = values[name].values.astype(float)
        log = bool((numbers > 0).all())
        edges.append(_edges(numbers, log))
        axes.set(**{f"{direction}scale": "log" if log else "linear", f"{direction}label": name})
    image = axes.pcolormesh(*edges, np.ma.masked_invalid(mean), **scale)
    if np.isfinite(mean).any():
        score = np.where(np.isfinite(mean), mean if mode == "max" else -mean, -np.inf)
        best = np.unravel_index(np.argmax(score), score.shape)
        near = np.argwhere(score >= score[best] - np.nan_to_num(error[best]))
        at = lambda rows, columns: (values[x].values[columns], values[y].values[rows])
        axes.scatter(*at(near[:, 0], near[:, 1]), s=12, color="white", edgecolors="black", linewidths=0.7)
        axes.scatter(*at(*best), s=160, marker="*", color="red", edgecolors="white", linewidths=0.8)
    return image


def _standard_error(runs: Any) -> Any:
    n = runs.shape[-1]
    return runs.std(-1, ddof=1) / math.sqrt(n) if n > 1 else np.full(runs.shape[:-1], np.nan)


def _edges(numbers: Any, log: bool) -> Any:
    """Cells' edges half way between neighbours; half a decade or 0.5 around a single value."""
    at = np.log10(numbers) if log else numbers
    middle = (at[1:] + at[:-1]) / 2
    first, last = (2 * at[0] - middle[0], 2 * at[-1] - middle[-1]) if len(middle) else (at[0] - 0.5, at[0] + 0.5)
    edges = np.array([first, *middle, last])
    return 10**edges if log else edges
