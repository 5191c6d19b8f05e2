"""Startup cost: tracing and compiling the step, `init`, and the import, compared with Optax's in one run.

Only ratios are comparable between machines; all alternate. Caches are cleared before each compilation, as in a fresh
process. wd.adamw has its default mask, Optax's has none: then its program has one kernel less. "masked" is Optax's with
the same mask. "monitored" is wd.adamw in `wd.monitor_decay`, and its ratios are to wd.adamw.

    python benchmarks/startup.py                     # takes ~5 minutes on a laptop CPU
    python benchmarks/startup.py --leaves=10,100 --rounds=9
"""

import functools
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import trees
from absl import app, flags

import wd_optax as wd

_LEAVES = flags.DEFINE_list("leaves", ["10", "100", "2000"], "Sizes of the trees.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each.", lower_bound=3)
_JSON = flags.DEFINE_string("json", None, "JSON file for all measurements.")

OPTIMIZERS = {
    "wd_optax": lambda: wd.adamw(1e-3, weight_decay=0.1),
    "optax": lambda: optax.adamw(1e-3, weight_decay=0.1),
    "masked": lambda: optax.adamw(
        1e-3, weight_decay=0.1, mask=lambda params: {path: "kernel" in path for path in params}
    ),
    "monitored": lambda: wd.monitor_decay(wd.adamw(1e-3, weight_decay=0.1)),
}
MODULES = ("wd_optax", "optax")


def now() -> Any:
    """Wall clock and CPU seconds of this process; the latter are less disturbed by other processes."""
    return np.array([time.perf_counter(), time.process_time()])


def step_seconds(tx: optax.GradientTransformation, params: Any) -> dict[str, Any]:
    """Seconds to trace and lower the jitted, donated step, to compile it, and both."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    jax.clear_caches()
    began = now()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    traced = now()
    lowered.compile()
    ended = now()
    return {"trace": traced - began, "compile": ended - traced, "trace + compile": ended - began}


def import_seconds(module: str, cache: str) -> Any:
    """Import time in a new process, with its own bytecode folder, because the environment's may be read-only."""
    clocks = "[time.perf_counter(), time.process_time()]"
    code = f"import time; began = {clocks}; import {module}; print([began, {clocks}])"
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": cache}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return np.diff(json.loads(ran.stdout), axis=0)[0]


def begin(name: str, size: int) -> dict[str, Any]:
    """Seconds of everything but the import, for a tree of `size` leaves."""
    tx, params = OPTIMIZERS[name](), {path: jnp.ones(shape) for path, shape in trees.many(size, 8).items()}
    tx.init(params)
    began = now()
    jax.block_until_ready(tx.init(params))
    return {"init": now() - began, **step_seconds(tx, params)}


def measure(sizes: Iterable[int], rounds: int) -> dict[str, dict[str, list[list[float]]]]:
    """{what: {name of `OPTIMIZERS`: [wall, CPU] seconds of each round}}."""
    works: dict[str, Callable[[str], dict[str, Any]]] = {
        f", {size:,} leaves": functools.partial(begin, size=size) for size in sizes
    }
    found: dict[str, dict[str, list[list[float]]]] = {}
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as cache:
        works[""] = lambda name: {"import": import_seconds(name, cache)}
        for of, work in works.items():
            for i in range(rounds + 1):  # the first is a warm-up
                names = list(OPTIMIZERS if of else MODULES)
                for name in order.sample(names, len(names)):
                    spent = work(name)
                    for what, clocks in spent.items() if i else ():
                        found.setdefault(what + of, {}).setdefault(name, []).append(clocks.tolist())
    return found


def report(found: dict[str, dict[str, list[list[float]]]]) -> str:
    """Formats medians in ms, their ratio, and the ratio of CPU seconds; a block for each pair of optimizers."""
    lines = []
    for ours, theirs in (("wd_optax", "optax"), ("wd_optax", "masked"), ("monitored", "wd_optax")):
        lines.append(f"{'median ms':40}{ours:>10}{theirs:>10}{'ratio':>8}{'of CPU':>8}")
        for what, of in found.items():
            if ours in of and theirs in of:
                lines.append(_line(what, *(1e3 * np.median(of[name], axis=0) for name in (ours, theirs))))
    return "\n".join(lines)


def _line(what: str, ours: Any, theirs: Any) -> str:
    wall, cpu = ours / theirs
    return f"{what:40}{ours[0]:10.2f}{theirs[0]:10.2f}{wall:8.2f}{cpu:8.2f}"


def main(argv: list[str]) -> None:
    """Measures, prints and writes the results."""
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    found = measure(map(int, _LEAVES.value), _ROUNDS.value)
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].device_kind}\n{report(found)}")
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    app.run(main)
