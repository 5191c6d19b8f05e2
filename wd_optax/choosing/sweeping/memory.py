"""How much memory is free: of a device, of the machine, and of the control groups that this process is in."""

import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

SHARE = 0.8  # of the free memory; the rest is for results in flight and for what else runs
ROOT = pathlib.Path("/")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def free(local: list[Any]) -> float:
    """Bytes that one of this process' devices may use; the CPU's devices share the machine's."""
    stats = [device.memory_stats() or {} for device in local]
    if all("bytes_limit" in s for s in stats):
        return SHARE * min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats)
    return SHARE * max(min(available(), default=math.inf), 0) / len(local)


def available(root: pathlib.Path = ROOT) -> list[int]:
    """Bytes that are left, one number for the machine and one for each control group with a limit.

    Args:
      root: of the file system whose /proc and /sys are read.

    Example:
      >>> from wd_optax.choosing.sweeping import memory
      >>> min(memory.available(), default=1) > 0
      True

    """
    machine = re.search(r"MemAvailable:\s*(\d+) kB", read(root / "proc/meminfo"))
    return [*([int(machine[1]) * 1024] if machine else []), *_groups(root)]


def _groups(root: pathlib.Path) -> Iterator[int]:
    """Every group's limit holds for the groups inside it. A container may show its own group as the mount's root."""
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = pathlib.PurePosixPath(path)
        for inner in (group, *group.parents):
            yield from _left(mount / str(inner).lstrip("/"), V1 if controllers else V2)


def _left(folder: pathlib.Path, names: tuple[str, str, str]) -> Iterator[int]:
    """What a group's limit leaves, if it has one; cached files that the kernel drops when asked count as free."""
    limit, used = (read(folder / name).strip() for name in names[:2])
    if limit.isdigit() and used.isdigit() and int(limit) < 2**62:
        cached = re.search(rf"^{names[2]} (\d+)", read(folder / "memory.stat"), re.MULTILINE)
        yield int(limit) - int(used) + (int(cached[1]) if cached else 0)


def cache(devices: int) -> float:
    """Bytes of the CPU's last cache for each of so many devices; infinite where the system doesn't say."""
    sizes = [read(path) for path in (ROOT / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max((int(s.strip()[:-1]) * units[s.strip()[-1]] for s in sizes if s), default=math.inf) / devices


def read(path: Any) -> str:
    """A file of the system's, empty where there is none."""
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def exhausted(error: BaseException) -> bool:
    """Whether this is an error of too little memory, JAX's or Python's.

    Example:
      >>> from wd_optax.choosing.sweeping import memory
      >>> memory.exhausted(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"))
      True

    """
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))
