"""Train a whole grid of hyperparameters in one compiled program."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wd_optax.choosing.sweeping import batching, identity, metrics, multihost, parts, trace, training, values
from wd_optax.choosing.sweeping.devices import usable_devices, without_deadlock
from wd_optax.choosing.sweeping.execute import Executor
from wd_optax.choosing.sweeping.grid import Grid, StaticGroup, make_grid
from wd_optax.choosing.sweeping.result import SweepResult
from wd_optax.choosing.sweeping.store import Store
from wd_optax.optional import require


def sweep(
    train: trace.TrainFunction,
    axes: Mapping[str, Any],
    *,
    seeds: int | Iterable[int] = 3,
    devices: Sequence[jax.Device] | None = None,
    chunk: int | None = None,
    directory: str | os.PathLike[str] | None = None,
    part: tuple[int, int] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Trains every point of a grid with every seed, many in parallel: metrics = train(point, key(seed)).

    A run is a point and a seed. `train` is traced and compiled once for each combination of static values, whatever the
    size of the grid, and again only if the program doesn't fit memory. Each device trains a batch of runs at a time,
    mapped with `vmap`. A seed is the same `jax.random.key(seed)` at every point, so runs of one seed are paired.

    Args:
      train: a pure function (hparams, key) -> {metric: number or array} that returns the same names and shapes at all
        points. hparams is a dict with the names of the axes. Its numbers are traced scalars in JAX's default types
        (float32, int32), to be passed on, as in `wd.adamw(hparams["learning_rate"],
        weight_decay=hparams["weight_decay"])`. Static values are passed as they are.
      axes: {name: values}. Numbers are traced. All other values are static: texts and None are named by themselves,
        functions by their `__name__`. A dict {label: value} is static whatever it holds, such as the widths of a layer
        in {"32": 32, "64": 64}. Values are a list, an array of any library, or a DataArray; sets have no order and are
        refused.
      seeds: how many, or a list of them.
      devices: a list; by default `jax.devices()`, those of all processes under `jax.distributed`. On a CPU, one device
        per core is best: `jax.config.update("jax_num_cpu_devices", os.cpu_count())` before the first array. One is left
        out there where `train` calls LAPACK, such as `eigh`, because XLA's threads would wait for each other forever.
      chunk: how many runs to train at a time, on all devices together. By default as many as fit free memory, and on a
        CPU the cache, by the compiled program's memory analysis, but in at least eight chunks if those are large enough
        to keep the devices busy. If memory runs out anyway, chunk is halved, which is logged.
      directory: a folder that keeps every finished chunk (not on Windows, because it is locked with flock). The same
        call resumes after a crash and ends with the same bits. The same call means: the same axes in the same order,
        seeds, traced program with its data, versions of JAX, NumPy, Python and this library, kind of device, and JAX
        settings that change numbers. A damaged file is logged, set aside and trained again. A finished sweep can be
        read from a read-only folder. In a multi-host job only process 0 uses the folder.
      part: (i, n) trains the share of job i of n, from 0, for a job array without `jax.distributed`, in a folder of its
        own inside the directory, such as part=(int(os.environ["SLURM_ARRAY_TASK_ID"]), 8). A job that was killed is
        repeated with the same call. The call without `part` then merges the parts and trains nothing; it raises a
        RuntimeError with what is missing.
      progress: whether to show a progress bar if there is a terminal.

    Returns:
      A `SweepResult` with `.data` (an `xarray.Dataset`, with how it ran in its attrs), `.best`, `.heatmap` and
      `.separability`. Each run equals `train` alone: on a CPU bit for bit if runs are elementwise sums and products,
      otherwise up to rounding, because XLA orders the sums of a batched product differently, and its exp of a vector
      may differ in the last bit from that of a number. The bits depend on the number of runs in parallel on a device,
      not on the number of devices. A run diverged if a scalar isn't finite, or if a curve has an infinite entry or no
      finite one; a curve may be padded with NaN. With `part` the runs of the other parts are NaN.

    Raises:
      ImportError: without xarray or tqdm: pip install "wd_optax[sweep]".
      TypeError, ValueError: for axes, seeds, chunk, part or the result of `train`, by name; if a hyperparameter can't
        be traced; if the directory belongs to another sweep, with what differs, or its manifest is damaged; for a
        directory and a `train` that calls back to the host (`jax.pure_callback`), because a later call couldn't compare
        that code; if the processes of a multi-host job don't make the same call, with what differs.
      RuntimeError: if another process uses the directory, another process of a multi-host job raised, or parts are
        missing, by name.
      MemoryError: if not even one run fits.
      OSError: if the disk is full or the directory can't be written; finished chunks are kept.

    Example: twelve runs of a quadratic; η = 0.1 and λ = 0 come nearest to its minimum.
      >>> import jax, jax.numpy as jnp, optax, wd_optax as wd
      >>> def train(hparams, key):
      ...     tx = wd.sgdw(hparams["learning_rate"], weight_decay=hparams["weight_decay"], mask=None)
      ...     def step(carry, _):
      ...         w, state = carry
      ...         updates, state = tx.update(w - 1, state, w)
      ...         return (optax.apply_updates(w, updates), state), None
      ...     w = jax.random.normal(key)
      ...     (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=50)
      ...     return {"distance": abs(w - 1)}
      >>> result = wd.sweep(train, {"learning_rate": [0.01, 0.1], "weight_decay": [0.0, 0.1, 1.0]}, seeds=2)
      >>> print(dict(result.data.sizes), result.best("distance", mode="min").hyperparams)
      {'learning_rate': 2, 'weight_decay': 3, 'seed': 2} {'learning_rate': 0.1, 'weight_decay': 0.0}

    """
    folder = None if directory is None else _absolute(directory)
    call = multihost.run_on_all(lambda: _prepare(train, axes, seeds, devices, chunk, folder, part))
    _check_same_call(call)
    with contextlib.ExitStack() as stack:
        state = _start(call, folder, progress, stack)
        for group, function in zip(call.groups, call.functions, strict=True):
            if not state.found.done[group.runs].all():
                state.bar.set_description(f"compiling {group}")
                training.train(Executor(function, group, call.devices), call.width, state)
        if folder is not None:
            state.found.share()
    widths = [width for widths in state.widths.values() for width in widths]
    merged = folder is not None and call.part is None and len(parts.found_in(folder))
    return SweepResult(state.found.dataset(call.grid, _attrs(widths, call, merged)))


class _Call(NamedTuple):
    """A checked and traced call of `sweep`."""

    grid: Grid
    groups: list[StaticGroup]  # with the runs of this part
    functions: list[trace.TracedRun]
    metrics: dict[str, metrics.Metric]
    devices: list[jax.Device]
    width: int  # that `chunk` asks for; 0 without it
    part: parts.Part | None
    manifest: dict[str, Any]
    options: dict[str, Any]  # not part of the manifest, but the same on all processes of a job


def _prepare(
    train: trace.TrainFunction, axes: Any, seeds: Any, devices: Any, chunk: Any, folder: Any, part: Any
) -> _Call:
    require("xarray")
    require("tqdm")
    if not callable(train):
        raise TypeError(f"train={train!r}: pass a function (hparams, key) -> {{metric: value}}")
    if chunk is not None and not (values.is_whole(chunk) and chunk >= 1):
        raise ValueError(f"chunk={chunk!r}: pass a whole number of runs, at least 1, or None")
    part, grid = parts.check_part(part, folder), make_grid(axes, seeds)
    groups = list(grid.static_groups())
    functions = [trace.trace_run(train, group) for group in groups]
    if folder is not None:
        _refuse_host_calls(functions)
    common = metrics.common_metrics(groups, functions)
    shares = parts.share(groups, part)
    runs, at_once = max(len(group.runs) for group in shares), int(chunk or 0)
    used = without_deadlock(usable_devices(devices, min(runs, at_once or runs)), *(f.jaxpr for f in functions))
    width = at_once and batching.even_width(-(-runs // len(used)), at_once // len(used))
    prints = {str(group): function.fingerprint for group, function in zip(groups, functions, strict=True)}
    manifest = identity.manifest(grid, common, prints, used[0])
    options = {"devices": [d.id for d in used], "chunk": at_once, "directory": str(folder is not None)}
    return _Call(grid, shares, functions, common, used, width, part, manifest, options)


def _absolute(directory: Any) -> pathlib.Path:
    """The folder as an absolute path, because `train` may change the working directory."""
    if not isinstance(directory, (str, os.PathLike)) or not os.fspath(directory):
        raise TypeError(f"directory={directory!r}: pass a folder's name, or None")
    return pathlib.Path(directory).expanduser().absolute()


def _refuse_host_calls(functions: list[trace.TracedRun]) -> None:
    if found := sorted({name for function in functions for name in function.host_calls}):
        raise TypeError(
            f"train has {' and '.join(found)}, which runs outside of the traced program: a later call couldn't see "
            "that its code has changed. Write it in jax.numpy, or pass directory=None"
        )


def _check_same_call(call: _Call) -> None:
    """Raises a ValueError on every process, with what differs, unless all processes train the same runs."""
    mine = call.manifest | {"call": call.options}
    if len(set(multihost.gather_texts(identity.digest(mine)))) == 1:
        return
    first, *others = map(json.loads, multihost.gather_texts(json.dumps(mine)))
    lines = [
        line
        for process, other in enumerate(others, 1)
        for line in identity.differences(first, other, "on process 0", f"on process {process}")
    ]
    raise ValueError(
        "the processes of this sweep don't make the same call:\n  " + "\n  ".join(lines) + "\n"
        "pass the same axes in the same order, seeds, options, code and data on every process"
    )


def _start(call: _Call, folder: pathlib.Path | None, bar: bool, stack: contextlib.ExitStack) -> training.Progress:
    """Opens the store and reads finished runs on process 0, and shares on all processes which runs are done."""
    found = metrics.MetricTable(call.metrics, call.grid.size)
    store: Store | None = None
    widths: dict[str, list[int]] = {}
    requested = 0

    wanted = np.concatenate([group.runs for group in call.groups])

    def read() -> tuple[dict[str, list[int]], int, list[int]]:
        nonlocal store
        assert folder is not None
        if call.part is None and parts.found_in(folder):
            return parts.merge(folder, call.manifest, call.groups, found), 0, list(range(call.grid.size))
        store = Store(parts.folder(folder, call.part), call.manifest)
        stack.callback(store.close)
        return (*training.resume(store, found, call.width, wanted), np.flatnonzero(found.done).tolist())

    if folder is not None:
        widths, requested, done = multihost.from_leader(read)
        found.done[done] = True
    disable = None if bar and multihost.is_leader() else True  # None disables tqdm without a terminal
    shown = require("tqdm").tqdm(total=len(wanted), initial=int(found.done.sum()), unit="run", disable=disable)
    return training.Progress(found, store, stack.enter_context(shown), widths, requested)


def _attrs(widths: list[int], call: _Call, merged: int) -> dict[str, Any]:
    """How the sweep ran."""
    least, most, devices = min(widths), max(widths), call.devices
    runs = f"{least} to {most}" if least < most else str(most)
    if merged:
        return {"strategy": f"{runs} runs at a time (vmap) on each device, merged from {merged} parts"}
    part = {} if call.part is None else {"part": f"{call.part[0]} of {call.part[1]}; the runs of the others are NaN"}
    return part | {
        "strategy": f"{runs} runs at a time (vmap) on each of {len(devices)} devices (shard_map)",
        "chunk": most * len(devices),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
    }
