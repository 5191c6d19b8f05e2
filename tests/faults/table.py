"""The table of faults, each with a trial and the number of trials, and the page of outcomes."""

import collections
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

from .forks import Child

WRONG = ("ACCEPTED WRONG", "LOST", "HANGS", "ERROR")  # outcomes with these prefixes fail the command
SHARES = 4  # processes that share the trials of a row; more than two cores, because many trials wait for the disk


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row. A trial (seed, folder) -> outcome returns a few words, which are counted."""

    name: str
    trials: int
    quick: int  # trials in `make test`
    trial: Callable[[int, pathlib.Path], str]


def run(fault: Fault, trials: int) -> collections.Counter[str]:
    """Counts the outcomes of seeds 0 to trials − 1."""
    count = min(SHARES, trials)
    shares = [range(first, trials, count) for first in range(count)]
    children = [Child(_some, fault.trial, list(share), devices=0) for share in shares]
    counts: collections.Counter[str] = collections.Counter()
    for child, share in zip(children, shares, strict=True):
        kind, found = child.wait(900)
        counts.update(found if kind == "value" else [f"ERROR: {kind}, {found}"] * len(share))
    return counts


def _some(trial: Callable[[int, pathlib.Path], str], seeds: list[int]) -> list[str]:
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found.append(trial(seed, pathlib.Path(folder)))
            except Exception as error:
                found.append(f"ERROR: seed {seed}: {type(error).__name__}: {error}")
    return found


def bad(outcome: str) -> bool:
    """Whether an outcome must never happen."""
    return outcome.startswith(WRONG)


def report(faults: list[Fault], quick: bool) -> Iterator[tuple[Fault, collections.Counter[str], float]]:
    """Yields each row with its outcomes and seconds."""
    for fault in faults:
        start = time.monotonic()
        counts = run(fault, fault.quick if quick else fault.trials)
        yield fault, counts, time.monotonic() - start


def page(rows: list[tuple[Fault, collections.Counter[str]]], about: str) -> str:
    """docs/reliability.md."""
    lines = ["| fault | trials | outcome |", "|---|---:|---|"]
    for fault, counts in rows:
        outcomes = "; ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items(), key=lambda item: -item[1]))
        lines.append(f"| {fault.name} | {counts.total()} | {outcomes} |")
    total = sum(counts.total() for _, counts in rows)
    wrong = sum(n for _, counts in rows for outcome, n in counts.items() if bad(outcome))
    verdict = f"{total} trials; accepted wrong numbers or lost finished runs: **{wrong}**."
    return about.format(table="\n".join(lines), verdict=verdict)
