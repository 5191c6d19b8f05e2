"""A worker process: it trains when told to, and says how long that took. Needs nothing but Python."""

import json
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable


def serve(train: Callable[[int], list[float]], compiling: Callable[[], float] = lambda: 0.0) -> None:
    """Answers each line, a number of points, with JSON: seconds, those of them spent compiling, losses, bytes.

    Args:
      train: trains that many points and returns the loss of each.
      compiling: seconds spent so far.
    """
    for line in sys.stdin:
        before, began = compiling(), time.perf_counter()
        losses = train(int(line))
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "compiling": compiling() - before, "losses": losses, "bytes": peak_bytes()}
        print(json.dumps(answer), flush=True)


def peak_bytes() -> int:
    """The most memory that this process has held."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins with what the parent held
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
