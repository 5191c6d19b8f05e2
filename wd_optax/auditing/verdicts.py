"""Classifies a leaf from its measurements. Tests are tried in order; the first that passes gives the verdict."""

import math

from wd_optax.auditing.low_precision import is_lost
from wd_optax.auditing.measurements import Measurements
from wd_optax.choosing import timescales

DECAYS = "decays"
NO_DECAY = "no decay"
UNSCALED = "not scaled by lr"
GROWING = "growing"
COUPLED = "coupled: λ cancels"
NORMALISED = "normalised away"
TWICE = "decays twice"
MOMENTUM = "in momentum"
LOST = "lost in rounding"
TOO_MUCH = "too much"
TOO_LITTLE = "too little"
NOT_PROPORTIONAL = "not proportional"
PROXIMAL = "proximal"
PROJECTED = "projected"
CONSTRAINED = "constrained"
VARIES = "varies within the leaf"
LATER = "not yet"
UNKNOWN = "unknown"

_SHRINKS_WELL = (DECAYS, UNSCALED, MOMENTUM, NOT_PROPORTIONAL, VARIES, PROXIMAL, CONSTRAINED)  # as was asked for
HEALTHY = (*_SHRINKS_WELL, PROJECTED)  # or is kept in a set
SHRINKS = (*_SHRINKS_WELL, COUPLED, NORMALISED, TWICE, TOO_MUCH, TOO_LITTLE)  # whatever else is wrong
HALF = 0.5  # the c from which one step removes more of the weight than it leaves
NOTICED = 1e-4  # a tenth of the least that any published run removes over its whole horizon


def classify(m: Measurements) -> str:
    """The verdict on one leaf."""
    tests = (
        (UNKNOWN, not m.finite or m.overflows or m.random or not m.like_stand_in),
        (PROJECTED, is_projected(m)),
        (CONSTRAINED, m.constrained != ""),
        (NO_DECAY, not m.decays and m.steady),
        (UNKNOWN, not m.decays),
        (UNKNOWN, m.anchor == "moving" and not m.has_rule),
        (LATER, m.grows_later),
        (TWICE, m.decaying_stages > 1),
        (GROWING, m.removed < 0),
        (NOT_PROPORTIONAL, m.gated or (m.steady and not m.linear)),
        (NORMALISED, not m.steady and m.normalised),
        (COUPLED, _is_coupled(m)),
        (PROXIMAL, not m.steady and m.penalty != ""),
        (UNKNOWN, not m.steady),
        (TOO_MUCH, m.removed >= HALF),
        (UNKNOWN, math.isnan(m.retained)),
        (LOST, is_lost(m)),
        (VARIES, m.spread > 1),
        (MOMENTUM, m.in_momentum),
        (UNSCALED, m.scaled is False),
        (TOO_LITTLE, m.remaining is not None and 1 - m.remaining < NOTICED),
    )
    return next((word for word, holds in tests if holds), DECAYS)


def is_projected(m: Measurements) -> bool:
    """Whether a step puts the leaf on a sphere, or into a set at whose border it is or without which nothing decays."""
    inside = m.decays and m.steady and m.linear and abs(m.removed) < HALF
    return m.projected == "sphere" or (m.projected == "set" and not inside)


def _is_coupled(m: Measurements) -> bool:
    """Whether each entry's decay depends on its gradient because it has passed a preconditioner."""
    return not m.steady and m.without_gradient and (m.lambda_cancels if m.has_rule else m.entrywise)


def dependence(m: Measurements) -> str:
    """How the decay depends on the step, where it was measured and the verdict doesn't say it."""
    verdict = classify(m)
    if m.gated and verdict == NOT_PROPORTIONAL:
        return "gated"
    if verdict == CONSTRAINED:
        return "later" if m.constrained == "later" else ""
    if m.has_rule and verdict == DECAYS and not m.without_gradient:
        return "catches up with a gradient" if m.catches_up else "only with a gradient"
    is_measured = m.finite and m.like_stand_in and not (m.overflows or m.random)
    return "depends on the step" if verdict == UNKNOWN and m.depends_on_step and is_measured else ""


def removed_per_step(m: Measurements) -> float:
    """What a step removes: the mean over the horizon if there is one; nan if it isn't one number."""
    if not m.settled or classify(m) in (UNKNOWN, COUPLED, PROXIMAL, PROJECTED, CONSTRAINED):
        return math.nan
    if not m.decays:
        return 0.0
    return m.removed if m.mean is None or m.anchor == "moving" else m.mean


def steps_to_half(m: Measurements) -> float:
    """Steps until half of the weight is left; inf if it doesn't shrink, nan if the rate isn't one number."""
    lasts = classify(m) != NOT_PROPORTIONAL and m.anchor != "moving"
    c = removed_per_step(m) if lasts else math.nan
    return math.inf if c <= 0 else timescales.half_life(c) if c < 1 else c if math.isnan(c) else 0.0
