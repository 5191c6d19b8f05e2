"""Each example runs, with few steps, and what it claims holds."""

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import quick_compile
from example_loading import EXAMPLES, load
from pictures import count_pixels, read_picture

import wd_optax as wd

pytestmark = pytest.mark.slow
RUNS = ["SGD", "SGD+L2", "SGDW", "Adam", "Adam+L2", "AdamW", "AdamW, more"]


@pytest.fixture(scope="module")
def digits() -> Any:
    return load("digits_mlp")


def run(digits: Any, λ: float, more: float) -> dict[str, Any]:
    rates = {"sgd_learning_rate": 0.1, "adam_learning_rate": 1e-3, "weight_decay": λ, "adamw_weight_decay": more}
    return digits.run(epochs=25, seeds=2, images=200, label_noise=0.2, **rates)


@pytest.fixture(scope="module")
def results(digits: Any) -> dict[str, Any]:
    return run(digits, 0.01, 3.0)


def test_digits_sgd_with_l2_and_sgdw_are_one_trajectory(results: dict[str, Any]) -> None:
    # 100 steps in float32: rounding (6e-8) is not amplified by a smooth network. Measured 1e-7.
    assert results["apart"]["SGD"].max() < 1e-5
    l2, decay = results["runs"]["SGD+L2"], results["runs"]["SGDW"]
    np.testing.assert_allclose(l2["loss"], decay["loss"], rtol=1e-5)
    np.testing.assert_allclose(l2["‖w‖"], decay["‖w‖"], rtol=1e-5)
    np.testing.assert_array_equal(l2["accuracy"][:, -1], decay["accuracy"][:, -1])


def test_digits_adam_with_l2_and_adamw_diverge(results: dict[str, Any]) -> None:
    assert results["apart"]["Adam"].min() > 0.3  # measured 0.5; rounding accounts for 1e-7
    norms = {name: results["runs"][name]["‖w‖"][:, -1] for name in ("Adam+L2", "AdamW")}
    assert (norms["Adam+L2"] < 0.8 * norms["AdamW"]).all()


def test_digits_every_run_decays_and_the_first_of_a_family_does_not(results: dict[str, Any]) -> None:
    # 100 steps of η·λ = 1e-3 take a tenth off SGDW's weights, 1e-5 a thousandth off AdamW's, 3e-3 a quarter.
    runs = results["runs"]
    norm = {name: r["‖w‖"][:, -1].mean() for name, r in runs.items()}
    assert [r["λ"] for r in runs.values()] == [0, 0.01, 0.01, 0, 0.01, 0.01, 3.0]
    assert norm["SGDW"] / norm["SGD"] == pytest.approx(0.9, abs=0.02)
    assert norm["AdamW"] / norm["Adam"] == pytest.approx(0.999, abs=3e-4)
    assert norm["AdamW, more"] / norm["Adam"] == pytest.approx(0.997**100, abs=0.06)  # gradients put some back


@pytest.fixture(scope="module")
def undecayed(digits: Any) -> dict[str, Any]:
    return run(digits, 0.0, 0.0)


def test_digits_without_decay_the_two_forms_are_one(undecayed: dict[str, Any]) -> None:
    # So that distance comes from decay, not from the start or the batches; each compiled program rounds for itself.
    assert max(apart.max() for apart in undecayed["apart"].values()) < 1e-5


def test_digits_every_run_learns(results: dict[str, Any]) -> None:
    for name, r in results["runs"].items():
        assert (r["loss"][:, -1] < 0.7 * r["loss"][:, 0]).all(), name
        assert (r["accuracy"][:, -1] > 60).all(), name  # chance is 10


def test_digits_labels_are_noisy_and_those_of_the_test_are_not(digits: Any) -> None:
    x, _, y, y_test = digits.few_noisy_digits(3, 400, 0.5)
    clean = digits.few_noisy_digits(3, 400, 0.0)
    np.testing.assert_array_equal(x, clean[0])
    np.testing.assert_array_equal(y_test, clean[3])
    assert 1 - (y == clean[2]).mean() == pytest.approx(0.45, abs=0.075)  # half are guessed, a tenth of those right: 3σ


@pytest.mark.exhaustive
@pytest.mark.optax_promotes  # Optax's Adam
def test_demo_shows_what_decay_gains(digits: Any) -> None:
    defaults = {"epochs": 100, "seeds": 8, "images": 200, "label_noise": 0.2}
    rates = {"sgd_learning_rate": 0.1, "adam_learning_rate": 1e-3, "weight_decay": 0.01, "adamw_weight_decay": 3.0}
    runs = digits.run(**defaults, **rates)["runs"]
    for name in ("SGDW", "Adam+L2", "AdamW, more"):
        assert runs[name]["gain"][:, -1].mean() > 0
        assert digits.intervals.clear(runs[name]["gain"][:, -1]), name


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str, pathlib.Path]:
    """Five epochs as `make demo` runs them, into a pipe: the lines of stdout, stderr, the picture."""
    out = tmp_path_factory.mktemp("digits") / "made" / "here"
    command = [sys.executable, EXAMPLES / "digits_mlp.py", "--epochs=5", "--seeds=2", f"--out={out}"]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "PYTHONIOENCODING": "utf-8"}
    env["XLA_FLAGS"] = os.environ["XLA_FLAGS"] + quick_compile.flags()
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr, out / "digits_mlp.png"


def test_digits_prints_the_explain_table_first_and_what_was_shown_last(digits: Any, shell: Any) -> None:
    lines, _, picture = shell
    explained = str(wd.explain("weights", digits.initial_params(0))).splitlines()
    assert lines[: len(explained)] == explained
    assert explained[-1] == "3 of 6 leaves decay, 25,856 of 26,122 parameters"
    table = [line for line in lines if re.match(r"(SGD|Adam)\S*(, more)? +0", line)]
    assert [re.split("  +", line)[0] for line in table] == RUNS
    assert [line.endswith(", no verdict from 2 seeds") for line in table] == [
        False,
        True,
        True,
        False,
        True,
        True,
        True,
    ]
    same, different = lines[-2].split("; ")
    assert same.startswith("SGD+L2 and SGDW at λ = 0.01 are one trajectory up to rounding, at most ")
    assert different.startswith("Adam+L2 and AdamW at λ = 0.01 are two different results, at most ")
    assert lines[-1].endswith(str(picture))


def test_digits_logs_plain_lines(shell: Any) -> None:
    _, errors, _ = shell
    assert [line.split(":")[0] for line in errors.splitlines()] == RUNS


def test_digits_draws_all_runs(digits: Any, shell: Any) -> None:
    picture = read_picture(shell[2])
    assert picture.size == (1944, 518)  # 144 dpi
    for name, colour in zip(RUNS, digits.COLOURS, strict=True):
        assert count_pixels(picture, digits.plots.COLOURS[colour], within=8) > 100, f"{name} isn't in the picture"
