"""Random bits and rounding are the same on a GPU as on a CPU, to the bit. `make gpu-bits` runs the GPU's half.

The expected bits are those of the CPU, operation by operation, so that the half that needs no GPU compares something
too: the compiled program. All numbers are such that products are exact in float32; so it makes no difference whether
a compiler contracts a product and a sum into one operation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd
from wd_optax.precision import casts, random_bits

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2]
ROUNDINGS = ("nearest", "stochastic", "compensated")
LOWER = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]  # ties of float16 and of bfloat16
SUBNORMAL = 2.0**-126  # XLA's CPU runtime takes numbers under it for zero, a GPU doesn't


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    try:
        return jax.devices(request.param)[0]
    except RuntimeError as error:
        pytest.fail(f"-m gpu needs a GPU that JAX can use, and JAX_PLATFORMS=cuda,cpu: {error}")


def on(device, function, *arguments):
    """What the compiled function returns on the device, and what its operations return one by one on the CPU."""
    compiled = jax.jit(function)(*jax.device_put(arguments, device))
    assert all(x.devices() == {device} for x in jax.tree.leaves(compiled))
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu), jax.disable_jit():
        one_by_one = function(*jax.device_put(arguments, cpu))
    return jax.tree.map(np.asarray, compiled), jax.tree.map(np.asarray, one_by_one)


def assert_same_bits(got, expected):
    """Bit for bit; any NaN is as good as another."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        word = np.dtype(f"u{a.dtype.itemsize}")
        nan = np.isnan(b.astype(np.float32)) if b.dtype.kind not in "ui" else np.zeros(b.shape, bool)
        np.testing.assert_array_equal(np.where(nan, 0, a.view(word)), np.where(nan, 0, b.view(word)))
        np.testing.assert_array_equal(np.isnan(a.astype(np.float32)), nan)


def values():
    """Every upper half of a float32 with lower halves on both sides of ties, without float32's subnormals."""
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << np.uint32(16)
    x = (upper | np.array(LOWER, np.uint32)).view(np.float32).ravel()
    return jnp.asarray(x[(x == 0) | ~(np.abs(x) < SUBNORMAL)])


def rounded(x, dtype):
    """NumPy's cast down and up."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(x).astype(dtype).astype(np.float32)


@pytest.mark.parametrize("shape", [(5,), (3, 1, 257), (64, 1024)])
def test_random_bits(device, shape):
    stream = (7, 2**31 + 5)
    draw = lambda seed, step: random_bits.bits(shape, random_bits.leaf_keys([stream], seed=seed, step=step)[stream])
    got, expected = on(device, draw, jnp.uint32(2**32 - 3), jnp.int32(11))
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(got)) == got.size


@pytest.mark.parametrize("dtype", DTYPES)
def test_stochastic_casts(device, dtype):
    x = values()
    bits = random_bits.bits(x.shape, random_bits.leaf_key(*map(jnp.uint32, (1, 2, 3, 4))))
    got, expected = on(device, lambda x, bits: casts.stochastic(x, dtype, bits), x, bits)
    assert_same_bits(got, expected)
    nearest = rounded(x, dtype)
    normal = np.abs(nearest) >= float(jnp.finfo(dtype).smallest_normal)  # smaller ones are rarely rounded up
    inside = normal & np.isfinite(nearest) & (np.asarray(x) != nearest)
    assert 0.1 < (got.astype(np.float32) != nearest)[inside].mean() < 0.7  # bits were drawn


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_down_and_up_rounds(device, dtype):
    """XLA's GPU compiler may drop such a pair (openxla/xla 41605); NumPy rounds here."""
    x, size = values(), jnp.abs(values())
    x = x[(size > 2.0**-100) & (size < 2.0**127)]  # 2x is finite, and what is left over of it is no subnormal

    def down_and_up(x):
        doubled = 2 * x
        return doubled - casts.nearest(doubled, dtype).astype(jnp.float32), casts.nearest(x, dtype).astype(jnp.float32)

    got, _ = on(device, down_and_up, x)
    with np.errstate(over="ignore", invalid="ignore"):
        doubled = 2 * np.asarray(x)
        assert_same_bits(got, (doubled - rounded(doubled, dtype), rounded(x, dtype)))
    assert (got[0] != 0).mean() > 0.5


@pytest.mark.optax_promotes
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_steps_with_decay(device, rounding):
    """Momentum and decay in bfloat16, with factors that are powers of two."""
    rng = np.random.default_rng(0)
    params, grads = ({"kernel": jnp.asarray(rng.normal(size=(64, 96)), jnp.bfloat16)} for _ in range(2))
    tx = wd.sgdw(2.0**-6, weight_decay=2.0**-4, momentum=0.5, rounding=rounding)

    def run(params, grads):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, jax.tree.leaves(state)

    got, expected = on(device, run, params, grads)
    assert_same_bits(got, expected)
    assert (got[0]["kernel"] != np.asarray(params["kernel"])).mean() > 0.5


@pytest.mark.optax_promotes
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_state_in_low_precision(device, rounding):
    """A moment that is cast down at the end of a step and up at the beginning of the next."""
    rng = np.random.default_rng(0)
    params, grads = ({"kernel": jnp.asarray(rng.normal(size=(64, 96)), jnp.float32)} for _ in range(2))
    grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16).astype(jnp.float32), grads)
    tx = wd.precision.low_precision_state(optax.trace(0.5), rounding=rounding, trace=jnp.bfloat16)

    def run(params, grads):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
        return updates, optax.tree.get(state, "trace")

    got, expected = on(device, run, params, grads)
    assert_same_bits(got, expected)
