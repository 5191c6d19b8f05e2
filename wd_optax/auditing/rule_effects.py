"""What a decay rule or a penalty (`rule=`, `penalty=`) does to the decay, measured by setting λ in the state to zero.

The difference d(s, k) of the steps from s·p with λ and without it is the decay alone, entry by entry. A gate makes
some entries of d(s, k) zero and leaves the others as they are at a zero gradient, d(s, 0).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax.auditing.ablations import LAMBDAS
from wd_optax.auditing.harness import Harness, numerics
from wd_optax.auditing.measurements import HARD, Measurements
from wd_optax.auditing.probes import sample
from wd_optax.auditing.update_call import UpdateCall
from wd_optax.core import DecayState
from wd_optax.prox.steps import penalty_name
from wd_optax.watching import Decay, watch_decays

CLEAR = 1e-6  # relative


def rule_effects(harness: Harness, measured: list[Measurements]) -> list[Measurements]:
    """Marks leaves whose decay is gated, and those whose λ cancels, if the optimizer has a rule or a penalty.

    Without either, a decay that depends on the gradient of each entry has passed a preconditioner, where λ cancels. A
    rule may look at the gradient, too, and a penalty's metric does, so that λ has to be changed to distinguish them.
    """
    decays = _decays(harness)
    penalties = [decay for decay in decays if decay.prox is not None]
    if penalties:
        penalty = penalties[0]
        measured = [m._replace(penalty=penalty_name(penalty.prox), metric=penalty.metric is not None) for m in measured]
        return [m._replace(has_rule=True) for m in measured]
    if not any(decay.rule is not None for decay in decays):
        return measured
    without, doubled = (harness.edit_scalars(LAMBDAS, change) for change in (jnp.zeros_like, lambda x: 2 * x))
    if without is None or doubled is None:
        return [m._replace(has_rule=True) for m in measured]
    rest, twice = (dataclasses.replace(harness, edit=edit).removed() for edit in (without, doubled))
    gated = _gated(harness, dataclasses.replace(harness, edit=without))
    filled = []
    for i, m in enumerate(measured):
        responds = abs(rest[i]) <= CLEAR * abs(m.first_step)  # not if a schedule of λ overwrites the edit
        cancels = responds and abs(twice[i]) < 1.1 * abs(m.first_step)
        filled.append(m._replace(has_rule=True, lambda_cancels=bool(cancels), gated=m.gated or gated[i]))
    return filled


def _decays(harness: Harness) -> list[Decay]:
    """The decays of ours. A rule or a penalty without arrays shows in no state, but where the update is traced."""
    if not any(map(_is_decay, jax.tree.leaves(harness.state, is_leaf=_is_decay))):
        return []
    with numerics(harness.float64), watch_decays() as decays:
        params, gradients = harness.trees.params(1), harness.trees.gradients(1)
        update = UpdateCall(harness.optimizer, harness.extra_args, compiled=False)  # a compiled one is traced once
        jax.eval_shape(update, gradients, harness.state, params)
    return decays


def _is_decay(node: Any) -> bool:
    return isinstance(node, DecayState)


def _gated(harness: Harness, without: Harness) -> list[bool]:
    """Per leaf whether a gradient switches the decay of some entries off and leaves that of others as it is."""
    gated = [False] * len(harness.probes.parameters)
    mixed = list(gated)
    for s in (1, -1):
        calm = _decay(harness, without, s, 0)
        for k in (1, HARD):
            driven = _decay(harness, without, s, k)
            for i, ((d0, noise), (d, _)) in enumerate(zip(calm, driven, strict=True)):
                clear = np.abs(d0) > 1e6 * noise  # an entry at its anchor has no decay
                q = d[clear] / d0[clear]
                off, on = np.abs(q) <= CLEAR, np.abs(q - 1) <= CLEAR
                mixed[i] |= not bool(np.all(off | on))
                gated[i] |= bool(np.any(off) and np.any(on))
    return [some and not other for some, other in zip(gated, mixed, strict=True)]


def _decay(harness: Harness, without: Harness, s: float, k: float) -> list[tuple[np.ndarray, float]]:
    """Per leaf the decay in a step, and the rounding error of an entry."""
    found = []
    for a, b, p in zip(harness.step(s, k).updates, without.step(s, k).updates, harness.probes.values, strict=True):
        size = max(float(np.max(np.abs(x), initial=0)) for x in (a, sample(p)))
        found.append((a - b, harness.eps * size))
    return found
