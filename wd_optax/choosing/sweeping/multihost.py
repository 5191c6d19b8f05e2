"""Agreement between the processes of a multi-host job: errors of one are everyone's, and all make the same call."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def leads() -> bool:
    """Whether this is process 0, which writes and shows."""
    return jax.process_index() == 0


def texts(mine: str) -> list[str]:
    """The text of every process, on every process.

    Example:
      >>> from wd_optax.choosing.sweeping import multihost
      >>> hosts.texts("one process")
      ['one process']

    """
    if jax.process_count() == 1:
        return [mine]
    content = np.frombuffer(mine.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(content)))).tolist()
    if not any(sizes):
        return [""] * len(sizes)
    padded = np.pad(content, (0, max(sizes) - len(content)))
    rows = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def together(step: Callable[[], Any]) -> Any:
    """Runs `step` on every process and returns each process' own result; if it raises on one, it raises on all.

    Without this, the others would wait in their next collective until JAX's heartbeat gives up, minutes later.

    Raises:
      RuntimeError: where another process raised, with its number and its error; there, what it raised.

    Example:
      >>> from wd_optax.choosing.sweeping import multihost
      >>> hosts.together(lambda: 3)
      3

    """
    error = None
    try:
        value = step()
    except Exception as raised:
        error = raised
    problems = texts(f"{type(error).__name__}: {error}" if error else "")
    if error:
        raise error
    for process, text in enumerate(problems):
        if text:
            raise RuntimeError(f"process {process} of the sweep stopped: {text}")
    return value


def from_leader(make: Callable[[], Any]) -> Any:
    """What `make` returns on process 0, something that JSON can hold, on every process.

    Raises:
      RuntimeError: where process 0 raised, on the others; there, what it raised.

    Example:
      >>> from wd_optax.choosing.sweeping import multihost
      >>> hosts.from_leader(lambda: [1, 2])
      [1, 2]

    """
    value = together(lambda: make() if leads() else None)
    return json.loads(texts(json.dumps(value))[0]) if jax.process_count() > 1 else value


def broadcast(array: np.ndarray) -> np.ndarray:
    """Process 0's array on every process, bit for bit: JAX would make float64 float32."""
    if jax.process_count() == 1:
        return array
    sent = multihost_utils.broadcast_one_to_all(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return np.asarray(sent, np.uint8).view(array.dtype).reshape(array.shape)


def least(value: int) -> int:
    """The least over all processes."""
    return min(map(int, texts(str(value))))
