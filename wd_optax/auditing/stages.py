"""The decaying stages of a chain, told apart by measuring each alone.

`optax.chain` keeps its stages in the closure of its `update`. Each is run from p and from −p with zeros going in:
what comes out differently is its own decay. `MultiSteps` is looked into; decays that stand inside another wrapper
(`partition`, `inject_hyperparams`, a custom one) can't be told apart.
"""

import inspect
from typing import Any

import jax
import optax

from wd_optax.auditing import probes
from wd_optax.auditing.bench import Bench, precision
from wd_optax.auditing.facts import fraction

Stage = tuple[Any, Any]  # update, state


def flatten(update: Any, state: Any) -> list[Stage]:
    """The stages of an optimizer's `update`, nested chains flattened, each with its state."""
    owner = getattr(update, "__self__", None)
    if isinstance(owner, optax.MultiSteps):
        return flatten(owner.inner_opt.update, state.inner_opt_state)
    if not inspect.isfunction(update) or not update.__module__.startswith("optax"):
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
        run = lambda stage, s: _run(stage, bench.subject.small, bench.gradients(0), bench.params(s))
        for one, other in zip(here, mirrored, strict=True):
            plus, minus = run(one, 1), run(other, -1)
            for i, (a, b) in enumerate(zip(jax.tree.leaves(plus), jax.tree.leaves(minus), strict=True)):
                rate = fraction((probes.sample(a) - probes.sample(b)) / 2, samples[i])
                if abs(rate) > 1e4 * bench.eps:
                    found[i].append(abs(rate))
    return found


def _run(stage: Stage, eager: bool, updates: Any, params: Any) -> Any:
    """One stage on its own; one that needs what isn't here passes its updates on."""
    step = lambda u, state, p: stage[0](u, state, p)[0]
    try:
        return (step if eager else jax.jit(step))(updates, stage[1], params)
    except Exception:
        return updates
