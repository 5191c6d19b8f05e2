"""Interprets the responses of one leaf: whether it decays, at which rate, and what the rate depends on."""

import math

import numpy as np

from wd_optax.auditing.measurements import ALIKE, HARD, Measurements, Responses
from wd_optax.auditing.vectors import norm, removed_fraction


def interpret(leaf: Responses) -> Measurements:
    """The measurements that the responses of one leaf decide."""
    if not leaf.p.any():
        return Measurements()
    if not all(np.isfinite(u).all() for u in leaf.u.values()):
        return Measurements(finite=False, steady=False)
    if _is_one_sided(leaf):
        return _one_side(leaf)
    calm, driven, hard = leaf.odd(1, 0), leaf.odd(1, 1), leaf.odd(1, HARD)
    without_gradient = not leaf.same(calm, 0)
    decay, k = (calm, 0) if without_gradient else (driven, 1)
    c = removed_fraction(decay, leaf.p)
    depends_on_p = without_gradient or not leaf.same(driven, 0, 1) or not leaf.same(hard, 0, HARD)
    decays = depends_on_p and abs(c) * norm(leaf.p) > max(leaf.noise(k), 1e-3 * norm(decay))
    size_free = without_gradient and leaf.same(leaf.odd(2, 0), calm, 0, 0.1)
    steady = _is_steady(leaf, without_gradient, size_free)
    return Measurements(
        removed=c,
        first_step=c,
        decays=decays,
        steady=steady,
        depends_on_step=decays and not steady,
        linear=leaf.same(leaf.odd(2, 0), 2 * calm),
        size_free=size_free,
        entrywise=not (_is_rescaled(leaf, calm, 0) and _is_rescaled(leaf, hard, HARD)),
        gated=_is_gated(leaf, 0) or _is_gated(leaf, 1),
        spread=_spread(leaf, decay, k),
        normalised=_is_normalised(leaf),
        without_gradient=without_gradient,
        in_momentum=not leaf.same(leaf.later[0], 0),
        frozen=leaf.same(leaf.effect(1), 0) and leaf.same(leaf.effect(HARD), 0),
        ascends=_ascends(leaf),
        raw_gradient=leaf.same(leaf.effect(1), leaf.g, 1),
        step_lr=_learning_rate(leaf),
        proportional_step=_is_proportional(leaf),
    )


def _is_steady(leaf: Responses, without_gradient: bool, size_free: bool) -> bool:
    """Whether the gradient doesn't change the decay."""
    calm, driven, hard = leaf.odd(1, 0), leaf.odd(1, 1), leaf.odd(1, HARD)
    if not without_gradient:
        return leaf.same(hard, driven, HARD)
    return leaf.same(calm, driven, 1) and (size_free or leaf.same(calm, hard, HARD))


def _is_one_sided(leaf: Responses) -> bool:
    """Whether a step without a gradient adds −a·|p| to every entry, as a projection onto one sign does."""
    once, twice = (np.real((leaf.u[s, 0] + leaf.u[-s, 0]) / 2 / np.abs(leaf.p)) for s in (1, 2))
    return bool(
        np.max(np.abs(once)) * norm(leaf.p) > leaf.noise(0)
        and np.allclose(once, once[0], rtol=ALIKE, atol=0)
        and np.allclose(twice, 2 * once, rtol=ALIKE, atol=0)
    )


def _one_side(leaf: Responses) -> Measurements:
    """The measurements of a leaf that a projection keeps on one side of zero, from the entries on that side."""
    sides = (np.real(leaf.p) > 0, np.real(leaf.p) < 0)
    c = min((removed_fraction(leaf.u[1, 0][side], leaf.p[side]) for side in sides if side.any()), key=abs)
    decays = abs(c) * norm(leaf.p) > leaf.noise(0)
    return Measurements(removed=c * decays, first_step=c * decays, decays=decays, one_sided=True)


def _spread(leaf: Responses, decay: np.ndarray, k: float) -> float:
    """The largest rate of an entry divided by the smallest; 1 where they agree or differ in sign."""
    rates = np.real(-decay / leaf.p)
    low, high = np.min(np.abs(rates)), np.max(np.abs(rates))
    clear = high - low > 1e-3 * high and high - low > leaf.noise(k) / norm(leaf.p)
    return float(high / low) if clear and low > 0 and np.all(rates * rates[0] > 0) else 1.0


def _learning_rate(leaf: Responses) -> float:
    """η where the gradient changes every entry by ±η, or by η·g, whatever the parameter; otherwise nan."""
    e, size = leaf.effect(1), np.abs(leaf.effect(1))
    if leaf.p.size < 2 or not size.min() > 0 or not leaf.same(e, leaf.effect(1, 2), 1, 1e-3):
        return math.nan
    if _is_proportional(leaf):
        return float(size[0] / np.abs(leaf.g)[0])
    signs = np.ptp(size) <= 1e-2 * size.max() and leaf.same(e, leaf.effect(HARD), HARD, 1e-2)
    return float(size.mean()) if signs and np.ptp(np.abs(leaf.g)) > 0 else math.nan


def _is_proportional(leaf: Responses) -> bool:
    """Whether the effect of a gradient is a multiple of the gradient."""
    e, g = leaf.effect(1), leaf.g
    scale = float(np.vdot(g, e).real / np.vdot(g, g).real) if g.any() else 0.0
    return bool(scale) and leaf.same(e, scale * g, 1) and leaf.same(e * HARD, leaf.effect(HARD), HARD)


def _is_rescaled(leaf: Responses, d: np.ndarray, k: float) -> bool:
    """Whether d = α·p + β·(effect of the gradient), as clipping by norm makes of a decay. Needs 4 entries."""
    mean = (leaf.u[1, k] + leaf.u[-1, k]) / 2
    basis = np.stack([leaf.p.ravel(), leaf.effect(k).ravel(), mean.ravel()], axis=1)
    return leaf.p.size > 3 and leaf.same(d, basis @ np.linalg.lstsq(basis, d, rcond=None)[0], k)


def _ascends(leaf: Responses) -> bool:
    """Whether the step clearly goes up the gradient."""
    uphill = float(np.vdot(leaf.g, leaf.effect(1)).real)
    return uphill > 0.05 * norm(leaf.effect(1)) * norm(leaf.g) > 0


def _is_gated(leaf: Responses, k: float) -> bool:
    """Whether the step from p minus the step from 0 is −c·p on some entries and zero on the others."""
    u = leaf.single
    decay = u[1, k] - u[0, k]
    rates = np.real(-decay / leaf.p)
    top, ungated = rates[np.argmax(np.abs(rates))], removed_fraction(leaf.odd(1, 0), leaf.p)
    if min(abs(top - ungated), abs(top - 2 * ungated)) > ALIKE * abs(top):
        return False
    all_or_nothing = np.minimum(np.abs(rates - top), np.abs(rates)) <= ALIKE * abs(top)
    return bool(np.all(all_or_nothing)) and not leaf.same(decay, (u[1, k] - u[-1, k]) / 2, k)


def _is_normalised(leaf: Responses) -> bool:
    """Whether the step's norm is a fixed fraction of the parameter's at any gradient."""
    n = leaf.norms

    def alike(a: float, b: float) -> bool:
        return abs(a - b) <= 1e-3 * max(a, b)

    at_any_gradient = alike(n[1, 0], n[1, 1]) and alike(n[1, 0], n[1, HARD])
    return n[1, 0] > 0 and at_any_gradient and alike(2 * n[1, 0], n[2, 0])
