"""The verdict on a leaf: one of a few words, from what was measured. The first that holds is the one given."""

import math

from wd_optax.auditing.facts import Facts
from wd_optax.auditing.rounding import is_lost

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
UNKNOWN = "unknown"

HEALTHY = (DECAYS, UNSCALED, MOMENTUM, NOT_PROPORTIONAL)  # weights get smaller, at a rate that was asked for
SHRINKS = (*HEALTHY, COUPLED, NORMALISED, TWICE, TOO_MUCH, TOO_LITTLE)  # weights get smaller, whatever else is wrong
HALF = 0.5  # c from which a step takes more of the weight than it leaves: no weight remembers two updates
NOTICED = 1e-4  # removing less than this over the whole horizon is a tenth of the least of any published run


def verdict(f: Facts) -> str:
    """The word for one leaf; see `wd_optax.auditing.facts` for what each question measures."""
    tests = (
        (UNKNOWN, not f.finite or f.stochastic),
        (SPARED, not f.decays),
        (TWICE, f.sources > 1),
        (GROWS, f.removed < 0),
        (NOT_PROPORTIONAL, f.gated or (f.steady and not f.linear)),
        (NORMALISED, not f.steady and f.locked),
        (COUPLED, not f.steady and f.still and f.entrywise),
        (UNKNOWN, not f.steady),
        (TOO_MUCH, f.removed >= HALF),
        (UNKNOWN, math.isnan(f.kept)),
        (LOST, is_lost(f)),
        (MOMENTUM, f.remembered),
        (UNSCALED, f.scaled is False),
        (TOO_LITTLE, f.remaining is not None and 1 - f.remaining < NOTICED),
    )
    return next((word for word, holds in tests if holds), DECAYS)


def half_life(f: Facts) -> float:
    """Steps until half is left at the mean rate; inf where nothing shrinks, nan where the rate isn't one number."""
    if verdict(f) in (UNKNOWN, COUPLED, NOT_PROPORTIONAL):
        return math.nan
    c = f.removed if f.mean is None else f.mean
    return math.inf if c <= 0 else math.log(0.5) / math.log1p(-c) if c < 1 else 0.0
