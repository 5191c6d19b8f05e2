"""The ways of `sweep.py` in JAX: `python sweep_jax.py WAY FILE DEVICE` serves one of them."""

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import serving

import wd_optax as wd
from wd_optax import optional

Problem = dict[str, Any]  # the arrays of `sweep.write_problem`
RATES = ("learning_rate", "weight_decay")
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu"}  # the first is the default device


def loss_fn(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a ReLU network."""
    for i in range(3):
        x = (jax.nn.relu(x) if i else x) @ params[f"kernel{i}"] + params[f"bias{i}"][None]
    loss: jax.Array = optax.softmax_cross_entropy_with_integer_labels(x, y).mean()
    return loss


def initial_params(problem: Problem) -> dict[str, jax.Array]:
    """The initial parameters of all points."""
    kernels = {f"kernel{i}": problem[f"kernel{i}"] for i in range(3)}
    return kernels | {f"bias{i}": jnp.zeros(problem[f"kernel{i}"].shape[1]) for i in range(3)}


def step(tx: optax.GradientTransformation, carry: Any, x: jax.Array, y: jax.Array) -> Any:
    """Parameters and state after one step."""
    params, opt_state = carry
    updates, opt_state = tx.update(jax.grad(loss_fn)(params, x, y), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def train(problem: Problem, tx: optax.GradientTransformation) -> jax.Array:
    """The loss after a scan over all steps."""
    x, y = problem["x"], problem["y"]
    start = (initial_params(problem), tx.init(initial_params(problem)))
    (params, _), _ = jax.lax.scan(lambda c, rows: (step(tx, c, x[rows], y[rows]), None), start, problem["rows"])
    return loss_fn(params, x, y)


def train_point(problem: Problem, learning_rate: jax.Array, weight_decay: jax.Array) -> jax.Array:
    """The loss of one point with Optax."""
    return train(problem, optax.adamw(learning_rate, weight_decay=weight_decay))


def pairs(problem: Problem, points: int) -> Iterator[tuple[Any, ...]]:
    """(η, λ) of the first points of the grid."""
    return itertools.islice(itertools.product(*(problem[name] for name in RATES)), points)


def loop(problem: Problem) -> Callable[[int], list[float]]:
    """A Python loop over points and batches around a jitted step of Optax."""

    @functools.partial(jax.jit, donate_argnums=0)
    def one(carry: Any, learning_rate: Any, weight_decay: Any, rows: Any) -> Any:
        return step(
            optax.adamw(learning_rate, weight_decay=weight_decay), carry, problem["x"][rows], problem["y"][rows]
        )

    start, batches = jax.jit(lambda: initial_params(problem)), list(problem["rows"])
    init, final = jax.jit(optax.adamw(1.0).init), jax.jit(loss_fn)

    def train_one(learning_rate: Any, weight_decay: Any) -> float:
        params = start()
        carry = (params, init(params))
        for rows in batches:
            carry = one(carry, learning_rate, weight_decay, rows)
        return float(final(carry[0], problem["x"], problem["y"]))

    return lambda points: [train_one(*pair) for pair in pairs(problem, points)]


def scan(problem: Problem) -> Callable[[int], list[float]]:
    """A Python loop over points around a jitted run."""
    run = jax.jit(functools.partial(train_point, problem))
    return lambda points: [float(run(*pair)) for pair in pairs(problem, points)]


def vmap(problem: Problem) -> Callable[[int], list[float]]:
    """All points as one vmapped, jitted run."""
    run = jax.jit(jax.vmap(functools.partial(train_point, problem)))
    return lambda points: list(run(*np.array(list(pairs(problem, points))).T).tolist())


def sweep(problem: Problem) -> Callable[[int], list[float]]:
    """The whole grid by `wd.sweep`, on all devices: on a CPU one per core."""
    for module in ("matplotlib.figure", "pandas", "tqdm", "xarray"):
        optional.require(module)  # imported before the first turn, which would be slower otherwise

    def run(points: int) -> list[float]:
        del points

        def at(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
            del key
            return {"loss": train(problem, wd.adamw(**hparams, mask=None))}

        result = wd.sweep(at, {name: problem[name] for name in RATES}, seeds=1, progress=False)
        return list(result.data["loss"].values.ravel().tolist())

    return run


WAYS = {way.__name__: way for way in (loop, scan, vmap, sweep)}


def compiling() -> Callable[[], float]:
    """A clock of the time spent tracing, lowering and compiling."""
    spans: list[tuple[float, float]] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            spans.append((now - duration_secs, now))

    def spent() -> float:
        total, end = 0.0, 0.0
        for began, ended in sorted(spans):  # spans may be nested
            total, end = total + max(ended - max(began, end), 0), max(ended, end)
        return total

    jax.monitoring.register_event_duration_secs_listener(listen)
    return spent


def device_bytes() -> int:
    """Peak memory of the GPU, of arrays and temporary ones."""
    return int((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))


def main(way: str, path: str, device: str) -> None:
    """Serves the problem in a file."""
    jax.config.update("jax_logging_level", "WARNING")
    jax.config.update("jax_platforms", PLATFORMS[device])
    if way == "sweep":
        jax.config.update("jax_num_cpu_devices", os.cpu_count())
    if jax.default_backend() != device:  # without the plugin JAX falls back on the CPU
        sys.exit(f"--device={device}: JAX finds no such device, but {jax.devices()}")
    clock = compiling()
    problem = {name: array if name in RATES else jnp.asarray(array) for name, array in np.load(path).items()}
    serving.serve(WAYS[way](problem), clock, serving.peak_bytes if device == "cpu" else device_bytes)


if __name__ == "__main__":
    main(*sys.argv[1:])
