"""What a finished run is: everything that its numbers depend on, as JSON has it, and the lines that name a change."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator
from typing import Any

import jax

from wd_optax.choosing.sweeping.grid import Grid
from wd_optax.version import __version__

# JAX's settings that change no number, by a part of their names; any other is compared. Rules of promotion act while
# a function is traced, so what they change is in the traced program.
HARMLESS = re.compile(
    "address|array_garbage|async_dispatch|backend|cache|check|collectives|cuda|debug|default_device|detailed|"
    "distributed|dump|explain|export|guard|hlo_source|leak|location|log|mock|num_cpu|pgle|platform|pprint|preemption|"
    "profile|promotion|recoverability|serialization|share_binary|socket|sort_devices|source|timeout|trace|"
    "transfer|visible|warn|pjrt_client"
)
HARMLESS_FLAGS = re.compile(r"--xla_(force_host_platform_device_count|dump_|hlo_profile|\w*timeout|\w*parallelism)")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")  # the environment that XLA reads


def manifest(grid: Grid, metrics: dict[str, Any], train: dict[str, str], device: Any) -> dict[str, Any]:
    """The identity of a sweep's runs.

    Args:
      grid: its axes in order, and seeds.
      metrics: {name: shape and dtype}.
      train: {static values: fingerprint of the traced function}.
      device: one of those that train.

    Returns:
      What JSON can hold; two sweeps with equal manifests train the same runs to the same numbers.

    """
    content = {
        "versions": versions(),
        "settings": settings(),
        "device": f"{device.platform} {device.device_kind} ({platform.machine()})",
        "axes": [
            {"name": axis.name, "type": "static" if axis.static else str(axis.values.dtype), "values": axis.labels}
            for axis in grid.axes
        ],
        "seeds": grid.seeds,
        "metrics": {name: [list(m.shape), str(m.dtype)] for name, m in metrics.items()},
        "train": train,
    }
    return dict(json.loads(json.dumps(content)))


def versions() -> dict[str, str]:
    """Of what computes: Python's without its patch level."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"wd_optax": __version__, **packages, "python": ".".join(platform.python_version_tuple()[:2])}


def settings() -> dict[str, str]:
    """JAX's settings here and now, in a `with` block too, and the flags that XLA reads from the environment.

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


def digest(content: Any) -> str:
    """The SHA-256 of a manifest, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any], there: str = "there", here: str = "here") -> Iterator[str]:
    """Lines that name what differs between two manifests.

    Example: other values of an axis, then another order.
      >>> from wd_optax.choosing.sweeping import identity
      >>> x, y, z = ({"name": "x", "values": [1]}, {"name": "y", "values": [2]}, {"name": "x", "values": [3]})
      >>> for line in identity.differences({"axes": [x, y]}, {"axes": [y, z]}):
      ...     print(line)
      axes: ['x', 'y'] there, ['y', 'x'] here
      axes.x: [1] there, [3] here

    """
    before, after = dict(_flat(old)), dict(_flat(new))
    for path in before | after:
        texts = [json.dumps(side.get(path)) for side in (before, after)]
        if texts[0] != texts[1]:
            shown = [_short(side.get(path, "nothing")) for side in (before, after)]
            yield f"{path}: {shown[0]} {there}, {shown[1]} {here}"


def _flat(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, value) of each entry; an axis by its name, after the axes' order."""
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


def _short(value: Any) -> str:
    return text if len(text := str(value)) <= 200 else f"{text[:200]}…"
