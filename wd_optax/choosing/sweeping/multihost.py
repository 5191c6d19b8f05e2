"""Communication between the processes of a multi-host job. An error on one process is raised on all of them."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def is_leader() -> bool:
    """Whether this is process 0, which writes files and shows progress."""
    return jax.process_index() == 0


def gather_texts(mine: str) -> list[str]:
    """The texts of all processes, on every process."""
    if jax.process_count() == 1:
        return [mine]
    content = np.frombuffer(mine.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(content)))).tolist()
    if not any(sizes):
        return [""] * len(sizes)
    padded = np.pad(content, (0, max(sizes) - len(content)))
    rows = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def run_on_all(step: Callable[[], T]) -> T:
    """Runs `step` on every process and returns this process' result. If it raises on one process, it raises on all.

    Otherwise the other processes would wait in their next collective until JAX's heartbeat times out, minutes later.

    Raises:
      RuntimeError: if another process raised, with its number and its error.

    """
    error = None
    try:
        value = step()
    except Exception as raised:
        error = raised
    problems = gather_texts(f"{type(error).__name__}: {error}" if error else "")
    if error:
        raise error
    for process, text in enumerate(problems):
        if text:
            raise RuntimeError(f"process {process} of the sweep stopped: {text}")
    return value


def from_leader(make: Callable[[], Any]) -> Any:
    """Calls `make` on process 0 and returns its result, which JSON can hold, on every process.

    Raises:
      RuntimeError: on the other processes if process 0 raised.

    """
    value = run_on_all(lambda: make() if is_leader() else None)
    return json.loads(gather_texts(json.dumps(value))[0]) if jax.process_count() > 1 else value


def broadcast(array: np.ndarray) -> np.ndarray:
    """Process 0's array on every process. It is sent as bytes, because JAX would convert float64 to float32."""
    if jax.process_count() == 1:
        return array
    sent = multihost_utils.broadcast_one_to_all(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return np.asarray(sent, np.uint8).view(array.dtype).reshape(array.shape)


def minimum(value: int) -> int:
    """The minimum over all processes."""
    return min(map(int, gather_texts(str(value))))
