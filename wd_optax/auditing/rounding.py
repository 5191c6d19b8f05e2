"""Whether decay survives in the types that parameters are stored in, and whether the optimizer's step does."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax.auditing import probes
from wd_optax.auditing.bench import Bench
from wd_optax.auditing.facts import Facts
from wd_optax.precision import RoundState

ANY_VALUE = 2.0 ** np.linspace(0, 1, 1000, endpoint=False)  # how much is lost depends on the mantissa alone


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


def check_own_types(
    optimizer: Any, opt_state: Any, extra_args: dict[str, Any] | None, wide: Bench, facts: list[Facts]
) -> list[Facts]:
    """Takes a step without and one with a gradient in the parameters' own types.

    A step that isn't finite there, and a leaf that decays there alone (a mask may read types), are unknown: they are
    not what was measured in float64. Updates of a wider type than the parameter's round by some way of their own
    (stochastic, compensated), which is tried out where plain rounding would lose the decay.
    """
    subject = wide.subject
    if all(p.dtype in (np.float64, np.complex128) for p in subject.found):
        return facts
    bench = Bench(optimizer, subject, opt_state, extra_args, wide=False)
    bench.period, bench.quiet, bench.copies = wide.period, wide.quiet, wide.copies
    plus, driven = bench.step(1, 0), bench.step(1, 1).updates
    # a first step from zero gradients is all decay; later ones remember, and are told from those at -p
    minus = [np.zeros_like(u) for u in plus.updates] if opt_state is None else bench.step(-1, 0).updates
    checked = []
    for f, p, value, a, b, c in zip(facts, subject.found, subject.values, plus.updates, minus, driven, strict=True):
        f = f._replace(finite=f.finite and bool(np.isfinite(a).all() and np.isfinite(c).all()))
        if jnp.issubdtype(p.dtype, jnp.inexact) and f.finite and not f.decays:
            noise = 16 * float(jnp.finfo(p.dtype).eps) * np.linalg.norm(probes.sample(value))
            decays = bool(np.linalg.norm(a - b) > noise)
            f = f._replace(decays=decays, steady=not decays)
        checked.append(f)
    rounds = any(isinstance(node, RoundState) for node in _round_states(bench.fresh))  # with updates of any type
    lost = [
        is_lost(f) and (rounds or u.itemsize > p.dtype.itemsize)
        for f, p, u in zip(checked, subject.found, plus.dtypes, strict=True)
    ]
    return _try_rounding(optimizer, extra_args, wide, checked, lost) if any(lost) else checked


def _round_states(state: Any) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, RoundState))


def is_lost(f: Facts) -> bool:
    """Whether most entries don't move, or by much less or more than they should."""
    return f.decays and (f.moves < 0.5 or not 0.5 <= f.kept <= 1.5)


def _try_rounding(
    optimizer: Any, extra_args: dict[str, Any] | None, wide: Bench, facts: list[Facts], lost: list[bool]
) -> list[Facts]:
    """Runs stand-ins without a gradient until the decay should be sixteen units in the last place, and in float64.

    Where that takes too long, or a schedule leaves too little, whether the decay survives is not known: `kept` is nan.
    """
    found = wide.subject.found
    subject = probes.make(jax.tree.unflatten(wide.subject.treedef, [*map(_shape, found)]), True)
    rates = [f.removed for f, is_lost_here in zip(facts, lost, strict=True) if is_lost_here]
    coarsest = max(float(jnp.finfo(p.dtype).eps) for p, is_lost_here in zip(found, lost, strict=True) if is_lost_here)
    steps = min(math.ceil(16 * coarsest / min(rates)), 4096 if len(found) <= 64 else 1024)

    def gone(in_float64: bool) -> list[float]:
        """The fraction that is removed of each leaf that seems to lose its decay."""
        bench = Bench(optimizer, subject, None, extra_args, wide=in_float64)
        bench.period, bench.quiet = wide.period, wide.quiet
        starts, ends = (map(probes.sample, tree) for tree in (jax.tree.leaves(bench.params(1)), bench.run(steps)))
        share = lambda a, b: float(np.vdot(a, a - b).real / np.vdot(a, a).real)
        return [share(a, b) if of else math.nan for a, b, of in zip(starts, ends, lost, strict=True)]

    tried = []
    for f, p, own, exact, is_lost_here in zip(facts, found, gone(False), gone(True), lost, strict=True):
        if is_lost_here:
            enough = exact > 2 * float(jnp.finfo(p.dtype).eps)
            f = f._replace(moves=1.0, kept=own / exact if enough else math.nan)
        tried.append(f)
    return tried


def _shape(p: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(p.shape, p.dtype)
