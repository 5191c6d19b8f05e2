"""`explain` takes what people have at hand: optimizers, models, train states; and says how where it can't."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import wd_optax as wd

PARAMS = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}


def decided(explanation):
    return {row.path: row.multiplier for row in explanation.rows}


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optax.adamw(1e-3, weight_decay=0.1), {"bias": 1.0, "kernel": 1.0}),
        (optax.sgd(0.1), {"bias": 0.0, "kernel": 0.0}),
        (optax.adamw(1e-3, weight_decay=0.1, mask={"kernel": True, "bias": False}), {"bias": 0.0, "kernel": 1.0}),
        (wd.adamw(1e-3, weight_decay=0.1), {"bias": 0.0, "kernel": 1.0}),
        (wd.sgdw(0.1, weight_decay=0.1, mask=[("kernel", 0.25), ("bias", 1.0)]), {"bias": 1.0, "kernel": 0.25}),
        (optax.chain(optax.clip(1.0), wd.adamw(1e-3, weight_decay=0.1)), {"bias": 0.0, "kernel": 1.0}),
    ],
    ids=["optax", "no decay", "optax with a mask", "ours", "multipliers", "chain"],
)
def test_11e_an_optimizer_is_explained_by_what_it_decays(optimizer, expected):
    explanation = wd.explain(optimizer, PARAMS)
    assert decided(explanation) == expected
    assert "per step" in explanation.rows[0].reason
    assert f"{sum(map(bool, expected.values()))} of 2 leaves decay" in str(explanation)


@pytest.mark.parametrize(
    "mask", ["weights", None, [("kernel", 1.0)], ["kernel"], lambda p: "weights", {"kernel": True, "bias": False}]
)
def test_11e_swapped_arguments_are_named_with_the_right_call(mask):
    with pytest.raises(TypeError, match=r"the mask comes first and the parameters second: wd\.explain"):
        wd.explain(PARAMS, mask)
    with pytest.raises(TypeError, match=r"the mask comes first and the parameters second: wd\.multipliers"):
        wd.multipliers(PARAMS, mask)


def test_11e_a_swapped_optimizer_is_named():
    with pytest.raises(TypeError, match=r"wd.explain\(optimizer, params\)"):
        wd.explain(PARAMS, optax.sgd(0.1))


def test_11e_an_equinox_model_as_it_is_and_filtered():
    model = eqx.nn.Sequential(
        [
            eqx.nn.Linear(2, 3, key=jax.random.key(0)),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.1),
            eqx.nn.LayerNorm(3),
        ]
    )
    expected = {"layers/0/weight": 1.0, "layers/0/bias": 0.0, "layers/3/weight": 0.0, "layers/3/bias": 0.0}
    arrays = eqx.filter(model, eqx.is_inexact_array)
    for explanation in (wd.explain("weights", model), wd.explain(model), wd.explain("weights", arrays)):
        assert decided(explanation) == expected
    with pytest.raises(TypeError, match=r"layers/1/fn' is a .*eqx.filter\(model, eqx.is_inexact_array\)"):
        wd.adamw(1e-3, weight_decay=0.1).init(model)
    wd.adamw(1e-3, weight_decay=0.1).init(arrays)


@pytest.mark.optax_promotes
def test_11e_an_nnx_module_and_its_optimizer():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.1, rngs=rngs))
    expected = {"layers/0/kernel": 1.0, "layers/0/bias": 0.0, "layers/1/scale": 0.0, "layers/1/bias": 0.0}
    optimizer = nnx.Optimizer(model, wd.adamw(1e-3, weight_decay=0.1), wrt=nnx.Param)
    assert decided(wd.explain("weights", model)) == decided(wd.explain(model)) == expected
    assert decided(wd.explain(optimizer, model)) == expected
    assert decided(wd.explain("weights", nnx.state(model, nnx.Param))) == expected


@pytest.mark.optax_promotes
def test_11e_a_train_state_holds_parameters_and_an_optimizer():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=wd.adamw(1e-3, weight_decay=0.1))
    expected = {"bias": 0.0, "kernel": 1.0}
    assert decided(wd.explain("weights", state)) == decided(wd.explain(state)) == expected
    assert decided(wd.explain(state, state)) == decided(wd.explain(state.tx, state)) == expected


def test_11e_a_linen_module_has_no_parameters_and_the_error_says_where_they_are():
    module = nn.Dense(3)
    with pytest.raises(TypeError, match=r"params is a Dense, not an array.*model.init\(key, inputs\)\['params'\]"):
        wd.explain("weights", module)
    params = module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert decided(wd.explain("weights", params)) == {"bias": 0.0, "kernel": 1.0}


@pytest.mark.parametrize("nothing", [None, {}, []])
def test_no_parameters_make_an_empty_table(nothing):
    assert wd.explain("weights", nothing).rows == ()


def test_a_mask_alone_asks_for_parameters():
    with pytest.raises(TypeError, match="params is a str 'weights', not an array"):
        wd.explain("weights")
