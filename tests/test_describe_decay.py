"""The words about measured decay, on runs whose answer is known: random gradients of scale-invariant weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import step

import wd_optax as wd
from wd_optax.measure import DecayInfo

pytestmark = [pytest.mark.quick_compile, pytest.mark.optax_promotes]

FAN_IN, COLUMNS = 100, 32
# name: (η, λ) -> the optimizer; η; λ; what `describe_decay` is told; when moments are full, as its docstring says.
RUNS = {
    "adamw": (lambda eta, x: wd.adamw(eta, weight_decay=x, mask=None), 2e-3, 0.1, {"optimizer": "adamw"}, 1000),
    "adamw, b2=0.95": (
        lambda eta, x: wd.adamw(eta, weight_decay=x, b2=0.95, mask=None),
        1e-2, 0.1, {"optimizer": "adamw", "b2": 0.95}, 20,
    ),
    "sgdw": (
        lambda eta, x: wd.sgdw(eta, weight_decay=x, momentum=0.9, mask=None),
        1e-2, 0.1, {"optimizer": "sgdw", "momentum": 0.9}, 10,
    ),
    "sgd_l2": (
        lambda eta, x: wd.sgd_l2(eta, weight_decay=x, momentum=0.9, mask=None),
        1e-2, 0.01, {"optimizer": "sgd_l2", "momentum": 0.9}, 10,
    ),
    "lion": (lambda eta, x: optax.lion(eta, weight_decay=x), 1e-2, 0.1, {"optimizer": "lion"}, 100),
}  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 3))
@functools.partial(jax.vmap, in_axes=(None, 0, None, None))  # all starts see the same gradients
def simulate(tx, w, draws, full):
    """‖w‖ after each step (RMS over the columns) and what steps `full` and the last measure; w is scale-invariant."""

    def gradient(g, w):
        norm = jnp.linalg.norm(w, axis=0, keepdims=True)
        return {"kernel": (g - w / norm * jnp.sum(g * w / norm, axis=0, keepdims=True)) / norm}

    def one(carry, g):
        w, state = carry
        w, state = step(tx, gradient(g, w), state, {"kernel": w})
        return (w["kernel"], state), jnp.linalg.norm(w["kernel"]) / COLUMNS**0.5

    now, before = jax.lax.scan(one, (w, tx.init({"kernel": w})), draws[:full])
    end, after = jax.lax.scan(one, now, draws[full:-1])
    measured = [
        wd.measure_decay(tx, gradient(g, w), state, {"kernel": w})
        for g, (w, state) in [(draws[full], now), (draws[-1], end)]
    ]
    return jnp.concatenate([before, after]), measured


@functools.cache
def runs(name, starts, steps, decays=True):
    """(Norms over their equilibrium, the `DecayTable` of two steps) from each of `starts` times the equilibrium."""
    build, eta, weight_decay, options, full = RUNS[name]
    options = options if "adamw" not in name else {"optimizer": "adamw"}
    target = wd.equilibrium(eta, weight_decay=weight_decay, size=FAN_IN, gradient_rms=1.0, **options).norm
    rng = np.random.default_rng(12)
    w, draws = (rng.standard_normal((n, FAN_IN, COLUMNS), np.float32) for n in (1, steps))
    w = w * np.float32(target / FAN_IN**0.5) * np.float32(starts)[:, None, None]
    norms, measured = jax.device_get(simulate(build(eta, weight_decay if decays else 0.0), w, draws, full))
    return [(norms[i] / target, jax.tree.map(lambda x, i=i: x[i], measured)) for i in range(len(starts))]


def describe(name, measured):
    return wd.describe_decay(measured, **RUNS[name][3])["weight"]


STARTS = {"in equilibrium": 1.0, "still shrinking": 3.0, "growing": 0.4}
# How many steps until all are in equilibrium; c is 2e-4 under AdamW, whose β₂ is the default.
LENGTHS = {"adamw": 12500, "lion": 4000, "adamw, b2=0.95": 4000, "sgdw": 3000, "sgd_l2": 3000}


@pytest.mark.parametrize("state", STARTS)
@pytest.mark.parametrize("name", RUNS)
def test_the_state_and_the_steps_to_go_are_those_of_the_run(name, state):
    *_, full = RUNS[name]
    norms, (early, late) = runs(name, tuple(STARTS.values()), LENGTHS[name])[[*STARTS].index(state)]
    found = describe(name, early)
    assert found.state == state
    assert describe(name, late).state == "in equilibrium"
    if state == "growing":  # moments lag: the norm is at most what is shown, and 10 % for the noise of the angle
        assert norms[full - 1] < 1.1 * found.ratio
    else:
        assert found.ratio == pytest.approx(norms[full - 1], rel=0.1)  # the same noise
    if state != "still shrinking":
        assert (found.steps, str(found)) == (None, state)
        return
    there = np.flatnonzero(norms[full:] <= 1.1)[0]
    c, power = float(early["weight"].removed), 4 if "sgd" in name else 2
    time = 1 / (power * c / (1 - 0.9 if name == "sgd_l2" else 1))
    assert abs(found.steps - there) < found.steps / 4 + time / 2  # as the docstring says
    assert str(found) == f"still shrinking ({found.steps:,.0f} steps to go)"


@pytest.mark.parametrize("name", RUNS)
def test_without_decay_it_is_inert(name):
    ((_, (measured, _)),) = runs(name, (1.0,), RUNS[name][-1] + 2, decays=False)
    assert describe(name, measured).state == "decay inert"


def test_what_is_masked_is_inert():
    p = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    tx = wd.with_decay(optax.sgd(0.1), learning_rate=0.1, weight_decay=0.1)
    found = wd.describe_decay(wd.measure_decay(tx, jax.tree.map(jnp.cos, p), tx.init(p), p), optimizer="sgdw")
    assert found["bias"].state == "decay inert"
    assert found["weight"].state != "decay inert"
    assert list(found) == ["weight", "bias"]  # and no empty roles


def test_decay_that_does_nothing_in_the_steps_left_is_inert():
    p = {"kernel": jnp.eye(8)}
    tx = optax.adamw(1e-3, weight_decay=1e-3)
    measured = wd.measure_decay(tx, {"kernel": jnp.ones((8, 8))}, tx.init(p), p)
    assert wd.describe_decay(measured)["weight"].state != "decay inert"
    assert wd.describe_decay(measured, steps=10**5)["weight"].state != "decay inert"  # 10 %
    found = wd.describe_decay(measured, steps=1000)["weight"]
    assert (found.state, found.reason) == ("decay inert", "removes 0.001 in 1,000 steps")


def info(**changes):
    values = {"size": 10**4, "weight_norm": 1.0, "update_norm": 1e-2, "decay_share": 0.1, "angle": 1e-2}
    values |= {"removed": 1e-4, "growth": 0.0} | changes
    return {"weight": DecayInfo(**{name: jnp.float32(x) for name, x in values.items()})}


@pytest.mark.parametrize(
    ("changes", "state", "says"),
    [
        ({"weight_norm": 0.0, "angle": 0.0}, "unknown", "the weights are 0"),
        ({"update_norm": 0.0, "angle": 0.0, "removed": 0.0}, "unknown", "this step moves nothing"),
        ({"removed": np.nan}, "unknown", "a part that isn't a decay"),
        ({"removed": 1.0}, "unknown", "removes the whole weight"),
        ({"angle": np.sqrt(2e-4)}, "in equilibrium", "turns as random gradients turn it"),
        ({"angle": 2 * np.sqrt(2e-4)}, "growing", "turns more"),
        ({"angle": np.sqrt(2e-4) / 2}, "still shrinking", "turns less"),
        # 3 standard deviations are 3·angle/√size: 8.5e-4 and 2.1e-4
        ({"angle": 2 * np.sqrt(2e-4), "growth": -8e-4}, "growing", "turns more"),
        ({"angle": 2 * np.sqrt(2e-4), "growth": -9e-4}, "unknown", "but ‖p‖ changes by -9.0e-04"),
        ({"angle": np.sqrt(2e-4) / 2, "growth": 2e-4}, "still shrinking", "turns less"),
        ({"angle": np.sqrt(2e-4) / 2, "growth": 3e-4}, "unknown", r"but ‖p‖ changes by \+3.0e-04"),
        ({"angle": 0.0}, "still shrinking", "turns less"),  # no gradient: for ever
    ],
)
def test_the_rule(changes, state, says):
    """At c = 1e-4 and no momentum the angle to expect is √(2c)."""
    found = wd.describe_decay(info(**changes), optimizer="sgdw")["weight"]
    assert found.state == state
    assert re.search(says, found.reason)


def test_the_steps_are_the_logarithm_of_what_is_left():
    adamw = wd.describe_decay(info(angle=np.sqrt(2e-4) / 2), b1=0.0, b2=0.0)["weight"]
    assert adamw.ratio == pytest.approx(np.sqrt(1 + (1 + 2e-4) * 3), rel=1e-5)
    assert adamw.steps == pytest.approx(np.log((2**2 - 1) / (1.1**2 - 1)) / 2e-4, rel=1e-3)
    sgd = wd.describe_decay(info(angle=np.sqrt(2e-4) / 4), optimizer="sgdw")["weight"]
    assert sgd.ratio == pytest.approx(2.0, rel=1e-5)
    assert sgd.steps == pytest.approx(np.log((2**4 - 1) / (1.1**4 - 1)) / 4e-4, rel=1e-4)


def test_the_lag_of_adams_second_moment_is_counted():
    """The steps are those of ‖w‖² = y as √v̂ lags, step by step, from where it is to 1.21 of the equilibrium's."""
    c, memory = 1e-4, 1000
    lag = 2 * c * memory
    found = wd.describe_decay(info(angle=np.sqrt(2 * c) / 2), b1=0.0)["weight"]
    assert found.ratio == pytest.approx(np.sqrt(1 + (1 + lag) * 3), rel=1e-5)
    square, steps = found.ratio**2, 0
    while square > 1.1**2:
        seen = 1 + (square - 1) / (1 + lag)  # (θ*/θ)²
        square *= 1 - 2 * c * (1 - 1 / seen)  # θ² is 2c at seen = 1, and the norm stands still
        steps += 1
    assert found.steps == pytest.approx(steps, rel=1e-3)
    fast = wd.describe_decay(info(angle=np.sqrt(2e-4) / 2), b1=0.0, b2=0.9999)["weight"]
    assert (fast.state, fast.steps) == ("still shrinking", None)  # a = 2


def test_without_gradients_it_shrinks_for_ever():
    for_ever = wd.describe_decay(info(angle=0.0))["weight"]
    assert str(for_ever) == "still shrinking"


def test_layers_have_lines_and_the_table_prints():
    p = {"blocks": jnp.stack([jnp.eye(8), 100 * jnp.eye(8)])}
    tx = optax.adamw(1e-2, weight_decay=0.1, b1=0.0)
    measured = wd.measure_decay(
        tx, jax.tree.map(jnp.sin, p), tx.init(p), p, groups=[("blocks", "blocks")], slices=[("blocks", 1)]
    )
    found = wd.describe_decay(measured, b1=0.0)
    assert list(found) == ["blocks/0", "blocks/1"]
    assert found["blocks/1"].ratio > 10 * found["blocks/0"].ratio
    assert str(found).splitlines()[0].split() == [
        "group",
        "state",
        "‖p‖",
        "/",
        "equilibrium",
        "angle",
        "expected",
        "because",
    ]
    assert "<td>blocks/1</td>" in found._repr_html_()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"optimizer": "lamb"}, ValueError, "optimizer='lamb' has no formula here"),
        ({"momentum": 0.9}, ValueError, "momentum=0.9: adamw's momentum is called b1"),
        ({"b1": 1.0}, ValueError, "b1=1.0 must be below 1"),
        ({"b2": 1.0}, ValueError, "b2=1.0 must be below 1"),
        ({"b2": 0.9, "optimizer": "sgdw"}, ValueError, "b2=0.9: sgdw's momentum is called momentum"),
    ],
)
def test_bad_arguments_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        wd.describe_decay(info(), **options)


def test_traced_and_batched_figures_are_refused():
    with pytest.raises(ValueError, match="measured is traced, or of several runs"):
        jax.jit(lambda x: wd.describe_decay(x) and 0)(info())
    p = {"kernel": jnp.ones((2, 2))}
    tx = optax.sgd(0.1)
    batched = jax.vmap(lambda x: wd.measure_decay(tx, p, (optax.EmptyState(),) * 2, {"kernel": x * p["kernel"]}))(
        jnp.ones(2)
    )
    with pytest.raises(ValueError, match=r"jax.tree.map\(lambda x: x\[0\], measured\)"):
        wd.describe_decay(batched)
