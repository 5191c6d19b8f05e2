"""Decay over the steps of a run: where to measure it, its mean rate, and what the rate follows.

`c[t]` is the fraction that step t removes, and `moved[t]` the distance that the gradient moves the leaf, after t steps
of one gradient. Steps are added until c is piecewise linear between them, so that a decay that begins at step 500 is
found where it begins.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from wd_optax.auditing import clock
from wd_optax.auditing.clock import Advanced
from wd_optax.auditing.harness import Harness
from wd_optax.auditing.measurements import Measurements, Start, probe
from wd_optax.auditing.probes import sample
from wd_optax.auditing.responses import interpret
from wd_optax.auditing.vectors import norm, odd_parts, removed_fraction

MOST_STEPS = 200  # at most so many steps of a run are measured
DECADES = [0, *(2**i for i in range(21))]  # without a horizon
LONG = 256  # steps until a rate that hasn't converged is accepted
FLAT = 1e-4  # an interval is linear if it departs from a line by less than this share of the run's decay


class Trajectory(NamedTuple):
    """What the steps of a run do."""

    steps: list[int]
    c: np.ndarray  # shape=(step, leaf): the fraction removed
    moved: np.ndarray  # shape=(step, leaf): how far the gradient moves it
    geometric: bool  # whether the states at these steps are exact


class StepPair(NamedTuple):
    """The steps from p and −p at one step of a run."""

    plus: list[np.ndarray]
    minus: list[np.ndarray]
    odd: list[np.ndarray]
    geometric: bool


def step_pair(harness: Harness, step: int) -> StepPair:
    """The updates from ±p, and their odd part, at a step of the run."""
    harness = clock.at_step(harness, step)
    starts = [Advanced(None, True)] * 2 if harness.given else [clock.advance(harness, step, s, 1) for s in (1, -1)]
    states = starts[0].state, starts[1].state
    plus, minus = (harness.updates(s, 1, state) for s, state in zip((1, -1), states, strict=True))
    odd = harness.odd(1, states) if harness.probes.unpaired else odd_parts(plus, minus)
    return StepPair(plus, minus, odd, starts[0].geometric and starts[1].geometric)


def measure_step(harness: Harness, step: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """`c` and `moved` of one step, and whether its state is exact."""
    plus, minus, odd, geometric = step_pair(harness, step)
    c, moved = [], []
    for a, b, d, value in zip(plus, minus, odd, harness.probes.values, strict=True):
        p = sample(value)
        noise = 1e3 * harness.eps * (1 + norm(a) / max(norm(p), 1e-300))
        rate = removed_fraction(d, p)
        c.append(0.0 if abs(rate) <= noise else rate)
        moved.append(norm(a + b) / 2)
    return np.array(c), np.array(moved), geometric


def measure_run(harness: Harness, horizon: int | None) -> Trajectory:
    """The trajectory over the horizon, or over the powers of two without one."""
    at = functools.cache(lambda step: measure_step(harness, step))
    if not any(harness.counts):
        steps = [0]
    elif horizon is None:
        steps = DECADES
    else:
        steps = _refined(lambda step: at(step)[0], horizon)
    c, moved = (np.array([at(step)[i] for step in steps]) for i in (0, 1))
    return Trajectory(steps, c, moved, all(at(step)[2] for step in steps))


def _refined(c: Callable[[int], np.ndarray], horizon: int) -> list[int]:
    """Steps of the horizon: evenly spaced, then the middles of the intervals that are least linear."""
    steps = sorted({round(i * (horizon - 1) / 16) for i in range(17)})
    intervals = [*itertools.pairwise(steps)]
    while intervals and len(steps) < MOST_STEPS:
        top = np.maximum(np.max([np.abs(c(step)) for step in steps], axis=0, initial=0), 1e-300)
        judged = []
        for a, b in (pair for pair in intervals if pair[1] - pair[0] > 1):
            middle = (a + b) // 2
            line = c(a) + (c(b) - c(a)) * (middle - a) / (b - a)
            off = float(np.nanmax(np.abs(c(middle) - line) / top, initial=0)) * (b - a) / horizon
            steps.append(middle)
            judged += [(off, a, middle, b)] if off > FLAT else []
        worst = sorted(judged, reverse=True)[: max(1, (MOST_STEPS - len(steps)) // 2)]
        intervals = [pair for _, a, middle, b in worst for pair in ((a, middle), (middle, b))]
    return sorted(steps)


def mean_log(run: Trajectory, measured: list[Measurements], horizon: int) -> np.ndarray:
    """Per leaf the mean of ln(1 − c_t) over the horizon, as `wd_optax.timescale` defines it."""
    c = run.c if len(run.steps) > 1 else np.array([[m.removed for m in measured]])
    logs: np.ndarray = np.log1p(-np.minimum(c, 1 - 1e-12))
    if len(run.steps) > 1:
        return np.asarray(np.trapezoid(logs, run.steps, axis=0) + (logs[0] + logs[-1]) / 2) / horizon
    return np.asarray(logs[0])


def best_step(run: Trajectory, stay: bool) -> int:
    """The first of the steps that remove most, among those at which the gradient moves a leaf.

    With `stay` it is the first step of the trajectory, unless a leaf decays or moves only later.
    """
    alive, decays = ~(run.moved <= 0), run.c != 0  # a step that is not finite moves
    if stay and not (alive.any(axis=0) & ~alive[0] | decays.any(axis=0) & ~decays[0]).any():
        return run.steps[0]
    most = np.nanmax(np.abs(run.c), axis=1, initial=0)
    moving = alive.any(axis=1) if alive.any() else np.ones(len(most), bool)
    most = np.where(moving, most if most[moving].any() else run.moved.sum(axis=1), -1)
    return run.steps[int(np.argmax(most >= most.max() * (1 - 1e-9)))]


def coupled_later(harness: Harness, measured: list[Measurements], run: Trajectory) -> list[Measurements]:
    """Marks leaves whose decay is coupled in the middle of the run: RAdam divides by its moments from step 5 on."""
    step = run.steps[len(run.steps) // 2]
    if harness.given or not step or not any(m.decays and m.steady for m in measured):
        return measured
    others = map(interpret, probe(clock.at_step(harness, step), step).leaves)
    return [
        m._replace(steady=False, entrywise=True, depends_on_step=True)
        if m.decays and m.steady and other.decays and other.entrywise and not other.steady
        else m
        for m, other in zip(measured, others, strict=True)
    ]


def with_momentum(harness: Harness, measured: list[Measurements], start: Start, full: bool) -> list[Measurements]:
    """The rate that a decay in a momentum buffer converges to, from real steps, unless the buffers are already full.

    Four consecutive rates give the limit of a geometric series. Where they don't, a schedule may be the reason:
    then counts are held fixed, one by one and all together. Where that fails too, 256 steps are taken.
    """
    filled, counts = list(measured), {i for i, by in enumerate(harness.counts) if by}
    for k in (0, 1):
        limits: dict[int, float | None] = {}
        for i, m in enumerate(measured):
            accumulates = m.decays and (m.in_momentum or m.normalised)
            if accumulates and not full and k == int(m.normalised or not m.without_gradient):
                limits[i] = None
        for held in (set(), *({i} for i in sorted(counts)), counts):
            if None in limits.values():
                rates = _rates(harness, 4, k, start, held)
                limits |= {i: _limit(rates[:, i]) for i, limit in limits.items() if limit is None}
        if None in limits.values():
            rates = _rates(harness, LONG, k, start, set())
        for i, limit in limits.items():
            if limit is None and abs(rates[-1, i] - rates[LONG // 2, i]) <= 1e-2 * abs(rates[-1, i]):
                limit = rates[-1, i]
            rate = limit if limit is not None else measured[i].removed if np.isfinite(rates[-1, i]) else np.nan
            filled[i] = measured[i]._replace(removed=float(rate), settled=limit is not None)
    return filled


def _rates(harness: Harness, steps: int, k: float, start: Start, held: set[int]) -> np.ndarray:
    """What each of several consecutive steps removes, shape (step, leaf); `held` leaves of the state don't change."""
    states, rates = [start(1, k).state, start(-1, k).state], []
    first, treedef = jax.tree.flatten(states[0])
    values = [*map(sample, harness.probes.values)]

    def held_fixed(state: optax.OptState) -> optax.OptState:
        leaves = jax.tree.leaves(state)
        kept = [old if i in held else x for i, (old, x) in enumerate(zip(first, leaves, strict=True))]
        return jax.tree.unflatten(treedef, kept)

    for _ in range(steps):
        plus, minus = (harness.step(s, k, state) for s, state in zip((1, -1), states, strict=True))
        if harness.probes.unpaired and k:
            rates.append(harness.removed(k, (states[0], states[1])))
        else:
            odd = odd_parts(plus.updates, minus.updates)
            rates.append(np.array([removed_fraction(d, p) for d, p in zip(odd, values, strict=True)]))
        states = [held_fixed(plus.state), held_fixed(minus.state)]
    return np.array(rates)


def _limit(rates: np.ndarray) -> float | None:
    """The limit of a geometric series; None where four rates aren't one, or are linear because of a schedule."""
    a, b, c, d = map(float, rates[-4:])
    if abs(d - c) <= 1e-9 * abs(d):
        return d
    r = (c - b) / (b - a) if b != a else np.nan
    fits = 0 <= r < 0.9995 and abs(c + r * (c - b) - d) <= 1e-6 * abs(d)
    return d + (d - c) * r / (1 - r) if fits else None
