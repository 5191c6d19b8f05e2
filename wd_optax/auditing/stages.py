"""The decaying stages of a chain, told apart by measuring each alone.

`optax.chain` keeps its stages in the closure of its `update`. Each is run from p and from −p with zeros going in:
what comes out differently is its own decay. `MultiSteps` is looked into; decays that stand inside another wrapper
(`partition`, `inject_hyperparams`, a custom one) can't be told apart.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax import roles
from wd_optax.auditing import probes
from wd_optax.auditing.bench import Bench, fraction, precision

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


def rates(bench: Bench) -> list[list[float]]:
    """Per leaf the λ of every decaying stage of a chain, as it leaves the stage; none where there is no chain."""
    found: list[list[float]] = [[] for _ in bench.subject.found]
    samples = [probes.sample(p) for p in bench.subject.values]
    with precision(bench.wide):
        here, mirrored = (flatten(bench.optimizer.update, bench.scaled(s)) for s in (1, -1))
        if len(here) < 2:
            return found
        for (update, one), (_, other) in zip(here, mirrored, strict=True):
            run = _runner(update, bench)
            pair = zip(jax.tree.leaves(run(one, 1)), jax.tree.leaves(run(other, -1)), samples, strict=True)
            for i, (a, b, p) in enumerate(pair):
                rate = fraction((probes.sample(a) - probes.sample(b)) / 2, p)
                if abs(rate) > 1e4 * bench.eps:
                    found[i].append(abs(rate))
    return found


def _runner(update: Any, bench: Bench) -> Any:
    """One stage on its own, with a zero gradient; one that needs what isn't here passes its updates on."""
    step = lambda u, state, p: update(u, state, p)[0]
    step = jax.jit(step) if bench.compiled else step
    gradients = bench.gradients(0)

    def run(state: Any, s: float) -> Any:
        try:
            return step(gradients, state, bench.params(s))
        except Exception:
            return gradients

    return run


def branches(bench: Bench) -> list[str | None]:
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
