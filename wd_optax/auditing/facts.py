"""What an audit measures of each leaf: how its step depends on the parameter's value, and on nothing else.

u(s, k) is the step from s·p with k times the probe gradient, D(s, k) = (u(s, k) − u(−s, k))/2. A part that depends
on the parameter's norm alone is the same in both and drops out; what is left is decay.

    D = 0                                        spared
    D(1, 0) = D(1, 1) = D(1, 1000)               steady: the gradient doesn't matter
    D(2, 0) = 2·D(1, 0)                          linear: a fraction of the weight
    D(2, 0) = D(1, 0)                            size-free: L1, or λ cancels in a preconditioner
    |u| = constant·|p| at any gradient           locked: a trust ratio normalises the step
    a step from p = 0 that remembers the last    in a momentum buffer
"""

from typing import Any, NamedTuple

import numpy as np

from wd_optax.auditing import probes
from wd_optax.auditing.bench import Bench, Seen

HARD = 1e3  # a gradient that outweighs a trained second moment
POINTS = [(1, 0), (-1, 0), (0, 0), (2, 0), (-2, 0), (0, 1), (1, 1), (-1, 1), (1, HARD), (-1, HARD)]
ALIKE = 1e-6  # relative; float64 keeps ten digits more


class Facts(NamedTuple):
    """One leaf. The second half is filled in by `coupling`, `stages` and `rounding`."""

    removed: float = 0.0  # fraction of the weight per step, sustained; negative where it grows
    first: float = 0.0  # the same of the first step alone, without what a momentum buffer adds later
    finite: bool = True
    decays: bool = False
    steady: bool = True
    linear: bool = True
    size_free: bool = False
    entrywise: bool = False  # each entry has a rate of its own, no rescaling of the whole leaf explains it
    gated: bool = False  # some entries decay fully and others not at all
    locked: bool = False
    still: bool = True  # decays where the gradient is zero, too
    remembered: bool = False
    frozen: bool = False  # no gradient moves it
    ascends: bool = False  # it moves up the gradient
    raw: bool = False  # its step is the raw gradient
    sources: int = 1  # decaying stages that could be told apart
    lambdas: tuple[float, ...] = ()  # what each of these stages of a chain adds, as a fraction of the weight
    branch: str | None = None  # the label of its optimizer in an `optax.partition`
    stochastic: bool = False
    scaled: bool | None = None  # by the learning rate; None: can't be told
    mean: float | None = None  # the rate whose constant run leaves as much as the horizon does
    remaining: float | None = None  # fraction left after the horizon
    moves: float = 1.0  # fraction of entries that a decay-only step changes in the parameter's own type
    kept: float = 1.0  # what that step removes, over what it should


class Leaf(NamedTuple):
    """Samples of one leaf at every probe."""

    p: np.ndarray
    g: np.ndarray
    u: dict[tuple[float, float], np.ndarray]
    norms: dict[tuple[float, float], float]
    later: list[np.ndarray]  # the odd part of two steps from p = 0 that follow the steps from ±p without a gradient
    eps: float

    def odd(self, s: float, k: float) -> np.ndarray:
        """D(s, k)."""
        return (self.u[s, k] - self.u[-s, k]) / 2

    def effect(self, k: float) -> np.ndarray:
        """What k times the gradient does to the step, whatever the parameter's sign."""
        return (self.u[1, k] + self.u[-1, k] - self.u[1, 0] - self.u[-1, 0]) / 2

    def same(self, a: np.ndarray, b: Any, k: float = 0, tolerance: float = ALIKE) -> bool:
        """Whether two odd parts agree, given the rounding noise of steps with gradients up to k."""
        size = lambda x: float(np.linalg.norm(x))
        noise = size(self.p) + sum(size(self.u[s, at]) for s, at in self.u if at <= k)
        return bool(size(a - b) <= tolerance * max(size(a), size(b)) + 100 * self.eps * noise)


def read(bench: Bench) -> list[Leaf]:
    """Runs the probes."""
    steps = {(s, k): bench.step(s, k) for s, k in POINTS}
    states = [bench.forget(steps[s, 0].state) for s in (1, -1)]
    later = []
    for _ in range(2):
        plus, minus = (bench.step(0, 0, state) for state in states)
        states = [plus.state, minus.state]
        later.append(halves(plus, minus))
    samples = zip(bench.subject.values, bench.subject.gradients, strict=True)
    return [
        Leaf(
            probes.sample(p),
            probes.sample(g),
            {at: seen.updates[i] for at, seen in steps.items()},
            {at: float(seen.norms[i]) for at, seen in steps.items()},
            [half[i] for half in later],
            float(bench.eps),
        )
        for i, (p, g) in enumerate(samples)
    ]


def halves(plus: Seen, minus: Seen) -> list[np.ndarray]:
    """Half the difference of two steps, per leaf."""
    return [(a - b) / 2 for a, b in zip(plus.updates, minus.updates, strict=True)]


def fraction(d: np.ndarray, p: np.ndarray) -> float:
    """C of the best d = −c·p."""
    size = float(np.vdot(p, p).real)
    return -float(np.vdot(p, d).real) / size if size else 0.0


def removed(bench: Bench, k: float = 0) -> np.ndarray:
    """What one step removes, per leaf, as the bench is set now."""
    pulls = halves(bench.step(1, k), bench.step(-1, k))
    return np.array([fraction(d, probes.sample(p)) for d, p in zip(pulls, bench.subject.values, strict=True)])


def of(leaf: Leaf) -> Facts:
    """The facts of one leaf."""
    if not leaf.p.any():
        return Facts()
    if not all(np.isfinite(u).all() for u in leaf.u.values()):
        return Facts(finite=False, steady=False)
    calm, doubled, driven, hard = leaf.odd(1, 0), leaf.odd(2, 0), leaf.odd(1, 1), leaf.odd(1, HARD)
    still = not leaf.same(calm, 0)
    decay = calm if still else driven
    size_free = still and leaf.same(doubled, calm, 0, 0.1)
    matters_not = leaf.same(calm if still else hard, driven, 1 if still else HARD)
    total, remembered = _sustained(leaf, decay)
    return Facts(
        removed=fraction(total, leaf.p),
        first=fraction(decay, leaf.p),
        decays=still or not leaf.same(driven, 0, 1) or not leaf.same(hard, 0, HARD),
        steady=matters_not and (size_free or not still or leaf.same(calm, hard, HARD)),
        linear=leaf.same(doubled, 2 * calm),
        size_free=size_free,
        entrywise=not (_is_rescaled(leaf, calm, 0) and _is_rescaled(leaf, hard, HARD)),
        gated=_gated(leaf, 0) or _gated(leaf, 1),
        locked=_locked(leaf),
        still=still,
        remembered=remembered,
        frozen=leaf.same(leaf.effect(1), 0) and leaf.same(leaf.effect(HARD), 0),
        ascends=_ascends(leaf),
        raw=leaf.same(leaf.effect(1), leaf.g, 1),
    )


def _is_rescaled(leaf: Leaf, d: np.ndarray, k: float) -> bool:
    """Whether d = α·p + β·(effect of the gradient): what clipping to a norm makes of a decay. Needs 3 entries."""
    basis = np.stack([leaf.p.ravel(), leaf.effect(k).ravel()], axis=1)
    return leaf.p.size > 2 and leaf.same(d, basis @ np.linalg.lstsq(basis, d, rcond=None)[0], k)


def _sustained(leaf: Leaf, decay: np.ndarray) -> tuple[np.ndarray, bool]:
    """The decay with all that a buffer adds in later steps, a geometric series, and whether it adds anything."""
    second, third = leaf.later
    if leaf.same(second, 0):
        return decay, False
    ratio = float(np.vdot(second, third).real / np.vdot(second, second).real)
    return decay + second / (1 - ratio if 0 <= ratio < 1 else 1), True


def _ascends(leaf: Leaf) -> bool:
    """Whether the step goes up the gradient, clearly."""
    uphill = float(np.vdot(leaf.g, leaf.effect(1)).real)
    return uphill > 0.05 * float(np.linalg.norm(leaf.effect(1)) * np.linalg.norm(leaf.g)) > 0


def _gated(leaf: Leaf, k: float) -> bool:
    """Whether the step from p, less the step from 0, is −c·p on some entries and nothing on the others."""
    pull = leaf.u[1, k] - leaf.u[0, k]
    rates = np.real(-pull / leaf.p)
    top, open_to_all = rates[np.argmax(np.abs(rates))], fraction(leaf.odd(1, 0), leaf.p)
    if min(abs(top - open_to_all), abs(top - 2 * open_to_all)) > ALIKE * abs(top):
        return False
    all_or_nothing = np.minimum(np.abs(rates - top), np.abs(rates)) <= ALIKE * abs(top)
    return bool(np.all(all_or_nothing)) and not leaf.same(pull, leaf.odd(1, k), k)


def _locked(leaf: Leaf) -> bool:
    """Whether the step's length is a fixed fraction of the parameter's at any gradient."""
    n = leaf.norms
    alike = lambda a, b: abs(a - b) <= 1e-3 * max(a, b)
    at_any_gradient = alike(n[1, 0], n[1, 1]) and alike(n[1, 0], n[1, HARD])
    return bool(n[1, 0] > 0 and at_any_gradient and alike(2 * n[1, 0], n[2, 0]))
