"""The decay of each stage of a chain, and the branch of each leaf in an `optax.partition`.

Each stage is run alone from p and from −p with zero updates as its input; the difference is its own decay. Several
decays inside one wrapper (`partition`, `inject_hyperparams`, a custom one) can't be distinguished.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing.chain_closures import Stage, stages_of
from wd_optax.auditing.harness import Harness, numerics
from wd_optax.auditing.probes import sample
from wd_optax.auditing.projections import projects
from wd_optax.auditing.vectors import removed_fraction
from wd_optax.masking import roles


def decay_rates(harness: Harness) -> list[list[float]]:
    """Per leaf the λ of every decaying stage of a chain, as it leaves the stage; empty where there is no chain.

    NaN stands for a stage that does more than add λ·p, such as an optimizer in a mask or a partition: its decay
    includes a learning rate.
    """
    found: list[list[float]] = [[] for _ in harness.probes.parameters]
    samples, gradients = map(sample, harness.probes.values), map(sample, harness.probes.gradients)
    probes = [*zip(samples, gradients, strict=True)]
    with numerics(harness.float64):
        plus, minus = (stages_of(harness.optimizer.update, harness.scaled(s)) for s in (1, -1))
        if len(plus) < 2:
            return found
        for one, other in zip(plus, minus, strict=True):
            if projects(harness, one):
                continue
            run = _runner(harness, one)
            calm = zip(run(one.state, 1, 0), run(other.state, -1, 0), strict=True)
            removed = [removed_fraction((a - b) / 2, p) for (a, b), (p, _) in zip(calm, probes, strict=True)]
            decaying = [i for i, rate in enumerate(removed) if abs(rate) > 1e4 * harness.eps]
            driven = [*zip(run(one.state, 1, 1), run(other.state, -1, 1), strict=True)] if decaying else []
            for i in decaying:
                a, b = driven[i]
                passed = -removed_fraction((a + b) / 2, probes[i][1])  # the fraction of the gradient
                found[i].append(abs(removed[i]) if 0.5 < passed < 2 else math.nan)
    return found


def _runner(harness: Harness, stage: Stage) -> Callable[[optax.OptState, float, float], list[np.ndarray]]:
    """Runs one stage alone, from s·p with k times the gradients; one that needs other inputs returns them unchanged."""

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params) -> Any:
        return stage.update(updates, state, params)[0]

    call = jax.jit(update) if harness.update.compiled else update

    def run(state: optax.OptState, s: float, k: float) -> list[np.ndarray]:
        gradients = harness.trees.gradients(k)
        try:
            updates = call(gradients, state, harness.trees.params(s))
        except Exception:
            updates = gradients
        return [*map(sample, jax.tree.leaves(updates))]

    return run


def branches(harness: Harness) -> list[str | None]:
    """The label of each leaf in an `optax.partition`, whose branches keep moments of their own leaves only."""

    def is_partition(node: Any) -> bool:
        return isinstance(getattr(node, "inner_states", None), dict)

    label: dict[str, str] = {}
    for node in filter(is_partition, jax.tree.leaves(harness.state, is_leaf=is_partition)):
        for name, inner in node.inner_states.items():
            ends = [path for path, leaf in roles.flatten(inner)[0] if jnp.shape(leaf)]
            for p in harness.probes.parameters:
                if any(end == p.path or end.endswith("/" + p.path) for end in ends):
                    label[p.path] = str(name)
    return [label.get(p.path) for p in harness.probes.parameters]
