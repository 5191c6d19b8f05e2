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

from wd_optax.auditing import compiling
from wd_optax.auditing.chain_closures import Stage, stages_of
from wd_optax.auditing.harness import Harness, numerics
from wd_optax.auditing.probes import sample
from wd_optax.auditing.projections import projects
from wd_optax.auditing.vectors import removed_fraction, to_host
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
        pairs = [pair for pair in zip(plus, minus, strict=True) if not projects(harness, pair[0])]
        plus, minus = ([pair[i] for pair in pairs] for i in (0, 1))
        run = _runner(harness, plus)
        driven: list[Any] = []
        for n, calm in enumerate(zip(run(plus, 1, 0), run(minus, -1, 0), strict=True)):
            both = zip(*calm, strict=True)
            removed = [removed_fraction((a - b) / 2, p) for (a, b), (p, _) in zip(both, probes, strict=True)]
            decaying = [i for i, rate in enumerate(removed) if abs(rate) > 1e4 * harness.eps]
            if decaying and not driven:
                driven = [*zip(run(plus, 1, 1), run(minus, -1, 1), strict=True)]
            for i in decaying:
                a, b = (steps[i] for steps in driven[n])
                passed = -removed_fraction((a + b) / 2, probes[i][1])  # the fraction of the gradient
                found[i].append(abs(removed[i]) if 0.5 < passed < 2 else math.nan)
    return found


def _runner(harness: Harness, stages: list[Stage]) -> Callable[[list[Stage], float, float], list[list[np.ndarray]]]:
    """Runs each of these stages alone, from s·p with k times the gradients, at its state in the stages it is called on.

    A stage that needs other inputs returns the gradients unchanged.
    """

    def update(gradients: optax.Updates, states: list[optax.OptState], params: optax.Params) -> list[optax.Updates]:
        updates = []
        for stage, state in zip(stages, states, strict=True):
            try:
                updates.append(stage.update(gradients, state, params)[0])
            except Exception:
                updates.append(gradients)
        return updates

    entries = harness.update.entries
    program = update if entries is None else compiling.jit(update, entries)

    def run(at: list[Stage], s: float, k: float) -> list[list[np.ndarray]]:
        args = harness.trees.gradients(k), [stage.state for stage in at], harness.trees.params(s)
        try:
            updates = program(*args)
        except Exception:  # a state can't be passed to a program
            updates = update(*args)
        return [[*map(sample, to_host(tree))] for tree in updates]

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
