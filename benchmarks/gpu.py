"""All measurements on an NVIDIA GPU, in parts with time limits; `make gpu` runs them all, `make gpu-step` one.

    step   `step.py`: one leaf of 256 Mi, GPT-2 and 2000 small leaves in float32; one leaf and Llama 7B in bfloat16;
           against Optax and torch, fused and foreach, and the bandwidth of a copy
    bits   tests/test_gpu.py: random bits and rounding equal the CPU's
    sweep  `sweep.py`: 64 and 1024 points against loops in torch
    bytes  `gpu_bytes.py`: bytes that Nsight Compute counts, where it is installed
    suite  the tests with JAX on the GPU, less those of tests/cpu_only.py; it is interrupted at its limit

What is printed also goes to --out: a log and JSON per part, the compiled programs of the steps, and report.md, with
goals and results. A part whose command fails or takes longer than its limit doesn't keep the others from running.

    python benchmarks/gpu.py --parts=step,bits        # with a Python that has the extras test and cuda
    python benchmarks/gpu.py --trial                  # tiny sizes on a CPU: shows that everything runs
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple
from xml.etree import ElementTree

from absl import app, flags
from goals import sweep_goals

_PARTS = flags.DEFINE_list("parts", ["step", "bits", "sweep", "bytes", "suite"], "Of these, in this order.")
_TRIAL = flags.DEFINE_bool("trial", False, "Tiny sizes on a CPU: shows that everything runs, and measures nothing.")
_OUT = flags.DEFINE_string("out", "out/gpu", "Folder for logs, JSON, compiled programs and report.md.")
_TORCH = flags.DEFINE_string("torch_python", sys.executable, "A Python that has torch with CUDA.")
_SECONDS = flags.DEFINE_integer("seconds", None, "A limit for each command, in place of its own.", lower_bound=1)
_TESTS = flags.DEFINE_string("tests", "", "Arguments for pytest in the part suite, such as a file.")

ROOT = pathlib.Path(__file__).parent.parent
LEFT_OUT = "not cpu and not tpu and not interop and not exhaustive"
SUITE = (
    ("JAX_DEFAULT_MATMUL_PRECISION", "highest"),  # the default has 10 bits, and tolerances are for float32
    ("XLA_FLAGS", "--xla_gpu_deterministic_ops=true"),  # tests compare the bits of two runs
    ("XLA_PYTHON_CLIENT_PREALLOCATE", "false"),  # the processes share the GPU's memory
)


class Command(NamedTuple):
    """A step of a part: a script or module with its arguments, and the seconds after which it is interrupted."""

    arguments: list[str]
    seconds: int
    environment: tuple[tuple[str, str], ...] = ()


def commands(part: str, out: str, *, trial: bool, torch_python: str, tests: str) -> list[Command]:
    """The commands of a part."""
    device = "cpu" if trial else "gpu"
    both = [f"--device={device}", f"--torch_python={torch_python}"]
    platforms = (("JAX_PLATFORMS", "cpu" if trial else "cuda,cpu"),)
    pytest = [
        "-m",
        "pytest",
        "-q",
        "-rfE",
        "--tb=short",
        f"--junitxml={out}/{part}.xml",
        "--continue-on-collection-errors",
    ]

    def step(name: str, trees: str, optimizer: str, seconds: int, *options: str) -> Command:
        sizes = ["--trees=tiny", "--block=0.001", "--rounds=3", "--stream=4096"] if trial else [f"--trees={trees}"]
        sizes += [] if trial else ["--block=0.2", "--rounds=5", f"--stream={2**28}"]
        files = [f"--json={out}/step-{name}.json", f"--text={out}/programs"]
        what = [f"--optimizers={optimizer}", "--without=monitor,master,compensated", "--goals", *options]
        return Command(["benchmarks/step.py", *both, *sizes, *files, *what], seconds)

    sweep = ["--points=64,1024", "--settings=32x32,128x128", "--looped=8", "--repeats=3"]
    if trial:
        sweep = ["--points=4", "--settings=32x32", "--looped=2", "--repeats=1", "--epochs=1"]
    tree = ["--tree=tiny"] if trial else []
    where = tests.split() or (["tests/test_couplings.py"] if trial else [])
    workers = "2" if trial else str(min(12, os.cpu_count() or 1))
    return {
        "step": [
            step("float32", "leaf256,gpt2", "adamw", 120),
            step("bfloat16", "leaf256", "adamw_bf16", 70),
            step("llama7b", "llama7b", "adamw_bf16", 400, "--turns=2"),  # 54 GB: not both frameworks at once
            step("many", "many", "adamw", 400),
        ],
        "bits": [
            Command([*pytest, "-n", "0", "-m", "not gpu" if trial else "gpu", "tests/test_gpu.py"], 90, platforms)
        ],
        "sweep": [
            Command(["benchmarks/sweep.py", *both, *sweep, "--ways=torch,fused,sweep", f"--json={out}/sweep.json"], 180)
        ],
        "bytes": [Command(["benchmarks/gpu_bytes.py", *both, *tree, f"--json={out}/bytes.json"], 150)],
        "suite": [Command([*pytest, "-n", workers, "-m", LEFT_OUT, *where], 300, SUITE + platforms)],
    }[part]


def run(command: Command, log: Any) -> dict[str, Any]:
    """Runs a command and shows and logs what it prints; it is interrupted at its limit, and killed 20 s later."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | dict(command.environment) | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    print("$", *command.arguments, file=log, flush=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command.arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    stops = [(command.seconds, signal.SIGINT), (command.seconds + 20, signal.SIGKILL)]
    timers = [threading.Timer(seconds, lambda s=s: os.killpg(process.pid, s)) for seconds, s in stops]
    for timer in timers:
        timer.start()
    assert process.stdout
    with process.stdout:
        for line in process.stdout:
            print(line, end="", flush=True)
            print(line, end="", file=log, flush=True)
    code = process.wait()
    for timer in timers:
        timer.cancel()
    spent = time.monotonic() - began
    return {"command": " ".join(command.arguments), "code": code, "seconds": spent, "cut": spent >= command.seconds}


def find_gpu() -> str | None:
    """Why JAX has no GPU, or None if it has one."""
    code = (
        "import jax; jax.config.update('jax_platforms', 'cuda,cpu'); devices = jax.devices();"
        "assert devices[0].platform == 'gpu', f'its devices are {devices}'"
    )
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return (tried.stderr.strip().splitlines() or ["it ended without a word"])[-1] if tried.returncode else None


def outcome(path: pathlib.Path) -> list[str]:
    """What a run of pytest came to, from the XML that it wrote: a line of counts, and a line per test that failed."""
    if not path.exists():
        return [f"{path.stem}: no test has run to its end"]
    suites = list(ElementTree.parse(path).iter("testsuite"))
    count = {name: sum(int(s.get(name, 0)) for s in suites) for name in ("tests", "failures", "errors", "skipped")}
    lines = [f"{path.stem}: " + ", ".join(f"{n} {name}" for name, n in count.items())]
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for result in [*case.iter("failure"), *case.iter("error")]:
            message = (result.get("message") or "").split("\n")[0][:150]
            lines.append(f"- {case.get('classname')}::{case.get('name')}: {message}")
    return lines


def report(out: pathlib.Path, done: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: goals beside results, tests, commands, and what was printed."""
    read = lambda path: json.loads(path.read_text())
    found = [goal for path in sorted(out.glob("step-*.json")) for goal in read(path)["goals"]]
    found += sweep_goals(read(out / "sweep.json")) if (out / "sweep.json").exists() else []
    lines = ["| goal | measured | reached |", "|---|---|---|"] if found else []
    for goal in found:
        value = "not measured" if goal["value"] is None else f"{goal['value']:.3g}"
        lines.append(
            f"| {goal['goal']} | {value} | {'' if goal['reached'] is None else 'yes' if goal['reached'] else 'NO'} |"
        )
    if (out / "bytes.json").exists():
        lines += ["", "| bytes per parameter, counted by ncu | measured | least |", "|---|---|---|"]
        rows = read(out / "bytes.json")
        lines += [f"| {r['tree']}, {r['variant']} | {r['bytes per parameter']:.2f} | {r['least']} |" for r in rows]
    lines += ["", *(line for part in ("bits", "suite") if part in done for line in outcome(out / f"{part}.xml"))]
    for part, results in done.items():
        lines += ["", f"## {part}", ""]
        for r in results:
            ended = "interrupted at its limit" if r["cut"] else f"exit code {r['code']}"
            lines.append(f"`{r['command']}`: {r['seconds']:.0f} s, {ended}")
        lines += ["", "```text", (out / f"{part}.log").read_text().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Runs the parts and writes the report after each one, because a long run may be interrupted."""
    del argv
    if unknown := {*_PARTS.value} - {*_PARTS.default}:
        raise app.UsageError(f"--parts: {', '.join(unknown)}? Pass some of {', '.join(_PARTS.default)}")
    if not _TRIAL.value and (why := find_gpu()):
        fix = "install the extra: pip install 'wd_optax[test,cuda]'"
        sys.exit(
            f"benchmarks/gpu.py needs an NVIDIA GPU that JAX can use ({why}). Nothing was measured. With a GPU, {fix}"
        )
    out = pathlib.Path(_OUT.value).absolute()
    out.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"trial": _TRIAL.value, "torch_python": _TORCH.value, "tests": _TESTS.value}
    done: dict[str, list[dict[str, Any]]] = {}
    for part in _PARTS.value:
        with (out / f"{part}.log").open("w") as log:
            for command in commands(part, str(out), **options):
                limited = command._replace(seconds=_SECONDS.value or command.seconds)
                done.setdefault(part, []).append(run(limited, log))
        (out / "report.md").write_text(report(out, done))
    print("", (out / "report.md").read_text().split("\n## ")[0].rstrip(), f"\nAll of it: {out}/report.md", sep="\n")
    if failed := [r["command"] for results in done.values() for r in results if r["code"]]:
        sys.exit("These commands failed or were interrupted:\n" + "\n".join(failed))


if __name__ == "__main__":
    app.run(main)
