"""Lion's equilibrium under random gradients, and where cautious decay leaves a weight under noise."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

import wd_optax as wd
from wd_optax.choosing.equilibrium import cautious_minimum, equilibrium

pytestmark = pytest.mark.optax_promotes  # Optax's scale_by_lion
as_users_compile = pytest.mark.quick_compile(False)  # they run for longer than they compile

FAN_IN, COLUMNS, ETA = 200, 32, 1e-2
BETAS = {"default": (0.9, 0.99), "signs of gradients": (0.0, 0.99), "one beta": (0.95, 0.95)}


@pytest.fixture(scope="module")
def gaussian():
    """By NumPy, because JAX draws slowly on a CPU."""
    return np.random.default_rng(0).standard_normal((6001, FAN_IN, COLUMNS), np.float32)


@functools.partial(jax.jit, static_argnums=1)
def simulate(betas, weight_decay, gaussian):
    """Random gradients of weights whose columns are scale-invariant: norm (RMS over columns) and angle, last half."""
    tx = wd.decoupled(optax.scale_by_lion(*betas), ETA, weight_decay=weight_decay, mask=None)
    start = 1.5 * equilibrium(ETA, weight_decay=weight_decay, size=1, optimizer="lion").norm
    w, steps = start * gaussian[0], len(gaussian) - 1

    def one(carry, g):
        w, state = carry
        unit = w / jnp.linalg.norm(w, axis=0, keepdims=True)
        g = g - unit * jnp.sum(unit * g, axis=0, keepdims=True)
        updates, state = tx.update(g, state, w)
        new = w + updates
        norm = jnp.linalg.norm(new, axis=0, keepdims=True)
        cosine = jnp.sum(unit * new / norm, axis=0)
        return (new, state), (jnp.sqrt(jnp.mean(norm**2)), jnp.mean(jnp.arccos(cosine)))

    norms, angles = jax.lax.scan(one, (w, tx.init(w)), gaussian[1:])[1]
    return norms[steps // 2 :].mean(), angles[steps // 2 :].mean()


@as_users_compile
@pytest.mark.slow
@pytest.mark.parametrize("name", BETAS)
def test_lions_equilibrium_is_what_random_gradients_reach(name, gaussian):
    b1, b2 = BETAS[name]
    found = equilibrium(ETA, weight_decay=0.5, optimizer="lion", size=FAN_IN, b1=b1, b2=b2)
    norm, angle = simulate((jnp.float32(b1), jnp.float32(b2)), 0.5, gaussian)
    # 2 %: 3000 steps are 30 times `steps`, over 32 columns.
    assert norm == pytest.approx(found.norm, rel=0.02)
    assert angle == pytest.approx(found.angle, rel=0.02)
    linearised = equilibrium(ETA, weight_decay=0.5, optimizer="adamw", size=FAN_IN, b1=b1)
    if b1:  # AdamW's formula is no substitute
        assert abs(linearised.angle / float(angle) - 1) > 0.1


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.99), (0.95, 0.98), (0.3, 0.0), (0.99, 0.99), (0.999, 0.999)])
def test_lions_sum_is_the_arcsine_law(b1, b2):
    c, lags = 1e-3, np.arange(1, 40_000)
    weights = np.concatenate(
        [[1 - b1], b1 * (1 - b2) * b2 ** np.arange(lags.size, dtype=float)]
    )  # of g_t, g_{t-1}, ...
    spectrum = np.fft.rfft(weights, 2 * weights.size)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[: weights.size]
    signs = 2 / np.pi * np.arcsin(np.clip(covariance / covariance[0], -1, 1))
    total = np.sum((1 - c) ** lags * signs[1:])
    found = equilibrium(1e-2, weight_decay=0.1, optimizer="lion", size=1, b1=b1, b2=b2)
    # E[w²] of w = −η·Σ (1 − c)ᵏ u_{t−k}, and the correlation of w_t with w_{t+1}
    square = 1e-4 * (1 + 2 * total) / (1 - (1 - c) ** 2)
    cosine = (1 - c) + 1e-4 * total / (1 - c) / square
    np.testing.assert_allclose([found.norm, found.angle], [square**0.5, np.arccos(cosine)], rtol=3e-4)  # ARCSINE_TERMS


def test_lions_equilibrium_of_arrays_tracers_and_couplings():
    lion = functools.partial(equilibrium, optimizer="lion", weight_decay=0.1, size=100)
    etas = np.array([1e-3, 1e-2])
    each = [lion(float(eta)) for eta in etas]
    for found in (lion(etas), jax.vmap(lion)(jnp.asarray(etas)), jax.jit(lion)(jnp.asarray(etas))):
        for i, alone in enumerate(each):
            np.testing.assert_allclose([x[i] for x in found], alone, rtol=1e-5)  # float32
    corrected = functools.partial(lion, weight_decay=1e-3, coupling="corrected", peak_learning_rate=1e-2)
    assert corrected(1e-3).norm == pytest.approx(corrected(1e-2).norm, rel=1e-3)  # S depends on c/(1 − β₂), 1e-3 here
    # without momentum steps are independent: a random walk with decay
    free = equilibrium(1e-2, weight_decay=0.1, optimizer="lion", size=4, b1=0.0)
    assert free.norm == pytest.approx(1e-2 * (4 / (1 - (1 - 1e-3) ** 2)) ** 0.5, rel=1e-12)
    assert np.cos(free.angle) == pytest.approx(1 - 1e-3, rel=1e-12)
    assert equilibrium(1e-2, weight_decay=0.1, optimizer="lion").norm is None


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"optimizer": "adamw", "b2": 0.9}, "b2=0.9: adamw's momentum is called b1"),
        ({"optimizer": "lion", "momentum": 0.9}, "momentum=0.9: lion's momentum is called b1 and b2"),
        ({"optimizer": "lion", "b2": 1.0}, "b2=1.0 must be below 1"),
    ],
)
def test_momenta_are_refused_by_name(bad, says):
    with pytest.raises(ValueError, match=says):
        equilibrium(0.01, weight_decay=0.1, **bad)


# --- cautious decay under noise --------------------------------------------------------------------------------------


def balance(x, a, decay, noise, h):
    """E[u + λ·x·gate] by integration over the noise."""
    gate = lambda z: float((h * (x - a) + noise * z) * x > 0) * stats.norm.pdf(z)
    kink = -h * (x - a) / noise
    opened = integrate.quad(gate, -12, 12, points=[kink] if abs(kink) < 12 else None, limit=200)[0]
    return h * (x - a) + decay * x * opened


@pytest.mark.parametrize(
    ("a", "decay", "noise", "h"), [(1.0, 1.0, 0.3, 1.0), (-2.0, 0.1, 1.0, 0.5), (0.05, 3.0, 2.0, 4.0)]
)
def test_the_cautious_minimum_balances_gradient_and_decay(a, decay, noise, h):
    found = float(cautious_minimum(a, weight_decay=decay, noise=noise, curvature=h))
    assert abs(balance(found, a, decay, noise, h)) < 1e-5 * abs(a)  # float32
    assert abs(a) * h / (h + decay / 2) <= abs(found) < abs(a)
    assert np.sign(found) == np.sign(a)


@as_users_compile
def test_the_cautious_minimum_is_where_noisy_training_settles():
    decay, noise, runs = 1.0, 0.5, 2000
    tx = wd.sgdw(0.01, weight_decay=decay, rule=wd.rules.cautious(), mask=None)

    def one(carry, drawn):
        x, state = carry
        g = x - 1.0 + noise * drawn
        updates, state = tx.update(g, state, x)
        return (x + updates, state), x.mean()

    start = (jnp.ones(runs), tx.init(jnp.ones(runs)))
    drawn = np.random.default_rng(0).standard_normal((1500, runs), np.float32)
    means = np.asarray(jax.jit(lambda drawn: jax.lax.scan(one, start, drawn)[1])(drawn))
    bias = 1 - float(means[700:].mean())  # 700 steps are 7 times 1/(η·h)
    predicted = 1 - float(cautious_minimum(1.0, weight_decay=decay, noise=noise))
    assert bias == pytest.approx(predicted, rel=0.02)  # x itself varies by √η·s: seen 0.7 %
    assert bias < 0.7 * 0.5  # plain decay ends at 1/2


def test_the_cautious_minimum_of_limits_arrays_and_tracers():
    solve = functools.partial(cautious_minimum, weight_decay=1.0)
    chex.assert_trees_all_equal(solve(1.5, noise=0.0), jnp.float32(1.5))
    np.testing.assert_allclose(solve(3.0, noise=1e8), 2.0, rtol=1e-6)  # the gate is open half of the time
    assert solve(0.0, noise=1.0) == 0
    np.testing.assert_allclose(cautious_minimum(1.0, weight_decay=0.0, noise=1.0), 1.0, rtol=1e-6)
    noises = np.array([0.1, 1.0])
    each = [float(solve(1.0, noise=noise)) for noise in noises]
    np.testing.assert_allclose(solve(1.0, noise=noises), each, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda s: solve(1.0, noise=s))(jnp.asarray(noises)), each, rtol=1e-6)
    assert jax.jit(solve)(jnp.ones((2, 1)), noise=jnp.ones(3)).shape == (2, 3)


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ({"noise": -1.0}, ValueError, "noise=-1.0 must be finite and not negative"),
        ({"curvature": 0.0}, ValueError, "curvature=0.0 must be above 0"),
        ({"weight_decay": lambda t: t}, TypeError, "weight_decay is a schedule"),
        ({"noise": float("nan")}, ValueError, "noise=nan must be finite"),
    ],
)
def test_bad_numbers_are_refused(bad, error, says):
    with pytest.raises(error, match=says):
        cautious_minimum(1.0, **{"weight_decay": 1.0, "noise": 1.0} | bad)
