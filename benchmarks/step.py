"""Cost of an optimizer step of this library, Optax and torch, relative to the machine's bandwidth, in one run.

Only ratios are comparable between machines. Blocks of steps of all variants are interleaved in an order that is drawn
anew in each round; JAX and torch run in separate processes, one sleeping while the other computes, with their default
threads (torch: the faster of one and all). Steps are jitted, parameters and state donated. Every leaf decays, so that
all variants compute the same.

A step must read gradients, and read and write parameters and state. The limit is the time for that many bytes at the
bandwidth of the best in-place p ← 0.999·p on 64 Mi float32 numbers; trees that fit in cache exceed it. B/param is the
compiled program's own count (on a TPU prefetches into on-chip memory are counted twice); compile is in seconds,
including tracing.

    python benchmarks/step.py                                        # takes ~6 minutes on a laptop CPU
    python benchmarks/step.py --trees=mlp,resnet50 --optimizers=adamw,sgdw,lion --rounds=15
    python benchmarks/step.py --device=gpu --json=step.json --out=step.png
"""

import datetime
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import jax
import jax_steps
import trees
from absl import app, flags

_TREES = flags.DEFINE_list("trees", ["leaf", "gpt2", "many", "mlp"], f"Of {', '.join(trees.TREES)}.")
_OPTIMIZERS = flags.DEFINE_list("optimizers", ["adamw"], f"Of {', '.join(jax_steps.VARIANTS)}.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Blocks of each variant.", lower_bound=3)
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu", "tpu"], "JAX's platform; torch runs on CPU and CUDA.")
_TORCH = flags.DEFINE_string("torch_python", sys.executable, "Python interpreter with torch, for its process.")
_JSON = flags.DEFINE_string("json", None, "JSON file for all block times, with versions, device and date.")
_OUT = flags.DEFINE_string("out", None, "PNG file for the bar chart.")

BLOCK = 0.05  # minimal seconds per block
TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


class TorchSteps:
    """Client of `torch_steps.TorchSteps` in its own process."""

    def __init__(self, python: str, device: str) -> None:
        script = pathlib.Path(__file__).with_name("torch_steps.py")
        self.process = subprocess.Popen(
            [python, script, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, *call: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(call), file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"torch's process ended at {call}: see its output above")
        return json.loads(answer)

    def load(self, tree: str, optimizer: str, dtype: str) -> list[dict[str, Any]]:
        """See there."""
        return self._ask("load", tree, optimizer, dtype)

    def block(self, variant: int, steps: int) -> float:
        """See there."""
        return self._ask("block", variant, steps)


def find_torch(python: str, platform: str) -> str | None:
    """The version of torch if it supports the device; otherwise None, and the reason is printed."""
    device = TORCH_DEVICES.get(platform)
    code = f"import torch; torch.empty(0, device={device!r}); print(torch.__version__)"
    tried = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if device and not tried.returncode:
        return tried.stdout.strip()
    why = (
        (tried.stderr.strip().splitlines() or [f"{python} fails"])[-1]
        if device
        else f"torch doesn't support {platform}"
    )
    print(f"without torch ({why}): pip install 'wd_optax[benchmarks]', or --torch_python=PATH of a Python with torch")
    return None


def measure(workers: Iterable[Any], tree: str, optimizer: str, rounds: int) -> list[dict[str, Any]]:
    """Returns a row per variant: its properties, and the seconds per step of each block."""
    shapes = trees.TREES[tree]()
    about = {"tree": tree, "optimizer": optimizer, "parameters": trees.size(shapes), "leaves": len(shapes)}
    dtype = "bfloat16" if optimizer.endswith("_bf16") else "float32"
    rows, blocks = [], []
    for worker in workers:
        for i, known in enumerate(worker.load(tree, optimizer, dtype)):
            rows.append(about | known | {"seconds": [worker.block(i, 3)]})
            blocks.append((rows[-1]["seconds"], functools.partial(worker.block, i)))
    order = random.Random(0)
    for _ in range(rounds):
        for seconds, block in order.sample(blocks, len(blocks)):
            seconds.append(block(max(3, math.ceil(BLOCK / seconds[-1]))))
    return [row | {"seconds": row["seconds"][1:]} for row in rows]  # the first block determined the number of steps


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds medians, GB/s and ratios to the rows of `measure`, and selects the fastest thread count."""
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -statistics.median(row["seconds"])):
        best[row["variant"]] = row
    rows = [row for row in rows if row is best[row["variant"]]]
    median = {row["variant"]: statistics.median(row["seconds"]) for row in rows}
    limit = max(row["floor"] / median[name] for name, row in best.items() if name.startswith("stream"))
    steps = [name for name in median if not name.startswith("stream")]
    against = {"first": steps[0], "optax": "optax", "torch": "torch fused"}
    found = []
    for row in rows:
        seconds = median[row["variant"]]
        low, _, high = statistics.quantiles(row["seconds"], n=4, method="inclusive")
        speed = row["floor"] / seconds
        numbers = {
            "ms": 1e3 * seconds,
            "spread": (high - low) / seconds,
            "quartiles": (1e3 * low, 1e3 * high),
            "GB/s": speed / 1e9,
            "of limit": speed / limit,
        }
        if row["variant"] in steps:
            numbers |= {f"× {key}": seconds / median[other] for key, other in against.items() if other in median}
        found.append(row | numbers)
    return found


def report(rows: list[dict[str, Any]]) -> str:
    """Formats a line per variant of one tree and optimizer."""
    columns = {"ms": "9.3f", "spread": "8.0%", "× first": "9.2f", "× optax": "9.2f", "× torch": "9.2f"}
    columns |= {"B/param": "9.1f", "GB/s": "7.1f", "of limit": "10.0%", "compile": "8.1f"}
    width = {name: int(form.split(".")[0]) for name, form in columns.items()}
    about = rows[0]
    lines = [
        f"{about['tree']}, {about['optimizer']}: {about['parameters']:,} parameters in {about['leaves']:,} leaves",
        " " * 25 + "".join(f"{name:>{width[name]}}" for name in columns),
    ]
    for row in rows:
        cells = row | ({"B/param": row["bytes"] / row["parameters"]} if "bytes" in row else {})
        name = row["variant"] + (f", {row['threads']} threads" if "threads" in row else "")
        lines.append(
            f"{name:25}"
            + "".join(f"{cells[k]:{form}}" if k in cells else " " * width[k] for k, form in columns.items())
        )
    return "\n".join(lines)


def chart(groups: list[list[dict[str, Any]]], path: str) -> None:
    """Draws a panel per tree and optimizer: a bar per variant with its spread, and the limit as a line."""
    from matplotlib.figure import Figure

    colours = {"wd_optax": "#0072B2", "optax": "#E69F00", "torch": "#D55E00"}  # Okabe & Ito
    columns = min(3, len(groups))
    deep = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(4.5 * columns, 2.6 * deep), layout="constrained")
    panels = figure.subplots(deep, columns, squeeze=False).flat
    for rows, axes in zip(groups, panels, strict=False):  # in this order zip doesn't consume a surplus panel
        bars = [row for row in rows if not row["variant"].startswith("stream")][::-1]
        names = [row["variant"] for row in bars]
        reach = [[abs(row["ms"] - row["quartiles"][i]) for row in bars] for i in (0, 1)]
        colour = [colours[name.replace(",", "").split()[0]] for name in names]
        axes.barh(names, [row["ms"] for row in bars], xerr=reach, color=colour)
        axes.axvline(bars[-1]["ms"] * bars[-1]["of limit"], color="black", linestyle="--")
        axes.set(title=f"{bars[0]['tree']}, {bars[0]['optimizer']}", xlabel="ms per step (--: the limit of the first)")
    for axes in panels:
        axes.axis("off")
    figure.savefig(path, dpi=100)


def chosen(flag: Any, table: dict[str, Any]) -> list[str]:
    """Returns the names in a list flag; raises for names that are not in the table."""
    for name in flag.value:
        if name not in table:
            raise app.UsageError(f"--{flag.name}: {name!r} is none of {', '.join(table)}")
    return flag.value


def main(argv: list[str]) -> None:
    """Measures, printing and writing after each tree and optimizer."""
    del argv
    names = [(tree, kind) for tree in chosen(_TREES, trees.TREES) for kind in chosen(_OPTIMIZERS, jax_steps.VARIANTS)]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves GPU memory for torch
    try:
        device = jax.devices(_DEVICE.value)[0]
    except RuntimeError as error:
        raise app.UsageError(f"--device={_DEVICE.value}: JAX finds no such device: {error}") from None
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "optax", "wd_optax")}
    workers: list[Any] = [jax_steps.JaxSteps()]
    if torch := find_torch(_TORCH.value, _DEVICE.value):
        versions["torch"] = torch
        workers.append(TorchSteps(_TORCH.value, TORCH_DEVICES[_DEVICE.value]))
    about = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "device": device.device_kind}
    about |= {"cores": os.cpu_count(), "versions": versions}
    print(*(f"{key}: {value}" for key, value in about.items()), sep="\n")
    for path in filter(None, (_JSON.value, _OUT.value)):
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    groups: list[list[dict[str, Any]]] = []
    with jax.default_device(device):
        for tree, optimizer in names:
            groups.append(summarise(measure(workers, tree, optimizer, _ROUNDS.value)))
            print("\n" + report(groups[-1]), flush=True)
            if _JSON.value:  # after each one, because a long run may be interrupted
                rows = [row for group in groups for row in group]
                pathlib.Path(_JSON.value).write_text(json.dumps(about | {"rows": rows}, indent=1))
    if _OUT.value:
        chart(groups, _OUT.value)


if __name__ == "__main__":
    app.run(main)
