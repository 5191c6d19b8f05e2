"""The decaying stages of a chain, told apart by measuring each alone.

`optax.chain` keeps its stages in the closure of its `update`. Each is run from p and from −p with zeros going in:
what comes out differently is its own decay. `MultiSteps` is looked into; decays that stand inside another wrapper
(`partition`, `inject_hyperparams`, a custom one) can't be told apart.
"""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.auditing import probes
from wd_optax.auditing.harness import Harness, fraction, precision
from wd_optax.masking import roles

Stage = tuple[Any, Any]  # update, state


def flatten(update: Any, state: Any) -> list[Stage]:
    """The stages of an optimizer's `update`, nested chains flattened, each with its state."""
    owner = getattr(update, "__self__", None)
    if isinstance(owner, optax.MultiSteps):
        return flatten(owner.inner_opt.update, state.inner_opt_state)
    if not inspect.isfunction(update) or not (update.__module__ or "").startswith("optax"):
        return [(update, state)]
    inside = inspect.getclosurevars(update).nonlocals
    if update.__qualname__.startswith("chain.") and len(inside["update_fns"]) == len(state):
        return [stage for pair in zip(inside["update_fns"], state, strict=True) for stage in flatten(*pair)]
    if update.__qualname__.startswith("with_extra_args_support.") and "tx" in inside:
        return flatten(inside["tx"].update, state)
    return [(update, state)]


def rates(bench: Harness) -> list[list[float]]:
    """Per leaf the λ of every decaying stage of a chain, as it leaves the stage; none where there is no chain.

    NaN for a stage that does more than add λ·p, such as an optimizer inside a mask or a partition: what it removes
    contains its learning rate.
    """
    found: list[list[float]] = [[] for _ in bench.subject.found]
    samples = [probes.sample(p) for p in bench.subject.values]
    gradients = [probes.sample(g) for g in bench.subject.gradients]
    with precision(bench.wide):
        here, mirrored = (flatten(bench.optimizer.update, bench.scaled(s)) for s in (1, -1))
        if len(here) < 2:
            return found
        for (update, one), (_, other) in zip(here, mirrored, strict=True):
            run = _runner(update, bench)
            pairs = lambda k, run=run, one=one, other=other: zip(run(one, 1, k), run(other, -1, k), strict=True)
            removed = [fraction((a - b) / 2, p) for (a, b), p in zip(pairs(0), samples, strict=True)]
            decaying = [i for i, rate in enumerate(removed) if abs(rate) > 1e4 * bench.eps]
            driven = list(pairs(1)) if decaying else []
            for i in decaying:
                a, b = driven[i]
                passed = -fraction((a + b) / 2, gradients[i])  # of the gradient
                found[i].append(abs(removed[i]) if 0.5 < passed < 2 else math.nan)
    return found


def _runner(update: Any, bench: Harness) -> Any:
    """One stage alone, with k times the gradients, from s·p; one that needs what isn't here passes its updates on."""
    step = lambda u, state, p: update(u, state, p)[0]
    step = jax.jit(step) if bench.compiled else step

    def run(state: Any, s: float, k: float) -> list[Any]:
        gradients = bench.gradients(k)
        try:
            updates = step(gradients, state, bench.params(s))
        except Exception:
            updates = gradients
        return [probes.sample(u) for u in jax.tree.leaves(updates)]

    return run


def branches(bench: Harness) -> list[str | None]:
    """The label of each leaf in an `optax.partition`: a branch keeps moments of its own leaves only."""
    holds = lambda node: isinstance(getattr(node, "inner_states", None), dict)
    label: dict[str, str] = {}
    for node in filter(holds, jax.tree.leaves(bench.state, is_leaf=holds)):
        for name, inner in node.inner_states.items():
            ends = [path for path, leaf in roles.flatten(inner)[0] if jnp.shape(leaf)]
            for p in bench.subject.found:
                if any(end == p.path or end.endswith("/" + p.path) for end in ends):
                    label[p.path] = str(name)
    return [label.get(p.path) for p in bench.subject.found]
