"""Worker process that trains on request and reports the time. Needs only Python."""

import json
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable


def serve(train: Callable[[int], list[float]], compiling: Callable[[], float] = lambda: 0.0) -> None:
    """Answers each input line, a number of points, with JSON: seconds, of which compiling, losses, bytes.

    Args:
      train: trains that many points and returns their losses.
      compiling: seconds spent compiling so far.
    """
    for line in sys.stdin:
        before, began = compiling(), time.perf_counter()
        losses = train(int(line))
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "compiling": compiling() - before, "losses": losses, "bytes": peak_bytes()}
        print(json.dumps(answer), flush=True)


def peak_bytes() -> int:
    """Peak memory of this process."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss includes the parent's peak
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
