"""Finished blocks on disk: a folder with a manifest, a lock, and a netCDF file for each launch, written atomically."""

import contextlib
import errno
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from wd_optax.sweeping.extras import need


class Store:
    """A folder that one sweep owns; only one process at a time has it open."""

    def __init__(self, directory: Any, manifest: dict[str, Any], width: int | None):
        """Opens or makes the folder, for blocks of this width or, with None, of any.

        Raises:
          ValueError: if another sweep made it, with what differs.
          RuntimeError: if another process has it open.
          OSError: if it can't be written.

        """
        self.path, self.manifest = pathlib.Path(directory), json.loads(json.dumps(manifest))
        with self._clear():
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = (self.path / "lock").open("a")
        try:
            self._claim()
            with self._clear():
                for left in self.path.glob("*.part"):  # by a process that was killed while it wrote
                    left.unlink()
                self.widths = self._resume(width)
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        """Takes the lock; the kernel releases it when this process ends, however it ends."""
        import fcntl

        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = f"directory={str(self.path)!r} is in use by another process: wait for it, or pass another directory"
            raise RuntimeError(what) from None

    def close(self) -> None:
        """Gives the folder back."""
        self.lock.close()

    def _resume(self, asked: int | None) -> dict[str, int]:
        """The width of each program's blocks; none in a new folder."""
        file = self.path / "manifest.json"
        if not file.exists():
            if any(self.path.glob("*.nc")):
                raise ValueError(f"directory={str(self.path)!r} has .nc files and no manifest: pass another directory")
            return {}
        found = json.loads(file.read_text())
        widths = found.pop("widths")
        lines = list(_differences(found, self.manifest))
        if asked and set(widths.values()) != {asked}:
            what = "runs side by side on each device"
            lines.append(f"chunk: {min(widths.values())} {what} there, {asked} here; chunk=None takes what is there")
        if lines:
            raise ValueError(
                f"directory={str(self.path)!r} was made by another sweep:\n  " + "\n  ".join(lines) + "\n"
                "make the same call to resume it, or pass another directory"
            )
        return widths

    def start(self, widths: dict[str, int]) -> None:
        """Writes the manifest, before a program's first block is trained."""
        self._write("manifest.json", json.dumps(self.manifest | {"widths": widths}, indent=1).encode())

    def save(self, runs: np.ndarray, metrics: dict[str, np.ndarray]) -> None:
        """Writes a launch: positions in the grid, shape=(runs,), and float metrics, shape=(runs, ...)."""
        variables: dict[str, Any] = {"runs": ("run", runs.astype(np.int32))}
        for i, (name, x) in enumerate(metrics.items()):  # a metric's name may be anything, a netCDF variable's may not
            dims = ["run", *(f"metric_{i}_{k}" for k in range(1, x.ndim))]
            variables[f"metric_{i}"] = (dims, x, {"long_name": name})
        content = need("xarray").Dataset(variables).to_netcdf(engine="scipy")
        self._write(f"runs-{runs[0]:08d}.nc", bytes(content))

    def load(self) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """What `save` wrote, bit for bit: runs, and the metrics in the manifest's order."""
        for file in sorted(self.path.glob("runs-*.nc")):
            content = io.BytesIO(file.read_bytes())
            with need("xarray").open_dataset(content, engine="scipy", mask_and_scale=False) as data:
                arrays = [data[f"metric_{i}"].values for i in range(len(self.manifest["metrics"]))]
                yield data["runs"].values, [x.astype(x.dtype.newbyteorder("=")) for x in arrays]

    def _write(self, name: str, content: bytes) -> None:
        """All or nothing."""
        part = self.path / f"{name}.part"
        with self._clear():
            try:
                with part.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(self.path / name)
            except OSError:
                with contextlib.suppress(OSError):
                    part.unlink()
                raise

    @contextlib.contextmanager
    def _clear(self) -> Iterator[None]:
        """Says which folder, and what of it is safe."""
        try:
            yield
        except OSError as error:
            mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "make it writable"
            what = f"{error.strerror}: directory={str(self.path)!r}; what was finished is kept"
            raise OSError(error.errno, f"{what}: {mend}, or pass another directory, and call again") from error


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Lines that name what differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            path = f"{where}.{key}" if where else key
            yield from _differences(old.get(key, "nothing"), new.get(key, "nothing"), path)
    elif old != new:
        show = lambda x: text if len(text := str(x)) <= 200 else f"{text[:200]}…"
        yield f"{where}: {show(old)} there, {show(new)} here"
