"""Decay measured on demand: the monitor's figures, by any groups, per layer; and what they say of the equilibrium."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import LEARNING_RATE, WEIGHT_DECAY, grads, optimizer, params, step
from helpers import assert_same_bits

import wd_optax as wd
from wd_optax import step_rates
from wd_optax.masking.roles import ROLES

pytestmark = [pytest.mark.quick_compile, pytest.mark.optax_promotes]
ADAMW = optimizer("adamw")
BUILD = {
    "adamw": lambda: ADAMW,
    "optax.lion": lambda: optax.lion(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    "cautious": lambda: wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=wd.rules.cautious()),
    "lamb": lambda: optax.lamb(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
}
normal = lambda seed, *shape: jnp.array(np.random.default_rng(seed).standard_normal(shape, np.float32))
STACKED = {
    "blocks": {"kernel": normal(0, 3, 8, 4), "norm": {"scale": jnp.full((3, 4), 2.0)}},
    "head": {"kernel": normal(1, 4, 8)},
    "steps": jnp.arange(3),
}
SLICES = [("blocks", 1)]


def measure(tx, p, g=None, **options):
    g = jax.tree.map(jnp.cos, p) if g is None else g
    return jax.jit(functools.partial(wd.measure_decay, tx, **options))(g, tx.init(p), p)


@pytest.mark.parametrize("groups", ["roles", [("tables", "embed"), ("attn/.*", "attn")]], ids=["roles", "rules"])
@pytest.mark.parametrize("name", BUILD)
def test_it_measures_what_the_monitor_records(name, groups):
    p, tx = params(), BUILD[name]()
    watched = wd.monitor_decay(tx, groups=groups)
    recorded = wd.read_decay(jax.jit(watched.update)(grads(p), watched.init(p), p)[1])
    measured = measure(tx, p, grads(p), groups=groups)
    assert set(recorded) == set(measured)
    for group, info in measured.items():
        chex.assert_trees_all_close(recorded[group], info, rtol=1e-6)  # one implementation in two programs


def test_the_step_is_the_plain_optimizers_and_measuring_changes_nothing():
    """A training loop that logs every 2nd step: the step's program doesn't know, and the run is the same to the bit."""
    p = params()
    train = lambda p, state, g: step(ADAMW, g, state, p)
    text = lambda: jax.jit(train).lower(p, ADAMW.init(p), grads(p)).compile().as_text()
    plain = text()
    measuring = jax.jit(functools.partial(wd.measure_decay, ADAMW))
    runs = []
    for logs in (False, True):
        now, state = params(), ADAMW.init(p)
        one = jax.jit(train)
        for i in range(4):
            if logs and i % 2 == 0:
                before = jax.tree.map(jnp.copy, (now, state))
                assert float(measuring(grads(p, i), state, now)["weight"].decay_share) > 0
                assert_same_bits((now, state), before)
            now, state = one(now, state, grads(p, i))
        runs.append((now, state))
    assert_same_bits(*runs)
    assert text() == plain


def test_roles_are_all_there_and_in_order():
    measured = measure(ADAMW, params())
    assert list(measured) == list(ROLES)
    assert [float(info.size) for info in measured.values()] == [24, 15, 8, 12, 0]
    assert all(float(x) == 0 for x in measured["other"])
    assert len(jax.tree.leaves(measured)) == 1  # one array comes back from the device


def test_every_leaf_by_its_path():
    measured = measure(ADAMW, STACKED, groups="leaves")
    assert list(measured) == ["blocks/kernel", "blocks/norm/scale", "head/kernel", "steps"]
    for path, leaf in (("blocks/kernel", STACKED["blocks"]["kernel"]), ("head/kernel", STACKED["head"]["kernel"])):
        info = measured[path]
        assert float(info.weight_norm) == pytest.approx(np.linalg.norm(leaf), rel=1e-6)
        assert float(info.weight_rms) == pytest.approx(np.sqrt(np.mean(np.square(leaf))), rel=1e-6)
        assert float(info.removed) == pytest.approx(LEARNING_RATE * WEIGHT_DECAY, rel=1e-6)
    assert float(measured["blocks/norm/scale"].removed) == 0
    assert (float(measured["steps"].size), float(measured["steps"].weight_norm)) == (3, 0)


@pytest.mark.parametrize("groups", ["leaves", [("blocks", "blocks/kernel")]], ids=["leaves", "rules"])
def test_stacked_layers_are_measured_one_by_one(groups):
    """Each layer's figures are those of a tree that holds this layer alone."""
    tx, g = optax.sgd(0.1), jax.tree.map(jnp.cos, STACKED)
    stacked = measure(tx, STACKED, g, groups=groups, slices=SLICES)
    info = stacked["blocks/kernel" if groups == "leaves" else "blocks"]
    assert info.angle.shape == (3,)
    for i in range(3):
        alone = measure(tx, *({"kernel": tree["blocks"]["kernel"][i]} for tree in (STACKED, g)))["weight"]
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], info), alone, rtol=1e-6, atol=1e-9)
    head = measure(tx, {"head": STACKED["head"]}, {"head": g["head"]})["weight"]
    one = stacked["head/kernel" if groups == "leaves" else "rest"]
    if groups == "leaves":
        chex.assert_trees_all_close(one, head, rtol=1e-6)
    assert one.angle.shape == ()
    by_role = measure(tx, STACKED, g, slices=SLICES)
    assert by_role["weight"].angle.shape == ()  # the monitor's figures


def test_a_group_with_other_leaves_than_the_stack_is_one_vector():
    measured = measure(ADAMW, STACKED, groups=[("all", ".*")], slices=SLICES)
    assert measured["all"].angle.shape == ()
    leaves = [STACKED["blocks"]["kernel"], STACKED["blocks"]["norm"]["scale"], STACKED["head"]["kernel"]]
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in leaves))
    assert float(measured["all"].weight_norm) == pytest.approx(norm, rel=1e-6)


def test_the_monitor_takes_groups_and_layers_too():
    tx = wd.monitor_decay(ADAMW, groups=[("blocks", "blocks/kernel")], slices=SLICES)
    g = jax.tree.map(jnp.cos, STACKED)
    state = tx.init(STACKED)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state.norms))
    _, after = jax.jit(tx.update)(g, state, STACKED)
    chex.assert_trees_all_equal_shapes_and_dtypes(after.norms, state.norms)
    recorded = wd.read_decay(after)
    measured = measure(ADAMW, STACKED, g, groups=[("blocks", "blocks/kernel")], slices=SLICES)
    for group in ("blocks", "rest"):
        chex.assert_trees_all_close(recorded[group], measured[group], rtol=1e-6)
    flat = wd.read_decay(after, flat=True)
    assert flat["blocks/1/angle"] == pytest.approx(float(measured["blocks"].angle[1]), rel=1e-6)
    assert flat == pytest.approx(wd.read_decay(measured, flat=True), rel=1e-6)


def test_leaves_of_one_shape_share_loops_and_nothing_is_lost():
    """21 equal leaves, a large one, one of another type, an empty one: sums as of each alone."""
    p = {f"kernel{i}": normal(i, 4, 3) for i in range(21)}
    p |= {"kernel_large": jnp.full((200, 100), 0.1), "kernel_low": jnp.ones((4, 3), jnp.bfloat16)}
    p |= {"kernel_empty": jnp.zeros((0, 3))}
    measured = measure(ADAMW, p)["weight"]
    each = measure(ADAMW, p, groups="leaves")
    for field in ("weight_norm", "update_norm"):
        norms = [float(getattr(info, field)) for info in each.values()]
        assert float(getattr(measured, field)) == pytest.approx(np.linalg.norm(norms), rel=1e-6)
    assert float(each["kernel_empty"].weight_norm) == 0


def test_it_is_batched_by_vmap_and_prints():
    p = {"kernel": jnp.ones((2, 2))}
    tx = wd.sgdw(0.1, weight_decay=0.5)
    batched = jax.vmap(lambda scale: wd.measure_decay(tx, p, tx.init(p), {"kernel": scale * p["kernel"]}))(
        jnp.array([1.0, 2.0])
    )
    np.testing.assert_allclose(batched["weight"].weight_norm, [2.0, 4.0], rtol=1e-6)
    assert str(batched).split() == ["group", *ROLES]
    one = jax.tree.map(lambda x: x[1], batched)
    assert str(one).splitlines()[1].split()[:3] == ["weight", "4", "4"]
    assert "<td>weight</td>" in one._repr_html_()
    with pytest.raises(KeyError, match="'kernel': the groups are 'weight', 'embedding'"):
        one["kernel"]
    with pytest.raises(ValueError, match="flat=True: opt_state is batched"):
        wd.read_decay(batched, flat=True)


def test_extra_arguments_and_missing_updates_reach_the_optimizer():
    p = {"kernel": jnp.ones((2, 2)), "frozen": None, "kernel2": jnp.ones((2, 2))}
    tx = optax.GradientTransformationExtraArgs(
        lambda p: optax.EmptyState(), lambda u, s, p=None, *, value: (optax.tree.scale(-value, u), s)
    )
    measured = wd.measure_decay(tx, {"kernel": jnp.ones((2, 2)), "frozen": None, "kernel2": None}, (), p, value=3.0)
    assert float(measured["weight"].update_norm) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"groups": "layers"}, ValueError, 'groups=\'layers\': expected "roles", "leaves" or rules'),
        ({"groups": {"a": "b"}}, TypeError, "expected"),
        ({"groups": ("blocks", "blocks")}, TypeError, r"is one rule: write \[\('blocks', 'blocks'\)\]"),
        ({"groups": [("blocks", 1)]}, TypeError, "groups: 1 is not a regular expression"),
        ({"groups": [("blocks", "(")]}, ValueError, r"groups rule '\(' is not a regular expression"),
        ({"groups": [("a", "block"), ("b", "kernal")]}, ValueError, "groups rule 'kernal' matches no parameter"),
        ({"groups": [("a", "blocks"), ("b", "blocks/kernel")]}, ValueError, "earlier rules take all it matches"),
        ({"slices": [("nothing", 1)]}, ValueError, "slices rule 'nothing' matches no parameter"),
    ],
)
def test_bad_groups_are_refused_with_their_fix(options, error, says):
    with pytest.raises(error, match=says):
        wd.measure_decay(ADAMW, STACKED, ADAMW.init(STACKED), STACKED, **options)
    if "groups" in options and "matches" not in says and "take all" not in says:
        with pytest.raises(error, match=says):
            wd.monitor_decay(ADAMW, **options)


def test_gradients_of_other_shapes_are_refused_by_path():
    params = {"dense": {"kernel": jnp.ones((3, 2))}}
    cut = {"dense": {"kernel": jnp.ones((1, 2))}}
    with pytest.raises(ValueError, match=r"'dense/kernel' has shape \(1, 2\) in params and \(3, 2\) in updates"):
        wd.measure_decay(ADAMW, params, ADAMW.init(params), cut)
    plain = optax.adam(0.1)
    with pytest.raises(ValueError, match=r"update of 'dense/kernel' has shape \(3, 2\), and the parameter \(1, 2\)"):
        wd.measure_decay(plain, cut, plain.init(params), cut)


def test_swapped_arguments_are_refused():
    p = params()
    with pytest.raises(TypeError, match="optimizer must be an Optax transformation"):
        wd.measure_decay(grads(p), ADAMW, ADAMW.init(p), p)
    with pytest.raises(ValueError, match=r"as optax\.lookahead"):
        wd.measure_decay(optax.lookahead(ADAMW, 5, 0.5), p, optax.LookaheadState((), jnp.zeros(())), p)


# --- a decay that is a number times the parameters is read off the program ------------------------------------------

# The kernel is summed before its step is evaluated again; the bias's step is evaluated once.
HUGE = {"kernel": normal(2, 130, 128), "bias": jnp.array(1 + np.arange(128, dtype=np.float32))}
MULTIPLES = {
    "adamw": lambda: ADAMW,
    "optax.adamw": lambda: optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    "optax.sgd, which doesn't decay": lambda: optax.sgd(LEARNING_RATE, momentum=0.9),
    "L2 and momentum": lambda: wd.sgd_l2(LEARNING_RATE, weight_decay=WEIGHT_DECAY, momentum=0.9),
    "clipped, several multipliers": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), wd.sgdw(LEARNING_RATE, weight_decay=0.3, mask=[("kernel", 0.5), ("", 1.0)])
    ),
    "scheduled": lambda: wd.adamw(optax.linear_schedule(0.1, 0.0, 9), weight_decay=0.1),
    "subtracted": lambda: optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u - p / 8, u, p)),
    "grows": lambda: optax.chain(optax.sgd(0.1), optax.add_decayed_weights(0.1)),
    "overwrites": lambda: wd.shrink(0.999),
}
OTHERS = {
    "cautious": BUILD["cautious"],
    "lamb": BUILD["lamb"],
    "squared": lambda: optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u - p * p, u, p)),
    "by another leaf": lambda: optax.stateless(lambda u, p: jax.tree.map(lambda u: u - 0.1 * p["bias"][0], u)),
    "by entry": lambda: optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u - 0.1 * u * p, u, p)),
}


def traced(tx, rates=step_rates.rates):
    """What `rates` reads off a step, and the function that measures it, not yet compiled."""
    found, arguments = [], (jax.tree.map(jnp.sin, HUGE), tx.init(HUGE), HUGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_rates, "rates", lambda *args: found.append(rates(*args)) or found[-1])
        program = jax.jit(functools.partial(wd.measure_decay, tx)).trace(*arguments)
    return found[0], lambda: program.lower().compile()(*arguments)


@pytest.mark.parametrize("name", MULTIPLES)
def test_what_is_read_off_is_the_derivative(name):
    tx = MULTIPLES[name]()
    found, measure = traced(tx)
    assert found is not None
    measured, derived = measure(), traced(tx, lambda *args: None)[1]()
    for group in ("weight", "bias"):
        chex.assert_trees_all_close(measured[group], derived[group], rtol=1e-5, atol=1e-7)
    if name in ("grows", "overwrites"):
        assert np.isnan(measured["weight"].decay_share)


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_derivative_is_taken(name):
    assert traced(OTHERS[name]())[0] is None


@pytest.mark.quick_compile(False)
@pytest.mark.parametrize("name", ["adamw", "sgdw", "optax.lion"])
def test_a_large_and_a_small_leaf_move_as_without_the_monitor(name):
    tx = BUILD[name]() if name in BUILD else optimizer(name)
    g, runs = jax.tree.map(lambda p: jnp.cos(p + jnp.arange(p.size, dtype=p.dtype).reshape(p.shape)), HUGE), []
    for one in (tx, wd.monitor_decay(tx)):
        update = jax.jit(functools.partial(step, one))
        p, state = update(g, one.init(HUGE), HUGE)
        runs.append(update(g, state, p)[0])
    # a·g + b·m is contracted in one program or the other: an ulp of a term near 1
    chex.assert_trees_all_close(*runs, rtol=1e-6, atol=2.0**-22)
    if name != "adamw":
        assert_same_bits(*runs)


def test_the_optimizer_is_traced_once():
    calls = []
    counting = optax.stateless(lambda u, p: calls.append(1) or jax.tree.map(lambda u, p: u - 0.1 * p, u, p))
    tx = wd.monitor_decay(counting)
    jax.jit(tx.update)(HUGE, tx.init(HUGE), HUGE)
    assert len(calls) == 1


def test_numpy_leaves_and_python_numbers_are_measured():
    p, g = {"kernel": np.ones((2, 2), np.float32), "scale": 3.0}, {"kernel": jnp.ones((2, 2)), "scale": 1.0}
    tx = wd.monitor_decay(wd.sgdw(0.1, weight_decay=0.5))
    for update in (tx.update, jax.jit(tx.update), lambda *args: jax.jit(lambda: tx.update(*args))()):
        info = wd.read_decay(update(g, tx.init(p), p)[1])["weight"]
        assert float(info.removed) == pytest.approx(0.05)
