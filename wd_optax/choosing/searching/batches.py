"""Trains a batch of trials in one compiled program for each combination of categories."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wd_optax.choosing.searching.space import MAKE_STATIC, Space, first_point, group_points
from wd_optax.choosing.sweeping import batching, metrics, trace, training
from wd_optax.choosing.sweeping.devices import without_deadlock
from wd_optax.choosing.sweeping.execute import Executor
from wd_optax.choosing.sweeping.grid import StaticGroup


class Outcome(NamedTuple):
    """The result of a trial."""

    metrics: dict[str, np.ndarray]  # shape=(seeds, ...)
    diverged: np.ndarray  # shape=(seeds,)
    steps: int | None = None  # that it was trained for, of a `train` in steps

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold: None for NaN."""
        return {
            "metrics": {name: _with_none(x).tolist() for name, x in self.metrics.items()},
            "diverged": self.diverged.tolist(),
            "steps": self.steps,
        }


def _with_none(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind != "f":
        return x
    found = x.astype(object)
    found[~np.isfinite(x)] = None
    return found


class Batches:
    """Trains the points that it is given, each with every seed, as `sweep` trains a grid."""

    def __init__(self, train: trace.TrainFunction, space: Space, seeds: Sequence[int], devices: list[jax.Device]):
        self.train, self.space, self.seeds, self.devices = train, space, seeds, devices
        self.executors: dict[str, Executor] = {}
        self.requested: dict[str, int] = {}  # widths
        self.widths: dict[str, list[int]] = {}
        self.first = group_points(space, [first_point(space)], seeds)[0]
        self.traced = trace.trace_run(train, self.first, MAKE_STATIC)
        self.metrics = metrics.common_metrics([self.first], [self.traced])

    def outcomes(self, points: Sequence[Mapping[str, Any]], most: int, bar: Any) -> list[Outcome]:
        """Trains the points; `most` is the size of a full batch, for which programs are compiled."""
        table = metrics.MetricTable(self.metrics, len(points) * len(self.seeds))
        progress = training.Progress(table, None, bar, self.widths, 0, "search")
        for group in group_points(self.space, points, self.seeds):
            bar.set_description(f"training {group}")
            executor = self._executor(group).on(group)
            training.train(executor, self._width(executor, most * len(self.seeds)), progress)
        shaped = {name: x.reshape(len(points), len(self.seeds), *x.shape[1:]) for name, x in table.arrays.items()}
        diverged = table.diverged.reshape(len(points), -1)
        return [Outcome({name: x[i] for name, x in shaped.items()}, diverged[i]) for i in range(len(points))]

    def _executor(self, group: StaticGroup) -> Executor:
        """The program of the group's categories, traced and compiled once."""
        name = str(group)
        if name not in self.executors:
            known = name == str(self.first)
            traced = self.traced if known else trace.trace_run(self.train, group, MAKE_STATIC)
            metrics.common_metrics([self.first, group], [self.traced, traced])
            self.executors[name] = Executor(traced, group, without_deadlock(self.devices, traced.jaxpr))
        return self.executors[name]

    def _width(self, executor: Executor, runs: int) -> int:
        name = str(executor.group)
        if name not in self.requested:
            self.requested[name] = batching.choose_width(executor.compiled_at, runs, executor.devices, None)
        return self.requested[name]
