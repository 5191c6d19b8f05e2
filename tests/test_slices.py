"""Slices: rules that say which axes of a leaf count weights, as a table, as axes, and what is refused."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import FACTORIES, build, takes
from flax import nnx
from helpers import shape

import wd_optax as wd
from wd_optax.masking.slices import axes_tree, slice_axes

PARAMS = {
    "blocks": {"qkv": {"kernel": shape(3, 4, 6, 2)}, "mlp": {"kernel": shape(3, 4, 8)}, "norm": {"scale": shape(3, 4)}},
    "experts": {"kernel": shape(3, 5, 4, 8)},
    "head": {"kernel": shape(4, 7), "bias": shape(7)},
    "temperature": shape(),
}
RULES = [("qkv/kernel", (0, 2)), ("blocks", 1), ("experts/.*kernel|experts/kernel", 2), ("head", 0)]


def test_the_table_says_how_many_weights_a_leaf_holds_and_why():
    assert str(wd.explain_slices(RULES, PARAMS)).splitlines() == [
        "path               shape      weights  each   because",
        "blocks/mlp/kernel  (3,4,8)    3        (4,8)  rule 'blocks'",
        "blocks/norm/scale  (3,4)      3        (4,)   rule 'blocks'",
        "blocks/qkv/kernel  (3,4,6,2)  18       (4,2)  rule 'qkv/kernel'",
        "experts/kernel     (3,5,4,8)  15       (4,8)  rule 'experts/.*kernel|experts/kernel'",
        "head/bias          (7,)       1        (7,)   rule 'head'",
        "head/kernel        (4,7)      1        (4,7)  rule 'head'",
        "temperature        ()         1        ()     no rule matches",
    ]
    html = wd.explain_slices(RULES, PARAMS)._repr_html_()
    assert html.count("<tr>") == 8
    assert "<td>18</td>" in html


def test_the_axes_of_leaves_that_hold_several_weights():
    assert slice_axes(RULES, PARAMS) == {
        "blocks/mlp/kernel": (0,), "blocks/norm/scale": (0,), "blocks/qkv/kernel": (0, 2), "experts/kernel": (0, 1),
    }  # fmt: skip
    assert slice_axes(None, PARAMS) == slice_axes([], PARAMS) == {}
    tree = axes_tree(slice_axes(RULES, PARAMS), PARAMS)
    assert tree["blocks"]["qkv"]["kernel"] == (0, 2)
    assert tree["head"]["bias"] == ()


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (1, (0,)), (0, ()), (4, (0, 1, 2, 3)), (np.int64(2), (0, 1)), ((), ()), ((-1,), (3,)), ((2, 0), (0, 2)),
        ([1], (1,)), ((np.int64(-2), 0), (0, 2)),
    ],
)  # fmt: skip
def test_leading_axes_and_explicit_ones(axes, expected):
    rows = wd.explain_slices([("experts", axes)], PARAMS).rows
    assert next(row.axes for row in rows if row.path == "experts/kernel") == expected


def test_a_regex_may_be_compiled_and_the_first_match_wins():
    rules = ((re.compile("MLP", re.IGNORECASE), 1), ["kernel", 0])
    assert slice_axes(rules, PARAMS) == {"blocks/mlp/kernel": (0,)}


def test_trees_of_other_containers():
    class Layers(eqx.Module):
        kernel: jax.Array
        none: None = None

    assert slice_axes([("kernel", 1)], Layers(jnp.ones((3, 2)))) == {"kernel": (0,)}

    class Net(nnx.Module):
        def __init__(self):
            self.layers = nnx.Param(jnp.ones((3, 2, 2)))
            self.head = nnx.Param(jnp.ones((2, 2)))

    assert slice_axes([("layers", 1)], nnx.state(Net())) == {"layers": (0,)}
    assert slice_axes([("w", 0)], {"w": 1.0, "none": None}) == {}
    assert wd.explain_slices([("w", 1)], {}).rows == wd.explain_slices([("w", 1)], {"a": None}).rows == ()


def test_rules_for_leaves_that_masked_hides_are_no_errors():
    hidden = PARAMS | {"head": optax.MaskedNode()}
    assert "head/bias" not in slice_axes(RULES, hidden)
    assert slice_axes([("head", 1), ("blocks", 1)], hidden) == slice_axes([("blocks", 1)], PARAMS)
    with pytest.raises(ValueError, match="rule 'heads' matches no parameter"):
        slice_axes([("heads", 1)], PARAMS)


BAD = {
    "a word": ("blocks", TypeError, r"slices='blocks': expected rules, \[\(regex, axes\), ...\]"),
    "a dict": ({"blocks": 1}, TypeError, "expected rules"),
    "a number": (1, TypeError, "slices=1: expected rules"),
    "a generator": ((x for x in RULES), TypeError, "expected rules"),
    "one rule": (("blocks", 1), TypeError, r"is one rule: write \[\('blocks', 1\)\]"),
    "the wrong way round": ([(1, "blocks")], TypeError, r"slices: \(1, 'blocks'\) is no rule"),
    "a regex alone": (["blocks"], TypeError, "slices: 'blocks' is no rule"),
    "three": ([("blocks", 1, 2)], TypeError, r"\('blocks', 1, 2\) is no rule"),
    "no regex": ([(None, 1)], TypeError, "slices: None is not a regular expression: expected a string"),
    "a bad regex": ([("(", 1)], ValueError, r"slices rule '\(' is not a regular expression"),
    "a bool": ([("blocks", True)], TypeError, "slices rule 'blocks': axes=True, expected an int"),
    "a float": ([("blocks", 1.0)], TypeError, "axes=1.0, expected an int n"),
    "None": ([("blocks", None)], TypeError, "axes=None, expected an int n"),
    "a negative number": ([("blocks", -1)], ValueError, r"-1 leading axes: for the last one write \(-1,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_list_of_rules_is_refused_at_once(case):
    slices, error, text = BAD[case]
    with pytest.raises(error, match=text):
        wd.sgdw(0.1, weight_decay=0.1, slices=slices)
    if case != "a generator":  # it is used up
        with pytest.raises(error, match=text):
            wd.explain_slices(slices, PARAMS)


MISFITS = {
    "unused": ([("conv", 1)], "slices rule 'conv' matches no parameter: correct the regex or drop the rule; the near"),
    "shadowed": ([("blocks", 1), ("mlp", 1)], "slices rule 'mlp' decides nothing, because earlier rules take all it"),
    "too many": ([("blocks", 3)], r"rule 'blocks' says 3 leading axes, and 'blocks/norm/scale' has rank 2: give it"),
    "no such axis": ([("head/kernel", (5,))], r"says axes \(5,\), and 'head/kernel' has rank 2"),
    "below the first": ([("head/kernel", (-3,))], r"says axes \(-3,\), and 'head/kernel' has rank 2"),
    "of a scalar": ([("temperature", 1)], "says 1 leading axes, and 'temperature' has rank 0"),
    "twice": ([("head/kernel", (1, -1))], r"names an axis of 'head/kernel' twice: \(1, -1\)"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_the_parameters_is_refused_by_path(case):
    slices, text = MISFITS[case]
    with pytest.raises(ValueError, match=text):
        wd.explain_slices(slices, PARAMS)


def test_the_rule_that_the_error_prints_fits():
    with pytest.raises(ValueError, match="such as") as caught:
        wd.explain_slices([("a", 2)], {"a.b": {"c+": shape(2), "d": shape(2, 2, 2)}})
    rule = re.search(r"such as (\(.*\))", str(caught.value)).group(1)
    fixed = [eval(rule), ("a", 2)]
    assert slice_axes(fixed, {"a.b": {"c+": shape(2), "d": shape(2, 2, 2)}}) == {"a/b/d": (0, 1)}


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", [name for name in FACTORIES if takes(name, "slices")])
def test_every_transform_and_optimizer_takes_slices_and_checks_them(name):
    p = {"kernel": jnp.array([[3.0, 4.0], [6.0, 8.0]])}
    unit = optax.stateless(lambda p, _: wd.rules.tree_map(jnp.divide, p, wd.rules.slice_norms(p)))
    norms = []
    for slices in (None, [("kernel", 1)]):
        spy = optax.stateless(lambda p, _: (norms.append(wd.rules.slice_norms(p)["kernel"].shape), p)[1])
        tx = build(name, mask=None, rule=optax.chain(spy, unit), slices=slices)
        tx.update(p, tx.init(p), p)
        assert set(norms) == {(1, 1) if slices is None else (2, 1)}
        norms.clear()
    with pytest.raises(ValueError, match="slices rule 'conv' matches no parameter"):
        build(name, mask=None, slices=[("conv", 1)]).init(p)
    with pytest.raises(TypeError, match="expected rules"):
        build(name, slices="kernel")


def test_a_norm_per_slice_is_that_of_the_separate_leaf():
    """Through a group penalty, a norm that decides: a stack gives what its layers give."""
    stack = np.float32(np.random.default_rng(0).normal(size=(3, 4, 2))) * np.float32([[[0.2]], [[1.0]], [[2.0]]])
    tx = lambda slices: wd.sgdw(0.5, weight_decay=1.0, penalty="group", slices=slices)

    def after(tree, slices=None):
        updates, _ = tx(slices).update(optax.tree.zeros_like(tree), tx(slices).init(tree), tree)
        return optax.apply_updates(tree, updates)

    together = after({"kernel": jnp.asarray(stack)}, [("kernel", 1)])["kernel"]
    alone = [after({"kernel": jnp.asarray(layer)})["kernel"] for layer in stack]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-6)  # sums of 8 squares in another order
    assert not np.allclose(together, after({"kernel": jnp.asarray(stack)})["kernel"], rtol=0.1)
