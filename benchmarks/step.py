"""Cost of an optimizer step of this library, Optax and torch, relative to the machine's bandwidth, in one run.

Only ratios are comparable between machines. Blocks of steps of all variants are interleaved in an order that is drawn
anew in each round; JAX and torch run in separate processes, one sleeping while the other computes, with their default
threads (torch on a CPU: the faster of one and all). With --turns each of them starts anew for each of its turns, and
has the device's memory alone. Steps are jitted, parameters and state donated. Every leaf decays, so that all variants
compute the same.

A step must read gradients, and read and write parameters and state. The limit is the time for that many bytes at the
best bandwidth of p ← 0.999·p in place and of a copy, of 64 Mi float32 numbers; trees that fit in cache exceed it.
B/param is the compiled program's own count (on a TPU prefetches into on-chip memory are counted twice); compile is in
seconds, including tracing.

    python benchmarks/step.py                                        # takes ~6 minutes on a laptop CPU
    python benchmarks/step.py --trees=mlp,resnet50 --optimizers=adamw,sgdw,lion --rounds=15
    python benchmarks/step.py --device=gpu --json=step.json --out=step.png   # `make gpu-step` has the sizes for a GPU
"""

import contextlib
import datetime
import functools
import json
import math
import os
import pathlib
import random
import statistics
import sys
from typing import Any

import jax_steps
import trees
from absl import app, flags
from goals import goals, verdict
from workers import Worker, find_torch, memory

_TREES = flags.DEFINE_list("trees", ["leaf", "gpt2", "many", "mlp"], f"Of {', '.join(trees.TREES)}.")
_OPTIMIZERS = flags.DEFINE_list("optimizers", ["adamw"], f"Of {', '.join(jax_steps.VARIANTS)}.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Blocks of each variant.", lower_bound=3)
_BLOCK = flags.DEFINE_float("block", 0.05, "Minimal seconds per block.", lower_bound=0)
_TURNS = flags.DEFINE_integer(
    "turns", 0, "JAX and torch take so many turns each, alone on the device; 0: they run beside each other.", 0
)
_WITHOUT = flags.DEFINE_list("without", [], "Leaves out the variants with one of these words, such as monitor.")
_STREAM = flags.DEFINE_integer("stream", 2**26, "Float32 numbers in the array that is updated and copied.", 1)
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu", "tpu"], "JAX's platform; torch runs on CPU and CUDA.")
_TORCH = flags.DEFINE_string("torch_python", sys.executable, "Python interpreter with torch, for its process.")
_JSON = flags.DEFINE_string("json", None, "JSON file for all block times, with versions, device and date.")
_TEXT = flags.DEFINE_string("text", None, "Folder for the compiled programs of JAX, to read.")
_GOALS = flags.DEFINE_bool("goals", False, "Print the goals for a GPU, and whether they are reached.")
_OUT = flags.DEFINE_string("out", None, "PNG file for the bar chart.")

STREAMS = ("stream", "copy")  # what these variants reach is the limit


def measure(workers: list[Worker], tree: str, optimizer: str, *, rounds: int, turns: int, **load: Any) -> list[Any]:
    """Returns a row per variant: its properties, and the seconds per step of each block.

    With `turns` a worker has the device to itself while it measures, and ends after each of its turns.
    """
    shapes = trees.TREES[tree]()
    about = {"tree": tree, "optimizer": optimizer, "parameters": trees.size(shapes), "leaves": len(shapes)}
    dtype = "bfloat16" if optimizer.endswith("_bf16") else "float32"
    groups = [[worker] for turn in range(turns) for worker in workers[:: (-1) ** turn]] or [workers]
    rows: dict[Any, dict[str, Any]] = {}
    for group in groups:
        for found in _interleave(group, (tree, optimizer, dtype), rounds, load):
            row = rows.setdefault((found["variant"], found.get("threads")), about | found | {"seconds": []})
            row["seconds"] += found["seconds"]
        for worker in group if turns else ():
            worker.close()
    return list(rows.values())


def _interleave(workers: list[Worker], case: tuple[str, ...], rounds: int, load: dict[str, Any]) -> Any:
    """Measures blocks of all variants of the workers, in an order that is drawn anew in each round."""
    rows, blocks = [], []
    for worker in workers:
        if (variants := worker.ask("load", *case, **load)) is None:
            raise RuntimeError(f"{' '.join(worker.command)}: the gradients of {case[0]} don't fit in memory")
        for i, known in enumerate(variants):
            block = functools.partial(worker.ask, "block", i)
            rows.append(known | {"seconds": [block(3)]})  # determines the number of steps
            blocks.append((rows[-1]["seconds"], block))
    order, blocks = random.Random(0), [(seconds, block) for seconds, block in blocks if seconds[0] is not None]
    for _ in range(rounds):
        for seconds, block in order.sample(blocks, len(blocks)):
            seconds.append(block(max(3, math.ceil(_BLOCK.value / seconds[-1]))))
    return [row | {"seconds": row["seconds"][1:]} for row in rows]


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds medians, GB/s and ratios to the rows of `measure`, and selects the fastest thread count."""
    best: dict[str, dict[str, Any]] = {}
    for row in sorted((row for row in rows if row["seconds"]), key=lambda row: -statistics.median(row["seconds"])):
        best[row["variant"]] = row
    failed = [row | {"failed": "out of memory"} for row in rows if not row["seconds"]]
    rows = [row for row in rows if row is best.get(row["variant"])]
    median = {row["variant"]: statistics.median(row["seconds"]) for row in rows}
    limit = max(row["floor"] / median[name] for name, row in best.items() if name.startswith(STREAMS))
    steps = [name for name in median if not name.startswith(STREAMS)]
    against = {"first": next(iter(steps), ""), "optax": "optax", "torch": "torch fused"}
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
    return found + failed


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
            + row.get("failed", "")
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
        bars = [row for row in rows if "ms" in row and not row["variant"].startswith(STREAMS)][::-1]
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
    workers = [Worker(sys.executable, "jax_steps.py", _DEVICE.value, memory(_TURNS.value))]
    if why := find_torch(_TORCH.value, _DEVICE.value):
        print(f"without torch ({why}): pip install 'wd_optax[benchmarks]', or --torch_python=PATH of a Python with it")
    else:
        workers.append(Worker(_TORCH.value, "torch_steps.py", _DEVICE.value, {}))
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.close)
        about = describe(workers)
        print(*(f"{key}: {value}" for key, value in about.items()), sep="\n")
        measure_all(workers, names, about)


def describe(workers: list[Worker]) -> dict[str, Any]:
    """Date, device and versions; raises if JAX has no such device."""
    answers = [worker.ask("about") for worker in workers]
    if "error" in answers[0]:
        raise app.UsageError(f"--device={_DEVICE.value}: JAX finds no such device: {answers[0]['error']}")
    for worker in workers if _TURNS.value else ():
        worker.close()
    about = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "device": answers[0]["device"]}
    return about | {"cores": os.cpu_count(), "versions": {k: v for a in answers for k, v in a["versions"].items()}}


def measure_all(workers: list[Worker], names: list[tuple[str, str]], about: dict[str, Any]) -> None:
    """Prints and writes the results after each tree and optimizer, because a long run may be interrupted."""
    for path in filter(None, (_JSON.value, _OUT.value)):
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"rounds": _ROUNDS.value, "turns": _TURNS.value}
    options |= {"stream": _STREAM.value, "without": _WITHOUT.value, "text": _TEXT.value}
    groups: list[list[dict[str, Any]]] = []
    reached: list[dict[str, Any]] = []
    for tree, optimizer in names:
        groups.append(summarise(measure(workers, tree, optimizer, **options)))
        print("\n" + report(groups[-1]), flush=True)
        if _GOALS.value:
            reached += goals(groups[-1])
            print(*map(verdict, goals(groups[-1])), sep="\n", flush=True)
        if _JSON.value:
            rows = [row for group in groups for row in group]
            pathlib.Path(_JSON.value).write_text(json.dumps(about | {"rows": rows, "goals": reached}, indent=1))
    if _OUT.value:
        chart(groups, _OUT.value)


if __name__ == "__main__":
    app.run(main)
