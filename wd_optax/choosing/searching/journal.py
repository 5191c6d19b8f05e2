"""A file for Optuna's journal storage, in Optuna's own format, that survives `kill -9` at any moment.

Optuna's `JournalFileBackend` locks with a file of its own. A killed process leaves it, and the others wait for its
grace period of 30 s; and half a line, left by a process that was killed within a write, makes the journal unreadable.
Here the kernel releases the lock with the process, and the next write removes half a line.
"""

import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

BLOCK = 2**16  # bytes to look for the last line in


class JournalFile:
    """The backend of an `optuna.storages.JournalStorage`."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.offsets = {0: 0}  # where each log begins that was read
        path.touch()
        with path.open("rb") as file:
            if file.read(1) not in (b"", b"{"):
                raise ValueError(f"{str(path)!r} isn't the journal of a search: pass another directory")

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yields the logs from this number on.

        Raises:
          ValueError: for a damaged line.

        """
        import fcntl

        start = log_number_from if log_number_from in self.offsets else 0
        offset = self.offsets[start]
        with self.path.open("rb") as file:
            # Without the lock, half of what a killed worker left could be read with half of what replaces it.
            fcntl.flock(file, fcntl.LOCK_SH)
            file.seek(offset)
            content = file.read()
        for number, line in enumerate(io.BytesIO(content), start):
            if not line.endswith(b"\n"):  # its worker was killed
                return
            offset += len(line)
            self.offsets[number + 1] = offset
            if number >= log_number_from:
                yield self._parse(line, number + 1)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            log: dict[str, Any] = json.loads(line)
        except ValueError as error:  # JSON's, or Unicode's
            raise ValueError(
                f"{str(self.path)!r} is damaged in line {number}: restore it, or cut it before that line "
                f"to keep the trials above, head -n {number - 1}; nothing in it was changed"
            ) from error
        return log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends logs durably."""
        import fcntl

        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self.path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(_end_of_lines(file))
            file.truncate()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - BLOCK, 0)
        file.seek(start)
        if (found := file.read(end - start).rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0
