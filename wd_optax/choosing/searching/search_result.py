"""The result of a search: the labelled trials, the best of them, the study, and a plot of its history."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from wd_optax.choosing.searching.space import Space
from wd_optax.choosing.searching.workers import RESULT, Study
from wd_optax.choosing.sweeping.dataset import Dataset, Mode
from wd_optax.choosing.sweeping.metrics import Metric, MetricTable, with_nan
from wd_optax.choosing.sweeping.result import Best, Point
from wd_optax.choosing.sweeping.trace import curve_dims
from wd_optax.optional import require


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The result of `wd_optax.search`.

    Attributes:
      data: an `xarray.Dataset` over "trial", the trial's number in the study, and "seed". The hyperparameters are
        coordinates of "trial". Each metric is a variable; "diverged" is as in `wd_optax.sweep`; "value" is that of
        the study, ±∞ for a trial with a diverged run and NaN for a pruned one. If `train` is (init, step), "steps" says
        how many steps a trial was trained for.
      study: the `optuna.Study`, for its importances, plots and further calls.
      metric: the objective.
      mode: "max" or "min".

    Example: random points, and the one next to the minimum.
      >>> import optuna, wd_optax as wd
      >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
      >>> train = lambda hparams, key: {"loss": (hparams["weight_decay"] - 0.5) ** 2}
      >>> space = {"weight_decay": optuna.distributions.FloatDistribution(0.0, 1.0)}
      >>> sampler = optuna.samplers.RandomSampler(seed=0)
      >>> result = wd.search(train, space, metric="loss", mode="min", trials=16, sampler=sampler)
      >>> print(dict(result.data.sizes), f"{result.best.hyperparams['weight_decay']:.2f}")
      {'trial': 16, 'seed': 3} 0.53

    """

    data: Dataset
    study: Study
    metric: str
    mode: Mode

    @property
    def best(self) -> Best:
        """The trial with the best mean over seeds, of those that were neither pruned nor diverged.

        Its `neighbours` are the trials whose mean is within its standard error, best first. The best of many means is
        an optimistic estimate: run the best point again with other seeds.

        Raises:
          ValueError: if there is none.

        """
        values, reported = self.data[self.metric].values.astype(float), self.data["value"].values
        means = np.where(np.isfinite(reported), reported, np.nan)
        if not np.isfinite(means).any():
            raise ValueError(f"{self.metric!r}: every trial has a diverged run; search lower learning rates")
        seeds, sign = values.shape[1], 1 if self.mode == "max" else -1
        errors = values.std(axis=1, ddof=1) / np.sqrt(seeds) if seeds > 1 else means * np.nan
        order = [i for i in np.argsort(-sign * means, kind="stable") if np.isfinite(means[i])]  # NaN is last
        points = [Point(self._hyperparams(i), float(means[i]), float(errors[i])) for i in order]
        best = points[0]
        near = tuple(p for p in points[1:] if sign * (best.mean - p.mean) <= best.standard_error)
        return Best(*best, neighbours=near, diverged=int(self.data["diverged"].sum()))

    def _hyperparams(self, i: int) -> dict[str, Any]:
        names = [name for name in self.data.coords if name not in ("trial", "seed")]
        return {str(name): self.data.coords[name].values.tolist()[i] for name in names}

    def history(self, path: str | os.PathLike[str] | None = None) -> Any:
        """A plot of the objective over the trials and of the best so far; diverged and pruned trials are marked.

        Args:
          path: a file to write it to, in the format of its suffix.

        Returns:
          A `matplotlib.figure.Figure`.

        Raises:
          ImportError: without matplotlib.

        """
        data = self.data
        at, mean = data["trial"].values, data[self.metric].astype(float).mean("seed", skipna=False).values
        finite, diverged = np.isfinite(data["value"].values), np.isinf(data["value"].values)
        figure = require("matplotlib.figure").Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        running = (np.fmax if self.mode == "max" else np.fmin).accumulate(np.where(finite, mean, np.nan))
        pruned = ~finite & ~diverged
        axes.plot(at[finite], mean[finite], ".", label="trials")
        if pruned.any():
            axes.plot(at[pruned], mean[pruned], ".", fillstyle="none", label="pruned")
        if diverged.any():
            edge = axes.get_xaxis_transform()
            axes.plot(at[diverged], np.full(diverged.sum(), 0.02), "|", transform=edge, label="diverged")
        axes.step(at, running, where="post", label="best so far")
        if finite.any() and mean[finite].min() > 0 and mean[finite].max() > 20 * mean[finite].min():
            axes.set_yscale("log")
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{self.metric}, mean of {data.sizes['seed']} seeds", parse_math=False)
        axes.legend()
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def label_trials(study: Study, space: Space, metrics: dict[str, Metric], seeds: Sequence[int]) -> Dataset:
    """The study's finished trials as a dataset."""
    trials = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished() and RESULT in t.user_attrs]
    found = [trial.user_attrs[RESULT] for trial in trials]
    table, dims = MetricTable(metrics, len(trials) * len(seeds)), ["trial", "seed"]
    table.diverged = np.array([result["diverged"] for result in found], bool).reshape(-1)
    shape, variables = (len(trials), len(seeds)), {}
    for name, m in metrics.items():
        for i, result in enumerate(found):
            rows = np.array(result["metrics"][name], m.dtype)  # None is NaN
            table.arrays[name][i * len(seeds) : (i + 1) * len(seeds)] = rows.reshape(len(seeds), *m.shape)
        x = with_nan(table.arrays[name], table.diverged)
        variables[name] = ([*dims, *curve_dims(name, m.shape)], x.reshape(*shape, *m.shape))
    pruned = require("optuna").trial.TrialState.PRUNED
    values = [np.nan if trial.state == pruned else trial.value for trial in trials]
    variables |= {"diverged": (dims, table.diverged.reshape(shape)), "value": (["trial"], np.array(values, float))}
    if any(result["steps"] is not None for result in found):
        variables["steps"] = (["trial"], np.array([result["steps"] for result in found]))
    coords = {name: ("trial", [trial.params[name] for trial in trials]) for name in space}
    return require("xarray").Dataset(
        variables, {"trial": [trial.number for trial in trials], "seed": list(seeds)} | coords
    )
