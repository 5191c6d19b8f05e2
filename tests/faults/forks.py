"""Processes for trials, forked from one that has imported everything and not started a JAX backend, to be quick."""

import gc
import importlib
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

from jax._src.lib.mlir import dialects

# What the package imports only where it needs it: children that imported it would spend most of their time on that.
for name in ("jax.extend.core", "optuna", "scipy.io", "tqdm.auto", "wd_optax.choosing.searching.search", "xarray"):
    importlib.import_module(name)
getattr(dialects, "mhlo", None)  # imported lazily by a first lowering, in releases that have it
gc.freeze()  # children don't look at what was imported, which would copy its pages


class Child:
    """A forked process that runs a function."""

    def __init__(self, function: Callable[..., Any], *args: Any, devices: int = 1, **kwargs: Any):
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            _quiet()
            _backend(devices)
            try:
                found = ("value", function(*args, **kwargs))
            except Exception as error:
                found = ("error", f"{type(error).__name__}: {error}")
                traceback.print_exc()
            with open(self.file.name, "wb") as file:
                pickle.dump(found, file)
            status = 0
        finally:
            os._exit(status)

    def kill(self) -> None:
        """kill -9."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def done(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def wait(self, seconds: float = 120) -> tuple[str, Any]:
        """("value", result), ("error", text of the exception), ("killed", status) or ("hangs", seconds)."""
        end = time.monotonic() + seconds
        while not self.done():
            if time.monotonic() > end:
                self.kill()
                os.waitpid(self.pid, 0)
                return "hangs", seconds
            time.sleep(0.005)
        content = open(self.file.name, "rb").read()  # noqa: SIM115
        return pickle.loads(content) if content else ("killed", self.status)


def _quiet() -> None:
    """Discards the output of a child, unless FAULTS_LOG names a file for it."""
    where = os.open(os.environ.get("FAULTS_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(where, stream)


def _backend(devices: int) -> None:
    """Sets the number of CPU devices; a child with 0 devices only forks."""
    if devices:
        import jax

        jax.config.update("jax_num_cpu_devices", devices)


def call(function: Callable[..., Any], *args: Any, devices: int = 1, **kwargs: Any) -> Any:
    """Calls the function in a process of its own."""
    kind, value = Child(function, *args, devices=devices, **kwargs).wait()
    if kind != "value":
        raise RuntimeError(f"{kind}: {value}")
    return value
