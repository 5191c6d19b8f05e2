"""One path per leaf in every container, and what happens where a container hides the names."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import shape
from hypothesis import given
from hypothesis import strategies as st

import wd_optax as wd
from wd_optax.masking import paths


def decided(params: Any) -> dict[str, float]:
    return {row.path: row.multiplier for row in wd.explain("weights", params).rows}


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass
class Wrapped:
    """One array and its axes, as Haliax's NamedArray: registered without keys."""

    array: Any
    axes: tuple[str, ...] = ()

    def tree_flatten(self) -> Any:
        return (self.array,), self.axes

    @classmethod
    def tree_unflatten(cls, axes: Any, children: Any) -> "Wrapped":
        return cls(*children, axes)


class Variable(eqx.Module):
    """Wrapped twice, as Penzai's parameters: `.value.data_array`."""

    value: Any
    label: str = eqx.field(static=True, default="")


class Named(eqx.Module):
    data_array: Any


@jax.tree_util.register_pytree_node_class
class Keyless:
    """Attributes in another order than children, and registered without keys."""

    def __init__(self, weight: Any, bias: Any):
        self.weight, self.bias = weight, bias

    def tree_flatten(self) -> Any:
        return (self.bias, self.weight), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> "Keyless":
        return cls(children[1], children[0])


@jax.tree_util.register_pytree_node_class
class Nameless:
    """Keeps nothing by name."""

    def __init__(self, *arrays: Any):
        self.arrays = arrays

    def tree_flatten(self) -> Any:
        return self.arrays, None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> "Nameless":
        return cls(*children)


class FlatMap(Mapping[str, Any]):
    """Flattens all levels at once into leaves without keys, as Haiku's FlatMap."""

    def __init__(self, tree: Any):
        self.leaves, self.structure = jax.tree.flatten(tree)

    def __getitem__(self, key: str) -> Any:
        return jax.tree.unflatten(self.structure, self.leaves)[key]

    def __iter__(self) -> Any:
        return iter(jax.tree.unflatten(self.structure, self.leaves))

    def __len__(self) -> int:
        return len(list(iter(self)))


jax.tree_util.register_pytree_node(
    FlatMap, lambda m: (m.leaves, m.structure), lambda s, leaves: FlatMap(jax.tree.unflatten(s, leaves))
)

NORM = {"ln_1": {"weight": shape(3, 8), "bias": shape(3, 8)}, "fc": {"weight": shape(3, 8, 8), "bias": shape(3, 8)}}
EXPECTED = {"ln_1/weight": 0.0, "ln_1/bias": 0.0, "fc/weight": 1.0, "fc/bias": 0.0}


@pytest.mark.parametrize(
    "params",
    [
        jax.tree.map(Wrapped, NORM),
        jax.tree.map(lambda x: Variable(Named(x)), NORM),
        FlatMap(NORM),
        {k: Keyless(**v) for k, v in NORM.items()},
        {(k, name): x for k, v in NORM.items() for name, x in v.items()},
        {f"{k}.{name}": x for k, v in NORM.items() for name, x in v.items()},
        {f"{k}/{name}": x for k, v in NORM.items() for name, x in v.items()},
    ],
    ids=["wrapper without keys", "named wrappers", "flat map", "class without keys", "tuples", "dots", "slashes"],
)
def test_12_1_stacked_norms_are_found_in_every_container(params):
    assert decided(params) == EXPECTED


def test_12_1_updates_keep_their_containers_and_spare_the_stacked_norm():
    params = jax.tree.map(lambda s: Wrapped(jnp.ones(s.shape, s.dtype), ("a",)), NORM)
    tx = wd.sgdw(0.1, weight_decay=0.1)
    step = jax.jit(lambda p: optax.apply_updates(p, tx.update(optax.tree.zeros_like(p), tx.init(p), p)[0]))
    after = step(params)
    np.testing.assert_array_equal(after["ln_1"]["weight"].array, 1.0)
    np.testing.assert_allclose(after["fc"]["weight"].array, 0.99, rtol=1e-6)


def test_12_1_a_submodule_called_value_and_a_lone_weight_keep_their_names():
    assert list(decided({"attn": {"value": shape(4, 4)}})) == ["attn/value"]
    lone = eqx.filter(eqx.nn.RMSNorm(4, use_bias=False), eqx.is_array)
    assert list(decided({"norm": lone})) == ["norm/weight"]

    class Critic(eqx.Module):
        value: Any
        net: Any

    assert list(decided({"critic": Critic(shape(4, 3), {"kernel": shape(4, 4)})})) == [
        "critic/value", "critic/net/kernel",
    ]  # fmt: skip


def test_12_1_a_class_that_hides_its_names_is_refused_with_lines_that_work():
    params = {"block": Nameless(jnp.ones((3, 8)), jnp.ones((3, 8, 8)))}
    for refused in (lambda: wd.explain("weights", params), lambda: wd.adamw(1e-3, weight_decay=0.1).init(params)):
        with pytest.raises(
            ValueError, match=r"'block/0' is registered without keys.*register_dataclass.*mask="
        ) as info:
            refused()
    assert "block/0  (3,8)" in str(info.value)
    assert "mask=[('^block/0$', 1.0)]" in str(info.value)
    assert {r.path: r.multiplier for r in wd.explain([("^block/1$", 1.0)], params).rows} == {"block/0": 0, "block/1": 1}

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Block:
        norm: Any
        kernel: Any

    assert decided({"block": Block(*params["block"].arrays)}) == {"block/norm": 0.0, "block/kernel": 1.0}

    @jax.tree_util.register_pytree_with_keys_class
    class Block2(Nameless):
        def tree_flatten_with_keys(self) -> Any:
            return [
                (jax.tree_util.GetAttrKey(k), x) for k, x in zip(("norm", "kernel"), self.arrays, strict=True)
            ], None

    assert decided({"block": Block2(*params["block"].arrays)}) == {"block/norm": 0.0, "block/kernel": 1.0}


def test_12_1_a_tree_mask_of_the_same_class_goes_by_position():
    """Booleans are one object each, so attributes can't be found again by identity."""

    class Flagged(Nameless):
        def __init__(self, kernel: Any, bias: Any):
            self.use_bias, self.kernel, self.bias, self.arrays = True, kernel, bias, (kernel, bias)

    jax.tree_util.register_pytree_node_class(Flagged)
    params = {"x": Flagged(jnp.ones((2, 2)), jnp.ones(2))}
    for mask in (jax.tree.map(lambda x: x.ndim > 1, params), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)):
        assert {r.path: r.multiplier for r in wd.explain(mask, params).rows} == {"x/kernel": 1.0, "x/bias": 0.0}


def test_12_1_vectors_without_a_name_never_decay_and_a_telling_parent_is_enough():
    assert decided({"block": Nameless(shape(8), shape())}) == {"block/0": 0.0, "block/1": 0.0}
    assert decided({"ln_1": Nameless(shape(3, 8), shape(3, 8))}) == {"ln_1/0": 0.0, "ln_1/1": 0.0}


def keras_variable(path: str, *sizes: int) -> Any:
    """What a Keras variable is to JAX: a leaf with its own name."""
    return SimpleNamespace(path=path, value=np.zeros(sizes, np.float32), shape=sizes, dtype="float32")


KERAS = [("mha/query/kernel", 4, 2, 2), ("mha/query/bias", 2, 2), ("dense/kernel", 4, 3), ("dense/bias", 3)]


def test_12_1_arrays_of_a_keras_model_are_warned_about_with_the_line_that_works():
    variables = [keras_variable(*v) for v in KERAS]
    arrays = [jnp.zeros(v.shape) for v in variables]
    with pytest.warns(UserWarning, match="goes by names, and '0'.*model.trainable_variables"):
        wd.explain("weights", arrays)
    with pytest.warns(UserWarning, match="goes by names"):
        wd.adamw(1e-3, weight_decay=0.1).init(arrays)
    mask = wd.multipliers("weights", variables)
    assert mask == [1.0, 0.0, 1.0, 0.0]
    wd.adamw(1e-3, weight_decay=0.1, mask=mask).init(arrays)
    assert [row.multiplier for row in wd.explain(mask, arrays).rows] == mask
    assert list(decided(variables)) == [f"{i}/{name}" for i, (name, *_) in enumerate(KERAS)]


@pytest.mark.parametrize(
    ("params", "multipliers"),
    [
        ([(shape(4, 3), shape(3)), (shape(3, 1), shape(1))], [1, 0, 1, 0]),
        ([[(shape(3, 3, 1, 8), shape(8))], (), (shape(8, 2), shape(2))], [1, 0, 1, 0]),
        ([shape(4, 3), shape(3), shape(3, 2), shape(2)], [1, 0, 1, 0]),
        ((shape(3, 1), shape(1)), [1, 0]),
        ([shape(8), shape()], [0, 0]),
        ({"b": [shape(3), shape(2)], "w": [shape(4, 3), shape(3, 2)]}, [0, 0, 1, 1]),
    ],
    ids=["stax", "stax convolutions", "flat layers", "linear model", "vectors", "named lists"],
)
def test_12_1_layers_in_plain_lists_are_no_guess(params, multipliers):
    assert list(decided(params).values()) == multipliers


def test_12_1_penzai_parameters_carry_their_labels():
    params = (
        Variable(Named(shape(3, 8)), "block/norm/scale.weights"),
        Variable(Named(shape(8, 8)), "fc/Linear.weights"),
    )
    assert decided(params) == {"0/block/norm/scale/weights": 0.0, "1/fc/Linear/weights": 1.0}


@pytest.mark.parametrize(
    "params",
    [
        {"a": {"b": jnp.ones((2, 2))}, "a/b": jnp.ones((2, 2))},
        {"a": {"b": jnp.ones((2, 2))}, "a.b": jnp.ones((2, 2))},
        {"a": {"b": jnp.ones((2, 2))}, "c": {"d": jnp.ones(2)}, "a/b": optax.MaskedNode()},
    ],
    ids=["slash", "dot", "hidden"],
)
def test_12_20_two_leaves_of_one_path_are_refused(params):
    for mask in ("weights", None, {"a": {"b": True}, "a/b": False}, [("a", 1.0)]):
        with pytest.raises(ValueError, match=r"two leaves have the path 'a/b'.*rename one"):
            wd.explain(mask, params)
        with pytest.raises(ValueError, match="two leaves have the path 'a/b'"):
            wd.sgdw(0.1, weight_decay=0.1, mask=mask).init(params)


def test_12_20_a_mask_with_two_entries_of_one_path_is_refused():
    with pytest.raises(ValueError, match="two leaves have the path 'a/b'"):
        wd.explain({"a": {"b": True}, "a/b": False}, {"a": {"b": jnp.ones(2)}})


names = st.text("ab.1/", max_size=4)
trees = st.recursive(
    st.just(shape(2, 2)),
    lambda inner: st.one_of(
        st.dictionaries(names, inner, min_size=1, max_size=3),
        st.dictionaries(st.tuples(names, names), inner, min_size=1, max_size=2),
        st.lists(inner, min_size=1, max_size=2),
        st.builds(Wrapped, inner),
        st.builds(Nameless, inner, inner),
    ),
    max_leaves=8,
)


@given(trees)
def test_paths_are_one_per_leaf_in_order_or_refused(tree):
    try:
        found, masked = paths.leaves(tree)
    except ValueError:
        with pytest.raises(ValueError, match="two leaves have the path"):
            paths.leaves(tree)
        return
    assert masked == []
    assert len({leaf.path for leaf in found}) == len(found)
    flat = jax.tree.leaves(tree)
    assert all(leaf.value is other for leaf, other in zip(found, flat, strict=True))
