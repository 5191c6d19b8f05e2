"""What a search finds: the best of 256 trials of `wd.search` against a grid of 256, and trials per second.

Five hyperparameters of AdamW (η, λ, 1 − β₁, 1 − β₂, warm-up) of an MLP on scikit-learn's digits, one in five labels
random, by the validation loss. The grid has 4 × 4 × 2 × 2 × 4 points in the middles of equal cells of the same space.
The best of many trials flatters itself, so each best point is trained again with other seeds and measured on test
images. torch trains the same network on the same batches in a loop that Optuna drives; both must reach the same loss.
Rates are without compiling, which is reported once: the other searches find the program in a cache.

    python benchmarks/search.py --torch_python=PATH --json=search.json   # about 10 minutes on two cores
    python benchmarks/search.py --short
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import sweep_jax
from absl import app, flags, logging
from scipy import stats
from sklearn.datasets import load_digits

import wd_optax as wd

_TRIALS = flags.DEFINE_integer("trials", 256, "Trials of a search.", lower_bound=16)
_BATCH = flags.DEFINE_integer("batch", 32, "Trials that are asked for at a time.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Searches with each sampler.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Passes over the training images.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each trial.", lower_bound=1)
_FRESH = flags.DEFINE_integer("fresh", 16, "Runs of each best point with other seeds.", lower_bound=2)
_TORCH = flags.DEFINE_string("torch_python", None, "A Python with torch, NumPy and Optuna; without it torch isn't run.")
_TORCH_TRIALS = flags.DEFINE_integer("torch_trials", 32, "Trials of torch's loop.", lower_bound=1)
_SHORT = flags.DEFINE_bool("short", False, "Few trials, epochs and repeats: one minute.")
_JSON = flags.DEFINE_string("json", None, "A file for all numbers.")

WIDTH, BATCH_SIZE, TARGET = 32, 32, 4.0
LOG, LINEAR = True, False
SPACE: dict[str, tuple[float, float, bool]] = {  # low, high, on a logarithmic scale
    "learning_rate": (1e-4, 1e-1, LOG),
    "weight_decay": (1e-3, 10.0, LOG),
    "one_minus_b1": (0.01, 0.5, LOG),
    "one_minus_b2": (1e-4, 0.1, LOG),
    "warm_up": (0.0, 0.5, LINEAR),  # of the steps
}
GRID = {"learning_rate": 4, "weight_decay": 4, "one_minus_b1": 2, "one_minus_b2": 2, "warm_up": 4}
SAMPLERS: dict[str, Any] = {
    "TPE": lambda seed, batch: optuna.samplers.TPESampler(seed=seed),
    "CMA-ES": lambda seed, batch: optuna.samplers.CmaEsSampler(seed=seed, popsize=batch),
    "random": lambda seed, batch: optuna.samplers.RandomSampler(seed=seed),
}


def make_problem(epochs: int) -> dict[str, np.ndarray]:
    """Images and noisy labels for training, for validation and for the test, and the rows of each batch."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    noisy = np.where(rng.random(500) < 0.2, rng.integers(10, size=500), y[:500]).astype(np.int32)
    rows = [rng.permutation(500)[: 500 // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE) for _ in range(epochs)]
    sets = {"x": x[:500], "y": noisy, "x_valid": x[500:1000], "y_valid": y[500:1000], "x_test": x[1000:]}
    return sets | {"y_test": y[1000:], "rows": np.concatenate(rows).astype(np.int32)}


def initial_params(key: jax.Array) -> dict[str, jax.Array]:
    """64-32-32-10, He's initialization."""
    sizes = list(itertools.pairwise((64, WIDTH, WIDTH, 10)))
    keys = jax.random.split(key, len(sizes))
    kernels = {f"kernel{i}": jax.random.normal(keys[i], size) * (2 / size[0]) ** 0.5 for i, size in enumerate(sizes)}
    return kernels | {f"bias{i}": jnp.zeros(size[1]) for i, size in enumerate(sizes)}


def make_train(problem: dict[str, np.ndarray]) -> Any:
    """The training function for `wd.sweep` and `wd.search`."""
    steps = len(problem["rows"])
    data = {name: jnp.asarray(array) for name, array in problem.items()}

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        warm = jnp.maximum(hparams["warm_up"] * steps, 1.0)
        tx = wd.adamw(
            lambda t: hparams["learning_rate"] * jnp.minimum((t + 1) / warm, 1.0),
            weight_decay=hparams["weight_decay"],
            b1=1 - hparams["one_minus_b1"],
            b2=1 - hparams["one_minus_b2"],
            mask=None,
        )
        params = initial_params(key)
        step = lambda carry, rows: (sweep_jax.step(tx, carry, data["x"][rows], data["y"][rows]), None)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), data["rows"])
        loss = {part: sweep_jax.loss_fn(params, data[f"x_{part}"], data[f"y_{part}"]) for part in ("valid", "test")}
        return {"valid": loss["valid"], "test": loss["test"]}

    return train


def grid_axes() -> dict[str, np.ndarray]:
    """The middles of equal cells."""
    axes = {}
    for name, count in GRID.items():
        low, high, log = SPACE[name]
        share = (np.arange(count) + 0.5) / count
        axes[name] = low * (high / low) ** share if log else low + (high - low) * share
    return axes


def fresh(train: Any, hparams: dict[str, Any], seeds: int) -> np.ndarray:
    """Test losses of a point with seeds that chose nothing."""
    axes = {name: [value] for name, value in hparams.items()}
    return np.ravel(wd.sweep(train, axes, seeds=range(1000, 1000 + seeds), progress=False).data["test"].values)


def compare(train: Any, trials: int, batch: int, repeats: int, seeds: int, again: int) -> dict[str, Any]:
    """For the grid and each sampler: the validation loss of the best, and its test losses with other seeds."""
    space = {n: optuna.distributions.FloatDistribution(low, high, log=log) for n, (low, high, log) in SPACE.items()}
    grid = wd.sweep(train, grid_axes(), seeds=seeds, progress=False).best("valid", "min")
    found: dict[str, Any] = {"grid": [{"valid": grid.mean, "test": fresh(train, grid.hyperparams, again).tolist()}]}
    clock = sweep_jax.compiling()
    for name, make in SAMPLERS.items():
        found[name] = []
        for seed in range(repeats):
            compiled, began = clock(), time.perf_counter()
            options = {"trials": trials, "batch": batch, "seeds": seeds, "sampler": make(seed, batch)}
            result = wd.search(train, space, metric="valid", mode="min", progress=False, **options)
            times = {"seconds": time.perf_counter() - began, "compiling": clock() - compiled}
            best = result.best
            test = fresh(train, best.hyperparams, again).tolist()
            found[name].append({"valid": best.mean, "test": test, **times, "point": best.hyperparams})
    return found


def torch_loop(problem: dict[str, np.ndarray], train: Any, trials: int, python: str) -> dict[str, Any]:
    """Seconds of torch's loop, and its loss at one point beside ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "problem.npz"
        key = jax.random.key(0, impl="threefry2x32")
        start = {name: np.asarray(array) for name, array in initial_params(key).items()}
        arrays: dict[str, Any] = problem | start
        np.savez(path, **arrays)
        script = pathlib.Path(__file__).parent / "search_torch.py"
        command = [python, str(script), str(path), str(trials), json.dumps(SPACE)]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = dict(json.loads(answer))
    ours = jax.jit(train)({name: jnp.float32(value) for name, value in found["point"].items()}, key)
    return found | {"ours": float(ours["valid"])}


def report(found: dict[str, Any], trials: int, torch: dict[str, Any] | None) -> str:
    """A line for the grid and each sampler, then trials per second."""
    lines = ["           best validation loss   its test loss with other seeds   trials/s"]
    for name, runs in found.items():
        valid, test = np.array([r["valid"] for r in runs]), np.array([np.mean(r["test"]) for r in runs])
        rate = f"{_rate(runs, trials):.1f}" if "seconds" in runs[0] else ""
        lines.append(f"{name:11}{_spread(valid):23}{_spread(test):33}{rate}".rstrip())
    grid = np.mean(found["grid"][0]["test"])
    for name in SAMPLERS:
        better = sum(np.mean(r["test"]) < grid for r in found[name])
        lines.append(f"{name} beats the grid on test images in {better} of {len(found[name])} searches")
    if torch is not None:
        theirs = torch["trials"] / torch["seconds"]
        times = _rate(found["TPE"], trials) / theirs
        lines.append(f"{torch['version']}, {torch['threads']} threads: {theirs:.2f} trials/s")
        lines.append(f"at one point torch ends at a loss of {torch['loss']:.5f}, JAX at {torch['ours']:.5f}")
        met = "met" if times >= TARGET else "MISSED"
        lines.append(f"at least {TARGET:g} × torch: {times:.1f} ×, {met}")
    return "\n".join(lines)


def _rate(runs: list[dict[str, Any]], trials: int) -> float:
    """Trials per second, the median over searches."""
    return float(np.median([trials / (r["seconds"] - r["compiling"]) for r in runs]))


def _spread(values: np.ndarray) -> str:
    half = f" ± {stats.t.ppf(0.975, len(values) - 1) * stats.sem(values):.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{half}"


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    jax.config.update("jax_logging_level", "WARNING")
    logging.set_verbosity(logging.WARNING)
    trials, repeats, epochs, again = _TRIALS.value, _REPEATS.value, _EPOCHS.value, _FRESH.value
    torch_trials = _TORCH_TRIALS.value
    if _SHORT.value:
        trials, repeats, epochs, again, torch_trials = 64, 2, 2, 4, 8
    problem = make_problem(epochs)
    train = make_train(problem)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        found = compare(train, trials, _BATCH.value, repeats, _SEEDS.value, again)
        torch = torch_loop(problem, train, torch_trials, _TORCH.value) if _TORCH.value else None
    versions = f"jax {jax.__version__}, optuna {optuna.__version__}"
    print(f"{versions}, {os.cpu_count()} cores: {trials} trials of {epochs} epochs, {_BATCH.value} at a time,")
    print(f"{_SEEDS.value} seeds; ± is half of the mean's 95 % interval over {repeats} searches")
    print(report(found, trials, torch))
    print(f"compiling a search: {found['TPE'][0]['compiling']:.1f} s")
    if _JSON.value:
        content = {"trials": trials, "epochs": epochs, "found": found, "torch": torch}
        pathlib.Path(_JSON.value).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).parent))
    app.run(main)
