"""Runs the table of faults and writes the page of outcomes; fails if wrong numbers were accepted.

python -m tests.faults --docs docs/reliability.md
python -m tests.faults --quick --only disk
"""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["XLA_FLAGS"] = ""  # the forks choose their devices

import argparse
import functools
import importlib.util
import pathlib
import sys
import time

from . import changes, damage, hosts, jobs, kills, searches, table
from .about import ABOUT

FAULTS = [
    table.Fault("`kill -9` at a random moment", 110, 1, kills.at_random_moment),
    table.Fault("`kill -9` within a write, around its fsync, rename and the folder's fsync", 60, 1, kills.in_a_write),
    table.Fault("bits flipped, files truncated, zeroed, garbled, swapped, foreign", 1200, 3, damage.damaged),
    table.Fault("full disk, or quota, at every write, fsync and rename", 2 * kills.WRITES, 1, kills.full_disk),
    table.Fault("full disk in a job of 2 or 3 processes", 10, 1, hosts.full_disk),
    table.Fault("out of memory: killed in the first launch, or RESOURCE_EXHAUSTED at any", 40, 1, kills.out_of_memory),
    table.Fault("out of memory on one process of two", 6, 1, hosts.out_of_memory),
    table.Fault("two processes on one folder", 30, 1, kills.two_processes),
    table.Fault("hosts that disagree", len(hosts.KINDS), 1, hosts.disagree),
    table.Fault("1, 2, 3, 5 and 8 devices, killed and resumed on another number", 25, 1, kills.other_devices),
    table.Fault("1, 2 and 3 processes, killed and resumed by another number", 9, 1, hosts.other_processes),
    table.Fault("job array of 4 parts, 2 killed and repeated", 16, 1, jobs.parts),
    table.Fault("`wd.search` by 4 workers on one journal file, 2 killed", 16, 1, searches.workers),
    table.Fault("one of everything changed", len(changes.KINDS), 3, changes.changed),
]
if importlib.util.find_spec("tests.faults.tpu_run"):
    module = functools.cache(lambda: importlib.import_module("tests.faults.tpu_run"))  # takes seconds
    tpu_run = lambda name: lambda *given: getattr(module(), name)(*given)
    FAULTS += [  # `make test` has tests/test_tpu_run.py for them
        table.Fault("`kill -9` of `examples/tpu_run.py` at a random moment", 24, 0, tpu_run("trial")),
        table.Fault("checkpoints of `examples/tpu_run.py` damaged", 20, 0, tpu_run("damaged")),
    ]


def main() -> int:
    """Returns 1 if an outcome occurred that must never happen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few trials of each fault, as `make test` does")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    parser.add_argument("--docs", type=pathlib.Path, help="where to write the page")
    given = parser.parse_args()
    start, rows = time.monotonic(), []
    kills.right()
    for fault, counts, seconds in table.report([f for f in FAULTS if given.only in f.name], given.quick):
        rows.append((fault, counts))
        print(f"{seconds:6.1f} s  {fault.name}")
        for outcome, count in counts.most_common():
            print(f"{count:14d}  {outcome}", flush=True)
    print(f"{time.monotonic() - start:6.1f} s in all")
    if given.docs:
        given.docs.write_text(table.page(rows, ABOUT))
    return int(any(table.bad(outcome) for _, counts in rows for outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
