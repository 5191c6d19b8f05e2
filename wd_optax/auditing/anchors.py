"""What weights decay toward: zero, or a copy of parameters that the state holds."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from wd_optax.auditing import clock
from wd_optax.auditing.harness import Harness
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.probes import sample
from wd_optax.auditing.vectors import norm

WARM_STEPS = (30, 300, 3000)  # steps at which a warm-up from 0 may be over
EQUAL = 1e-6  # relative


def hold_anchors(harness: Harness) -> Harness:
    """Detects anchors, and no longer scales them with the parameters.

    A state leaf that copies the parameters and never changes is either an anchor or an initial point. It is an anchor
    if decay is visible only when the copy is held fixed while the parameters are scaled.
    """
    trees = _trees_of_leaves(harness)
    moving = set()
    for variant in _at_several_steps(harness):
        before, after = (jax.tree.leaves(state) for state in (variant.scaled(1), variant.step(1, 1).state))
        for tree, a, b, copy in zip(trees, before, after, harness.copies, strict=True):
            if copy and not _stays(np.asarray(a), np.asarray(b), 8 * harness.eps):
                moving.add(tree)
    held = tuple(copy and tree in moving for copy, tree in zip(harness.copies, trees, strict=True))
    if held == harness.copies:
        return harness
    for variant in _at_several_steps(harness):
        only_if_held = (_distances(dataclasses.replace(variant, copies=held)) > 0) & (_distances(variant) == 0)
        if np.any(only_if_held):
            anchors = tuple(
                i for i, (copy, now) in enumerate(zip(harness.copies, held, strict=True)) if copy and not now
            )
            return dataclasses.replace(harness, copies=held, anchors=anchors)
    return harness


def _stays(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether a step left a copy as it was; an average of equal values moves by rounding."""
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= tolerance * np.abs(a)))


def _trees_of_leaves(harness: Harness) -> list[object]:
    """Per leaf of the state the path of the tree of parameters that it belongs to: its own without a parameter's."""
    ends = [path for path, _ in jax.tree_util.tree_flatten_with_path(harness.trees.params(1))[0]]
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(harness.state)[0]]
    return [next((path[: -len(end)] for end in ends if end and path[-len(end) :] == end), path) for path in paths]


def _at_several_steps(harness: Harness) -> Iterator[Harness]:
    yield harness
    if any(harness.counts):
        yield from (clock.at_step(harness, step) for step in WARM_STEPS)


def _distances(harness: Harness) -> np.ndarray:
    """Per leaf the distance between the steps from p and −p without a gradient; 0 within rounding."""
    plus, minus = harness.step(1, 0), harness.step(-1, 0)
    distances = np.array([norm(a - b) for a, b in zip(plus.updates, minus.updates, strict=True)])
    sizes = np.array([norm(sample(p)) for p in harness.probes.values])
    return np.where(distances > 1e4 * harness.eps * (sizes + plus.norms), distances, 0.0)


def find_targets(harness: Harness, measured: list[Measurements]) -> list[str]:
    """What each leaf decays toward; "" without decay, or if a rule moves it from zero to an unknown place.

    "init" and "tree" (any other values) are anchors that the state holds; one that a step changes is "moving".
    """
    from_zero = harness.step(0, 0).updates
    held, before = (jax.tree.leaves(harness.scaled(s)) for s in (0, -1))
    after = jax.tree.leaves(harness.step(-1, 1).state)
    words = []
    for m, u, p in zip(measured, from_zero, harness.probes.values, strict=True):
        if m.constrained or m.projected == "sphere":
            words.append("norm")
            continue
        word = "zero" if m.decays else ""
        if m.decays and norm(u) > 1e-9 * abs(m.first_step) * norm(sample(p)):
            word = "" if m.has_rule else "zero"
            for x, old, new in zip(held, before, after, strict=True):
                a = sample(x) if np.shape(x) == np.shape(p) else np.zeros(())
                if norm(a) and norm(u - m.first_step * a) <= EQUAL * norm(u):  # the step from 0 is c·a
                    moves = np.any(sample(old) != sample(new))
                    word = "moving" if moves else "init" if np.allclose(a, sample(p)) else "tree"
        words.append(word)
    return words
