"""The audit reads the stages of a chain from Optax's closures: these tests fail when Optax changes them."""

import jax.numpy as jnp
import optax
import pytest

from wd_optax.auditing.chain_closures import stages_of

L2 = optax.add_decayed_weights(0.1)
NESTED = optax.chain(L2, optax.chain(optax.scale_by_adam(), L2), optax.scale(-0.1))
CHAINS = {
    "chain": (optax.chain(L2, optax.scale(-0.1)), 2),
    "nested chains": (NESTED, 4),
    "extra arguments": (optax.with_extra_args_support(NESTED), 4),
    "adamw": (optax.adamw(0.1), 3),
    "MultiSteps": (optax.MultiSteps(NESTED, 2), 4),
    "MultiSteps as a transformation": (optax.MultiSteps(NESTED, 2).gradient_transformation(), 4),
}


@pytest.mark.parametrize("name", CHAINS)
def test_canary_the_stages_of_chains_are_found(name):
    optimizer, stages = CHAINS[name]
    found = stages_of(optimizer.update, optimizer.init({"w": jnp.ones(2)}))
    assert len(found) == stages, (
        f"Optax {optax.__version__} keeps the stages of a chain elsewhere than 0.2.8 does: adapt "
        "wd_optax/auditing/chain_closures.py to the closures of optax.chain and optax.with_extra_args_support"
    )


def test_each_stage_runs_alone_on_its_state():
    p, g = {"w": jnp.full(2, 2.0)}, {"w": jnp.ones(2)}
    first, second = stages_of(CHAINS["chain"][0].update, CHAINS["chain"][0].init(p))
    assert first.update(g, first.state, p)[0]["w"].tolist() == pytest.approx([1.2, 1.2])
    assert second.update(g, second.state, p)[0]["w"].tolist() == pytest.approx([-0.1, -0.1])


def test_anything_else_is_one_stage():
    for optimizer in (L2, optax.partition({"a": NESTED}, {"w": "a"}), optax.masked(NESTED, {"w": True})):
        assert len(stages_of(optimizer.update, optimizer.init({"w": jnp.ones(2)}))) == 1
