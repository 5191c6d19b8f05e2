"""Bytes that a step on a GPU reads from and writes to its memory, as counted by Nvidia's Nsight Compute (`ncu`).

A process does two steps or four; the difference of all kernels' bytes, halved, is one step's. Copies that aren't
kernels don't count. Without ncu on the PATH nothing is measured, and it says so.

    python benchmarks/gpu_bytes.py --json=bytes.json
"""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import trees
from absl import app, flags

_TREE = flags.DEFINE_string("tree", "leaf256", f"One of {', '.join(trees.TREES)}.")
_DEVICE = flags.DEFINE_enum("device", "gpu", ["cpu", "gpu"], "For the processes; ncu counts nothing on a CPU.")
_TORCH = flags.DEFINE_string("torch_python", sys.executable, "Python interpreter with torch, for its process.")
_JSON = flags.DEFINE_string("json", None, "A file for the results.")

METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum")


class Case(NamedTuple):
    """A step to count: the script of its process, its optimizer, and its position in what its `load` returns."""

    script: str
    optimizer: str
    variant: int
    least: int  # bytes per parameter


CASES = {
    "wd_optax": Case("jax_steps.py", "adamw", 2, 28),
    "wd_optax, stochastic": Case("jax_steps.py", "adamw_bf16", 3, 14),
    "torch fused": Case("torch_steps.py", "adamw", 2, 28),
}


def lines(case: Case, tree: str, steps: int) -> str:
    """What a worker reads: load, then one block, which takes one step more to warm up."""
    dtype = "bfloat16" if case.optimizer.endswith("_bf16") else "float32"
    options = {"stream": 1, "without": ["monitor", "foreach"], "text": None}
    calls = [["load", [tree, case.optimizer, dtype], options], ["block", [case.variant, steps], {}]]
    return "\n".join(map(json.dumps, calls))


def total(log: str) -> float:
    """The bytes of all kernels in ncu's table."""
    rows = csv.DictReader(line for line in log.splitlines() if line.startswith('"'))
    return sum(float(row["Metric Value"].replace(",", "")) for row in rows if row["Metric Name"] in METRICS)


def count(case: Case, tree: str, steps: int, *, ncu: str, python: str, device: str) -> float:
    """Bytes of all kernels of a process with one step more than `steps`."""
    script = pathlib.Path(__file__).with_name(case.script)
    # Each kernel by itself, not a CUDA graph of them (github.com/openxla/xla/issues/5755).
    environment = {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="} | os.environ
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log.csv"
        options = ["--csv", "--log-file", str(log), "--print-units", "base", "--clock-control", "none"]
        options += ["--target-processes", "all", "--metrics", ",".join(METRICS)]
        call = [ncu, *options, python, str(script), device]
        pipes: dict[str, Any] = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        ran = subprocess.run(call, input=lines(case, tree, steps), env=environment, **pipes)
        written = log.read_text() if log.exists() else ""
        if ran.returncode or not total(written):
            raise RuntimeError(f"ncu counted nothing, exit code {ran.returncode}:\n{ran.stdout}\n{written[-2000:]}")
        return total(written)


def main(argv: list[str]) -> None:
    """Counts, prints and writes after each case."""
    del argv
    if not (ncu := shutil.which("ncu")):
        print("bytes: not measured, because ncu (Nsight Compute) isn't on the PATH")
        return
    parameters, found = trees.size(trees.TREES[_TREE.value]()), []
    for name, case in CASES.items():
        python = _TORCH.value if case.script.startswith("torch") else sys.executable
        options: dict[str, Any] = {"ncu": ncu, "python": python, "device": _DEVICE.value}
        one, three = (count(case, _TREE.value, steps, **options) for steps in (1, 3))
        measured = (three - one) / 2 / parameters
        print(f"{_TREE.value}, {name}: {measured:.2f} bytes per parameter by ncu, at least {case.least}", flush=True)
        found.append({"tree": _TREE.value, "variant": name, "bytes per parameter": measured, "least": case.least})
        if _JSON.value:
            pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    app.run(main)
