"""Trains what isn't finished of one program, a launch at a time, in as much parallel as memory allows."""

import functools
from typing import Any

from absl import logging

from wd_optax.choosing.sweeping import batching, memory, multihost
from wd_optax.choosing.sweeping.chunk import Chunk
from wd_optax.choosing.sweeping.execute import Executor
from wd_optax.choosing.sweeping.metrics import MetricTable
from wd_optax.choosing.sweeping.store import Store


class Progress:
    """What is done, in memory and on disk, how wide each program was, and the bar that shows it."""

    def __init__(self, found: MetricTable, store: Store | None, bar: Any, widths: dict[str, list[int]], wanted: int):
        self.found, self.store, self.bar, self.widths, self.wanted = found, store, bar, widths, wanted

    def keep(self, chunk: Chunk) -> None:
        """Adds finished runs; if they can't be saved, every process stops, with what was saved before."""
        self.found.add(chunk.runs, chunk.diverged, chunk.metrics)
        note(self.widths, chunk)
        multihost.together(functools.partial(self.store.save, chunk) if self.store else lambda: None)
        self.bar.set_description("sweep")
        self.bar.update(len(chunk.runs))
        self.bar.set_postfix(diverged=int(self.found.diverged.sum()))


def note(widths: dict[str, list[int]], chunk: Chunk) -> None:
    """Adds a chunk's width to those of its program."""
    seen = widths.setdefault(chunk.program, [])
    if chunk.width not in seen:
        seen.append(chunk.width)


def resume(store: Store, found: MetricTable, asked: int) -> tuple[dict[str, list[int]], int]:
    """Reads finished runs into `found`; returns the widths of each program's, and that which `chunk=` stood for.

    Raises:
      ValueError: for another chunk than they were trained with.
      OSError: where some runs aren't finished and the folder can't be written.

    """
    widths: dict[str, list[int]] = {}
    there, wanted = set[int](), 0
    for chunk in store.load():
        found.add(chunk.runs, chunk.diverged, chunk.metrics)
        note(widths, chunk)
        there.add(chunk.asked or chunk.width)
        wanted = chunk.asked or wanted
    if asked and there - {asked}:
        what = f"chunk: {min(there)} runs side by side on each device there, {asked} here"
        raise ValueError(
            f"directory={str(store.path)!r} was made by another sweep:\n  {what}; chunk=None takes what is there\n"
            "make the same call to resume it, or pass another directory"
        )
    if not found.done.all():
        store.check_writable()
    return widths, wanted


def first_width(executor: Executor, asked: int, wanted: int, kept: list[int]) -> int:
    """Runs in parallel on each device: what was asked for, but no more than finished runs had; else what fits.

    Args:
      executor: of the program.
      asked: the width that `chunk=` stands for; 0 without it.
      wanted: what it stood for when finished runs were trained; it is checked again, for memory may be short now.
      kept: widths of finished runs of this program.

    """
    if asked:
        return min([asked, *kept])
    pinned = min(kept, default=wanted) or None
    choose = lambda: batching.choose(executor.at, len(executor.program.runs), executor.devices, pinned)
    return multihost.least(multihost.together(choose))


def train(executor: Executor, asked: int, progress: Progress) -> None:
    """Trains the blocks that have an unfinished run; where memory runs out, at half the width from there on.

    Raises:
      MemoryError: where one run at a time doesn't fit.

    """
    width = first_width(executor, asked, progress.wanted, progress.widths.get(str(executor.program), []))
    runs, devices, done = executor.program.runs, len(executor.devices), progress.found.done
    logging.info("sweep: %s: %d runs, %d in parallel on each of %d", executor.program, len(runs), width, devices)
    while not done[runs].all():
        blocks = [i for i in range(-(-len(runs) // width)) if not done[runs[i * width : (i + 1) * width]].all()]
        out = multihost.together(functools.partial(_attempt, executor, blocks[:devices], width))
        if full := next(filter(None, multihost.texts(out if isinstance(out, str) else "")), None):
            del out
            width = batching.halved(width, full)
            continue
        where, metrics = executor.collect(out, blocks[:devices], width, done)
        progress.keep(
            Chunk(str(executor.program), width, asked or progress.wanted, where, *progress.found.clean(metrics))
        )


def _attempt(executor: Executor, blocks: list[int], width: int) -> Any:
    """A launch, or the error's text where memory ran out."""
    try:
        return executor.launch(blocks, width)
    except Exception as error:
        if not memory.exhausted(error):
            raise
        return str(error) or type(error).__name__
