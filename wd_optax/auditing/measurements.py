"""What an audit measures of each leaf: how its step depends on the parameter's value, and on nothing else.

u(s, k) is the step from s·p with k times the probe gradient, D(s, k) = (u(s, k) − u(−s, k))/2. A part that depends
on the parameter's norm alone is the same in both and drops out; what is left is decay.

    D = 0                                        spared
    D(1, 0) = D(1, 1) = D(1, 1000)               steady: the gradient doesn't matter
    D(2, 0) = 2·D(1, 0)                          linear: a fraction of the weight
    D(2, 0) = D(1, 0)                            size-free: L1, or λ cancels in a preconditioner
    |u| = constant·|p| at any gradient           locked: a trust ratio normalises the step
    a step from p = 0 that remembers the last    in a momentum buffer

What the gradient does alone is orthogonal to p by the choice of probes, so D is decay where it lies along p.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wd_optax.auditing import clock, probes
from wd_optax.auditing.harness import Harness, fraction, halves

HARD = 1e3  # a gradient that outweighs a trained second moment
SCALES = [(1, 0), (2, 0), (1, 1), (2, 1), (1, HARD)]
POINTS = [(0, 0), (0, 1), *((sign * s, k) for s, k in SCALES for sign in (1, -1))]
ALIKE = 1e-6  # relative; float64 keeps ten digits more


class Measurements(NamedTuple):
    """One leaf. The second half is filled in by `coupling`, `stages` and `rounding`."""

    removed: float = 0.0  # fraction of the weight per step, sustained; negative where it grows
    first: float = 0.0  # the same of the first step alone, without what a momentum buffer adds later
    settled: bool = True  # whether `removed` came to rest
    finite: bool = True
    overflows: bool = False  # a step is NaN or infinite in the parameter's own type, and not in float64
    decays: bool = False
    steady: bool = True
    linear: bool = True
    size_free: bool = False
    entrywise: bool = False  # each entry has a rate of its own, no rescaling of the whole leaf explains it
    gated: bool = False  # some entries decay fully and others not at all
    sided: bool = False  # a projection keeps it on one side of zero
    varies: float = 1.0  # the largest rate of an entry over the smallest
    locked: bool = False
    still: bool = True  # decays where the gradient is zero, too
    remembered: bool = False
    frozen: bool = False  # no gradient moves it
    ascends: bool = False  # it moves up the gradient
    raw: bool = False  # its step is the raw gradient
    sources: int = 1  # decaying stages that could be told apart
    lambdas: tuple[float, ...] = ()  # what each of these stages of a chain adds, as a fraction of the weight
    stochastic: bool = False
    scaled: bool | None = None  # by the learning rate; None: no measurement decides
    coupling: str = ""  # what the rate follows over the run: "constant", "lr", "lr/peak", "lr²"; "" where unknown
    asked: float = math.nan  # the learning rate that the decay was given, where the state records it
    steps_by: float = math.nan  # the learning rate of the step, where its size shows one
    in_proportion: bool = False  # the step is in proportion to the gradient
    anchor: str = ""  # what the leaf decays toward: "zero", "init", "tree"; "" where it doesn't decay
    branch: str | None = None  # the label of its optimizer in an `optax.partition`
    later: bool = False  # the optimizer has not found its step size yet
    carried: bool = True  # whether the stand-in is treated as the real shape is
    mean: float | None = None  # the rate whose constant run leaves as much as the horizon does
    remaining: float | None = None  # fraction left after the horizon
    moves: float = 1.0  # fraction of entries that a decay-only step changes in the parameter's own type
    kept: float = 1.0  # what that step removes, over what it should
    tried: bool = False  # whether both come from a run, since the optimizer rounds by itself


class Leaf(NamedTuple):
    """Samples of one leaf at every probe."""

    p: np.ndarray
    g: np.ndarray
    u: dict[tuple[float, float], np.ndarray]  # averaged over both signs of a gradient without partner
    driven: dict[tuple[float, float], np.ndarray]  # not averaged
    norms: dict[tuple[float, float], float]
    later: list[np.ndarray]  # the odd part of two steps from p = 0 that follow the steps from ±p without a gradient
    eps: float

    def odd(self, s: float, k: float) -> np.ndarray:
        """D(s, k)."""
        return (self.u[s, k] - self.u[-s, k]) / 2

    def effect(self, k: float, s: float = 1) -> np.ndarray:
        """What k times the gradient does to the step, whatever the parameter's sign."""
        u = self.driven
        return (u[s, k] + u[-s, k] - u[s, 0] - u[-s, 0]) / 2

    def noise(self, k: float) -> float:
        """The rounding noise of steps with gradients up to k."""
        size = lambda x: float(np.linalg.norm(x))
        return 100 * self.eps * (size(self.p) + sum(size(self.u[s, at]) for s, at in self.u if at <= k))

    def same(self, a: np.ndarray, b: Any, k: float = 0, tolerance: float = ALIKE) -> bool:
        """Whether two odd parts agree, given the rounding noise."""
        size = lambda x: float(np.linalg.norm(x))
        return bool(size(a - b) <= tolerance * max(size(a), size(b)) + self.noise(k))


def start(bench: Harness, step: int | None) -> Callable[[float, float], Any]:
    """The state from which a probe at (s, k) starts: that of the bench, with what `step` such steps leave in it."""
    return lambda s, k: (
        clock.at(bench, step, s, k) if step and any(bench.counts) and not bench.given else bench.scaled(s)
    )


def read(bench: Harness, step: int | None) -> list[Leaf]:
    """Runs the probes at the step where the bench is."""
    begin = start(bench, step)
    seen = {(s, k): bench.step(s, k, begin(s, k)) for s, k in POINTS}
    mean = {at: bench.mean(*at, begin(*at)) if bench.unpaired else seen[at].updates for at in seen}
    states = [bench.forget(seen[s, 0].state) for s in (1, -1)]
    later = []
    for _ in range(2):
        plus, minus = (bench.step(0, 0, state) for state in states)
        states = [plus.state, minus.state]
        later.append(halves(plus.updates, minus.updates))
    return [
        Leaf(
            probes.sample(p),
            probes.sample(g),
            {at: u[i] for at, u in mean.items()},
            {at: x.updates[i] for at, x in seen.items()},
            {at: float(x.norms[i]) for at, x in seen.items()},
            [half[i] for half in later],
            float(bench.eps),
        )
        for i, (p, g) in enumerate(zip(bench.subject.values, bench.subject.gradients, strict=True))
    ]


def of(leaf: Leaf) -> Measurements:
    """The facts of one leaf."""
    if not leaf.p.any():
        return Measurements()
    if not all(np.isfinite(u).all() for u in leaf.u.values()):
        return Measurements(finite=False, steady=False)
    if _sided(leaf):
        return _one_side(leaf)
    calm, doubled, driven, hard = leaf.odd(1, 0), leaf.odd(2, 0), leaf.odd(1, 1), leaf.odd(1, HARD)
    still = not leaf.same(calm, 0)
    decay, k = (calm, 0) if still else (driven, 1)
    size_free = still and leaf.same(doubled, calm, 0, 0.1)
    matters_not = leaf.same(calm if still else hard, driven, 1 if still else HARD)
    depends = still or not leaf.same(driven, 0, 1) or not leaf.same(hard, 0, HARD)
    size = lambda x: float(np.linalg.norm(x))
    along = abs(fraction(decay, leaf.p)) * size(leaf.p) > max(leaf.noise(k), 1e-3 * size(decay))
    return Measurements(
        removed=fraction(decay, leaf.p),
        first=fraction(decay, leaf.p),
        decays=depends and bool(along),
        steady=matters_not and (size_free or not still or leaf.same(calm, hard, HARD)),
        linear=leaf.same(doubled, 2 * calm),
        size_free=size_free,
        entrywise=not (_is_rescaled(leaf, calm, 0) and _is_rescaled(leaf, hard, HARD)),
        gated=_gated(leaf, 0) or _gated(leaf, 1),
        varies=_spread(leaf, decay, k),
        locked=_locked(leaf),
        still=still,
        remembered=not leaf.same(leaf.later[0], 0),
        frozen=leaf.same(leaf.effect(1), 0) and leaf.same(leaf.effect(HARD), 0),
        ascends=_ascends(leaf),
        raw=leaf.same(leaf.effect(1), leaf.g, 1),
        steps_by=_learning_rate(leaf),
        in_proportion=_in_proportion(leaf),
    )


def _sided(leaf: Leaf) -> bool:
    """Whether a step without a gradient does −a·|p| to every entry: a projection on one sign does."""
    even = lambda s: np.real((leaf.u[s, 0] + leaf.u[-s, 0]) / 2 / np.abs(leaf.p))
    once, twice = even(1), even(2)
    return bool(
        np.max(np.abs(once)) * np.linalg.norm(leaf.p) > leaf.noise(0)
        and np.allclose(once, once[0], rtol=ALIKE, atol=0)
        and np.allclose(twice, 2 * once, rtol=ALIKE, atol=0)
    )


def _one_side(leaf: Leaf) -> Measurements:
    """The facts of a leaf that a projection keeps on one side of zero, from the entries that are there."""
    sides = (np.real(leaf.p) > 0, np.real(leaf.p) < 0)
    c = [fraction(leaf.u[1, 0][side], leaf.p[side]) for side in sides if side.any()]
    removed = min(c, key=abs)
    decays = abs(removed) * float(np.linalg.norm(leaf.p)) > leaf.noise(0)
    return Measurements(removed=removed * decays, first=removed * decays, decays=decays, sided=True)


def _spread(leaf: Leaf, decay: np.ndarray, k: float) -> float:
    """The largest rate of an entry over the smallest, 1 where they agree or differ in sign."""
    rates = np.real(-decay / leaf.p)
    low, high = np.min(np.abs(rates)), np.max(np.abs(rates))
    clear = high - low > 1e-3 * high and high - low > leaf.noise(k) / np.linalg.norm(leaf.p)
    return float(high / low) if clear and low > 0 and np.all(rates * rates[0] > 0) else 1.0


def _learning_rate(leaf: Leaf) -> float:
    """η where the effect of a gradient is ±η in every entry, or η·g, whatever the parameter; otherwise nan."""
    e, size = leaf.effect(1), np.abs(leaf.effect(1))
    if leaf.p.size < 2 or not size.min() > 0 or not leaf.same(e, leaf.effect(1, 2), 1, 1e-3):
        return math.nan
    if _in_proportion(leaf):
        return float(size[0] / np.abs(leaf.g)[0])
    signs = np.ptp(size) <= 1e-2 * size.max() and leaf.same(e, leaf.effect(HARD), HARD, 1e-2)
    return float(size.mean()) if signs and np.ptp(np.abs(leaf.g)) > 0 else math.nan


def _in_proportion(leaf: Leaf) -> bool:
    """Whether the effect of a gradient is a number times the gradient."""
    e, g = leaf.effect(1), leaf.g
    scale = np.vdot(g, e).real / np.vdot(g, g).real if g.any() else 0.0
    return bool(scale) and leaf.same(e, scale * g, 1) and leaf.same(e * HARD, leaf.effect(HARD), HARD)


def _is_rescaled(leaf: Leaf, d: np.ndarray, k: float) -> bool:
    """Whether d = α·p + β·(effect of the gradient): what clipping to a norm makes of a decay. Needs 4 entries."""
    mean = (leaf.u[1, k] + leaf.u[-1, k]) / 2
    basis = np.stack([leaf.p.ravel(), leaf.effect(k).ravel(), mean.ravel()], axis=1)
    return leaf.p.size > 3 and leaf.same(d, basis @ np.linalg.lstsq(basis, d, rcond=None)[0], k)


def _ascends(leaf: Leaf) -> bool:
    """Whether the step goes up the gradient, clearly."""
    uphill = float(np.vdot(leaf.g, leaf.effect(1)).real)
    return uphill > 0.05 * float(np.linalg.norm(leaf.effect(1)) * np.linalg.norm(leaf.g)) > 0


def _gated(leaf: Leaf, k: float) -> bool:
    """Whether the step from p, less the step from 0, is −c·p on some entries and nothing on the others."""
    u = leaf.driven
    pull = u[1, k] - u[0, k]
    rates = np.real(-pull / leaf.p)
    top, open_to_all = rates[np.argmax(np.abs(rates))], fraction(leaf.odd(1, 0), leaf.p)
    if min(abs(top - open_to_all), abs(top - 2 * open_to_all)) > ALIKE * abs(top):
        return False
    all_or_nothing = np.minimum(np.abs(rates - top), np.abs(rates)) <= ALIKE * abs(top)
    return bool(np.all(all_or_nothing)) and not leaf.same(pull, (u[1, k] - u[-1, k]) / 2, k)


def _locked(leaf: Leaf) -> bool:
    """Whether the step's length is a fixed fraction of the parameter's at any gradient."""
    n = leaf.norms
    alike = lambda a, b: abs(a - b) <= 1e-3 * max(a, b)
    at_any_gradient = alike(n[1, 0], n[1, 1]) and alike(n[1, 0], n[1, HARD])
    return bool(n[1, 0] > 0 and at_any_gradient and alike(2 * n[1, 0], n[2, 0]))
