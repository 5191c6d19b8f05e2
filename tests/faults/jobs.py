"""Job arrays: the parts of one sweep in processes of their own, two of which are killed and repeated."""

import pathlib
import random
from typing import Any

from . import kills, sweeps
from .forks import Child

JOBS = 4


def parts(seed: int, folder: pathlib.Path) -> str:
    """Four parts at a time, two of them killed: the merge names them; they are repeated, and the merge is right."""
    draw = random.Random(seed)
    victims = draw.sample(range(JOBS), 2)
    children = [_start(i, folder, draw.randrange(3) if i in victims else None) for i in range(JOBS)]
    ends = [child.wait() for child in children]
    if [end[0] for end in ends] != ["killed" if i in victims else "value" for i in range(JOBS)]:
        return f"ERROR: {ends}"
    kept = _files(folder)
    kind, found = Child(sweeps.numbers, folder, devices=1).wait()
    named = {i: f"part=({i}, {JOBS}): " in str(found) for i in range(JOBS)}
    if kind != "error" or named != {i: i in victims for i in range(JOBS)}:
        return f"ERROR: {victims} were killed, and the merge says {kind}: {found}"
    again = [Child(sweeps.numbers, folder, part=(i, JOBS), chunk=None, devices=2) for i in victims]
    if bad := [end for end in (child.wait() for child in again) if end[0] != "value"]:
        return f"ERROR: not resumed: {bad}"
    kind, found = Child(sweeps.numbers, folder, devices=1).wait()
    if kind != "value":
        return f"ERROR: not merged: {found}"
    if found != kills.right():
        return "ACCEPTED WRONG numbers"
    now = _files(folder)
    return "merged bit for bit" if all(now.get(name) == file for name, file in kept.items()) else "LOST finished runs"


def _start(part: int, folder: pathlib.Path, launches: int | None) -> Child:
    """A job; after so many launches it is killed."""
    if launches is None:
        return Child(sweeps.numbers, folder, part=(part, JOBS), devices=2)
    return Child(kills.killed_at_launch, launches, folder, part=(part, JOBS), chunk=sweeps.CHUNK, devices=1)


def _files(folder: pathlib.Path) -> dict[str, Any]:
    return {f"{path}/{name}": file for path in folder.glob("part-*") for name, file in sweeps.chunks(path).items()}
