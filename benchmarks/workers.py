"""Clients of the processes that `step.py` measures: each has one framework, and answers methods by name."""

import json
import os
import pathlib
import subprocess
from typing import Any


class Worker:
    """A process that serves the methods of a script's class, see `serving.serve_methods`. It starts when asked."""

    def __init__(self, python: str, script: str, device: str, environment: dict[str, str]) -> None:
        self.command = [python, str(pathlib.Path(__file__).with_name(script)), device]
        self.environment = environment | os.environ  # what the user has set stays
        self.process: subprocess.Popen[str] | None = None

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """What the method returns; None if the memory didn't suffice."""
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment
            )
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps([method, arguments, named]), file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"{' '.join(self.command)} ended at {method}: see its output above")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process, and with it all memory that it holds on the device."""
        if self.process is not None:
            self.process.communicate()
            self.process = None


def memory(turns: int) -> dict[str, str]:
    """Environment of JAX's process: how it takes a GPU's memory. Alone it takes nearly all, at once and unfragmented.

    (docs.jax.dev/en/latest/201/gpu-memory.html)
    """
    if not turns:
        return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # it leaves memory for torch's process
    return {"XLA_CLIENT_MEM_FRACTION": "0.92"}


def find_torch(python: str, platform: str) -> str | None:
    """Why torch can't be measured, or None if it can."""
    device = {"cpu": "cpu", "gpu": "cuda"}.get(platform)
    if device is None:
        return f"torch doesn't support {platform}"
    code = f"import torch; torch.empty(0, device={device!r})"
    tried = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return (tried.stderr.strip().splitlines() or [f"{python} fails"])[-1] if tried.returncode else None
