"""Parts of a sweep: the jobs of a job array, each with a share of the runs and a folder of its own, and their merge."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from wd_optax.choosing.sweeping import training, values
from wd_optax.choosing.sweeping.grid import StaticGroup
from wd_optax.choosing.sweeping.metrics import MetricTable
from wd_optax.choosing.sweeping.store import MANIFEST, Store

Part = tuple[int, int]  # (i, n): job i of n, from 0
FOLDER = re.compile(r"part-(\d+)-of-(\d+)")


def check_part(part: Any, directory: Any) -> Part | None:
    """The part as a tuple.

    Raises:
      ValueError: if it isn't (i, n) with 0 ≤ i < n, without a directory, or in a multi-host job.

    """
    if part is None:
        return None
    pair = tuple(map(values.to_python, part)) if isinstance(part, (tuple, list)) else ()
    if len(pair) != 2 or not all(map(values.is_whole, pair)) or not 0 <= pair[0] < pair[1]:
        raise ValueError(f"part={part!r}: pass (i, n) for job i of n, with i from 0 to n − 1, such as part=(0, 4)")
    if directory is None:
        raise ValueError(f"part={part!r} needs a directory that all {pair[1]} jobs can write: directory='...'")
    if jax.process_count() > 1:
        raise ValueError(f"part={part!r}: the processes of a multi-host job share the runs already: pass part=None")
    return int(pair[0]), int(pair[1])


def share(groups: Sequence[StaticGroup], part: Part | None) -> list[StaticGroup]:
    """The groups with the part's runs alone: consecutive runs, so that a job compiles few programs.

    Raises:
      ValueError: for more parts than runs.

    Example: three runs of one program, and three of another, for two jobs.
      >>> from wd_optax.choosing.sweeping import grid, parts
      >>> groups = list(grid.make_grid({"kind": ["a", "b"], "x": [1.0, 2.0, 3.0]}, seeds=1).static_groups())
      >>> [group.traced["x"].tolist() for group in parts.share(groups, (1, 3))]
      [[3.0], [1.0]]

    """
    if part is None:
        return list(groups)
    (i, n), total, start, found = part, sum(len(group.runs) for group in groups), 0, []
    if n > total:
        raise ValueError(f"part={part}: {total} runs can't be divided among {n} jobs; pass n ≤ {total}")
    for group in groups:
        first, last = (int(np.clip(total * k // n - start, 0, len(group.runs))) for k in (i, i + 1))
        traced = {name: x[first:last] for name, x in group.traced.items()}
        found.append(group._replace(traced=traced, seeds=group.seeds[first:last], runs=group.runs[first:last]))
        start += len(group.runs)
    return found


def folder(directory: pathlib.Path, part: Part | None) -> pathlib.Path:
    """Where a part is kept, with a lock and a manifest of its own."""
    return directory if part is None else directory / f"part-{part[0]}-of-{part[1]}"


def found_in(directory: pathlib.Path) -> list[Part]:
    """The parts that have a folder, sorted by their number of jobs."""
    names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    pairs = [(int(match[1]), int(match[2])) for match in map(FOLDER.fullmatch, names) if match]
    return sorted(pairs, key=lambda pair: pair[::-1])


def merge(
    directory: pathlib.Path, manifest: dict[str, Any], groups: Sequence[StaticGroup], found: MetricTable
) -> dict[str, list[int]]:
    """Reads the finished runs of all parts, also of jobs that still run; returns `Progress.widths`.

    Raises:
      ValueError: if a part belongs to another sweep, with what differs.
      RuntimeError: if runs are missing, with the parts that have them.

    """
    jobs, widths = found_in(directory), dict[str, list[int]]()
    for path in (directory, *(folder(directory, part) for part in jobs)):
        if (path / MANIFEST).is_file():  # a job writes it before its first runs
            read, _ = training.resume(Store(path, manifest, reading=True), found, 0)
            for group, sizes in read.items():
                widths.setdefault(group, []).extend(sizes)
    if not found.done.all():
        raise RuntimeError(_missing(directory, groups, found.done, jobs[-1][1]))
    return widths


def _missing(directory: pathlib.Path, groups: Sequence[StaticGroup], done: np.ndarray, jobs: int) -> str:
    """What each of the jobs has not finished, as text."""
    lines = []
    for i in range(jobs):
        runs = np.concatenate([group.runs for group in share(groups, (i, jobs))])
        if left := int((~done[runs]).sum()):
            lines.append(f"  part=({i}, {jobs}): {left} of {len(runs)} runs")
    return (
        f"directory={str(directory)!r} is kept in parts, and {int((~done).sum())} of {done.size} runs are missing:\n"
        + "\n".join(lines)
        + "\nwait for those jobs, or repeat the call with each of these parts; what is finished is kept"
    )
