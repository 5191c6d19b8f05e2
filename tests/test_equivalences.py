"""When L2 regularisation and weight decay are the same, when they differ, and by how much: rows S1-S20 of the mission.

In float64, so that "the same" means 1e-12 and a missing decay can't hide in a tolerance.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import in_pairs
from sklearn.datasets import load_digits

import wd_optax as wd

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.optax_promotes]

LR, WD, STEPS = 0.1, 0.05, 20
SAME = {"rtol": 1e-12, "atol": 1e-14}  # some 20 steps of rounding in float64, sums in another order
FALLING = lambda t: LR / (1 + t)
RISING = lambda t: WD * (1 + t)


@functools.cache
def tiny():
    """A line through points: y = w·x + b."""
    x = jnp.linspace(-1, 1, 8)
    params = {"w": jnp.asarray(0.3), "b": jnp.asarray(-0.2)}
    return params, lambda p: jnp.mean((p["w"] * x + p["b"] - (2 * x + 1)) ** 2)


@functools.cache
def real():
    """A ReLU network on scikit-learn's handwritten digits."""
    digits = load_digits()
    x, y = jnp.asarray(digits.data[:128] / 16), jnp.asarray(digits.target[:128])
    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, 32)) / 8, "bias": jnp.full(32, 0.1)},
        "out": {"kernel": jax.random.normal(keys[1], (32, 10)) / 6, "bias": jnp.full(10, 0.1)},
    }

    def loss(p):
        hidden = jax.nn.relu(x @ p["hidden"]["kernel"] + p["hidden"]["bias"][None])
        logits = hidden @ p["out"]["kernel"] + p["out"]["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return params, loss


PROBLEMS = {"tiny": tiny, "real": real}
both_problems = pytest.mark.parametrize("problem", ["tiny", pytest.param("real", marks=pytest.mark.slow)])


def problems_in_pairs(*axes):
    """Problems and other axes as parameters: some that cover all pairs of values, the rest marked exhaustive."""
    marks = lambda point: [*point.marks, *[pytest.mark.slow] * (point.values[0] == "real")]
    return [pytest.param(*point.values, marks=marks(point), id=point.id) for point in in_pairs(PROBLEMS, *axes)]


def train(tx, params, loss, steps=STEPS):
    """The trajectory of the parameters, stacked over steps."""
    return train_each([(tx, loss)], params, steps)[0]


def train_each(ways, params, steps=STEPS):
    """The trajectory of each (optimizer, loss), from one program."""

    def one(way, p, state):
        tx, loss = way
        updates, state = tx.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, updates), state

    def step(carry, _):
        carry = [one(way, *own) for way, own in zip(ways, carry, strict=True)]
        return carry, [p for p, _ in carry]

    return jax.jit(lambda p: jax.lax.scan(step, [(p, tx.init(p)) for tx, _ in ways], length=steps)[1])(params)


def distance(a, b):
    """Largest difference of the last parameters, in units of the first run's largest weight."""
    last_a, last_b = (np.concatenate([np.ravel(np.asarray(x)[-1]) for x in jax.tree.leaves(t)]) for t in (a, b))
    return np.max(np.abs(last_a - last_b)) / np.max(np.abs(last_a))


# --- S1, S2, S3, S6: L2 in the loss, SGD with decay, and their equivalence ---------------------------------


@pytest.mark.parametrize(("problem", "mask", "half"), problems_in_pairs(["none", "weights", "half"], [True, False]))
def test_s01_both_l2_conventions_and_the_transform_that_equals_them(problem, mask, half):
    params, loss = PROBLEMS[problem]()
    mask = {"none": None, "weights": "weights", "half": [("w|kernel", 0.5)]}[mask]
    penalised = lambda p: loss(p) + wd.l2_penalty(p, WD, mask, half=half)
    in_chain = optax.chain(wd.add_l2_to_loss(WD if half else 2 * WD, mask), optax.adam(LR))
    chex.assert_trees_all_close(*train_each([(optax.adam(LR), penalised), (in_chain, loss)], params), **SAME)


def test_s01_values_and_gradients_of_the_penalties():
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    assert float(wd.l2_penalty(params, 0.1, None)) == pytest.approx(0.1 / 2 * 14, rel=1e-15)
    assert float(wd.l2_penalty(params, 0.1, None, half=False)) == pytest.approx(0.1 * 14, rel=1e-15)
    assert float(wd.l2_penalty(params, 0.1)) == pytest.approx(0.1 / 2 * 5, rel=1e-15)  # weights by default
    assert float(wd.l1_penalty(params, 0.1)) == pytest.approx(0.1 * 3, rel=1e-15)
    assert float(wd.l1_penalty(params, 0.1, [("kernel", 0.5)])) == pytest.approx(0.1 * 0.5 * 3, rel=1e-15)
    by_grad = jax.grad(lambda p: wd.l2_penalty(p, 0.1, None))(params)
    chex.assert_trees_all_close(by_grad, jax.tree.map(lambda p: 0.1 * p, params), **SAME)
    doubled = jax.grad(lambda p: wd.l2_penalty(p, 0.1, None, half=False))(params)
    chex.assert_trees_all_close(doubled, jax.tree.map(lambda p: 0.2 * p, params), **SAME)
    signs = jax.grad(wd.l1_penalty)({"kernel": jnp.array([2.0, -3.0, 0.0])}, 0.1)["kernel"]
    chex.assert_trees_all_close(signs, jnp.array([0.1, -0.1, 0.0]), **SAME)


@both_problems
@pytest.mark.parametrize("lr", [LR, FALLING], ids=["constant", "schedule"])
def test_s02_sgd_with_weight_decay_by_hand(problem, lr):
    params, loss = PROBLEMS[problem]()
    expected, gradient = params, jax.jit(jax.grad(loss))
    for t in range(STEPS):
        eta = lr(t) if callable(lr) else lr
        g = gradient(expected)
        expected = jax.tree.map(lambda p, g, eta=eta: p - eta * g - eta * WD * p, expected, g)
    got = train(wd.sgdw(lr, weight_decay=WD, mask=None), params, loss)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[-1], got), expected, **SAME)


@pytest.mark.parametrize(
    ("problem", "lr", "weight_decay", "mask"), problems_in_pairs([LR, FALLING], [WD, RISING], [None, "weights"])
)
def test_s03_l2_and_decay_are_one_trajectory_under_sgd(problem, lr, weight_decay, mask):
    params, loss = PROBLEMS[problem]()
    ways = [
        (optax.sgd(lr), loss),
        (wd.sgd_l2(lr, weight_decay=weight_decay, mask=mask), loss),
        (wd.sgdw(lr, weight_decay=weight_decay, mask=mask), loss),
        (optax.chain(wd.add_decayed_weights(weight_decay, mask), optax.scale_by_learning_rate(lr)), loss),
    ]
    if not callable(weight_decay):
        ways.append((optax.sgd(lr), lambda p: loss(p) + wd.l2_penalty(p, weight_decay, mask)))
        rate = wd.decay_rate(weight_decay, learning_rate=lr)
        ways.append((optax.chain(optax.sgd(lr), wd.shrink(rate, mask)), loss))
    plain, l2, *others = train_each(ways, params)
    for other in others:
        chex.assert_trees_all_close(l2, other, **SAME)
    assert distance(l2, plain) > 1e-3  # and the decay is there


@pytest.mark.parametrize("lr", [LR, FALLING], ids=["constant lr", "scheduled lr"])
def test_s03_one_trajectory_at_the_defaults(lr):
    """The README's sentence, with no mask given: in the loss, in the gradient, after the learning rate, and by name."""
    params, loss = tiny()
    rate = wd.decay_rate(WD, learning_rate=lr)
    ways = {
        "sgd_l2": (wd.sgd_l2(lr, weight_decay=WD), loss),
        "sgdw": (wd.sgdw(lr, weight_decay=WD), loss),
        "with_decay": (wd.with_decay(optax.sgd(lr), learning_rate=lr, weight_decay=WD), loss),
        "decoupled": (wd.decoupled(optax.identity(), lr, weight_decay=WD), loss),
        "coupled": (wd.coupled(optax.identity(), lr, weight_decay=WD), loss),
        "add_l2_to_loss": (optax.chain(wd.add_l2_to_loss(WD), optax.sgd(lr)), loss),
        "shrink": (optax.chain(optax.sgd(lr), wd.shrink(rate)), loss),
        "l2_penalty": (optax.sgd(lr), lambda p: loss(p) + wd.l2_penalty(p, WD)),
    }
    others = [
        (optax.chain(wd.add_decayed_weights(WD), optax.scale_by_learning_rate(lr)), loss),  # as Optax: biases too
        (optax.sgd(lr), loss),
        (optax.chain(optax.sgd(lr), wd.proximal(rate)), loss),
    ]
    *paths, everything, nothing, proximal = train_each([*ways.values(), *others], params)
    paths = dict(zip(ways, paths, strict=True))
    for name, path in paths.items():
        chex.assert_trees_all_close(path, paths["sgdw"], **SAME, custom_message=name)
    assert distance(everything, paths["sgdw"]) > 1e-4
    assert distance(nothing, paths["sgdw"]) > 1e-4
    assert distance(proximal, paths["sgdw"]) < LR**2  # the same up to O(η²)


def test_the_defaults_spare_biases_everywhere_but_in_optaxs_transform():
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    zeros = optax.tree.zeros_like(params)
    for name in ("add_l2_to_loss", "shrink", "proximal", "add_decayed_weights"):
        tx = getattr(wd, name)(0.1)
        updates, _ = tx.update(zeros, tx.init(params), params)
        assert (updates["dense"]["kernel"] != 0).all()
        spared = [bool((u == 0).all()) for u in (updates["dense"]["bias"], updates["norm"]["scale"])]
        assert spared == [name != "add_decayed_weights"] * 2
    for penalty in (wd.l2_penalty, wd.l1_penalty):
        slope = jax.grad(penalty)(params, 0.1)
        assert (slope["dense"]["kernel"] == 0.1).all()
        assert (slope["dense"]["bias"] == 0).all()


def test_s03_with_momentum_they_differ_by_what_momentum_remembers_of_the_decay():
    params, mu = {"kernel": jnp.array([[2.0]])}, 0.9
    flat = lambda p: 0.0 * jnp.sum(p["kernel"])
    l2, decay = (
        train(f(LR, weight_decay=WD, momentum=mu), params, flat, 2)["kernel"].ravel().tolist()
        for f in (wd.sgd_l2, wd.sgdw)
    )
    assert l2[0] == pytest.approx(decay[0], rel=1e-15)
    assert decay[1] - l2[1] == pytest.approx(LR * mu * WD * 2.0, rel=1e-12)


def test_s04_biases_and_norm_scales_do_not_decay_by_default():
    params = {
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    }
    flat = lambda p: 0.0 * sum(map(jnp.sum, jax.tree.leaves(p)))
    makers = (wd.sgdw, wd.sgd_l2, wd.adamw, wd.adam_l2)
    for path in train_each([(make(LR, weight_decay=WD), flat) for make in makers], params, 3):
        after = jax.tree.map(lambda x: np.asarray(x)[-1], path)
        assert np.max(after["dense"]["kernel"]) < 0.99
        after["dense"]["kernel"] = params["dense"]["kernel"]
        chex.assert_trees_all_equal(after, params)


def test_s05_too_much_decay_underfits_too_little_does_nothing_and_a_grid_finds_the_best():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, 1))
    x, x_test = rng.normal(size=(40, 30)), rng.normal(size=(400, 30))
    y, y_test = x @ truth + rng.normal(size=(40, 1)), x_test @ truth
    loss = lambda p, x=x, y=y: jnp.mean((x @ p["w"] - y) ** 2) / 2

    def test_error(lr, weight_decay):
        end = train(wd.sgdw(lr, weight_decay=weight_decay), {"w": jnp.zeros((30, 1))}, loss, 2000)
        return 2 * loss({"w": end["w"][-1]}, x_test, y_test)

    rates, decays = jnp.array([0.02, 0.05, 0.1]), jnp.array([0.0, 1e-6, 1e-2, 1e-1, 3e-1, 1.0, 9.0])
    grid = np.asarray(jax.vmap(jax.vmap(test_error, (None, 0)), (0, None))(rates, decays))
    best = grid.argmin(axis=1)
    assert set(best) <= {2, 3, 4, 5}  # neither too small nor too large, at every learning rate
    assert (grid.min(axis=1) < 0.9 * grid[:, 0]).all()
    np.testing.assert_allclose(grid[:, 1], grid[:, 0], rtol=1e-3)  # too small: no effect
    np.testing.assert_array_less(grid[:, 0], grid[:, -1])  # too large: under-fit, worse than none
    np.testing.assert_allclose(grid[-1, -1] / np.mean(y_test**2), 1.0, atol=0.3)  # near predicting zero


@pytest.mark.parametrize("optimizer", ["sgdw", "sgd_l2", "penalty"])
def test_s06_the_linear_model_loses_eta_lambda_w_and_nothing_of_b(optimizer):
    params, loss = tiny()
    if optimizer == "penalty":
        tx, objective = optax.sgd(LR), lambda p: loss(p) + wd.l2_penalty(p, WD, "weights")
    else:
        tx, objective = getattr(wd, optimizer)(LR, weight_decay=WD), loss
    w, b = params["w"], params["b"]
    for t, now in enumerate(zip(*train(tx, params, objective).values(), strict=True)):
        g = jax.grad(loss)({"w": w, "b": b})
        w, b = w - LR * g["w"] - LR * WD * w, b - LR * g["b"]
        chex.assert_trees_all_close(now, (b, w), **SAME, custom_message=f"step {t}")


# --- S7, S17: PyTorch's numbers, from its documented updates; tests/test_goldens.py has the real package's -----


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(None, 0.0, False), (0.9, 0.0, False), (0.9, 0.3, False), (0.9, 0.0, True)]
)
def test_s07_pytorch_sgd(momentum, dampening, nesterov):
    params, loss = real()
    wd_, lr, p, buffer, gradient = 1e-4, 0.05, params, None, jax.jit(jax.grad(loss))
    for _ in range(STEPS):
        g = jax.tree.map(lambda g, p: g + wd_ * p, gradient(p), p)
        if momentum:
            mixed = lambda b, g: momentum * b + (1 - dampening) * g
            buffer = g if buffer is None else jax.tree.map(mixed, buffer, g)
            g = jax.tree.map(lambda g, b: g + momentum * b, g, buffer) if nesterov else buffer
        p = jax.tree.map(lambda p, g: p - lr * g, p, g)
    tx = wd.sgd_l2(lr, weight_decay=wd_, momentum=momentum, dampening=dampening, nesterov=nesterov, mask=None)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[-1], train(tx, params, loss)), p, **SAME)


@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
def test_s17_pytorch_adam_and_adamw(decoupled):
    params, loss = real()
    p, m, v = params, optax.tree.zeros_like(params), optax.tree.zeros_like(params)
    gradient = jax.jit(jax.grad(loss))
    for t in range(1, STEPS + 1):
        g = gradient(p)
        if decoupled:
            p = jax.tree.map(lambda p: p * (1 - 0.01 * WD), p)
        else:
            g = jax.tree.map(lambda g, p: g + WD * p, g, p)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        step = lambda p, m, v, t=t: p - 0.01 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p = jax.tree.map(step, p, m, v)
    make = wd.adamw if decoupled else wd.adam_l2
    got = train(make(0.01, weight_decay=WD, mask=None), params, loss)
    # entries whose gradient is near ε amplify the rounding of √v̂ by up to 1e3
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[-1], got), p, rtol=1e-9, atol=1e-12)


# --- S15: decay is not L2 under Adam -------------------------------------------------------------------------


@both_problems
def test_s15_l2_and_decay_diverge_under_adam(problem):
    params, loss = PROBLEMS[problem]()
    ours = [(f(LR, weight_decay=WD, mask=None), loss) for f in (wd.adam_l2, wd.adamw)]
    penalised = lambda p: loss(p) + wd.l2_penalty(p, WD, None)
    l2, decay, in_loss = train_each([*ours, (optax.adam(LR), penalised)], params)
    assert distance(l2, decay) > 1e-2
    chex.assert_trees_all_close(l2, in_loss, **SAME)
    assert distance(in_loss, decay) > 1e-2


@both_problems
def test_s15_the_place_in_the_chain_decides(problem):
    params, loss = PROBLEMS[problem]()
    lr = optax.scale_by_learning_rate(LR)
    before = optax.chain(wd.add_decayed_weights(WD), wd.scale_by_adam(), lr)
    after = optax.chain(wd.scale_by_adam(), wd.add_decayed_weights(WD), lr)
    adams = [f(LR, weight_decay=WD, mask=None) for f in (wd.adam_l2, wd.adamw)] + [optax.adamw(LR, weight_decay=WD)]
    l2, decay, *finished = train_each([(tx, loss) for tx in (before, after, *adams)], params)
    for path, same in zip((l2, decay, decay), finished, strict=True):
        chex.assert_trees_all_close(path, same, **SAME)


@pytest.mark.parametrize("tree", ["tiny", "real"])
def test_s15_adamw_without_epsilon_is_scale_free_and_adam_with_l2_is_not(tree):
    params, loss = PROBLEMS[tree]()
    scale = jax.tree.map(lambda p: 10.0 ** -jnp.round(3 * jnp.sin(1.0 + jnp.arange(p.size))).reshape(p.shape), params)
    offset = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3), params)  # no entry has a zero gradient: 0/0 without ε
    shifted = optax.stateless(lambda g, _: optax.tree.add(g, offset))
    rescaled = optax.stateless(lambda g, _: jax.tree.map(jnp.multiply, g, scale))
    makers = [functools.partial(f, 1e-3, weight_decay=WD, eps=0.0, mask=None) for f in (wd.adamw, wd.adam_l2)]
    ways = [optax.chain(shifted, *between, make()) for make in makers for between in ([], [rescaled])]
    decay, decay_rescaled, l2, l2_rescaled = train_each([(tx, loss) for tx in ways], params, 5)
    assert distance(decay, decay_rescaled) < 1e-10
    assert distance(l2, l2_rescaled) > 1e-5


# --- Couplings, the proximal form, Lion's bound ------------------------------------------------------------------


@both_problems
def test_schedule_coupling_with_lambda_times_the_peak_is_lr_coupling(problem):
    params, loss = PROBLEMS[problem]()
    lr = lambda t: LR * jnp.minimum(t / 5, 1.0)  # starts at 0, peaks at LR
    schedule, wrong_peak = (
        wd.adamw(lr, weight_decay=WD * LR, coupling="schedule", peak_learning_rate=peak) for peak in (LR, 2 * LR)
    )
    ways = [(tx, loss) for tx in (wd.adamw(lr, weight_decay=WD), schedule, wrong_peak)]
    by_lr, same, other = train_each(ways, params)
    chex.assert_trees_all_close(by_lr, same, **SAME)
    assert distance(by_lr, other) > 1e-4


@pytest.mark.parametrize(
    ("coupling", "c"),
    [
        ("lr", lambda eta: eta * WD),
        ("schedule", lambda eta: eta / LR * WD),
        ("corrected", lambda eta: eta**2 / LR * WD),
        ("constant", lambda eta: WD),
    ],
)
@pytest.mark.parametrize("make", [wd.sgdw, wd.adamw, "with_decay"])
def test_each_coupling_removes_its_fraction_also_where_the_rate_is_zero(make, coupling, c):
    lr = lambda t: LR * t / 4  # 0 at the first step, LR at the last
    options = {"weight_decay": WD, "coupling": coupling, "peak_learning_rate": LR}
    if make == "with_decay":
        make = lambda lr, **options: wd.with_decay(optax.sgd(lr), learning_rate=lr, **options)
    params, flat = {"kernel": jnp.full((2, 2), 3.0)}, lambda p: 0.0 * jnp.sum(p["kernel"])
    got = train(make(lr, **options), params, flat, 5)["kernel"][:, 0, 0]
    expected = 3.0 * np.cumprod([1 - c(lr(t)) for t in range(5)])
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_adamprox_is_adamw_up_to_the_square_of_the_learning_rate():
    params, loss = real()

    def both(lr):
        prox = optax.chain(optax.adam(lr), wd.proximal(wd.decay_rate(WD, learning_rate=lr)))
        return [(prox, loss), (wd.adamw(lr, weight_decay=WD), loss)]

    paths = train_each([*both(0.01), *both(0.005)], params, 1)
    gap, half_as_fast = distance(*paths[:2]), distance(*paths[2:])
    assert gap > 1e-8
    assert gap / half_as_fast == pytest.approx(4, rel=0.02)  # O(η²)


def test_proximal_l2_is_the_minimiser():
    params, step, c = jnp.array([3.0, -0.5]), jnp.array([-0.2, 0.1]), 0.7
    tx = wd.proximal(c)
    x = params + tx.update(step, tx.init(params), params)[0]
    objective = lambda x: 0.5 * jnp.sum((x - (params + step)) ** 2) + c * 0.5 * jnp.sum(x**2)
    chex.assert_trees_all_close(jax.grad(objective)(x), jnp.zeros(2), atol=1e-15)


def test_lion_keeps_weights_below_one_over_lambda():
    lr, weight_decay = 0.05, 2.0
    tx = wd.with_decay(optax.lion(lr, weight_decay=0.0), learning_rate=lr, weight_decay=weight_decay)
    pull = lambda p: jnp.sum(p["kernel"] * jnp.array([[1.0, -1.0]]))  # pushes outward for ever
    path = train(tx, {"kernel": jnp.array([[4.0, -4.0]])}, pull, 200)["kernel"]
    np.testing.assert_allclose(np.abs(path[-1]), 1 / weight_decay, rtol=1e-6)
    free = train(optax.lion(lr, weight_decay=0.0), {"kernel": jnp.array([[4.0, -4.0]])}, pull, 200)["kernel"]
    assert np.abs(free[-1]).max() > 5


# --- Rules: cautious decay and anchors ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["add_decayed_weights", "with_decay", "adamw"])
def test_cautious_decay_acts_only_where_it_agrees_with_the_update(place):
    p = {"kernel": jnp.array([[2.0, 2.0, -2.0, -2.0, 2.0]])}
    g = {"kernel": jnp.array([[1.0, -1.0, 1.0, -1.0, 0.0]])}
    agrees = jnp.array([[True, False, False, True, True]])  # u·p ≥ 0
    tx, base = {
        "add_decayed_weights": (
            optax.chain(wd.add_decayed_weights(WD, rule=wd.rules.cautious()), optax.scale_by_learning_rate(LR)),
            optax.sgd(LR),
        ),
        "with_decay": (
            wd.with_decay(optax.sgd(LR), learning_rate=LR, weight_decay=WD, rule=wd.rules.cautious()),
            optax.sgd(LR),
        ),
        "adamw": (wd.adamw(LR, weight_decay=WD, rule=wd.rules.cautious()), optax.adam(LR)),
    }[place]
    got, bare = (t.update(g, t.init(p), p)[0]["kernel"] for t in (tx, base))
    chex.assert_trees_all_close(got, bare - jnp.where(agrees, LR * WD * p["kernel"], 0.0), **SAME)


CAUTIOUS = {
    "decoupled": lambda lr, **options: wd.decoupled(optax.identity(), lr, **options),
    "sgdw": wd.sgdw,
    "sgdw, rounded": lambda lr, **options: wd.sgdw(lr, rounding="nearest", **options),
}


@pytest.mark.parametrize("place", CAUTIOUS)
@pytest.mark.parametrize(("lr", "dtype"), [(0.0, jnp.float32), (lambda t: 0.0 * t, jnp.float64), (1e-6, jnp.float16)])
def test_cautious_decay_gates_on_the_direction_where_the_step_is_zero(place, lr, dtype):
    """In a warm-up's first step, and where η·u underflows: 1e-6·1e-3 is 0 in float16."""
    p = {"kernel": jnp.array([[2.0, 2.0, -2.0, -2.0, 2.0]], dtype)}
    g = {"kernel": jnp.array([[1e-3, -1e-3, 1e-3, -1e-3, 0.0]], dtype)}
    options = {"weight_decay": 0.25, "coupling": "constant", "mask": None}
    tx = CAUTIOUS[place](lr, rule=wd.rules.cautious(), **options)
    updates, _ = tx.update(g, tx.init(p), p)
    agrees = [[True, False, False, True, True]]
    np.testing.assert_array_equal(np.asarray(updates["kernel"], float), np.where(agrees, -0.25 * p["kernel"], 0))


def test_cautious_decay_of_a_finished_optimizer_waits_for_the_first_step():
    """Its direction can't be seen in a step of 0: where η is 0, nothing decays."""
    p, g = {"kernel": jnp.array([[2.0, 2.0]])}, {"kernel": jnp.array([[1.0, -1.0]])}
    warm_up = lambda t: 0.1 * t
    options = {"weight_decay": 0.25, "coupling": "constant", "rule": wd.rules.cautious()}
    tx = wd.with_decay(optax.sgd(warm_up), learning_rate=warm_up, **options)
    first, state = tx.update(g, tx.init(p), p)
    second, _ = tx.update(g, state, p)
    np.testing.assert_array_equal(first["kernel"], [[0, 0]])
    np.testing.assert_allclose(second["kernel"], [[-0.1 - 0.5, 0.1]], rtol=1e-12)


@pytest.mark.parametrize("anchor", ["init", "tree"])
def test_decay_goes_toward_the_anchor(anchor):
    params = {"kernel": jnp.array([[2.0, -1.0]])}
    target = params if anchor == "init" else {"kernel": jnp.array([[5.0, 5.0]])}
    outward = lambda p: -jnp.sum(p["kernel"])  # gradient −1 everywhere
    rule = wd.rules.toward("init" if anchor == "init" else target)
    places = (
        wd.sgdw(LR, weight_decay=WD, rule=rule),
        optax.chain(wd.add_decayed_weights(WD, rule=rule), optax.scale_by_learning_rate(LR)),
        optax.chain(optax.sgd(LR), wd.shrink(LR * WD, rule=rule)),
        optax.chain(optax.sgd(LR), wd.proximal(LR * WD, rule=rule)),
    )
    for path in train_each([(tx, outward) for tx in places], params, 6000):  # λ·(p − a) balances the gradient at last
        chex.assert_trees_all_close(path["kernel"][-1], target["kernel"] + 1 / WD, rtol=1e-9)


# --- S19, S20: forgetting, exact zeros, friction --------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "steps", "printed"), [(0.01, 100, 0.3660), (1e-3 * 0.1, 1000, 0.9048)])
def test_s19_exponential_forgetting(rate, steps, printed):
    params, flat = {"w": jnp.ones((2, 2))}, lambda p: 0.0 * jnp.sum(p["w"])
    left = train(optax.chain(optax.sgd(0.1), wd.shrink(rate)), params, flat, steps)["w"][-1]
    chex.assert_trees_all_close(left, jnp.full((2, 2), (1 - rate) ** steps), rtol=1e-12)
    assert round(float(left[0, 0]), 4) == printed


def test_s19_l2_never_reaches_zero_and_the_l1_proximal_step_does():
    params, flat = {"w": jnp.array([1.0, -0.5, 1e-3])}, lambda p: 0.0 * jnp.sum(p["w"])
    l2 = train(optax.chain(optax.sgd(0.1), wd.shrink(0.1)), params, flat, 1000)["w"]
    assert np.all(l2 != 0)
    l1 = train(optax.chain(optax.sgd(0.1), wd.proximal(0.01, penalty="l1")), params, flat, 101)["w"]
    assert np.all(l1[-1] == 0)
    assert [int(np.argmax(l1[:, i] == 0)) + 1 for i in range(3)] == pytest.approx([100, 50, 1], abs=1)
    penalised = lambda p: wd.l1_penalty(p, 0.1)  # the same λ as a subgradient: small, never zero
    assert np.all(train(optax.sgd(0.1), {"w": jnp.array([1.0, -0.503, 0.0017])}, penalised, 200)["w"][-1] != 0)


@pytest.mark.parametrize(("dtype", "steps"), [(jnp.float32, 1), (jnp.bfloat16, 3)])
def test_s19_exact_zeros_need_an_update_of_the_parameters_type(dtype, steps):
    """A float32 weight and a bfloat16 update: 8 bits of the weight per step. `in_float32` gives a float32 update."""
    weights = {"w": jax.random.uniform(jax.random.key(0), (1000,), jnp.float32, -1e-2, 1e-2)}
    zero = {"w": jnp.zeros(1000, dtype)}
    tx = optax.chain(optax.sgd(0.1), wd.proximal(0.01, None, penalty="l1"))
    for wrapped, needed in ((tx, steps), (wd.precision.in_float32(tx), 1)):
        p, state = weights, wrapped.init(weights)
        for step in range(needed):
            assert step == 0 or (p["w"] != 0).any()
            updates, state = wrapped.update(zero, state, p)
            p = optax.apply_updates(p, updates)
        np.testing.assert_array_equal(p["w"], np.zeros(1000, np.float32))


@pytest.mark.parametrize("c", [0.01, 0.05])
def test_s20_decoupled_decay_is_friction_for_momentum_and_l2_is_not(c):
    """On ½h·x² with momentum μ the oscillation shrinks by √μ per step; decay makes it √(μ·(1 − c)), L2 leaves √μ."""
    lr, h, mu, steps = 1.0, 1.2, 0.98, 150  # complex modes: it oscillates
    hill = lambda p: h / 2 * jnp.sum(p["kernel"] ** 2)
    start = {"kernel": jnp.ones((1, 1))}

    def shrink_per_step(path):
        """The modulus of the modes: of a recurrence of order two, from the determinant of three neighbours."""
        x = np.asarray(path["kernel"]).ravel()
        casorati = x[:-2] * x[2:] - x[1:-1] ** 2  # shrinks by the product of the two modes per step
        return np.sqrt(casorati[-1] / casorati[-2])

    ours = [f(lr, weight_decay=c / lr, momentum=mu) for f in (wd.sgd_l2, wd.sgdw)]
    paths = train_each([(tx, hill) for tx in (optax.sgd(lr, momentum=mu), *ours)], start, steps)
    plain, l2, decay = map(shrink_per_step, paths)
    np.testing.assert_allclose([plain, l2, decay], [np.sqrt(mu), np.sqrt(mu), np.sqrt(mu * (1 - c))], rtol=1e-9)


def test_s20_without_momentum_past_the_stable_rate_only_the_proximal_form_damps():
    """x ← (1 − ηh)x overshoots for ηh > 1: decay adds −c to a factor already negative, the proximal step divides."""
    eta_h, c = 1.5, 0.2
    hill = lambda p: eta_h / 2 * jnp.sum(p["kernel"] ** 2)
    start = {"kernel": jnp.ones((1, 1))}
    ways = optax.sgd(1.0), wd.sgdw(1.0, weight_decay=c), optax.chain(optax.sgd(1.0), wd.proximal(c))
    paths = [np.ravel(path["kernel"]) for path in train_each([(tx, hill) for tx in ways], start, 2)]
    expected = [1 - eta_h, 1 - eta_h - c, (1 - eta_h) / (1 + c)]
    assert [second / first for first, second in paths] == pytest.approx(expected)
