"""What an audit measures of each leaf: how its step depends on the parameter's value.

u(s, k) is the step from s·p with k times the probe gradient, and D(s, k) = (u(s, k) − u(−s, k))/2. Terms that depend
only on the parameter's norm cancel in D, so what is left is decay.

    D = 0                                        no decay
    D(1, 0) = D(1, 1) = D(1, 1000)               steady: independent of the gradient
    D(2, 0) = 2·D(1, 0)                          linear: a fraction of the weight
    D(2, 0) = D(1, 0)                            size-free: L1, or λ cancels in a preconditioner
    |u| = constant·|p| at any gradient           normalised: by a trust ratio
    a step from p = 0 repeats the previous one   in momentum

The effect of the gradient alone is orthogonal to p by the choice of probes, so D is decay where it is parallel to p.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from wd_optax.auditing import clock
from wd_optax.auditing.clock import Advanced
from wd_optax.auditing.harness import Harness
from wd_optax.auditing.probes import sample
from wd_optax.auditing.vectors import norm, odd_parts

HARD = 1e3  # a gradient that outweighs a trained second moment
SCALES = [(1, 0), (2, 0), (1, 1), (2, 1), (1, HARD)]
POINTS = [(0, 0), (0, 1), *((sign * s, k) for s, k in SCALES for sign in (1, -1))]
ALIKE = 1e-6  # relative; float64 has ten more digits

Start = Callable[[float, float], Advanced]  # (s, k) -> the state that the probe at s·p and k·g starts from


class Measurements(NamedTuple):
    """One leaf. `responses.interpret` fills in the first half, the ablations and a run the rest."""

    removed: float = 0.0  # fraction of the weight per step, with what momentum adds later; negative where it grows
    first_step: float = 0.0  # the same of the first step alone
    settled: bool = True  # whether `removed` converged
    finite: bool = True
    overflows: bool = False  # a step is NaN or infinite in the parameter's own dtype, but not in float64
    decays: bool = False
    steady: bool = True
    linear: bool = True
    size_free: bool = False
    entrywise: bool = False  # each entry has a rate of its own, which no rescaling of the whole leaf explains
    gated: bool = False  # the step chooses which entries decay; the others don't
    depends_on_step: bool = False  # it decays, and the gradient changes how much
    one_sided: bool = False  # a projection keeps it on one side of zero
    spread: float = 1.0  # the largest rate of an entry divided by the smallest
    normalised: bool = False
    without_gradient: bool = True  # whether it decays at a zero gradient, too
    in_momentum: bool = False
    frozen: bool = False  # no gradient moves it
    ascends: bool = False  # it moves up the gradient
    raw_gradient: bool = False  # the raw gradient is added to it
    step_lr: float = math.nan  # the learning rate of the step, where its size shows one
    proportional_step: bool = False  # the step is proportional to the gradient
    decaying_stages: int = 1  # as far as they can be distinguished
    has_rule: bool = False  # a decay rule or a penalty may act on it
    penalty: str = ""  # of a proximal step: "l1", ..., "custom"; "" without one
    metric: bool = False  # whether that step is in the optimizer's metric
    projected: str = ""  # every step puts it on a "sphere" or into a "set"
    undone: float = 0.0  # the fraction that is removed before it is put back on its sphere
    constrained: str = ""  # its norm has a bound "now", or "later" in the run
    catches_up: bool = False  # a step with a gradient makes up for earlier steps without one
    lambda_cancels: bool = False  # doubling λ doesn't change the rate; measured where a rule may act
    stage_rates: tuple[float, ...] = ()  # what each of these stages of a chain adds, as a fraction of the weight
    random: bool = False
    scaled: bool | None = None  # by the learning rate; None if no measurement decides
    coupling: str = ""  # what the rate follows over the run: "constant", "lr", "lr/peak", "lr²"; "" if unknown
    decay_lr: float = math.nan  # the learning rate that the decay uses, where the state records it
    anchor: str = ""  # what the leaf decays toward: "zero", "init", "tree", "moving", "norm"; "" if not, or unknown
    ratio: float = 0.0  # the size of the norm that it decays to, as a multiple of the probe's
    branch: str | None = None  # the label of its optimizer in an `optax.partition`
    grows_later: bool = False  # the optimizer is still searching for its step size
    like_stand_in: bool = True  # whether the optimizer treats the real shape as it treats the stand-in
    mean: float | None = None  # the constant rate that leaves as much after the horizon
    remaining: float | None = None  # fraction left after the horizon
    changed: float = 1.0  # fraction of entries that a decay-only step changes in the parameter's own dtype
    retained: float = 1.0  # what that step removes in this dtype, divided by what it should remove
    simulated: bool = False  # whether both come from a run, because the optimizer rounds by itself


class Responses(NamedTuple):
    """Samples of one leaf's steps at every probe."""

    p: np.ndarray
    g: np.ndarray
    u: dict[tuple[float, float], np.ndarray]  # averaged over both signs of an unpaired gradient
    single: dict[tuple[float, float], np.ndarray]  # not averaged
    norms: dict[tuple[float, float], float]
    later: list[np.ndarray]  # the odd part of two steps from p = 0, after the steps from ±p without a gradient
    eps: float

    def odd(self, s: float, k: float) -> np.ndarray:
        """D(s, k)."""
        d: np.ndarray = (self.u[s, k] - self.u[-s, k]) / 2
        return d

    def effect(self, k: float, s: float = 1) -> np.ndarray:
        """What k times the gradient changes in the step, whatever the parameter's sign."""
        u = self.single
        e: np.ndarray = (u[s, k] + u[-s, k] - u[s, 0] - u[-s, 0]) / 2
        return e

    def noise(self, k: float) -> float:
        """The rounding error of steps with gradients up to k."""
        return 100 * self.eps * (norm(self.p) + sum(norm(self.u[s, at]) for s, at in self.u if at <= k))

    def same(self, a: np.ndarray, b: Any, k: float = 0, tolerance: float = ALIKE) -> bool:
        """Whether two odd parts agree within rounding."""
        return norm(a - b) <= tolerance * max(norm(a), norm(b)) + self.noise(k)


class Reading(NamedTuple):
    """The responses of every leaf at one step of a run."""

    leaves: list[Responses]
    geometric: bool  # whether the states that the probes started from are exact


def starts(harness: Harness, step: int | None) -> Start:
    """The states that probes start from: the harness's, with what `step` such steps leave in it."""
    if step and any(harness.counts) and not harness.given:
        return lambda s, k: clock.advance(harness, step, s, k)
    return lambda s, k: Advanced(harness.scaled(s), True)


def probe(harness: Harness, step: int | None) -> Reading:
    """Runs the probes at the step of the harness's state."""
    start, unpaired = starts(harness, step), harness.probes.unpaired
    single, mean, ends, geometric = {}, {}, {}, True
    for s, k in POINTS:
        begin = start(s, k)
        single[s, k] = result = harness.step(s, k, begin.state)
        mean[s, k] = harness.mean(s, k, begin.state) if unpaired else result.updates
        ends[s, k] = result.state
        geometric &= begin.geometric
    states = [_without_copies(harness, ends[s, 0]) for s in (1, -1)]
    later = []
    for _ in range(2):
        plus, minus = (harness.step(0, 0, state) for state in states)
        states = [plus.state, minus.state]
        later.append(odd_parts(plus.updates, minus.updates))
    leaves = [
        Responses(
            sample(p),
            sample(g),
            {at: u[i] for at, u in mean.items()},
            {at: x.updates[i] for at, x in single.items()},
            {at: float(x.norms[i]) for at, x in single.items()},
            [odd[i] for odd in later],
            harness.eps,
        )
        for i, (p, g) in enumerate(zip(harness.probes.values, harness.probes.gradients, strict=True))
    ]
    return Reading(leaves, geometric)


def _without_copies(harness: Harness, state: optax.OptState) -> optax.OptState:
    """A state with zeros in place of its copies of the parameters, for a step from p = 0."""
    leaves, treedef = jax.tree.flatten(state)
    zeroed = [np.zeros_like(x) if copy else x for x, copy in zip(leaves, harness.copies, strict=True)]
    return jax.tree.unflatten(treedef, zeroed)
