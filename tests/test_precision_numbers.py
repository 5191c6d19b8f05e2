"""Decay that low precision loses and rounding keeps: the reference numbers, and where rounding itself gives out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import wd_optax as wd

pytestmark = pytest.mark.slow


@functools.cache
def compiled(way, steps):
    """`ONES` after some steps by one of WAYS, from its learning rate."""
    return jax.jit(lambda lr: decayed(WAYS[way](lr), ONES, steps))


def decayed(tx, p, steps):
    """p after some steps of a zero gradient."""
    return run(tx, p, steps)[0]


def run(tx, p, steps):
    """p and the state after some steps of a zero gradient."""
    zeros = optax.tree.zeros_like(p)

    def step(carry, _):
        updates, state = tx.update(zeros, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps)[0])((p, tx.init(p)))


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
    end = np.float64(compiled(way, 2000)(lr)["kernel"])
    if way in ("optax", "nearest"):
        assert np.all(end == 1)
    elif way == "master":
        assert np.all(end == np.float64(jnp.bfloat16(exact)))
    elif way == "compensated":
        # a unit of bfloat16 at the result; the residual's noise, √(2000·c·2⁻¹⁵) of p at most, 6σ, is less than another
        assert np.all(np.abs(end / exact - 1) < 2.0**-7 + 6 * np.sqrt(2000 * lr * 0.1 * 2.0**-15))
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
@pytest.mark.parametrize(("rate", "kept"), [(3e-6, True), (2e-8, False)])
def test_stochastic_rounding_loses_what_float32_loses(rate, kept):
    """p + u is formed in float32, which loses u where c < 2⁻²⁵ = 3·10⁻⁸."""
    p = jnp.ones(4096, jnp.bfloat16)
    steps = min(round(0.1 / rate), 40_000)
    tx = optax.chain(wd.precision.in_float32(wd.shrink(rate, mask=None)), wd.precision.round_updates("stochastic"))
    end = np.float64(decayed(tx, p, steps))
    exact = (1 - rate) ** steps
    if not kept:
        assert np.all(end == 1)
    else:  # as in f06: 6σ of the mean of 4096
        assert abs(end.mean() / exact - 1) < 6 * np.sqrt(steps * rate * 2.0**-7) / 64
        assert end.mean() < 1 - 0.5 * (1 - exact)


COMPENSATED = {  # residuals at random: of 8 bits, of 11, and of 3, the smallest of which is 2⁻¹⁶
    "bfloat16": (jnp.bfloat16, 1.9, (1e-4, 1e-6, 1e-7, 1e-8)),
    "bfloat16, p = 1": (jnp.bfloat16, 1.0, (2.0**-19, 3e-6)),
    "float16": (jnp.float16, 1.9, (1e-6, 1e-8)),
    "float16, subnormal": (jnp.float16, 2.0**-16, (1e-3, 1e-5)),
}


@pytest.mark.optax_promotes
@pytest.mark.parametrize("case", COMPENSATED)
def test_compensated_rounding_loses_no_decay_however_small(case):
    """4000 steps of c leave (1 − c)⁴⁰⁰⁰. The whole decay is 0.4 % at c = 1e-6, so the test is of what decays.

    A residual rounded to the nearest of 8 bits loses all of it under c = 2⁻¹⁸. Mean over 8192 entries of p + residual:
    a step of c·p leaves a residual of unit h at random, a variance of at most c·p·h, and h is 2⁻ᵇ of the residual,
    which is under half a unit of p and under the decay itself. 6σ, false alarm 2·10⁻⁹ each; and c·p is of the rounded
    p, off by half a unit.
    """
    dtype, start, rates = COMPENSATED[case]
    entries, steps = 8192, 4000
    p = jnp.full(entries, start, dtype)
    start, eps, least = float(p[0]), float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).smallest_subnormal)
    for rate in rates:
        tx = optax.chain(wd.precision.in_float32(wd.shrink(rate, mask=None)), wd.precision.round_updates("compensated"))
        end, state = run(tx, p, steps)
        decay = start * (1 - (1 - rate) ** steps)
        half = max(eps * start, least) / 2
        unit = max(eps * min(half, decay), least)
        found = start - (np.float64(end) + np.float64(state[1].residual)).mean()
        noise = 6 * np.sqrt(steps * rate * start * unit / entries)
        assert abs(found - decay) < noise + decay * half / start, (rate, found / decay)
        assert noise < 0.06 * decay  # it would see a twentieth of the decay missing
        # p itself is the nearest value, or the other one where the residual is near half a unit
        assert abs(np.float64(end).mean() - (start - decay)) <= half + noise + decay * half / start


@pytest.mark.optax_promotes
def test_the_residual_of_float32_is_exact_and_draws_no_bits():
    """ "compensated_all": two-sum's error is a float32, so c = 1e-10, which float32 loses, is right to a hundredth."""
    p = jnp.full(16, 1.9, jnp.float32)
    tx = optax.chain(wd.shrink(1e-10, mask=None), wd.precision.round_updates("compensated_all"))
    end, state = run(tx, p, 4000)
    found = (np.float64(p) - np.float64(end)) - np.float64(state[1].residual)
    # c·p is rounded once, and each sum of residuals: 4000 roundings of 2⁻²⁴ of at most the decay
    np.testing.assert_allclose(found, 1.9 * 4000e-10, rtol=4000 * 2.0**-24 + 1e-6)


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
