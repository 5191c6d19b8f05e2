"""Time, on the bench: how many calls make a step, the state at any step of a run, and the anchors that stay.

After n steps of one gradient a buffer b ← r·b + x stands at b₀ + (b₁ − b₀)·(1 − rⁿ)/(1 − r). `at` puts all buffers of
that kind there, entry by entry, with r from three real steps; so the state at step 100 000 costs three.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax.auditing import probes
from wd_optax.auditing.harness import Harness, name_of, precision

COUNTS = ("count", "step", "step_count", "gradient_step")
PATIENCE = 1024  # calls of `update` until a cycle closes
SOME = (30, 300, 3000)  # steps
IDLE = 64  # calls that may move nothing before the optimizer is taken at its word


def set_counts(bench: Harness, state: Any, step: int) -> Any:
    """The state with every step count set."""
    leaves, treedef = jax.tree.flatten(state)
    with precision(bench.wide):
        setting = lambda x, by: jnp.asarray(min(step * by, jnp.iinfo(x.dtype).max), x.dtype) if by else x
        return jax.tree.unflatten(treedef, [*map(setting, leaves, bench.counts)])


def set_named_counts(bench: Harness, state: Any, step: int) -> Any:
    """The same for a bench whose counts haven't been found, by their names."""
    named = _named_counts(bench)
    with bench.trying(counts=[int(i in named) for i in range(len(bench.copies))]):
        return set_counts(bench, state, step)


def at(bench: Harness, step: int, s: float, k: float) -> Any:
    """The state that `step` steps from s·p with k times the probe gradient lead to, the parameters staying."""
    states = [set_counts(bench, bench.scaled(s), step)]
    if not step:
        return states[0]
    for _ in range(3):
        states.append(bench.step(s, k, states[-1]).state)
    return set_counts(bench, _forward(bench, *states, n=step), step)


def _forward(bench: Harness, b0: Any, b1: Any, b2: Any, b3: Any, *, n: int) -> Any:
    """Every geometric buffer at its n-th step, the third as a proof; other buffers after three, and the bench knows."""

    def one(x0: Any, x1: Any, x2: Any, x3: Any, copy: bool) -> Any:
        if (
            copy
            or not hasattr(x0, "dtype")
            or probes.is_key(x0)
            or not jnp.issubdtype(x0.dtype, jnp.inexact)
            or x0.shape != x2.shape
        ):
            return x0
        a0, a1, a2, a3 = (np.asarray(x) for x in (x0, x1, x2, x3))
        with np.errstate(all="ignore"):
            r = np.where(a1 != a0, (a2 - a1) / np.where(a1 != a0, a1 - a0, 1), 0.0)
            r = np.where((np.real(r) >= 0) & (np.real(r) < 1 - 1e-9), r, np.nan)
            after = lambda m: a0 + (a1 - a0) * (1 - r**m) / (1 - r)
            fits = np.abs(after(3) - a3) <= 1e-3 * (np.abs(a3) + np.abs(a2 - a0))
            there = np.where(fits, after(n), a3 if n >= 3 else (a0, a1, a2)[n])
        bench.geometric &= bool(np.all(fits | ~np.isfinite(a3)))
        return jnp.asarray(there, x0.dtype)

    with precision(bench.wide):
        leaves, treedef = jax.tree.flatten(b0)
        rest = (jax.tree.leaves(b) for b in (b1, b2, b3))
        return jax.tree.unflatten(treedef, [*map(one, leaves, *rest, bench.copies)])


def find_period(bench: Harness) -> bool:
    """Finds how many calls of `update` make one real step (MultiSteps, SAM) and what counts steps.

    Returns whether the first step moves anything.
    """
    if not np.isfinite(bench.step(1, 0).norms).all():
        bench.quiet = 1e-6  # Prodigy divides 0 by 0
    begin = old = _integers(bench.state)
    cycle, moves, state = set(begin), [], bench.state
    for call in range(PATIENCE):
        seen = bench.step(1, 1, state)
        state, new = seen.state, _integers(seen.state)
        moves += [call] if seen.norms.any() else []
        reset = [i for i in cycle if i in new and old[i] > new[i] == 0]
        if reset:
            bench.period = call + 1 + begin[reset[0]]
            _finish_cycle(bench, call + 1 if begin[reset[0]] else 0)
            break
        cycle, old = {i for i in cycle if i in new and new[i] == old[i] + 1 and i not in _named_counts(bench)}, new
        if not cycle and (len(moves) == 3 or call >= IDLE):
            break
    if bench.period == 1 and len(moves) == 3 and moves[2] - moves[1] > 1:  # a cycle that no counter shows
        bench.period = moves[2] - moves[1]
    after = _integers(bench.step(1, 1).state)
    raised = {i: after[i] - x for i, x in _integers(bench.state).items() if after.get(i, x) - x in (1, bench.period)}
    bench.counts = [raised.get(i, 0) for i in range(len(bench.copies))]
    return bool(moves) and (bench.period > 1 or moves[0] == 0)


def _integers(state: Any) -> dict[int, int]:
    """The integer scalars of a state, by the place of their leaf."""
    is_integer = lambda x: hasattr(x, "dtype") and x.shape == () and jnp.issubdtype(x.dtype, jnp.integer)
    return {i: int(x) for i, x in enumerate(jax.tree.leaves(state)) if is_integer(x)}


def _named_counts(bench: Harness) -> set[int]:
    """Leaves whose names say that they count all steps: no need to wait for their reset."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(bench.state)[0]]
    return {i for i, path in enumerate(paths) if name_of(path) in COUNTS}


def _finish_cycle(bench: Harness, calls: int) -> None:
    """A state in the middle of a cycle goes on to the beginning of the next."""
    with bench.trying(period=1):
        for _ in range(calls):
            bench.state = bench.step(1, 0).state


def hold_anchors(bench: Harness) -> None:
    """Leaves copies of parameters where they are if they are what the weights decay to.

    Those are copies that steps never change, as starting points are, too; an anchor shows in a decay that is there
    only while it stays.
    """
    where = [path for path, _ in jax.tree_util.tree_flatten_with_path(bench.params(1))[0]]
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(bench.state)[0]]
    trees = [next((path[: -len(p)] for p in where if p and path[-len(p) :] == p), path) for path in paths]
    changed = lambda a, b: np.shape(a) != np.shape(b) or bool(jnp.any(a != b))
    moving = set()
    for _ in _some_steps(bench):
        before, after = (jax.tree.leaves(state) for state in (bench.scaled(1), bench.step(1, 1).state))
        moving |= {t for t, a, b, c in zip(trees, before, after, bench.copies, strict=True) if c and changed(a, b)}
    everything = bench.copies
    held = [copy and tree in moving for copy, tree in zip(everything, trees, strict=True)]
    if held == everything:
        return
    for _ in _some_steps(bench):
        bench.copies = everything
        follows = _pulls(bench)
        bench.copies = held
        if np.any((_pulls(bench) > 0) & (follows == 0)):
            return
    bench.copies = everything


def _some_steps(bench: Harness) -> Iterator[None]:
    """The bench at its own step and at later ones, where a warm-up from 0 is over."""
    for step in (None, *SOME) if any(bench.counts) else (None,):
        state = bench.state if step is None else set_counts(bench, bench.state, step)
        with bench.trying(state=state):
            yield


def _pulls(bench: Harness) -> np.ndarray:
    """How far the steps from p and −p are from one another, per leaf; 0 within rounding."""
    plus, minus = bench.step(1, 0), bench.step(-1, 0)
    pulls = [np.linalg.norm(a - b) for a, b in zip(plus.updates, minus.updates, strict=True)]
    sizes = [np.linalg.norm(probes.sample(p)) for p in bench.subject.values]
    return np.where(np.array(pulls) > 1e4 * bench.eps * (np.array(sizes) + plus.norms), pulls, 0.0)
