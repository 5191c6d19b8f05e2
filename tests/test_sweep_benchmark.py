"""The benchmark of sweeps: its ways train the same, a process answers, the report says what was met."""

import importlib
import pathlib
import shutil
from typing import Any

import example_loading
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmark() -> Any:
    return example_loading.load("sweep", example_loading.BENCHMARKS)


@pytest.fixture(scope="module")
def problem(benchmark: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("sweep") / "problem.npz"
    benchmark.write_problem(path, benchmark.Setting(256, 8, 1), 4, 2)
    return dict(np.load(path))


def test_a_problem_is_a_grid_of_real_images(problem: Any, benchmark: Any, tmp_path: pathlib.Path) -> None:
    assert problem["x"].shape == (1347, 64)
    assert problem["kernel1"].shape == (8, 8)
    assert problem["rows"].shape == (2 * 5, 256)
    for epoch in np.split(problem["rows"], 2):
        assert len(np.unique(epoch)) == epoch.size
    assert len(problem["learning_rate"]) == len(problem["weight_decay"]) == 2
    with pytest.raises(ValueError, match="points: 5 isn't a square"):
        benchmark.write_problem(tmp_path / "x", benchmark.SETTINGS[0], 5, 1)


@pytest.mark.optax_promotes  # Optax's bias correction
def test_all_ways_end_with_the_same_losses(problem: Any) -> None:
    ways = importlib.import_module("sweep_jax")
    given = {name: array if name in ways.RATES else jnp.asarray(array) for name, array in problem.items()}
    losses = {name: np.array(make(given)(4)) for name, make in ways.WAYS.items()}
    assert np.ptp(losses["loop"]) > 0.1
    for name in losses:
        # Ten steps of Adam in float32, sums in another order; wd.adamw decays after the learning rate.
        np.testing.assert_allclose(losses[name], losses["loop"], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(ways.loop(given)(3), losses["loop"][:3], rtol=1e-6)


def test_the_clock_counts_compiling_once_and_running_not_at_all() -> None:
    clock = importlib.import_module("sweep_jax").compiling()
    assert clock() == 0
    inner = jax.jit(lambda x: jnp.sin(x) + 2.5)
    function = jax.jit(lambda x: inner(inner(x)) * 1.5)
    events: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: events.append(seconds))
    function(1.0)
    spent = clock()
    assert 0 < spent <= sum(events)
    function(1.0)
    assert clock() == spent


def test_a_process_trains_and_says_what_it_took(benchmark: Any) -> None:
    settings = {"repeats": 2, "ways": ["sweep"], "looped": 1, "torch_python": "", "device": "cpu"}
    found = benchmark.measure(benchmark.Setting(256, 8, 1), 4, 1, **settings)["sweep"]
    assert found["points"] == 4
    assert len(found["seconds"]) == 2
    assert all(0 < seconds < 60 for seconds in found["seconds"])
    assert found["compiling"] > 0
    assert 5e7 < found["bytes"] < 1e10  # JAX alone is over 100 MB
    assert found["distance"] == 0


def test_without_torch_the_error_names_the_extra(benchmark: Any) -> None:
    settings = {"repeats": 1, "ways": ["torch", "sweep"], "looped": 1, "torch_python": shutil.which("false")}
    settings["device"] = "cpu"
    with pytest.raises(RuntimeError, match=r'pip install "wd_optax\[benchmarks\]", or --torch_python=PATH'):
        benchmark.measure(benchmark.Setting(256, 8, 1), 4, 1, **settings)


@pytest.mark.parametrize(("seconds", "said"), [(2.0, "8.0 ×, met"), (8.0, "2.0 ×, MISSED")])
def test_the_report_says_whether_the_target_is_met(benchmark: Any, seconds: float, said: str) -> None:
    way = {"points": 64, "seconds": [1.0, 1.0, 9.0], "compiling": 0.5, "bytes": 3e8, "distance": 1e-7}
    found = {"torch": way, "vmap": way, "sweep": {**way, "points": 1024, "seconds": [seconds]}}
    lines = benchmark.report(benchmark.SETTINGS[0], 1024, found, "cpu").splitlines()
    assert lines[0] == "batch 128, width 128, 1024 points"
    assert lines[2].split()[:3] == ["torch", "64.0", "800%"]  # the median, not the mean
    assert lines[2].endswith("on 64 points")
    assert "on" not in lines[4]
    assert lines[-2] == f"at least 4 × torch: {said}"
    assert "4 × fused" not in "".join(lines)
    assert "at least 50 × torch: " in benchmark.report(benchmark.SETTINGS[0], 1024, found, "gpu")
    assert lines[-1].startswith("best other way of JAX: vmap; sweep does ")
