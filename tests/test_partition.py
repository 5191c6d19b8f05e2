"""`wd.partition`: each optimizer on its parameters, each decay at its own η·λ, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from example_loading import flagged

import wd_optax as wd

pytestmark = pytest.mark.optax_promotes

MUON_LR, ADAM_LR, WD = 2e-2, 3e-4, 0.1
PARAMS = {
    "embed": {"embedding": jnp.full((5, 4), 2.0)},
    "block": {
        "attn": {"query": {"kernel": jnp.full((4, 2, 2), 2.0), "bias": jnp.full((2, 2), 2.0)}},
        "mlp": {"kernel": jnp.full((4, 6), 2.0), "bias": jnp.full((6,), 2.0)},
        "norm": {"scale": jnp.full((4,), 2.0)},
    },
    "head": {"kernel": jnp.full((4, 5), 2.0), "bias": jnp.full((5,), 2.0)},
}
ZEROS = optax.tree.zeros_like(PARAMS)
_random = np.random.default_rng(0)
GRADS = jax.tree.map(lambda p: jnp.asarray(_random.standard_normal(p.shape, np.float32)), PARAMS)


def label(p):
    return "muon" if p.role == "weight" and len(p.shape) == 2 and not p.path.startswith("head") else "adamw"


def muon_and_adamw(muon_lr=MUON_LR):
    muon = optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0))
    return wd.partition(
        {"muon": wd.decoupled(muon, muon_lr, weight_decay=WD), "adamw": wd.adamw(ADAM_LR, weight_decay=WD)}, label
    )


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_each_decays_at_its_own_rate_and_biases_and_norms_do_not():
    tx = muon_and_adamw()
    with jax.numpy_rank_promotion("allow"):
        updates = by_path(jax.jit(tx.update)(ZEROS, tx.init(PARAMS), PARAMS)[0])
    removed = {path: float(-u.ravel()[0] / 2) for path, u in updates.items()}
    rates = {"block/mlp/kernel": MUON_LR * WD}
    rates |= dict.fromkeys(["embed/embedding", "block/attn/query/kernel", "head/kernel"], ADAM_LR * WD)
    assert removed == pytest.approx({path: rates.get(path, 0.0) for path in updates}, rel=1e-6, abs=0)


def test_each_steps_as_its_own_optimizer():
    with jax.numpy_rank_promotion("allow"):
        stepped = lambda tx, g, p: jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(g, p)
        ours = stepped(muon_and_adamw(), GRADS, PARAMS)
        expected = stepped(wd.adamw(ADAM_LR, weight_decay=WD), GRADS, PARAMS)
        muon = wd.with_decay(optax.contrib.muon(MUON_LR), learning_rate=MUON_LR, weight_decay=WD)
        alone = stepped(muon, GRADS["block"]["mlp"]["kernel"], PARAMS["block"]["mlp"]["kernel"])
    expected["block"]["mlp"]["kernel"] = alone
    chex.assert_trees_all_close(ours, expected, rtol=1e-5)  # Newton-Schulz in two programs


def test_editing_one_learning_rate_changes_its_step_and_its_decay():
    optimizers = lambda lr: {
        "a": wd.decoupled(optax.identity(), lr, weight_decay=WD),
        "b": wd.sgdw(0.1, weight_decay=WD),
    }
    tx, rebuilt = (wd.partition(optimizers(lr), lambda p: "a" if p.role == "weight" else "b") for lr in (0.5, 0.25))
    state = tx.init(PARAMS)
    branch = optax.tree.set(state.inner_states["a"], learning_rate=jnp.float32(0.25))
    edited = state._replace(inner_states=state.inner_states | {"a": branch})
    expected = rebuilt.update(GRADS, rebuilt.init(PARAMS), PARAMS)[0]
    chex.assert_trees_all_equal(tx.update(GRADS, edited, PARAMS)[0], expected)


def test_labels_come_from_the_parameters_also_at_update():
    seen = []
    tx = wd.partition({"a": wd.sgdw(0.1, weight_decay=WD)}, lambda p: seen.append(p.dtype) or "a")
    tx.update(optax.tree.cast(GRADS, jnp.bfloat16), tx.init(PARAMS), PARAMS)
    assert set(seen) == {jnp.dtype("float32")}


@pytest.mark.parametrize("mode", ["jit", "vmap", "nested"])
def test_in_transformations(mode):
    tx = wd.partition(
        {"fast": wd.sgdw(0.5, weight_decay=WD), "slow": wd.sgd_l2(0.1, weight_decay=WD)},
        lambda p: "fast" if p.role == "weight" else "slow",
    )
    if mode == "nested":  # its trees are cut: nothing that is missing there is an error
        tx = wd.partition({"all": tx, "head": optax.sgd(0.1)}, lambda p: "head" if "head" in p.path else "all")

    def step(carry, _):
        updates, state = tx.update(ZEROS, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    run = lambda p: jax.lax.scan(step, (p, tx.init(p)), length=2)[0][0]
    if mode == "vmap":
        end = jax.tree.map(lambda x: x[1], jax.vmap(run)(jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)))
    else:
        end = jax.jit(step)(jax.jit(step)((PARAMS, tx.init(PARAMS)), None)[0], None)[0][0]
    np.testing.assert_allclose(end["block"]["mlp"]["kernel"], np.full((4, 6), 2 * 0.95**2), rtol=1e-6)
    np.testing.assert_allclose(end["embed"]["embedding"], np.full((5, 4), 2 * 0.99**2), rtol=1e-6)
    assert (end["block"]["norm"]["scale"] == 2).all()


def test_what_is_refused():
    sgdw = wd.sgdw(0.1, weight_decay=WD)
    with pytest.raises(ValueError, match=r"'block/attn/query/bias' .role bias.* is labelled 'b': return one of 'a'"):
        wd.partition({"a": sgdw}, lambda p: "b" if p.role == "bias" else "a").init(PARAMS)
    with pytest.raises(ValueError, match=r"'muon' gets no parameter: let label return 'muon' .*block/mlp/kernel"):
        wd.partition({"a": sgdw, "muon": sgdw}, lambda p: "a").init(PARAMS)
    with pytest.raises(
        TypeError, match=r"partition takes a dict of optimizers and a function.* got a function and a dict"
    ):
        wd.partition(lambda p: "a", {"a": sgdw})
    with pytest.raises(TypeError, match=r"optimizers\['a'\] must be an Optax transformation, .* call it, as sgdw"):
        wd.partition({"a": wd.sgdw}, lambda p: "a")
    tx = wd.partition({"a": sgdw}, lambda p: "a")
    with pytest.raises(ValueError, match=r"partition labels the parameters, .*tx.update.grads, state, params"):
        tx.update(GRADS, tx.init(PARAMS))


@pytest.mark.slow
def test_the_example_removes_each_rate_from_its_weights_and_learns(capsys, monkeypatch, tmp_path):
    with flagged("muon", "--epochs=2", f"--out={tmp_path}") as example, jax.numpy_rank_promotion("allow"):
        η = {"muon_learning_rate": 0.02, "adam_learning_rate": 1e-3}
        results = example.run(seeds=2, epochs=2, weight_decay=0.1, **η)
        params = jax.eval_shape(example.MLP().init, jax.random.key(0), jnp.zeros((1, 64)))["params"]
        removed = example.removed(example.optimizer(weight_decay=0.1, **η), params)
        rates = {"Dense_0/kernel": 2e-3, "Dense_1/kernel": 2e-3, "head/kernel": 1e-4}
        expected = {path: rates.get(path, 0.0) for path in removed}
        assert removed == pytest.approx(expected, rel=1e-5, abs=0)
        assert len(removed) == 10
        none, decayed = (results.isel(weight_decay=i, point=-1) for i in (0, 1))
        assert (decayed["‖w‖"] < 0.97 * none["‖w‖"]).all()
        assert min(none["accuracy"].min(), decayed["accuracy"].min()) > 90
        example.run = lambda **options: results
        monkeypatch.setattr(jax.config, "update", lambda *setting: None)  # devices are up already
        example.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["Dense_0/kernel", "0.002"]
    assert lines[-2].startswith("λ = 0.1 changes ‖w‖ of the hidden matrices by -")
    assert lines[-1].endswith(f"Picture: {tmp_path / 'muon.png'}")
