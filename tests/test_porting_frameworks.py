"""timm, optimī, Keras and TF-Addons beside their recorded runs: defaults, refusals, groups, live η and λ."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd
from wd_optax.porting.emulate import CALLS
from wd_optax.porting.timm_factory import SHORT_NAMES
from wd_optax.porting.timm_muon import suits_muon

pytestmark = [pytest.mark.quick_compile, pytest.mark.optax_promotes]
FOLDER = Path(__file__).with_name("goldens")
SIGNATURES = {
    name: arguments
    for path in sorted(FOLDER.glob("signatures_*.json"))
    for name, arguments in json.loads(path.read_text()).items()
}
# no arguments of the constructor: entries of the groups, methods, **kwargs of the base class, what the model says
OURS = {
    "timm": {"max_lr_snapshot", "use_fallback", "use_muon", "no_weight_decay", "kwargs"},
    "keras": {"exclude_from_weight_decay"},
    "tfa": {"exclude_from_weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "decay"},
}
PARAMS = {"dense": {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([0.5, 1.0])}}
ADAMW = "keras.optimizers.AdamW"
FACTORY = "timm.optim.create_optimizer_v2"


def same(ours, theirs):
    try:
        return float(ours) == float(theirs)
    except (TypeError, ValueError):
        return str(ours) == theirs.replace("torch.", "")


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_and_defaults_are_those_of_the_installed_framework(name):
    theirs, ours = dict(SIGNATURES[name]), CALLS[name].signature.parameters
    theirs.pop("name", None)  # of the operations in the graph
    theirs.pop("layer_decay", None)  # an argument of emulate's own
    framework = name.partition(".")[0]
    assert set(ours) - set(theirs) - {"name"} <= OURS.get(framework, set())
    for key, default in theirs.items():
        if default == "":
            assert ours[key].default is ours[key].empty, key
        else:
            assert same(ours[key].default, default), key


def step(*args, gradient=0.0, edit=None, params=None, **kwargs):
    params = PARAMS if params is None else params
    tx = wd.emulate(*args, params=params, **kwargs)
    state = tx.init(params)
    if edit:
        state = optax.tree.set(state, **edit)
    return tx.update(jax.tree.map(lambda p: jnp.full_like(p, gradient), params), state, params)[0]


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        (ADAMW, {"use_ema": True}, "at the end of fit"),
        (ADAMW, {"loss_scale_factor": 128.0}, "the call without it"),
        (ADAMW, {"gradient_accumulation_steps": 4}, "optax.MultiSteps"),
        (ADAMW, {"clipnorm": 1.0, "clipvalue": 1.0}, "Keras takes one of"),
        (ADAMW, {"lr": 1e-3}, "has no argument 'lr'"),
        ("tfa.optimizers.SGDW", {"weight_decay": 0.1, "clipnorm": 1.0, "global_clipnorm": 1.0}, "takes one of them"),
        ("optimi.AdamW", {"lr": lambda step: 1e-3, "decouple_lr": True}, "pass lr=<the peak>"),
        ("timm.optim.Lion", {"lr": lambda step: 1e-3, "corrected_weight_decay": True}, "pass lr=<the peak>"),
        ("timm.optim.SGDW", {"nesterov": True}, "give momentum"),
        ("timm.optim.Muon", {"algo": "adamuon"}, "its second moment is not ported"),
        ("timm.optim.Muon", {"conv_mode": "batched"}, 'conv_mode="flatten"'),
        ("timm.optim.Muon", {"ns_coefficients": "polar_express"}, "a list of triples"),
        ("timm.optim.Muon", {"adjust_lr_fn": "spectral"}, "'rms_to_rms'"),
        (FACTORY, {"opt": "kron"}, "the nearest is one of adabelief"),
        (FACTORY, {"opt": "adamw", "beta1": 0.9}, "no argument 'beta1'"),
        (FACTORY, {"param_group_fn": len}, "groups="),
        (FACTORY, {"fallback_list": ["head"]}, "use_fallback"),
        (FACTORY, {"layer_decay_min_scale": 0.1}, "aren't clamped"),
    ],
)
def test_what_has_no_twin_is_refused(call, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        wd.emulate(call, params=PARAMS, **arguments)


def test_a_name_that_keras_excludes_and_no_parameter_has():
    tx = wd.emulate(ADAMW, params=PARAMS, exclude_from_weight_decay=["gamma"])
    with pytest.raises(ValueError, match="'gamma' is found in no name: they are bias, kernel"):
        tx.init(PARAMS)


def test_optimi_compensates_sixteen_bit_parameters_and_this_does_not():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(ValueError, match="kahan_sum=False"):
        wd.emulate("optimi.AdamW", params=params, lr=1e-3).init(params)
    wd.emulate("optimi.AdamW", params=params, lr=1e-3, kahan_sum=False).init(params)


def test_keras_names_and_timms_rule_decide_what_decays():
    excluded = step(ADAMW, learning_rate=0.1, weight_decay=0.5, exclude_from_weight_decay=["bias"])["dense"]
    ruled = step(FACTORY, opt="adamw", lr=0.1, weight_decay=0.5)["dense"]
    for updates in (excluded, ruled):
        np.testing.assert_allclose(updates["kernel"], -0.05 * PARAMS["dense"]["kernel"], rtol=1e-6)
        assert (updates["bias"] == 0).all()
    everything = step(ADAMW, learning_rate=0.1, weight_decay=0.5)["dense"]
    assert (everything["bias"] != 0).all()


def test_explain_says_which_rule_of_timms_decided():
    params = {
        "pos_embedding": jnp.ones((1, 5, 8)),
        "blocks_0": {
            "query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))},
            "norm": {"scale": jnp.ones(8)},
        },
    }
    table = wd.emulate.explain(FACTORY, params=params, opt="adamw", lr=1.0, weight_decay=0.1)
    assert {row.path: (row.weight_decay, row.because) for row in table.rows} == {
        "blocks_0/query/kernel": (0.1, "no rule spares it"),
        "blocks_0/query/bias": (0.0, "a bias, of rank 1 in PyTorch"),
        "blocks_0/norm/scale": (0.0, "rank 1"),
        "pos_embedding": (0.0, "no_weight_decay() names 'pos_embed'"),
    }
    decay = wd.LayerDecay(lr=0.5, layers=r"blocks_(\d+)")
    layered = wd.emulate.explain(FACTORY, params=params, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=decay)
    assert {row.path: row.learning_rate for row in layered.rows}["pos_embedding"] == 0.25
    whole = wd.emulate.explain(FACTORY, params=params, lr=1.0, weight_decay=0.0)
    assert {row.because for row in whole.rows} == {"weight_decay=0"}


def test_groups_replace_timms_rule():
    groups = [{"params": "bias", "weight_decay": 0.1}]
    table = wd.emulate.explain(FACTORY, params=PARAMS, opt="adamw", lr=1.0, weight_decay=0.5, groups=groups)
    assert [row.weight_decay for row in table.rows] == [0.1, 0.5]


@pytest.mark.parametrize("opt", SHORT_NAMES)
def test_every_short_name_of_timm_makes_an_optimizer(opt):
    given = {"max_lr_snapshot": 1e-2} if SHORT_NAMES[opt].defaults.get("corrected_weight_decay") else {}
    updates = jax.eval_shape(lambda: step(FACTORY, opt=opt, lr=1e-2, weight_decay=0.05, gradient=0.1, **given))
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("keras.optimizers.SGD", {"momentum": 0.9}),
        ("keras.optimizers.Adafactor", {}),
        ("timm.optim.Lars", {"momentum": 0.9}),
        ("timm.optim.Lamb", {"decoupled_decay": True, "max_grad_norm": None}),
        ("timm.optim.RMSpropTF", {"momentum": 0.9}),
        ("tfa.optimizers.LAMB", {}),
        ("optimi.StableAdamW", {}),
    ],
)
def test_learning_rate_and_weight_decay_are_live(call, arguments):
    """Also where η is inside of the momentum, or λ inside of a trust ratio."""
    lr = CALLS[call].learning_rate
    made = step(call, gradient=0.3, **{lr: 1e-3, "weight_decay": 0.05}, **arguments)
    edit = {"learning_rate": jnp.float32(1e-3), "weight_decay": jnp.float32(0.05)}
    edited = step(call, gradient=0.3, edit=edit, **{lr: 1e-2, "weight_decay": 0.5}, **arguments)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), made, edited)


def test_lambs_trust_ratio_goes_with_the_decay():
    """timm takes the ratio where λ ≠ 0 only, also where λ becomes 0 in the middle of a run."""
    arguments = {"lr": 1e-2, "gradient": 0.3, "max_grad_norm": None}
    plain = step("timm.optim.Lamb", weight_decay=0.0, **arguments)
    switched = step("timm.optim.Lamb", weight_decay=0.1, edit={"weight_decay": jnp.float32(0)}, **arguments)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), plain, switched)
    np.testing.assert_allclose(plain["dense"]["kernel"], -1e-2, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "suits"),
    [((64, 128), True), ((96, 3, 4, 4), True), ((4, 2048), False), ((64,), False), ((1, 196, 768), False)],
)
def test_which_shapes_timms_muon_takes(shape, suits):
    """The examples in timm's own docstring."""
    assert suits_muon(shape) is suits


def test_gradients_that_are_missing():
    """A leaf that isn't trained is None in both trees."""
    params = {"w": jnp.ones((4, 3)), "frozen": None}
    for call in ("timm.optim.Lamb", "timm.optim.Lars", "keras.optimizers.Lamb", "timm.optim.AdamWLegacy"):
        updates = step(call, params=params, gradient=0.1)
        assert updates["frozen"] is None
        assert jnp.isfinite(updates["w"]).all()
