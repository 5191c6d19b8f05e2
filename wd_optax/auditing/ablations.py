"""Changes one thing in the state (the learning rate, λ, random keys) and measures the decay again.

Every function answers per leaf. Where it can't decide it says so (None or False); it never guesses.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import keystr

from wd_optax.auditing import clock, trajectory
from wd_optax.auditing.harness import Harness, is_scalar
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.trajectory import Trajectory
from wd_optax.auditing.vectors import norm
from wd_optax.core import DecayState
from wd_optax.dtypes import is_random_key
from wd_optax.masking import roles

LAMBDAS = ("weight_decay", "weight_decay_rate", "rate")
SAME = 1e-6  # relative
FULL = 32  # steps after which buffers are full
SEARCH = 256  # steps in which an optimizer that searches for its step size has increased it


def scaled_by_learning_rate(
    harness: Harness,
    measured: list[Measurements],
    stage_rates: list[list[float]],
    run: Trajectory,
    learning_rate: float | optax.Schedule | None,
) -> list[Measurements]:
    """Whether and how the decay follows the learning rate, from the first ablation that decides."""
    rates = [float(learning_rate(t)) for t in run.steps] if callable(learning_rate) else _recorded(harness, run)
    halved = _with_half_the_learning_rate(harness, measured)
    factors = _scaled_by_later_stages(measured, stage_rates, run, learning_rate)
    peaks = _divided_by_peak(harness, measured)
    filled = []
    for i, m in enumerate(measured):
        power = _power(harness, run, i, rates)
        scaled = bool(power) if power is not None else halved[i] if halved[i] is not None else factors[i]
        n = power if power is not None else -1 if scaled is None else int(scaled)
        word = {0: "constant", 1: "lr", 2: "lr²"}.get(n, "")
        word += "/peak" if peaks[i] and word.startswith("lr") else ""
        known = m.decays and m.without_gradient and m.steady
        filled.append(m._replace(scaled=scaled, coupling=word) if known else m)
    return filled


def _power(harness: Harness, run: Trajectory, leaf: int, rates: list[float]) -> int | None:
    """The n of c ∝ ηⁿ along the run; η is the caller's schedule, the state's record, or the size of the step."""
    c, eta = np.abs(run.c[:, leaf]), run.moved[:, leaf]
    if rates:
        eta = np.array(rates)
    both = (c > 0) & (eta > 1e-3 * eta.max())
    if both.sum() < 2 or np.ptp(np.log(eta[both])) < 0.05:
        return None
    x, y = np.log(eta[both]), np.log(c[both])
    fits = [n for n in (0, 1, 2) if np.ptp(y - n * x) < 0.02 * max(1.0, np.ptp(x))]
    if fits and (fits[0] or rates or _is_schedule(harness, run, leaf)):
        return fits[0]
    return None


def _recorded(harness: Harness, run: Trajectory) -> list[float]:
    """The learning rate at each step of the run as the state records it; empty if it doesn't, or doesn't change."""
    if not any(map(_records_learning_rate, jax.tree.leaves(harness.state, is_leaf=_records_learning_rate))):
        return []
    rates = [_decay_lr(clock.at_step(harness, step).step(1, 0).state) for step in run.steps]
    return rates if np.ptp(rates) > 0 else []


def _is_schedule(harness: Harness, run: Trajectory, leaf: int) -> bool:
    """Whether steps shrink without turning although all buffers are full: only a schedule does that."""
    late = np.array(run.steps) >= FULL
    steps, sizes = np.array(run.steps)[late], run.moved[late, leaf]
    if not run.geometric or not len(sizes) or not (sizes < 0.95 * np.maximum.accumulate(sizes)).any():
        return False
    steps, sizes = (x[sizes > 1e-3 * sizes.max()] for x in (steps, sizes))
    pairs = [trajectory.step_pair(harness, int(steps[i])) for i in (np.argmin(sizes), np.argmax(sizes))]
    one, other = (pair.plus[leaf] + pair.minus[leaf] for pair in pairs)
    return bool(abs(np.vdot(one, other)) > (1 - 1e-3) * norm(one) * norm(other))


def _divided_by_peak(harness: Harness, measured: list[Measurements]) -> list[bool]:
    """Whether the decay changes with a peak learning rate in the state."""
    edit = harness.edit_scalars(("peak_learning_rate",), lambda x: x * 2)
    if edit is None:
        return [False] * len(measured)
    changed = dataclasses.replace(harness, edit=edit).removed()
    return [m.without_gradient and not _is_same(c, m.first_step, m) for c, m in zip(changed, measured, strict=True)]


def _is_same(c: float, other: float, m: Measurements) -> bool:
    return not abs(c - other) > SAME * abs(m.first_step)  # nan is no evidence of a difference


def _with_half_the_learning_rate(harness: Harness, measured: list[Measurements]) -> list[bool | None]:
    """Whether the decay changes with a `learning_rate` in the state: ours, or that of `inject_hyperparams`.

    If neither the decay nor the step changes, that learning rate is not the optimizer's.
    """
    edit = harness.edit_scalars(("learning_rate",), lambda x: x / 2)
    if edit is None:
        return [None] * len(measured)
    changed = dataclasses.replace(harness, edit=edit)
    before, after, rates = _step_sizes(harness), _step_sizes(changed), changed.removed()
    answers: list[bool | None] = []
    for m, old, new, rate in zip(measured, before, after, rates, strict=True):
        differs, moved = abs(rate - m.first_step) > 1e-3 * abs(m.first_step), abs(new - old) > 1e-3 * old
        answers.append((True if differs else False if moved else None) if m.without_gradient else None)
    return answers


def _step_sizes(harness: Harness) -> list[float]:
    pairs = zip(harness.step(1, 1).updates, harness.step(-1, 1).updates, strict=True)
    return [norm(a + b) for a, b in pairs]


def _scaled_by_later_stages(
    measured: list[Measurements],
    stage_rates: list[list[float]],
    run: Trajectory,
    learning_rate: float | optax.Schedule | None,
) -> list[bool | None]:
    """Whether the factor that later stages apply to the decay is the learning rate.

    A factor of 1 means no learning rate is applied (unless the learning rate is 1).
    """
    number = float(learning_rate) if isinstance(learning_rate, int | float) else None
    answers: list[bool | None] = []
    for i, (m, rates) in enumerate(zip(measured, stage_rates, strict=True)):
        factor = abs(m.first_step) / rates[0] if len(rates) == 1 else math.nan
        is_constant = np.ptp(run.c[:, i]) <= SAME * np.max(np.abs(run.c[:, i]))
        moves = norm(run.moved[:, i]) > 0
        if abs(factor - 1) <= SAME and is_constant and moves and number != 1:
            answers.append(False)
        else:
            is_lr = number is not None and abs(factor - number) <= SAME * abs(number)
            answers.append(True if is_lr else None)
    return answers


def decays_at_zero_lambda(harness: Harness, measured: list[Measurements]) -> list[bool]:
    """Whether a decay goes on at another rate when λ in the state are zero: then there are two.

    All λ are zero at once, and then those with a bit of their number set: any two of them differ in a bit.
    """
    found = jax.tree_util.tree_flatten_with_path(harness.state)[0]
    lambdas = [keystr(path) for path, x in found if is_scalar(path, x, LAMBDAS, jnp.inexact)]
    bits = [{path for i, path in enumerate(lambdas) if i >> bit & 1} for bit in range((len(lambdas) - 1).bit_length())]
    more = [False] * len(measured)
    for zeroed in (set(lambdas), *bits) if lambdas else ():
        rest = dataclasses.replace(harness, edit=functools.partial(_with_zeros, zeroed)).removed()
        more = [
            before or (m.without_gradient and not _is_same(c, 0, m) and not _is_same(c, m.first_step, m))
            for before, c, m in zip(more, rest, measured, strict=True)
        ]
    return more


def _with_zeros(zeroed: set[str], state: optax.OptState) -> optax.OptState:
    return jax.tree_util.tree_map_with_path(lambda path, x: np.zeros_like(x) if keystr(path) in zeroed else x, state)


def is_random(harness: Harness, measured: list[Measurements]) -> list[bool]:
    """Whether the decay changes with the random keys in the state."""
    if not any(map(_is_any_key, jax.tree.leaves(harness.state))):
        return [False] * len(measured)
    changed = dataclasses.replace(harness, edit=lambda state: jax.tree.map(_other_key, state)).removed()
    return [
        m.without_gradient and m.decays and not _is_same(c, m.first_step, m)
        for c, m in zip(changed, measured, strict=True)
    ]


def _is_any_key(x: Any) -> bool:
    """Whether a leaf of the state is a random key, typed or of the legacy kind."""
    return is_random_key(x) or (getattr(x, "dtype", None) == jnp.uint32 and x.shape == (2,))


def _other_key(x: Any) -> Any:
    if not _is_any_key(x):
        return x
    if is_random_key(x):
        return jax.random.fold_in(x, 1)
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(x), 1))


def _records_learning_rate(node: Any) -> bool:
    return isinstance(node, DecayState) and {"learning_rate", "weight_decay"} <= node.hyperparams.keys()


def _decay_lr(state: optax.OptState) -> float:
    """The learning rate that the state records next to λ; nan if it records none, or several."""
    nodes = filter(_records_learning_rate, jax.tree.leaves(state, is_leaf=_records_learning_rate))
    rates = {float(node.hyperparams["learning_rate"]) for node in nodes}
    return rates.pop() if len(rates) == 1 else math.nan


def learning_rates(harness: Harness, measured: list[Measurements]) -> list[Measurements]:
    """Fills in the learning rate of the decay, and removes that of the step where momentum multiplies the step."""
    first = harness.step(1, 1)
    fresh, after = harness.step(1, 0).updates, harness.step(1, 0, first.state).updates
    recorded = _decay_lr(first.state)
    filled = []
    for m, a, b in zip(measured, fresh, after, strict=True):
        momentum = m.proportional_step and norm(a - b) > 1e-6 * norm(b)
        filled.append(m._replace(decay_lr=recorded, step_lr=math.nan if momentum else m.step_lr))
    return filled


def grows_later(harness: Harness, measured: list[Measurements], step: int) -> list[bool]:
    """Whether the rate grows tenfold in a real run at fixed counts: the optimizer searches for its step size.

    Only optimizers that keep a scalar which a step changes are run.
    """
    if harness.given or not any(m.decays for m in measured) or not _keeps_a_scalar(harness):
        return [False] * len(measured)
    with np.errstate(all="ignore"):
        state = clock.set_counts(harness, harness.drive(SEARCH)[1], step)
        leaves, treedef = jax.tree.flatten(state)

        def at(s: float) -> optax.OptState:
            """The state after the run, with its copies of the parameters where the probes are."""
            copied = zip(leaves, jax.tree.leaves(harness.scaled(s)), harness.copies, strict=True)
            return jax.tree.unflatten(treedef, [own if copy else x for x, own, copy in copied])

        grown = harness.removed(0, (at(1), at(-1)))
    return [
        m.decays and m.steady and m.without_gradient and bool(c > 10 * m.first_step > 0)
        for c, m in zip(grown, measured, strict=True)
    ]


def _keeps_a_scalar(harness: Harness) -> bool:
    """Whether the state holds scalars or vectors that are neither hyperparameters nor belong to a parameter."""
    paths = {p.path for p in harness.probes.parameters}
    for path, x in roles.flatten(harness.state)[0]:
        if is_random_key(x) or "hyperparams" in path or any(path == p or path.endswith("/" + p) for p in paths):
            continue
        if len(jnp.shape(x)) <= 1 and jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            return True
    return False
