"""The comparison of rules: every row trains, the strength is chosen on validation images, seeds are paired."""

from typing import Any

import example_loading
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray

pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]
STRENGTHS = [0.1, 1.0, 10.0]


@pytest.fixture(scope="module")
def benchmark() -> Any:
    return example_loading.load("rules", example_loading.BENCHMARKS)


def runs(validation: Any, loss: Any) -> Any:
    """A sweep's data, (strengths, seeds)."""
    metrics = {"validation": validation, "loss": loss, "accuracy": np.ones((3, 3)), "zeros": np.zeros((3, 3))}
    axes = {"strength": STRENGTHS, "seed": range(3)}
    return xarray.Dataset({name: (("strength", "seed"), np.asarray(x, float)) for name, x in metrics.items()}, axes)


def test_every_row_is_an_optimizer_of_the_network_that_moves_it(benchmark: Any) -> None:
    p = benchmark.Network().init(jax.random.key(0), jnp.ones((1, 64)))["params"]
    for name, rule in benchmark.RULES.items():
        tx = rule.make(optax.constant_schedule(0.01), jnp.float32(rule.least))
        updates, _ = jax.jit(tx.update)(optax.tree.ones_like(p), tx.init(p), p)
        assert all(0 < abs(u).max() < 1 for u in jax.tree.leaves(updates)), name


def test_the_strength_is_chosen_on_validation_images_and_never_a_diverged_one(benchmark: Any) -> None:
    validation = [[3, 3, 3], [2, 2, 2], [1, 1, np.nan]]
    test = [[1, 1, 1], [5, 6, 7], [0, 0, 0]]
    chosen = benchmark.best(type("Result", (), {"data": runs(validation, test)}))
    assert float(chosen["strength"]) == 1.0
    assert chosen["loss"].values.tolist() == [5, 6, 7]


def test_rows_are_paired_with_adamw_and_edges_are_said(benchmark: Any) -> None:
    def one(strength: int, loss: Any) -> Any:
        return runs(np.ones((3, 3)), np.tile(loss, (3, 1))).isel(strength=strength)

    found = {"AdamW": one(1, [1.0, 2.0, 3.0]), "better": one(0, [0.5, 1.4, 2.5]), "no decay": one(0, [9.0, 9.0, 9.0])}
    lines = benchmark.compare(found, dict.fromkeys(found, STRENGTHS)).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["better", "AdamW", "no decay"]
    assert "0.1, edge" in lines[1]
    assert "-0.533 ± 0.143, significant at 5 %" in lines[1]  # −0.5, −0.6, −0.5: t = 4.303, s/√3 = 0.0333
    assert "edge" not in lines[2] + lines[3]
