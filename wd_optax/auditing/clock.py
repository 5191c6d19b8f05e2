"""Time in an audit: how many calls make a step, what counts steps, and the state at any step of a run.

After n steps of one gradient a buffer b ← r·b + x is b₀ + (b₁ − b₀)·(1 − rⁿ)/(1 − r). `advance` computes this for
every entry, with r from three real steps, so the state at step 100,000 costs three steps.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing.harness import Harness, last_name
from wd_optax.dtypes import is_random_key

COUNTS = ("count", "step", "step_count", "gradient_step")
PATIENCE = 1024  # give up looking for the end of a cycle after this many calls of `update`
JOINED = 2**14  # entries of a buffer: larger ones are computed one by one
IDLE = 64  # give up looking for a non-zero update after this many calls


class Advanced(NamedTuple):
    """A state at a later step."""

    state: optax.OptState
    geometric: bool  # whether all buffers are geometric series, so that the state is exact


def set_counts(harness: Harness, state: optax.OptState, step: int) -> optax.OptState:
    """The state with every step count set, as NumPy arrays, which are quicker to make."""
    leaves, treedef = jax.tree.flatten(state)
    counted = []
    for x, by in zip(leaves, harness.counts, strict=True):
        counted.append(np.asarray(min(step * by, jnp.iinfo(x.dtype).max), x.dtype) if by else x)
    return jax.tree.unflatten(treedef, counted)


def at_step(harness: Harness, step: int) -> Harness:
    """The harness with every step count of its state set."""
    return dataclasses.replace(harness, state=set_counts(harness, harness.state, step))


def at_named_step(harness: Harness, step: int) -> Harness:
    """The same for a harness whose counts haven't been measured: leaves with the name of a count are set."""
    named = _named_counts(harness)
    counts = tuple(int(i in named) for i in range(len(harness.copies)))
    return dataclasses.replace(at_step(dataclasses.replace(harness, counts=counts), step), counts=harness.counts)


def advance(harness: Harness, step: int, s: float, k: float) -> Advanced:
    """The state after `step` steps from s·p with k times the probe gradient, the parameters held fixed."""
    states = [set_counts(harness, harness.scaled(s), step)]
    if not step:
        return Advanced(states[0], True)
    for _ in range(3):
        states.append(harness.after(s, k, states[-1]))
    state, geometric = _extrapolate(harness, states, step)
    return Advanced(set_counts(harness, state, step), geometric)


def _extrapolate(harness: Harness, states: list[optax.OptState], n: int) -> Advanced:
    """Geometric buffers after n steps, from their first four states; other buffers after three steps."""
    first, treedef = jax.tree.flatten(states[0])
    rest = [jax.tree.leaves(state) for state in states[1:]]
    kinds: dict[Any, list[int]] = {}  # small buffers of one type are computed as one array
    for i, (copy, *buffer) in enumerate(zip(harness.copies, first, *rest, strict=True)):
        if not copy and i not in harness.anchors and _is_buffer(buffer):
            kinds.setdefault((buffer[0].dtype, i if buffer[0].size > JOINED else ""), []).append(i)
    geometric = True
    for (dtype, _), where in kinds.items():
        joined = [np.concatenate([np.ravel(leaves[i]) for i in where]) for leaves in (first, *rest)]
        x, fits = _extrapolated(joined, n)
        ends = np.cumsum([np.size(first[i]) for i in where])
        for i, part in zip(where, np.split(x.astype(dtype), ends[:-1]), strict=True):
            first[i] = part.reshape(np.shape(first[i]))
        geometric &= fits
    return Advanced(jax.tree.unflatten(treedef, first), geometric)


def _is_buffer(states: list[Any]) -> bool:
    """Whether a leaf of the state, at several steps, is a floating-point array of one shape."""
    x = states[0]
    if not hasattr(x, "dtype") or is_random_key(x):
        return False
    return jnp.issubdtype(x.dtype, jnp.inexact) and x.shape == states[2].shape


def _extrapolated(states: list[np.ndarray], n: int) -> tuple[np.ndarray, bool]:
    """The buffer after n steps, and whether the fourth state confirms the series of the first three."""
    a0, a1, a2, a3 = states
    with np.errstate(all="ignore"):
        r = np.where(a1 != a0, (a2 - a1) / np.where(a1 != a0, a1 - a0, 1), 0.0)
        r = np.where((np.real(r) >= 0) & (np.real(r) < 1 - 1e-9), r, np.nan)
        third, last = (a0 + (a1 - a0) * (1 - r**m) / (1 - r) for m in (3, n))
        fits = np.abs(third - a3) <= 1e-3 * (np.abs(a3) + np.abs(a2 - a0))
        return np.where(fits, last, a3 if n >= 3 else (a0, a1, a2)[n]), bool(np.all(fits | ~np.isfinite(a3)))


def find_period(harness: Harness) -> Harness:
    """Measures how many calls of `update` make one real step (`MultiSteps`, SAM) and what counts steps."""
    if not np.isfinite(harness.step(1, 0).norms).all():
        harness = dataclasses.replace(harness, least_gradient=1e-6)  # Prodigy computes 0/0 at a zero gradient
    harness = _find_cycle(harness)
    before, after = _integers(harness.state), _integers(harness.step(1, 1).state)
    raised = {i: after[i] - x for i, x in before.items() if after.get(i, x) - x in (1, harness.period)}
    return dataclasses.replace(harness, counts=tuple(raised.get(i, 0) for i in range(len(harness.copies))))


def _find_cycle(harness: Harness) -> Harness:
    """Takes calls until a counter is reset to zero, or until three calls moved the parameters."""
    start = old = _integers(harness.state)
    named = _named_counts(harness)
    cycle, moves, state = set(start), [], harness.state
    for call in range(PATIENCE):
        result = harness.step(1, 1, state)
        state, new = result.state, _integers(result.state)
        moves += [call] if result.norms.any() else []
        reset = [i for i in cycle if i in new and old[i] > new[i] == 0]
        if reset:
            already = start[reset[0]]
            harness = _finish_cycle(harness, call + 1 if already else 0)
            return dataclasses.replace(harness, period=call + 1 + already)
        cycle = {i for i in cycle if i in new and new[i] == old[i] + 1 and i not in named}
        old = new
        if not cycle and (len(moves) == 3 or call >= IDLE):
            break
    if len(moves) == 3 and moves[2] - moves[1] > 1:  # a cycle without a counter
        return dataclasses.replace(harness, period=moves[2] - moves[1])
    return harness


def _integers(state: optax.OptState) -> dict[int, int]:
    """The integer scalars of a state, by the position of their leaf."""
    found = {}
    for i, x in enumerate(jax.tree.leaves(state)):
        if hasattr(x, "dtype") and x.shape == () and jnp.issubdtype(x.dtype, jnp.integer):
            found[i] = int(x)
    return found


def _named_counts(harness: Harness) -> set[int]:
    """Leaves whose names say that they count all steps: they are never reset."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(harness.state)[0]]
    return {i for i, path in enumerate(paths) if last_name(path) in COUNTS}


def _finish_cycle(harness: Harness, calls: int) -> Harness:
    """Moves a state in the middle of a cycle to the beginning of the next one."""
    for _ in range(calls):
        harness = dataclasses.replace(harness, state=harness.step(1, 0).state)
    return harness
