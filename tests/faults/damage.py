"""Files of a finished sweep that are changed, truncated, or of another sweep."""

import functools
import pathlib
import random
import shutil
import tempfile
from typing import Any

from wd_optax.choosing.sweeping.store import MANIFEST

from . import sweeps
from .kills import verdict


@functools.cache
def finished() -> pathlib.Path:
    """Folders of two finished sweeps of one shape, made once in each process."""
    folder = pathlib.Path(tempfile.mkdtemp())
    sweeps.sweep(folder / "mine", **sweeps.SMALL)
    sweeps.sweep(folder / "other", **(sweeps.SMALL | {"axes": {"x": [1.0, 2.0, 3.0, 5.0]}}))
    return folder


@functools.cache
def right() -> dict[str, Any]:
    """The right numbers: those of a sweep without a folder."""
    return sweeps.numbers(**sweeps.SMALL)


def damaged(seed: int, folder: pathlib.Path) -> str:
    """Damages one file of a finished sweep and makes the same call."""
    draw = random.Random(seed)
    mine = folder / "sweep"
    shutil.copytree(finished() / "mine", mine)
    files = sorted(mine.glob("runs-*.nc"))
    file = mine / MANIFEST if draw.random() < 0.2 else draw.choice(files)
    before = file.read_bytes()
    kind = draw.choice([flip, flip, flip, truncate, truncate, zero_tail, zero_block, garble, append, foreign, copied])
    content = kind(before, draw, file)
    if content == before:
        content = flip(before, draw, file)
    file.write_bytes(content)
    others = {name: found for name, found in sweeps.chunks(mine).items() if name != file.name}
    try:
        found = sweeps.numbers(mine, **sweeps.SMALL)
    except ValueError as error:
        if file.name != MANIFEST or not any(text in str(error) for text in (f"{MANIFEST} is damaged", "another sweep")):
            return f"ERROR: {error}"
        return manifest_refused(mine, file, content, others)
    if file.name == MANIFEST:
        return "ACCEPTED WRONG manifest"
    aside = file.with_name(f"{file.name}.bad")
    if not aside.exists():
        return "ACCEPTED WRONG file"
    if aside.read_bytes() != content:
        return "LOST the bad file"
    return verdict(mine, found, others, "bad file named and kept aside, its runs trained again", right())


def manifest_refused(mine: pathlib.Path, file: pathlib.Path, content: bytes, others: dict[str, Any]) -> str:
    """Checks that nothing was changed, and that the line in the error works."""
    if file.read_bytes() != content or sweeps.chunks(mine) != others:
        return "LOST: a refused folder was changed"
    file.rename(f"{file}.bad")
    outcome = "bad manifest refused by name, the line in the error resumed it"
    return verdict(mine, sweeps.numbers(mine, **sweeps.SMALL), others, outcome, right())


def flip(content: bytes, draw: random.Random, _: pathlib.Path) -> bytes:
    """Flips a few bits."""
    garbled = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        garbled[draw.randrange(len(garbled))] ^= 1 << draw.randrange(8)
    return bytes(garbled)


def truncate(content: bytes, draw: random.Random, _: pathlib.Path) -> bytes:
    """Cuts off the end, or everything."""
    return content[: draw.choice([0, 1, len(content) - 1, draw.randrange(len(content))])]


def zero_tail(content: bytes, draw: random.Random, _: pathlib.Path) -> bytes:
    """Zeros at the end, as after a crash of a file system that had only allocated the blocks."""
    count = draw.randrange(1, len(content))
    return content[:-count] + bytes(count)


def zero_block(content: bytes, draw: random.Random, _: pathlib.Path) -> bytes:
    """Zeros in a sector of 512 bytes."""
    start = draw.randrange(0, len(content), 512)
    return content[:start] + bytes(len(content[start : start + 512])) + content[start + 512 :]


def garble(content: bytes, draw: random.Random, _: pathlib.Path) -> bytes:
    """Random bytes of the same length."""
    return draw.randbytes(len(content))


def append(content: bytes, draw: random.Random, _: pathlib.Path) -> bytes:
    """More bytes at the end."""
    return content + draw.randbytes(draw.randrange(1, 100))


def foreign(_: bytes, draw: random.Random, file: pathlib.Path) -> bytes:
    """The file of the same name of another sweep of the same shape."""
    return (finished() / "other" / file.name).read_bytes()


def copied(content: bytes, draw: random.Random, file: pathlib.Path) -> bytes:
    """Another file of this sweep under this name."""
    names = [path for path in sorted(file.parent.glob("runs-*.nc")) if path != file]
    return draw.choice(names).read_bytes()
