"""Decay over the steps of a run: where to measure, and what is left at the end."""

from typing import NamedTuple

import numpy as np

from wd_optax.auditing.bench import Bench
from wd_optax.auditing.facts import Facts, removed

POINTS = 16  # steps of the horizon that are probed


class Course(NamedTuple):
    """What is removed per step, (step, leaf)."""

    steps: list[int]
    removed: np.ndarray


def follow(bench: Bench, steps: list[int]) -> Course:
    """Measures each of the steps; the bench is left as it was."""
    rows = []
    for step in steps:
        with bench.trying(state=bench.at(bench.state, step)):
            rows.append(removed(bench))
    return Course(steps, np.array(rows))


def set_step(bench: Bench, step: int | None, horizon: int | None, moves: bool) -> tuple[int | None, Course | None]:
    """Puts the bench at `step`, or where most is removed.

    That is sought over the horizon, or, where the first step moves nothing (a warm-up from 0), among the powers of
    two. Returns that step, None for the state's own, and the course over the horizon.
    """
    course = None
    if bench.counts() and horizon:
        course = follow(bench, sorted({int((i + 0.5) * horizon / POINTS) for i in range(POINTS)}))
    if step is None and bench.counts() and (course or not moves):
        tried = course or follow(bench, [2**i for i in range(21)])
        most = np.nanmax(np.abs(tried.removed), axis=1, initial=0)
        step = tried.steps[int(np.argmax(most))] if most.max() > most.min() or not moves else None
    if step is not None:
        bench.state = bench.at(bench.state, step)
    return step, course


def remaining(course: Course | None, facts: list[Facts], horizon: int) -> list[float]:
    """Π(1 − c_t) over the horizon; a buffer that remembers multiplies c as it does in the step measured."""
    left = []
    for i, f in enumerate(facts):
        c = course.removed[:, i] * (f.removed / f.first if f.first else 1) if course and f.still else f.removed
        inside = np.log1p(-np.minimum(np.asarray(c), 1 - 1e-12))
        left.append(float(np.exp(np.minimum(horizon * np.mean(inside), 700.0))))
    return left
