"""What a decay rule or a penalty (`rule=`, `penalty=`) does to the decay, measured by setting λ in the state to zero.

The difference d(s, k) of the steps from s·p with λ and without it is the decay alone, entry by entry. A gate makes
some entries of d(s, k) zero and leaves the others as they are at the gradients that let them pass.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from wd_optax.auditing.ablations import LAMBDAS
from wd_optax.auditing.harness import Harness
from wd_optax.auditing.measurements import HARD, Measurements
from wd_optax.auditing.norms import mark_constrained
from wd_optax.auditing.probes import sample
from wd_optax.auditing.projections import is_projection, mark_projected
from wd_optax.core import DecayState
from wd_optax.prox.steps import penalty_name
from wd_optax.watching import Decay

CLEAR = 1e-6  # relative


def rule_effects(harness: Harness, measured: list[Measurements]) -> list[Measurements]:
    """Marks leaves whose decay is gated, and those whose λ cancels, if the optimizer has a rule or a penalty.

    Without either, a decay that depends on the gradient of each entry has passed a preconditioner, where λ cancels. A
    rule may look at the gradient, too, and a penalty's metric does, so that λ has to be changed to distinguish them.
    """
    decays = decays_of(harness)
    measured = mark_projected(harness, decays, measured)
    decays = [decay for decay in decays if not is_projection(decay)]
    penalties = [decay for decay in decays if decay.prox is not None]
    if penalties:
        penalty = penalties[0]
        measured = [m._replace(penalty=penalty_name(penalty.prox), metric=penalty.metric is not None) for m in measured]
        return [m._replace(has_rule=True) for m in measured]
    if not any(decay.rule is not None for decay in decays):
        return measured
    measured = mark_constrained(harness, measured)
    without, doubled = (harness.edit_scalars(LAMBDAS, change) for change in (np.zeros_like, lambda x: 2 * x))
    if without is None or doubled is None:
        return [m._replace(has_rule=True) for m in measured]
    rest, twice = (dataclasses.replace(harness, edit=edit).removed() for edit in (without, doubled))
    gated = _gated(harness, dataclasses.replace(harness, edit=without))
    catches = _catches_up(harness, measured)
    filled = []
    for i, m in enumerate(measured):
        responds = abs(rest[i]) <= CLEAR * abs(m.first_step)  # not if a schedule of λ overwrites the edit
        cancels = responds and abs(twice[i]) < 1.1 * abs(m.first_step)
        m = m._replace(has_rule=True, lambda_cancels=bool(cancels), gated=m.gated or gated[i])
        filled.append(m._replace(catches_up=catches[i] and not m.gated))
    return filled


def decays_of(harness: Harness) -> list[Decay]:
    """The decays of ours. A rule or a penalty without arrays shows in no state, but where the update is traced."""
    if not any(map(_is_decay, jax.tree.leaves(harness.state, is_leaf=_is_decay))):
        return []
    return harness.update.decays


def _is_decay(node: Any) -> bool:
    return isinstance(node, DecayState)


def _gated(harness: Harness, without: Harness) -> list[bool]:
    """Per leaf whether a gradient switches the decay of some entries off and leaves that of others as it is."""
    gated = [False] * len(harness.probes.parameters)
    mixed = list(gated)
    for s in (1, -1):
        steps = [_decay(harness, without, s, k) for k in (0, 1, -1, HARD)]
        for i, leaf in enumerate(zip(*steps, strict=True)):
            d, clear = np.stack([x for x, _ in leaf]), np.stack([np.abs(x) > 1e6 * noise for x, noise in leaf])
            open_ = d[np.argmax(np.abs(d), axis=0), np.arange(d.shape[1])]  # of each entry, at any gradient
            some = clear.any(axis=0)  # an entry at its anchor has no decay
            q = d[:, some] / open_[some]
            off, on = np.abs(q) <= CLEAR, np.abs(q - 1) <= CLEAR
            mixed[i] |= not bool(np.all(off | on))
            gated[i] |= bool(np.any(off.any(axis=1) & on.any(axis=1)))
    return [some and not other for some, other in zip(gated, mixed, strict=True)]


def _decay(harness: Harness, without: Harness, s: float, k: float) -> list[tuple[np.ndarray, float]]:
    """Per leaf the decay in a step, and the rounding error of an entry."""
    found = []
    for a, b, p in zip(harness.step(s, k).updates, without.step(s, k).updates, harness.probes.values, strict=True):
        size = max(float(np.max(np.abs(x), initial=0)) for x in (a, sample(p)))
        found.append(((a - b).ravel(), harness.eps * size))
    return found


def _catches_up(harness: Harness, measured: list[Measurements]) -> list[bool]:
    """Per leaf whether a step with a gradient removes twice as much after one without, which removes nothing."""
    if not any(m.decays and m.steady and not m.without_gradient for m in measured):
        return [False] * len(measured)
    plus, minus = (harness.step(s, 0).state for s in (1, -1))
    late, now = harness.removed(1, (plus, minus)), harness.removed(1)
    return [
        m.decays and m.steady and not m.without_gradient and abs(a - 2 * b) <= 0.1 * abs(b)
        for m, a, b in zip(measured, late, now, strict=True)
    ]
