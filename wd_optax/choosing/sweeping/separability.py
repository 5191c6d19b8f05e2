"""Separability: the correlation of the two coordinates over the good region of a map, with a bootstrap over seeds."""

from collections.abc import Sequence

import numpy as np

from wd_optax.choosing.sweeping.dataset import DataArray, Dataset, Mode, is_logarithmic
from wd_optax.optional import require

INTERVAL = (2.5, 97.5)  # percentiles


def measure_separability(values: DataArray, mode: Mode, pair: list[str], share: float, resamples: int) -> Dataset:
    """See `SweepResult.separability`; `values` is a metric over axes and seeds."""
    if not 0 < share < 1:
        raise ValueError(f"share={share!r}: pass a number in (0, 1)")
    for name in pair:
        if is_logarithmic(values[name].values):
            values = values.isel({name: values[name].values > 0})  # 0 has no logarithm
    others = [dim for dim in values.dims if dim not in (*pair, "seed")]
    numbers = [values[name].values for name in pair]
    coordinates = np.meshgrid(*(np.log(n) if is_logarithmic(n) else n for n in numbers), indexing="ij")
    seeds = values.sizes["seed"]
    draws = np.random.default_rng(0).integers(seeds, size=(resamples, seeds))
    scores = values.transpose(*others, *pair, "seed").values * (1 if mode == "max" else -1)
    found = np.empty((*scores.shape[: len(others)], 3))
    for index in np.ndindex(found.shape[:-1]):
        maps = scores[index]
        spread = [correlation(maps[..., draw].mean(-1), coordinates, share) for draw in draws if seeds > 1] or [np.nan]
        interval = np.nanpercentile(spread, INTERVAL) if np.isfinite(spread).any() else [np.nan, np.nan]
        found[index] = [correlation(maps.mean(-1), coordinates, share), *interval]
    names = {name: (others, found[..., i]) for i, name in enumerate(("correlation", "low", "high"))}
    attrs = {"x": pair[0], "y": pair[1], "metric": str(values.name), "share": share, "interval": "95 % over seeds"}
    return require("xarray").Dataset(names, {name: values[name] for name in others}, attrs)


def correlation(scores: np.ndarray, coordinates: Sequence[np.ndarray], share: float) -> float:
    """ρ over the points with the highest scores.

    Args:
      scores: shape=(n, m), NaN where a run diverged.
      coordinates: two arrays of that shape.
      share: of all points that is good, in (0, 1).

    Returns:
      ρ in [−1, 1]; 0 if the region has no extent along one coordinate, NaN if it is one point or none.

    Example: a good region along the anti-diagonal, then one along an axis.
      >>> import numpy as np
      >>> from wd_optax.choosing.sweeping.separability import correlation
      >>> i, j = np.mgrid[:5, :5]
      >>> correlation(-((i + j - 4) ** 2), (i, j), 0.2), correlation(-i, (i, j), 0.2)
      (-1.0, 0.0)

    """
    finite = np.sort(np.asarray(scores, float)[np.isfinite(scores)])[::-1]
    if not finite.size:
        return np.nan
    worst = finite[min(max(round(share * np.size(scores)), 1), finite.size) - 1]
    good = np.where(np.isfinite(scores), scores, -np.inf) >= worst
    x, y = (np.asarray(c, float)[good] - np.mean(np.asarray(c)[good]) for c in coordinates)
    if not (x.any() or y.any()):
        return np.nan
    scale = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / scale, -1, 1)) if x.any() and y.any() else 0.0
