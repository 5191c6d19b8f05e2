"""`wd.emulate`: groups, layers, schedules, live η and λ, errors and tables. tests/test_goldens.py has the numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd
from wd_optax.porting.emulate import CALLS

pytestmark = [pytest.mark.quick_compile, pytest.mark.optax_promotes]

TORCH = [name for name in CALLS if name.startswith("torch.optim.")]
BLOCK = {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, 0.5)}
PARAMS = {"embed": {"embedding": jnp.full((4, 2), 0.5)}, "block_0": BLOCK, "block_1": BLOCK, "head": BLOCK}
SPARED = [{"params": "bias", "weight_decay": 0.0, "name": "no_decay"}]


def one_step(tx, params, grads=None, state=None):
    grads = jax.tree.map(jnp.zeros_like, params) if grads is None else grads
    state = jax.jit(tx.init)(params) if state is None else state
    return jax.jit(tx.update)(grads, state, params)


def per_parameter(tx, params, grads=None):
    """Minus the step of the first entry of each leaf, over the entry."""
    updates, _ = one_step(tx, params, grads)
    return {path: float(-u.ravel()[0] / 0.5) for path, u in _by_path(updates).items()}


def _by_path(tree):
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# --- groups ----------------------------------------------------------------------------------------------------------


def test_every_argument_can_be_a_groups():
    groups = [{"params": "bias", "lr": 0.1, "weight_decay": 0.5}, {"params": "embed", "betas": (0.5, 0.5), "eps": 1.0}]
    tx = wd.emulate("torch.optim.AdamW", params=PARAMS, lr=0.2, weight_decay=0.1, groups=groups)
    removed = per_parameter(tx, PARAMS)
    assert removed["head/bias"] == pytest.approx(0.05)
    assert removed["head/kernel"] == pytest.approx(0.02)
    # m̂/(√v̂ + ε) of the first step is g/(|g| + ε): half of it where ε is 1
    step = per_parameter(tx, PARAMS, jax.tree.map(jnp.ones_like, PARAMS))
    assert step["embed/embedding"] == pytest.approx(0.2 / 0.5 * 0.5 + 0.02)
    assert step["head/kernel"] == pytest.approx(0.2 / 0.5 + 0.02, rel=1e-5)  # 1 − 0.999 in float32


def test_the_first_regex_decides():
    groups = [{"params": "block_0", "weight_decay": 0.2}, {"params": "bias", "weight_decay": 0.0}]
    table = wd.emulate.explain("torch.optim.SGD", params=PARAMS, lr=0.1, weight_decay=0.1, groups=groups)
    rows = {row.path: row for row in table.rows}
    assert rows["block_0/bias"].weight_decay == 0.2
    assert rows["block_1/bias"].weight_decay == 0.0
    assert rows["head/kernel"].weight_decay == 0.1
    assert "groups[0] 'block_0'" in rows["block_0/bias"].because


@pytest.mark.parametrize(
    ("groups", "error", "words"),
    [
        ([{"params": "biass"}], ValueError, "'biass' matches no parameter"),
        ([{"weight_decay": 0.0}], KeyError, 'has no "params"'),
        (["bias"], TypeError, "is no dict"),
        ([{"params": "bias", "weight_decya": 0.0}], TypeError, "did you mean 'weight_decay'"),
        ([{"params": "bias", "name": "rest"}], ValueError, "'rest' is the name of two groups"),
        ([{"params": "[bias"}], ValueError, "is not a regular expression"),
    ],
)
def test_a_bad_group_is_refused(groups, error, words):
    with pytest.raises(error) as raised:
        wd.emulate("torch.optim.SGD", params=PARAMS, groups=groups)
    assert words in str(raised.value).replace("\\\\", "")


def test_several_regexes_are_one_group():
    groups = [{"params": ["bias", "embed"], "weight_decay": 0.0}]
    rows = wd.emulate.explain("torch.optim.SGD", params=PARAMS, weight_decay=0.1, groups=groups).rows
    assert {row.path for row in rows if row.weight_decay} == {"block_0/kernel", "block_1/kernel", "head/kernel"}
    with pytest.raises(TypeError, match="expected a string"):
        wd.emulate("torch.optim.SGD", params=PARAMS, groups=[{"params": [PARAMS["head"]["bias"]]}])


def test_another_tree_is_refused():
    tx = wd.emulate("torch.optim.SGD", params=PARAMS, groups=SPARED)
    with pytest.raises(ValueError, match="'other' isn't in the params that the groups were made for"):
        tx.init({**PARAMS, "other": jnp.ones(2)})


# --- live numbers and schedules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCH)
def test_eta_is_live(name):
    """Editing the leaf is building with the other number."""
    params = {"kernel": jnp.array([[2.0, 1.0], [0.5, -1.0]])}
    grads = {"kernel": jnp.array([[0.3, -0.2], [0.1, 0.7]])}
    given = {"params": params, "weight_decay": 0.1}
    tx, other = (wd.emulate(name, lr=lr, **given) for lr in (0.01, 0.005))
    state = optax.tree.set(tx.init(params), learning_rate=jnp.float32(0.005))
    edited, _ = one_step(tx, params, grads, state)
    expected, _ = one_step(other, params, grads)
    np.testing.assert_allclose(edited["kernel"], expected["kernel"], rtol=1e-6)
    plain, _ = one_step(tx, params, grads)
    assert not np.allclose(plain["kernel"], expected["kernel"])


def test_each_groups_eta_is_live():
    tx = wd.emulate("torch.optim.SGD", params=PARAMS, lr=0.1, weight_decay=0.1, groups=[{"params": "bias"}])
    state = tx.init(PARAMS)
    in_group = lambda path, _: "group0" in str(path)
    state = optax.tree.set(state, in_group, learning_rate=jnp.float32(0.0))
    updates, _ = one_step(tx, PARAMS, state=state)
    assert float(updates["head"]["bias"][0]) == 0
    assert float(updates["head"]["kernel"][0, 0]) == pytest.approx(-0.005)


def test_a_schedule_multiplies_each_groups_lr():
    factor = lambda step: jnp.where(step == 0, 0.5, 0.25)
    groups = [{"params": "bias", "lr": 0.2}]
    tx = wd.emulate("torch.optim.SGD", params=PARAMS, lr=0.1, weight_decay=0.1, groups=groups, schedule=factor)
    updates, state = one_step(tx, PARAMS)
    assert float(updates["head"]["kernel"][0, 0]) == pytest.approx(-0.1 * 0.5 * 0.1 * 0.5)
    assert float(updates["head"]["bias"][0]) == pytest.approx(-0.2 * 0.5 * 0.1 * 0.5)
    updates, _ = one_step(tx, PARAMS, state=state)
    assert float(updates["head"]["bias"][0]) == pytest.approx(-0.2 * 0.25 * 0.1 * 0.5)


def test_the_schedules_peak_is_the_groups_lr():
    """optimī's decouple_lr divides by η_max: with a schedule that is lr; a bare schedule has no known peak."""
    call = {"call": "optimi.AdamW", "params": PARAMS, "decouple_lr": True, "weight_decay": 0.1}
    removed = per_parameter(wd.emulate(**call, lr=1e-3, schedule=lambda step: 0.5), PARAMS)
    assert removed["head/kernel"] == pytest.approx(0.05)
    with pytest.raises(ValueError, match="pass lr=<the peak>"):
        wd.emulate(**call, lr=lambda step: 1e-3)


def test_schedules_and_arrays_for_both():
    tx = wd.emulate(
        "torch.optim.AdamW", params=PARAMS, lr=lambda step: 0.1 / (1 + step), weight_decay=lambda step: 0.1 * (1 + step)
    )
    updates, state = one_step(tx, PARAMS)
    assert float(updates["head"]["kernel"][0, 0]) == pytest.approx(-0.005)
    updates, _ = one_step(tx, PARAMS, state=state)
    assert float(updates["head"]["kernel"][0, 0]) == pytest.approx(-0.005)

    def removed(weight_decay):
        return one_step(wd.emulate("torch.optim.AdamW", params=PARAMS, lr=0.1, weight_decay=weight_decay), PARAMS)[0]

    swept = jax.vmap(removed)(jnp.array([0.0, 0.1]))
    np.testing.assert_allclose(swept["head"]["kernel"][:, 0, 0], [0.0, -0.005], rtol=1e-6)


# --- layers ----------------------------------------------------------------------------------------------------------


def test_layers_have_beits_factors():
    """Layer i of 0 … n has decay^(n − i): embeddings are layer 0, blocks come next, the head is layer n."""
    tx = wd.emulate("torch.optim.SGD", params=PARAMS, lr=0.1, weight_decay=1.0, layer_decay=0.5)
    removed = per_parameter(tx, PARAMS)
    assert [round(removed[f"{layer}/kernel"], 6) for layer in ("block_0", "block_1", "head")] == [0.025, 0.05, 0.1]
    assert removed["embed/embedding"] == pytest.approx(0.0125)


def test_layers_inside_groups_and_lambda_per_layer():
    decay = wd.LayerDecay(lr=0.5, weight_decay=0.1)
    table = wd.emulate.explain("torch.optim.AdamW", params=PARAMS, lr=0.8, groups=SPARED, layer_decay=decay)
    rows = {row.path: row for row in table.rows}
    assert rows["block_1/kernel"].group == "rest.layer2"
    assert rows["block_1/kernel"].weight_decay == pytest.approx(1e-2 * 0.1)
    assert rows["block_1/bias"].weight_decay == 0
    assert rows["block_1/bias"].learning_rate == pytest.approx(0.4)
    assert "layer 2 of 0–3: lr·0.5^1, weight_decay·0.1^1" in rows["block_1/kernel"].because


def test_stacked_layers_have_a_factor_per_slice():
    """The same steps as layers one by one, for a step that is proportional to η; else it is refused."""
    grads = jax.random.normal(jax.random.key(0), (3, 2, 2))
    weights = jax.random.normal(jax.random.key(1), (3, 2, 2))
    one = {f"block_{i}": {"kernel": w} for i, w in enumerate(weights)} | {"head": {"kernel": weights[0]}}
    one_grads = {f"block_{i}": {"kernel": g} for i, g in enumerate(grads)} | {"head": {"kernel": grads[0]}}
    stack, stack_grads = ({"block": {"kernel": x}, "head": {"kernel": x[0]}} for x in (weights, grads))
    stacked = wd.LayerDecay(lr=0.5, stacked="block")
    for name in ("torch.optim.AdamW", "torch.optim.SGD"):
        apart, _ = one_step(wd.emulate(name, params=one, lr=0.1, layer_decay=0.5), one, one_grads)
        together, _ = one_step(wd.emulate(name, params=stack, lr=0.1, layer_decay=stacked), stack, stack_grads)
        for i in range(3):
            np.testing.assert_allclose(together["block"]["kernel"][i], apart[f"block_{i}"]["kernel"], rtol=1e-5)
        np.testing.assert_allclose(together["head"]["kernel"], apart["head"]["kernel"], rtol=1e-6)
    with pytest.raises(ValueError, match="not proportional to η"):
        wd.emulate("torch.optim.Adafactor", params=stack, layer_decay=stacked)
    with pytest.raises(ValueError, match="can't have a λ each"):
        wd.emulate("torch.optim.AdamW", params=stack, layer_decay=wd.LayerDecay(weight_decay=0.5, stacked="block"))
    row = wd.emulate.explain("torch.optim.SGD", params=stack, lr=0.8, layer_decay=stacked).rows[0]
    assert row.learning_rate == pytest.approx((0.1, 0.2, 0.4))


@pytest.mark.parametrize(
    ("params", "decay", "words"),
    [
        ({"a": jnp.ones(2)}, 0.5, "no path has one"),
        ({f"{side}/{i}": jnp.ones(2) for side in "ab" for i in range(2)}, 0.5, "a/0, a/1, ...; b/0, b/1, ..."),
        (PARAMS, wd.LayerDecay(0.5, layers="block_"), "have the number in a group"),
        (PARAMS, wd.LayerDecay(0.5, layers="(block)"), "the first group is 'block'"),
        (PARAMS, wd.LayerDecay(0.5, stacked="nothing"), "got no parameter"),
        (PARAMS, wd.LayerDecay(0.5, stacked="embed|head"), "one number"),
    ],
)
def test_unclear_layers_are_refused(params, decay, words):
    with pytest.raises(ValueError, match="layer_decay") as raised:
        wd.emulate("torch.optim.SGD", params=params, layer_decay=decay)
    assert words in str(raised.value)


def test_layers_of_a_regex():
    params = {f"{side}/{i}": jnp.full((2, 2), 0.5) for side in "ab" for i in (3, 7)}
    decay = wd.LayerDecay(0.5, layers=r"a/(\d+)")
    rows = wd.emulate.explain("torch.optim.SGD", params=params, lr=8.0, layer_decay=decay).rows
    assert {row.path: row.learning_rate for row in rows} == {"a/3": 2.0, "a/7": 4.0, "b/3": 8.0, "b/7": 8.0}


# --- trees and types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TORCH if name != "torch.optim.Muon"])
def test_none_integers_scalars_and_low_precision(name):
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "s": jnp.float32(1.0), "none": None, "steps": jnp.arange(3)}
    grads = {"w": jnp.ones((2, 3), jnp.bfloat16), "s": jnp.float32(0.5), "none": None, "steps": jnp.zeros(3, int)}
    tx = wd.emulate(name, params=params, weight_decay=0.1)
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(grads, state, params)
    moved = optax.apply_updates(params, updates)
    assert [moved[key].dtype for key in ("w", "s")] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_array_equal(moved["steps"], params["steps"])
    assert float(moved["s"]) < 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.parametrize("name", TORCH)
def test_zero_rates_and_an_empty_tree(name):
    params = {"kernel": jnp.ones((2, 2))}
    updates, _ = one_step(wd.emulate(name, params=params, lr=0.0, weight_decay=0.0), params, params)
    assert not np.any(np.asarray(updates["kernel"]))
    updates, _ = one_step(wd.emulate(name, params={}), {}, {})
    assert updates == {}


# --- errors and tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "arguments", "error", "words"),
    [
        ("torch.optim.AdanW", {}, ValueError, "'torch.optim.AdamW'"),
        ("AdamW", {}, ValueError, "'torch.optim.AdamW'"),
        ("torch.optim.AdamW", {"learning_rate": 1e-3}, TypeError, "betas=(0.9, 0.999)"),
        ("torch.optim.AdamW", {"betas": (0.9, 1.0)}, ValueError, "betas[1]"),
        ("torch.optim.AdamW", {"lr": -1.0}, ValueError, "learning_rate=-1.0"),
        ("torch.optim.AdamW", {"weight_decay": "0.1"}, TypeError, "weight_decay"),
        ("torch.optim.AdamW", {"betas": 0.9}, TypeError, "betas=(0.9, 0.999)"),
        ("torch.optim.AdamW", {"betas": (0.9, 0.9, 0.9)}, TypeError, "two numbers"),
        ("torch.optim.AdamW", {"schedule": 0.5}, TypeError, "a function step -> factor"),
        ("torch.optim.AdamW", {"layer_decay": 75}, ValueError, "must be in (0, 1]"),
        ("torch.optim.AdamW", {"layer_decay": True}, ValueError, "must be in (0, 1]"),
        ("torch.optim.AdamW", {"groups": {"params": "bias"}}, TypeError, "a list of dicts"),
        ("torch.optim.AdamW", {"params": None}, TypeError, "params=None"),
        (PARAMS, {}, TypeError, "expected a name"),
        ("torch.optim.SGD", {"nesterov": True}, ValueError, "requires a momentum"),
        ("torch.optim.SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "zero dampening"),
        ("torch.optim.Adafactor", {"d": 0.5}, ValueError, "at least 1"),
        ("torch.optim.Muon", {"adjust_lr_fn": "spectral"}, ValueError, "'match_rms_adamw'"),
    ],
)
def test_wrong_calls_are_refused(call, arguments, error, words):
    with pytest.raises(error) as raised:
        wd.emulate(call, **{"params": PARAMS, **arguments})
    assert words in str(raised.value)


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match="real matrices only"):
        wd.emulate("torch.optim.Muon", params=PARAMS).init(PARAMS)


def test_short_names():
    row = wd.emulate.explain("torch.adamw", params=PARAMS).rows[0]
    assert row.because == "torch.optim.AdamW: all parameters"


def test_the_tables_print():
    table = wd.emulate.table()
    assert [row.call for row in table.rows] == [*CALLS]
    assert str(table).count("\n") == len(CALLS)
    assert table._repr_html_().startswith("<table>")
    assert {row.version for row in wd.emulate.table("torch.optim").rows} == {"torch 2.13.0"}
    explained = wd.emulate.explain("torch.optim.SGD", params=PARAMS, schedule=lambda step: 1.0)
    assert "0.001·schedule" in str(explained)
    assert "<td>all</td>" in explained._repr_html_()


@pytest.mark.parametrize("name", CALLS)
def test_the_record_of_a_call_fits_its_function(name):
    call = CALLS[name]
    known = set(call.signature.parameters)
    assert {call.learning_rate, call.weight_decay} <= known | {""}
    assert set(call.words) <= known
    assert all(set(own) <= known for own in call.couplings.values())
    assert call.goldens or f'"{name}"' in (Path(__file__).parent / "test_porting_jobs.py").read_text()  # or transcripts
    assert call.formula
