"""All measurements of every leaf of a harness."""

import math
from typing import NamedTuple

import optax

from wd_optax.auditing import ablations, anchors, norms, stages, trajectory, verdicts
from wd_optax.auditing.harness import Harness
from wd_optax.auditing.measurements import Measurements, probe, starts
from wd_optax.auditing.responses import interpret
from wd_optax.auditing.rule_effects import rule_effects
from wd_optax.auditing.trajectory import Trajectory


class Setup(NamedTuple):
    """A harness of one leaf of each kind, and its run."""

    harness: Harness
    run: Trajectory
    faithful: list[bool]  # per leaf, whether the optimizer treats it as it treats the real shape
    loops: bool  # whether an update has loops


def measure(
    setup: Setup, step: int | None, horizon: int | None, learning_rate: float | optax.Schedule | None
) -> list[Measurements]:
    """All measurements of every leaf of the harness.

    Leaves that decay toward a norm, at which they may be, are measured once more, away from it.
    """
    measured = measure_once(setup, step, horizon, learning_rate)
    pulls = norms.find_pulls(setup.harness, measured)
    if not any(pulls):
        return measured
    harness, factors = norms.move_away(setup.harness, pulls)
    run = trajectory.measure_run(harness, horizon)
    away = setup._replace(harness=harness, run=run._replace(c=run.c * factors))
    again = measure_once(away, step, horizon, learning_rate)
    return [
        a._replace(
            anchor="norm", ratio=pull.ratio, linear=True, spread=1.0, removed=a.removed * f, first_step=a.first_step * f
        )
        if pull
        else m
        for m, a, pull, f in zip(measured, again, pulls, factors, strict=True)
    ]


def measure_once(
    setup: Setup, step: int | None, horizon: int | None, learning_rate: float | optax.Schedule | None
) -> list[Measurements]:
    """All measurements at the size of the probes."""
    harness, run = setup.harness, setup.run
    reading = probe(harness, step)
    measured = trajectory.coupled_later(harness, [*map(interpret, reading.leaves)], run)
    full = bool(step and any(harness.counts) and run.geometric and reading.geometric and not harness.given)
    measured = trajectory.with_momentum(harness, measured, starts(harness, step), full)
    measured = rule_effects(harness, measured)
    stage_rates = stages.decay_rates(harness)
    measured = ablations.scaled_by_learning_rate(harness, measured, stage_rates, run, learning_rate)
    measured = ablations.learning_rates(harness, measured)
    random, more = ablations.is_random(harness, measured), ablations.decays_at_zero_lambda(harness, measured)
    targets, branches = anchors.find_targets(harness, measured), stages.branches(harness)
    later = ablations.grows_later(harness, measured, step or 0)
    logs = trajectory.mean_log(run, measured, horizon) if horizon else None
    filled = [
        m._replace(
            random=random[i],
            stage_rates=tuple(rate for rate in stage_rates[i] if not math.isnan(rate)),
            decaying_stages=1 if m.one_sided else max(len(stage_rates[i]), 1 + more[i]),
            finite=m.finite and math.isfinite(m.removed),
            grows_later=later[i],
            branch=branches[i],
            like_stand_in=setup.faithful[i],
            mean=None if logs is None else -math.expm1(logs[i]),
            remaining=None if logs is None or not horizon else math.exp(min(horizon * logs[i], 700.0)),
        )
        for i, m in enumerate(measured)
    ]
    return [_with_anchor(m, target) for m, target in zip(filled, targets, strict=True)]


def _with_anchor(m: Measurements, anchor: str) -> Measurements:
    """The measurements with what the leaf decays toward; of an anchor that follows the weight no rate lasts."""
    if anchor == "moving" and m.has_rule:
        m = m._replace(removed=m.first_step, settled=True, in_momentum=False, mean=None, remaining=None)
    return m._replace(anchor="" if m.projected == "set" and verdicts.is_projected(m) else anchor)
