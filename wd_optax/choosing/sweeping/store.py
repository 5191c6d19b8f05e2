"""Finished runs on disk: a folder with a manifest, a lock, and one file per launch, each written atomically."""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from absl import logging

from wd_optax.choosing.sweeping import chunk as chunks
from wd_optax.choosing.sweeping import identity
from wd_optax.choosing.sweeping.chunk import Chunk

FORMAT = 2  # 1 had no checksums
MANIFEST = "manifest.json"
CHUNK = re.compile(r"runs-\d{8,}\.nc")
PART = re.compile(rf"({MANIFEST}|{CHUNK.pattern})\.part")
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or ")
ADVICE |= dict.fromkeys(READ_ONLY, "make it writable, or ")


class Store:
    """A folder that belongs to one sweep. Only one process at a time may have it open."""

    def __init__(self, directory: pathlib.Path, manifest: dict[str, Any], *, reading: bool = False):
        """Opens or creates the folder. For `reading` alone it takes no lock and changes no file.

        Raises:
          ValueError: if it belongs to another sweep, with what differs, or if its manifest is damaged.
          RuntimeError: if another process has it open.
          OSError: if it can't be written, unless it holds a sweep already, which `load` can read.

        """
        self.path, self.manifest, self.sweep = directory, manifest, identity.digest(manifest)
        self.lock: IO[str] | None = None
        self.read_only = OSError(errno.EROFS, "opened for reading") if reading else None  # why nothing can be saved
        try:
            with self._explained():
                if not reading:
                    self._open()
                self._claim()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Takes the lock. The kernel releases it when this process ends, however it ends."""
        import fcntl

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = (self.path / "lock").open("a")
        except OSError as error:
            if error.errno not in READ_ONLY or not os.path.isfile(self.path / MANIFEST):
                raise
            self.read_only = error
            return
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = f"directory={str(self.path)!r} is in use by another process: wait for it, or pass another directory"
            raise RuntimeError(what) from None

    def close(self) -> None:
        """Releases the lock."""
        if self.lock:
            self.lock.close()

    def _claim(self) -> None:
        """Checks that the folder belongs to this sweep or to none, before anything in it is changed."""
        file = self.path / MANIFEST
        content = file.read_bytes() if os.path.exists(file) else None
        self.owned = content is not None and self._is_ours(content)  # whether the manifest is this sweep's
        if content is None and (files := sorted(self.path.glob("*.nc"))):
            self._recover(files)
        if not self.read_only:
            for leftover in self._files(PART):  # of a process that was killed while it wrote
                leftover.unlink()

    def _is_ours(self, content: bytes) -> bool:
        """Whether a manifest is this sweep's; False also if it is another's that has no finished run.

        Raises:
          ValueError: if it belongs to another sweep that has finished runs, or is damaged.

        """
        where = f"directory={str(self.path)!r}"
        try:
            found = dict(json.loads(content))
        except (ValueError, TypeError):
            found = {}
        if {"axes", "train", "widths"} <= set(found):
            raise ValueError(
                f"{where} was made by an earlier version of wd_optax, whose files have no checksums: "
                "pass another directory, or finish it with that version"
            )
        if "identity" not in found or _as_bytes(found["identity"]) != content:
            file = self.path / MANIFEST
            raise ValueError(
                f"{where}: {MANIFEST} is damaged, or not a sweep's; nothing in the folder was changed. If it is this "
                "sweep's, move the manifest away and call again; files that this sweep wrote carry its identity and "
                f"are taken: pathlib.Path({str(file)!r}).rename({str(file) + '.bad'!r})"
            )
        lines = list(identity.differences(found["identity"], self.manifest))
        if lines and self._files(CHUNK):
            raise ValueError(
                f"{where} was made by another sweep:\n  " + "\n  ".join(lines) + "\n"
                "make the same call to resume it, or pass another directory"
            )
        return not lines

    def _recover(self, files: list[pathlib.Path]) -> None:
        """Restores a lost manifest if one of the files carries this sweep's identity."""
        problems = []
        for path in files:
            try:
                self._decode(path)
            except ValueError as error:
                problems.append(f"{path.name}: {error}")
        if len(problems) == len(files):
            raise ValueError(
                f"directory={str(self.path)!r} has .nc files and no {MANIFEST}, and none is of this sweep "
                f"({problems[0]}): pass another directory"
            )
        self._write_manifest()

    def load(self) -> Iterator[Chunk]:
        """Yields what `save` wrote, bit for bit. Damaged or foreign files are logged and set aside, not yielded."""
        taken: set[int] = set()
        with self._explained():
            for path in self._files(CHUNK):
                try:
                    chunk = self._decode(path)
                    if path.name != _file_name(chunk.runs) or taken & {*chunk.runs.tolist()}:
                        raise ValueError("it is a copy of another file, or has runs of another file")
                except ValueError as error:
                    self._set_aside(path, error)
                    continue
                taken |= {*chunk.runs.tolist()}
                yield chunk

    def save(self, chunk: Chunk) -> None:
        """Writes the runs of a launch, and before the first one the manifest."""
        self.check_writable()
        with self._explained():
            if not self.owned:
                self._write_manifest()
            self._write(_file_name(chunk.runs), chunks.encode(self.sweep, chunk))

    def check_writable(self) -> None:
        """Raises an OSError if the folder can only be read."""
        if self.read_only:
            with self._explained():
                raise self.read_only

    def _decode(self, path: pathlib.Path) -> Chunk:
        return chunks.decode(self.sweep, path.read_bytes(), list(self.manifest["metrics"]))

    def _set_aside(self, path: pathlib.Path, why: ValueError) -> None:
        """Renames a bad file, unless the folder can only be read."""
        aside = path
        if not self.read_only:
            names = (path.with_name(f"{path.name}.bad{i or ''}") for i in itertools.count())
            aside = next(name for name in names if not name.exists())
            path.rename(aside)
        logging.warning("sweep: %s: %s; its runs are trained again, and it is kept as %s", path, why, aside.name)

    def _files(self, pattern: re.Pattern[str]) -> list[pathlib.Path]:
        """Files with a name that this class writes; all others in the folder are left alone."""
        return sorted(path for path in self.path.iterdir() if pattern.fullmatch(path.name) and path.is_file())

    def _write_manifest(self) -> None:
        self._write(MANIFEST, _as_bytes(self.manifest))
        self.owned = True

    def _write(self, name: str, content: bytes) -> None:
        """Writes a file atomically and durably: the content and then the name are synced before this returns."""
        part = self.path / f"{name}.part"
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path / name)
            _sync(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises OSErrors with the folder's name, what is safe, and what to do."""
        try:
            yield
        except OSError as error:
            what = f"{error.strerror}: directory={str(self.path)!r}; what was finished is kept"
            advice = f"{ADVICE.get(error.errno or 0, '')}pass another directory, and call again"
            raise OSError(error.errno, f"{what}: {advice}") from error


def _file_name(runs: np.ndarray) -> str:
    return f"runs-{runs[0]:08d}.nc"


def _as_bytes(manifest: dict[str, Any]) -> bytes:
    """The content of the manifest's file. It is compared byte by byte."""
    content = {"format": FORMAT, "sweep": identity.digest(manifest), "identity": manifest}
    return json.dumps(content, indent=1).encode()


def _sync(folder: pathlib.Path) -> None:
    """Syncs the names in a folder to disk, if its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
