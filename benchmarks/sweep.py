"""The cost of a grid of (η, λ): `wd.sweep` against other ways of JAX, and a loop in PyTorch.

    torch  a loop over points and batches, torch.optim.AdamW with its defaults, with one thread or all, the faster
    fused  the same with AdamW(fused=True)
    loop   the same with one jitted step and optax.adamw
    scan   a loop over points, each run one jitted program
    vmap   one jitted program for all points
    sweep  wd.sweep

All train one network (64-width-width-10, ReLU) on scikit-learn's digits, from the same initial parameters on the same
batches with all cores, and must end with the same losses. Each way has its own process; they take turns, and only one
runs at a time. Seconds exclude tracing and compiling, which are reported separately. Memory is the peak of the process,
or of its GPU's memory.

    python benchmarks/sweep.py                                  # takes ~30 minutes on two cores
    python benchmarks/sweep.py --short                          # one setting, few epochs, one minute
    python benchmarks/sweep.py --torch_python=PATH --json=sweep.json
    python benchmarks/sweep.py --device=gpu --looped=8          # all ways on a GPU
"""

import contextlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from sklearn.datasets import load_digits

_POINTS = flags.DEFINE_list("points", ["64", "1024"], "Sizes of the grid, squares.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Passes over the images in each run.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Turns of each way.", lower_bound=1)
_SETTINGS = flags.DEFINE_list("settings", ["128x128", "32x32", "128x512"], "Batch size × width; of these.")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where all ways run.")
_WAYS = flags.DEFINE_list("ways", ["torch", "fused", "loop", "scan", "vmap", "sweep"], "Ways to run, among them sweep.")
_LOOPED = flags.DEFINE_integer("looped", 64, "How many points of larger grids the loops and scan run.", lower_bound=1)
_TORCH = flags.DEFINE_string("torch_python", sys.executable, "A Python that has torch and NumPy.")
_SHORT = flags.DEFINE_bool("short", False, "One setting, 16 points, 2 epochs, 3 repeats.")
_JSON = flags.DEFINE_string("json", None, "A file for all numbers.")

HERE = pathlib.Path(__file__).parent
TORCH = ("torch", "fused")
LOOPS = (*TORCH, "loop", "scan")


class Setting(NamedTuple):
    """Sizes, and the target: points per second of `wd.sweep` as a multiple of torch's, by device."""

    batch_size: int
    width: int
    target: float
    gpu_target: float = 50

    def aim(self, device: str) -> float:
        """The target on a device."""
        return self.gpu_target if device == "gpu" else self.target

    def __str__(self) -> str:
        """The name in tables."""
        return f"batch {self.batch_size}, width {self.width}"


SETTINGS: tuple[Setting, ...] = (Setting(128, 128, 4), Setting(32, 32, 16), Setting(128, 512, 1.3))


def write_problem(path: Any, setting: Setting, points: int, epochs: int) -> None:
    """Writes images, labels, batches, initial kernels and the axes of the grid to a file for the processes."""
    side = round(points**0.5)
    if side**2 != points:
        raise ValueError(f"points: {points} isn't a square; pass one such as 64")
    images, labels = load_digits(return_X_y=True)
    x, y, rng = (images[:1347] / 16).astype(np.float32), labels[:1347].astype(np.int32), np.random.default_rng(0)
    steps = len(x) // setting.batch_size
    rows = [rng.permutation(len(x))[: steps * setting.batch_size].reshape(steps, -1) for _ in range(epochs)]
    sizes = (x.shape[1], setting.width, setting.width, 10)
    kernels = {
        f"kernel{i}": rng.normal(0, (2 / n) ** 0.5, (n, m)) for i, (n, m) in enumerate(itertools.pairwise(sizes))
    }
    axes = {"learning_rate": np.geomspace(1e-4, 1e-2, side), "weight_decay": np.geomspace(1e-4, 1e-1, side)}
    floats: dict[str, Any] = {name: array.astype(np.float32) for name, array in (kernels | axes).items()}
    np.savez(path, x=x, y=y, rows=np.concatenate(rows).astype(np.int32), **floats)


class Worker:
    """One way in its own process."""

    def __init__(self, way: str, problem: Any, torch_python: str, device: str) -> None:
        script = (torch_python, HERE / "sweep_torch.py") if way in TORCH else (sys.executable, HERE / "sweep_jax.py")
        self.way = way
        share = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ  # the processes share a GPU's memory
        self.process = subprocess.Popen(
            [*script, way, problem, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=share
        )

    def train(self, points: int) -> dict[str, Any]:
        """Sends the number of points and returns the answer of `serving.serve`."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(points, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            fix = ': pip install "wd_optax[benchmarks]", or --torch_python=PATH of a Python that has torch'
            raise RuntimeError(f"{self.way} ended; its output is above" + fix * (self.way in TORCH))
        return dict(json.loads(answer))

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def measure(
    setting: Setting,
    points: int,
    epochs: int,
    *,
    repeats: int,
    ways: list[str],
    looped: int,
    torch_python: str,
    device: str,
) -> dict[str, Any]:
    """For each way: points, seconds of each turn, compile time, bytes, and the distance of its losses from sweep's."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        problem = pathlib.Path(folder) / "problem.npz"
        write_problem(problem, setting, points, epochs)
        workers: dict[str, Worker] = {}
        first: dict[str, Any] = {}
        for way in ways:
            workers[way] = Worker(way, problem, torch_python, device)
            stack.callback(workers[way].close)
            if way in LOOPS:
                first[way] = workers[way].train(1)  # compiles, and chooses threads while nothing else runs
        sizes = {way: min(points, looped) if way in LOOPS else points for way in ways}
        turns: dict[str, list[Any]] = {way: [] for way in ways}
        for i in range(repeats):
            for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
                turns[way].append(workers[way].train(sizes[way]))
    found = {}
    for way, answers in turns.items():
        losses = np.array(answers[-1]["losses"])
        distance = np.abs(losses / np.array(turns["sweep"][-1]["losses"])[: len(losses)] - 1)
        found[way] = {
            "points": sizes[way],
            "seconds": [a["seconds"] - a["compiling"] for a in answers],
            "compiling": first.get(way, answers[0])["compiling"],
            "bytes": answers[-1]["bytes"],
            "distance": float(np.median(distance)),
        }
    return found


def report(setting: Setting, points: int, found: dict[str, Any], device: str) -> str:
    """A line per way, then whether the targets are met."""
    rate = {way: f["points"] / statistics.median(f["seconds"]) for way, f in found.items()}
    lines = [f"{setting}, {points} points"]
    lines.append(f"{'':7}points/s  spread  sweep does  compiling, s  memory, MB  loss distance")
    for way, f in found.items():
        spread = (max(f["seconds"]) - min(f["seconds"])) / statistics.median(f["seconds"])
        lines.append(
            f"{way:7}{rate[way]:8.1f}{spread:8.0%}{rate['sweep'] / rate[way]:10.2f} ×{f['compiling']:14.1f}"
            f"{f['bytes'] / 1e6:12.0f}{f['distance']:15.1g}" + (f"  on {f['points']} points" * (f["points"] < points))
        )
    for way in [way for way in TORCH if way in rate]:
        times = rate["sweep"] / rate[way]
        met = "met" if times >= setting.aim(device) else "MISSED"
        lines.append(f"at least {setting.aim(device):g} × {way}: {times:.1f} ×, {met}")
    if others := {way: r for way, r in rate.items() if way not in ("sweep", *TORCH)}:
        best = max(others, key=lambda way: others[way])
        times = rate["sweep"] / rate[best]
        lines.append(f"best other way of JAX: {best}; sweep does {times:.2f} × its points per second")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    if unknown := {*_SETTINGS.value} - {*_SETTINGS.default}:
        raise app.UsageError(f"--settings: {', '.join(unknown)}? Pass some of {', '.join(_SETTINGS.default)}")
    settings = tuple(s for s in SETTINGS if f"{s.batch_size}x{s.width}" in _SETTINGS.value)
    points, epochs, repeats = [int(n) for n in _POINTS.value], _EPOCHS.value, _REPEATS.value
    if _SHORT.value:
        settings, points, epochs, repeats = SETTINGS[1:2], [16], 2, 3
    if unknown := {*_WAYS.value} - {*_WAYS.default} or {"sweep"} - {*_WAYS.value}:
        raise app.UsageError(f"--ways: {', '.join(unknown)}? Pass sweep, and any of {', '.join(_WAYS.default)}")
    version = importlib.metadata.version("jax")
    print(f"jax {version}, {os.cpu_count()} cores, {epochs} epochs, {repeats} turns; medians", flush=True)
    options: dict[str, Any] = {
        "repeats": repeats,
        "ways": _WAYS.value,
        "looped": _LOOPED.value,
        "torch_python": _TORCH.value,
        "device": _DEVICE.value,
    }
    everything = []
    for setting in settings:
        for n in points:
            found = measure(setting, n, epochs, **options)
            about = {**setting._asdict(), "device": _DEVICE.value, "target": setting.aim(_DEVICE.value)}
            everything.append({**about, "grid": n, "epochs": epochs, "ways": found})
            print("", report(setting, n, found, _DEVICE.value), sep="\n", flush=True)
            if _JSON.value:  # after each one, because a long run may be interrupted
                pathlib.Path(_JSON.value).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    app.run(main)
