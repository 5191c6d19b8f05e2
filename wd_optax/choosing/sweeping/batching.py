"""How many runs are trained in parallel: what fits memory, and on a CPU the cache, by the program's own analysis."""

import math
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from wd_optax.choosing.sweeping import memory

LAUNCHES = 8  # at least this many, for progress and checkpoints, unless each would have fewer runs per device than
NARROW = {"cpu": 32}
WIDE = 256  # on accelerators, which need more to do at once
SPILL = 2  # times the cache: what is worth a second compilation


def wanted(runs: int, devices: int, platform: str) -> int:
    """Runs in parallel on each device if memory were no limit.

    Args:
      runs: in one program.
      devices: that share them.
      platform: "cpu", "gpu", "tpu".

    Example: few runs go all at once, many in eight launches.
      >>> from wd_optax.choosing.sweeping import batching
      >>> plan.wanted(64, 4, "cpu"), plan.wanted(4096, 4, "cpu"), plan.wanted(4096, 4, "gpu")
      (16, 128, 256)

    """
    each = -(-runs // devices)
    return even(each, max(-(-each // LAUNCHES), NARROW.get(platform, WIDE)))


def even(runs: int, limit: int) -> int:
    """The width up to a limit that does so many runs in the fewest launches, and wastes least on the last.

    Example: 32 runs, at most 23 at a time, are twice 16.
      >>> from wd_optax.choosing.sweeping import batching
      >>> plan.even(32, 23)
      16

    """
    return -(-runs // -(-runs // max(limit, 1)))


def halved(width: int, needed: str) -> int:
    """The next width to try where memory ran out, with a line in the log.

    Raises:
      MemoryError: where it is one run already.

    """
    if width == 1:
        raise MemoryError(f"one run needs more memory than there is: {needed}; train a smaller model or batch")
    logging.warning(
        "sweep: %d runs in parallel need more memory than there is; going on with %d", width, -(-width // 2)
    )
    return -(-width // 2)


def choose(compile_at: Callable[[int], Any], runs: int, devices: Any, width: int | None) -> int:
    """How many of so many runs each device trains in parallel.

    The program is compiled at the width wanted. Only if its own memory analysis says that this doesn't fit, it is
    compiled again, at a width that does. On a CPU it should also fit the cache: products of matrices that spill are
    slower. A width that finished runs were trained at only has to fit the memory.

    Args:
      compile_at: the program for a width.
      runs: in it.
      devices: that share them.
      width: that finished runs were trained at, or None.

    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    pinned, each, free = width is not None, -(-runs // len(devices)), memory.free(local)
    close = memory.cache(len(local)) if local[0].platform == "cpu" and not pinned else math.inf
    width = wanted(runs, len(devices), local[0].platform) if width is None else width
    while True:
        try:
            needed = max(working_set(compile_at(width)), 1)
        except Exception as error:
            if not memory.exhausted(error):
                raise
            width = halved(width, str(error))
            continue
        if width == 1 or (needed <= free and needed <= SPILL * close):
            break
        logging.info("sweep: %d runs in parallel need %.3g MB per device", width, needed / 1e6)
        most = min(width - 1, int(width * min(free, close) // needed))
        width = -(-width // 2) if pinned else even(each, most)
    if needed > free:
        logging.warning("sweep: one run needs %.3g MB, and %.3g MB are free", needed / 1e6, free / 1e6)
    return width


def working_set(program: Any) -> int:
    """Bytes that a compiled program holds on each device while it runs."""
    m = program.memory_analysis()
    return m.temp_size_in_bytes + m.output_size_in_bytes + m.argument_size_in_bytes if m else 0
