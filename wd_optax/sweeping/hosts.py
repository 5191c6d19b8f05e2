"""What the processes of a multi-host job must agree on: process 0 decides, and its errors are everyone's."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def leads() -> bool:
    """Whether this is process 0, which writes and shows."""
    return jax.process_index() == 0


def from_leader(make: Callable[[], Any]) -> Any:
    """What `make` returns on process 0, something that JSON can hold, on every process.

    Raises:
      RuntimeError: where process 0 raised, on the others; there, what it raised.

    Example:
      >>> from wd_optax.sweeping import hosts
      >>> hosts.from_leader(lambda: [1, 2])
      [1, 2]

    """
    if jax.process_count() == 1:
        return make()
    value, error = None, None
    if leads():
        try:
            value = make()
        except Exception as raised:
            error = raised
    text = json.dumps([value, error and f"{type(error).__name__}: {error}"]).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    mine = np.frombuffer(text, np.uint8) if leads() else np.zeros(size, np.uint8)
    value, told = json.loads(broadcast(mine).tobytes())
    if error:
        raise error
    if told:
        raise RuntimeError(f"process 0 of the sweep stopped: {told}")
    return value


def broadcast(array: np.ndarray) -> np.ndarray:
    """Process 0's array on every process, bit for bit: JAX would make float64 float32."""
    if jax.process_count() == 1:
        return array
    sent = multihost_utils.broadcast_one_to_all(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return np.asarray(sent, np.uint8).view(array.dtype).reshape(array.shape)


def least(value: int) -> int:
    """The least over all processes."""
    return int(np.min(multihost_utils.process_allgather(np.int32(value)))) if jax.process_count() > 1 else value
