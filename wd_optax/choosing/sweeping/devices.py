"""The devices that train."""

import os
from typing import Any

import jax
from absl import logging


def usable_devices(devices: Any, most: int) -> list[jax.Device]:
    """The devices, at most as many as have something to do unless there are several processes."""
    try:
        found = list(jax.devices() if devices is None else devices)
    except TypeError:
        raise TypeError(f"devices={devices!r}: pass a list, such as jax.devices()[:1]") from None
    if not found or not all(isinstance(device, jax.Device) for device in found) or len({*found}) < len(found):
        raise ValueError(f"devices={found}: pass a list of distinct devices such as jax.devices(), or None for all")
    processes = {device.process_index for device in found}
    if len(processes) < jax.process_count():
        raise ValueError(f"devices={found}: every process needs one: pass jax.devices(), not jax.local_devices()")
    cores = os.cpu_count() or 1
    if len(found) == 1 and found[0].platform == "cpu" and cores > 1:
        hint = 'jax.config.update("jax_num_cpu_devices", %d) before the first array would use them in parallel'
        logging.info(f"sweep: one CPU device on %d cores: {hint}", cores, cores)
    return found[:most] if len(processes) == 1 else found
