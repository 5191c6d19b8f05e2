"""Worker processes that measure on request. Needs only Python."""

import json
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def peak_bytes() -> int:
    """Peak memory of this process."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss includes the parent's peak
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(
    train: Callable[[int], list[float]],
    compiling: Callable[[], float] = lambda: 0.0,
    memory: Callable[[], int] = peak_bytes,
) -> None:
    """Answers each input line, a number of points, with JSON: seconds, of which compiling, losses, bytes.

    Args:
      train: trains that many points and returns their losses.
      compiling: seconds spent compiling so far.
      memory: peak bytes so far, of the process or of its device.
    """
    for line in sys.stdin:
        before, began = compiling(), time.perf_counter()
        losses = train(int(line))
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "compiling": compiling() - before, "losses": losses, "bytes": memory()}
        print(json.dumps(answer), flush=True)


def serve_methods(worker: Any) -> None:
    """Answers each input line, [method, arguments, named arguments] as JSON, with what the worker's method returns.

    A method for which the memory doesn't suffice returns null.
    """
    for line in sys.stdin:
        method, arguments, named = json.loads(line)
        try:
            answer = getattr(worker, method)(*arguments, **named)
        except Exception as error:
            if not re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE):
                raise
            answer = None
        print(json.dumps(answer), flush=True)
