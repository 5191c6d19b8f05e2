"""The devices that train."""

import os
from typing import TYPE_CHECKING, Any

import jax
from absl import logging

from wd_optax.choosing.sweeping.fingerprint import inner_jaxprs

if TYPE_CHECKING:  # importing it loads Pallas
    from jax.extend.core import Jaxpr

# Primitives whose kernels for CPUs split a batch over XLA's threads, and wait.
LAPACK = {"cholesky", "cholesky_update", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu"}
LAPACK |= {"qr", "schur", "svd", "triangular_solve", "tridiagonal", "tridiagonal_solve"}


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


def without_deadlock(devices: list[jax.Device], *jaxprs: "Jaxpr") -> list[jax.Device]:
    """The devices, but fewer than XLA has threads, on a CPU and where one of the programs calls LAPACK.

    Each device's program holds one of max(cores, devices) threads. A batch of `eigh` is split over the same threads,
    and waits for them: with a program on every thread none is free, forever (jaxlib 0.10, `ParallelBatchMap`).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(cores, len(jax.local_devices())) - 1
    if devices[0].platform != "cpu" or jax.process_count() > 1 or len(devices) <= max(most, 1):
        return devices
    every = (j for jaxpr in jaxprs for j in (jaxpr, *inner_jaxprs(jaxpr)))
    found = {e.primitive.name for j in every for e in j.eqns} & LAPACK
    if not found:
        return devices
    why = "a batch of it on every thread of the CPU would wait for the others"
    logging.info("sweep: %d of %d devices, because train calls %s: %s", most, len(devices), min(found), why)
    return devices[:most]
