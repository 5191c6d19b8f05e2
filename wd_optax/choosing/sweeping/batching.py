"""The batch width: how many runs each device trains at a time.

The runs of a static group are trained in batches by `vmap`, one batch per device in each launch of the compiled
program. The width is the number of runs in a batch. It is chosen to fit free memory, and on a CPU the cache, by the
compiled program's own memory analysis.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import logging

from wd_optax.choosing.sweeping import memory

MIN_LAUNCHES = 8  # for progress and checkpoints, unless the width would fall below the following
CPU_WIDTH, ACCELERATOR_WIDTH = 32, 256  # enough runs to keep a device busy
CACHE_TOLERANCE = 2  # a program that exceeds the cache by less isn't worth a second compilation


def default_width(runs: int, devices: int, platform: str) -> int:
    """The width for the runs of a static group if memory were unlimited.

    Example: a few runs take one launch, many take eight.
      >>> from wd_optax.choosing.sweeping import batching
      >>> [batching.default_width(*args) for args in [(64, 4, "cpu"), (4096, 4, "cpu"), (4096, 4, "gpu")]]
      [16, 128, 256]

    """
    each = -(-runs // devices)
    return even_width(each, max(-(-each // MIN_LAUNCHES), CPU_WIDTH if platform == "cpu" else ACCELERATOR_WIDTH))


def even_width(runs: int, limit: int) -> int:
    """The smallest width that trains all runs in as few launches as the limit does, so that the last is fullest.

    Example: at most 23 of 32 runs at a time means two launches, of 16 each.
      >>> from wd_optax.choosing.sweeping import batching
      >>> batching.even_width(32, 23)
      16

    """
    return -(-runs // -(-runs // max(limit, 1)))


def halved_width(width: int, reason: str) -> int:
    """The next width to try after memory ran out; it is logged.

    Raises:
      MemoryError: if the width is 1 already.

    """
    if width == 1:
        raise MemoryError(f"one run needs more memory than there is: {reason}; train a smaller model or batch")
    half = -(-width // 2)
    logging.warning("sweep: %d runs in parallel need more memory than there is; going on with %d", width, half)
    return half


def choose_width(
    compile_at: Callable[[int], jax.stages.Compiled], runs: int, devices: Sequence[jax.Device], width: int | None
) -> int:
    """Chooses the largest suitable width that fits memory.

    The program is compiled at the default width, and again at a smaller one only if its memory analysis says that it
    doesn't fit. On a CPU it should also fit the cache, because matrix products that exceed it are slower. A given
    width, that of finished runs, only has to fit memory.
    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    given, each, free = width is not None, -(-runs // len(devices)), memory.free(local)
    cache = memory.cache(len(local)) if local[0].platform == "cpu" and not given else math.inf
    width = default_width(runs, len(devices), local[0].platform) if width is None else width
    while True:
        try:
            needed = max(working_set(compile_at(width)), 1)
        except Exception as error:
            if not memory.exhausted(error):
                raise
            width = halved_width(width, str(error))
            continue
        if width == 1 or (needed <= free and needed <= CACHE_TOLERANCE * cache):
            break
        logging.info("sweep: %d runs in parallel need %.3g MB per device", width, needed / 1e6)
        most = min(width - 1, int(width * min(free, cache) // needed))
        width = -(-width // 2) if given else even_width(each, most)
    if needed > free:
        logging.warning("sweep: one run needs %.3g MB, and %.3g MB are free", needed / 1e6, free / 1e6)
    return width


def working_set(program: Any) -> int:
    """Bytes that a compiled program holds on each device while it runs."""
    m = program.memory_analysis()
    return m.temp_size_in_bytes + m.output_size_in_bytes + m.argument_size_in_bytes if m else 0
