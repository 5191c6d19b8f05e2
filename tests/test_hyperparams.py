"""Hyperparameters: what is refused, where they are found in the state, and which leaf is whose."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import NAMES, build, grads, optimizer, params, takes

import wd_optax as wd

OPTIMIZERS = [name for name in NAMES if takes(name, "learning_rate")]
NAMED = {"adamw": optax.adamw, "adam_l2": optax.adam, "sgdw": optax.sgd, "sgd_l2": optax.sgd}
WARM_UP = lambda t: 0.1 * jnp.minimum(t / 10, 1.0)
ARGUMENTS = [
    (n, a) for n in NAMES for a in ("weight_decay", "rate", "learning_rate", "peak_learning_rate") if takes(n, a)
]


def call(name, argument, value):
    options = {"optimizer": optax.sgd(0.5)} if takes(name, "optimizer") else {}
    return build(
        name, **options, **{argument: value} | ({"coupling": "schedule"} if argument.startswith("peak") else {})
    )


# --- what is refused


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_concrete_arrays_are_checked_like_numbers(name, argument):
    call(name, argument, jnp.float32(0.3))
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"{argument}=Array\(.* must be (finite|below 1) and not negative"):
            call(name, argument, jnp.float32(bad))
    for shape in ((1,), (3,), (2, 2)):
        for zeros in (jnp.zeros(shape), np.zeros(shape)):
            with pytest.raises(
                ValueError, match=rf"{argument} has shape {str(shape).replace('(', '.').replace(')', '.')}"
            ):
                call(name, argument, zeros)
    for bad in (True, np.True_, jnp.array(True), jnp.array(1j), np.array("a"), b"1", jax.random.key(0)):
        with pytest.raises(TypeError, match=f"{argument} must be a number, an array or a schedule"):
            call(name, argument, bad)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_traced_arrays_are_checked_for_their_shape_alone(name, argument):
    tried = lambda value: call(name, argument, value) and None
    jax.jit(tried)(jnp.float32(-1))
    jax.vmap(tried)(jnp.ones(2))
    with pytest.raises(ValueError, match=rf"{argument} has shape .2,., expected"):
        jax.jit(tried)(jnp.ones(2))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_schedule_returns_is_checked(name):
    argument = "rate" if takes(name, "rate") else "weight_decay"
    for bad, error, says in (
        (lambda t: -0.1, ValueError, f"{argument}=-0.1 must be finite and not negative"),
        (lambda t: jnp.float32(jnp.nan), ValueError, f"{argument}=Array.nan.* must be finite"),
        (lambda t: jnp.ones(3), ValueError, f"{argument} has shape .3,., expected"),
        (lambda t: "0.1", TypeError, f"{argument} must be a number"),
    ):
        with pytest.raises(error, match=says):
            call(name, argument, bad).init(params())
    later = call(name, argument, lambda t: jnp.zeros(()) if isinstance(t, jax.Array) and t.ndim == 0 else 0)
    chex.assert_shape(later.init(params()).hyperparams[argument], ())


@pytest.mark.parametrize("name", NAMES)
def test_a_leaf_edited_to_another_shape_is_named(name):
    argument = "rate" if takes(name, "rate") else "weight_decay"
    tx = build(name, mask=None)
    state = optax.tree.set(tx.init(params()), **{argument: jnp.ones(3)})
    with pytest.raises(ValueError, match=rf"{argument} has shape .3,., expected .. *: one number"):
        tx.update(grads(params()), state, params())


@pytest.mark.parametrize(
    ("coupling", "options"),
    [
        ("lr", {"weight_decay": jnp.float32(20)}),
        ("constant", {"weight_decay": 1.5, "learning_rate": WARM_UP}),
        ("constant", {"weight_decay": jnp.float32(1), "learning_rate": WARM_UP}),
        ("schedule", {"weight_decay": 1.5, "learning_rate": WARM_UP, "peak_learning_rate": jnp.float32(0.1)}),
    ],
)
def test_removing_the_whole_weight_is_seen_wherever_it_is_known(coupling, options):
    with pytest.raises(ValueError, match=r"removes (1|1.5|2) of each weight per step.*lower weight_decay"):
        wd.adamw(**{"learning_rate": 0.1, "coupling": coupling} | options)


MASKS = {
    "rules": ([("kernel", 4.0), (".*", 0)], "'attn/kernel'"),
    "tree": ({"embed": 4.0, "attn": 0.0, "norms": 0.0}, "'embed/embedding'"),
    "function": (lambda p: jax.tree.map(lambda _: 2.0, p), "'attn/bias'"),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["adamw", "sgdw", "with_decay", "decoupled", "shrink"])
def test_a_multiplier_that_removes_the_whole_weight(name, mask):
    mask, path = MASKS[mask]
    options = {"rate": 0.5} if name == "shrink" else {"learning_rate": 0.5, "weight_decay": 1.0}
    if name == "with_decay":
        options["optimizer"] = optax.sgd(0.5)
    with pytest.raises(
        ValueError, match=rf"mask: the multiplier [24] of {path} .*removes [12] of the weight.*below 2,"
    ):
        build(name, mask=mask, **options).init(params())
    build(name, mask=[("kernel", 1.9)], **options).init(params())
    schedule = {"rate" if name == "shrink" else "learning_rate": WARM_UP}  # c isn't known before the run
    build(name, mask=mask, **options | schedule).init(params())


def test_arguments_the_wrong_way_round():
    with pytest.raises(TypeError, match=r"learning_rate must be a number, .* got GradientTransformation"):
        wd.decoupled(0.1, optax.scale_by_lion(), weight_decay=0.1)
    for build_it in (
        lambda direction: wd.decoupled(direction, 0.1, weight_decay=0.1),
        lambda direction: wd.coupled(direction, 0.1, weight_decay=0.1),
        lambda optimizer: wd.with_decay(optimizer, learning_rate=0.1, weight_decay=0.1),
    ):
        with pytest.raises(TypeError, match=r"(direction|optimizer) must be an Optax transformation, got 0.1$"):
            build_it(0.1)
        with pytest.raises(TypeError, match=r"must be an Optax transformation, got .*; call it, as scale_by_lion"):
            build_it(optax.scale_by_lion)


# --- one leaf of each name


@pytest.mark.parametrize("rounding", [None, "nearest", "stochastic", "compensated"])
@pytest.mark.parametrize("rate", [0.1, WARM_UP], ids=["constant", "schedule"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.optax_promotes
def test_one_leaf_of_each_name(name, rate, rounding):
    options = {"rounding": rounding} if takes(name, "rounding") else {}
    options |= {"direction": optax.scale_by_adam()} if takes(name, "direction") else {}
    options |= {"optimizer": optax.lion(0.1)} if takes(name, "optimizer") else {}
    tx = build(name, learning_rate=rate, weight_decay=0.2, **options)
    state = tx.init(params())
    for _ in range(3):
        _, state = tx.update(grads(params()), state, params())
    for key, value in (("count", 3), ("weight_decay", 0.2), ("learning_rate", 0.1 if rate == 0.1 else 0.02)):
        assert float(optax.tree.get(state, key)) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.optax_promotes
def test_under_inject_hyperparams_as_in_optax(name):
    def injected(factory):
        rest = set(inspect.signature(factory).parameters) - {"learning_rate", "weight_decay"}
        options = {"weight_decay": 0.2} if "weight_decay" in inspect.signature(factory).parameters else {}
        return optax.inject_hyperparams(factory, static_args=rest)(learning_rate=0.1, **options)

    tx = injected(getattr(wd, name))
    state = tx.init(params())
    theirs = injected(NAMED[name]).init(params())
    for key in ("learning_rate", "weight_decay"):
        assert float(optax.tree.get(state, key)) == pytest.approx(0.1 if key == "learning_rate" else 0.2)
        expected = optax.tree.get(theirs, key)
        assert expected is None or expected.shape == optax.tree.get(state, key).shape
    edited = optax.tree.set(state, weight_decay=jnp.float32(0), learning_rate=jnp.float32(0))
    updates, _ = tx.update(grads(params()), edited, params())
    assert all((u == 0).all() for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", ["shrink", "proximal", "add_l2_to_loss", "add_decayed_weights"])
def test_a_transform_does_not_hide_the_optimizers_count(name):
    decay = build(name)
    tx = optax.chain(decay, optax.adam(0.1)) if name.startswith("add") else optax.chain(optax.adam(0.1), decay)
    assert optax.tree.get(tx.init(params()), "count") == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.optax_promotes
def test_an_array_is_the_callers_and_has_no_leaf(name):
    tx = build(name, learning_rate=jnp.float32(0.1), weight_decay=0.2)
    assert set(tx.init(params()).hyperparams) == {"weight_decay"}
    number = build(name, learning_rate=0.1, weight_decay=0.2)
    ours, theirs = (t.update(grads(params()), t.init(params()), params())[0] for t in (tx, number))
    chex.assert_trees_all_equal(ours, theirs)


# --- Python numbers as parameters, as Optax takes them


@pytest.mark.parametrize("rounding", [None, "stochastic", "compensated_all"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.optax_promotes
def test_python_numbers_as_parameters(name, rounding):
    numbers, gradients = {"w": 1.0, "b": 2.0}, {"w": 0.5, "b": 0.0}
    options = {"rounding": rounding} if takes(name, "rounding") else {}
    tx = optimizer(name, **options)

    def stepped(p, g):
        state = tx.init(p)
        for _ in range(2):
            updates, state = tx.update(g, state, p)
            p = optax.apply_updates(p, updates)
        return p

    arrays = stepped(jax.tree.map(jnp.float32, numbers), jax.tree.map(jnp.float32, gradients))
    chex.assert_trees_all_equal(stepped(numbers, gradients), arrays)
    chex.assert_trees_all_equal(stepped(numbers, jax.tree.map(jnp.float32, gradients)), arrays)
    assert float(arrays["w"]) < 1


@pytest.mark.parametrize(
    "wrapper", [wd.precision.with_master_weights, wd.precision.in_float32, wd.precision.low_precision_state]
)
@pytest.mark.optax_promotes
def test_python_numbers_in_the_wrappers(wrapper):
    tx = wrapper(wd.adamw(0.1, weight_decay=0.2))
    p = {"w": 1.0, "b": 2.0}
    updates, _ = tx.update({"w": 0.5, "b": 0.0}, tx.init(p), p)
    p, g = {"w": jnp.float32(1), "b": jnp.float32(2)}, {"w": jnp.float32(0.5), "b": jnp.float32(0)}
    chex.assert_trees_all_equal(updates, tx.update(g, tx.init(p), p)[0])
    assert float(updates["w"]) == pytest.approx(-0.12, rel=1e-4)  # √v̂ is 6e-5 off: 1 − b2 in float32


def test_python_numbers_in_penalties():
    assert float(wd.l2_penalty({"w": 3.0, "b": 5.0}, 0.2)) == pytest.approx(0.9)
    assert float(wd.l1_penalty({"w": -3.0, "b": 5.0}, 0.2)) == pytest.approx(0.6)
    assert jax.grad(wd.l2_penalty)({"w": 3.0, "b": 5.0}, 0.5) == {"w": 1.5, "b": 0.0}
