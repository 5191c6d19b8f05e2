"""Roles on the trees that other libraries make themselves. `make test-interop` installs them and runs this."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd

pytestmark = [pytest.mark.interop, pytest.mark.optax_promotes]
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _their_promotion() -> Any:
    with jax.numpy_rank_promotion("allow"):
        yield


def decided(params: Any) -> dict[str, float]:
    return {row.path: row.multiplier for row in wd.explain("weights", params).rows}


def spared(params: Any) -> set[str]:
    return {path for path, multiplier in decided(params).items() if not multiplier}


def steps_without_gradient(params: Any) -> Any:
    tx = wd.sgdw(0.1, weight_decay=0.1)
    step = jax.jit(lambda p, s: tx.update(optax.tree.zeros_like(p), s, p))
    return optax.apply_updates(params, step(params, tx.init(params))[0])


@pytest.fixture
def haliax(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Haliax 1.3 imports a private name of JAX's, for annotations, that JAX has dropped."""
    monkeypatch.setattr(jax._src.tree_util, "BuiltInKeyEntry", Any, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import haliax

    return haliax


def test_haliax_stacked_blocks(haliax: Any) -> None:
    import equinox as eqx

    embed, layers, inner = haliax.Axis("embed", 4), haliax.Axis("layers", 3), haliax.Axis("mlp", 8)

    class Block(eqx.Module):
        ln_1: Any
        c_fc: Any

        @staticmethod
        def init(*, key: Any) -> "Block":
            return Block(haliax.nn.LayerNorm.init(embed), haliax.nn.Linear.init(embed, inner, key=key))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = haliax.nn.Stacked.init(layers, Block)(key=jax.random.split(KEY, 3))
    params = {
        "blocks": eqx.filter(stack, eqx.is_inexact_array),
        "embed": haliax.nn.Embedding.init(inner, embed, key=KEY),
    }
    found = decided(params)
    assert {path for path, m in found.items() if m} == {"blocks/stacked/c_fc/weight", "embed/weight"}
    assert {path for path, m in found.items() if not m} == {
        "blocks/stacked/ln_1/weight", "blocks/stacked/ln_1/bias", "blocks/stacked/c_fc/bias",
    }  # fmt: skip
    after = steps_without_gradient(params)["blocks"].stacked
    np.testing.assert_array_equal(after.ln_1.weight.array, 1.0)


def test_penzai_transformer_by_label_and_as_its_trainer_passes_it() -> None:
    from penzai import pz
    from penzai.models.transformer.variants import llamalike_common as llama

    config = llama.LlamalikeTransformerConfig(
        num_kv_heads=2, query_head_multiplier=2, embedding_dim=8, projection_dim=4, mlp_hidden_dim=16,
        num_decoder_blocks=2, vocab_size=32, mlp_variant="geglu_approx", tie_embedder_and_logits=False,
    )  # fmt: skip
    model = llama.build_llamalike_transformer(config, init_base_rng=KEY)
    _, parameters = pz.unbind_params(model)
    for params in (pz.freeze_params(parameters), {p.label: p.value for p in parameters}):
        found = decided(params)
        assert len(found) == len(parameters)
        assert all(("norm" in path) != bool(m) for path, m in found.items()), found
    steps_without_gradient(pz.freeze_params(parameters))


def test_haiku_flat_map_and_layer_stack() -> None:
    import haiku as hk

    def net(x: jax.Array) -> jax.Array:
        block = lambda x: hk.Linear(4)(hk.LayerNorm(-1, True, True)(x))
        return hk.experimental.layer_stack(3)(block)(
            hk.MultiHeadAttention(2, 2, w_init=hk.initializers.Constant(1.0))(x, x, x)
        )

    params = hk.transform(net).init(KEY, jnp.ones((5, 4)))
    flat = hk.data_structures.to_immutable_dict(params)
    assert type(flat).__name__ == "FlatMap"
    expected = {f"{module}/{name}": float(name == "w") for module, leaves in params.items() for name in leaves}
    assert decided(params) == decided(flat) == expected
    assert {name.rpartition("/")[2] for name in spared(flat)} == {"b", "scale", "offset"}


def test_keras_variables_carry_their_paths() -> None:
    import keras

    inputs = keras.Input((4, 8))
    x = keras.layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    x = keras.layers.PReLU(name="prelu")(keras.layers.LayerNormalization(name="ln")(x))
    model = keras.Model(inputs, keras.layers.GRU(3, name="gru")(x))
    expected = [float(v.path.endswith("kernel")) for v in model.trainable_variables]
    assert 0 < sum(expected) < len(expected)
    assert wd.multipliers("weights", model.trainable_variables) == expected
    assert list(decided(model).values()) == expected
    arrays = [v.value for v in model.trainable_variables]
    with pytest.warns(UserWarning, match=r"model\.trainable_variables"):
        wd.adamw(1e-3, weight_decay=0.1).init(arrays)
    mask = wd.multipliers("weights", model.trainable_variables)
    tx = wd.sgdw(0.1, weight_decay=0.1, mask=mask)
    updates, _ = tx.update(optax.tree.zeros_like(arrays), tx.init(arrays), arrays)
    after = optax.apply_updates(arrays, updates)
    for old, new, m in zip(arrays, after, expected, strict=True):
        np.testing.assert_allclose(new, old * (1 - 0.01 * m), rtol=1e-6)
