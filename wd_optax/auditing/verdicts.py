"""The verdict on a leaf: one of a few words, from what was measured. The first that holds is the one given."""

import math

from wd_optax.auditing.low_precision import is_lost
from wd_optax.auditing.measurements import Measurements
from wd_optax.choosing import timescales

DECAYS = "decays"
SPARED = "spared"
UNSCALED = "not scaled by lr"
GROWS = "GROWS"
COUPLED = "coupled: λ cancels"
NORMALISED = "normalised away"
TWICE = "decays twice"
MOMENTUM = "in momentum"
LOST = "lost in rounding"
TOO_MUCH = "too much"
TOO_LITTLE = "too little"
NOT_PROPORTIONAL = "not proportional"
VARIES = "varies within the leaf"
LATER = "not yet"
UNKNOWN = "unknown"

HEALTHY = (DECAYS, UNSCALED, MOMENTUM, NOT_PROPORTIONAL, VARIES)  # weights get smaller, at a rate that was asked for
SHRINKS = (*HEALTHY, COUPLED, NORMALISED, TWICE, TOO_MUCH, TOO_LITTLE)  # weights get smaller, whatever else is wrong
HALF = 0.5  # c from which a step takes more of the weight than it leaves: no weight remembers two updates
NOTICED = 1e-4  # removing less than this over the whole horizon is a tenth of the least of any published run


def verdict(f: Measurements) -> str:
    """The word for one leaf; see `wd_optax.auditing.measurements` for what each question measures."""
    tests = (
        (UNKNOWN, not f.finite or f.overflows or f.stochastic or not f.carried),
        (SPARED, not f.decays and f.steady),
        (UNKNOWN, not f.decays),
        (LATER, f.later),
        (TWICE, f.sources > 1),
        (GROWS, f.removed < 0),
        (NOT_PROPORTIONAL, f.gated or (f.steady and not f.linear)),
        (NORMALISED, not f.steady and f.locked),
        (COUPLED, not f.steady and f.still and f.entrywise),
        (UNKNOWN, not f.steady),
        (TOO_MUCH, f.removed >= HALF),
        (UNKNOWN, math.isnan(f.kept)),
        (LOST, is_lost(f)),
        (VARIES, f.varies > 1),
        (MOMENTUM, f.remembered),
        (UNSCALED, f.scaled is False),
        (TOO_LITTLE, f.remaining is not None and 1 - f.remaining < NOTICED),
    )
    return next((word for word, holds in tests if holds), DECAYS)


def rate(f: Measurements) -> float:
    """What a step removes: the mean over the horizon where there is one; nan where it isn't one number."""
    if not f.settled or verdict(f) in (UNKNOWN, COUPLED):
        return math.nan
    if not f.decays:
        return 0.0
    return f.removed if f.mean is None else f.mean


def half_life(f: Measurements) -> float:
    """Steps until half is left; inf where nothing shrinks, nan where the rate isn't one number."""
    c = math.nan if verdict(f) == NOT_PROPORTIONAL else rate(f)
    return math.inf if c <= 0 else timescales.half_life(c) if c < 1 else c if math.isnan(c) else 0.0
