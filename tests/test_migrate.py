"""`migrate_state` between wrappers, roundings and chains, and what it refuses; Optax's checkpoints are footgun F24."""

from typing import NamedTuple

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

import wd_optax as wd

pytestmark = pytest.mark.optax_promotes

PARAMS = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}, "mu": {"kernel": jnp.ones((2, 3))}}
ADAMW = lambda **options: wd.adamw(0.1, weight_decay=0.1, mask=None, **options)
OPTAX = optax.adamw(0.1, weight_decay=0.1)


def run(tx, state, steps, params=PARAMS, scale=0.1):
    for step in steps:
        grads = optax.tree.scale(scale, optax.tree.random_like(jax.random.key(step), params))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def raw(state):
    return flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))


TARGETS = {
    "plain": ADAMW(),
    "chain": optax.chain(optax.clip(10.0), ADAMW()),
    "nearest": ADAMW(rounding="nearest"),
    "stochastic": ADAMW(rounding="stochastic"),
    "compensated_all": ADAMW(rounding="compensated_all"),
    "low-precision state": ADAMW(nu_dtype=jnp.float32),
    "master weights": wd.precision.with_master_weights(ADAMW()),
    "monitored": wd.monitor_decay(ADAMW()),
    "MultiSteps": optax.MultiSteps(ADAMW(), 1),
    "apply_if_finite": optax.apply_if_finite(ADAMW(), 5),
    "injected": optax.inject_hyperparams(wd.adamw, static_args=("mask", "b1", "b2", "eps", "eps_root"))(
        0.1, weight_decay=0.1, mask=None
    ),
    "partition": wd.partition({"a": ADAMW(), "b": ADAMW()}, lambda p: "a" if p.role == "weight" else "b"),
    "decoupled": wd.decoupled(optax.scale_by_adam(), 0.1, weight_decay=0.1, mask=None),
    "with_decay": wd.with_decay(optax.adam(0.1), learning_rate=0.1, weight_decay=0.1, mask=None),
}
SOURCES = {
    "adamw": OPTAX,
    "schedule": optax.adamw(lambda t: 0.1, weight_decay=0.1),
    "clipped": optax.chain(optax.clip(10.0), OPTAX),
    "MultiSteps": optax.MultiSteps(OPTAX, 1),
    "apply_if_finite": optax.apply_if_finite(OPTAX, 5),
    "injected": optax.inject_hyperparams(optax.adamw)(0.1, weight_decay=0.1),
    "ours": ADAMW(),
    "ours, rounded": ADAMW(rounding="stochastic"),
    "ours, an array": wd.adamw(jnp.float32(0.1), weight_decay=0.1, mask=None),
}


def assert_resumes(old, new, read):
    params, old_state = run(old, old.init(PARAMS), range(2))
    state = wd.migrate_state(read(old_state), new, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new.init(params))
    resumed, _ = run(new, state, range(2, 4), params)
    uninterrupted, _ = run(old, old_state, range(2, 4), params)
    chex.assert_trees_all_close(resumed, uninterrupted, rtol=1e-5)  # float32, sums in another order
    again, _ = run(new, new.init(params), range(2, 4), params)
    assert optax.tree.norm(optax.tree.sub(again, resumed)) > 1e-3  # a fresh state would be seen


@pytest.mark.parametrize("read", [lambda state: state, raw], ids=["as made", "raw"])
@pytest.mark.parametrize("target", TARGETS)
def test_targets(target, read):
    assert_resumes(OPTAX, TARGETS[target], read)


@pytest.mark.parametrize("source", SOURCES)
def test_sources(source):
    assert_resumes(SOURCES[source], ADAMW(), raw)
    assert_resumes(SOURCES[source], TARGETS["chain"], lambda state: state)


def test_a_checkpoint_of_version_0_1_0():
    """Its counter was called `count`, and SGD had none of its own."""
    for new, inner in (
        (ADAMW(), lambda s: {"count": 3, "mu": s.mu, "nu": s.nu}),
        (wd.sgdw(0.1, weight_decay=0.1, momentum=0.9, rule=wd.rules.toward("init")), lambda s: {"trace": s.trace}),
    ):
        state = run(new, new.init(PARAMS), range(3))[1]
        old = {
            "count": state.step,
            "hyperparams": {"learning_rate": jnp.float32(7), "weight_decay": jnp.float32(8)},
            "anchor": PARAMS if state.rule else (),
            "inner": jax.tree.map(jnp.asarray, inner(state.inner)),
        }
        migrated = wd.migrate_state(old, new, optax.tree.zeros_like(PARAMS))
        chex.assert_trees_all_equal(migrated, state)  # the anchor, too; η and λ are the optimizer's


class AverageState(NamedTuple):
    mu: optax.Params  # called as Adam's
    count: jax.Array


def average():
    """Toward a moving average of the parameters."""

    def init(params):
        return AverageState(jax.tree.map(jnp.array, params), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        mu = optax.tree.add_scale(optax.tree.scale(0.5, state.mu), 0.5, params)
        return optax.tree.sub(updates, mu), AverageState(mu, state.count + 1)

    return optax.GradientTransformation(init, update)


RULES = {
    "toward": wd.rules.toward("init"),
    "average": average(),
    "chain": optax.chain(wd.rules.toward("init"), wd.rules.cautious(), average()),
}
FINETUNED = lambda rule: wd.adamw(0.1, weight_decay=0.1, rule=rule)


@pytest.mark.parametrize("read", [lambda state: state, raw], ids=["as made", "raw"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_keeps_its_state(rule, read):
    """Leaves that don't decay, such as biases here, are `optax.MaskedNode` in it."""
    wrappers = {
        "rounded": wd.adamw(0.1, weight_decay=0.1, rule=RULES[rule], rounding="compensated_all"),
        "partition": wd.partition(
            {"a": FINETUNED(RULES[rule]), "b": ADAMW()}, lambda p: "b" if "mu" in p.path else "a"
        ),
        "chain": optax.chain(optax.clip(10.0), FINETUNED(RULES[rule])),
    }
    params, state = run(FINETUNED(RULES[rule]), FINETUNED(RULES[rule]).init(PARAMS), range(3))
    assert len(jax.tree.leaves(state.rule)) > 0
    assert int(state.step) == 3
    for tx in (FINETUNED(RULES[rule]), *wrappers.values()):
        migrated = wd.migrate_state(read(state), tx, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(migrated, tx.init(params))
    for tx in (FINETUNED(RULES[rule]), wrappers["chain"]):
        migrated = wd.migrate_state(read(state), tx, params)
        found = migrated[1] if tx is wrappers["chain"] else migrated
        chex.assert_trees_all_equal(found, state)
        ends = (run(tx, migrated, range(3, 5), params)[0], run(FINETUNED(RULES[rule]), state, range(3, 5), params)[0])
        chex.assert_trees_all_equal(*ends)


@pytest.mark.parametrize("read", [lambda state: state, raw], ids=["as made", "raw"])
def test_empty_layers(read):
    """An empty dict of the parameters, and what a checkpoint has for `optax.MaskedNode`, look alike."""
    params = PARAMS | {"activation": {}}
    for old in (OPTAX, FINETUNED(RULES["toward"])):
        _, state = run(old, old.init(params), range(2), params)
        migrated = wd.migrate_state(read(state), FINETUNED(RULES["toward"]), params)
        assert int(migrated.step) == 2
        chex.assert_trees_all_equal(migrated.inner.mu, (state[0] if old is OPTAX else state.inner).mu)


def test_a_rule_that_one_of_both_lacks():
    """A new rule starts at these parameters, with a count of its own; an old one is dropped, as an old anchor is."""
    params, state = run(OPTAX, OPTAX.init(PARAMS), range(3))
    migrated = wd.migrate_state(state, FINETUNED(RULES["chain"]), params)
    chex.assert_trees_all_equal(migrated.rule, FINETUNED(RULES["chain"]).init(params).rule)
    assert int(migrated.step) == 3
    assert int(migrated.rule[2].count) == 0
    back = wd.migrate_state(migrated, FINETUNED(None), params)
    chex.assert_trees_all_equal(back.inner, migrated.inner)
    with pytest.raises(ValueError, match=r"no 'anchor' for parameter 'dense/bias'"):  # decays now, and had no anchor
        wd.migrate_state(migrated, ADAMW(rule=RULES["toward"]), params)


def test_pending_gradients_of_multi_steps():
    old = optax.MultiSteps(OPTAX, 3)
    params, state = run(old, old.init(PARAMS), range(4))
    with pytest.raises(
        ValueError, match=r"pending .mini_step=1., which would be lost: .*optax.MultiSteps.optimizer, k"
    ):
        wd.migrate_state(state, ADAMW(), params)
    for read in (raw, lambda state: state):
        new = optax.MultiSteps(ADAMW(), 3)
        migrated = wd.migrate_state(read(state), new, params)
        chex.assert_trees_all_equal(migrated.acc_grads, state.acc_grads)
        resumed, uninterrupted = (run(tx, s, range(4, 6), params)[0] for tx, s in ((new, migrated), (old, state)))
        chex.assert_trees_all_close(resumed, uninterrupted, rtol=1e-6)


LOST = {
    "adamax": (optax.adamax(0.1), "as the state of optax.adamax, whose nu is a largest .*wd.with_decay"),
    "adamaxw": (optax.adamaxw(0.1), "as the state of optax.adamax"),
    "adabelief": (optax.adabelief(0.1), "'mu' in a ScaleByBeliefState, where it means something else"),
    "amsgrad": (optax.amsgrad(0.1), "'mu' in a ScaleByAmsgradState, where it means something else|'nu_max'"),
    "novograd": (optax.novograd(0.1), "ScaleByNovogradState"),
    "with an average": (optax.chain(OPTAX, optax.ema(0.9)), "'ema' .*for which the optimizer has no place"),
    "lion": (optax.lion(0.1), "ScaleByLionState"),
}


@pytest.mark.parametrize("name", LOST)
def test_moments_that_mean_something_else_or_would_be_dropped(name):
    old, message = LOST[name]
    _, state = run(old, old.init(PARAMS), range(3))
    for new in (ADAMW(), TARGETS["chain"], wd.adam_l2(0.1, weight_decay=0.1)):
        with pytest.raises(ValueError, match=message):
            wd.migrate_state(state, new, PARAMS)
    if name in ("amsgrad", "adamax"):
        with pytest.raises(ValueError, match="nu_max" if name == "amsgrad" else "adamax"):
            wd.migrate_state(raw(state), ADAMW(), PARAMS)


def test_the_optimizer_itself_takes_what_adamw_refuses():
    """As the errors say: `with_decay` keeps the optimizer."""
    for name in ("adamax", "adabelief", "amsgrad", "novograd", "lion"):
        base = LOST[name][0]
        tx = wd.with_decay(base, learning_rate=0.1, weight_decay=0.0)
        params, state = run(base, base.init(PARAMS), range(2))
        migrated = wd.migrate_state(state, tx, params)
        chex.assert_trees_all_equal(migrated.inner, state)
        chex.assert_trees_all_equal(run(tx, migrated, range(2, 4), params)[0], run(base, state, range(2, 4), params)[0])


def test_two_optimizers_in_one_state_keep_their_moments():
    """Muon and its Adam both have a `mu`; after `jit` the dict of the two is in another order than at `init`."""
    base = optax.contrib.muon(0.1)
    tx = wd.with_decay(base, learning_rate=0.1, weight_decay=0.1)
    with jax.numpy_rank_promotion("allow"):
        _, state = jax.jit(base.update)(PARAMS, base.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(wd.migrate_state(state, tx, PARAMS).inner, state)


def test_arguments_the_wrong_way_round():
    with pytest.raises(TypeError, match="optimizer must be an Optax transformation, got"):
        wd.migrate_state(ADAMW(), OPTAX.init(PARAMS), PARAMS)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3.0])
def test_adams_moments_are_adams_at_ordinary_gradients(scale):
    for steps in (1, 30):
        _, state = run(OPTAX, OPTAX.init(PARAMS), range(steps), scale=scale)
        wd.migrate_state(state, ADAMW(), PARAMS)


def test_huge_gradients_need_a_word():
    _, state = run(OPTAX, OPTAX.init(PARAMS), range(3), scale=1e5)
    with pytest.raises(ValueError, match="pass check_moments=False"):
        wd.migrate_state(state, ADAMW(), PARAMS)
    assert int(wd.migrate_state(state, ADAMW(), PARAMS, check_moments=False).step) == 3


@pytest.mark.parametrize("rounding", [None, "stochastic"])
@pytest.mark.parametrize(
    "old", [OPTAX, optax.adam(0.1), optax.sgd(0.1, momentum=0.9), optax.sgd(0.1), optax.chain(optax.clip(1.0), OPTAX)]
)
def test_an_optax_state_without_migrating(old, rounding):
    with pytest.raises(TypeError, match=r"adamw: state is a .*wd.migrate_state.opt_state, optimizer, params"):
        ADAMW(rounding=rounding).update(PARAMS, old.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", ["shrink", "proximal", "add_l2_to_loss", "add_decayed_weights"])
def test_any_other_state_of_a_transform(name):
    for state in (optax.EmptyState(), {}, None, OPTAX.init(PARAMS)):
        with pytest.raises(TypeError, match=rf"{name}: state is a .*, expected a DecayState.*optimizer.init"):
            getattr(wd, name)(0.1).update(PARAMS, state, PARAMS)
