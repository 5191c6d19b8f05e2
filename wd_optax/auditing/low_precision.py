"""Whether decay survives rounding to the dtypes that parameters are stored in, and whether steps stay finite there."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing import trajectory
from wd_optax.auditing.harness import Harness, build_harness
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.probes import real_values, sample
from wd_optax.auditing.vectors import norm, odd_parts

MANTISSAS = 2.0 ** np.linspace(0, 1, 1000, endpoint=False)  # what rounding does depends on the mantissa alone
LONG_RUN = 4096  # of a run that measures how an optimizer rounds; up to 16 times as many where its decay is slow


def survives(own: Any, dtype: Any, removed: float) -> tuple[float, float]:
    """Adds −c·p to p in the parameter's own dtype, as `optax.apply_updates` does.

    Args:
      own: values of the parameter, in float64 or complex128; all mantissas are used if it is empty.
      dtype: its dtype.
      removed: c.

    Returns:
      The fraction of entries that change, and what they lose divided by what they should: 1 is right, 0 is lost.

    Example: bfloat16 has 8 bits; 1 − 0.001 rounds to 1.
      >>> import jax.numpy as jnp, numpy as np
      >>> survives(np.ones(3), jnp.bfloat16, 0.001), survives(np.ones(3), jnp.bfloat16, 0.01)
      ((0.0, 0.0), (1.0, 1.171875))

    """
    if not removed or not np.isfinite(removed) or not jnp.issubdtype(dtype, jnp.inexact):
        return 1.0, 1.0
    p = np.asarray(own if len(own) else MANTISSAS).astype(dtype)
    exact = p.astype(complex if np.iscomplexobj(p) else float)
    p, exact = p[exact != 0], exact[exact != 0]  # small values are zero in float16
    after = p + (-removed * exact).astype(dtype)
    lost = exact - after.astype(exact.dtype)
    return float(np.mean(after != p)), float(np.vdot(exact, lost).real / np.vdot(exact, exact).real / removed)


def is_lost(m: Measurements) -> bool:
    """Whether most entries don't change, or change by much less or more than they should."""
    return m.decays and (m.changed < 0.5 or not 0.5 <= m.retained <= 1.5)


def check_own_dtypes(
    harness: Harness, step: int, measured: list[Measurements], opt_state: optax.OptState
) -> list[Measurements]:
    """Takes a step without and one with a gradient in the parameters' own dtypes.

    A step that isn't finite there is an error, and a leaf that decays only there (a mask may read dtypes) is unknown,
    because it isn't what was measured in float64. The optimizer may round by itself (stochastic, compensated) if its
    updates differ from those in float64 by more than rounding, or if its state keeps a decay that an addition would
    lose. A run then measures how it rounds.
    """
    probes = harness.probes
    if all(p.dtype in (np.float64, np.complex128) for p in probes.parameters):
        return measured
    own = _in_own_dtypes(harness, opt_state)
    s = 4 if any(m.anchor == "norm" for m in measured) else 1  # at its norm no decay shows
    plus, minus, driven = own.step(s, 0), own.step(-s, 0), own.step(1, 1)
    exact = odd_parts(harness.step(s, 0).updates, harness.step(-s, 0).updates)
    remembers = _states_differ(own, plus.state, minus.state)
    checked, rounds = [], []
    steps = zip(plus.updates, minus.updates, driven.updates, exact, strict=True)
    for m, p, value, (a, b, c, d) in zip(measured, probes.parameters, probes.values, steps, strict=True):
        finite = bool(np.isfinite(a).all() and np.isfinite(c).all())
        m = m._replace(overflows=m.finite and not finite)
        if jnp.issubdtype(p.dtype, jnp.inexact) and finite and m.finite and not m.decays and not m.one_sided:
            decays = norm(a - b) > 16 * _eps(p.dtype) * s * norm(sample(value))
            m = m._replace(decays=decays, steady=m.steady and not decays)
        checked.append(m)
        differs = finite and norm((a - b) / 2 - d) > 0.05 * norm(d)
        rounds.append(
            finite and m.decays and not m.projected and (differs or (remembers and _is_lost_by_addition(m, p.dtype)))
        )
    return _simulate_rounding(own, harness, step, checked, rounds)


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def _in_own_dtypes(harness: Harness, opt_state: optax.OptState) -> Harness:
    """The same harness in the parameters' own dtypes, at the same step."""
    own = build_harness(harness.optimizer, harness.probes, opt_state, harness.extra_args, float64=False)
    leaves, treedef = jax.tree.flatten(own.state)
    counted = []
    for mine, x, counts in zip(leaves, jax.tree.leaves(harness.state), harness.counts, strict=True):
        counted.append(np.asarray(x, mine.dtype) if counts else mine)
    return dataclasses.replace(
        own,
        state=jax.tree.unflatten(treedef, counted),
        copies=harness.copies,
        counts=harness.counts,
        period=harness.period,
        least_gradient=harness.least_gradient,
    )


def _states_differ(harness: Harness, one: optax.OptState, other: optax.OptState) -> bool:
    """Whether two states differ in more than their copies of the parameters."""
    for a, b, copy in zip(jax.tree.leaves(one), jax.tree.leaves(other), harness.copies, strict=True):
        if not copy and jnp.issubdtype(a.dtype, jnp.inexact) and bool(np.any(np.asarray(a) != np.asarray(b))):
            return True
    return False


def _is_lost_by_addition(m: Measurements, dtype: Any) -> bool:
    changed, retained = survives((), dtype, m.removed)
    return is_lost(m._replace(changed=changed, retained=retained))


def _simulate_rounding(
    own: Harness, harness: Harness, step: int, measured: list[Measurements], rounds: list[bool]
) -> list[Measurements]:
    """Runs without a gradient until the decay should be sixteen units in the last place.

    Whether the decay survives stays unknown (`retained` is nan) where that takes too long, where a schedule leaves too
    little decay, or where the anchor isn't known.
    """
    parameters = harness.probes.parameters
    simulated = [i for i, yes in enumerate(rounds) if yes and measured[i].steady and measured[i].removed]
    if not simulated:
        return measured
    coarsest = max(_eps(parameters[i].dtype) for i in simulated)
    slowest = min(abs(measured[i].removed) for i in simulated)
    steps = math.ceil(min(16 * coarsest / slowest, max(LONG_RUN, 4 * coarsest / slowest), 16 * LONG_RUN))
    rates = np.array([m.first_step for m in measured])  # in the middle of the run
    if any(harness.counts):
        rates = trajectory.measure_step(harness, step + steps // 2)[0]
    runs = {s: _ends(own.enlarged(s), steps) for s in sorted({_run_from(measured[i]) for i in simulated})}
    filled = list(measured)
    for i in simulated:
        m, (starts, ends) = measured[i], runs[_run_from(measured[i])]
        start, end = sample(starts[i]), sample(ends[i])
        distance = 1 - {"zero": 0, "init": 1, "norm": m.ratio}.get(m.anchor, math.nan) / _run_from(m)
        lost = float(np.vdot(start, start - end).real / np.vdot(start, start).real) / distance
        rate = min(m.removed * rates[i] / m.first_step, 0.5) if m.first_step and m.anchor != "norm" else m.removed
        exact = -math.expm1(steps * math.log1p(-rate))
        enough = exact > 2 * _eps(parameters[i].dtype) and distance > 0.5
        filled[i] = m._replace(simulated=True, changed=1.0, retained=lost / exact if enough else math.nan)
    return filled


def _run_from(m: Measurements) -> int:
    """Where the run starts, as a multiple of p: away from the anchor."""
    return 4 if m.anchor in ("init", "norm") else 1


def _ends(own: Harness, steps: int) -> tuple[list[Any], list[Any]]:
    """The parameters before and after a run without a gradient."""
    return jax.tree.leaves(own.trees.params(1)), jax.tree.leaves(jax.device_get(own.drive(steps, 0)[0]))


def round_own_values(measured: list[Measurements], kind_of: tuple[int, ...], params: Any) -> list[Measurements]:
    """The measurements of every leaf of the tree, from those of its kind, with what rounding does to its own values."""

    @functools.cache
    def of_any_values(dtype: Any, removed: float) -> tuple[float, float]:
        return survives((), dtype, removed)

    filled = []
    for kind, leaf in zip(kind_of, jax.tree.leaves(params), strict=True):
        m, dtype = measured[kind], jnp.result_type(leaf)
        if m.steady and m.linear and not m.simulated:
            own = () if isinstance(leaf, jax.ShapeDtypeStruct) else real_values(leaf)
            changed, retained = survives(own, dtype, m.removed) if len(own) else of_any_values(dtype, m.removed)
            m = m._replace(changed=changed, retained=retained)
        filled.append(m)
    return filled
