"""Train a whole grid of hyperparameters in one compiled program."""

import contextlib
import json
import numbers
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from wd_optax.choosing.sweeping import batching, grid, identity, metrics, multihost, trace, training
from wd_optax.choosing.sweeping.execute import Executor
from wd_optax.choosing.sweeping.result import SweepResult
from wd_optax.choosing.sweeping.store import Store
from wd_optax.optional import require


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
    """Trains every point of a grid with every seed, many in parallel: metrics = train(point, key(seed)).

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
        An axis may be a list, an array of any library, or a DataArray; a set has no order and is refused.
      seeds: how many, or a list of them.
      devices: a list; by default all of `jax.devices()`, over all processes under `jax.distributed`. On a CPU, one
        for each core is best: `jax.config.update("jax_num_cpu_devices", os.cpu_count())` before the first array.
      chunk: how many runs at a time, on all devices together. By default as many as the compiled program's memory
        analysis lets fit free memory, on a CPU also the cache; but eight chunks or more, if they stay wide enough.
        Where memory runs out all the same, it is halved, with a line in the log, and the sweep goes on.
      directory: a folder that keeps every finished chunk (not on Windows: it is locked with flock). The same call
        resumes after a crash and ends with the same bits: same axes in the same order, seeds, traced program with its
        data, versions of JAX, NumPy, Python and this library, kind of device, and JAX's settings that change numbers.
        A damaged file is logged, kept aside and trained again. A finished sweep can be read from a folder that can't be
        written. In a multi-host job, process 0 alone uses it.
      progress: whether to show a bar (there is none without a terminal).

    Returns:
      A `SweepResult`: `.data` (an `xarray.Dataset`; how it ran is in its attrs), `.best`, `.heatmap`, `.separability`.
      Each run equals `train` alone: on a CPU bit for bit where runs are elementwise sums and products, else up to
      rounding, because XLA orders the sums of a batched product otherwise, and its exp of a vector may differ in the
      last bit from that of a number. The bits depend on the number of runs in parallel on a device, and not on the
      number of devices. A run diverged if a scalar isn't finite, or if a curve has an infinite entry or
      no finite one; a curve may be padded with NaN.

    Raises:
      ImportError: without xarray, or tqdm: pip install "wd_optax[sweep]".
      TypeError, ValueError: for axes, seeds, chunk or what train returns, by name; for a hyperparameter that doesn't
        trace; for a directory of another sweep, with what differs, or with a damaged manifest; for a directory and a
        train that calls back to the host (`jax.pure_callback`), whose code a later call couldn't compare; in a
        multi-host job, where the processes don't make the same call, with what differs.
      RuntimeError: for a directory that another process uses; where another process of a multi-host job raised.
      MemoryError: where even one run doesn't fit.
      OSError: for a full disk or a folder that can't be written; finished chunks are safe.

    Example: twelve runs of a quadratic; η = 0.1 and λ = 0 come nearest to its minimum.
      >>> import jax, jax.numpy as jnp, optax, wd_optax as wd
      >>> from wd_optax.choosing.sweeping.sweep import sweep
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
    folder = None if directory is None else _folder(directory)
    call = multihost.together(lambda: _prepare(train, axes, seeds, devices, chunk, folder))
    _agree(call)
    with contextlib.ExitStack() as stack:
        state = _open(call, folder, progress, stack)
        for program, function in zip(call.programs, call.functions, strict=True):
            if state.found.done[program.runs].all():
                continue
            state.bar.set_description(f"compiling {program}")
            training.train(Executor(function, program, call.devices), call.width, state)
        if folder is not None:
            state.found.share()
    widths = [width for widths in state.widths.values() for width in widths]
    return SweepResult(state.found.dataset(call.grid, _attrs(widths, call.devices)))


class _Call(NamedTuple):
    """What was asked for, checked and traced."""

    grid: grid.Grid
    programs: list[grid.Program]
    functions: list[trace.TracedRun]
    metrics: dict[str, metrics.Metric]
    devices: list[Any]
    width: int  # that `chunk` stands for; 0 without it
    manifest: dict[str, Any]
    options: dict[str, Any]  # in which the processes of a job must agree, too


def _prepare(train: Any, axes: Any, seeds: Any, devices: Any, chunk: Any, folder: pathlib.Path | None) -> _Call:
    require("xarray")
    require("tqdm")
    if chunk is not None and (not isinstance(chunk, numbers.Integral) or isinstance(chunk, bool) or chunk < 1):
        raise ValueError(f"chunk={chunk!r}: pass a whole number of runs, at least 1, or None")
    points = grid.make(axes, seeds)
    programs = list(points.programs())
    functions = [trace.trace(train, program) for program in programs]
    if folder is not None:
        _refuse_host_calls(functions)
    recorded = metrics.common(programs, functions)
    each = len(programs[0].runs)
    asked = 0 if chunk is None else int(chunk)
    used = _devices(devices, min(each, asked or each))
    width = asked and batching.even(-(-each // len(used)), asked // len(used))
    prints = {str(program): function.fingerprint for program, function in zip(programs, functions, strict=True)}
    manifest = identity.manifest(points, recorded, prints, used[0])
    options = {"devices": [d.id for d in used], "chunk": asked, "directory": str(folder is not None)}
    return _Call(points, programs, functions, recorded, used, width, manifest, options)


def _folder(directory: Any) -> pathlib.Path:
    """As it is meant now, whatever `train` does to the working directory."""
    if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory):
        raise TypeError(f"directory={directory!r}: pass a folder's name, or None")
    return pathlib.Path(directory).expanduser().absolute()


def _refuse_host_calls(functions: list[trace.TracedRun]) -> None:
    if found := sorted({name for function in functions for name in function.host_calls}):
        raise TypeError(
            f"train has {' and '.join(found)}, which runs outside of the traced program: a later call couldn't see "
            "that its code has changed. Write it in jax.numpy, or pass directory=None"
        )


def _devices(devices: Any, most: int) -> list[Any]:
    """The devices; a process alone leaves those idle that would have nothing to do."""
    try:
        found = list(jax.devices() if devices is None else devices)
    except TypeError:
        raise TypeError(f"devices={devices!r}: pass a list, such as jax.devices()[:1]") from None
    if not found or not all(isinstance(device, jax.Device) for device in found) or len({*found}) < len(found):
        raise ValueError(f"devices={found}: pass a list of distinct devices such as jax.devices(), or None for all")
    processes = {device.process_index for device in found}
    if len(processes) < jax.process_count():
        raise ValueError(f"devices={found}: every process needs one: pass jax.devices(), not jax.local_devices()")
    cores = os.cpu_count() or 1
    if len(found) == 1 and found[0].platform == "cpu" and cores > 1:
        hint = 'jax.config.update("jax_num_cpu_devices", %d) before the first array would use them in parallel'
        logging.info(f"sweep: one CPU device on %d cores: {hint}", cores, cores)
    return found[:most] if len(processes) == 1 else found


def _agree(call: _Call) -> None:
    """Every process must train the same runs: else the arrays that they make together are nobody's.

    Raises:
      ValueError: on every process, with what differs on which.

    """
    mine = call.manifest | {"call": call.options}
    if len(set(multihost.texts(identity.digest(mine)))) == 1:
        return
    first, *others = map(json.loads, multihost.texts(json.dumps(mine)))
    lines = [
        line
        for process, other in enumerate(others, 1)
        for line in identity.differences(first, other, "on process 0", f"on process {process}")
    ]
    raise ValueError(
        "the processes of this sweep don't make the same call:\n  " + "\n  ".join(lines) + "\n"
        "pass the same axes in the same order, seeds, options, code and data on every process"
    )


def _open(call: _Call, folder: pathlib.Path | None, bar: bool, stack: Any) -> training.Progress:
    """Process 0's store, and the finished runs in it, on every process."""
    found = metrics.MetricTable(call.metrics, call.grid.size)
    store, widths, wanted = None, {}, 0

    def read() -> list[Any]:
        nonlocal store
        assert folder is not None
        store = Store(folder, call.manifest)
        stack.callback(store.close)
        return [*training.resume(store, found, call.width), np.flatnonzero(found.done).tolist()]

    if folder is not None:
        widths, wanted, done = multihost.from_leader(read)
        found.done[done] = True
    quiet = None if bar and multihost.leads() else True  # None: silent without a terminal
    shown = require("tqdm").tqdm(total=call.grid.size, initial=int(found.done.sum()), unit="run", disable=quiet)
    stack.enter_context(shown)
    return training.Progress(found, store, shown, widths, wanted)


def _attrs(widths: list[int], devices: list[Any]) -> dict[str, Any]:
    """How it ran."""
    least, most = min(widths), max(widths)
    runs = f"{least} to {most}" if least < most else most
    return {
        "strategy": f"{runs} runs side by side (vmap) on each of {len(devices)} devices (shard_map)",
        "chunk": most * len(devices),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
    }
