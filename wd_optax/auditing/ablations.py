"""Experiments on the state: another learning rate, no λ, other random keys, and what the decay does then.

Each answers per leaf, with None where it can't decide: an answer is measured or not given.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax.auditing import clock, probes, trajectory
from wd_optax.auditing.harness import Harness
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.trajectory import Trajectory
from wd_optax.core import DecayState
from wd_optax.masking import roles

LAMBDAS = ("weight_decay", "weight_decay_rate", "rate")
SAME = 1e-6  # relative
FULL = 32  # steps after which buffers are
RUN = 256  # steps after which a step size that the optimizer looks for has grown


def scaled_by_learning_rate(
    bench: Harness, facts: list[Measurements], lambdas: list[list[float]], path: Trajectory, learning_rate: Any
) -> list[Measurements]:
    """Whether a smaller learning rate makes the decay smaller, and how: by the first experiment that decides."""
    rates = [float(learning_rate(step)) for step in path.steps] if callable(learning_rate) else _recorded(bench, path)
    powers = [_power(bench, path, i, rates) for i in range(len(facts))]
    live, behind = (
        _halve_the_live_leaf(bench, facts),
        _look_behind_the_stage(bench, facts, lambdas, path, learning_rate),
    )
    peaks = _divided_by_peak(bench, facts)
    filled = []
    for f, power, other, third, peak in zip(facts, powers, live, behind, peaks, strict=True):
        scaled = bool(power) if power is not None else other if other is not None else third
        n = power if power is not None else -1 if scaled is None else int(scaled)
        word = {0: "constant", 1: "lr", 2: "lr²"}.get(n, "")
        word += "/peak" if peak and word.startswith("lr") else ""
        filled.append(f._replace(scaled=scaled, coupling=word) if f.decays and f.still and f.steady else f)
    return filled


def _power(bench: Harness, path: Trajectory, leaf: int, rates: list[float]) -> int | None:
    """The n of c ∝ ηⁿ along the run, from the size of the step or from the schedule that the caller gave."""
    c, eta = np.abs(path.c[:, leaf]), path.e[:, leaf]
    if rates:
        eta = np.array(rates)
    both = (c > 0) & (eta > 1e-3 * eta.max())
    if both.sum() < 2 or np.ptp(np.log(eta[both])) < 0.05:
        return None
    x, y = np.log(eta[both]), np.log(c[both])
    fits = [n for n in (0, 1, 2) if np.ptp(y - n * x) < 0.02 * max(1.0, np.ptp(x))]
    if fits and (fits[0] or rates or _is_schedule(bench, path, leaf)):
        return fits[0]
    return None


def _recorded(bench: Harness, path: Trajectory) -> list[float]:
    """The learning rate at each step of the run as the state records it; none where it doesn't, or it is one number."""
    if not any(map(_owns_rate, jax.tree.leaves(bench.state, is_leaf=_owns_rate))):
        return []
    rates = []
    for step in path.steps:
        with bench.trying(state=clock.set_counts(bench, bench.state, step)):
            rates.append(asked(bench))
    return rates if np.ptp(rates) > 0 else []


def _is_schedule(bench: Harness, path: Trajectory, leaf: int) -> bool:
    """Whether steps get smaller when all buffers are full, and keep their direction: then a schedule does it."""
    late = np.array(path.steps) >= FULL
    steps, sizes = np.array(path.steps)[late], path.e[late, leaf]
    if not bench.geometric or not len(sizes) or not (sizes < 0.95 * np.maximum.accumulate(sizes)).any():
        return False
    steps, sizes = (x[sizes > 1e-3 * sizes.max()] for x in (steps, sizes))
    low, high = int(steps[np.argmin(sizes)]), int(steps[np.argmax(sizes)])
    one, other = (a[leaf] + b[leaf] for a, b, _ in (trajectory.steps_of(bench, step) for step in (low, high)))
    return bool(abs(np.vdot(one, other)) > (1 - 1e-3) * float(np.linalg.norm(one) * np.linalg.norm(other)))


def _divided_by_peak(bench: Harness, facts: list[Measurements]) -> list[bool]:
    """Whether the state holds a peak learning rate on which the decay depends."""
    edit = bench.with_leaf(("peak_learning_rate",), lambda x: x * 2)
    if edit is None:
        return [False] * len(facts)
    with bench.trying(edit=edit):
        halved = bench.removed()
    return [f.still and abs(c - f.first) > SAME * abs(f.first) for c, f in zip(halved, facts, strict=True)]


def _halve_the_live_leaf(bench: Harness, facts: list[Measurements]) -> list[bool | None]:
    """The state holds a `learning_rate`: ours, and under `inject_hyperparams`."""
    half = bench.with_leaf(("learning_rate",), lambda x: x / 2)
    return [None] * len(facts) if half is None else _compare(bench, facts, edit=half)


def _compare(bench: Harness, facts: list[Measurements], **change: Any) -> list[bool | None]:
    """At another learning rate the decay differs, or only the step does; or neither, which says nothing."""

    def steps() -> list[float]:
        pairs = zip(bench.step(1, 1).updates, bench.step(-1, 1).updates, strict=True)
        return [float(np.linalg.norm(a + b)) for a, b in pairs]

    before = steps()
    with bench.trying(**change):
        after, rates = steps(), bench.removed()
    answers: list[bool | None] = []
    for f, old, new, rate in zip(facts, before, after, rates, strict=True):
        differs, moved = abs(rate - f.first) > 1e-3 * abs(f.first), abs(new - old) > 1e-3 * old
        answers.append((True if differs else False if moved else None) if f.still else None)
    return answers


def _look_behind_the_stage(
    bench: Harness, facts: list[Measurements], lambdas: list[list[float]], path: Trajectory, learning_rate: Any
) -> list[bool | None]:
    """What the stages behind the decaying one multiply it with: by 1 is by no learning rate, unless that is 1."""
    number = float(learning_rate) if isinstance(learning_rate, int | float) else None
    answers: list[bool | None] = []
    for i, (f, found) in enumerate(zip(facts, lambdas, strict=True)):
        factor = abs(f.first) / found[0] if len(found) == 1 else None
        is_factor = lambda x, factor=factor: factor is not None and abs(factor - x) <= SAME * abs(x)
        same = np.ptp(path.c[:, i]) <= SAME * np.max(np.abs(path.c[:, i]))
        moves = np.linalg.norm(path.e[:, i]) > 0
        unscaled = is_factor(1) and same and moves and number != 1
        answers.append(False if unscaled else True if number is not None and is_factor(number) else None)
    return answers


def decays_without_live_lambda(bench: Harness, facts: list[Measurements]) -> list[bool]:
    """Whether a decay goes on, at another rate, when the state's live λ is zero: then there are two."""
    edit = bench.with_leaf(LAMBDAS, jnp.zeros_like)
    if edit is None:
        return [False] * len(facts)
    with bench.trying(edit=edit):
        rest = bench.removed()
    differs = lambda c, other, f: f.still and abs(c - other) > SAME * abs(f.first)
    return [differs(c, 0, f) and differs(c, f.first, f) for c, f in zip(rest, facts, strict=True)]


def stochastic(bench: Harness, facts: list[Measurements]) -> list[bool]:
    """Whether other random keys in the state make another decay."""
    if not any(map(_is_key, jax.tree.leaves(bench.state))):
        return [False] * len(facts)
    with bench.trying(edit=lambda state: jax.tree.map(_other_key, state)):
        changed = bench.removed()
    pairs = zip(changed, facts, strict=True)
    return [f.still and f.decays and bool(abs(c - f.first) > SAME * abs(f.first)) for c, f in pairs]


def _is_key(x: Any) -> bool:
    is_legacy = getattr(x, "dtype", None) == jnp.uint32 and x.shape == (2,)
    return probes.is_key(x) or is_legacy


def _other_key(x: Any) -> Any:
    if not _is_key(x):
        return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(x, 1)
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(x), 1))


def asked(bench: Harness, state: Any = None) -> float:
    """The learning rate that the state after a step records beside λ; nan where it records none, or several."""
    state = bench.step(1, 0).state if state is None else state
    found = jax.tree.leaves(state, is_leaf=_owns_rate)
    rates = {float(node.hyperparams["learning_rate"]) for node in found if _owns_rate(node)}
    return rates.pop() if len(rates) == 1 else math.nan


def learning_rates(bench: Harness, facts: list[Measurements]) -> list[tuple[float, float]]:
    """Per leaf the learning rate that the decay goes by, and the step's own, nan where its size doesn't show one.

    A momentum buffer multiplies a step that grows with the gradient, so its η isn't known.
    """
    first = bench.step(1, 1)
    calm, after = bench.step(1, 0).updates, bench.step(1, 0, first.state).updates
    pairs = []
    for f, a, b in zip(facts, calm, after, strict=True):
        remembers = np.linalg.norm(a - b) > 1e-6 * np.linalg.norm(b)
        pairs.append((asked(bench, first.state), math.nan if remembers and f.in_proportion else f.steps_by))
    return pairs


def _owns_rate(node: Any) -> bool:
    return isinstance(node, DecayState) and {"learning_rate", "weight_decay"} <= node.hyperparams.keys()


def toward(bench: Harness, facts: list[Measurements]) -> list[str]:
    """What each leaf decays toward: zero, its value at init, or a tree that the state holds."""
    rest = bench.step(0, 0).updates
    places = jax.tree.leaves(bench.scaled(0))
    words = []
    for f, u, p in zip(facts, rest, bench.subject.values, strict=True):
        word = "zero"
        for x in places:
            if (
                f.decays
                and np.shape(x) == np.shape(p)
                and np.linalg.norm(u) > 1e-9 * abs(f.first) * np.linalg.norm(probes.sample(p))
            ):
                a = probes.sample(x)
                if np.linalg.norm(a) and np.linalg.norm(u - f.first * a) <= SAME * np.linalg.norm(u):
                    word = "init" if np.allclose(a, probes.sample(p)) else "tree"
        words.append(word if f.decays else "")
    return words


def later(bench: Harness, facts: list[Measurements], step: int) -> list[bool]:
    """Whether the rate grows tenfold in a real run without a schedule's doing: the optimizer looks for its step size.

    Such optimizers keep a number that a step changes; the others aren't run.
    """
    no = [False] * len(facts)
    if bench.given or not any(f.decays for f in facts) or not _keeps_a_number(bench):
        return no
    with np.errstate(all="ignore"):
        _, state = bench.drive(RUN)
        state = clock.set_counts(bench, state, step)
        leaves, treedef = jax.tree.flatten(state)
        copied = lambda s: (
            b if copy else a for a, b, copy in zip(leaves, jax.tree.leaves(bench.scaled(s)), bench.copies, strict=True)
        )
        grown = bench.removed(0, (jax.tree.unflatten(treedef, copied(1)), jax.tree.unflatten(treedef, copied(-1))))
    return [f.decays and f.steady and f.still and bool(c > 10 * f.first > 0) for c, f in zip(grown, facts, strict=True)]


def _keeps_a_number(bench: Harness) -> bool:
    """Whether the state holds numbers that are neither hyperparameters nor one of each entry of a parameter."""
    paths = {p.path for p in bench.subject.found}
    small = lambda x: len(jnp.shape(x)) <= 1 and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    of_leaf = lambda path: any(path == p or path.endswith("/" + p) for p in paths)
    leaves = ((path, x) for path, x in roles.flatten(bench.state)[0] if not probes.is_key(x))
    return any(small(x) and "hyperparams" not in path and not of_leaf(path) for path, x in leaves)
