"""A mask is data: rules, trees, prefixes and functions, resolved from parameters and refused when they don't fit."""

import functools
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
            r"(?s)rule 'kernal\$' matches no parameter: mend the regex.*layers/0/kernel +\(3,3\) +weight",
        ),
        (
            [("layers", 1.0), ("kernel", 0.5)],
            ValueError,
            "(?s)rule 'kernel' decides nothing, for earlier.*put it before.*layers/1/kernel",
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

    from absl import logging as absl_logging

    absl_logging.get_absl_logger().addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
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
