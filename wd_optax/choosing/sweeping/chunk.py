"""A file of finished runs: a netCDF dataset that names its sweep, followed by a checksum."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from wd_optax.optional import require

SEAL = b"\nwd_optax sha256 "  # and 64 hexadecimal digits
SEAL_SIZE = len(SEAL) + 64


class Chunk(NamedTuple):
    """The finished runs of one launch."""

    group: str  # the static values
    width: int  # of the batches that they were trained in
    requested: int  # the width that `chunk=` asked for; 0 without it
    runs: np.ndarray  # shape=(runs,): positions in the grid
    diverged: np.ndarray  # shape=(runs,), dtype=bool
    metrics: dict[str, np.ndarray]  # shape=(runs, ...), float32, float64, int64 or uint64


def encode(sweep: str, chunk: Chunk) -> bytes:
    """The content of a file, for the sweep with this identity."""
    variables: dict[str, Any] = {"runs": ("run", chunk.runs.astype(np.int32))}
    variables["diverged"] = ("run", chunk.diverged.astype(np.int8))
    for i, (name, x) in enumerate(chunk.metrics.items()):  # not every metric's name is a valid netCDF name
        dims = ["run", *(f"metric_{i}_{k}" for k in range(1, x.ndim))]
        if x.dtype.kind in "iu":  # netCDF 3 has no integers of 64 bits: store two halves
            dims, x = [*dims, "half"], np.ascontiguousarray(x)[..., None].view(np.int32)
        variables[f"metric_{i}"] = (dims, x, {"long_name": name, "type": str(chunk.metrics[name].dtype)})
    attrs = {
        "sweep": sweep,
        "program": chunk.group,
        "width": np.int32(chunk.width),
        "asked": np.int32(chunk.requested),
    }
    content = bytes(require("xarray").Dataset(variables, attrs=attrs).to_netcdf(engine="scipy"))
    return content + _seal(content)


def decode(sweep: str, content: bytes, names: Sequence[str]) -> Chunk:
    """The chunk that was encoded, bit for bit; `names` are those of the metrics, in order.

    Raises:
      ValueError: for a file that is truncated, changed or of another sweep, saying which.

    """
    body, seal = content[:-SEAL_SIZE], content[-SEAL_SIZE:]
    if not seal.startswith(SEAL):
        raise ValueError("it is truncated, or not a file of a sweep")
    if seal != _seal(body):
        raise ValueError("its checksum is wrong: bits of it have changed")
    with require("xarray").open_dataset(io.BytesIO(body), engine="scipy", mask_and_scale=False) as data:
        attrs = data.attrs
        if attrs["sweep"] != sweep:
            raise ValueError(f"it belongs to another sweep, {attrs['sweep'][:12]}…; this one is {sweep[:12]}…")
        return Chunk(
            attrs["program"],
            int(attrs["width"]),
            int(attrs["asked"]),
            _native(data["runs"].values),
            data["diverged"].values.astype(bool),
            {name: _metric(data[f"metric_{i}"]) for i, name in enumerate(names)},
        )


def _seal(content: bytes) -> bytes:
    return SEAL + hashlib.sha256(content).hexdigest().encode()


def _native(x: np.ndarray) -> np.ndarray:
    """Converts netCDF's big-endian numbers."""
    return x.astype(x.dtype.newbyteorder("="))


def _metric(variable: Any) -> np.ndarray:
    x, dtype = _native(variable.values), np.dtype(variable.attrs["type"])
    return x.view(dtype)[..., 0] if dtype.kind in "iu" else x
