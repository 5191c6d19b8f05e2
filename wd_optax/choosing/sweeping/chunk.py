"""One launch's runs as a file: a netCDF dataset that names its sweep, and a checksum of all of it at the end."""

import hashlib
import io
from typing import Any, NamedTuple

import numpy as np

from wd_optax.optional import require

SEAL = b"\nwd_optax sha256 "  # and 64 hexadecimal digits
LENGTH = len(SEAL) + 64


class Chunk(NamedTuple):
    """Finished runs of one program."""

    program: str
    width: int  # runs in parallel on each device
    asked: int  # the width that `chunk=` stood for when they were trained; 0 without it
    runs: np.ndarray  # shape=(runs,): positions in the grid
    diverged: np.ndarray  # shape=(runs,), dtype=bool
    metrics: dict[str, np.ndarray]  # shape=(runs, ...), float32, float64, int64 or uint64


def encode(sweep: str, chunk: Chunk) -> bytes:
    """The file's content, for the sweep with this identity.

    Example: what is encoded is decoded, and nothing else is.
      >>> import numpy as np
      >>> from wd_optax.choosing.sweeping import chunk
      >>> one = chunk.Chunk("the grid", 1, 0, np.array([3]), np.array([False]), {"loss": np.array([0.5])})
      >>> content = chunk.encode("id", one)
      >>> chunk.decode("id", content, ["loss"]).metrics
      {'loss': array([0.5])}
      >>> chunk.decode("id", content[:-100], ["loss"])
      Traceback (most recent call last):
      ...
      ValueError: it is truncated, or not a file of a sweep

    """
    variables: dict[str, Any] = {"runs": ("run", chunk.runs.astype(np.int32))}
    variables["diverged"] = ("run", chunk.diverged.astype(np.int8))
    for i, (name, x) in enumerate(chunk.metrics.items()):  # a metric's name may be anything, a netCDF variable's not
        dims = ["run", *(f"metric_{i}_{k}" for k in range(1, x.ndim))]
        if x.dtype.kind in "iu":  # netCDF 3 has no integers of 64 bits: two halves
            dims, x = [*dims, "half"], np.ascontiguousarray(x)[..., None].view(np.int32)
        variables[f"metric_{i}"] = (dims, x, {"long_name": name, "type": str(chunk.metrics[name].dtype)})
    attrs = {"sweep": sweep, "program": chunk.program, "width": np.int32(chunk.width), "asked": np.int32(chunk.asked)}
    content = bytes(require("xarray").Dataset(variables, attrs=attrs).to_netcdf(engine="scipy"))
    return content + SEAL + hashlib.sha256(content).hexdigest().encode()


def decode(sweep: str, content: bytes, names: list[str]) -> Chunk:
    """What `encode` was given, bit for bit.

    Args:
      sweep: the identity of the sweep that asks.
      content: of the file.
      names: of the metrics, in order.

    Raises:
      ValueError: for a file that is truncated, garbled or of another sweep, saying which.

    """
    body, seal = content[:-LENGTH], content[-LENGTH:]
    if not seal.startswith(SEAL):
        raise ValueError("it is truncated, or not a file of a sweep")
    if seal != SEAL + hashlib.sha256(body).hexdigest().encode():
        raise ValueError("its checksum is wrong: bits of it have changed")
    with require("xarray").open_dataset(io.BytesIO(body), engine="scipy", mask_and_scale=False) as data:
        if data.attrs["sweep"] != sweep:
            raise ValueError(f"it belongs to another sweep, {data.attrs['sweep'][:12]}…; this one is {sweep[:12]}…")
        return Chunk(
            data.attrs["program"],
            int(data.attrs["width"]),
            int(data.attrs["asked"]),
            _native(data["runs"].values),
            data["diverged"].values.astype(bool),
            {name: _metric(data[f"metric_{i}"]) for i, name in enumerate(names)},
        )


def _native(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder("="))


def _metric(variable: Any) -> np.ndarray:
    x, dtype = _native(variable.values), np.dtype(variable.attrs["type"])
    return x.view(dtype)[..., 0] if dtype.kind in "iu" else x
