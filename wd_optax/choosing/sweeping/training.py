"""Trains the unfinished runs of one static group, a launch at a time, at the largest width that memory allows."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl import logging

from wd_optax.choosing.sweeping import batching, memory, multihost
from wd_optax.choosing.sweeping.chunk import Chunk
from wd_optax.choosing.sweeping.execute import Executor
from wd_optax.choosing.sweeping.metrics import MetricTable
from wd_optax.choosing.sweeping.store import Store


@dataclass(frozen=True)
class Progress:
    """Finished runs, in memory and on disk, and how they were trained."""

    found: MetricTable
    store: Store | None
    bar: Any  # a `tqdm.tqdm`
    widths: dict[str, list[int]]  # of the finished runs of each static group
    requested: int  # the width that `chunk=` asked for when they were trained; 0 without it
    name: str = "sweep"  # on the bar

    def add(self, chunk: Chunk) -> None:
        """Adds finished runs. If they can't be saved, every process stops, and what was saved before is kept."""
        self.found.add(chunk)
        self.widths.setdefault(chunk.group, []).append(chunk.width)
        multihost.run_on_all(functools.partial(self.store.save, chunk) if self.store else lambda: None)
        self.bar.set_description(self.name)
        self.bar.update(len(chunk.runs))
        self.bar.set_postfix(diverged=int(self.found.diverged.sum()))


def resume(
    store: Store, found: MetricTable, requested: int, wanted: np.ndarray | None = None
) -> tuple[dict[str, list[int]], int]:
    """Reads finished runs into `found`; returns `Progress.widths` and `Progress.requested`.

    Args:
      store: the folder.
      found: the table of all runs.
      requested: the width that `chunk=` asks for; 0 without it.
      wanted: positions of the runs that are to be trained if they aren't finished; None only reads.

    Raises:
      ValueError: if they were trained with another `chunk=`.
      OSError: if some of the wanted runs aren't finished and the folder can't be written.

    """
    widths: dict[str, list[int]] = {}
    there, before = set[int](), 0
    for chunk in store.load():
        found.add(chunk)
        widths.setdefault(chunk.group, []).append(chunk.width)
        there.add(chunk.requested or chunk.width)
        before = chunk.requested or before
    if requested and there - {requested}:
        what = f"chunk: {min(there)} at a time on each device there, {requested} here"
        raise ValueError(
            f"directory={str(store.path)!r} was made by another sweep:\n  {what}; chunk=None takes what is there\n"
            "make the same call to resume it, or pass another directory"
        )
    if wanted is not None and not found.done[wanted].all():
        store.check_writable()
    return widths, before


def train(executor: Executor, requested: int, progress: Progress) -> None:
    """Trains the batches that have an unfinished run. Whenever memory runs out, the width is halved.

    Raises:
      MemoryError: if one run at a time doesn't fit.

    """
    group, runs, devices, done = str(executor.group), executor.group.runs, len(executor.devices), progress.found.done
    width = _first_width(executor, requested, progress)
    logging.info("sweep: %s: %d runs, %d in parallel on each of %d", group, len(runs), width, devices)
    while not done[runs].all():
        unfinished = [i for i in range(-(-len(runs) // width)) if not done[runs[i * width : (i + 1) * width]].all()]
        batches = unfinished[:devices]
        out = multihost.run_on_all(functools.partial(_launch, executor, batches, width))
        if reason := next(filter(None, multihost.gather_texts(out if isinstance(out, str) else "")), None):
            del out  # frees the memory of a launch that succeeded here and failed on another process
            width = batching.halved_width(width, reason)
            continue
        assert not isinstance(out, str)
        trained, metrics = executor.collect(out, batches, width, done)
        progress.add(Chunk(group, width, requested or progress.requested, trained, *progress.found.clean(metrics)))


def _first_width(executor: Executor, requested: int, progress: Progress) -> int:
    """The requested width, but at most that of finished runs; without a request, the largest suitable one that fits."""
    finished = progress.widths.get(str(executor.group), [])
    if requested:
        return min([requested, *finished])
    given = min(finished, default=progress.requested) or None  # checked again, because less memory may be free now
    choose = lambda: batching.choose_width(executor.compiled_at, len(executor.group.runs), executor.devices, given)
    return multihost.minimum(multihost.run_on_all(choose))


def _launch(executor: Executor, batches: list[int], width: int) -> dict[str, jax.Array] | str:
    """A launch's metrics, or the text of the error if memory ran out."""
    try:
        return executor.launch(batches, width)
    except Exception as error:
        if not memory.exhausted(error):
            raise
        return str(error) or type(error).__name__
