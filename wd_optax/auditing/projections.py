"""Weights that every step puts back on a sphere or into a bounded set, and the decay that this undoes.

The norm after the step from s·p is the same

    for all s          on a sphere
    for large s only   in a bounded set

A set that isn't bounded is seen where it is one side of zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing.chain_closures import Stage, stages_of
from wd_optax.auditing.harness import Harness, numerics
from wd_optax.auditing.measurements import ALIKE, HARD, Measurements
from wd_optax.auditing.probes import sample
from wd_optax.auditing.vectors import norm, removed_fraction, to_host
from wd_optax.watching import Decay, watch_decays

NAMES = ("project", "hyperball")  # of the decays of ours that are projections
LARGE_SCALE = 2.0**10
SAME_NORM = 1e-2  # relative


def is_projection(decay: Decay) -> bool:
    """Whether it puts weights into a set, and takes no fraction of them."""
    return decay.prox is not None and decay.name in NAMES


def mark_projected(harness: Harness, decays: list[Decay], measured: list[Measurements]) -> list[Measurements]:
    """Marks the leaves that every step puts on a sphere or into a set, with what they lose before."""
    if not any(map(is_projection, decays)):
        return measured
    small, large, larger = (harness.norms_after(s, 1) for s in (1 / LARGE_SCALE, LARGE_SCALE, 2 * LARGE_SCALE))
    before = _removed_before(harness)
    marked = []
    for i, (m, p) in enumerate(zip(measured, harness.probes.values, strict=True)):
        inexact = jnp.issubdtype(p.dtype, jnp.inexact)
        bounded = inexact and abs(larger[i] - large[i]) <= SAME_NORM * large[i] < LARGE_SCALE * norm(p) / 2
        on_sphere = abs(small[i] - large[i]) <= SAME_NORM * large[i]
        word = "sphere" if bounded and on_sphere else "set" if bounded or m.one_sided else ""
        marked.append(m._replace(projected=word, undone=before[i] if word == "sphere" else 0.0))
    return marked


def _removed_before(harness: Harness) -> list[float]:
    """What the stages before the projection take off each leaf, at any gradient, as a fraction of it; else 0."""
    nothing = [0.0] * len(harness.probes.parameters)
    with numerics(harness.float64):
        plus, minus = (stages_of(harness.optimizer.update, harness.scaled(s)) for s in (1, -1))
        n = next((n for n, stage in enumerate(plus) if projects(harness, stage)), 0)
        try:
            odd = [
                [
                    (a - b) / 2
                    for a, b in zip(_run(harness, plus[:n], 1, k), _run(harness, minus[:n], -1, k), strict=True)
                ]
                for k in (1, HARD)
            ]
        except Exception:  # a stage needs extra arguments
            return nothing
    found = []
    for p, *both in zip(map(sample, harness.probes.values), *odd, strict=True):
        c = removed_fraction(both[0], p)
        clear = 1e-9 < c < 1 and all(norm(d + c * p) <= ALIKE * HARD * c * norm(p) for d in both)
        found.append(c if clear else 0.0)
    return found


def projects(harness: Harness, stage: Stage) -> bool:
    """Whether one stage of a chain projects."""
    with watch_decays() as decays:
        try:
            jax.eval_shape(stage.update, harness.trees.gradients(1), stage.state, harness.trees.params(1))
        except Exception:  # it needs extra arguments
            return False
    return any(map(is_projection, decays))


def _run(harness: Harness, stages: list[Stage], s: float, k: float) -> list[np.ndarray]:
    """The updates after some stages, from s·p."""
    updates: optax.Updates = harness.trees.gradients(k)
    for stage in stages:
        updates = stage.update(updates, stage.state, harness.trees.params(s))[0]
    return [*map(sample, to_host(updates))]
