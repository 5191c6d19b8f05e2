"""Train a whole grid of hyperparameters in one compiled program."""

import contextlib
import importlib.metadata
import numbers
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from absl import logging

from wd_optax.sweeping import gathered, hosts, plan, traced
from wd_optax.sweeping import grid as grids
from wd_optax.sweeping.execute import Executor
from wd_optax.sweeping.extras import need
from wd_optax.sweeping.result import SweepResult
from wd_optax.sweeping.store import Store


def sweep(
    train: Callable[[dict[str, Any], jax.Array], dict[str, Any]],
    axes: dict[str, Any],
    *,
    seeds: Any = 3,
    devices: Any = None,
    chunk: int | None = None,
    directory: Any = None,
    progress: bool = True,
) -> SweepResult:
    """Trains every point of a grid with every seed, many side by side: metrics = train(point, key(seed)).

    `train` is traced and compiled once for each combination of static values, whatever the grid's size (a second time
    only where the first program doesn't fit memory), and mapped with `vmap` over blocks of runs (a run is a point and a
    seed), a block on each device at a time. At every point a seed is the same `jax.random.key(seed)`: runs of one seed
    are paired.

    Args:
      train: a pure function (hparams, key) -> {metric: number or array}, the same names and shapes for all points.
        hparams is a dict with the axes' names: traced scalars, float32 or int32 (JAX's default types), to hand on as in
        `wd.adamw(hparams["learning_rate"], weight_decay=hparams["weight_decay"])`, and static values as they are.
      axes: {name: values}. Numbers are traced. Other values are static: texts and None by themselves, functions by
        their `__name__`. A dict {label: value} is static whatever it holds: {"32": 32, "64": 64} for a layer's width.
      seeds: how many, or a list of them.
      devices: a list; by default all of `jax.devices()`, over all processes under `jax.distributed`. On a CPU, one
        for each core is best: `jax.config.update("jax_num_cpu_devices", os.cpu_count())` before the first array.
      chunk: how many runs at a time, on all devices together. By default as many as the compiled program's memory
        analysis lets fit free memory, on a CPU also the cache; but eight chunks or more, if they stay wide enough.
      directory: a folder that keeps every finished chunk (not on Windows: it is locked with flock). The same call
        resumes after a crash and ends with the same bits. In a multi-host job, process 0 alone uses it.
      progress: whether to show a bar (there is none without a terminal).

    Returns:
      A `SweepResult`: `.data` (an `xarray.Dataset`; how it ran is in its attrs), `.best`, `.heatmap`, `.separability`.
      Each run equals `train` alone: on a CPU bit for bit where runs are elementwise, else up to rounding, for XLA
      orders the sums of a batched product otherwise. The bits depend on the number of runs side by side on a device,
      and not on the number of devices.

    Raises:
      ImportError: without xarray, or tqdm: pip install "wd_optax[sweep]".
      TypeError, ValueError: for axes, seeds, chunk or what train returns, by name; for a hyperparameter that doesn't
        trace; for a directory of another sweep, with what differs.
      RuntimeError: for a directory that another process uses.
      OSError: for a full disk or a folder that can't be written; finished chunks are safe.

    Example: twelve runs of a quadratic; η = 0.1 and λ = 0 come nearest to its minimum.
      >>> import jax, jax.numpy as jnp, optax, wd_optax as wd
      >>> from wd_optax.sweeping.sweep import sweep
      >>> def train(hparams, key):
      ...     tx = wd.sgdw(hparams["learning_rate"], weight_decay=hparams["weight_decay"], mask=None)
      ...     def step(carry, _):
      ...         w, state = carry
      ...         updates, state = tx.update(w - 1, state, w)
      ...         return (optax.apply_updates(w, updates), state), None
      ...     w = jax.random.normal(key)
      ...     (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=50)
      ...     return {"distance": abs(w - 1)}
      >>> result = sweep(train, {"learning_rate": [0.01, 0.1], "weight_decay": [0.0, 0.1, 1.0]}, seeds=2)
      >>> print(dict(result.data.sizes), result.best("distance", mode="min").hyperparams)
      {'learning_rate': 2, 'weight_decay': 3, 'seed': 2} {'learning_rate': 0.1, 'weight_decay': 0.0}

    """
    need("xarray")
    tqdm = need("tqdm").tqdm
    if chunk is not None and (not isinstance(chunk, numbers.Integral) or isinstance(chunk, bool) or chunk < 1):
        raise ValueError(f"chunk={chunk!r}: pass a whole number of runs, at least 1, or None")
    grid = grids.make(axes, seeds)
    programs = list(grid.programs())
    functions = [traced.trace(train, program) for program in programs]
    found = gathered.Gathered(gathered.common(programs, functions), grid.size)
    each = len(programs[0].runs)
    used = _devices(devices, min(each, chunk or each))
    width = None if chunk is None else plan.even(-(-each // len(used)), chunk // len(used))
    manifest = _manifest(grid, programs, functions, found, used)
    with contextlib.ExitStack() as stack:
        store, kept = _open(directory, manifest, width, found, stack)
        widths = ({str(program): width for program in programs} if width else {}) | kept
        quiet = None if progress and hosts.leads() else True  # None: silent without a terminal
        bar = tqdm(total=grid.size, initial=int(found.done.sum()), unit="run", disable=quiet)
        stack.enter_context(bar)
        for program, function in zip(programs, functions, strict=True):
            if found.done[program.runs].all():
                continue
            bar.set_description(f"compiling {program}")
            executor = Executor(function, program, used)
            compiled, chosen = _compile(executor, widths.get(str(program)))
            widths[str(program)] = chosen
            if store:
                store.start(widths)
            bar.set_description("sweep")
            logging.info("sweep: %d runs for %s: %s", each, program, _attrs([chosen], used)["strategy"])
            _run(executor, compiled, chosen, found, store, bar)
        if directory is not None:
            found.share()
    return SweepResult(found.dataset(grid, _attrs(widths.values(), used)))


def _devices(devices: Any, most: int) -> list[Any]:
    """The devices; a process alone leaves those idle that would have nothing to do."""
    found = list(jax.devices() if devices is None else devices)
    processes = {device.process_index for device in found}
    if len(processes) < jax.process_count():
        raise ValueError(f"devices={found}: every process needs one: pass jax.devices(), not jax.local_devices()")
    cores = os.cpu_count() or 1
    if len(found) == 1 and found[0].platform == "cpu" and cores > 1:
        hint = 'jax.config.update("jax_num_cpu_devices", %d) before the first array would use them side by side'
        logging.info(f"sweep: one CPU device on %d cores: {hint}", cores, cores)
    return found[:most] if len(processes) == 1 else found


def _manifest(grid: Any, programs: Any, functions: Any, found: Any, devices: Any) -> dict[str, Any]:
    """All that the numbers depend on, as JSON has it."""
    import wd_optax

    versions = {"wd_optax": wd_optax.__version__} | {p: importlib.metadata.version(p) for p in ("jax", "jaxlib")}
    metrics = {name: [list(m.shape), str(m.dtype)] for name, m in found.metrics.items()}
    return {
        "versions": versions,
        "device": devices[0].device_kind,
        "axes": {axis.name: axis.labels for axis in grid.axes},
        "seeds": grid.seeds,
        "metrics": metrics,
        "train": {str(program): function.fingerprint for program, function in zip(programs, functions, strict=True)},
    }


def _open(directory: Any, manifest: Any, width: int | None, found: Any, stack: Any) -> tuple[Store | None, Any]:
    """Process 0's store, and the width of each program's blocks in it; the runs that it holds are in `found`."""
    if directory is None:
        return None, {}
    store = None

    def read() -> list[Any]:
        nonlocal store
        store = Store(directory, manifest, width)
        stack.callback(store.close)
        for runs, arrays in store.load():
            found.add(runs, dict(zip(found.metrics, arrays, strict=True)))
        return [store.widths, np.flatnonzero(found.done).tolist()]

    widths, done = hosts.from_leader(read)
    found.done[done] = True
    return store, widths


def _compile(executor: Executor, width: int | None) -> tuple[Any, int]:
    """The program for one chunk, and how many runs each device trains in it."""
    if width is not None:
        return executor.compile(width), width
    mine, compiled = plan.fit(executor.compile, len(executor.program.runs), executor.devices)
    width = hosts.least(mine)
    return (compiled if width == mine else executor.compile(width)), width


def _run(
    executor: Executor, compiled: Any, width: int, found: gathered.Gathered, store: Store | None, bar: Any
) -> None:
    """Trains what isn't done yet, a chunk at a time."""
    runs, devices = executor.program.runs, len(executor.devices)
    pending = [i for i in range(-(-len(runs) // width)) if not found.done[runs[i * width]]]
    for i in range(0, len(pending), devices):
        where, metrics = executor.launch(compiled, pending[i : i + devices], width)
        floats = found.clean(metrics)
        found.add(where, floats)
        if store:
            store.save(where, floats)
        bar.update(len(where))
        bar.set_postfix(diverged=int(found.diverged.sum()))


def _attrs(widths: Iterable[int], devices: list[Any]) -> dict[str, Any]:
    """How it ran."""
    least, most = min(widths), max(widths)
    runs = f"{least} to {most}" if least < most else most
    return {
        "strategy": f"{runs} runs side by side (vmap) on each of {len(devices)} devices (shard_map)",
        "chunk": most * len(devices),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
    }
