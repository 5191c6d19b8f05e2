"""The loggers of docs/watching_decay.md, each as it is printed there, and what it wrote."""

import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.quick_compile, pytest.mark.optax_promotes]  # Optax's Adam
ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "watching_decay.md").read_text().split("\n## Loggers\n")[1].split("\n## ")[0]
SETUP, *SNIPPETS = re.findall(r"```py(?:thon)?\n(.*?)```", PAGE, re.S)


def snippet(imports: str) -> str:
    (found,) = [code for code in SNIPPETS if f"import {imports}\n" in code]
    return found


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    """What all snippets share."""
    names: dict[str, Any] = {}
    exec(compile(SETUP, "watching_decay.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def figures(shared: dict[str, Any]) -> set[str]:
    """The names of all figures."""
    measured = shared["measure"](shared["params"], shared["opt_state"], shared["batches"][0])
    found = set(shared["wd"].read_decay(measured, flat=True))
    watched = ("weight_norm", "update_norm", "decay_share", "angle", "removed")
    assert found >= {f"{role}/{figure}" for role in ("weight", "bias") for figure in watched}
    return found


@pytest.fixture(scope="module")
def run(shared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs a snippet in a folder of its own, after what all share."""

    def execute(imports: str) -> pathlib.Path:
        folder = tmp_path_factory.mktemp("log")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            exec(compile(snippet(imports), "watching_decay.md", "exec"), dict(shared))
        return folder

    return execute


def test_snippets_have_ten_lines() -> None:
    assert len(SNIPPETS) == 4
    assert all(len(code.strip().splitlines()) <= 10 for code in SNIPPETS)


def assert_decayed(read: dict[tuple[int, str], float], figures: set[str]) -> None:
    """Both measurements of the snippets' run, all figures: AdamW at η·λ = 1e-3 decays weights alone."""
    assert set(read) == {(step, name) for step in (0, 50) for name in figures}
    for step in (0, 50):
        assert read[step, "weight/removed"] == pytest.approx(1e-3, rel=1e-5)
        assert 0 < read[step, "weight/decay_share"] < 1
        assert read[step, "bias/decay_share"] == 0
    assert read[0, "weight/weight_norm"] == pytest.approx(math.sqrt(32), rel=1e-6)
    assert read[50, "weight/weight_norm"] < read[0, "weight/weight_norm"]


def test_json_lines(run: Any, figures: set[str]) -> None:
    lines = [json.loads(line) for line in (run("json") / "decay.jsonl").read_text().splitlines()]
    read = {(line["step"], name): x for line in lines for name, x in line.items() if name != "step"}
    assert_decayed(read, figures)


def test_tensorboard(run: Any, figures: set[str]) -> None:
    from tensorboardX.proto import event_pb2

    read = {}
    (path,) = (run("tensorboardX") / "tensorboard").glob("events.out.tfevents.*")
    data, at = path.read_bytes(), 0
    while at < len(data):  # records of length, crc, event, crc
        length = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        read |= {(event.step, v.tag.removeprefix("decay/")): v.simple_value for v in event.summary.value}
        at += 16 + length
    assert_decayed(read, figures)


def installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} isn't installed")


@pytest.mark.slow
@installed("wandb")
def test_weights_and_biases_offline(run: Any, figures: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    (path,) = run("wandb").glob("wandb/offline-run-*/run-*.wandb")
    written = path.read_bytes()
    assert all(name.encode() in written for name in figures)


CLU = """
import sys, types
from absl import logging
without = types.ModuleType("clu.metric_writers.summary_writer")  # the module that imports TensorFlow
without.SummaryWriter = None
sys.modules[without.__name__] = without
logging.set_verbosity("info")
"""


@pytest.mark.slow
@installed("clu")
def test_clu_writes_all_figures(figures: set[str], tmp_path: pathlib.Path) -> None:
    code = snippet("metric_writers").replace('"clu", asynchronous', "just_logging=True, asynchronous")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    call = [sys.executable, "-c", CLU + SETUP + code]
    ran = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stderr
    for step in (0, 50):
        (line,) = [line for line in ran.stderr.splitlines() if f"[{step}] " in line]
        assert {pair.split("=")[0] for pair in line.split(f"[{step}] ")[1].split(", ")} == figures
        assert "weight/removed=0.001," in line
