"""`make gpu` on a machine without a GPU: it says so, and everything that needs none does what it should."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import cpu_only
import example_loading
import jax
import pytest
from absl import app

pytestmark = pytest.mark.slow
ROOT = example_loading.EXAMPLES.parent
PARTS = ("step", "bits", "sweep", "bytes", "suite")


@pytest.fixture
def gpu() -> Any:
    return example_loading.load("gpu", example_loading.BENCHMARKS)


@pytest.fixture
def goals() -> Any:
    return example_loading.load("goals", example_loading.BENCHMARKS)


def test_without_a_gpu_the_command_says_so_and_fails(tmp_path: pathlib.Path) -> None:
    call = [sys.executable, "benchmarks/gpu.py", f"--out={tmp_path}/out"]
    ran = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 1
    assert "needs an NVIDIA GPU that JAX can use (" in ran.stderr
    assert "Nothing was measured. With a GPU, install the extra: pip install 'wd_optax[test,cuda]'" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["gpu", *(f"gpu-{part}" for part in PARTS)])
def test_make_fails_before_it_installs_anything(target: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    call = ["make", target, f"PYTHON={sys.executable}", f"VENV={tmp_path}/venv"]
    ran = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode
    assert "make gpu needs an NVIDIA GPU, and nvidia-smi lists none. Nothing was measured." in ran.stderr
    assert not (tmp_path / "venv-gpu").exists()


@pytest.mark.parametrize("trial", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_commands_name_their_device_and_write_where_asked(gpu: Any, part: str, trial: bool) -> None:
    found = gpu.commands(part, "folder", trial=trial, torch_python="python", tests="")
    for command in found:
        assert 0 < command.seconds <= 600
        assert any("folder/" in argument for argument in command.arguments)
        assert (ROOT / command.arguments[0]).exists() or command.arguments[:2] == ["-m", "pytest"]
        if command.arguments[0] == "-m":
            assert dict(command.environment)["JAX_PLATFORMS"] == ("cpu" if trial else "cuda,cpu")
        else:
            assert f"--device={'cpu' if trial else 'gpu'}" in command.arguments
    trees = [argument for command in found for argument in command.arguments if argument.startswith("--trees=")]
    if part == "step" and not trial:
        assert trees == ["--trees=leaf256,gpt2", "--trees=leaf256", "--trees=llama7b", "--trees=many"]


def test_a_command_is_interrupted_at_its_limit_and_its_output_kept(gpu: Any, tmp_path: pathlib.Path) -> None:
    code = "import time; print('begun'); time.sleep(60)"
    with (tmp_path / "log").open("w") as log:
        cut = gpu.run(gpu.Command(["-c", code], 1), log)
        done = gpu.run(gpu.Command(["-c", "import os, sys; sys.exit(os.environ['X'] != '1')"], 9, (("X", "1"),)), log)
    assert cut["cut"]
    assert cut["code"]
    assert cut["seconds"] < 59  # it sleeps for 60
    assert (done["cut"], done["code"]) == (False, 0)
    assert "begun\n" in (tmp_path / "log").read_text()


def row(variant: str, **known: Any) -> dict[str, Any]:
    return {"tree": "leaf256", "optimizer": "adamw", "variant": variant, "parameters": 10, "floor": 280} | known


@pytest.mark.parametrize(
    ("ours", "reached"),
    [
        ({"of limit": 0.91, "× torch": 1.0}, [True, True]),
        ({"of limit": 0.89, "× torch": 1.01}, [False, False]),
        ({"of limit": 0.95}, [True, None]),
        ({"failed": "out of memory"}, [None, None]),
    ],
)
def test_goals_are_reached_missed_or_not_measured(goals: Any, ours: dict[str, Any], reached: list[Any]) -> None:
    found = goals.goals([row("stream, jax"), row("wd_optax", **ours), row("optax", **{"of limit": 2, "× torch": 0})])
    assert [goal["reached"] for goal in found] == reached
    ends = {True: "reached", False: "NOT REACHED", None: "not measured"}
    assert [goals.verdict(goal).split(" ", 1)[1].endswith(ends[goal["reached"]]) for goal in found] == [True, True]
    missed = goals.verdict(found[0] | {"reached": False, "value": 0.5, "program": {"copy": 2, "fusion": 1}})
    assert missed.endswith("0.5, NOT REACHED; its program: 2 copy, 1 fusion")
    assert found[0]["goal"] == "leaf256, wd_optax: at least 90% of the copy bandwidth for 28.0 bytes per parameter"


def test_small_leaves_have_one_goal_and_other_optimizers_none(goals: Any) -> None:
    assert len(goals.goals([row("wd_optax", tree="many", **{"× torch": 2})])) == 1
    assert goals.goals([row("wd_optax", optimizer="lion")]) == []


SWEEP = {"batch_size": 32, "width": 32, "grid": 64, "target": 50}
SWEEP["ways"] = {"torch": {"points": 8, "seconds": [4, 2, 9]}, "sweep": {"points": 64, "seconds": [0.5, 0.64, 0.7]}}
XML = """<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="3" tests="40">
<testcase classname="tests.test_a" name="test_b[x]"><failure message="assert 1 == 2&#10; b">text</failure></testcase>
<testcase classname="tests.test_a" name="test_c"/></testsuite></testsuites>"""


def test_the_report_has_goals_tests_commands_and_output(gpu: Any, goals: Any, tmp_path: pathlib.Path) -> None:
    made = goals.goals([row("wd_optax", **{"of limit": 0.913, "× torch": 1.2})])
    (tmp_path / "step-float32.json").write_text(json.dumps({"rows": [], "goals": made}))
    (tmp_path / "sweep.json").write_text(json.dumps([SWEEP]))
    counted = [{"tree": "leaf256", "variant": "wd_optax", "bytes per parameter": 28.126, "least": 28}]
    (tmp_path / "bytes.json").write_text(json.dumps(counted))
    (tmp_path / "suite.xml").write_text(XML)
    done = {}
    for part, code, cut in (("step", 0, False), ("bits", 2, False), ("suite", -2, True)):
        (tmp_path / f"{part}.log").write_text(f"printed by {part}\n")
        done[part] = [{"command": f"{part}.py", "code": code, "seconds": 12.3, "cut": cut}]
    text = gpu.report(tmp_path, done)
    for line in (
        "| leaf256, wd_optax: at least 90% of the copy bandwidth for 28.0 bytes per parameter | 0.913 | yes |",
        "| leaf256, wd_optax: at most 1.00 × the time of torch fused | 1.2 | NO |",
        "| sweep of 64 points, batch 32, width 32: at least 50 × the points per second of torch | 50 | yes |",
        "| sweep of 64 points, batch 32, width 32: at least 50 × the points per second of fused | not measured |  |",
        "| leaf256, wd_optax | 28.13 | 28 |",
        "bits: no test has run to its end",
        "suite: 40 tests, 1 failures, 1 errors, 3 skipped",
        "- tests.test_a::test_b[x]: assert 1 == 2",
        "`bits.py`: 12 s, exit code 2",
        "`suite.py`: 12 s, interrupted at its limit",
        "printed by step",
    ):
        assert line in text.splitlines(), line


NCU = """#!{python}
import json, subprocess, sys
arguments, given = sys.argv[1:], sys.stdin.read()
worker = arguments[arguments.index("--metrics") + 2 :]
steps = json.loads(given.splitlines()[-1])[1][1]
code = subprocess.run(worker, input=given, text=True).returncode
header = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
row = '"%d","k","dram__bytes_%s.sum","byte","1,%03d"'
table = [row % (i, kind, i) for i in range(steps) for kind in ("read", "write")]
with open(arguments[arguments.index("--log-file") + 1], "w") as log:
    print("==PROF== Connected", header, *table, '"9","k","gpc__cycles","cycle","7"', sep="\\n", file=log)
sys.exit(code)
"""


def test_bytes_of_one_step_are_half_the_difference(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ncu").write_text(NCU.format(python=sys.executable))
    (tmp_path / "ncu").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file = f"--json={tmp_path}/bytes.json"
    with example_loading.flagged(
        "gpu_bytes", "--device=cpu", "--tree=tiny", file, folder=example_loading.BENCHMARKS
    ) as script:
        monkeypatch.setattr(script, "CASES", {"wd_optax": script.CASES["wd_optax"]})
        script.main([])
    expected = 2 * (1001 + 1002) / 2 / 15  # of kernels 1 and 2, read and written, in two steps; 15 parameters
    found = json.loads((tmp_path / "bytes.json").read_text())
    assert found[0]["bytes per parameter"] == pytest.approx(expected)
    assert f"tiny, wd_optax: {expected:.2f} bytes per parameter by ncu, at least 28" in capsys.readouterr().out


def test_without_ncu_no_bytes_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    with example_loading.flagged("gpu_bytes", folder=example_loading.BENCHMARKS) as script:
        script.main([])
    assert "not measured, because ncu" in capsys.readouterr().out


def test_the_cases_of_bytes_are_the_steps_that_they_name() -> None:
    script = example_loading.load("gpu_bytes", example_loading.BENCHMARKS)
    steps = example_loading.load("jax_steps", example_loading.BENCHMARKS)
    for name, case in script.CASES.items():
        load, block = map(json.loads, script.lines(case, "tiny", 3).splitlines())
        assert block == ["block", [case.variant, 3], {}]
        if case.script == "jax_steps.py":
            left = [v for v in steps.VARIANTS[case.optimizer] if not any(w in v for w in load[2]["without"])]
            assert (["stream", "copy", *left])[case.variant] == name


def test_each_test_that_assumes_a_cpu_exists() -> None:
    for key in cpu_only.REASONS:
        file, _, function = key.partition("::")
        text = (pathlib.Path(__file__).parent / file).read_text()
        assert not function or f"def {function}(" in text, key


@pytest.mark.optax_promotes
def test_a_device_that_is_not_there_can_be_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = example_loading.load("gpu_programs", example_loading.BENCHMARKS)
    variants = sys.modules["jax_steps"].VARIANTS["adamw_bf16"]
    leaves = len(sys.modules["trees"].TREES["mlp"]())
    counts, _ = programs.program(variants["wd_optax, stochastic"](), "mlp", "bfloat16", programs.device("cpu"))
    assert counts["fusion"] >= leaves
    monkeypatch.setattr(programs.topologies, "get_topology_desc", lambda *_, **__: jax.devices("tpu"))
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    with pytest.raises(app.UsageError, match=r"JAX can't compile for CUDA here \(.*pip install 'wd_optax\[cuda\]'"):
        programs.device("cuda")
