"""Whether decay survives in the types that parameters are stored in, and whether the optimizer's step does."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax.auditing import probes, trajectory
from wd_optax.auditing.harness import Harness
from wd_optax.auditing.measurements import Measurements

ANY_VALUE = 2.0 ** np.linspace(0, 1, 1000, endpoint=False)  # how much is lost depends on the mantissa alone
STEPS = 4096  # of a run that tries out how an optimizer rounds; 16 times as many where its decay is slow


def survives(own: Any, dtype: Any, removed: float) -> tuple[float, float]:
    """Adds −c·p to p in the parameter's own type, as `optax.apply_updates` does.

    Args:
      own: values of the parameter, in float64 or complex128; where there are none, all mantissas are tried.
      dtype: its type.
      removed: c.

    Returns:
      The fraction of entries that move, and what they lose over what they should: 1 is right, 0 is lost.

    Example: bfloat16 has 8 bits; 1 − 0.001 rounds to 1.
      >>> import jax.numpy as jnp, numpy as np
      >>> survives(np.ones(3), jnp.bfloat16, 0.001), survives(np.ones(3), jnp.bfloat16, 0.01)
      ((0.0, 0.0), (1.0, 1.171875))

    """
    if not removed or not np.isfinite(removed) or not jnp.issubdtype(dtype, jnp.inexact):
        return 1.0, 1.0
    p = np.asarray(own if len(own) else ANY_VALUE).astype(dtype)
    exact = p.astype(complex if np.iscomplexobj(p) else float)
    p, exact = p[exact != 0], exact[exact != 0]  # float16 makes zeros of small values
    after = p + (-removed * exact).astype(dtype)
    lost = exact - after.astype(exact.dtype)
    return float(np.mean(after != p)), float(np.vdot(exact, lost).real / np.vdot(exact, exact).real / removed)


def check_own_types(wide: Harness, step: int, facts: list[Measurements], opt_state: Any) -> list[Measurements]:
    """Takes a step without and one with a gradient in the parameters' own types.

    A step that isn't finite there is an error, and a leaf that decays there alone (a mask may read types) is unknown:
    it is not what was measured in float64. Where updates differ from those in float64 by more than their type's
    rounding, or a decay that a plain addition loses is remembered, the optimizer may round by itself (stochastic,
    compensated), which a run tries.
    """
    subject = wide.subject
    if all(p.dtype in (np.float64, np.complex128) for p in subject.found):
        return facts
    bench = Harness(wide.optimizer, subject, opt_state, wide.extra_args, wide=False)
    for name in ("period", "quiet", "copies", "counts"):
        setattr(bench, name, getattr(wide, name))
    integers = zip(jax.tree.leaves(bench.state), jax.tree.leaves(wide.state), wide.counts, strict=True)
    leaves = [jnp.asarray(x, own.dtype) if counts else own for own, x, counts in integers]
    bench.state = jax.tree.unflatten(jax.tree.structure(bench.state), leaves)
    plus, minus, driven = bench.step(1, 0), bench.step(-1, 0), bench.step(1, 1)
    exact, remembers = wide.odd(0), _differ(bench, plus.state, minus.state)
    checked, own_rounding = [], []
    steps = zip(plus.updates, minus.updates, driven.updates, exact, strict=True)
    for f, p, value, (a, b, c, e) in zip(facts, subject.found, subject.values, steps, strict=True):
        finite = bool(np.isfinite(a).all() and np.isfinite(c).all())
        f = f._replace(overflows=f.finite and not finite)
        if jnp.issubdtype(p.dtype, jnp.inexact) and finite and f.finite and not f.decays:
            noise = 16 * float(jnp.finfo(p.dtype).eps) * np.linalg.norm(probes.sample(value))
            decays = bool(np.linalg.norm(a - b) > noise)
            f = f._replace(decays=decays, steady=f.steady and not decays)
        checked.append(f)
        rounded = bool(np.linalg.norm((a - b) / 2 - e) > 0.05 * np.linalg.norm(e)) if finite else False
        saved = remembers and _is_lost_by_addition(f, p.dtype)
        own_rounding.append(finite and f.decays and (rounded or saved))
    return _try_rounding(bench, wide, step, checked, own_rounding)


def is_lost(f: Measurements) -> bool:
    """Whether most entries don't move, or by much less or more than they should."""
    return f.decays and (f.moves < 0.5 or not 0.5 <= f.kept <= 1.5)


def _differ(bench: Harness, one: Any, other: Any) -> bool:
    """Whether two states differ in more than their copies of parameters."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), bench.copies, strict=True)
    unequal = lambda a, b: jnp.issubdtype(a.dtype, jnp.inexact) and bool(jnp.any(a != b))
    return any(unequal(a, b) for a, b, copy in leaves if not copy)


def _is_lost_by_addition(f: Measurements, dtype: Any) -> bool:
    moves, kept = survives((), dtype, f.removed)
    return is_lost(f._replace(moves=moves, kept=kept))


def _try_rounding(
    own: Harness, wide: Harness, step: int, facts: list[Measurements], on: list[bool]
) -> list[Measurements]:
    """Runs without a gradient until the decay should be sixteen units in the last place.

    Where that takes too long, or a schedule leaves too little, or the run starts where it decays to, whether the decay
    survives is not known: `kept` is nan.
    """
    found, tried = wide.subject.found, [i for i, x in enumerate(on) if x and facts[i].steady and facts[i].removed]
    if not tried:
        return facts
    coarsest = max(float(jnp.finfo(found[i].dtype).eps) for i in tried)
    slowest = min(abs(facts[i].removed) for i in tried)
    steps = math.ceil(min(16 * coarsest / slowest, max(STEPS, 4 * coarsest / slowest), 16 * STEPS))
    middle = trajectory.measure(wide, step + steps // 2)[0] if any(wide.counts) else np.array([f.first for f in facts])
    ends = jax.tree.leaves(jax.device_get(own.drive(steps, 0)[0]))
    filled = list(facts)
    for i in tried:
        start, end = (probes.sample(x[i]) for x in (jax.tree.leaves(own.params(1)), ends))
        gone = float(np.vdot(start, start - end).real / np.vdot(start, start).real)
        f = facts[i]
        exact = -math.expm1(steps * math.log1p(-min(f.removed * middle[i] / f.first, 0.5))) if f.first else 0.0
        enough = exact > 2 * float(jnp.finfo(found[i].dtype).eps) and f.anchor == "zero"
        filled[i] = f._replace(tried=True, moves=1.0, kept=gone / exact if enough else math.nan)
    return filled


def of_values(facts: list[Measurements], of: Any, params: Any) -> list[Measurements]:
    """The facts of every leaf of the tree, `of` the facts of the kinds, with what rounding does to its own values."""
    filled = []
    any_value = functools.cache(lambda dtype, removed: survives((), dtype, removed))
    for kind, leaf in zip(of, jax.tree.leaves(params), strict=True):
        f, dtype = facts[kind], jnp.result_type(leaf)
        if f.steady and f.linear and not f.tried:
            own = () if isinstance(leaf, jax.ShapeDtypeStruct) else probes.real_values(leaf)
            moves, kept = survives(own, dtype, f.removed) if len(own) else any_value(dtype, f.removed)
            f = f._replace(moves=moves, kept=kept)
        filled.append(f)
    return filled
