"""The gradient of a training run with respect to λ, against finite differences; what the example claims, short."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_loading import flagged, load

pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]  # Optax's Adam


@pytest.fixture(scope="module")
def example() -> Any:
    return load("learn_decay")


def test_the_gradient_is_that_of_finite_differences(example: Any, x64: None) -> None:
    """All 200 steps in float64, a central difference for every leaf and one along a random direction."""
    wide = lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a
    sets = jax.tree.map(wide, example.split(0, 200))
    structure = jax.tree.structure(jax.eval_shape(lambda: example.initial_params(0)))
    n = structure.num_leaves
    loss = lambda at: example.objective(jax.tree.unflatten(structure, list(at)), sets, 1e-2)
    at = np.full(n, np.log(0.3))
    slope = jax.jit(jax.grad(loss))(at)
    directions = np.array([*np.eye(n), np.random.default_rng(0).normal(size=n)])
    after, before = jax.jit(jax.vmap(loss))(np.concatenate([at + 1e-4 * directions, at - 1e-4 * directions])).reshape(
        2, -1
    )
    assert after.dtype == jnp.float64
    largest = np.max(np.abs(slope))
    assert largest > 1e-3
    # The difference's own error: h² · a third derivative of about 1, and 1e-16/h of rounding.
    np.testing.assert_allclose(directions @ slope, (after - before) / 2e-4, rtol=1e-6, atol=1e-6 * largest)


def test_a_gradient_costs_what_the_sweep_is_given(example: Any) -> None:
    sets = example.split(0, 4)
    params = example.initial_params(0)
    decays = jax.tree.map(lambda p: jnp.float32(0.3), params)
    carry = example.step(decays, None, sets["rows"][0], sets, 1e-2)
    forward = lambda decays, carry: example.step(decays, carry, sets["rows"][0], sets, 1e-2)
    back = lambda decays, carry: jax.vjp(forward, decays, carry)[1](forward(decays, carry))
    count = lambda f: jax.jit(f).lower(decays, carry).compile().cost_analysis()["flops"]
    assert 1 + count(back) / count(forward) == pytest.approx(example.COST, rel=0.1)  # versions of XLA differ


@pytest.fixture(scope="module")
def results(example: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return example.run(steps=60, outer=2, seeds=2, learning_rate=1e-2)


def test_both_are_chosen_by_validation_and_learning_descends(example: Any, results: Any) -> None:
    none, single, learned = (results["measured"][name] for name in example.WAYS)
    assert none.shape == single.shape == learned.shape == (2, 3)
    first = jax.tree.map(lambda p: jnp.float32(example.FIRST), example.initial_params(0))
    measure = jax.jit(lambda decays, sets: example.measure(decays, sets, 1e-2))
    for seed in range(2):
        sets = example.split(seed, 60)
        assert learned[seed, 0] < measure(first, sets)[0]  # it descends
        again = measure(jax.tree.map(lambda x, seed=seed: x[seed], results["learned"]), sets)
        np.testing.assert_allclose(again, learned[seed], rtol=1e-4)  # 60 steps in float32, with and without vmap
    assert {leaf.shape for leaf in jax.tree.leaves(results["learned"])} == {(2,)}
    low, high = example.RANGE
    assert ((results["single"] >= low) & (results["single"] <= high)).all()


def test_main_audits_first_and_says_whether_it_pays(results: Any, monkeypatch: Any, capsys: Any) -> None:
    with flagged("learn_decay") as example:
        monkeypatch.setattr(example, "run", lambda **options: results)
        example.main([])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"path +type +role +removed +half-life", lines[0])
    assert (
        lines[-2]
        == "At equal compute, learning a λ for each leaf doesn't pay on the test images; here biases decay, too."
    )  # two splits
    assert "learned minus single, test loss: " in "\n".join(lines)


def test_it_pays_only_if_the_test_loss_falls(example: Any, results: Any) -> None:
    none, single, learned = (np.tile(results["measured"][name][:1], (4, 1)) for name in example.WAYS)
    verdict = lambda change: example.report(
        results | {"measured": dict(zip(example.WAYS, (none, single, learned * 0 + single + change), strict=True))}
    ).splitlines()[-1]
    noise = np.array([[0.01], [-0.01], [0.02], [0.0]])
    assert verdict(noise - 0.1).startswith("At equal compute, learning a λ for each leaf pays")
    assert verdict(noise + 0.1).startswith("At equal compute, learning a λ for each leaf doesn't pay")
    assert verdict(noise).startswith("At equal compute, learning a λ for each leaf doesn't pay")
