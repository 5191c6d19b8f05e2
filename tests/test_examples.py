"""Each example runs, with few steps, and what it claims holds."""

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from example_loading import EXAMPLES, load

import wd_optax as wd


@pytest.fixture(scope="module")
def digits() -> Any:
    return load("digits_mlp")


def run(digits: Any, sgd: float, adam: float) -> dict[str, Any]:
    return digits.run(epochs=5, batch_size=64, seed=0, rates={"SGD": (0.1, sgd), "Adam": (1e-3, adam)})


@pytest.fixture(scope="module")
def results(digits: Any) -> dict[str, Any]:
    return run(digits, sgd=0.01, adam=0.05)


@pytest.fixture(scope="module")
def undecayed(digits: Any) -> dict[str, Any]:
    return run(digits, sgd=0.0, adam=0.0)


def test_digits_sgd_with_l2_and_sgdw_are_one_trajectory(results: dict[str, Any]) -> None:
    # 105 steps in float32: rounding (6e-8) is not amplified by a smooth network. Measured 7e-8.
    assert results["apart"]["SGD"] < 1e-5
    l2, decay = results["runs"]["SGD+L2"], results["runs"]["SGDW"]
    np.testing.assert_allclose(l2["loss"], decay["loss"], rtol=1e-5)
    np.testing.assert_allclose(l2["weight_norm"], decay["weight_norm"], rtol=1e-5)
    assert l2["right"] == decay["right"]


def test_digits_adam_with_l2_and_adamw_part(results: dict[str, Any]) -> None:
    # Measured 0.61 after 5 epochs, 0.95 after 60; rounding accounts for 1e-7.
    assert results["apart"]["Adam"] > 0.3
    norms = {name: results["runs"][name]["‖w‖"] for name in ("Adam+L2", "AdamW")}
    assert norms["Adam+L2"] < 0.7 * norms["AdamW"]


def test_digits_every_run_decays(results: dict[str, Any], undecayed: dict[str, Any]) -> None:
    # So that the SGD pair doesn't agree for want of any decay. In 105 steps of η·λ SGDW loses a tenth (less what the
    # gradient puts back: 0.910), AdamW 0.5 % (0.9956); Adam+L2 with AdamW's λ loses half (0.50).
    shrunk = {n: r["‖w‖"] / undecayed["runs"][n]["‖w‖"] for n, r in results["runs"].items()}
    assert shrunk["SGDW"] == pytest.approx(0.90, abs=0.02)
    assert shrunk["AdamW"] == pytest.approx(0.995, abs=0.001)
    assert shrunk["Adam+L2"] < 0.7


def test_digits_starts_every_run_from_the_same_weights_and_batches(undecayed: dict[str, Any]) -> None:
    # With λ = 0 the optimizers of a pair are the same, and distance would come from start or batches; the two programs
    # are compiled apart, which costs Adam one rounding error (7e-8).
    assert undecayed["apart"]["SGD"] < 1e-6
    assert undecayed["apart"]["Adam"] < 1e-6


def test_digits_every_run_learns(results: dict[str, Any]) -> None:
    for name, r in results["runs"].items():
        assert r["loss"][-1] < 0.5 * r["loss"][0], name
        assert r["right"] > 0.8 * results["tested"], name


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str, pathlib.Path]:
    """Two epochs as `make demo` runs them, into a pipe: the lines of stdout, stderr, the picture."""
    out = tmp_path_factory.mktemp("digits") / "made" / "here"
    command = [sys.executable, EXAMPLES / "digits_mlp.py", "--epochs=2", f"--out={out}"]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr, out / "digits_mlp.png"


def test_digits_prints_the_explain_table_first_and_what_was_shown_last(digits: Any, shell: Any) -> None:
    lines, _, picture = shell
    explained = str(wd.explain("weights", digits.initial_params(0))).splitlines()
    assert lines[: len(explained)] == explained
    assert explained[-1] == "3 of 6 leaves decay, 25,856 of 26,122 parameters"
    table = [line for line in lines if re.match(r"(SGD|Adam)(\+L2|W) ", line)]
    assert [line.split()[0] for line in table] == list(digits.LINES)
    apart = [float(re.search(r"(\S+) of ‖w‖$", line)[1]) for line in table]
    assert max(apart[:2]) < 1e-5
    assert min(apart[2:]) > 0.1
    assert lines[-5].startswith("SGD: one trajectory up to rounding")
    assert lines[-4].startswith("Adam: two different results")
    assert re.match(r"SGDW: .* would settle at 0.045, 250 steps on", lines[-3])
    assert re.match(r"AdamW: .* would settle at 0.0023, 10000 steps on", lines[-2])
    assert lines[-1].endswith(str(picture))


def test_digits_shows_no_progress_bar_where_there_is_no_terminal(shell: Any) -> None:
    _, errors, _ = shell
    assert "\r" not in errors
    assert "epoch/s" not in errors


def test_digits_draws_all_four_runs(digits: Any, shell: Any) -> None:
    from matplotlib import colors, image

    pixels = (image.imread(shell[2])[..., :3] * 255).round().astype(int)
    assert pixels.shape == (288, 1080, 3)
    for name, style in digits.LINES.items():
        rgb = np.round(np.multiply(colors.to_rgb(style["color"]), 255)).astype(int)
        assert (abs(pixels - rgb) < 8).all(axis=-1).sum() > 300, f"{name} isn't in the picture"
