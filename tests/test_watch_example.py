"""`examples/watch.py` measures what it says, draws it, and its prediction holds."""

import io
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from example_loading import flagged, load
from pictures import count_pixels, read_picture

import wd_optax as wd

pytestmark = [pytest.mark.slow, pytest.mark.quick_compile, pytest.mark.optax_promotes]  # Optax's Adam
RATE, DECAY = 1e-2, 2.0  # c = 0.02: 50 steps are its time scale, five times that of Adam's first moment


@pytest.fixture(scope="module")
def watch() -> Any:
    return load("watch")


@pytest.fixture(scope="module")
def shown(watch: Any) -> Any:
    log = io.StringIO()
    options = {"steps": 400, "every": 10, "learning_rate": RATE, "weight_decay": [0.0, DECAY], "seed": 0}
    return watch.run(**options, log=log), [json.loads(line) for line in log.getvalue().splitlines()]


def test_without_decay_norms_grow_and_with_it_they_settle_where_predicted(watch: Any, shown: Any) -> None:
    without, decayed = shown[0][0.0], shown[0][DECAY]
    norm = lambda runs: np.array([seen["hidden/weight_norm"] for seen in runs])
    assert (np.diff(norm(without)) > 0).all()
    assert all(seen["hidden/decay_share"] == 0 for seen in without)
    to = wd.equilibrium(RATE, weight_decay=DECAY, size=decayed[0]["hidden/size"])
    half = decayed[len(decayed) // 2 :]
    # The prediction is for gradients that are independent of each other; these agree a little from step to step.
    assert norm(half).mean() == pytest.approx(to.norm, rel=0.3)
    assert np.mean([seen["hidden/angle"] for seen in half]) == pytest.approx(to.angle, rel=0.3)
    assert norm(decayed)[-1] < 0.5 * norm(without)[-1]


def test_each_measurement_is_a_line_of_json(watch: Any, shown: Any) -> None:
    found, lines = shown
    assert lines == [{"weight_decay": decay, **seen} for decay, runs in found.items() for seen in runs]
    assert [line["step"] for line in lines[:40]] == list(range(0, 400, 10))
    assert lines[0]["hidden/size"] == 64 * 128 + 128 * 128
    assert lines[-1]["hidden/removed"] == pytest.approx(RATE * DECAY)
    assert {key.split("/")[0] for key in lines[0]} == {"weight_decay", "step", "hidden", "head", "rest"}


def test_the_report_compares_with_the_prediction(watch: Any, shown: Any) -> None:
    lines = watch.report(shown[0], RATE).splitlines()
    assert lines[1].split()[:1] + lines[1].split()[4:] == ["0", "-", lines[1].split()[5], "-", "0.0%"]
    to = wd.equilibrium(RATE, weight_decay=DECAY, size=64 * 128 + 128 * 128)
    assert (lines[2].split()[4], lines[2].split()[6]) == (f"{to.norm:.1f}", f"{to.angle:.4f}")
    norm, angle = map(float, re.search(r"predicts: ([\d.]+) and ([\d.]+) at λ = 2\.$", lines[-1]).groups())
    assert norm == pytest.approx(float(lines[2].split()[3]) / to.norm, rel=0.02)  # a printed digit
    assert angle == pytest.approx(float(lines[2].split()[5]) / to.angle, rel=0.02)


def test_main_audits_first_and_draws_every_run(
    shown: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    with flagged("watch", f"--out={tmp_path / 'made'}", "--weight_decay=0,2") as example:
        monkeypatch.setattr(example, "run", lambda **options: asked.update(options) or shown[0])
        example.main([])
    assert asked.pop("log").name == str(tmp_path / "made" / "watch.jsonl")
    assert asked == {"steps": 3000, "every": 20, "learning_rate": 3e-3, "weight_decay": [0.0, 2.0], "seed": 0}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["path", "type", "role"]
    assert lines[-1].endswith(str(tmp_path / "made" / "watch.png"))

    picture = read_picture(tmp_path / "made" / "watch.png")
    for colour in ("#0072B2", "#D55E00"):  # the two λ
        assert count_pixels(picture, colour, within=8) > 100
