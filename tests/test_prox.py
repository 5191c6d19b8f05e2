"""Penalties: each proximal step against its optimality condition, and what the optimizers minimise with them."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from catalogue import build, grads, params, run, step
from helpers import assert_same_bits
from sklearn.linear_model import ElasticNet, Lasso, MultiTaskLasso

import wd_optax as wd
from wd_optax import prox
from wd_optax.prox import steps
from wd_optax.prox.checks import ADAPTIVE
from wd_optax.prox.inference import infer_adam_metric

# --- Each proximal step, in float64 ----------------------------------------------------------------------------------

# The derivative of each penalty where x > 0; at 0 the subdifferential is ± its limit. All are even.
SLOPES = {
    "l2": ("l2", lambda x: x),
    "l1": ("l1", np.ones_like),
    "elastic": (prox.elastic(0.3), lambda x: 0.3 + 0.7 * x),
    "huber": (prox.huber(0.4), lambda x: np.minimum(x, 0.4)),
}


def bisect(y, k, metric, slope):
    """The x in [0, |y|] at which D·(x − |y|) + k·slope(x) changes its sign, with the sign of y: no formula of ours."""
    low, high = np.zeros_like(y), np.abs(y)
    for _ in range(100):
        x = (low + high) / 2
        too_far = metric * (x - np.abs(y)) + k * slope(x) > 0
        low, high = np.where(too_far, low, x), np.where(too_far, x, high)
    return np.sign(y) * np.where(metric * -np.abs(y) + k * slope(np.zeros_like(y)) >= 0, 0, low)


def update(penalty, p, u, k, *, metric=None, anchor=None, slices=None):
    """p + step of one leaf through the library, in float64."""
    rule = None if anchor is None else wd.rules.toward({"kernel": anchor})
    metric = "euclidean" if metric is None else (lambda metric: lambda state: {"kernel": jnp.asarray(metric)})(metric)
    tx = wd.with_decay(
        optax.identity(), learning_rate=1.0, weight_decay=k, mask=None, penalty=penalty, rule=rule, metric=metric,
        slices=slices,
    )  # fmt: skip
    tree = {"kernel": jnp.asarray(p)}
    updates, _ = tx.update({"kernel": jnp.asarray(u)}, tx.init(tree), tree)
    return np.asarray(p + updates["kernel"])


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


METRICS = {"1": None, "scalar": 0.3, "array": 10 ** np.random.default_rng(7).uniform(-3, 1, size=(4, 5))}


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", SLOPES)
def test_a_penalty_per_entry_is_the_minimiser(x64, name, metric, anchored):
    penalty, slope = SLOPES[name]
    p, u = numbers(4, 5), numbers(4, 5, seed=1)
    a = numbers(4, 5, seed=2) if anchored else np.zeros((4, 5))
    d = 1.0 if METRICS[metric] is None else METRICS[metric]
    for k in (0.3, 2.5):
        got = update(penalty, p, u, k, metric=METRICS[metric], anchor=a if anchored else None)
        want = a + bisect(p + u - a, k, d, slope)
        np.testing.assert_allclose(got, want, atol=1e-10)  # roundings of 2⁻⁵³ of numbers below 10, and 100 halvings
        if not anchored:
            np.testing.assert_array_equal(got == 0, want == 0)


@pytest.mark.parametrize("name", ["l1", "elastic", "group"])
@pytest.mark.parametrize("metric", ["1", "array"])
def test_a_zero_is_exact_in_float32_too(name, metric):
    p, u = (np.float32(numbers(4, 5, seed=i)) for i in (0, 1))
    d = METRICS[metric] if METRICS[metric] is None else np.float32(METRICS[metric])
    k = {"l1": 0.5, "elastic": 1.0, "group": 3.0}[name]
    penalty = prox.group(0) if name == "group" else name
    assert 0 < (update(penalty, p, u, k, metric=d) == 0).sum() < 20


def is_group_minimiser(x, y, k, metric, axes):
    """The residual of D·(x − y) + k·x/‖x‖ = 0 as a part of ‖y‖ or, where x = 0, whether ‖D·y‖ ≤ k, for each group."""
    reduced = tuple(i for i in range(x.ndim) if i not in axes)
    norm = lambda z: np.sqrt(np.sum(z * z, axis=reduced, keepdims=True))
    n = norm(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        want = np.where(n > 0, y * metric * n / (metric * n + k), 0)
    assert np.all((n > 0) | (norm(metric * y) <= k * (1 + 1e-12)))
    return np.max(norm(x - want) / norm(y))


GROUPS = {
    "one": (prox.group(), None, ()),
    "rows": (prox.group(0), None, (0,)),
    "columns": (prox.group(-1), None, (1,)),
    "by name, sliced": ("group", [("kernel", 1)], (0,)),
    "both": (prox.group(1), [("kernel", 1)], (0, 1)),
}


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", GROUPS)
def test_a_group_is_the_minimiser(x64, name, metric, anchored):
    penalty, slices, axes = GROUPS[name]
    p, u = numbers(4, 5), numbers(4, 5, seed=1)
    a = numbers(4, 5, seed=2) if anchored else np.zeros((4, 5))
    d = 1.0 if METRICS[metric] is None else METRICS[metric]
    zeros = 0
    for k in (0.1, 3.0):
        x = update(penalty, p, u, k, metric=METRICS[metric], anchor=a if anchored else None, slices=slices) - a
        assert is_group_minimiser(np.where(np.abs(x) < 1e-15, 0, x), p + u - a, k, d, axes) < 1e-10
        zeros += (x == 0).sum()
    assert zeros > 0 or name == "one" or anchored


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_newton_s_method_has_steps_enough(x64, dtype):
    """Groups with D over eight decades and k near the threshold or twelve decades below it.

    As those that the comment beside `STEPS` speaks of.
    """
    rng, worst = np.random.default_rng(1), 0.0
    solve = jax.jit(lambda y, k, d: prox.group()(y - 1, jnp.ones_like(y), k, d, ()) + 1)
    for i in range(64):
        d = 10 ** rng.uniform(-8, 0, 200) if i % 2 else np.where(rng.random(200) < 0.5, 1e-8, 1.0)
        y = rng.normal(size=200) / (1, d, np.sqrt(d))[i % 3]
        y /= np.abs(y).max()
        k = np.linalg.norm(d * y) * (10 ** rng.uniform(-12, 0), 1 - 10 ** rng.uniform(-6, -1))[i % 4 // 2]
        d, y, k = (np.asarray(x, dtype) for x in (d, y, k))
        x = np.float64(solve(y, k, d))
        n = bisect_norm(*map(np.float64, (d, y, k)))
        want = np.float64(y) * n / (n + np.float64(k) / np.float64(d)) if n else 0 * x
        worst = max(worst, np.linalg.norm(x - want) / np.linalg.norm(y))
    assert worst < 16 * np.finfo(dtype).eps  # of Newton's method 4; the rest are those of p, r and x themselves


def bisect_norm(d, y, k):
    """n with ‖D·y/(D·n + k)‖ = 1."""
    if np.linalg.norm(d * y) <= k:
        return 0.0
    low, high = 0.0, np.linalg.norm(y)
    for _ in range(200):
        n = (low + high) / 2
        low, high = (n, high) if np.linalg.norm(d * y / (d * n + k)) > 1 else (low, n)
    return low


def test_a_group_s_metric_has_a_gradient():
    """Newton's steps are a loop of known length: a step can be differentiated, forward and backward."""
    y, d = jnp.float32(numbers(6)), jnp.float32(METRICS["array"].ravel()[:6])
    length = lambda k: jnp.linalg.norm(prox.group()(y, 0 * y, k, d, ()))
    ks = jnp.array([0.09, 0.1, 0.11])
    (below, _, above), slopes = jax.jit(jax.vmap(jax.value_and_grad(length)))(ks)
    np.testing.assert_allclose(slopes[1], (above - below) / 0.02, rtol=2e-2)  # a difference over a tenth


@pytest.mark.parametrize("name", steps.PENALTIES)
def test_complex_leaves_shrink_in_absolute_value(name):
    """Of p·e^{iφ} the step is that of p, turned: a penalty is of |p|."""
    p, u = np.float32(numbers(3, 4)), np.float32(0.1 * numbers(3, 4, seed=1))
    phase = np.complex64(np.exp(0.7j))
    for metric in (None, np.float32(METRICS["array"][:3, :4])):
        real, turned = (update(name, p * z, u * z, 0.3, metric=metric) for z in (1, phase))
        np.testing.assert_allclose(turned, real * phase, atol=1e-6)  # a few roundings of 2⁻²⁴ of numbers below 4


def test_a_penalty_may_be_a_function():
    def l0(step, r, k, metric, axes):
        del axes
        return jnp.where(metric * (r + step) ** 2 <= 2 * k, -r, step)

    got = update(l0, np.float32([0.5, 2.0]), np.float32([0.1, 0.1]), 0.5)
    np.testing.assert_allclose(got, [0, 2.1], rtol=1e-6)


# --- What the optimizers minimise ------------------------------------------------------------------------------------

A = jnp.array([0.1, 1.0])
LAMBDA = 0.15


@functools.partial(jax.jit, static_argnames=("tx", "gradient", "steps"))
def scan(tx, gradient, start, steps):
    def one(carry, i):
        p, state = carry
        return step(tx, {"w": gradient(p["w"], i)}, state, p), None

    (p, _), _ = jax.lax.scan(one, ({"w": start}, tx.init({"w": start})), jnp.arange(steps))
    return p["w"]


def quadratic(p, i):
    """The gradient of ½|p − a|²."""
    del i
    return p - A


def with_decay(optimizer, lr, **options):
    return wd.with_decay(optimizer, learning_rate=lr, weight_decay=LAMBDA, mask=None, penalty="l1", **options)


MINIMISERS = {
    "sgdw": lambda: wd.sgdw(0.1, weight_decay=LAMBDA, mask=None, penalty="l1"),
    "adamw": lambda: wd.adamw(1e-2, weight_decay=LAMBDA, mask=None, penalty="l1"),
    "adamw, nesterov": lambda: wd.adamw(1e-2, weight_decay=LAMBDA, mask=None, penalty="l1", nesterov=True),
    "decoupled": lambda: wd.decoupled(
        optax.scale_by_adam(b2=0.99), 1e-2, weight_decay=LAMBDA, mask=None, penalty="l1", metric=prox.adam_metric(0.99)
    ),
    "rules of a coupling": lambda: wd.adamw(
        1e-2, weight_decay=LAMBDA, mask=None, penalty="l1", coupling=[(".*", "lr")]
    ),
    "schedule": lambda: wd.sgdw(0.1, weight_decay=0.1 * LAMBDA, mask=None, penalty="l1", coupling="schedule"),
    # heavy ball accumulates gradients, and not the threshold: loss + (1 − μ)/(1 − τ)·λ·penalty
    "momentum": lambda: wd.sgdw(0.01, weight_decay=10 * LAMBDA, momentum=0.9, mask=None, penalty="l1"),
    "nesterov": lambda: wd.sgdw(0.01, weight_decay=10 * LAMBDA, momentum=0.9, nesterov=True, mask=None, penalty="l1"),
    "dampening": lambda: wd.sgdw(0.02, weight_decay=5 * LAMBDA, momentum=0.9, dampening=0.5, mask=None, penalty="l1"),
    "rmsprop": lambda: with_decay(optax.rmsprop(1e-2), 1e-2, metric=prox.rms_metric(eps_root=1e-8)),
    "adamax": lambda: with_decay(optax.adamax(1e-2), 1e-2, metric=lambda state: optax.tree.get(state, "nu")),
    # Adam's metric is measured
    "adam": lambda: with_decay(optax.adam(1e-2), 1e-2),
    "direction": lambda: wd.decoupled(
        optax.scale_by_adam(b2=0.95, eps=1e-6), 1e-2, weight_decay=LAMBDA, mask=None, penalty="l1"
    ),
    "chain": lambda: with_decay(optax.chain(optax.clip_by_global_norm(1.0), optax.nadam(1e-2)), 1e-2),
    "partition": lambda: with_decay(
        optax.partition({"adam": optax.adam(1e-2), "sgd": optax.sgd(1e-2)}, {"w": "adam"}), 1e-2,
        metric=prox.adam_metric(),
    ),
}  # fmt: skip


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", MINIMISERS)
def test_l1_in_the_optimizer_s_metric_minimises_loss_plus_l1(name):
    got = scan(MINIMISERS[name](), quadratic, jnp.array([1.5, -1.0]), 3000)
    assert got[0] == 0
    np.testing.assert_allclose(got[1], 1 - LAMBDA, atol=2e-6)  # the last of the steps, and roundings


@pytest.mark.optax_promotes
def test_proximal_after_adam_does_not_regularise():
    tx = optax.chain(optax.adam(1e-3), wd.proximal(wd.decay_rate(LAMBDA, learning_rate=1e-3), None, penalty="l1"))
    np.testing.assert_allclose(scan(tx, quadratic, jnp.array([1.5, -1.0]), 20_000), A, atol=1e-4)  # and not (0, 0.85)
    euclidean = with_decay(optax.adam(1e-3), 1e-3, metric="euclidean")
    end = scan(euclidean, quadratic, jnp.array([1.5, -1.0]), 20_000)
    np.testing.assert_allclose(end, A, atol=1e-4)  # closer than one threshold, η·λ = 1.5e-4, both times


@pytest.mark.optax_promotes
def test_l2_with_adamw_is_ridge_and_plain_adamw_is_not():
    ends = {
        penalty: scan(wd.adamw(1e-2, weight_decay=LAMBDA, mask=None, penalty=penalty), quadratic, A * 2, 3000)
        for penalty in ("l2", None)
    }
    np.testing.assert_allclose(ends["l2"], A / (1 + LAMBDA), atol=2e-6)  # of ½|x − a|² + λ/2·|x|²
    assert np.abs(ends[None] - A / (1 + LAMBDA)).max() > 0.05  # with exact gradients decay leaves a where |a| < 1/λ


@pytest.mark.optax_promotes
@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_an_entry_without_a_gradient_goes_to_zero_at_once_in_adam_s_metric(penalty):
    """D = ε: nothing in the loss holds it, and the metric says that it may move."""
    p = {"kernel": jnp.array([[2.0, 2.0]])}
    tx = wd.adamw(1e-3, weight_decay=0.1, penalty=penalty)
    end = step(tx, {"kernel": jnp.array([[0.0, 1.0]])}, tx.init(p), p)[0]["kernel"][0]
    free, held = (0.0, 2 - 1.1e-3) if penalty == "l1" else (2 * 1e-8 / (1e-8 + 1e-4), 1.999 / 1.0001)
    np.testing.assert_allclose(end, [free, held], rtol=0, atol=2.4e-7)  # one unit in the last place of 2


@functools.cache
def regression():
    """400 rows, 60 features of which 12 count, 3 targets, noise of 0.5."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(400, 60)), np.zeros((60, 3))
    w[:12] = 2 * rng.normal(size=(12, 3))
    batches = jnp.asarray(rng.integers(0, 400, size=(4000, 32)))
    return x, x @ w + 0.5 * rng.normal(size=(400, 3)), batches


EXACT = {"fit_intercept": False, "tol": 1e-12, "max_iter": 100_000}
SKLEARN = {
    "Lasso": (Lasso(0.1, **EXACT), "l1", 1),
    "ElasticNet": (ElasticNet(0.15, l1_ratio=0.7, **EXACT), prox.elastic(0.7), 1),
    "MultiTaskLasso": (MultiTaskLasso(0.1, **EXACT), prox.group(axis=0), 3),
}
OPTIMIZERS = {
    "sgdw": lambda λ, penalty: wd.sgdw(0.2, weight_decay=λ, mask=None, penalty=penalty),
    "sgdw, momentum": lambda λ, penalty: wd.sgdw(0.02, weight_decay=10 * λ, momentum=0.9, mask=None, penalty=penalty),
    "adamw": lambda λ, penalty: wd.adamw(0.02, weight_decay=λ, mask=None, penalty=penalty),
}


def zeros_of(model, name, size):
    """(ours, scikit-learn's) coefficients, from batches of 32 rows or from all 400."""
    x, y, batches = regression()
    estimator, penalty, targets = SKLEARN[model]
    y = y[:, :targets]
    theirs = estimator.fit(x, y if targets > 1 else y[:, 0]).coef_.T.reshape(60, targets)
    x, y = jnp.float32(x), jnp.float32(y)

    def gradient(w, i):
        rows = batches[i] if size == 32 else slice(None)
        return x[rows].T @ (x[rows] @ w - y[rows]) / size

    return np.asarray(
        scan(OPTIMIZERS[name](estimator.alpha, penalty), gradient, jnp.zeros((60, targets)), 4000)
    ), theirs


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", ["sgdw", "adamw"])
@pytest.mark.parametrize("model", SKLEARN)
def test_the_zeros_are_scikit_learn_s(model, name):
    ours, theirs = zeros_of(model, name, 400)
    np.testing.assert_array_equal(ours == 0, theirs == 0)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)  # 4,000 steps of float32, and Adam's last steps
    assert (theirs == 0).mean() > 0.4


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", ["sgdw, momentum", "adamw"])
@pytest.mark.parametrize("model", SKLEARN)
def test_nine_in_ten_of_the_zeros_with_batches_of_32(model, name):
    """With momentum, which averages the gradients of batches: plain SGD's zeros last for one batch, see below."""
    ours, theirs = zeros_of(model, name, 32)
    assert ((ours == 0) == (theirs == 0)).mean() >= 0.9


def test_plain_sgd_keeps_few_zeros_under_noise():
    ours, theirs = zeros_of("Lasso", "sgdw", 32)
    assert ((ours == 0) & (theirs == 0)).sum() < 0.9 * (theirs == 0).sum()


# --- Beside them -----------------------------------------------------------------------------------------------------


@pytest.mark.optax_promotes
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "compensated"])
def test_rounding_keeps_exact_zeros(rounding):
    p = {"kernel": jnp.asarray(numbers(16, 16), jnp.bfloat16)}
    tx = wd.adamw(1e-2, weight_decay=2.0, penalty="l1", rounding=rounding, nu_dtype=jnp.bfloat16)
    state, g = tx.init(p), jax.tree.map(lambda x: 0.1 * x, p)
    one, zeros = jax.jit(lambda g, state, p: step(tx, g, state, p)), []
    for _ in range(40):
        p, state = one(g, state, p)
        zeros.append(np.asarray(p["kernel"] == 0))
    assert zeros[-1].sum() > 0
    np.testing.assert_array_equal(zeros[-1], zeros[-1] | zeros[-5])  # a zero with |g| < λ stays one


@functools.cache
def without_decay_by(name, penalty=None):
    p = {"attn": params()["attn"]}
    p["attn"]["bias"] = p["attn"]["bias"].at[0].set(jnp.array([-0.0, 0.0, jnp.inf, -jnp.inf]))
    return run(build(name, mask=None, weight_decay=0.0, penalty=penalty), p, grads(p), 3)[0]


@pytest.mark.quick_compile(False)
@pytest.mark.optax_promotes
@pytest.mark.parametrize("penalty", ["l1", "huber", "group"])
@pytest.mark.parametrize("name", ["sgdw", "adamw"])
def test_zero_decay_is_bitwise_the_optimizer_without_decay(name, penalty):
    assert_same_bits(without_decay_by(name, penalty), without_decay_by(name))


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", ["sgdw", "adamw"])
def test_any_rate_is_stable(name):
    """c = η·λ is a threshold and not a fraction: 1 and more are no error."""
    p = {"kernel": jnp.float32(numbers(3, 4))}
    g = jax.tree.map(jnp.ones_like, p)  # D = 1 in Adam, too
    for penalty, end in (("l2", (p["kernel"] - 0.5) / 101), ("l1", 0 * p["kernel"])):
        tx = build(name, learning_rate=0.5, weight_decay=200.0, penalty=penalty)
        after = step(tx, g, tx.init(p), p)[0]
        np.testing.assert_allclose(after["kernel"], end, atol=5e-7)  # roundings of 2⁻²⁴ of p and of the step
    with pytest.raises(ValueError, match="removes 100 of each weight per step; it must be below 1"):
        build(name, learning_rate=0.5, weight_decay=200.0)


@pytest.mark.optax_promotes
@pytest.mark.parametrize("penalty", ["elastic", "group"])
def test_leaves_that_are_none_scalar_empty_hidden_or_live(penalty):
    p = {"kernel": jnp.ones((2, 3)), "none": None, "scalar": jnp.float32(1.0), "empty": jnp.zeros((0, 4))}
    g = jax.tree.map(jnp.ones_like, p)
    tx = wd.adamw(0.1, weight_decay=0.5, penalty=penalty, mask=None)
    state = tx.init(p)
    live = jax.jit(jax.vmap(lambda value: tx.update(g, optax.tree.set(state, weight_decay=value), p)[0]))
    updates = live(jnp.array([0.0, 0.5]))
    chex.assert_tree_all_finite(updates)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.tree.map(lambda x: x[0], updates), p)
    np.testing.assert_allclose(updates["kernel"][0], -0.1, rtol=1e-5)
    assert np.all(updates["kernel"][1] < -0.1)
    hidden = optax.masked(tx, {"kernel": True, "none": None, "scalar": False, "empty": False})
    hidden.update(g, hidden.init(p), p)
    marked = optax.tree.map_params(tx, lambda x: "params", tx.init(p), transform_non_params=lambda x: "other")
    assert marked.hyperparams == {"learning_rate": "other", "weight_decay": "other"}


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", ["nu", "count", "mu"])
def test_parameters_may_be_called_as_a_moment_is(name):
    p = {name: jnp.ones((2, 2))}
    tx = wd.adamw(0.1, weight_decay=0.5, penalty="l1", mask=None)
    updates, _ = tx.update(p, tx.init(p), p)
    np.testing.assert_allclose(updates[name], -0.1 * (1 + 0.5), rtol=1e-5)  # g = D = 1


# --- What is refused -------------------------------------------------------------------------------------------------


def optimizers_with_a_state_of(names):
    """Optimizers and directions of Optax by their arguments' defaults, whose state has one of these types."""
    members = {**vars(optax), **vars(optax.contrib)}
    for name in sorted(members):
        if name.startswith(("scale_by_", "ada", "am", "ya", "yogi", "rms", "novo", "sm3", "rprop", "lion", "cocob")):
            try:
                state = members[name]().init({"w": jnp.ones((2, 2))})
            except (TypeError, ValueError):
                continue
            kinds = {type(x).__name__ for x in jax.tree.leaves(state, is_leaf=lambda n: type(n).__name__ in names)}
            if kinds & set(names):
                yield name, members[name](), kinds & set(names)


def test_every_direction_of_optax_that_rescales_the_gradient_needs_a_metric():
    seen = set()
    for name, direction, kinds in optimizers_with_a_state_of(ADAPTIVE):
        tx = wd.decoupled(direction, 1e-3, weight_decay=0.1, penalty="l1", mask=None)
        if infer_adam_metric(direction) is not None:
            assert kinds == {"ScaleByAdamState"}, name
            continue
        with pytest.raises(ValueError, match=r"penalty= with a direction that rescales.*metric=") as caught:
            tx.init({"w": jnp.ones((2, 2))})
        assert any(kind in str(caught.value) for kind in kinds), name
        seen |= kinds
    assert len(seen) >= 15
    exist = {type_ for module in (optax, optax.contrib) for type_ in vars(module)} | {
        "ScaleByRmsWithCountState", "ScaleByRStdDevWithCountState"
    }  # fmt: skip
    assert set(ADAPTIVE) <= exist


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        (optax.amsgrad, 1e-2), (optax.rmsprop, 1e-2), (optax.adagrad, 0.1),
        (lambda lr: optax.rmsprop(lr, bias_correction=True), 1e-2),
        (lambda lr: optax.inject_hyperparams(optax.adabelief)(lr), 1e-2),
    ],
)  # fmt: skip
def test_the_line_that_the_error_prints_minimises_loss_plus_l1(optimizer, lr):
    with pytest.raises(ValueError, match="metric=") as caught:
        with_decay(optimizer(lr), lr).init({"w": A})
    line = re.search(r"metric=(wd\.prox\.\w+\([^)]*\))", str(caught.value)).group(1)
    tx = with_decay(optimizer(lr), lr, metric=eval(line, {"wd": wd}))
    got = scan(tx, quadratic, jnp.array([1.5, -1.0]), 4000)
    assert got[0] == 0
    np.testing.assert_allclose(got[1], 1 - LAMBDA, atol=1e-4)  # amsgrad's and Adagrad's steps become ever smaller


WARM_UP = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 5000)
ADAMS = {  # an optimizer and its (b2, eps, eps_root); None: it isn't inferred
    "adam": (optax.adam(1e-3), (0.999, 1e-8, 0.0)),
    "numbers": (optax.adam(1e-3, b2=0.95, eps=1e-6), (0.95, 1e-6, 0.0)),
    "eps_root": (optax.adam(1e-3, eps=1e-8, eps_root=1e-8), (0.999, 1e-8, 1e-8)),
    "eps 0": (optax.adam(1e-3, eps=0.0), (0.999, 0.0, 0.0)),
    "large eps": (optax.scale_by_adam(eps=0.1), (0.999, 0.1, 0.0)),
    "warm-up": (optax.adam(WARM_UP), (0.999, 1e-8, 0.0)),
    "bfloat16": (optax.adam(1e-3, mu_dtype=jnp.bfloat16), (0.999, 1e-8, 0.0)),
    "clip before": (optax.chain(optax.clip_by_global_norm(1.0), optax.nadam(1e-3)), (0.999, 1e-8, 0.0)),
    "decay after": (optax.adamw(1e-3, weight_decay=0.1), (0.999, 1e-8, 0.0)),
    "injected": (optax.inject_hyperparams(optax.adam)(1e-3, b2=0.99), (0.99, 1e-8, 0.0)),
    "clip after": (optax.chain(optax.scale_by_adam(), optax.clip(0.5)), None),
    "trust ratio": (optax.lamb(1e-3), None),
    "ν without a root": (optax.adamax(1e-3), None),
    "another average": (optax.yogi(1e-3), None),
    "belief": (optax.adabelief(1e-3), None),
    "no momentum": (optax.adam(1e-3, b1=0.0), None),
    "skips": (optax.MultiSteps(optax.adam(1e-3), 4), None),
    "another": (optax.rmsprop(1e-3), None),
    "none": (optax.sgd(1e-3, 0.9), None),
}


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", ADAMS)
def test_adam_s_numbers_are_measured(name):
    optimizer, expected = ADAMS[name]
    metric = infer_adam_metric(optimizer)
    assert (metric is None) == (expected is None)
    if metric is not None:
        p = {"w": jnp.ones(3)}
        nu = jnp.array([0.0, 1e-14, 1.0])
        state = optax.ScaleByAdamState(jnp.array(3), p, {"w": nu})
        # √ of roundings of 2⁻²⁴, and of the eps that is the rest of a difference
        np.testing.assert_allclose(metric(state)["w"], prox.adam_metric(*expected)(state)["w"], rtol=1e-3)
        np.testing.assert_allclose(metric(state)["w"][2], prox.adam_metric(*expected)(state)["w"][2], rtol=1e-5)


@pytest.mark.optax_promotes
def test_two_adams_need_a_metric():
    two = optax.partition({"a": optax.adam(1e-3), "b": optax.adam(1e-3, b2=0.9)}, lambda p: {k: k[0] for k in p})
    with pytest.raises(ValueError, match=r"metric=wd\.prox\.adam_metric"):
        with_decay(two, 1e-3).init({"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))})


def test_a_direction_of_two_kinds_names_the_one_without_a_formula():
    """Muon has Adam inside, for leaves that aren't matrices: Adam's metric would be that of these alone."""
    with pytest.raises(ValueError, match=r"whose state is a MuonState.*metric=, a function from this state"):
        with_decay(optax.contrib.muon(1e-3), 1e-3).init({"w": jnp.ones((2, 2)), "b": jnp.ones(2)})


def test_a_direction_without_a_metric_needs_none():
    for direction in (optax.identity(), optax.trace(0.9), optax.ema(0.9), optax.contrib.dog(1.0), optax.clip(1.0)):
        wd.decoupled(direction, 1e-3, weight_decay=0.1, penalty="l1").init(params())
    wd.decoupled(optax.scale_by_lion(), 1e-3, weight_decay=0.1, penalty="l1", metric="euclidean").init(params())
    wd.decoupled(optax.scale_by_adam(), 1e-3, weight_decay=0.1).init(params())
    p = {"nu": jnp.ones((2, 2))}  # a parameter's name, and no moment
    wd.sgdw(0.1, weight_decay=0.1, momentum=0.9, penalty="l1").init(p)


BAD = {
    "word": (lambda: wd.adamw(1e-3, weight_decay=0.1, penalty="l3"), ValueError, r"penalty='l3' has no proximal step"),
    "metric alone": (
        lambda: wd.decoupled(optax.scale_by_adam(), 1e-3, weight_decay=0.1, metric=prox.adam_metric()),
        ValueError, "metric= is of a proximal step: give penalty=",
    ),
    "metric": (
        lambda: wd.decoupled(optax.scale_by_adam(), 1e-3, weight_decay=0.1, penalty="l1", metric="adam"),
        TypeError, "metric='adam': expected a function",
    ),
    "not called": (
        lambda: wd.sgdw(0.1, weight_decay=0.1, penalty=prox.elastic), TypeError,
        r"penalty=elastic: call it, as wd\.prox\.elastic\(\)",
    ),
    "metric, not called": (
        lambda: wd.decoupled(optax.trace(0.9), 0.1, weight_decay=0.1, penalty="l1", metric=prox.adam_metric),
        TypeError, r"metric=adam_metric: call it, as wd\.prox\.adam_metric\(\)",
    ),
    "l1_ratio": (lambda: prox.elastic(1.5), ValueError, r"l1_ratio=1.5 must be in \[0, 1\]"),
    "negative l1_ratio": (lambda: prox.elastic(-0.5), ValueError, "l1_ratio=-0.5 must be finite and not negative"),
    "delta": (lambda: prox.huber(0.0), ValueError, "delta=0.0 must be positive"),
    "axis": (lambda: prox.group("rows"), TypeError, "axis='rows': expected an int or a tuple"),
    "b2": (lambda: prox.adam_metric(b2=1.0), ValueError, "b2=1.0 must be below 1"),
    "eps": (lambda: prox.rms_metric(eps=-1.0), ValueError, "eps=-1.0 must be finite and not negative"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    make, error, text = BAD[case]
    with pytest.raises(error, match=text):
        make()


def test_what_does_not_fit_the_parameters_is_refused_at_init_by_path():
    p = params()
    with pytest.raises(ValueError, match=r"group\(axis=2\) names an axis that an array of rank 2 doesn't have") as e:
        wd.sgdw(0.1, weight_decay=0.1, penalty=prox.group(2)).init(p)
    assert "on 'embed/embedding' of shape (5, 3)" in e.value.__notes__[-1]
    wd.sgdw(0.1, weight_decay=0.1, penalty=prox.group(2), mask=[("kernel", 1.0)]).init(p)  # others don't decay
    with pytest.raises(ValueError, match="names an axis") as e:
        wd.proximal(0.1, penalty=prox.group(-4)).init(p)
    with pytest.raises(TypeError) as e:
        wd.sgdw(0.1, weight_decay=0.1, penalty=lambda step: step).init(p)
    assert "as penalty(step, r, k, D, axes)" in e.value.__notes__[-1]
    with pytest.raises(ValueError, match=r"penalty: its step at 'attn/kernel' has shape \(\)"):
        wd.sgdw(0.1, weight_decay=0.1, penalty=lambda step, r, k, d, axes: jnp.sum(step)).init(p)


def test_a_metric_that_does_not_fit_is_refused_at_init():
    p = params()
    make = lambda metric: wd.decoupled(optax.trace(0.9), 0.1, weight_decay=0.1, penalty="l1", metric=metric).init(p)
    with pytest.raises(ValueError, match="metric: the direction's state has no nu and count: it is a TraceState"):
        make(prox.adam_metric())
    with pytest.raises(ValueError, match="metric: expected a tree like the parameters, got another"):
        make(lambda state: {"w": 1.0})
    with pytest.raises(ValueError, match=r"metric: D at 'attn/kernel' has shape \(3,\), expected \(\) or"):
        make(lambda state: jax.tree.map(lambda x: jnp.ones(3), state.trace))
    make(lambda state: jax.tree.map(lambda x: 1.0, state.trace))  # one number for each leaf


@pytest.mark.parametrize("name", ["sgdw", "adamw", "proximal"])
def test_a_penalty_takes_no_gate(name):
    with pytest.raises(ValueError, match="takes no gate"):
        build(name, penalty="l1", rule=wd.rules.cautious()).init(params())


def test_every_penalty_is_a_word_and_a_function_of_one_leaf():
    assert set(steps.PENALTIES) == {"l2", "l1", "elastic", "huber", "group"}
    leaf = jnp.ones((2, 3))
    for (name, penalty), k in itertools.product(steps.PENALTIES.items(), (0.1, 10.0)):
        got = penalty(0 * leaf, leaf, jnp.float32(k), jnp.float32(1), ())
        assert -1 <= float(got.min()) <= float(got.max()) < 0, name
