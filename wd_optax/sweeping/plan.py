"""How many runs go side by side: what fits memory, and on a CPU the cache, by the compiled program's own analysis."""

import math
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

SHARE = 0.8  # of the free memory; the rest is for results in flight and for what else runs
LAUNCHES = 8  # at least this many, for progress and checkpoints, unless each would have fewer runs per device than
NARROW = {"cpu": 32}
WIDE = 256  # on accelerators, which need more to do at once
SPILL = 2  # times the cache: what is worth a second compilation


def wanted(runs: int, devices: int, platform: str) -> int:
    """Runs side by side on each device if memory were no limit.

    Args:
      runs: in one program.
      devices: that share them.
      platform: "cpu", "gpu", "tpu".

    Example: few runs go all at once, many in eight launches.
      >>> from wd_optax.sweeping import plan
      >>> plan.wanted(64, 4, "cpu"), plan.wanted(4096, 4, "cpu"), plan.wanted(4096, 4, "gpu")
      (16, 128, 256)

    """
    each = -(-runs // devices)
    return even(each, max(-(-each // LAUNCHES), NARROW.get(platform, WIDE)))


def even(runs: int, limit: int) -> int:
    """The width up to a limit that does so many runs in the fewest launches, and wastes least on the last.

    Example: 32 runs, at most 23 at a time, are twice 16.
      >>> from wd_optax.sweeping import plan
      >>> plan.even(32, 23)
      16

    """
    return -(-runs // -(-runs // max(limit, 1)))


def fit(compile_at: Callable[[int], Any], runs: int, devices: Any) -> tuple[int, Any]:
    """How many of so many runs go side by side on each device, and the program compiled for that.

    It is compiled at the width wanted. Only if its own memory analysis says that this doesn't fit, it is compiled
    again, at a width that does. On a CPU it should also fit the cache: products of matrices that spill are slower.
    """
    local = [device for device in devices if device.process_index == jax.process_index()]
    width, free = wanted(runs, len(devices), local[0].platform), free_memory(local)
    close = cache(len(local)) if local[0].platform == "cpu" else math.inf
    while True:
        program = compile_at(width)
        needed = max(working_set(program), 1)
        if width == 1 or (needed <= free and needed <= SPILL * close):
            break
        logging.info("sweep: %d runs side by side need %.3g MB per device", width, needed / 1e6)
        width = even(-(-runs // len(devices)), min(width - 1, int(width * min(free, close) // needed)))
    if needed > free:
        logging.warning("sweep: one run needs %.3g MB, and %.3g MB are free", needed / 1e6, free / 1e6)
    return width, program


def working_set(program: Any) -> int:
    """Bytes that a compiled program holds on each device while it runs."""
    m = program.memory_analysis()
    return m.temp_size_in_bytes + m.output_size_in_bytes + m.argument_size_in_bytes if m else 0


def free_memory(local: list[Any]) -> float:
    """Bytes that one of this process' devices may use; the CPU's devices share the machine's."""
    stats = [device.memory_stats() or {} for device in local]
    if all("bytes_limit" in s for s in stats):
        return SHARE * min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats)
    return SHARE * min(_available()) / len(local)


def _available() -> list[int]:
    """What the machine and the container say is left."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if match := re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo")):
        found.append(int(match[1]) * 1024)
    limit, used = (_read(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    return [*found, int(limit) - int(used)] if limit.isdigit() and used.isdigit() else found


def cache(devices: int) -> float:
    """Bytes of the CPU's last cache for each of so many devices; infinite where the system doesn't tell."""
    sizes = [_read(path) for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max((int(s.strip()[:-1]) * units[s.strip()[-1]] for s in sizes if s), default=math.inf) / devices


def _read(path: Any) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""
