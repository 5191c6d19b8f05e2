"""Faults that a fresh look at rules, penalties and projections found."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import wd_optax as wd
from wd_optax.rules.norms import slice_norm


def params():
    return {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.ones(2)}


@pytest.mark.parametrize("axes", [(), (0,)])
def test_the_derivative_of_a_norm_of_zero_is_zero(axes):
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]]) if axes else jnp.zeros((2, 2))
    slope = jax.grad(lambda x: jnp.sum(slice_norm(x, axes)))(x)
    np.testing.assert_allclose(slope, [[0, 0], [0.6, 0.8]] if axes else jnp.zeros((2, 2)), rtol=1e-6)  # two roundings
    assert np.isnan(slice_norm(jnp.array([jnp.nan]), ()))


def test_a_gate_is_refused_in_the_name_of_the_optimizer():
    for make, called in ((wd.adamw, r"adamw\(penalty=\.\.\.\)"), (wd.sgdw, r"sgdw\(penalty=\.\.\.\)")):
        with pytest.raises(ValueError, match=f"rule: {called} takes no gate.*drop penalty= or the gate"):
            make(0.1, weight_decay=0.1, penalty="l1", rule=wd.rules.cautious()).init(params())


def test_a_state_without_a_hyperparameter_is_named():
    p = params()
    with pytest.raises(ValueError, match="project: state has no 'radius', which is a number here"):
        wd.project(2.0).update(p, wd.project("init").init(p), p)
    state = wd.sgdw(0.1, weight_decay=0.1).init(p)
    with pytest.raises(ValueError, match="sgdw: state has no 'peak_learning_rate'"):
        wd.sgdw(0.1, weight_decay=0.1, coupling="schedule").update(p, state, p)
    wd.sgdw(jnp.float32(0.1), weight_decay=lambda step: 0.1).update(p, state, p)  # these read no leaf


def test_a_rule_by_name_is_answered_with_its_call():
    for name, call in {"cautious": r"rules\.cautious\(\)$", "init": r"rules\.toward\('init'\)$"}.items():
        with pytest.raises(TypeError, match=call):
            wd.sgdw(0.1, weight_decay=0.1, rule=name)


def test_constrained_takes_numpys_integers():
    state = wd.sgdw(0.1, weight_decay=0.1, rule=wd.rules.constrained("warm", steps=np.int64(1))).init(params())
    assert float(optax.tree.get(state, "kappa")["kernel"].item()) == np.inf
    for steps in (0, True, 1.5):
        with pytest.raises(ValueError, match="how many steps to wait"):
            wd.rules.constrained("warm", steps=steps)


@pytest.mark.optax_promotes
def test_a_penalty_in_adams_metric_beside_integer_leaves():
    p = {"kernel": jnp.ones((2, 2)), "table": jnp.arange(3)}
    tx = wd.adamw(0.1, weight_decay=0.1, penalty="l1")
    updates, _ = jax.jit(tx.update)({"kernel": jnp.ones((2, 2)), "table": jnp.zeros(3, jnp.int32)}, tx.init(p), p)
    np.testing.assert_allclose(updates["kernel"], jnp.full((2, 2), -0.11), rtol=1e-5)  # −η·(1 + λ/D), D = 1; a few ulps


def test_a_metric_that_gets_a_step_count_names_inject_hyperparams():
    tx = optax.inject_hyperparams(wd.decoupled)(
        optax.scale_by_adam(), 0.1, weight_decay=0.1, penalty="l1", metric=wd.prox.adam_metric()
    )
    with pytest.raises(TypeError, match=r'static_args=\("metric",\)'):
        tx.init(params())
    tx = optax.inject_hyperparams(wd.decoupled, static_args=("metric", "penalty"))(
        optax.scale_by_adam(), 0.1, weight_decay=0.1, penalty=wd.prox.huber(), metric=wd.prox.adam_metric()
    )
    assert "weight_decay" in tx.init(params()).hyperparams


def stacked():
    return {"blocks": jnp.stack([jnp.eye(2), 3 * jnp.eye(2)])}


SLICED = {
    "toward_norm": lambda slices: wd.sgdw(0.1, weight_decay=0.1, rule=wd.rules.toward_norm("init"), slices=slices),
    "constrained": lambda slices: wd.sgdw(0.1, weight_decay=0.1, rule=wd.rules.constrained("init"), slices=slices),
    "project": lambda slices: wd.project("init", slices=slices),
    "hyperball": lambda slices: wd.hyperball(optax.identity(), 0.1, slices=slices),
}


@pytest.mark.parametrize("name", SLICED)
@pytest.mark.parametrize("then", [None, [("blocks", 1)]])
def test_a_state_of_other_slices_is_refused(name, then):
    """Else a radius of the whole leaf would be every slice's: wrong by the root of their number, without a word."""
    p, now = stacked(), [("blocks", 1)] if then is None else None
    state = SLICED[name](then).init(p)
    SLICED[name](then).update(p, state, p)
    with pytest.raises(ValueError, match=rf"{name}.*'blocks' .* in the state, and slices=.* other slices"):
        SLICED[name](now).update(p, state, p)


RULES = {
    "toward": lambda: wd.rules.toward("init"),
    "average": lambda: wd.rules.toward_average(0.9),
    "norm": lambda: wd.rules.toward_norm("init"),
    "lazy": lambda: wd.rules.active_rows(policy="lazy"),
}


@pytest.mark.parametrize("old", RULES)
@pytest.mark.parametrize("new", RULES)
def test_a_state_of_another_rule_is_refused_by_name(old, new):
    p = {"kernel": params()["kernel"]}
    make = lambda name: wd.sgdw(0.1, weight_decay=0.1, rule=RULES[name]())
    state = make(old).init(p)
    if old == new:
        make(new).update(p, state, p)
        return
    with pytest.raises(ValueError, match=r"rule: the optimizer's state is of another rule.*wd\.migrate_state"):
        make(new).update(p, state, p)


SHARDED = {
    "toward_norm": lambda: wd.sgdw(0.1, weight_decay=0.1, momentum=0.9, rule=wd.rules.toward_norm("init")),
    "lazy": lambda: wd.sgdw(0.1, weight_decay=0.1, rule=wd.rules.active_rows(policy="lazy")),
    "hyperball": lambda: wd.hyperball(optax.trace(0.9), 0.1),
}


@pytest.mark.parametrize("name", SHARDED)
def test_shardings_mapped_by_shape_fit_the_state(name):
    """The recipe of docs/performance.md; the parameter's own sharding doesn't fit an axis of size 1."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    p, tx = {"kernel": jnp.ones((8, 4))}, SHARDED[name]()
    shardings, everywhere = (
        {"kernel": NamedSharding(mesh, PartitionSpec("data", None))},
        NamedSharding(mesh, PartitionSpec()),
    )

    def place(x, p, sharding):
        axes = [axis if x.shape[i] == p.shape[i] else None for i, axis in enumerate(sharding.spec) if i < x.ndim]
        return NamedSharding(sharding.mesh, PartitionSpec(*axes))

    state = jax.eval_shape(tx.init, p)
    placed = optax.tree.map_params(tx, place, state, p, shardings, transform_non_params=lambda x: everywhere)
    made = jax.jit(tx.init, out_shardings=placed)(p)
    chex.assert_trees_all_equal(made, tx.init(p))
    full = [x for x in jax.tree.leaves(made) if x.shape == (8, 4) or x.shape == (8, 1)]
    assert full
    assert all(x.sharding.spec[0] == "data" for x in full)
    naive = optax.tree.map_params(tx, lambda x, s: s, state, shardings, transform_non_params=lambda x: everywhere)
    with pytest.raises(ValueError, match=r"partitioned 4 times|incompatible|divisible"):
        jax.jit(tx.init, out_shardings=naive)(p)


def test_a_rules_state_has_the_types_that_its_update_returns():
    mean = optax.GradientTransformation(
        lambda p: jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), p),
        lambda p, state, _: (p, jax.tree.map(lambda s, x: s.astype(jnp.float32) + x, state, p)),
    )
    tx, p = wd.sgdw(0.1, weight_decay=0.1, rule=mean), params()
    state = tx.init(p)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.update(p, state, p)[1], state)
    assert {x.dtype.name for x in jax.tree.leaves(state.rule)} == {"float32"}
