"""Decay over the steps of a run: where to measure, the mean rate, and what the rate follows.

`c[t]` is what step t removes and `e[t]` how far the gradient moves the leaf, after t steps of one gradient. Steps are
chosen until the curve between them is a line, so that a decay that begins at step 500 is found where it begins.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from wd_optax.auditing import clock, probes
from wd_optax.auditing import measurements as measuring
from wd_optax.auditing.harness import Harness, fraction, halves
from wd_optax.auditing.measurements import Measurements

POINTS = 200  # steps of a run that are measured at most
DECADES = [0, *(2**i for i in range(21))]  # without a horizon
LONG = 256  # steps until a rate is taken as it is
FLAT = 1e-4  # the share of the run's decay that the departure of an interval from a line may make up


class Trajectory(NamedTuple):
    """What steps do, (step, leaf)."""

    steps: list[int]
    c: np.ndarray  # removed
    e: np.ndarray  # moved by the gradient


def steps_of(bench: Harness, step: int) -> tuple[Any, Any, Any]:
    """The updates from ±p and their odd part at a step."""
    with bench.trying(state=clock.set_counts(bench, bench.state, step)):
        states = (None, None) if bench.given else tuple(clock.at(bench, step, s, 1) for s in (1, -1))
        plus, minus = (bench.step(s, 1, state).updates for s, state in zip((1, -1), states, strict=True))
        odd = bench.odd(1, 1, states) if bench.unpaired else halves(plus, minus)
    return plus, minus, odd


def measure(bench: Harness, step: int) -> tuple[np.ndarray, np.ndarray]:
    """c and e of one step."""
    plus, minus, odd = steps_of(bench, step)
    size = lambda x: float(np.linalg.norm(x))
    samples = [probes.sample(p) for p in bench.subject.values]
    noise = [1e3 * bench.eps * (1 + size(u) / max(size(p), 1e-300)) for u, p in zip(plus, samples, strict=True)]
    c = np.array([fraction(d, p) for d, p in zip(odd, samples, strict=True)])
    return np.where(np.abs(c) <= noise, 0.0, c), np.array([size(a + b) / 2 for a, b in zip(plus, minus, strict=True)])


def follow(bench: Harness, horizon: int | None) -> Trajectory:
    """The course over the horizon, or over the powers of two."""
    seen = functools.cache(lambda step: measure(bench, step))
    if not any(bench.counts):
        steps = [0]
    elif horizon is None:
        steps = DECADES
    else:
        steps = _refined(lambda step: seen(step)[0], horizon)
    return Trajectory(steps, *(np.array([seen(step)[i] for step in steps]) for i in (0, 1)))


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


def mean_log(course: Trajectory, facts: list[Measurements], horizon: int) -> np.ndarray:
    """Per leaf the mean of ln(1 − c_t) over the horizon: that of c̄, as `wd_optax.timescale` defines it."""
    c = course.c if len(course.steps) > 1 else np.array([[f.removed for f in facts]])
    logs = np.log1p(-np.minimum(c, 1 - 1e-12))
    if len(course.steps) == 1:
        return logs[0]
    return (np.trapezoid(logs, course.steps, axis=0) + (logs[0] + logs[-1]) / 2) / horizon


def best_step(course: Trajectory, stay: bool) -> int:
    """The step that removes most, the first where several do, among those that move.

    With `stay` it is the first of the course, unless a leaf decays or moves only later.
    """
    alive, decays = ~(course.e <= 0), course.c != 0  # a step that is not finite moves
    if stay and not (alive.any(axis=0) & ~alive[0] | decays.any(axis=0) & ~decays[0]).any():
        return course.steps[0]
    most = np.nanmax(np.abs(course.c), axis=1, initial=0)
    moving = alive.any(axis=1) if alive.any() else np.ones(len(most), bool)
    most = np.where(moving, most if most[moving].any() else course.e.sum(axis=1), -1)
    return course.steps[int(np.argmax(most >= most.max() * (1 - 1e-9)))]


def elsewhere(bench: Harness, facts: list[Measurements], path: Trajectory) -> list[Measurements]:
    """The facts, coupled where they are in the middle of the run: RAdam divides by its moments from step 5 on."""
    step = path.steps[len(path.steps) // 2]
    if bench.given or not step or not any(f.decays and f.steady for f in facts):
        return facts
    with bench.trying(state=clock.set_counts(bench, bench.state, step)):
        others = [measuring.of(leaf) for leaf in measuring.read(bench, step)]
    return [
        f._replace(steady=False, entrywise=True)
        if f.decays and f.steady and other.decays and other.entrywise and not other.steady
        else f
        for f, other in zip(facts, others, strict=True)
    ]


def sustained(
    bench: Harness, facts: list[Measurements], step: int | None, start: Callable[[float, float], Any]
) -> list[Measurements]:
    """The rate that a decay which buffers remember settles at, from real steps; at a later step buffers are full.

    Four rates in a row give the limit of a geometric series. Where they don't, a schedule may be the reason: counts
    are held, one by one and all. Where that doesn't help either, 256 steps are taken.
    """
    full = step and any(bench.counts) and bench.geometric and not bench.given
    filled, counts = list(facts), {i for i, by in enumerate(bench.counts) if by}
    for k in (0, 1):
        on = [f.decays and (f.remembered or f.locked) and k == int(f.locked or not f.still) for f in facts]
        limits: dict[int, float | None] = {i: None for i, wanted in enumerate(on) if wanted and not full}
        for held in (set(), *({i} for i in sorted(counts)), counts):
            if None in limits.values():
                rates = _rates(bench, 4, k, start, held)
                limits |= {i: _limit(rates[:, i]) for i, limit in limits.items() if limit is None}
        if None in limits.values():
            rates = _rates(bench, LONG, k, start, set())
        for i, limit in limits.items():
            if limit is None and abs(rates[-1, i] - rates[LONG // 2, i]) <= 1e-2 * abs(rates[-1, i]):
                limit = rates[-1, i]
            rate = limit if limit is not None else facts[i].removed if np.isfinite(rates[-1, i]) else np.nan
            filled[i] = facts[i]._replace(removed=float(rate), settled=limit is not None)
    return filled


def _rates(bench: Harness, steps: int, k: float, start: Callable[[float, float], Any], held: set[int]) -> np.ndarray:
    """What each of so many steps in a row removes, (step, leaf), these leaves of the state held."""
    states, rates = [start(s, k) for s in (1, -1)], []
    first, treedef = jax.tree.flatten(states[0])
    hold = lambda state: jax.tree.unflatten(
        treedef, [old if i in held else x for i, (old, x) in enumerate(zip(first, jax.tree.leaves(state), strict=True))]
    )
    for _ in range(steps):
        rates.append(bench.removed(k, tuple(states)))
        states = [hold(bench.step(s, k, state).state) for s, state in zip((1, -1), states, strict=True)]
    return np.array(rates)


def _limit(rates: np.ndarray) -> float | None:
    """Where a geometric approach ends; None where four rates aren't one, or are a line (a schedule)."""
    a, b, c, d = rates[-4:]
    if abs(d - c) <= 1e-9 * abs(d):
        return float(d)
    r = (c - b) / (b - a) if b != a else np.nan
    fits = 0 <= r < 0.9995 and abs(c + r * (c - b) - d) <= 1e-6 * abs(d)
    return float(d + (d - c) * r / (1 - r)) if fits else None
