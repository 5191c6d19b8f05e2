"""A mask is data: rules, trees, prefixes and functions, resolved from parameters and refused when they don't fit."""

import cProfile
import functools
import pstats
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wd_optax as wd
from wd_optax.masking import masks

PARAMS = {
    "embed": {"embedding": jnp.ones((5, 3))},
    "layers": [{"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}, {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}],
    "norm": {"scale": jnp.ones(3)},
}
PATHS = [row.path for row in wd.explain(None, PARAMS).rows]


def by_path(mask, params=PARAMS):
    return {row.path: row.multiplier for row in wd.explain(mask, params).rows if row.multiplier}


def test_paths_are_normalised():
    assert PATHS == [
        "embed/embedding",
        "layers/0/bias",
        "layers/0/kernel",
        "layers/1/bias",
        "layers/1/kernel",
        "norm/scale",
    ]


def test_the_first_rule_that_matches_decides_and_unmatched_leaves_do_not_decay():
    rules = [("layers/0", 0.5), ("kernel$", 2), ("embedding", False)]
    assert by_path(rules) == {"layers/0/bias": 0.5, "layers/0/kernel": 0.5, "layers/1/kernel": 2.0}
    reasons = {row.path: row.reason for row in wd.explain(rules, PARAMS).rows}
    assert reasons["layers/1/kernel"] == "rule 'kernel$'"
    assert reasons["norm/scale"] == "no rule matches"


def test_a_rule_may_defer_to_the_roles():
    mask = [("embed", 0.1), (".*", "weights")]
    assert by_path(mask) == {"embed/embedding": 0.1, "layers/0/kernel": 1.0, "layers/1/kernel": 1.0}


@pytest.mark.parametrize(
    "mask",
    [
        {"embed": True, "layers": [False, {"kernel": 0.5, "bias": False}], "norm": False},
        {"embed": True, "layers": {"0": False, "1/kernel": 0.5, "1/bias": False}, "norm": False},
        {"embed": np.bool_(True), "layers": (False, {"kernel": np.float32(0.5), "bias": 0}), "norm": jnp.zeros(())},
        lambda p: {"embed": True, "layers": [False, {"kernel": 0.5, "bias": False}], "norm": False},
        lambda p: [("embed", 1), ("layers/1/kernel", 0.5)],
    ],
    ids=["tree", "other containers", "other numbers", "function to tree", "function to rules"],
)
def test_trees_prefixes_and_functions(mask):
    assert by_path(mask) == {"embed/embedding": 1.0, "layers/1/kernel": 0.5}
    chex.assert_trees_all_equal_structs(wd.multipliers(mask, PARAMS), PARAMS)


def test_optax_style_functions():
    assert set(by_path(lambda p: jax.tree.map(lambda x: x.ndim > 1, p))) == {
        "embed/embedding", "layers/0/kernel", "layers/1/kernel",
    }  # fmt: skip
    names = lambda p: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "bias", p)
    assert set(by_path(names)) == {"layers/0/bias", "layers/1/bias"}


def test_a_traced_multiplier_is_kept():
    def shrunk(m):
        tx = wd.shrink(0.1, {"a": m, "b": 1.0})
        p = {"a": jnp.ones(2), "b": jnp.ones(2)}
        return optax.apply_updates(p, tx.update(optax.tree.zeros_like(p), tx.init(p), p)[0])

    got = jax.vmap(shrunk)(jnp.array([0.0, 0.5, 1.0], jnp.float32))
    np.testing.assert_allclose(got["a"][:, 0], [1.0, 0.95, 0.9], rtol=1e-6)
    np.testing.assert_allclose(got["b"][:, 0], 0.9, rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "error", "says"),
    [
        (
            [("kernal$", 1.0)],
            ValueError,
            r"(?s)rule 'kernal\$' matches no parameter: correct the regex.*layers/0/kernel +\(3,3\) +weight",
        ),
        (
            [("layers", 1.0), ("kernel", 0.5)],
            ValueError,
            "(?s)rule 'kernel' decides nothing, because earlier.*put it before.*layers/1/kernel",
        ),
        ([("(", 1.0)], ValueError, r"rule '\(' is not a regular expression"),
        ([("kernel", "half")], TypeError, "rule 'kernel' is 'half': a multiplier is a bool or a number"),
        ([("kernel", -1.0)], ValueError, "rule 'kernel' is -1.0.*finite and ≥ 0"),
        ([("kernel", float("nan"))], ValueError, "must be finite"),
        ("kernels", TypeError, "mask='kernels' is not a mask: use None, \"weights\", a list"),
        (True, TypeError, "mask=True is one value for the whole tree.*inject_hyperparams"),
        ({"embed": True}, ValueError, r"no entry for parameter 'layers/0/bias', only for 'embed': add one"),
        ({"embed": 1, "layers": 1, "norm": 1, "head": 1}, ValueError, "mask entry 'head' belongs to no parameter"),
        ({"embed": 1, "layers": "False", "norm": 1}, TypeError, "mask leaf 'layers' is 'False'"),
        ({"embed": np.ones(3), "layers": 1, "norm": 1}, ValueError, r"mask leaf 'embed' has shape \(3,\)"),
        (lambda p: True, TypeError, "one value for the whole tree"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_at_init_by_name(mask, error, says):
    with pytest.raises(error, match=says):
        wd.explain(mask, PARAMS)
    with pytest.raises(error, match=says):
        wd.adamw(1e-3, weight_decay=0.1, mask=mask).init(PARAMS)


def test_the_explanation_prints_as_a_table():
    text = str(wd.explain([("layers/0", 0.5), ("kernel", 1.0)], PARAMS))
    lines = text.splitlines()
    assert lines[0].split() == ["path", "shape", "role", "multiplier", "because"]
    assert lines[2].split()[:4] == ["layers/0/bias", "(3,)", "bias", "0.5"]
    assert lines[-1] == "3 of 6 leaves decay, 18 of 38 parameters"


def test_nothing_to_decay_is_logged(caplog):
    import logging

    with caplog.at_level(logging.WARNING, logger="absl"):
        wd.adamw(1e-3, weight_decay=0.1).init({"bias": jnp.ones(3)})
        assert "nothing decays" in caplog.text
        caplog.clear()
        wd.adamw(1e-3, weight_decay=0.1).init(PARAMS)
        assert caplog.text == ""


class _Pair(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel", "bias"], meta_fields=[])
class _Data:
    def __init__(self, kernel, bias):
        self.kernel, self.bias = kernel, bias


@given(
    st.sampled_from([_Pair, _Data, lambda kernel, bias: {"kernel": kernel, "bias": bias}]), st.booleans(), st.booleans()
)
def test_f26_one_mask_fits_every_container(container, kernel, bias):
    params = container(kernel=jnp.ones((2, 2)), bias=jnp.ones(2))
    for mask in ({"kernel": kernel, "bias": bias}, _Pair(kernel, bias), _Data(kernel, bias)):
        assert by_path(mask, params) == {k: 1.0 for k, v in {"kernel": kernel, "bias": bias}.items() if v}


def test_bfloat16_and_integer_leaves():
    params = {
        "kernel": jnp.ones((2, 2), jnp.bfloat16),
        "step": jnp.zeros((), jnp.int32),
        "ids": jnp.zeros((2, 2), jnp.int32),
    }
    assert by_path(None, params) == {"kernel": 1.0}
    assert by_path([(".*", 1.0)], params) == {"kernel": 1.0}


@pytest.mark.parametrize(
    ("mask", "largest"),
    [
        ("weights", (1.0, "embed/embedding")),
        (None, (1.0, "embed/embedding")),
        ([("layers/1/kernel", 4), (".*", "weights")], (4.0, "layers/1/kernel")),
        ({"embed": 0.5, "layers": 0, "norm": 0}, (0.5, "embed/embedding")),
    ],
)
def test_28_the_largest_multiplier_is_known_with_its_leaf(mask, largest):
    assert masks.largest_multiplier(mask, PARAMS) == largest


def test_28_no_leaf_and_a_traced_multiplier_give_zero():
    assert masks.largest_multiplier("weights", {"bias": jnp.ones(3)}) == (0.0, "")
    seen = []
    jax.jit(lambda m: seen.append(masks.largest_multiplier({"a": m}, {"a": jnp.ones(2)})) or m)(jnp.float32(4))
    assert seen == [(0.0, "")]


MATRIX, VECTOR = jnp.ones((2, 2)), jnp.ones(2)
DENSE = {"kernel": MATRIX, "bias": VECTOR}


def multipliers_of(explanation):
    return {row.path: row.multiplier for row in explanation.rows}


@pytest.mark.parametrize("mask", [["kernel"], [re.compile("ker")], ["kernel", ("bias", 0.0)]])
def test_11e_a_regex_in_a_list_is_a_rule_that_decays(mask):
    assert multipliers_of(wd.explain(mask, DENSE)) == {"bias": 0.0, "kernel": 1.0}
    assert wd.multipliers(mask, DENSE) == {"bias": 0.0, "kernel": 1.0}
    updates, _ = (tx := wd.sgdw(0.1, weight_decay=0.1, mask=mask)).update(DENSE, tx.init(DENSE), DENSE)
    chex.assert_trees_all_close(updates, {"kernel": -0.11 * MATRIX, "bias": -0.1 * VECTOR})


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (("kernel", 1.0), r"write \[\('kernel', 1.0\)\]"),
        (["kernel", 0.5], r"write \[\('kernel', 0.5\)\]"),
        (("kernel", "weights"), r"write \[\('kernel', 'weights'\)\]"),
        (["weights"], 'mask="weights"'),
        ([("kernel",)], "no list of rules"),
        ([("kernel", 1.0), 3], "no list of rules"),
    ],
)
def test_11e_a_list_that_is_nearly_rules_is_refused_with_the_spelling(mask, says):
    with pytest.raises(TypeError, match=says):
        wd.explain(mask, DENSE)


def test_11e_a_regex_that_matches_nothing_is_an_error_in_a_plain_list_too():
    with pytest.raises(ValueError, match="rule 'kernal' matches no parameter"):
        wd.explain(["kernal"], DENSE)


def test_12_5_the_table_ends_with_the_leaves_whose_rank_alone_decided():
    params = {f"block_{i}": {"mystery": MATRIX, "kernel": MATRIX} for i in range(12)}
    params |= {f"thing_{c}": MATRIX for c in "acdefhijklmn"} | {"vector": VECTOR}
    explanation = wd.explain("weights", params)
    _, totals, table = str(explanation).partition(
        "36 of 37 leaves decay, 144 of 146 parameters\nleast sure of, by rank alone:\n"
    )
    assert totals
    lines = table.splitlines()
    assert lines[0].split() == ["block_*/mystery", "(12×)", "(2,2)", "weight"]
    assert len(lines) == 11
    assert lines[-1] == "... and 4 more: wd.explain(mask, params, unsure=True)"
    unsure = wd.explain("weights", params, unsure=True)
    assert len(unsure.rows) == 12 + 12 + 1
    assert {row.path for row in unsure.rows}.isdisjoint(f"block_{i}/kernel" for i in range(12))
    assert "least sure" not in str(unsure)


def test_12_5_nothing_is_unsure_where_roles_are_not_asked():
    params = {"mystery": MATRIX, "kernel": MATRIX}
    for mask in (None, [("mystery", 0.5), ("kernel", 1.0)], {"mystery": True, "kernel": False}):
        assert wd.explain(mask, params, unsure=True).rows == ()
        assert "least sure" not in str(wd.explain(mask, params))
    assert [row.path for row in wd.explain([("kernel", 0.5), (".*", "weights")], params, unsure=True).rows] == [
        "mystery"
    ]


def test_11e_the_mask_table_is_html_in_a_notebook():
    page = wd.explain([("a<b>|kernel", 1.0)], DENSE)._repr_html_()
    assert page.count("<tr>") == 3
    assert "<td>kernel</td><td>(2,2)</td><td>weight</td><td>1</td>" in page
    assert "a&lt;b&gt;" in page
    assert "1 of 2 leaves decay" in page


STACKED_NORM = {"weight": jnp.ones((3, 4)), "bias": jnp.ones((3, 4))}


def test_12_19_a_hidden_bias_is_in_view():
    """Only its shape distinguishes a stacked norm from a matrix, so it is an error; the fix it names works."""
    only_weight = {"weight": True, "bias": False}
    with pytest.raises(ValueError, match=r"'weight' is a matrix or a stacked norm's scale.*hidden by optax.masked"):
        optax.masked(wd.sgdw(0.1, weight_decay=0.1), only_weight).init(STACKED_NORM)
    whole = wd.multipliers("weights", STACKED_NORM)
    for mask, left in ((whole, 1.0), ([("^weight$", 1.0), (".*", "weights")], 0.99)):
        tx = optax.masked(wd.sgdw(0.1, weight_decay=0.1, mask=mask), only_weight)
        updates, _ = tx.update(optax.tree.zeros_like(STACKED_NORM), tx.init(STACKED_NORM), STACKED_NORM)
        np.testing.assert_allclose(optax.apply_updates(STACKED_NORM, updates)["weight"], left, rtol=1e-6)


def test_12_19_a_list_of_layers_in_a_stack_of_models_is_ambiguous_again():
    """Vmapped critics: a norm (critics, width) beside matrices (critics, out, in)."""
    critics = {
        "layers": [
            {"weight": jnp.ones((2, 4, 3)), "bias": jnp.ones((2, 4))},
            {"weight": jnp.ones((2, 4)), "bias": jnp.ones((2, 4))},
        ]
    }
    only_weights = jax.tree.map(lambda _: True, critics)
    for layer in only_weights["layers"]:
        layer["bias"] = False
    with pytest.raises(ValueError, match="'layers/1/weight' is a matrix or"):
        optax.masked(wd.sgdw(0.1, weight_decay=0.1), only_weights).init(critics)


@pytest.mark.parametrize(
    ("params", "decays"),
    [
        ({"norm": STACKED_NORM}, False),
        ({"q_proj": STACKED_NORM}, True),
        ({"fc": {"gating_w": jnp.ones((4, 2, 3)), "gating_b": jnp.ones((2, 3))}}, True),
        ({"x": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}, True),
        ({"layers": [{"weight": jnp.ones((3, 3)), "bias": jnp.ones(3)}] * 2}, True),
        ({"x": {"weight": jnp.ones((3, 3, 2, 2)), "bias": jnp.ones(3)}}, True),
    ],
    ids=["a norm by name", "a matrix by name", "w of a pair", "kernel", "a list of layers", "a convolution"],
)
def test_12_19_names_decide_with_the_bias_hidden(params, decays):
    is_bias = lambda path, _: path[-1].key.endswith("b") or path[-1].key == "bias"
    biases = jax.tree_util.tree_map_with_path(is_bias, params)
    for hide in (True, False):
        keep = jax.tree.map(hide.__xor__, biases)
        tx = optax.masked(wd.sgdw(0.1, weight_decay=0.1), keep)
        updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
        moved = [bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates)]
        assert any(moved) == (hide and decays)


def _calls(n, make, cut=lambda p: p):
    """Function calls of one `multipliers` on n leaves, once names are cached."""
    params = {f"layer_{i}": {"kernel": MATRIX, "bias": VECTOR, "scale": VECTOR} for i in range(n // 3)}
    mask, params = make(params), cut(params)
    wd.multipliers(mask, params)
    profile = cProfile.Profile()
    profile.runcall(wd.multipliers, mask, params)
    return pstats.Stats(profile).total_calls


@pytest.mark.parametrize(
    "make",
    [
        lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
        lambda p: lambda q: jax.tree.map(lambda x: x.ndim > 1, q),
        lambda p: {f"{layer}/{name}": x.ndim > 1 for layer, leaves in p.items() for name, x in leaves.items()},
        lambda p: dict.fromkeys(p, True),
    ],
    ids=["tree", "function", "paths", "prefixes"],
)
def test_12_27_tree_masks_and_functions_are_linear_in_the_leaves(make):
    """Counted in calls, not seconds: 4 times the leaves make 4 times the calls."""
    assert _calls(1200, make) < 4.4 * _calls(300, make)


def test_12_27_hidden_leaves_do_not_make_it_quadratic():
    by_rank = lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    cut = lambda p: jax.tree.map(lambda m, p: p if m else optax.MaskedNode(), by_rank(p), p)
    assert _calls(1200, by_rank, cut) < 4.4 * _calls(300, by_rank, cut)
