"""Free memory of a device, of the machine, and of the control groups of this process."""

import math
import pathlib
import re
from collections.abc import Iterator, Sequence

import jax

SHARE = 0.8  # of free memory; the rest is for results in flight and for other processes
ROOT = pathlib.Path("/")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def free(local: Sequence[jax.Device]) -> float:
    """Bytes that one of this process' devices may use. CPU devices share the machine's memory."""
    stats = [device.memory_stats() or {} for device in local]
    if all("bytes_limit" in s for s in stats):
        return SHARE * min(float(s["bytes_limit"] - s.get("bytes_in_use", 0)) for s in stats)
    return SHARE * max(min(available(), default=math.inf), 0) / len(local)


def available(root: pathlib.Path = ROOT) -> list[int]:
    """Available bytes by /proc and /sys: one number for the machine, and one for each control group with a limit."""
    machine = re.search(r"MemAvailable:\s*(\d+) kB", _read_text(root / "proc/meminfo"))
    return [*([int(machine[1]) * 1024] if machine else []), *_groups(root)]


def _groups(root: pathlib.Path) -> Iterator[int]:
    """Yields the limits of this process' group and its ancestors. In a container the group may be the mount's root."""
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = pathlib.PurePosixPath(path)
        for inner in (group, *group.parents):
            yield from _below_limit(mount / str(inner).lstrip("/"), V1 if controllers else V2)


def _below_limit(folder: pathlib.Path, names: tuple[str, str, str]) -> Iterator[int]:
    """Bytes below the group's limit, if it has one. Cached files count as free, because the kernel can drop them."""
    limit, used = (_read_text(folder / name).strip() for name in names[:2])
    if limit.isdigit() and used.isdigit() and int(limit) < 2**62:
        cached = re.search(rf"^{names[2]} (\d+)", _read_text(folder / "memory.stat"), re.MULTILINE)
        yield int(limit) - int(used) + (int(cached[1]) if cached else 0)


def cache(devices: int) -> float:
    """Bytes of the CPU's last-level cache per device; infinite if the system doesn't report it."""
    sizes = [_read_text(path) for path in (ROOT / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max((int(s.strip()[:-1]) * units[s.strip()[-1]] for s in sizes if s), default=math.inf) / devices


def _read_text(path: pathlib.Path) -> str:
    """The content of a file of the system, empty if it can't be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def exhausted(error: BaseException) -> bool:
    """Whether JAX or Python ran out of memory."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))
