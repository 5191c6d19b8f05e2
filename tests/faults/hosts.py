"""Jobs of several processes that disagree, have a full disk, or are killed and resumed by another number."""

import errno
import os
import pathlib
import random
import socket
from collections.abc import Callable
from typing import Any

import jax

from wd_optax.choosing.sweeping import store

from . import sweeps
from .changes import OPTIONS, base
from .forks import Child
from .kills import killed_at_launch, starve, verdict

SECONDS = 60  # until a process that waits counts as hanging; JAX itself waits five minutes


def job(processes: int, function: Callable[..., Any], *args: Any, seconds: float = 120) -> list[tuple[str, Any]]:
    """Runs a multi-host job with one device per process; returns how each process ended."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    run = lambda process: Child(_member, port, processes, process, function, *args, devices=1)
    children = [run(process) for process in range(processes)]
    try:
        return [child.wait(seconds) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def _member(port: int, processes: int, process: int, function: Callable[..., Any], *args: Any) -> Any:
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=processes, process_id=process)
    return function(process, *args)


# What process 1 changes. A set is refused on every process, because its order depends on the hash seed.
KINDS = [
    *(kind for kind in OPTIONS if kind not in ("another chunk", "a callback to the host")),
    "a set as an axis",
    "another chunk",
    "a folder on one process only",
    "jax_enable_x64 on one process only",
    "jax_threefry_partitionable on one process only",
    "an error on one process only",
]


def disagree(seed: int, folder: pathlib.Path) -> str:
    """Two processes make different calls."""
    kind = KINDS[seed % len(KINDS)]
    ends = job(2, _disagreeing, kind, folder, seconds=SECONDS)
    if any(end[0] == "value" for end in ends):
        return f"ACCEPTED WRONG: {kind}"
    if any(end[0] == "hangs" for end in ends):
        return f"HANGS: {kind}"
    words = {"a set as an axis": "is a set", "an error on one process only": "my own mistake"}
    want = words.get(kind, "don't make the same call")
    if not all(end[0] == "error" and want in end[1] for end in ends) or list(folder.glob("runs-*")):
        return f"ERROR: {kind}: {ends}"
    return "refused by name on both"


def _disagreeing(process: int, kind: str, folder: pathlib.Path) -> Any:
    call = base() | {"directory": folder, "progress": False}
    if kind == "a set as an axis":
        call["axes"] |= {"kind": {"a", "b"}}
    elif process and kind in OPTIONS:
        call |= OPTIONS[kind][0]
    elif process and "folder" in kind:
        call["directory"] = None
    elif process and kind.startswith("jax_"):
        jax.config.update(kind.split()[0], kind.startswith("jax_enable"))
    elif process and "error" in kind:
        call["train"] = _mistaken
    import wd_optax as wd

    return sweeps.bits(wd.sweep(**call).data)


def _mistaken(hparams: Any, key: Any) -> Any:
    raise KeyError("my own mistake")


def full_disk(seed: int, folder: pathlib.Path) -> str:
    """Process 0's disk fills at a random chunk; every process must stop within seconds."""
    ends = job(2 + seed % 2, _full_at, random.Random(seed).randrange(6), folder, seconds=SECONDS)
    if any(end[0] == "hangs" for end in ends):
        return "HANGS"
    if not all(end[0] == "error" and "No space left on device" in end[1] for end in ends):
        return f"ERROR: {ends}"
    kept = sweeps.chunks(folder)
    kind, found = Child(sweeps.numbers, folder, chunk=None, devices=2).wait()
    outcome = "stopped by name on all, then resumed bit for bit"
    return verdict(folder, found, kept, outcome) if kind == "value" else f"ERROR: {found}"


def _full_at(process: int, count: int, folder: pathlib.Path) -> Any:
    real, calls = store.Store.save, iter(range(count))

    def save(*args: Any) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)

    store.Store.save = save
    return sweeps.numbers(folder)


def out_of_memory(seed: int, folder: pathlib.Path) -> str:
    """One of two processes runs out of memory: both go on at a smaller width."""
    ends = job(2, starved, seed % 2, folder, seconds=SECONDS)
    if any(end[0] != "value" for end in ends):
        return f"ERROR: {ends}"
    found = [verdict(folder, found, {}, "both went on with less in parallel, every bit right") for _, found in ends]
    return found[0] if found[0] == found[1] else "ACCEPTED WRONG numbers"


def starved(process: int, poor: int, folder: pathlib.Path) -> Any:
    """A sweep in which one process has memory for one run at a time."""
    if process == poor:
        starve(1, after=2)
    return sweeps.numbers(folder, chunk=8)


PAIRS = [(a, b) for a in (1, 2, 3) for b in (1, 2, 3)]


def other_processes(seed: int, folder: pathlib.Path) -> str:
    """Started by 1, 2 or 3 processes, killed together at a launch, resumed by another number of processes."""
    first, second = PAIRS[seed % len(PAIRS)]
    ends = job(first, _killed_together, random.Random(seed).randrange(1, 4), folder)
    if any(end[0] != "killed" for end in ends):
        return f"ERROR: not killed: {ends}"
    kept = sweeps.chunks(folder)
    ends = job(second, _numbers, folder)
    if any(end[0] != "value" for end in ends):
        return f"ERROR: {ends}"
    found = [verdict(folder, found, kept, "resumed bit for bit on all") for _, found in ends]
    return max(found, key=lambda outcome: outcome != "resumed bit for bit on all")


def _numbers(_: int, folder: pathlib.Path) -> Any:
    return sweeps.numbers(folder, chunk=None)


def _killed_together(_: int, count: int, folder: pathlib.Path) -> None:
    killed_at_launch(count, folder)
