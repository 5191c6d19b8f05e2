"""Published training runs: their learning rates, schedules and weight decays, and how long their decay takes.

The figures are in `published_runs.toml`. Every row names the files or tables that its figures come from.
"""

import difflib
import functools
import importlib.resources
import tomllib
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from wd_optax import tables
from wd_optax.choosing import schedules, timescales
from wd_optax.choosing.runs import OptimizerFamily, Run
from wd_optax.couplings import Coupling
from wd_optax.hyperparams import Schedule


class PublishedRun(NamedTuple):
    """A published training run; `print` shows it with its timescale and its sources."""

    name: str
    model: str
    optimizer: str
    learning_rate: float  # η_max, the peak
    phases: tuple[schedules.Phase, ...]
    weight_decay: float  # λ
    coupling: Coupling  # see `wd_optax.decay_rate`
    decay: Literal["decoupled", "coupled"]  # "coupled": λp is added to SGD's gradient
    steps: int
    dataset: str
    source: tuple[str, ...]  # of each figure
    batch_size: int | None = None  # in `unit`
    examples: int | None = None  # size of the dataset, in `unit`
    unit: str = "images"
    momentum: float = 0.0  # of SGD
    betas: tuple[float, float] | None = None
    mask: str | None = None  # what decays
    note: str | None = None

    @property
    def steps_per_epoch(self) -> float | None:
        """Steps per pass over the dataset; None if the size of the batch or of the dataset isn't published."""
        return self.examples / self.batch_size if self.examples and self.batch_size else None

    def schedule(self) -> Schedule:
        """η_t as a function of the step, an Optax schedule."""
        return schedules.from_phases(self.phases)

    def learning_rates(self) -> np.ndarray:
        """η_t at each step of the run, shape=(steps,), dtype=float64."""
        return schedules.step_rates(self.phases, self.steps)

    def run(self, *, width: float | None = None, parameters: float | None = None) -> Run:
        """A `wd_optax.Run` with these figures: `wd_optax.transfer` from it trains your run like this one.

        `width` and `parameters` of the model are for the rules that need them. Raises ValueError without a batch.

        Example:
          >>> import wd_optax as wd
          >>> gpt2 = wd.published("nanogpt-124m").run()
          >>> mine = wd.Run(batch=32_768, steps=5_000, examples=40e6)
          >>> print(f"{wd.transfer(source=gpt2, target=mine, hold='timescale_run').weight_decay:.3g}")
          12

        """
        if self.batch_size is None:
            raise ValueError(f"{self.name} has no published batch: build wd.Run(batch=..., steps={self.steps}, ...)")
        family: dict[str, OptimizerFamily] = {"SGD": "sgd_l2" if self.decay == "coupled" else "sgdw", "AdamW": "adamw"}
        return Run(
            batch=self.batch_size,
            steps=self.steps,
            examples=self.examples,
            width=width,
            parameters=parameters,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            schedule=self.learning_rates(),
            coupling=self.coupling,
            optimizer=family.get(self.optimizer.partition(",")[0], "other"),
            momentum=self.momentum,
        )

    def timescale(self) -> timescales.Timescale:
        """The `wd_optax.timescale` of the run.

        SGD's momentum μ accumulates coupled L2 decay: to first order it acts like decoupled decay with λ/(1 − μ).
        """
        return _timescale(self)

    @property
    def share_of_run(self) -> float:
        """The timescale divided by the length of the run."""
        return self.timescale().timescale_steps / self.steps

    def lines(self) -> list[tuple[str, str]]:
        """The figures, their timescale and their sources: names and texts."""
        beta = f" (betas {self.betas[0]:g}, {self.betas[1]:g})" if self.betas else ""
        momentum = f" (momentum {self.momentum:g})" if self.momentum else ""
        batch = f"{self.batch_size:,} {self.unit} per step" if self.batch_size else "batch not published"
        size = f", {self.examples:,} {self.unit}" if self.examples else ""
        named = [line.partition("  ") for line in str(self.timescale()).splitlines()]
        return [
            ("run", f"{self.name}: {self.model}"),
            ("optimizer", self.optimizer + beta + momentum),
            ("learning rate", f"{self.learning_rate:g}: {schedules.describe(self.phases)}"),
            ("weight decay", f'{self.weight_decay:g}, {self.decay}, coupling "{self.coupling}"'),
            ("decays", self.mask or "not published"),
            ("data", f"{self.dataset}{size}; {batch}"),
            *((name, text.strip()) for name, _, text in named),
            *([("note", self.note)] if self.note else []),
            *(("source", source) for source in self.source),
        ]

    def __str__(self) -> str:
        return tables.align(self.lines())

    def _repr_html_(self) -> str:
        return tables.to_html(self.lines(), header=False)


class PublishedRuns(tuple[PublishedRun, ...]):
    """Published runs; `print` shows a table with the timescale in steps, as a share of the run, and in epochs."""

    __slots__ = ()

    def lines(self) -> list[tuple[str, ...]]:
        """The cells of the table, header first."""
        head = ("run", "optimizer", "η", "schedule", "steps", "λ", "coupling", "timescale", "of the run", "epochs")
        return [head, *map(_table_row, self)]

    def __repr__(self) -> str:
        return tables.align(self.lines())

    def _repr_html_(self) -> str:
        return tables.to_html(self.lines())


class Shares(NamedTuple):
    """The timescale as a share of the run, over the published runs with decoupled decay."""

    runs: int
    smallest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    largest: float

    def __str__(self) -> str:
        return (
            f"{self.runs} runs: {self.smallest:.3g} to {self.largest:.3g} of the run, median {self.median:.3g}, "
            f"half of them between {self.lower_quartile:.3g} and {self.upper_quartile:.3g}"
        )


@functools.lru_cache
def shares_of_run() -> Shares:
    """The range and quartiles of timescale/steps over the published runs with decoupled decay.

    Example:
      >>> import wd_optax as wd
      >>> from wd_optax.choosing.published import shares_of_run
      >>> shares = shares_of_run()
      >>> shares.smallest < wd.published("nanogpt-124m").share_of_run < shares.median
      True

    """
    shares = [run.share_of_run for run in published() if run.decay == "decoupled"]
    return Shares(len(shares), *np.quantile(shares, [0, 0.25, 0.5, 0.75, 1]).tolist())


@overload
def published() -> PublishedRuns: ...
@overload
def published(name: str) -> PublishedRun: ...
def published(name: str | None = None) -> PublishedRuns | PublishedRun:
    """Published training runs with their weight decay, and the timescale 1/c̄ of the decay in each run.

    Every run names the files, tables or sections that its figures come from. The timescale is that of
    `wd_optax.timescale` for the run's own schedule, step by step.

    Args:
      name: of one run, such as "nanogpt-124m"; by default all runs are returned.

    Returns:
      A tuple of all runs that prints as a table, or one `PublishedRun`.

    Raises:
      ValueError: for an unknown name, with the nearest names.

    Example:
      >>> import wd_optax as wd
      >>> run = wd.published("nanogpt-124m")
      >>> run.learning_rate, run.weight_decay, run.coupling, run.steps
      (0.0006, 0.1, 'lr', 600000)
      >>> print(f"{run.timescale().timescale_steps:,.0f} steps, {run.share_of_run:.1%} of the run")
      30,312 steps, 5.1% of the run

    """
    runs = _runs()
    if name is None:
        return PublishedRuns(runs.values())
    if name not in runs:
        near = difflib.get_close_matches(str(name).lower(), runs, n=3, cutoff=0.3) or list(runs)
        raise ValueError(f"name={name!r} is not a published run: use one of {', '.join(map(repr, near))}")
    return runs[name]


@functools.lru_cache
def _runs() -> dict[str, PublishedRun]:
    text = importlib.resources.files("wd_optax.choosing").joinpath("published_runs.toml").read_text("utf-8")
    return {name: PublishedRun(name=name, **_frozen(row)) for name, row in tomllib.loads(text).items()}


def _frozen(x: Any) -> Any:
    """Converts lists to tuples, so that runs are hashable."""
    if isinstance(x, dict):
        return {key: _frozen(value) for key, value in x.items()}
    return tuple(map(_frozen, x)) if isinstance(x, list) else x


@functools.lru_cache
def _timescale(run: PublishedRun) -> timescales.Timescale:
    return timescales.timescale(
        run.weight_decay / (1 - run.momentum if run.decay == "coupled" else 1),
        learning_rate=run.learning_rates(),
        steps=run.steps,
        steps_per_epoch=run.steps_per_epoch,
        coupling=run.coupling,
        peak_learning_rate=run.learning_rate,
    )


def _table_row(run: PublishedRun) -> tuple[str, ...]:
    scale = run.timescale()
    return (
        run.name,
        run.optimizer,
        f"{run.learning_rate:.4g}",
        schedules.summary(run.phases),
        f"{run.steps:,}",
        f"{run.weight_decay:.4g}",
        "L2" if run.decay == "coupled" else f'"{run.coupling}"',
        f"{scale.timescale_steps:,.0f}",
        f"{run.share_of_run:.3g}",
        f"{scale.timescale_epochs:.3g}" if scale.timescale_epochs else "-",
    )
