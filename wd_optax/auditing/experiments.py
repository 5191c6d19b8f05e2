"""Experiments on the state: another learning rate, no λ, other random keys, and what the decay does then.

Each answers per leaf, with None where it can't decide: an answer is measured or not given.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax import roles
from wd_optax.auditing.bench import Bench
from wd_optax.auditing.course import follow
from wd_optax.auditing.facts import Facts, removed

LAMBDAS = ("weight_decay", "weight_decay_rate", "rate")
SAME = 1e-6  # relative


def scaled_by_learning_rate(
    bench: Bench, facts: list[Facts], lambdas: list[list[float]], step: int | None, learning_rate: Any
) -> list[bool | None]:
    """Whether a smaller learning rate makes the decay smaller: by the first experiment that can tell."""
    tried = (
        _halve_the_live_leaf(bench, facts),
        _go_along_the_schedule(bench, facts, step, learning_rate),
        _look_behind_the_stage(bench, facts, lambdas, learning_rate),
    )
    return [next((answer for answer in answers if answer is not None), None) for answers in zip(*tried, strict=True)]


def _halve_the_live_leaf(bench: Bench, facts: list[Facts]) -> list[bool | None]:
    """The state holds a `learning_rate`: ours, and under `inject_hyperparams`."""
    half = bench.with_leaf(("learning_rate",), lambda x: x / 2)
    return [None] * len(facts) if half is None else _compare(bench, facts, edit=half)


def _go_along_the_schedule(bench: Bench, facts: list[Facts], step: int | None, learning_rate: Any) -> list[bool | None]:
    """To the step where the schedule differs most from its value here."""
    unknown: list[bool | None] = [None] * len(facts)
    if not callable(learning_rate) or not bench.counts():
        return unknown
    start = 0 if step is None else step
    here = float(learning_rate(start))
    others = {t: float(learning_rate(t)) for t in (0, start // 2, 2 * start, *(2**i for i in range(17)))}
    apart = {t: abs(np.log(rate / here)) for t, rate in others.items() if rate > 0 and here > 0}
    there = max(apart, key=lambda t: apart[t], default=None)
    if there is None or apart[there] < 0.1:
        return unknown
    return _compare(bench, facts, state=bench.at(bench.state, there))


def _compare(bench: Bench, facts: list[Facts], **change: Any) -> list[bool | None]:
    """At another learning rate the decay differs, or only the step does; or neither, which says nothing."""

    def steps() -> list[float]:
        pairs = zip(bench.step(1, 1).updates, bench.step(-1, 1).updates, strict=True)
        return [float(np.linalg.norm(a + b)) for a, b in pairs]

    before = steps()
    with bench.trying(**change):
        after, rates = steps(), removed(bench)
    answers: list[bool | None] = []
    for f, old, new, rate in zip(facts, before, after, rates, strict=True):
        differs, moved = abs(rate - f.first) > 1e-3 * abs(f.first), abs(new - old) > 1e-3 * old
        answers.append((True if differs else False if moved else None) if f.still else None)
    return answers


def _look_behind_the_stage(
    bench: Bench, facts: list[Facts], lambdas: list[list[float]], learning_rate: Any
) -> list[bool | None]:
    """What the stages behind the decaying one multiply it with: by 1 is by no learning rate, unless that is 1."""
    number = float(learning_rate) if isinstance(learning_rate, int | float) else None
    if all(len(found) != 1 for found in lambdas):
        return [None] * len(facts)
    constant = np.ones(len(facts), bool)
    if bench.counts():
        first, later = follow(bench, [1, 1000]).removed
        constant = np.isclose(first, later, rtol=SAME, atol=0)
    answers: list[bool | None] = []
    for f, found, same in zip(facts, lambdas, constant, strict=True):
        factor = abs(f.first) / found[0] if len(found) == 1 else None
        is_factor = lambda x, factor=factor: factor is not None and abs(factor - x) <= SAME * abs(x)
        unscaled = is_factor(1) and same and number != 1
        answers.append(False if unscaled else True if number is not None and is_factor(number) else None)
    return answers


def decays_without_live_lambda(bench: Bench, facts: list[Facts]) -> list[bool]:
    """Whether a decay goes on, at another rate, when the state's live λ is zero: then there are two."""
    edit = bench.with_leaf(LAMBDAS, jnp.zeros_like)
    if edit is None:
        return [False] * len(facts)
    with bench.trying(edit=edit):
        rest = removed(bench)
    differs = lambda c, other, f: f.still and abs(c - other) > SAME * abs(f.first)
    return [differs(c, 0, f) and differs(c, f.first, f) for c, f in zip(rest, facts, strict=True)]


def stochastic(bench: Bench, facts: list[Facts]) -> list[bool]:
    """Whether other random keys in the state make another decay."""
    if not any(map(_is_key, jax.tree.leaves(bench.state))):
        return [False] * len(facts)
    with bench.trying(edit=lambda state: jax.tree.map(_other_key, state)):
        changed = removed(bench)
    pairs = zip(changed, facts, strict=True)
    return [f.still and f.decays and bool(abs(c - f.first) > SAME * abs(f.first)) for c, f in pairs]


def _is_key(x: Any) -> bool:
    dtype = getattr(x, "dtype", np.dtype(float))
    return bool(jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and x.shape == (2,)))


def _other_key(x: Any) -> Any:
    if not _is_key(x):
        return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(x, 1)
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(x), 1))


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
