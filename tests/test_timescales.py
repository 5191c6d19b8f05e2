"""Half-life, timescale and fraction remaining from λ, and back, with schedules; and bad input."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wd_optax as wd
from wd_optax.choosing.timescales import half_life, timescale, weight_decay_for
from wd_optax.couplings import COUPLINGS

STEPS = 200
number = lambda t: jnp.asarray(t, jnp.float32)
WARM_UP = lambda t: 1e-2 * jnp.minimum(number(t) / 20, 1.0)  # 0 in the first step
SCHEDULES = {
    "number": 1e-2,
    "array": jnp.float32(1e-2),
    "warm-up": WARM_UP,
    "plain Python": lambda t: 1e-2 * (1 if t < 100 else 0.1),  # can't be traced
    "cosine": lambda t: 5e-3 * (1 + jnp.cos(math.pi * number(t) / STEPS)),
}
TARGETS = {"half_life": 70.0, "timescale_steps": 130.0, "timescale_epochs": 1.5, "remaining": 0.3}


def at(schedule, t):
    return np.float64(schedule(jnp.int32(t)) if callable(schedule) else schedule)


@pytest.mark.parametrize("c", [1e-9, 1e-4, 0.01, 0.5, 0.999])
def test_half_is_left_after_the_half_life(c):
    assert (1 - c) ** half_life(c) == pytest.approx(0.5, rel=1e-7)  # 1 − 1e-9 has 7 digits of c
    assert half_life(0.0) == math.inf
    assert half_life(jnp.float32(0.5)) == 1.0


@pytest.mark.optax_promotes
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_prediction_is_what_an_optimizer_does(coupling, schedule):
    lr = SCHEDULES[schedule]
    weight_decay = 0.02 if coupling in ("schedule", "constant") else 1.0
    found = timescale(weight_decay, learning_rate=lr, steps=STEPS, steps_per_epoch=50, coupling=coupling)
    c = [float(at(wd.decay_rate(weight_decay, learning_rate=lambda t: at(lr, t), coupling=coupling,
                                peak_learning_rate=1e-2), t)) for t in range(STEPS)]  # fmt: skip
    assert found.remaining == pytest.approx(np.prod(1 - np.array(c)), rel=1e-6)  # the schedule's values are float32
    assert found.largest_removed_per_step == pytest.approx(max(c), rel=1e-6)

    traced = (lambda t: jnp.where(t < 100, 1e-2, 1e-3)) if schedule == "plain Python" else lr
    tx = wd.sgdw(traced, weight_decay=weight_decay, coupling=coupling, peak_learning_rate=1e-2, mask=None)
    params = {"w": jnp.ones(())}
    state, zeros = tx.init(params), {"w": jnp.zeros(())}
    for _ in range(STEPS):
        updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    # 200 roundings of 2⁻²⁴
    assert float(params["w"]) == pytest.approx(found.remaining, rel=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("target", TARGETS)
def test_there_and_back(target, coupling, schedule):
    run = {"learning_rate": SCHEDULES[schedule], "steps": STEPS, "steps_per_epoch": 50, "coupling": coupling}
    found = weight_decay_for(**{target: TARGETS[target]}, **run)
    # float64: a sum of 200 logarithms
    assert getattr(timescale(found, **run), target) == pytest.approx(TARGETS[target], rel=1e-11)


@settings(max_examples=200, deadline=None)
@given(
    weight_decay=st.floats(1e-6, 0.9),
    etas=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    coupling=st.sampled_from(list(COUPLINGS)),
)
def test_any_rates_there_and_back(weight_decay, etas, coupling):
    run = {"learning_rate": lambda t: etas[t], "steps": len(etas), "coupling": coupling}
    if max(etas) < 1e-3:
        etas[0] = 1e-3
    there = timescale(weight_decay, **run)
    assert there.timescale_steps == pytest.approx(1 / there.removed_per_step)
    assert there.half_life == pytest.approx(half_life(there.removed_per_step))
    back = weight_decay_for(timescale_steps=there.timescale_steps, **run)
    assert back == pytest.approx(weight_decay, rel=1e-5)  # for c̄ near 1e-10, 1 − 1/τ keeps 6 digits
    if there.remaining < 1 - 1e-3:
        assert weight_decay_for(remaining=there.remaining, **run) == pytest.approx(weight_decay, rel=1e-9)


def test_a_constant_rate_needs_no_steps():
    found = timescale(0.1, learning_rate=1e-3, steps_per_epoch=500)
    assert found.removed_per_step == pytest.approx(1e-4, rel=1e-12)
    assert found.timescale_steps == pytest.approx(1 / (1e-3 * 0.1))  # Wang & Aitchison: 1/(ηλ)
    assert found.timescale_epochs == pytest.approx(20)
    assert (found.steps, found.remaining) == (None, None)
    assert weight_decay_for(timescale_epochs=20, learning_rate=1e-3, steps_per_epoch=500) == pytest.approx(0.1)
    assert weight_decay_for(half_life=1, learning_rate=0.5, coupling="constant") == pytest.approx(0.5)
    assert timescale(0.1, learning_rate=1e-3, steps=1000).remaining == pytest.approx(0.9048, abs=5e-5)
    assert timescale(0.0, learning_rate=1e-3).half_life == math.inf


def test_the_peak_is_the_largest_of_the_run_or_the_callers():
    run = {"learning_rate": WARM_UP, "coupling": "schedule"}
    assert timescale(0.1, steps=STEPS, **run).largest_removed_per_step == pytest.approx(0.1)
    cut = timescale(0.1, steps=11, peak_learning_rate=1e-2, **run)
    assert cut.largest_removed_per_step == pytest.approx(0.05)


def test_strong_decay_stays_below_one_per_step():
    spike = lambda t: jnp.where(t == 7, 1.0, 1e-6)
    found = weight_decay_for(remaining=1e-12, learning_rate=spike, steps=100)
    assert found < 1
    assert timescale(found, learning_rate=spike, steps=100).remaining == pytest.approx(1e-12, rel=1e-3)  # 1 − λ


def test_it_prints_in_words():
    schedule = lambda t: 1e-3 * (1 - number(t) / 10_000)
    text = str(timescale(0.1, learning_rate=schedule, steps=10_000, steps_per_epoch=500))
    for words in (
        "on average, 0.0001 at most",
        "= 40 epochs; 10,000 steps = 20 epochs at the peak",
        "0.6065 of a weight",
    ):
        assert words in text
    constant = str(timescale(0.1, learning_rate=1e-3))
    assert "half-life         6,931 steps" in constant
    assert not any(word in constant for word in ("average", "epochs", "remaining"))
    assert "inf steps\n" in str(timescale(0.0, learning_rate=1e-3, steps_per_epoch=5))


@pytest.mark.parametrize(
    ("call", "bad", "error", "says"),
    [
        (half_life, {"c": 1.0}, ValueError, "c=1.0 must be below 1"),
        (half_life, {"c": -0.1}, ValueError, "c=-0.1 must be below 1 and not negative"),
        (half_life, {"c": "0.1"}, TypeError, "c must be a number"),
        (timescale, {"weight_decay": -1.0}, ValueError, "weight_decay=-1.0 must be finite and not negative"),
        (timescale, {"weight_decay": 2000.0}, ValueError, "weight_decay removes 2 of each weight in step 0: lower it"),
        (timescale, {"coupling": "linear"}, ValueError, "coupling='linear' is not a coupling"),
        (timescale, {"learning_rate": WARM_UP, "steps": None}, ValueError, "learning_rate is a schedule.*: pass steps"),
        (timescale, {"weight_decay": WARM_UP, "steps": None}, ValueError, "weight_decay is a schedule.*: pass steps"),
        (timescale, {"learning_rate": lambda t: 1.0 - number(t)}, ValueError, "learning_rate is -1 in step 2: fix"),
        (timescale, {"learning_rate": lambda t: number(t) * math.nan}, ValueError, "learning_rate is nan in step 0"),
        (timescale, {"learning_rate": 0.0, "coupling": "schedule"}, ValueError, "peak_learning_rate=0.0.*divides"),
        (timescale, {"steps": 0}, ValueError, "steps=0 must be a whole number of steps, at least 1"),
        (timescale, {"steps": 2.5}, ValueError, "steps=2.5 must be a whole number"),
        (timescale, {"steps_per_epoch": 0}, ValueError, "steps_per_epoch=0 must be above 0"),
        (weight_decay_for, {}, ValueError, "give exactly one of half_life, .* remaining; got none"),
        (weight_decay_for, {"half_life": 5, "remaining": 0.5}, ValueError, "exactly one .*; got half_life, remaining"),
        (weight_decay_for, {"half_life": 0}, ValueError, "half_life is 0.0 steps"),
        (weight_decay_for, {"half_life": -3}, ValueError, "half_life=-3 must be finite and not negative"),
        (weight_decay_for, {"half_life": 5, "learning_rate": 0.0}, ValueError, "learning_rate is 0 in every step"),
        (weight_decay_for, {"timescale_steps": 1.0}, ValueError, "timescale_steps is 1.0 steps, which no rate below 1"),
        (weight_decay_for, {"timescale_epochs": 3}, ValueError, "needs steps_per_epoch: pass it, or timescale_steps"),
        (weight_decay_for, {"remaining": 0.5, "steps": None}, ValueError, "remaining=0.5 .*: pass steps"),
        (weight_decay_for, {"remaining": 1.0}, ValueError, "remaining=1.0 .* a fraction between 0 and 1"),
        (weight_decay_for, {"remaining": 0.0}, ValueError, "remaining=0.0 .* a fraction between 0 and 1"),
        (weight_decay_for, {"remaining": 1e-20, "steps": 1}, ValueError, "needs a rate of 1 per step: raise remaining"),
        (weight_decay_for, {"remaining": 0.5, "learning_rate": WARM_UP, "steps": 1}, ValueError, "0 in every step"),
    ],
)
def test_bad_input_is_refused_with_a_fix(call, bad, error, says):
    defaults = {} if call is half_life else {"learning_rate": 1e-3, "steps": 10}
    defaults |= {"weight_decay": 0.1} if call is timescale else {}
    with pytest.raises(error, match=says):
        call(**defaults | bad)


def test_no_decay_removes_zero_and_not_minus_zero():
    without = wd.timescale(0.0, learning_rate=0.1, steps=10)
    assert str(without).splitlines()[0] == "removed per step  0"
    assert (without.half_life, without.timescale_steps, without.remaining) == (math.inf, math.inf, 1.0)
