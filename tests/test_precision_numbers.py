"""Decay that low precision loses and rounding keeps: the reference numbers, and where rounding itself gives out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import wd_optax as wd

pytestmark = pytest.mark.slow


def decayed(tx, p, steps):
    """p after some steps of a zero gradient."""
    zeros = optax.tree.zeros_like(p)

    def step(carry, _):
        updates, state = tx.update(zeros, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0])((p, tx.init(p)))[0]


ONES = {"kernel": jnp.ones((64, 64), jnp.bfloat16)}
WAYS = {
    "optax": lambda lr: optax.adamw(lr, weight_decay=0.1),
    "nearest": lambda lr: wd.adamw(lr, weight_decay=0.1, rounding="nearest"),
    "stochastic": lambda lr: wd.adamw(lr, weight_decay=0.1, rounding="stochastic"),
    "compensated": lambda lr: wd.adamw(lr, weight_decay=0.1, rounding="compensated"),
    "master": lambda lr: wd.precision.with_master_weights(optax.adamw(lr, weight_decay=0.1)),
    "with_decay": lambda lr: wd.with_decay(optax.adam(lr), learning_rate=lr, weight_decay=0.1, rounding="stochastic"),
    "sgdw": lambda lr: wd.sgdw(lr, weight_decay=0.1, momentum=0.9, rounding="stochastic"),
}


@pytest.mark.optax_promotes
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lr", [1e-2, 1e-3])
def test_f06_bfloat16_keeps_the_decay(lr, way):
    """2000 steps of lr·0.1: 0.1352 and 0.8187; nearest rounding stays at 1.0000 to the bit."""
    exact = (1 - lr * 0.1) ** 2000
    assert exact == pytest.approx({1e-2: 0.1352, 1e-3: 0.8187}[lr], abs=5e-5)
    end = np.float64(decayed(WAYS[way](lr), ONES, 2000)["kernel"])
    if way in ("optax", "nearest"):
        assert np.all(end == 1)
    elif way == "master":
        assert np.all(end == np.float64(jnp.bfloat16(exact)))
    elif way == "compensated":
        # a unit of bfloat16 at the result, and half a unit of the residual, 2⁻⁹·2⁻⁸ relative, that each step may lose
        assert np.all(np.abs(end / exact - 1) < 2.0**-7 + 2.0**-18 * 2000)
    else:
        # each step's rounding has at most half a unit (2⁻⁸·p) of deviation, √(q(1−q)) of a unit with q = c·2⁸ the
        # chance to fall: relative variance c·2⁻⁷ a step at most; 4096 entries; 6σ: false alarm 2·10⁻⁹
        deviation = np.sqrt(2000 * lr * 0.1 * 2.0**-7)
        assert abs(end.mean() / exact - 1) < 6 * deviation / 64
        assert 0 < end.std() / exact < 1.2 * deviation


F7 = {(1e-4, 1e-4, 20_000): (0.9998, 1.0), (1e-6, 1e-2, 1000): (0.99999, 1.0), (3e-4, 1e-4, 20_000): (0.9994, 0.998808)}


@pytest.mark.optax_promotes
@pytest.mark.parametrize(("setting", "found"), F7.items(), ids=str)
def test_f07_float32_loses_the_decay_at_small_rates(setting, found):
    """The exact value, and what optax and plain wd.adamw make of it; "compensated_all" has it to a unit of float32."""
    lr, weight_decay, steps = setting
    exact = (1 - lr * weight_decay) ** steps
    assert exact == pytest.approx(found[0], abs=5e-7)
    p = {"kernel": jnp.ones((1, 1), jnp.float32)}
    for tx in (optax.adamw(lr, weight_decay=weight_decay), wd.adamw(lr, weight_decay=weight_decay)):
        assert float(decayed(tx, p, steps)["kernel"][0, 0]) == pytest.approx(found[1], abs=1e-6)
    compensated = wd.adamw(lr, weight_decay=weight_decay, rounding="compensated_all")
    # c itself is a float32, 2⁻²⁴ of what is removed; the result has units of 2⁻²⁴
    assert float(decayed(compensated, p, steps)["kernel"][0, 0]) == pytest.approx(exact, abs=2.0**-23)


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    ("rounding", "rate", "kept"),
    [
        ("compensated", 3e-5, True),
        ("compensated", 3e-6, False),
        ("stochastic", 3e-6, True),
        ("stochastic", 2e-8, False),
    ],
)
def test_what_is_too_small_is_lost_still(rounding, rate, kept):
    """A residual of 8 bits stalls where c < 2⁻¹⁸ = 3.8·10⁻⁶; p + u in float32 where c < 2⁻²⁵ = 3·10⁻⁸."""
    p = jnp.ones(4096, jnp.bfloat16)
    steps = min(round(0.1 / rate), 40_000)
    tx = optax.chain(wd.precision.in_float32(wd.shrink(rate, mask=None)), wd.precision.round_updates(rounding))
    end = np.float64(decayed(tx, p, steps))
    exact = (1 - rate) ** steps
    if not kept:
        assert np.all(end == 1)
    elif rounding == "compensated":  # a unit of the parameter, and half a unit of the residual a step
        assert np.all(np.abs(end - exact) < 2.0**-8 + 2.0**-19 * steps)
    else:  # as in f06: 6σ of the mean of 4096
        assert abs(end.mean() / exact - 1) < 6 * np.sqrt(steps * rate * 2.0**-7) / 64
        assert end.mean() < 1 - 0.5 * (1 - exact)


# --- second moments in bfloat16


def second_moments(rounding, steps=3000, g=1.0, start=0.5, entries=4096):
    """nu after some steps of a constant g: 1 − (1 − start)·b2^t of g²."""
    tx = wd.precision.low_precision_state(optax.scale_by_adam(b2=0.999), rounding=rounding, nu=jnp.bfloat16)
    p = jnp.ones(entries, jnp.bfloat16)
    state = tx.init(p)
    state = state._replace(inner=state.inner._replace(nu=jnp.full(entries, start * g**2, jnp.bfloat16)))
    step = lambda state, _: (tx.update(jnp.full_like(p, g), state, p)[1], None)
    return np.float64(jax.lax.scan(step, state, length=steps)[0].inner.nu)


@pytest.mark.optax_promotes
def test_second_moments_in_bfloat16_stop_or_keep_moving():
    """(1 − b2)·(g² − v) = 0.0005 is under half a unit, 2⁻⁹ = 0.002, of v = 0.5: nearest rounding stays there."""
    assert np.all(second_moments("nearest") == 0.5)
    v = second_moments("stochastic")
    exact = 1 - 0.5 * 0.999**3000
    # stationary variance: unit²·q(1−q)/(1 − b2²), unit 2⁻⁸ below 1 and 2⁻⁷ above, q ≤ ¼: less than 2⁻¹⁴/4/0.002;
    # the mean of 4096 entries within 6σ: false alarm 2·10⁻⁹
    assert abs(v.mean() - exact) < 6 * np.sqrt(2.0**-14 / 4 / 0.002 / 4096)
    assert stats.sem(v) > 0
