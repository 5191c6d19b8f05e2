"""Decay that goes by a weight's norm: toward a value, or down to a bound.

D(s) is the odd part of the step from s·p without a gradient.

    D(s) = −c·(s − ρ)·p, with ρ > 0, one for each weight    toward the norm ρ·‖p‖
    D(s) = 0 for a small s, and toward zero for a large     constrained: the norm has a bound
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing.harness import Harness
from wd_optax.auditing.measurements import ALIKE, Measurements
from wd_optax.auditing.probes import sample
from wd_optax.auditing.vectors import norm, removed_fraction
from wd_optax.rules.constrained import ConstraintState

EXTREME_SCALE = 2.0**20  # far above any bound, and its inverse far below


class NormPull(NamedTuple):
    """A decay of one leaf toward a norm."""

    rate: float  # c
    ratio: float  # ρ, the mean over the entries, weighted by |p|²
    largest: float  # the largest ρ


def find_pulls(harness: Harness, measured: list[Measurements]) -> list[NormPull | None]:
    """The leaves that decay toward a norm."""
    candidates = [i for i, m in enumerate(measured) if m.finite and not m.linear and not m.projected]
    pulls: list[NormPull | None] = [None] * len(measured)
    if candidates:
        odd = [_odd(harness, s) for s in (1, 2, 4)]
        for i in candidates:
            pulls[i] = _pull(sample(harness.probes.values[i]), *(d[i] for d in odd))
    return pulls


def _pull(p: np.ndarray, one: np.ndarray, two: np.ndarray, four: np.ndarray) -> NormPull | None:
    slope = two - one
    c = removed_fraction(slope, p)
    tolerance = ALIKE * abs(c) * norm(p)
    if not 0 < c < 1 or norm(slope + c * p) > tolerance or norm(four - two - 2 * slope) > 4 * tolerance:
        return None
    ratios = np.real((one + c * p) / (c * p))
    few = len({f"{x:.6g}" for x in ratios.ravel()})  # one for each weight of the leaf, and none for each entry
    if not (ratios > ALIKE).all() or (few > 1 and 2 * few >= p.size):
        return None
    weights = np.abs(p) ** 2 / norm(p) ** 2
    return NormPull(c, float(np.sum(weights * ratios)), float(ratios.max()))


def move_away(harness: Harness, pulls: list[NormPull | None]) -> tuple[Harness, np.ndarray]:
    """The harness with larger probes, where a decay toward a norm shows, and what its rates there are multiplied by."""
    s = 2 * max(1.0, *(pull.largest for pull in pulls if pull))
    return harness.enlarged(s), np.array([1 / (1 - pull.ratio / s) if pull else 1.0 for pull in pulls])


def mark_constrained(harness: Harness, measured: list[Measurements]) -> list[Measurements]:
    """Marks the leaves whose norm has a bound, also if it is set only later in the run."""
    bounded = any(map(_is_constraint, jax.tree.leaves(harness.state, is_leaf=_is_constraint)))
    if not bounded and all(m.linear or m.projected for m in measured):
        return measured
    now = dataclasses.replace(harness, edit=_with_a_bound) if bounded else harness
    low, high, unset = _odd(now, 1 / EXTREME_SCALE), _odd(now, EXTREME_SCALE), _odd(harness, EXTREME_SCALE)
    marked = []
    for m, p, a, b, c in zip(measured, map(sample, harness.probes.values), low, high, unset, strict=True):
        is_bound = (
            norm(a) <= ALIKE * norm(p) / EXTREME_SCALE and ALIKE < removed_fraction(b, p) / EXTREME_SCALE <= 1 + ALIKE
        )
        later = norm(c) <= ALIKE * norm(p) * EXTREME_SCALE
        marked.append(m._replace(constrained="later" if later else "now") if is_bound and not m.projected else m)
    return marked


def _odd(harness: Harness, s: float) -> list[np.ndarray]:
    plus, minus = harness.step(s, 0).updates, harness.step(-s, 0).updates
    return [(a - b) / 2 for a, b in zip(plus, minus, strict=True)]


def _is_constraint(node: Any) -> bool:
    return isinstance(node, ConstraintState)


def _with_a_bound(state: optax.OptState) -> optax.OptState:
    """The state with multipliers of 0, and bounds where there are none yet."""

    def edit(node: Any) -> Any:
        if not _is_constraint(node):
            return node
        kappa = jax.tree.map(lambda x: jnp.where(jnp.isinf(x), jnp.ones_like(x), x), node.kappa)
        return node._replace(lagrange=jax.tree.map(jnp.zeros_like, node.lagrange), kappa=kappa)

    return jax.tree.map(edit, state, is_leaf=_is_constraint)
