"""Sweeps that are killed, run out of disk space or memory, share a folder, or are resumed on other devices."""

import errno
import functools
import os
import pathlib
import random
import signal
import time
from typing import Any

from wd_optax.choosing.sweeping import store
from wd_optax.choosing.sweeping.execute import Executor

from . import sweeps
from .forks import Child, call

SECONDS = 0.4  # about the time of a sweep in a fork; kills come at random within it


@functools.cache
def right(devices: int = 2) -> dict[str, Any]:
    """The right numbers: those of a sweep without a folder in a process of its own."""
    return call(sweeps.numbers, devices=devices)


def verdict(
    folder: pathlib.Path, found: dict[str, Any], kept: dict[str, Any], outcome: str, expected: Any = None
) -> str:
    """The outcome, unless numbers are wrong, or finished files were rewritten or set aside."""
    if found != (expected or right()):
        return "ACCEPTED WRONG numbers"
    now = sweeps.chunks(folder)
    return outcome if all(now.get(name) == content for name, content in kept.items()) else "LOST finished runs"


def resumed(folder: pathlib.Path, outcome: str = "resumed bit for bit", **options: Any) -> str:
    """Resumes in a new process what a killed one left."""
    kept = sweeps.chunks(folder)
    kind, found = Child(sweeps.numbers, folder, devices=2, **options).wait()
    return verdict(folder, found, kept, outcome) if kind == "value" else f"ERROR: not resumed: {found}"


def at_random_moment(seed: int, folder: pathlib.Path) -> str:
    """kill -9 at a random time, often during training and saving."""
    draw = random.Random(seed)
    child = Child(sweeps.numbers, folder, devices=2)
    wait_for = draw.randrange(sweeps.LAUNCHES) if draw.random() < 0.7 else 0
    end = time.monotonic() + 20 * SECONDS
    while len(list(folder.glob("runs-*.nc"))) < wait_for and time.monotonic() < end and not child.done():
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05 if wait_for else SECONDS))
    child.kill()
    child.wait()
    return resumed(folder)


def in_a_write(seed: int, folder: pathlib.Path) -> str:
    """kill -9 within a write: after half of the content, at the fsync, at the rename, at the fsync of the folder."""
    if Child(_dies_in_a_write, seed, folder, devices=2).wait()[0] != "killed":
        return "ERROR: it was not killed"
    return resumed(folder)


def _dies_in_a_write(seed: int, folder: pathlib.Path) -> None:
    draw = random.Random(seed)
    place, count = draw.choice(["half", "fsync", "rename", "folder"]), draw.randrange(sweeps.LAUNCHES + 1)
    real = store.Store._write
    calls = iter(range(count))

    def write(self: Any, name: str, content: bytes) -> None:
        if next(calls, None) is None:
            if place == "half":
                (self.path / f"{name}.part").write_bytes(content[: draw.randrange(len(content))])
                die()
            target = {"fsync": (os, "fsync"), "rename": (pathlib.Path, "replace"), "folder": (store, "_sync")}[place]
            setattr(*target, die)
        real(self, name, content)

    store.Store._write = write
    sweeps.sweep(folder)


def die(*_: Any) -> None:
    """Kills this process."""
    os.kill(os.getpid(), signal.SIGKILL)


WRITES = (sweeps.LAUNCHES + 1) * 4  # of each file: write, fsync, rename, fsync of the folder


def full_disk(seed: int, folder: pathlib.Path) -> str:
    """The disk is full at the seed-th of all writes, fsyncs and renames."""
    code = errno.EDQUOT if seed >= WRITES else errno.ENOSPC
    kind, found = Child(_full_at, seed % WRITES, code, folder, devices=2).wait()
    if kind != "error" or "what was finished is kept: free some space" not in found:
        return f"ERROR: {kind}: {found}"
    return resumed(folder, "stopped by name, then resumed bit for bit")


def _full_at(count: int, code: int, folder: pathlib.Path) -> None:
    calls = iter(range(count))

    def limited(real: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            if next(calls, None) is None:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return function

    class File:
        """An open file whose disk fills."""

        def __init__(self, file: Any):
            self.file, self.write = file, limited(file.write)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    opened = pathlib.Path.open
    pathlib.Path.open = lambda path, mode="r", *a, **k: (
        File(opened(path, mode, *a, **k)) if path.suffix == ".part" else opened(path, mode, *a, **k)
    )
    os.fsync, pathlib.Path.replace = limited(os.fsync), limited(pathlib.Path.replace)
    sweeps.sweep(folder)


def out_of_memory(seed: int, folder: pathlib.Path) -> str:
    """Launches above some width run out of memory, from some launch on; or the first launch is killed."""
    draw = random.Random(seed)
    if seed % 4 == 0:
        if Child(_killed_in_the_first, folder, devices=2).wait()[0] != "killed":
            return "ERROR: it was not killed"
        return resumed(folder, "killed at first, finished with a smaller chunk", chunk=4)
    width, after = draw.choice([1, 2, 3, 5]), draw.randrange(1, 4) if seed % 4 > 1 else 0
    kind, found = Child(_starved, width, after, draw.choice([None, 24]), folder, devices=2).wait()
    if kind != "value":
        return f"ERROR: {kind}: {found}"
    again = resumed(folder, "went on at half the width and less, every bit right", chunk=None)
    return again if found == right() else "ACCEPTED WRONG numbers"


def _killed_in_the_first(folder: pathlib.Path) -> None:
    Executor.launch = die
    sweeps.sweep(folder, chunk=24)


def _starved(width: int, after: int, chunk: int | None, folder: pathlib.Path) -> dict[str, Any]:
    starve(width, after)
    return sweeps.numbers(folder, chunk=chunk)


def starve(width: int, after: int) -> None:
    """From a launch on, larger widths run out of memory in this process."""
    real, calls = Executor.launch, iter(range(after))

    def launch(self: Any, batches: list[int], requested: int) -> Any:
        if next(calls, None) is None and requested > width:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes.")
        return real(self, batches, requested)

    Executor.launch = launch


def two_processes(seed: int, folder: pathlib.Path) -> str:
    """Two processes on one folder, the second a random time after the first."""
    first = Child(sweeps.numbers, folder, devices=2)
    time.sleep(random.Random(seed).uniform(0, SECONDS))
    second = Child(sweeps.numbers, folder, devices=2)
    ends = [child.wait() for child in (first, second)]
    refused = [kind == "error" and "is in use by another process" in str(found) for kind, found in ends]
    if any(kind == "value" and found != right() for kind, found in ends):
        return "ACCEPTED WRONG numbers"
    if not all(ok or kind == "value" for ok, (kind, _) in zip(refused, ends, strict=True)) or all(refused):
        return f"ERROR: {[str(end)[:200] for end in ends]}"
    return "one refused by name, the other right" if any(refused) else "one after the other, both right"


PAIRS = [(a, b) for a in (1, 2, 3, 5, 8) for b in (1, 2, 3, 5, 8)]


def other_devices(seed: int, folder: pathlib.Path) -> str:
    """Started on 1, 2, 3, 5 or 8 devices, killed at a launch, resumed on another number."""
    first, second = PAIRS[seed % len(PAIRS)]
    if Child(killed_at_launch, random.Random(seed).randrange(1, 4), folder, devices=first).wait()[0] != "killed":
        return "ERROR: it was not killed"
    kept = sweeps.chunks(folder)
    kind, found = Child(sweeps.numbers, folder, chunk=None, devices=second).wait()
    return verdict(folder, found, kept, "resumed bit for bit") if kind == "value" else f"ERROR: {found}"


def killed_at_launch(count: int, folder: pathlib.Path, **options: Any) -> None:
    real, calls = Executor.launch, iter(range(count))

    def launch(*args: Any) -> Any:
        if next(calls, None) is None:
            die()
        return real(*args)

    Executor.launch = launch
    sweeps.sweep(folder, **({"chunk": 8} | options))
