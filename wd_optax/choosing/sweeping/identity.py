"""The identity of a sweep: everything that the numbers of its runs depend on, as JSON, and what differs in another."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from wd_optax.choosing.sweeping.grid import Grid
from wd_optax.version import __version__

# JAX's settings that don't change numbers, by parts of their names; all others are compared. Promotion rules act during
# tracing, so their effect is in the traced program.
HARMLESS = re.compile(
    "address|array_garbage|async_dispatch|backend|cache|check|collectives|cuda|debug|default_device|detailed|"
    "distributed|dump|explain|export|guard|hlo_source|leak|location|log|mock|num_cpu|pgle|platform|pprint|preemption|"
    "profile|promotion|recoverability|serialization|share_binary|socket|sort_devices|source|timeout|trace|"
    "transfer|visible|warn|pjrt_client"
)
HARMLESS_FLAGS = re.compile(r"--xla_(force_host_platform_device_count|dump_|hlo_profile|\w*timeout|\w*parallelism)")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")  # environment variables that XLA reads


def manifest(
    grid: Grid,
    metrics: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    fingerprints: dict[str, str],
    device: jax.Device,
) -> dict[str, Any]:
    """The identity of a sweep, as JSON: two sweeps with equal manifests train the same runs to the same numbers.

    Args:
      grid: axes in order, and seeds.
      metrics: {name: (shape, dtype)}.
      fingerprints: {static group: fingerprint of the traced function}.
      device: one of the devices that train.

    """
    content = {
        "versions": versions(),
        "settings": settings(),
        "device": f"{device.platform} {device.device_kind} ({platform.machine()})",
        "axes": [{"name": axis.name, "type": axis.type, "values": axis.labels} for axis in grid.axes],
        "seeds": grid.seeds,
        "metrics": {name: [list(shape), str(dtype)] for name, (shape, dtype) in metrics.items()},
        "train": fingerprints,
    }
    return dict(json.loads(json.dumps(content)))


def versions() -> dict[str, str]:
    """Versions of this library, JAX, NumPy, and of Python without its patch level."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"wd_optax": __version__, **packages, "python": ".".join(platform.python_version_tuple()[:2])}


def settings() -> dict[str, str]:
    """JAX's settings, including those of an enclosing `with` block, and XLA's flags from the environment.

    Example:
      >>> import jax
      >>> from wd_optax.choosing.sweeping import identity
      >>> with jax.default_matmul_precision("highest"):
      ...     identity.settings()["jax_default_matmul_precision"]
      'highest'

    """
    found = {name: str(value) for name, value in sorted(jax.config.values.items()) if not HARMLESS.search(name)}
    for name in FLAGS:
        flags = [flag for flag in os.environ.get(name, "").split() if not HARMLESS_FLAGS.match(flag)]
        found |= {name: " ".join(sorted(flags))} if flags else {}
    return found


def digest(content: dict[str, Any]) -> str:
    """The SHA-256 of a manifest, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any], there: str = "there", here: str = "here") -> Iterator[str]:
    """Lines that name the differences between two manifests.

    Example: the axes' order, and the values of one axis.
      >>> from wd_optax.choosing.sweeping import identity
      >>> x, y, z = ({"name": "x", "values": [1]}, {"name": "y", "values": [2]}, {"name": "x", "values": [3]})
      >>> for line in identity.differences({"axes": [x, y]}, {"axes": [y, z]}):
      ...     print(line)
      axes: ['x', 'y'] there, ['y', 'x'] here
      axes.x: [1] there, [3] here

    """
    before, after = dict(_entries(old)), dict(_entries(new))
    for path in before | after:
        texts = [json.dumps(side.get(path)) for side in (before, after)]
        if texts[0] != texts[1]:
            shown = [_truncated(side.get(path, "nothing")) for side in (before, after)]
            yield f"{path}: {shown[0]} {there}, {shown[1]} {here}"


def _entries(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, value) of each entry. Axes come first in their order, then each by its name."""
    for key, value in content.items():
        if key == "axes":
            yield key, [axis["name"] for axis in value]
            for axis in value:
                yield f"{key}.{axis['name']}", axis["values"]
                yield f"{key}.{axis['name']} type", axis.get("type")
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", entry) for name, entry in value.items())
        else:
            yield key, value


def _truncated(value: Any) -> str:
    return text if len(text := str(value)) <= 200 else f"{text[:200]}…"
