"""Decay over the steps of a run: where to measure, the mean rate, and what the rate follows.

`c[t]` is what step t removes and `e[t]` how far the gradient moves the leaf, after t steps of one gradient. Steps are
chosen until the curve between them is a line, so that a decay that begins at step 500 is found where it begins.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wd_optax.auditing import clock, probes
from wd_optax.auditing.bench import Bench, fraction, halves
from wd_optax.auditing.facts import Facts

POINTS = 200  # steps of a run that are measured at most
DECADES = [0, *(2**i for i in range(21))]  # without a horizon
FLAT = 1e-4  # the share of the run's decay that the departure of an interval from a line may make up


class Course(NamedTuple):
    """What steps do, (step, leaf)."""

    steps: list[int]
    c: np.ndarray  # removed
    e: np.ndarray  # moved by the gradient


def steps_of(bench: Bench, step: int) -> tuple[Any, Any, Any]:
    """The updates from ±p and their odd part at a step."""
    with bench.trying(state=clock.set_counts(bench, bench.state, step)):
        states = (None, None) if bench.given else tuple(clock.at(bench, step, s, 1) for s in (1, -1))
        plus, minus = (bench.step(s, 1, state).updates for s, state in zip((1, -1), states, strict=True))
        odd = bench.odd(1, 1, states) if bench.unpaired else halves(plus, minus)
    return plus, minus, odd


def measure(bench: Bench, step: int) -> tuple[np.ndarray, np.ndarray]:
    """c and e of one step."""
    plus, minus, odd = steps_of(bench, step)
    size = lambda x: float(np.linalg.norm(x))
    samples = [probes.sample(p) for p in bench.subject.values]
    noise = [1e3 * bench.eps * (1 + size(u) / max(size(p), 1e-300)) for u, p in zip(plus, samples, strict=True)]
    c = np.array([fraction(d, p) for d, p in zip(odd, samples, strict=True)])
    return np.where(np.abs(c) > noise, c, 0.0), np.array([size(a + b) / 2 for a, b in zip(plus, minus, strict=True)])


def follow(bench: Bench, horizon: int | None) -> Course:
    """The course over the horizon, or over the powers of two."""
    seen = functools.cache(lambda step: measure(bench, step))
    if not any(bench.counts):
        steps = [0]
    elif horizon is None:
        steps = DECADES
    else:
        steps = _refined(lambda step: seen(step)[0], horizon)
    return Course(steps, *(np.array([seen(step)[i] for step in steps]) for i in (0, 1)))


def _refined(c: Callable[[int], np.ndarray], horizon: int) -> list[int]:
    """Steps of the horizon: evenly spaced, then the middles of the intervals that depart most from a line."""
    steps = sorted({round(i * (horizon - 1) / 16) for i in range(17)})
    intervals = [*itertools.pairwise(steps)]
    while intervals and len(steps) < POINTS:
        top = np.maximum(np.max([np.abs(c(step)) for step in steps], axis=0, initial=0), 1e-300)
        judged = []
        for a, b in (pair for pair in intervals if pair[1] - pair[0] > 1):
            middle = (a + b) // 2
            line = c(a) + (c(b) - c(a)) * (middle - a) / (b - a)
            off = float(np.nanmax(np.abs(c(middle) - line) / top, initial=0)) * (b - a) / horizon
            steps.append(middle)
            judged += [(off, a, middle, b)] if off > FLAT else []
        worst = sorted(judged, reverse=True)[: max(1, (POINTS - len(steps)) // 2)]
        intervals = [pair for _, a, middle, b in worst for pair in ((a, middle), (middle, b))]
    return sorted(steps)


def mean_log(course: Course, facts: list[Facts], horizon: int) -> np.ndarray:
    """Per leaf the mean of ln(1 − c_t) over the horizon: that of c̄, as `wd_optax.timescale` defines it."""
    c = course.c if len(course.steps) > 1 else np.array([[f.removed for f in facts]])
    logs = np.log1p(-np.minimum(c, 1 - 1e-12))
    if len(course.steps) == 1:
        return logs[0]
    return (np.trapezoid(logs, course.steps, axis=0) + (logs[0] + logs[-1]) / 2) / horizon


def best_step(course: Course, stay: bool) -> int:
    """The step that removes most, the first where several do, among those that move.

    With `stay` it is the first of the course, unless a leaf decays or moves only later.
    """
    alive, decays = course.e > 0, course.c != 0
    if stay and not (alive.any(axis=0) & ~alive[0] | decays.any(axis=0) & ~decays[0]).any():
        return course.steps[0]
    most = np.nanmax(np.abs(course.c), axis=1, initial=0)
    moving = alive.any(axis=1) if alive.any() else np.ones(len(most), bool)
    most = np.where(moving, most if most[moving].any() else course.e.sum(axis=1), -1)
    return course.steps[int(np.argmax(most >= most.max() * (1 - 1e-9)))]


def sustained(bench: Bench, facts: list[Facts], start: Callable[[float, float], Any]) -> list[Facts]:
    """The rate that a decay which buffers remember settles at, from real steps.

    Four rates in a row give the limit of a geometric series; where the fourth isn't on it, 256 steps are taken.
    """
    if not any(f.decays and (f.remembered or f.locked) for f in facts):
        return facts
    filled = list(facts)
    for k in (0, 1):
        states, rates = [start(s, k) for s in (1, -1)], []
        for count in range(256):
            steps = [bench.step(s, k, state) for s, state in zip((1, -1), states, strict=True)]
            rates.append(bench.removed(k, tuple(states)))
            states = [x.state for x in steps]
            limits = [_limit(np.array(rates)[:, i]) for i in range(len(facts))] if count >= 3 else []
            wanted = [f.decays and (f.remembered or f.locked) and k == int(f.locked or not f.still) for f in facts]
            if not any(wanted) or (limits and all(x is not None for x, on in zip(limits, wanted, strict=True) if on)):
                break
        for i, on in enumerate(wanted):
            if on:
                last, half = rates[-1][i], rates[len(rates) // 2][i]
                settled = limits[i] is not None or abs(last - half) <= 1e-2 * abs(last)
                filled[i] = facts[i]._replace(
                    removed=float(last if (limit := limits[i]) is None else limit), settled=settled
                )
    return filled


def _limit(rates: np.ndarray) -> float | None:
    """Where a geometric approach ends; None where the last four rates are none."""
    a, b, c, d = rates[-4:]
    if abs(d - c) <= 1e-9 * abs(d):
        return float(d)
    r = (c - b) / (b - a) if b != a else np.nan
    fits = 0 <= r < 1 - 1e-6 and abs(c + r * (c - b) - d) <= 1e-6 * abs(d)
    return float(d + (d - c) * r / (1 - r)) if fits else None
