"""The benchmark of searches: its grid, its network beside torch's formulas, its report."""

from typing import Any

import example_loading
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]  # Optax's bias correction


@pytest.fixture(scope="module")
def benchmark() -> Any:
    return example_loading.load("search", example_loading.BENCHMARKS)


def test_the_grid_has_256_points_in_the_middles_of_cells(benchmark: Any) -> None:
    axes = benchmark.grid_axes()
    assert np.prod([len(axis) for axis in axes.values()]) == 256
    np.testing.assert_allclose(axes["warm_up"], [0.0625, 0.1875, 0.3125, 0.4375])
    np.testing.assert_allclose(axes["weight_decay"], 10.0 ** np.array([-2.5, -1.5, -0.5, 0.5]))
    assert set(axes) == set(benchmark.SPACE)


def test_the_images_are_apart_and_the_run_is_adamw_with_a_warm_up(benchmark: Any) -> None:
    problem = benchmark.make_problem(1)
    assert [len(problem[name]) for name in ("x", "x_valid", "x_test")] == [500, 500, 797]
    hparams = {"learning_rate": 0.01, "weight_decay": 0.1, "one_minus_b1": 0.1, "one_minus_b2": 0.01, "warm_up": 0.4}
    found = benchmark.make_train(problem)({k: jnp.float32(v) for k, v in hparams.items()}, jax.random.key(0))
    steps = len(problem["rows"])
    warm = optax.linear_schedule(0.01 / (0.4 * steps), 0.01 + 0.01 / (0.4 * steps), round(0.4 * steps))
    tx = optax.adamw(lambda t: jnp.minimum(warm(t), 0.01), 0.9, 0.99, weight_decay=0.1)
    params = benchmark.initial_params(jax.random.key(0))
    state = tx.init(params)
    one = jax.jit(lambda carry, x, y: benchmark.sweep_jax.step(tx, carry, x, y))
    for rows in problem["rows"]:
        params, state = one((params, state), problem["x"][rows], problem["y"][rows])
    expected = benchmark.sweep_jax.loss_fn(params, problem["x_valid"], problem["y_valid"])
    np.testing.assert_allclose(found["valid"], expected, rtol=1e-4)  # 15 steps of Adam in float32


def test_the_report_counts_wins_and_says_what_was_met(benchmark: Any) -> None:
    run = lambda test: {"valid": 0.5, "test": [test], "seconds": 12.0, "compiling": 2.0}
    found = {"grid": [{"valid": 0.6, "test": [0.7, 0.9]}]}
    found |= {"TPE": [run(0.7), run(0.9)], "CMA-ES": [run(0.7)] * 2, "random": [run(0.9)] * 2}
    torch = {"seconds": 10.0, "trials": 20, "threads": 1, "version": "torch 2", "loss": 0.1, "ours": 0.1}
    text = benchmark.report(found, 100, torch)
    assert "TPE beats the grid on test images in 1 of 2 searches" in text
    assert "CMA-ES beats the grid on test images in 2 of 2 searches" in text
    assert "torch 2, 1 threads: 2.00 trials/s" in text
    assert "at least 4 × torch: 5.0 ×, met" in text
    assert "MISSED" in benchmark.report(found, 70, torch)
