"""See what decay does before training: any optimizer, measured on any parameters."""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing import (
    ablations,
    arguments,
    clock,
    findings,
    kinds,
    low_precision,
    measurements,
    probes,
    stages,
    trajectory,
    verdicts,
)
from wd_optax.auditing.fixes import Measured
from wd_optax.auditing.harness import Harness
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.report import AuditFinding, AuditReport, AuditRow
from wd_optax.masking import roles

LARGE = 2**18  # entries; larger trees are measured on stand-ins

__all__ = ["AuditFinding", "AuditReport", "AuditRow", "audit"]


def audit(
    optimizer: optax.GradientTransformation,
    params: Any,
    *,
    opt_state: Any = None,
    step: int | None = None,
    horizon: int | None = None,
    steps_per_epoch: float | None = None,
    learning_rate: Any = None,
    stand_ins: bool | None = None,
    extra_args: dict[str, Any] | None = None,
) -> AuditReport:
    """What the optimizer removes of each parameter per step, c in p ← (1 − c)·p + …, by running it.

    Nothing is read off names of optimizers: `update` is called with ± the same probe parameters, with gradients of
    zero, one and a thousand times their size, in float64, and what comes out differently is decay. Neither the
    parameters' values nor the caller's state are changed.

    Args:
      optimizer: any Optax transformation that is a whole optimizer, its learning rate included; or an
        `nnx.Optimizer` or a Flax `TrainState`, whose `tx` is audited.
      params: a tree of arrays, or of `jax.ShapeDtypeStruct`s (`jax.eval_shape(model.init, ...)`); an NNX or Equinox
        module, or a `TrainState`.
      opt_state: a state from training; by default the optimizer's first.
      step: the step count that schedules are evaluated at; by default the state's own, or, where nothing moves there
        (a warm-up from 0) or a horizon is given, the step that removes most.
      horizon: the length of the run, its total steps: what is left at its end, whether anything is removed at all,
        and the timescale as a share of the run, beside those of published runs.
      steps_per_epoch: to have the timescale in epochs.
      learning_rate: the optimizer's, a number or schedule: decides whether it scales the decay, where the state
        holds no live `learning_rate` to experiment with.
      stand_ins: probe small arrays of the same paths, ranks and types in place of the real shapes, as is always done
        for `ShapeDtypeStruct`s. Float64 copies of parameters and state are made of the real ones.
      extra_args: what `optimizer.update` needs by keyword.

    Returns:
      A `AuditReport`: `print` it, or read `.rows`, `.findings`; `.check(decays=..., spares=...)` is for unit tests.

    Raises:
      TypeError: for an optimizer or parameters that aren't, with the line that works.
      ValueError: for an `opt_state` that isn't this optimizer's; otherwise what the optimizer itself raises.

    Example: a decay after the learning rate makes weights grow.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> from wd_optax.auditing.audit import audit
      >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
      >>> wrong = optax.chain(optax.sgd(0.1), wd.add_decayed_weights(0.01, mask="weights"))
      >>> for row in audit(wrong, params).rows:
      ...     print(row.path, f"{row.removed_per_step:g}", row.verdict)
      bias 0 spared
      kernel -0.01 GROWS

    """
    step, horizon = (_whole(name, value) for name, value in (("step", step), ("horizon", horizon)))
    number = isinstance(steps_per_epoch, int | float | np.number)
    if steps_per_epoch is not None and not (number and 0 < steps_per_epoch < math.inf):
        raise ValueError(f"steps_per_epoch={steps_per_epoch!r} must be above 0: examples / batch size")
    optimizer, params = arguments.resolve(optimizer, params)
    params = probes.without_keys(params)
    bench, of, loops = _set_up(optimizer, params, opt_state, stand_ins, extra_args)
    found = roles.parameters(params)
    clock.find_period(bench)
    clock.hold_anchors(bench)
    path = trajectory.follow(bench, horizon)
    at = (
        step
        if step is not None
        else None
        if bench.given and not horizon
        else trajectory.best_step(path, stay=not horizon)
    )
    split = kinds.check(bench, at or 0, of, found, loops)
    if split.chosen != of.chosen:  # once more, with the leaves that are treated in another way
        bench, of, loops = _set_up(optimizer, params, opt_state, stand_ins, extra_args, split)
        clock.find_period(bench)
        clock.hold_anchors(bench)
        path = trajectory.follow(bench, horizon)
    bench.state = bench.state if at is None or not any(bench.counts) else clock.set_counts(bench, bench.state, at)
    measured = _measure(bench, at, horizon, learning_rate, path)
    measured = low_precision.check_own_types(bench, at or 0, measured, opt_state)
    measured = low_precision.of_values(measured, of.of, params)
    rows = tuple(map(_row, found, measured))
    seen = findings.find(Measured(bench, rows, measured, learning_rate, horizon))
    return AuditReport(rows, seen, _how(bench, at, horizon, of), horizon, steps_per_epoch)


def _whole(name: str, value: Any) -> int | None:
    """A number of steps, of any integer type."""
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or number < (name == "horizon"):
        raise ValueError(f"{name}={value!r}: pass a whole number of steps")
    return number


def _set_up(
    optimizer: Any, params: Any, opt_state: Any, stand_ins: bool | None, extra_args: Any, of: Any = None
) -> tuple[Harness, kinds.Kinds, bool]:
    """The bench, on one leaf of each kind; which leaf is of which kind; and whether an update has loops."""
    leaves = jax.tree.leaves(params)
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    if abstract and stand_ins is False:
        raise ValueError("stand_ins=False, and params are jax.ShapeDtypeStructs without values: drop stand_ins")
    if opt_state is not None and (abstract or stand_ins):
        raise ValueError(
            "opt_state has the real shapes, and stand-ins are small: pass params with values, no stand_ins"
        )
    found = roles.parameters(params)
    if opt_state is not None:
        of = kinds.of(params, list(range(len(found))))
    of = of or kinds.guess(optimizer, params, found)
    tree = of.tree()
    large = sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(tree)) > LARGE
    if not (abstract or stand_ins or (large and stand_ins is None and opt_state is None)):
        return Harness(optimizer, probes.make(tree, False), opt_state, extra_args), of, False
    subject, carried, loops = kinds.stand_ins(optimizer, tree)
    bench = Harness(optimizer, subject, None, extra_args)
    bench.carried = carried
    return bench, of, loops


def _measure(
    bench: Harness, step: int | None, horizon: int | None, learning_rate: Any, path: Any
) -> list[Measurements]:
    """Every fact of every leaf of the bench."""
    measured = [measurements.of(leaf) for leaf in measurements.read(bench, step)]
    measured = trajectory.elsewhere(bench, measured, path)
    start = measurements.start(bench, step)
    measured = trajectory.sustained(bench, measured, step, start)
    random = ablations.stochastic(bench, measured)
    lambdas = stages.rates(bench)
    more = ablations.decays_without_live_lambda(bench, measured)
    measured = ablations.scaled_by_learning_rate(bench, measured, lambdas, path, learning_rate)
    asked, anchors = ablations.learning_rates(bench, measured), ablations.toward(bench, measured)
    later = ablations.later(bench, measured, step or 0)
    logs = trajectory.mean_log(path, measured, horizon) if horizon else None
    branches = stages.branches(bench)
    filled = []
    for i, f in enumerate(measured):
        filled.append(
            f._replace(
                stochastic=random[i],
                lambdas=tuple(rate for rate in lambdas[i] if not math.isnan(rate)),
                sources=1 if f.sided else max(len(lambdas[i]), 1 + more[i]),
                finite=f.finite and math.isfinite(f.removed),
                asked=asked[i][0],
                steps_by=asked[i][1],
                anchor=anchors[i],
                later=later[i],
                branch=branches[i],
                carried=bench.carried[i],
                mean=None if logs is None else -math.expm1(logs[i]),
                remaining=None if logs is None or not horizon else math.exp(min(horizon * logs[i], 700.0)),
            )
        )
    return filled


def _row(p: Any, f: Measurements) -> AuditRow:
    verdict = verdicts.verdict(f)
    rate = verdicts.rate(f)
    return AuditRow(
        path=p.path,
        shape=p.shape,
        dtype=p.dtype,
        size=math.prod(p.shape),
        role=p.role,
        removed_per_step=rate,
        half_life=verdicts.half_life(f),
        remaining=f.remaining if f.remaining is not None and not math.isnan(rate) else math.nan,
        verdict=verdict,
        moves=f.moves if f.decays else math.nan,
        anchor=f.anchor,
        coupling=f.coupling,
        largest_removed_per_step=math.nan if math.isnan(rate) else f.removed,
    )


def _how(bench: Harness, step: int | None, horizon: int | None, of: kinds.Kinds) -> str:
    """The sentence that says how it was measured."""
    where = "at the state's own step" if step is None else f"at step {step}"
    over = f", rates are the mean of {horizon:,} steps" if horizon else ""
    on = "on stand-ins (same paths, ranks and types)" if bench.subject.small else "on the real shapes"
    few = f", {len(of.chosen)} kinds of {len(of.of)} leaves" if len(of.chosen) < len(of.of) else ""
    calls = f"; {bench.period} calls of update make one step" if bench.period > 1 else ""
    quiet = "; it isn't finite at a zero gradient, so a small one is used" if bench.quiet else ""
    return f"measured {where}{over} {on}{few}{calls}{quiet}"
