"""Shows what decay does before training: any optimizer, measured on any parameters."""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing import (
    anchors,
    arguments,
    clock,
    findings,
    kinds,
    low_precision,
    measuring,
    trajectory,
    verdicts,
)
from wd_optax.auditing.fixes import Evidence
from wd_optax.auditing.harness import Harness, build_harness
from wd_optax.auditing.kinds import Kinds, StandIns
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.measuring import Setup
from wd_optax.auditing.probes import build_probes, without_keys
from wd_optax.auditing.report import AuditFinding, AuditReport, AuditRow
from wd_optax.masking import roles

LARGE = 2**18  # entries; larger trees are measured on stand-ins

__all__ = ["AuditFinding", "AuditReport", "AuditRow", "audit"]


def audit(
    optimizer: optax.GradientTransformation,
    params: optax.Params,
    *,
    opt_state: optax.OptState = None,
    step: int | None = None,
    horizon: int | None = None,
    steps_per_epoch: float | None = None,
    learning_rate: float | optax.Schedule | None = None,
    stand_ins: bool | None = None,
    extra_args: dict[str, Any] | None = None,
) -> AuditReport:
    """Measures what an optimizer removes of each parameter per step: c in p ← (1 − c)·p.

    It runs the optimizer and doesn't look at its name: `update` is called from probe parameters p and from −p, with
    gradients of zero, one and a thousand times their size, in float64, and the difference is decay. Neither the
    parameters nor the caller's state are changed.

    Args:
      optimizer: any Optax optimizer, including its learning rate; or an `nnx.Optimizer` or a Flax `TrainState`, whose
        `tx` is audited.
      params: a tree of arrays, or of `jax.ShapeDtypeStruct`s (`jax.eval_shape(model.init, ...)`); an NNX or Equinox
        module, or a `TrainState`.
      opt_state: a state from training; by default the optimizer's initial state.
      step: the step count at which schedules are evaluated; by default the state's own, or the step that removes most
        if nothing moves there (a warm-up from 0) or a horizon is given.
      horizon: total steps of the run, to report what is left at its end, and its timescale as a share of the run next
        to those of published runs.
      steps_per_epoch: to report the timescale in epochs.
      learning_rate: the optimizer's number or schedule, to decide whether it scales the decay if the state holds no
        `learning_rate` that can be changed.
      stand_ins: run on small arrays of the same paths, ranks and dtypes, as is always done for `ShapeDtypeStruct`s. On
        the real shapes, parameters and state are copied in float64.
      extra_args: keyword arguments of `optimizer.update`.

    Returns:
      An `AuditReport`: `print` it, or read `.rows`, `.findings`; `.check(decays=..., spares=...)` is for unit tests.

    Raises:
      TypeError: if they aren't an optimizer and parameters, with the correct call.
      ValueError: for an `opt_state` of another optimizer. What the optimizer raises is not caught.

    Example: decay after the learning rate makes weights grow.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> from wd_optax.auditing.audit import audit
      >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
      >>> wrong = optax.chain(optax.sgd(0.1), wd.add_decayed_weights(0.01, mask="weights"))
      >>> for row in audit(wrong, params).rows:
      ...     print(row.path, f"{row.removed_per_step:g}", row.verdict)
      bias 0 no decay
      kernel -0.01 growing

    """
    step, horizon = _whole_number("step", step, 0), _whole_number("horizon", horizon, 1)
    number = isinstance(steps_per_epoch, int | float | np.number)
    if steps_per_epoch is not None and not (number and 0 < steps_per_epoch < math.inf):
        raise ValueError(f"steps_per_epoch={steps_per_epoch!r} must be above 0: examples / batch size")
    optimizer, params = arguments.unpack(optimizer, params)
    params = without_keys(params)
    parameters = roles.parameters(params)
    use_stand_ins = _use_stand_ins(params, opt_state, stand_ins)
    groups = kinds.one_each(params) if opt_state is not None else kinds.group(optimizer, params, parameters)
    setup = _set_up(optimizer, groups, opt_state, use_stand_ins, extra_args, horizon)
    at = step
    if step is None and (horizon or not setup.harness.given):
        at = trajectory.best_step(setup.run, stay=not horizon)
    split = kinds.split_unlike(setup.harness, at or 0, groups, setup.loops)
    if split.chosen != groups.chosen:  # once more, with the leaves that are treated differently
        groups = split
        setup = _set_up(optimizer, groups, opt_state, use_stand_ins, extra_args, horizon)
    if at is not None and any(setup.harness.counts):
        setup = setup._replace(harness=clock.at_step(setup.harness, at))
    measured = measuring.measure(setup, at, horizon, learning_rate)
    measured = low_precision.check_own_dtypes(setup.harness, at or 0, measured, opt_state)
    measured = low_precision.round_own_values(measured, groups.kind_of, params)
    rows = tuple(map(_audit_row, parameters, measured))
    problems = findings.find_problems(Evidence(setup.harness, rows, measured, learning_rate, horizon))
    return AuditReport(rows, problems, _how(setup.harness, at, horizon, groups), horizon, steps_per_epoch)


def _whole_number(name: str, value: Any, least: int) -> int | None:
    """A number of steps, of any integer type."""
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name}={value!r}: pass a whole number of steps")
    return number


def _use_stand_ins(params: optax.Params, opt_state: optax.OptState, stand_ins: bool | None) -> bool | None:
    """Whether to measure on stand-ins; None: if the tree is large."""
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    if abstract and stand_ins is False:
        raise ValueError("stand_ins=False, and params are jax.ShapeDtypeStructs without values: drop stand_ins")
    if opt_state is not None and (abstract or stand_ins):
        raise ValueError(
            "opt_state has the real shapes, and stand-ins are small: pass params with values, no stand_ins"
        )
    return False if opt_state is not None else abstract or stand_ins


def _set_up(
    optimizer: optax.GradientTransformation,
    groups: Kinds,
    opt_state: optax.OptState,
    use_stand_ins: bool | None,
    extra_args: dict[str, Any] | None,
    horizon: int | None,
) -> Setup:
    tree = groups.tree()
    if use_stand_ins is None:
        use_stand_ins = sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(tree)) > LARGE
    if use_stand_ins:
        small = kinds.stand_ins(optimizer, tree)
    else:
        probes = build_probes(tree, False)
        small = StandIns(probes, [True] * len(probes.parameters), False)
    harness = build_harness(optimizer, small.probes, opt_state, extra_args)
    harness = anchors.hold_anchors(clock.find_period(harness))
    return Setup(harness, trajectory.measure_run(harness, horizon), small.faithful, small.loops)


def _audit_row(p: roles.Parameter, m: Measurements) -> AuditRow:
    rate = verdicts.removed_per_step(m)
    return AuditRow(
        path=p.path,
        shape=p.shape,
        dtype=p.dtype,
        size=math.prod(p.shape),
        role=p.role,
        removed_per_step=rate,
        half_life=verdicts.steps_to_half(m),
        remaining=m.remaining if m.remaining is not None and not math.isnan(rate) else math.nan,
        verdict=verdicts.classify(m),
        changed_fraction=m.changed if m.decays else math.nan,
        anchor=m.anchor,
        coupling=m.coupling,
        dependence=verdicts.dependence(m),
        largest_removed_per_step=math.nan if math.isnan(rate) else m.removed,
    )


def _how(harness: Harness, step: int | None, horizon: int | None, groups: Kinds) -> str:
    """How it was measured, for the report."""
    where = "at the state's own step" if step is None else f"at step {step}"
    over = f", rates are the mean of {horizon:,} steps" if horizon else ""
    on = "on stand-ins (same paths, ranks and dtypes)" if harness.probes.small else "on the real shapes"
    chosen, leaves = len(groups.chosen), len(groups.kind_of)
    few = f", {chosen} kinds of {leaves} leaves" if chosen < leaves else ""
    calls = f"; {harness.period} calls of update make one step" if harness.period > 1 else ""
    least = "; the update is not finite at zero gradient, so gradients of 1e-6 were used instead"
    return f"measured {where}{over} {on}{few}{calls}{least if harness.least_gradient else ''}"
