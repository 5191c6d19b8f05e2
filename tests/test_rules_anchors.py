"""Anchors of some leaves, moving averages as anchors, and decay only where the step shrinks a weight."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import grads, params, step
from helpers import assert_same_bits

import wd_optax as wd

LR, WD, STEPS = 0.05, 2.0, 24
C = LR * WD
rules = wd.rules


def sgdw(rule, **options):
    return wd.sgdw(LR, weight_decay=WD, rule=rule, **({"mask": None} | options))


def loop(tx, p, gradients):
    """All steps in one program."""
    one = lambda carry, g: (step(tx, g, carry[1], carry[0]), None)
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients)
    return jax.jit(lambda carry: jax.lax.scan(one, carry, stacked))((p, tx.init(p)))[0]


# --- Oracles in float64 -----------------------------------------------------------------------------------------------


def anchored(p0, name):
    a = 0.5 * p0 if name.startswith("attn/kernel") else 0.0
    return lambda p, s: p - a


def averaged(p0, name):
    average = [p0]

    def direction(p, s):
        average.append(0.9 * average[-1] + 0.1 * p)
        return p - average[-1]

    return direction


def strictly(p0, name):
    return lambda p, s: np.where(p * s < 0, p, 0.0)


CASES = {
    "partial tree": (lambda p: rules.toward({"attn": {"kernel": 0.5 * p["attn"]["kernel"]}}), anchored),
    "average": (lambda p: rules.toward_average(0.9), averaged),
    "strict": (lambda p: rules.cautious(strict=True), strictly),
}


@pytest.mark.parametrize("name", CASES)
def test_a_float64_oracle(name, x64):
    """24 steps with varying gradients, of which some entries are zero; float64 rounds 1e-16."""
    make, oracle = CASES[name]
    p = params(jnp.float64)
    random = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(random.standard_normal(x.shape) * (random.random(x.shape) < 0.8), x.dtype)
    gradients = [jax.tree.map(draw, p) for _ in range(STEPS)]
    end, _ = loop(sgdw(make(p)), p, gradients)
    for path, got in wd.masking.paths.flatten(end)[0]:
        at = lambda tree, path=path: np.asarray(dict(wd.masking.paths.flatten(tree)[0])[path])
        want = at(p)
        r = oracle(want, path)
        for g in gradients:
            s = -LR * at(g)
            want = want + s - C * r(want, s)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


# --- Partial trees ----------------------------------------------------------------------------------------------------


def test_leaves_without_an_entry_decay_to_zero_and_have_no_array():
    p = params()
    tree = {"attn": {"kernel": 0.5 * p["attn"]["kernel"]}}
    tx, plain, whole = sgdw(rules.toward(tree)), sgdw(None), sgdw(rules.toward(jax.tree.map(lambda x: 0.5 * x, p)))
    state = tx.init(p)
    assert jax.tree.map(jnp.shape, jax.tree.leaves(state.rule)) == [(3, 2, 4)]
    ends = {name: jax.jit(t.update)(grads(p), t.init(p), p)[0] for name, t in (("", tx), ("0", plain), ("a", whole))}
    assert_same_bits(ends[""]["embed"], ends["0"]["embed"])
    assert_same_bits(ends[""]["attn"]["bias"], ends["0"]["attn"]["bias"])
    assert_same_bits(ends[""]["attn"]["kernel"], ends["a"]["attn"]["kernel"])
    assert float(jnp.abs(ends["0"]["attn"]["kernel"] - ends["a"]["attn"]["kernel"]).max()) > 0.01


def test_entries_of_leaves_that_do_not_decay_are_ignored():
    """By the mask, by optax.partition, and None, as in the trainable part of a tree."""
    p = params()
    tree = {"attn": p["attn"], "norms": {"scale": jnp.ones(7)}, "frozen": jnp.ones(3)}  # of another shape, and None
    state = sgdw(rules.toward(tree), mask="weights").init(p)
    assert [x.shape for x in jax.tree.leaves(state.rule)] == [(3, 2, 4)]
    tree = {"attn": {"kernel": p["attn"]["kernel"]}, "embed": {"embedding": jnp.ones(1)}}
    labels = {"attn": "a", "embed": "b", "norms": "b", "frozen": None}
    optax.partition({"a": sgdw(rules.toward(tree)), "b": optax.sgd(LR)}, labels).init(p)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"attn": {"kernels": 1.0}}, r"anchor: 'attn/kernels' belongs to no parameter: the nearest are 'attn/kernel'"),
        ({"attn": 1.0}, "anchor: 'attn' belongs to no parameter: the nearest are 'attn/"),
        ({"a": 1.0, "b": 1.0}, "'a' and 1 more entries belong to no parameter"),
        ({"embed": {"embedding": np.ones((3, 5))}}, r"'embed/embedding': expected shape \(5, 3\).*got shape \(3, 5\)"),
        ({}, "the tree has no arrays, so it anchors nothing"),
        ({"attn": None}, "the tree has no arrays, so it anchors nothing"),
    ],
)
def test_wrong_trees(tree, text):
    with pytest.raises(ValueError, match=text):
        sgdw(rules.toward(tree)).init(params())


# --- Moving averages --------------------------------------------------------------------------------------------------


def test_an_average_of_bfloat16_parameters_moves():
    """In bfloat16, 0.999·a + 0.001·p is a for ever."""
    p = {"kernel": jnp.full((4, 4), 2.0, jnp.bfloat16)}
    tx = sgdw(rules.toward_average(0.999))
    state = tx.init(p)
    moved = optax.tree.scale(1.5, p)
    for _ in range(5):
        updates, state = tx.update({"kernel": jnp.zeros((4, 4))}, state, moved)
    average = optax.tree.get(state, "average")["kernel"]
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, 3 - 0.999**5, rtol=1e-6)
    np.testing.assert_allclose(updates["kernel"], -C * 0.999**5, rtol=1e-5)  # a difference of two numbers near 3


@pytest.mark.quick_compile(False)
def test_an_average_is_stable_donated_saved_and_one_program():
    p = params() | {"complex": jax.lax.complex(jnp.ones((2, 3)), jnp.ones((2, 3))), "scalar": jnp.float32(2.0)}
    tx, start = sgdw(rules.toward_average(0.9)), jax.tree.map(jnp.copy, p)
    chex.clear_trace_counter()
    one = jax.jit(chex.assert_max_traces(lambda g, s, p: step(tx, g, s, p), n=1), donate_argnums=(1, 2))
    state = tx.init(p)
    shapes = jax.eval_shape(tx.init, start)
    for t in range(2):
        p, state = one(grads(start, t), state, p)
    saved = jax.tree.map(np.array, (p, state))
    p, state = one(grads(start, 2), state, p)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, shapes)
    again, state = jax.tree.map(jnp.array, saved)
    again, state = one(grads(start, 2), state, again)
    assert_same_bits(p, again)
    scanned, _ = loop(tx, start, [grads(start, t) for t in range(3)])
    chex.assert_trees_all_close(scanned, p, rtol=1e-6)


def test_beta_is_swept_with_vmap():
    p, values = {"kernel": jnp.ones((2, 2))}, jnp.array([0.5, 0.9], jnp.float32)
    train = lambda beta: loop(sgdw(rules.toward_average(beta)), p, [p] * 5)[0]["kernel"]
    together = jax.vmap(train)(values)
    np.testing.assert_allclose(together, jnp.stack([train(x) for x in values]), rtol=1e-5)
    assert float(jnp.abs(together[0] - together[1]).max()) > 1e-3


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: rules.toward_average(1.0), ValueError, "decay=1.0 must be below 1"),
        (lambda: rules.toward_average(-0.1), ValueError, "decay=-0.1"),
        (lambda: rules.toward_average("init"), TypeError, "decay must be a number"),
        (lambda: rules.toward_average(lambda t: 0.9), TypeError, "takes no schedule"),
        (lambda: rules.cautious("strict"), TypeError, "strict='strict': expected True or False"),
        (lambda: sgdw(optax.chain(rules.l1(), rules.toward_average(0.9))).init(params()), ValueError, "goes first"),
    ],
)
def test_wrong_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("rule", [rules.toward_average(0.9), rules.toward_norm("init"), rules.constrained("init")])
def test_a_mask_that_is_known_at_init_and_traced_at_update(rule):
    p = {"kernel": jnp.ones((2, 2)), "b": jnp.ones(2)}
    make = lambda m: sgdw(rule, mask={"kernel": 1.0, "b": m})
    state = make(jnp.float32(0)).init(p)
    with pytest.raises(ValueError, match=r"'b' decays and has no (average|radius|kappa).*traced at both"):
        jax.jit(lambda m: make(m).update(p, state, p))(jnp.float32(0))


# --- Caution ----------------------------------------------------------------------------------------------------------


def test_strict_and_plain_caution_differ_only_where_the_step_is_zero():
    p, g = params(), grads(params())
    g["embed"]["embedding"] = g["embed"]["embedding"].at[2].set(0)
    plain, strict = (sgdw(rules.cautious(x)) for x in (False, True))
    a, b, bare = (jax.jit(tx.update)(g, tx.init(p), p)[0] for tx in (plain, strict, optax.sgd(LR)))
    rows = lambda x: x["embed"]["embedding"]
    assert_same_bits(rows(b)[2], rows(bare)[2])  # the update is kept bit for bit
    np.testing.assert_allclose(rows(a)[2], -C * rows(p)[2], rtol=1e-6)
    rest = lambda u: u | {"embed": {"embedding": jnp.delete(rows(u), 2, axis=0)}}
    assert_same_bits(rest(a), rest(b))


def test_strict_caution_at_a_learning_rate_of_zero_still_sees_the_direction():
    """wd.sgdw knows the direction; with_decay sees a step of 0, and nothing decays."""
    p, g = {"kernel": jnp.ones((2, 2))}, {"kernel": jnp.ones((2, 2))}
    tx = wd.with_decay(optax.sgd(0.0), learning_rate=0.0, weight_decay=0.5, rule=rules.cautious(strict=True))
    assert_same_bits(tx.update(g, tx.init(p), p)[0], optax.sgd(0.0).update(g, optax.sgd(0.0).init(p), p)[0])
    tx = wd.sgdw(optax.constant_schedule(0.0), weight_decay=0.5, coupling="constant", rule=rules.cautious(strict=True))
    assert float(jnp.max(tx.update(g, tx.init(p), p)[0]["kernel"])) < -0.4
