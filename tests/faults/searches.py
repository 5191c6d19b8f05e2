"""Workers on one study in a journal file, two of which are killed: the others train what those had begun."""

import os
import pathlib
import random
from typing import Any

import jax
import numpy as np

import wd_optax as wd
from wd_optax.choosing.sweeping.execute import Executor

from . import kills, sweeps
from .forks import Child, call

WORKERS, TRIALS = 4, 24


def search(folder: pathlib.Path, kill: tuple[str, int] | None = None) -> list[Any]:
    """The rows of the result: a trial's number, hyperparameters and losses. It may be killed at a launch or a write."""
    import optuna

    if kill is not None:
        place, count = kill
        calls = iter(range(count))
        if place == "launch":
            real = Executor.launch
            Executor.launch = lambda *args: kills.die() if next(calls, None) is None else real(*args)
        else:
            fsync = os.fsync
            os.fsync = lambda file: _tear(file) if next(calls, None) is None else fsync(file)
    space = {
        "learning_rate": optuna.distributions.FloatDistribution(0.01, 30.0, log=True),
        "weight_decay": optuna.distributions.FloatDistribution(0.0, 0.3),
        "optimizer": optuna.distributions.CategoricalDistribution(["sgdw", "sgd_l2"]),
    }
    options = {"trials": TRIALS, "batch": 3, "seeds": 2, "patience": 2.0, "directory": folder, "progress": False}
    data = wd.search(train, space, metric="loss", mode="min", **options).data
    names = ["trial", "learning_rate", "weight_decay", "optimizer"]
    diverged = data["diverged"].any("seed").values
    losses = [None if bad else row for row, bad in zip(data["loss"].values.tolist(), diverged, strict=True)]
    return list(zip(*(data[name].values.tolist() for name in names), losses, strict=True))


def _tear(file: int) -> None:
    """Dies with half a line in the journal, and its lock."""
    os.ftruncate(file, os.fstat(file).st_size - 9)
    kills.die()


def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
    """The run of the other trials, with an optimizer by name."""
    return sweeps.train(hparams | {"optimizer": getattr(wd, hparams["optimizer"])}, key)


def workers(seed: int, folder: pathlib.Path) -> str:
    """Four workers, two killed in a launch or a write: the others end with every trial, each with its own numbers."""
    draw = random.Random(seed)
    victims = draw.sample(range(WORKERS), 2)
    places = [("launch", draw.randrange(3)), ("write", draw.randrange(60))]
    children = [Child(search, folder, draw.choice(places) if i in victims else None) for i in range(WORKERS)]
    ends = [child.wait() for child in children]
    rest = [ends[i] for i in range(WORKERS) if i not in victims]
    if any(kind != "value" for kind, _ in rest):
        return f"ERROR: {ends}"
    rows = rest[0][1]
    if len(rows) != TRIALS or rows != rest[1][1]:
        return f"LOST trials: {len(rows)} of {TRIALS}, {len(rest[1][1])} on the other worker"
    if call(_alone, rows) != [row[-1] for row in rows]:
        return "ACCEPTED WRONG numbers"
    killed = sum(ends[i][0] == "killed" for i in victims)
    return "every trial finished by the others" if killed == 2 else f"every trial finished, {killed} killed in time"


def _alone(rows: list[Any]) -> list[Any]:
    """The losses of each trial, trained alone."""
    found = []
    programs = {
        name: jax.jit(lambda η, λ, key, name=name: train(_named(η, λ, name), key)["loss"])
        for name in ("sgdw", "sgd_l2")
    }
    for _, learning_rate, weight_decay, optimizer, _ in rows:
        keys = [jax.random.key(seed) for seed in range(2)]
        run = programs[optimizer]
        losses = [float(run(np.float32(learning_rate), np.float32(weight_decay), key)) for key in keys]
        found.append(losses if np.isfinite(losses).all() else None)
    return found


def _named(learning_rate: Any, weight_decay: Any, optimizer: str) -> dict[str, Any]:
    return {"learning_rate": learning_rate, "weight_decay": weight_decay, "optimizer": optimizer}
