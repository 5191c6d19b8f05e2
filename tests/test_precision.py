"""Rounding p + u: the right bits over the whole range, and casts with the right mean.

The oracle is NumPy with ml_dtypes. Where something is not exact, the region and the size of the slip are tested.
"""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from helpers import bits
from hypothesis import given, settings
from hypothesis import strategies as st

import wd_optax as wd
from wd_optax.precision import casts, exact_steps, random_bits

TINY, HUGE = np.finfo(np.float32).tiny, np.finfo(np.float32).max
SIXTEEN_BITS = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]
FLOAT8 = [
    np.dtype(getattr(ml_dtypes, f"float8_{name}"))
    for name in ("e4m3fn", "e5m2", "e4m3", "e3m4", "e4m3b11fnuz", "e4m3fnuz", "e5m2fnuz")
]
# How many times smaller than p a result must be before float32 may not carry p' − p: 2^(24 − significant bits).
SHRINKS = {"bfloat16": 16, "float16": 13, "float8_e5m2": 21, "float8_e5m2fnuz": 21}
all_types = pytest.mark.parametrize("dtype", SIXTEEN_BITS + FLOAT8, ids=str)


stochastic = jax.jit(casts.stochastic, static_argnums=1)


def every(dtype):
    """All values of a type, NaN, infinities and both zeros included."""
    return np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)


def rounded_step(p, u, rounding="nearest"):
    """What the step makes of p, by `optax.apply_updates`; float8, which JAX doesn't promote, is added by hand."""
    tx = wd.precision.round_updates(rounding)
    rounded, _ = tx.update(u, tx.init(p), p)
    if p.dtype.itemsize == 1:
        return (p.astype(jnp.float32) + rounded).astype(p.dtype)
    return optax.apply_updates(p, rounded)


MODES = {"eager": rounded_step, "jit": jax.jit(rounded_step, static_argnames="rounding")}


def assert_right_bits(p, u, got):
    """`got` is round(p + u) to the bit, but for what the module's docstring says."""
    with np.errstate(all="ignore"):
        p32 = p.astype(np.float32)
        total = p32 + u
        want = total.astype(p.dtype)
        target, found = want.astype(np.float32), got.astype(np.float32)
        parts = (p32, u, total, target - p32)
        subnormal = functools.reduce(np.logical_or, [(np.abs(x) < TINY) & (x != 0) for x in parts])
        overflows = np.isfinite(target) & np.isfinite(p32) & ~np.isfinite(target - p32)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(target))
        usual = ~(subnormal | overflows | np.isnan(target) | (target == 0))
        np.testing.assert_array_equal(bits(got)[usual], bits(want)[usual])
        # a zero keeps its sign; one made of another entry is +0
        zero = (target == 0) & ~subnormal
        kept = np.where(p32 == 0, p32, 0).astype(p.dtype)
        np.testing.assert_array_equal(bits(got)[zero], bits(kept)[zero])
        # each of p, u, p + u and u' may be taken for zero: four times less than 2⁻¹²⁶, which may tip the rounding
        lost = subnormal & np.isfinite(target)
        unit = 2 * float(ml_dtypes.finfo(p.dtype).eps) * np.abs(target.astype(float))
        assert np.all(np.abs(found.astype(float) - target)[lost] <= (2.0**-124 + unit)[lost])
        np.testing.assert_array_equal(found[overflows], np.sign(target - p32)[overflows] * np.inf)


def updates(p, rng):
    """Updates of every kind for every p: none, tiny, half a unit, cancelling, doubling, huge, any bits, ±0, ±inf."""
    p32 = np.nan_to_num(p.astype(np.float32), posinf=1, neginf=1)
    sign = lambda: rng.choice(np.float32([-1, 1]), p.shape)
    power = lambda low, high: np.float32(2) ** rng.uniform(low, high, p.shape).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        yield from (np.full(p.shape, x, np.float32) for x in (0.0, -0.0, np.inf, -np.inf, 1, HUGE, -HUGE, TINY, 1e-40))
        for _ in range(3):
            yield rng.integers(0, 2**32, p.shape, np.uint32).view(np.float32)
            yield sign() * p32 * power(-30, -12)
            yield (
                p32 * (sign() * rng.integers(1, 2**12, p.shape)).astype(np.float32) * np.float32(2**-12)
            )  # halfway too
            yield sign() * p32 * power(-12, -2)  # around half a unit in the last place, for all types
            yield -p32 * (1 + sign() * power(-26, -1))  # cancels to little, or to the other side
            yield p32 * power(0, 30)
            yield rng.permutation(p).astype(np.float32)


@pytest.mark.optax_promotes
@pytest.mark.parametrize(("mode", "rounding"), [("eager", "nearest"), ("jit", "nearest"), ("jit", "compensated")])
@all_types
def test_rounds_to_the_right_bits_everywhere(dtype, mode, rounding):
    """Compensation rounds p + u less what will be left over: the same value, at every halfway point too."""
    p = np.tile(every(dtype), 1 if dtype.itemsize == 2 else 64)
    for u in updates(p, np.random.default_rng(0)):
        assert_right_bits(p, u, np.asarray(MODES[mode](jnp.asarray(p), jnp.asarray(u), rounding=rounding)))


@pytest.mark.optax_promotes
@settings(max_examples=300, deadline=None, derandomize=True)
@given(entries=st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)), min_size=8, max_size=8))
def test_rounds_to_the_right_bits_of_any_two_numbers(entries):
    p, u = np.array(entries, np.uint32).T.copy()
    p, u = p.astype(np.uint16).view(ml_dtypes.bfloat16), u.view(np.float32)
    assert_right_bits(p, u, np.asarray(MODES["jit"](jnp.asarray(p), jnp.asarray(u))))


@all_types
def test_where_float32_cannot_carry_the_difference(dtype):
    """Every target from p in one binade: off only where it shrinks p 2^SHRINKS-fold, by up to 2⁻²⁴·|p|, if at all."""
    values = every(dtype)
    p32 = values.astype(np.float32)
    values = values[np.isfinite(p32) & ((np.abs(p32) >= TINY) | (p32 == 0))]
    p32 = values.astype(np.float32)
    top = 2.0 ** np.floor(np.log2(min(p32.max(), 2.0**100)))
    starts = values[(p32 >= top) & (p32 < 2 * top)][:: 1 if dtype.itemsize == 1 else 8]
    add = jax.jit(lambda p: (p.astype(jnp.float32) + exact_steps.difference(jnp.asarray(values), p)).astype(p.dtype))
    shrinks = []
    for p in starts:
        slip = np.abs(np.asarray(add(jnp.full(values.shape, p))).astype(float) - p32)
        with np.errstate(divide="ignore"):
            shrinks.append(np.min(np.abs(float(p) / p32.astype(float))[slip > 0], initial=np.inf))
        assert slip.max() <= 2.0**-24 * float(p)
    assert (min(shrinks) < np.inf) == (dtype.name in SHRINKS)
    if dtype.name in SHRINKS:
        assert 1 <= min(shrinks) / 2.0 ** SHRINKS[dtype.name] < 1.25


@pytest.mark.parametrize(("dtype", "kept"), [(jnp.bfloat16, "reduce_precision"), (jnp.float16, "optimization_barrier")])
def test_a_cast_down_and_up_is_not_two_converts(dtype, kept):
    """XLA's GPU compiler may drop such a pair, and no rounding is left; nothing shows that on a CPU but the program."""
    lowered = jax.jit(lambda x: casts.nearest(x, dtype).astype(jnp.float32)).trace(jnp.ones(3))
    assert kept in lowered.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.optax_promotes
@pytest.mark.parametrize("jit", [False, True])
def test_removing_nearly_all_of_a_weight(jit):
    """In one program p − c·p may carry more bits than float32, and 2¹⁷-fold shrinking slips: by up to 2⁻²⁴·|p|."""
    p = jnp.asarray((np.arange(128, dtype=np.uint16) + 0x3F80).view(ml_dtypes.bfloat16))
    for exponent in (14, 16, 17, 18, 20):
        c = np.float32(1 - 1.37 * 2.0**-exponent)
        tx = optax.chain(wd.precision.in_float32(wd.shrink(float(c), mask=None)), wd.precision.round_updates("nearest"))
        step = lambda p, tx=tx: optax.apply_updates(p, tx.update(jnp.zeros_like(p), tx.init(p), p)[0])
        exact = (1 - np.float64(c)) * np.float64(p)
        got = np.float64((jax.jit(step) if jit else step)(p))
        # the update's own rounding to float32 is another 2⁻²⁵·|p|, and the result's half a unit
        allowed = 2.0**-24 * np.float64(p) + 2.0**-25 * np.float64(p) + 2.0**-8 * np.abs(exact)
        assert np.all(np.abs(got - exact) <= allowed)


def test_float8_is_not_promoted_by_jax():
    """So that `optax.apply_updates` says so, rather than drop the update."""
    p = jnp.ones(2, jnp.float8_e5m2)
    tx = wd.precision.round_updates("stochastic")
    rounded, _ = tx.update(jnp.full(2, 0.01, jnp.float32), tx.init(p), p)
    assert rounded.dtype == jnp.float32
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match="8-bit floats do not support implicit"):
        optax.apply_updates(p, rounded)


# --- stochastic casts


def between(dtype, rng):
    """A float32 between each two neighbours that are no float32 subnormals, and the neighbours."""
    values = np.unique(every(dtype).astype(np.float32))
    values = values[np.isfinite(values) & ((np.abs(values) >= TINY) | (values == 0))]
    low, high = values[:-1], values[1:]
    with np.errstate(over="ignore"):
        gap = high - low
    keep = (gap >= 2**10 * TINY) & (low != high)
    low, high, gap = low[keep], high[keep], gap[keep]
    x = np.clip(low + gap * rng.uniform(0, 1, low.shape).astype(np.float32), low, high)
    return x, low, high


@all_types
def test_both_neighbours_with_the_right_chance(dtype):
    """Counted over 256 evenly spaced words of bits, not sampled: the share that goes up is right to 1/256."""
    x, low, high = between(dtype, np.random.default_rng(0))
    words = (np.arange(256, dtype=np.uint32) << np.uint32(24)) + np.uint32(2**23)
    cast = jax.jit(jax.vmap(lambda b: casts.stochastic(x, dtype, jnp.full(x.shape, b))))
    up = 0.0
    for part in np.split(words, 8):
        got = np.asarray(cast(jnp.asarray(part))).astype(np.float32)
        assert np.all((got == low) | (got == high))
        up += (got == high).sum(0) / len(words)
    np.testing.assert_allclose(up, (x.astype(float) - low) / (high.astype(float) - low), rtol=0, atol=1 / 256)


def test_bfloat16_is_unbiased_to_the_last_bit_of_float32():
    """All 2¹⁶ words that it uses: x goes up for as many of them as its lower half says, exactly."""
    words = jnp.arange(2**16, dtype=jnp.uint32) << jnp.uint32(16)
    for x in np.float32([1.0, 1.0 + 2.0**-23, 1.001, -3.14159, 1e-30, -2e38]):
        count = int(np.sum(np.abs(np.float32(stochastic(jnp.full(2**16, x), jnp.bfloat16, words))) > abs(x)))
        lower = int(x.view(np.uint32) % 2**16)
        assert count == lower


@pytest.mark.parametrize("dtype", [d for d in SIXTEEN_BITS + FLOAT8 if d.name != "bfloat16"], ids=str)
def test_other_types_are_unbiased_to_24_bits(dtype):
    """The words around the one where the choice must flip, of the 2²⁴ there are."""
    low, high = np.float32(1), np.float32(1 + float(ml_dtypes.finfo(dtype).eps))
    for share in (2.0**-20, 0.3, 0.4999, 0.7):
        x = low + (high - low) * np.float32(share)
        exact = (float(x) - 1) / (float(high) - 1)
        down = exact > 0.5  # the nearer neighbour is `high`, and `low` is the choice of few words
        flip = (1 - exact if down else exact) * 2**24
        words = np.arange(max(int(flip) - 8, 0), max(int(flip) - 8, 0) + 17, dtype=np.uint32)
        got = np.float32(stochastic(np.full(words.shape, x), dtype, words << np.uint32(8)))
        far, near = (low, high) if down else (high, low)
        # float32's own rounding of the ratio: 3 operations of 2⁻²⁴, under 3 of the words
        np.testing.assert_array_equal(got[words < flip - 3], far)
        np.testing.assert_array_equal(got[words > flip + 3], near)


@all_types
def test_the_mean_is_right_by_a_binomial_bound(dtype):
    """Our own bits, 2¹⁶ draws for each of 5 × 9 values, 6σ: false alarm 10⁻⁷."""
    low, high = 1.0, 1 + float(ml_dtypes.finfo(dtype).eps)
    draw = random_bits.bits((2**16,), random_bits.leaf_key(*map(jnp.uint32, (1, 2, 0, 3))))
    for share in (0.001, 0.1, 0.5, 0.77, 0.999):
        x = np.float32(low + (high - low) * share)
        share = (float(x) - low) / (high - low)
        up = np.mean(np.asarray(stochastic(np.full(2**16, x), dtype, draw)).astype(float) == high)
        assert abs(up - share) < 6 * np.sqrt(share * (1 - share) / 2**16)


@all_types
def test_values_of_the_type_stay_as_they_are(dtype):
    values = every(dtype)
    values = values[~((np.abs(values.astype(np.float32)) < TINY) & (values.astype(np.float32) != 0))]
    for word in (0, 2**31, 2**32 - 1):
        got = stochastic(values.astype(np.float32), dtype, np.full(values.shape, np.uint32(word)))
        number = ~np.isnan(values.astype(np.float32))
        np.testing.assert_array_equal(bits(got)[number], bits(values)[number])
        assert np.isnan(np.asarray(got).astype(np.float32)[~number]).all()


@all_types
def test_past_the_largest_number_the_nearest_value_is_taken(dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.float32([np.inf, -np.inf, np.nan, largest * 1.0005, -largest * 1.003, largest * 1.2])
        want = x.astype(dtype).astype(np.float32)
    for word in (0, 2**31, 2**32 - 1):
        got = np.asarray(stochastic(x, dtype, np.full(x.shape, np.uint32(word))))
        np.testing.assert_array_equal(got.astype(np.float32), want)


@pytest.mark.optax_promotes
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [*SIXTEEN_BITS, *FLOAT8[:2]], ids=str)
def test_a_stochastic_step_goes_to_a_neighbour(dtype, mode):
    p = np.tile(every(dtype), 1 if dtype.itemsize == 2 else 64)
    values = np.unique(p.astype(np.float32)[np.isfinite(p.astype(np.float32))])
    for u in updates(p, np.random.default_rng(1)):
        got = np.asarray(MODES[mode](jnp.asarray(p), jnp.asarray(u), rounding="stochastic")).astype(np.float32)
        with np.errstate(all="ignore"):
            p32 = p.astype(np.float32)
            total = p32 + u
            near = total.astype(dtype).astype(np.float32)
            # from 2⁻¹¹⁸ to 2¹²⁶, no difference of two bfloat16 is a float32 subnormal or infinite
            ordinary = lambda x: ((np.abs(x) >= 2.0**-118) & (np.abs(x) < 2.0**126)) | (x == 0)
            normal = ordinary(p32) & ordinary(u) & ordinary(total) & np.isfinite(near)
            place = np.searchsorted(values, total[normal])
            below, above = values[np.maximum(place - 1, 0)], values[np.minimum(place, len(values) - 1)]
            at = got[normal]
            assert np.all((at == below) | (at == above) | (at == near[normal]))
            exact = normal & (near == total)
            np.testing.assert_array_equal(got[exact], near[exact])
