"""See what decay does before training: any optimizer, measured on any parameters."""

import math
from typing import Any

import numpy as np
import optax

from wd_optax.auditing import arguments, course, experiments, facts, findings, probes, rounding, stages, verdicts
from wd_optax.auditing.bench import Bench
from wd_optax.auditing.facts import Facts
from wd_optax.auditing.fixes import Measured
from wd_optax.auditing.report import Finding, Report, Row

__all__ = ["Finding", "Report", "Row", "audit"]


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
) -> Report:
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
      A `Report`: `print` it, or read `.rows`, `.findings`; `.check(decays=..., spares=...)` is for unit tests.

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
    for name, value in (("step", step), ("horizon", horizon)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and (not whole or value < (name == "horizon")):
            raise ValueError(f"{name}={value!r}: pass a whole number of steps")
    number = isinstance(steps_per_epoch, int | float | np.number)
    if steps_per_epoch is not None and not (number and 0 < steps_per_epoch < math.inf):
        raise ValueError(f"steps_per_epoch={steps_per_epoch!r} must be above 0: examples / batch size")
    optimizer, params = arguments.resolve(optimizer, params)
    subject = probes.make(params, stand_ins)
    if subject.small and opt_state is not None:
        raise ValueError(
            "opt_state has the real shapes, and stand-ins are small: pass params with values, no stand_ins"
        )
    bench = Bench(optimizer, subject, opt_state, extra_args)
    moves = bench.find_period()
    step, path = course.set_step(bench, step, horizon, moves)
    bench.hold_anchors()
    measured = _measure(bench, step, horizon, learning_rate, path)
    measured = rounding.check_own_types(optimizer, opt_state, extra_args, bench, measured)
    rows = tuple(map(_row, subject.found, measured))
    found = findings.find(Measured(bench, rows, measured, learning_rate, horizon))
    return Report(rows, found, _how(bench, step, opt_state), horizon, steps_per_epoch)


def _measure(bench: Bench, step: int | None, horizon: int | None, learning_rate: Any, path: Any) -> list[Facts]:
    """Every fact of every leaf."""
    measured = [facts.of(leaf) for leaf in facts.read(bench)]
    random = experiments.stochastic(bench, measured)
    lambdas = stages.rates(bench)
    more = experiments.decays_without_live_lambda(bench, measured)
    answers = experiments.scaled_by_learning_rate(bench, measured, lambdas, step, learning_rate)
    left = course.remaining(path, measured, horizon) if horizon else [None] * len(measured)
    branches = experiments.branches(bench)
    filled = []
    for i, (f, p, own) in enumerate(zip(measured, bench.subject.found, bench.subject.own, strict=True)):
        sources = max(len(lambdas[i]), 1 + more[i])
        f = f._replace(stochastic=random[i], sources=sources, scaled=answers[i], remaining=left[i])
        f = f._replace(lambdas=tuple(lambdas[i]), branch=branches[i])
        if horizon and f.remaining:
            f = f._replace(mean=-math.expm1(math.log(f.remaining) / horizon))
        moves, kept = rounding.survives(own, p.dtype, f.removed) if f.steady and f.linear else (1.0, 1.0)
        filled.append(f._replace(moves=moves, kept=kept))
    return filled


def _row(p: Any, f: Facts) -> Row:
    verdict = verdicts.verdict(f)
    known = verdict not in (verdicts.UNKNOWN, verdicts.COUPLED) and f.remaining is not None
    return Row(
        path=p.path,
        shape=p.shape,
        dtype=p.dtype,
        size=math.prod(p.shape),
        role=p.role,
        removed_per_step=math.nan if verdict == verdicts.UNKNOWN else 0.0 if not f.decays else f.removed,
        half_life=verdicts.half_life(f),
        remaining=f.remaining if known and f.remaining is not None else math.nan,
        verdict=verdict,
        moves=f.moves if f.decays else math.nan,
    )


def _how(bench: Bench, step: int | None, opt_state: Any) -> str:
    """The sentence that says how it was measured."""
    own = "at the state's own step" if opt_state is not None else "at step 0"
    where = own if step is None else f"at step {step}"
    on = (
        f"on stand-ins with dimensions of at most {probes.LARGEST} (same paths, ranks and types)"
        if bench.subject.small
        else "on the real shapes"
    )
    calls = f"; {bench.period} calls of update make one step" if bench.period > 1 else ""
    quiet = "; it isn't finite at a zero gradient, so a small one stands for it" if bench.quiet else ""
    return f"measured {where} {on}{calls}{quiet}"
