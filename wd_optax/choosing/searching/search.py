"""Search a space of many hyperparameters with Optuna's samplers, a batch of trials in one compiled program."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from wd_optax.choosing.searching.batches import Batches, Outcome
from wd_optax.choosing.searching.halving import Halving, check_rungs
from wd_optax.choosing.searching.journal import JournalFile
from wd_optax.choosing.searching.search_result import SearchResult, label_trials
from wd_optax.choosing.searching.space import TAKEN, Space, check_space
from wd_optax.choosing.searching.workers import Study, Worker
from wd_optax.choosing.sweeping import identity, trace, values
from wd_optax.choosing.sweeping.dataset import Mode
from wd_optax.choosing.sweeping.devices import usable_devices
from wd_optax.choosing.sweeping.grid import make_grid
from wd_optax.optional import require

IDENTITY = "wd_optax"  # the study's attribute that says which search it belongs to
FILE = "study.log"


def search(
    train: trace.TrainFunction | tuple[Callable[..., Any], Callable[..., Any]],
    space: Mapping[str, Any],
    *,
    metric: str | None = None,
    mode: Mode | None = None,
    trials: int = 256,
    batch: int = 64,
    seeds: int | Iterable[int] = 3,
    rungs: Sequence[int] | None = None,
    sampler: Any = None,
    study: Study = None,
    directory: str | os.PathLike[str] | None = None,
    patience: float = 60.0,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> SearchResult:
    """Trains the points that an Optuna sampler asks for, batches in one compiled program, and tells it the results.

    Where a grid has too many points: above three hyperparameters, or to refine. The objective of a trial is the mean of
    `metric` over its seeds, which are trained in parallel, as all trials of the batch are. A trial with a diverged run
    counts as ±∞, the worst value: the samplers learn from it to stay away, where they ignore a failed trial.

    Args:
      train: a pure function (hparams, key) -> {metric: number or array}, the same as for `wd_optax.sweep`; or a pair
        (init, step) of init(hparams, key) -> state and step(hparams, state) -> (state, {metric: value}), with `rungs`.
      space: {name: an Optuna distribution}. Floats and integers are traced. The values of a `CategoricalDistribution`
        are static, as they are: one compilation for each combination that is asked for.
      metric: the name of a scalar metric; by default the only one that train returns.
      mode: "max" or "min"; by default "min" for a metric with "loss" or "error" in its name, and needed for others.
      trials: how many trials the study shall have, of all workers together and with those it has already. A sampler
        of finitely many points, such as `GridSampler`, ends the search when it has asked for all of them.
      batch: how many trials to ask for at a time. A sampler learns between batches, not within them. For
        `CmaEsSampler` it is the population: popsize=batch.
      seeds: how many, or a list of them, the same in every trial.
      rungs: rising numbers of steps, such as (10, 30, 90), for successive halving of each batch: after 10 steps the
        best third goes on, after 30 the best third of those. Their states stay on the devices, and a rung is one
        program. The others are pruned; their metrics are those at their last rung.
      sampler: an Optuna sampler; by default that of the study, or `optuna.samplers.TPESampler()`.
      study: an Optuna study in any storage. Processes on many machines that make the same call on one study share the
        work, each returns the whole result, and the trials of a killed one are trained by the others.
      directory: a folder for a study of its own, in a journal file that any number of processes may share (not on
        Windows, because it is locked with flock). The same call resumes after a crash.
      patience: after so many seconds without a heartbeat a worker on another machine is taken for dead.
      devices: a list; by default `jax.devices()`.
      progress: whether to show a progress bar if there is a terminal.

    Returns:
      A `SearchResult` with `.data` (an `xarray.Dataset` of the labelled trials), `.best`, `.study` and `.history`.

    Raises:
      ImportError: without Optuna, xarray or tqdm: pip install "wd_optax[search]".
      TypeError, ValueError: for arguments, by name; for a study that has several objectives, another direction, or
        belongs to another search, with what differs.
      RuntimeError: under `jax.distributed`: processes share a study without it.
      MemoryError: if not even one run fits, or not the states of a batch with `rungs`.

    References:
      Akiba et al. 2019, arXiv 1907.10902. Jamieson & Talwalkar 2016, arXiv 1502.07943, for `rungs`.

    Example: λ = 0.1 is best; the sampler finds it to a few per cent.
      >>> import jax.numpy as jnp, optuna, wd_optax as wd
      >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
      >>> train = lambda hparams, key: {"loss": jnp.log(hparams["weight_decay"] / 0.1) ** 2}
      >>> space = {"weight_decay": optuna.distributions.FloatDistribution(1e-4, 10.0, log=True)}
      >>> options = {"trials": 64, "batch": 8, "sampler": optuna.samplers.TPESampler(seed=0)}
      >>> best = wd.search(train, space, **options).best
      >>> 0.09 < best.hyperparams["weight_decay"] < 0.11
      True
    """
    for module in ("optuna", "xarray", "tqdm"):
        require(module)
    known, all_seeds = check_space(space), make_grid({"x": [0.0]}, seeds).seeds
    for name, number in (("trials", trials), ("batch", batch)):
        if not (values.is_whole(number) and number >= 1):
            raise ValueError(f"{name}={number!r}: pass a whole number, at least 1")
    if not (values.is_number(patience) and patience > 0):
        raise ValueError(f"patience={patience!r}: pass seconds, more than 0")
    if jax.process_count() > 1:
        raise RuntimeError("search: start processes without jax.distributed; they share a study, or a directory")
    trainer = _trainer(train, known, all_seeds, usable_devices(devices, batch * len(all_seeds)), rungs)
    metric, mode = _objective_of(trainer, metric, mode)
    if directory is not None and trainer.traced.host_calls:
        found = " and ".join(trainer.traced.host_calls)
        raise TypeError(f"train has {found}: a later call couldn't see that its code has changed; pass directory=None")
    opened = _open(study, directory, sampler, mode)
    _claim_study(opened, trainer, known, all_seeds, [metric, mode, list(rungs or [])])
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(Worker(opened, known, trials, patience))
        hidden = None if progress else True  # None hides it without a terminal
        bar = stack.enter_context(require("tqdm").tqdm(total=trials * len(all_seeds), unit="run", disable=hidden))
        while claimed := worker.claim(batch):
            _train(trainer, worker, claimed, batch, _objective(metric, mode), bar)
    return SearchResult(label_trials(opened, known, trainer.metrics, all_seeds), opened, metric, mode)


def _trainer(train: Any, space: Space, seeds: Sequence[int], devices: Any, rungs: Any) -> Batches | Halving:
    if isinstance(train, tuple) and len(train) == 2 and all(map(callable, train)):
        return Halving(*train, check_rungs(rungs), space, seeds, devices)
    if rungs is not None:
        raise ValueError(f"rungs={rungs!r} needs train in steps: search((init, step), ...)")
    if not callable(train):
        raise TypeError(f"train={train!r}: pass a function (hparams, key) -> {{metric: value}}, or (init, step)")
    return Batches(train, space, seeds, devices)


def _objective_of(trainer: Batches | Halving, given: str | None, mode: Mode | None) -> tuple[str, Mode]:
    """The name of the metric and the mode, checked."""
    known = trainer.metrics
    if taken := sorted({*known} & {*TAKEN}):
        raise ValueError(f"train returned {taken[0]!r}, a name that the dataset has already: give it another")
    scalars = [name for name, x in known.items() if not x.shape]
    metric = scalars[0] if given is None and len(scalars) == 1 else given
    if metric is None or metric not in known:
        raise ValueError(f"metric={metric!r}: train returned {', '.join(known)}; pass the name of a scalar one")
    if known[metric].shape:
        raise ValueError(f"metric={metric!r} is a curve: have train return a scalar too, such as its last entry")
    if mode is None and ("loss" in metric or "error" in metric):
        mode = "min"
    if mode not in ("max", "min"):
        raise ValueError(f"mode={mode!r}: pass 'max' or 'min', as metric={metric!r} is to be")
    return metric, mode


def _open(study: Study, directory: Any, sampler: Any, mode: str) -> Study:
    """The given study, that of the directory, or a new one in memory."""
    optuna, direction = require("optuna"), {"max": "maximize", "min": "minimize"}[mode]
    if not isinstance(directory, (str, os.PathLike, type(None))) or directory == "":
        raise TypeError(f"directory={directory!r}: pass a folder's name, or None")
    if study is not None and directory is not None:
        raise ValueError("study and directory: pass one; a study has a storage of its own")
    if sampler is not None and not isinstance(sampler, optuna.samplers.BaseSampler):
        raise TypeError(f"sampler={sampler!r}: pass one of Optuna's, such as optuna.samplers.TPESampler()")
    if study is None:
        storage = None
        if directory is not None:
            folder = pathlib.Path(directory).expanduser().absolute()
            folder.mkdir(parents=True, exist_ok=True)
            storage = optuna.storages.JournalStorage(JournalFile(folder / FILE))
        name = None if directory is None else "wd_optax"
        sampler = sampler or optuna.samplers.TPESampler()
        study = optuna.create_study(
            storage=storage, study_name=name, sampler=sampler, direction=direction, load_if_exists=True
        )
    elif not isinstance(study, optuna.Study):
        raise TypeError(f"study={study!r}: pass an optuna.Study, such as optuna.create_study(storage=...)")
    if [d.name for d in study.directions] != [direction.upper()]:
        there = ", ".join(d.name.lower() for d in study.directions)
        raise ValueError(f"study: its direction is {there}, and mode={mode!r}: create it with direction={direction!r}")
    if sampler is not None:
        study.sampler = sampler
    return study


def _claim_study(
    study: Study, trainer: Batches | Halving, space: Space, seeds: Sequence[int], asked: list[Any]
) -> None:
    """Raises a ValueError with what differs if the study belongs to another search."""
    content = {
        "jax": jax.__version__,
        "settings": identity.settings(),
        "space": {name: str(distribution) for name, distribution in space.items()},
        "seeds": seeds,
        "metrics": {name: [list(m.shape), str(m.dtype)] for name, m in trainer.metrics.items()},
        "objective and rungs": asked,
        "train": trainer.traced.fingerprint,
    }
    mine = json.loads(json.dumps(content))
    if IDENTITY not in study.user_attrs:
        _check_earlier_trials(study, space)
        study.set_user_attr(IDENTITY, mine)
    if lines := list(identity.differences(study.user_attrs[IDENTITY], mine)):
        raise ValueError(
            "study or directory belongs to another search:\n  " + "\n  ".join(lines) + "\n"
            "make the same call to resume it or to share its work, or pass another"
        )


def _check_earlier_trials(study: Study, space: Space) -> None:
    """Raises a ValueError if the study's own trials have a distribution of another kind under the same name."""
    check = require("optuna").distributions.check_distribution_compatibility
    for trial in study.get_trials(deepcopy=False):
        for name in space.keys() & trial.distributions.keys():
            try:
                check(trial.distributions[name], space[name])
            except ValueError as error:
                raise ValueError(
                    f"space[{name!r}]={space[name]}, but trial {trial.number} of the study has "
                    f"{trial.distributions[name]}: pass another study, or give it another name"
                ) from error


def _objective(metric: str, mode: str) -> Callable[[Outcome], float]:
    """The value for Optuna: the mean over seeds, and the worst value there is for a diverged run."""
    worst = np.inf if mode == "min" else -np.inf
    return lambda outcome: worst if outcome.diverged.any() else float(outcome.metrics[metric].astype(float).mean())


def _train(
    trainer: Batches | Halving,
    worker: Worker,
    claimed: list[Any],
    batch: int,
    value: Callable[[Outcome], float],
    bar: Any,
) -> None:
    """Trains the trials and tells their results."""
    points = [trial.params for trial in claimed]
    if isinstance(trainer, Batches):
        for trial, outcome in zip(claimed, trainer.outcomes(points, batch, bar), strict=True):
            worker.tell(trial, value(outcome), outcome.as_json())
        return

    def report(i: int, outcome: Outcome, state: str) -> None:
        assert outcome.steps is not None
        worker.report(claimed[i], value(outcome), outcome.steps)
        if state != "running":
            worker.tell(claimed[i], None if state == "pruned" else value(outcome), outcome.as_json())
            bar.update(len(outcome.diverged))

    sign = -1 if worker.study.direction.name == "MAXIMIZE" else 1
    trainer.train(points, batch, lambda outcome: sign * value(outcome), report)
