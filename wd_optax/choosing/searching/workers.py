"""Workers on one study: each owns the trials that it trains, and takes over those of workers that were killed.

Optuna's own heartbeats exist only in databases, and only for `study.optimize`. These work in any storage: a worker
writes a rising number into the study's attributes, and a worker whose number doesn't rise for `patience` seconds on
another worker's clock is dead. A trial is a pure function of its hyperparameters and seeds, so whoever trains it tells
the same result: no trial is lost, and one that two workers trained counts once.
"""

import os
import socket
import threading
import time
import uuid
import warnings
from typing import Any

from absl import logging

from wd_optax.choosing.searching.space import Space
from wd_optax.optional import require

OWNER, RESULT, BEAT = "worker", "wd_optax", "heartbeat of "
GONE = -1  # the last heartbeat of a worker that ended
Study = Any  # of Optuna, which is optional
Trial = Any


class Worker:
    """A process that trains trials of the study, from `with` to its end."""

    def __init__(self, study: Study, space: Space, total: int, patience: float):
        self.study, self.space, self.total, self.patience = study, space, total, patience
        self.name = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex[:8]}"
        self.seen: dict[Any, tuple[Any, float]] = {}  # the last heartbeat of each other worker, and since when
        self.states = require("optuna").trial.TrialState
        self.exhausted = False  # whether the sampler has no other points
        self.stopped, self.thread = threading.Event(), threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Worker":
        self.study.set_user_attr(BEAT + self.name, 0)
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stopped.set()
        self.thread.join()
        self.study.set_user_attr(BEAT + self.name, GONE)

    def _beat(self) -> None:
        count = 0
        while not self.stopped.wait(self.patience / 5):
            count += 1
            try:
                self.study.set_user_attr(BEAT + self.name, count)
            except Exception as error:  # a database that can't be reached now may be later
                logging.warning("search: no heartbeat: %s: %s", type(error).__name__, error)

    def claim(self, most: int) -> list[Trial]:
        """Trials for this worker to train: those of dead workers first, then new ones; [] once all are finished.

        It waits while other workers train the last ones.
        """
        waited = False
        while True:
            trials = self._trials()
            found = [self._adopt(trial) for trial in self._orphans(trials)[:most]]
            free = 0 if self.exhausted else min(most - len(found), self.total - len(self._counted(trials)))
            asked = [self._ask() for _ in range(free)]
            if found := found + self._without_surplus(asked):
                return found
            running = [trial for trial in trials if trial.state == self.states.RUNNING]
            if not running and not asked:
                return []
            if running and not waited:
                logging.info("search: waiting for %d trials of other workers", len(running))
                waited = True
            time.sleep(min(self.patience / 20, 1.0))

    def report(self, trial: Trial, value: float, step: int) -> None:
        """Reports a value before the end, unless the worker that was killed did."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The reported value is ignored")
            self._unless_finished(trial, lambda: trial.report(value, step))

    def tell(self, trial: Trial, value: float | None, result: dict[str, Any]) -> None:
        """Tells a result, unless another worker has; without a value the trial was pruned."""

        def write() -> None:
            trial.set_user_attr(RESULT, result)  # first, so that a finished trial has it
            state = self.states.PRUNED if value is None else self.states.COMPLETE
            self._tell(trial, value, state)

        self._unless_finished(trial, write)

    def _tell(self, trial: Trial, value: float | None, state: Any) -> None:
        try:
            self.study.tell(trial.number, value, state=state, skip_if_finished=True)
        except RuntimeError as error:  # samplers of finitely many points raise it after the result is stored
            if "Study.stop" not in str(error):
                raise
            self.exhausted = True

    def _unless_finished(self, trial: Trial, action: Any) -> None:
        try:
            action()
        except require("optuna").exceptions.UpdateFinishedTrialError:
            logging.info("search: trial %d was finished by another worker", trial.number)

    def _trials(self) -> list[Any]:
        return list(self.study.get_trials(deepcopy=False))

    def _counted(self, trials: list[Any]) -> list[int]:
        """Numbers of the trials that have a result or will have one."""
        finished = (self.states.COMPLETE, self.states.PRUNED)
        return [
            trial.number
            for trial in trials
            if trial.state == self.states.RUNNING or (trial.state in finished and RESULT in trial.user_attrs)
        ]

    def _ask(self) -> Trial:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage")  # Optuna's, which this one replaces
            trial = self.study.ask(self.space)
        trial.set_user_attr(OWNER, self.name)
        return trial

    def _without_surplus(self, asked: list[Trial]) -> list[Trial]:
        """Gives back trials beyond the total: several workers may have asked for the last ones at once."""
        surplus = set(self._counted(self._trials())[self.total :]) if asked else set()
        for trial in asked:
            if trial.number in surplus:
                self._tell(trial, None, self.states.FAIL)
        return [trial for trial in asked if trial.number not in surplus]

    def _orphans(self, trials: list[Any]) -> list[Any]:
        beats = self.study.user_attrs
        running = [trial for trial in trials if trial.state == self.states.RUNNING]
        return [t for t in running if t.user_attrs.get(OWNER) != self.name and self._is_orphan(t, beats)]

    def _is_orphan(self, trial: Any, beats: dict[str, Any]) -> bool:
        """Whether the trial's worker is dead; without one, whether nobody has owned it for that long."""
        owner, now = trial.user_attrs.get(OWNER), time.monotonic()
        beat = beats.get(f"{BEAT}{owner}")
        if beat == GONE or (owner and _has_ended(owner)):
            return True
        key = owner or trial.number
        if self.seen.setdefault(key, (beat, now))[0] != beat:
            self.seen[key] = (beat, now)
        return now - self.seen[key][1] > self.patience

    def _adopt(self, orphan: Any) -> Trial:
        """Takes over a trial, and samples what its worker hadn't when it was killed."""
        logging.info("search: trial %d is taken over from %s", orphan.number, orphan.user_attrs.get(OWNER))
        optuna = require("optuna")
        trial = optuna.trial.Trial(self.study, orphan._trial_id)
        trial.set_user_attr(OWNER, self.name)
        for name, d in self.space.items():
            if isinstance(d, optuna.distributions.CategoricalDistribution):
                trial.suggest_categorical(name, d.choices)
            elif isinstance(d, optuna.distributions.IntDistribution):
                trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
            else:
                trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)
        return trial


def _has_ended(owner: str) -> bool:
    """Whether the worker is a process of this machine that no longer runs."""
    host, pid, _ = owner.rsplit(" ", 2)
    if host != socket.gethostname() or os.name != "posix":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
