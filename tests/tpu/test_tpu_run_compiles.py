"""The TPU run compiles for TPU slices that nobody has at hand, and its optimizer needs no collective there."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "tpu_run.py"
# 1024 columns: narrower shards than 128 are padded to tiles, and memory isn't what it should be.
MODEL = ["--layers=8", "--width=1024", "--heads=8", "--context=1024", "--accumulate=2", "--steps=10000"]

SMALL = ["--layers=2", "--width=128", "--heads=4", "--context=128"]  # later flags win


def compiled(*argv: str) -> tuple[dict[str, float], dict[tuple[str, str], tuple[int, float]], str]:
    """MiB per chip by name; {(part, collective): (times, MiB)}; the last line. In a process of its own, on the CPU."""
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # the tests' process has it
    command = [sys.executable, SCRIPT, "--compile_only", *MODEL, *argv]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=env, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    memory = re.search(
        r"MiB per chip: (\S+) state and batch, (\S+) temporaries, .*; (\S+) MiB of the state", done.stdout
    )
    rows = [re.fullmatch(r"(\w+) +([a-z-]+) +([\d,]+) +([\d,.]+)", line) for line in lines]
    number = lambda text: float(text.replace(",", ""))
    sums = {(row[1], row[2]): (int(number(row[3])), number(row[4])) for row in rows if row}
    named = dict(zip(("state", "temporaries", "in place"), map(number, memory.groups()), strict=True))
    return named, sums, lines[-1]


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("topology", "mesh", "batch_size", "precision", "bytes_per_parameter"),
    [
        ("v5e:2x4", "4x2", 16, "master", 2 + 4 + 4 + 4),
        ("v5e:2x4", "8x1", 16, "stochastic", 2 + 4 + 4),
        ("v5p:8x8x8", "64x8", 256, "master", 2 + 4 + 4 + 4),
        ("v4:2x2x2", "4x2", 16, "master", 2 + 4 + 4 + 4),
        ("tpu7x:2x2x1", "8x1", 16, "master", 2 + 4 + 4 + 4),
    ],
)
def test_the_optimizer_needs_no_collective(
    topology: str, mesh: str, batch_size: int, precision: str, bytes_per_parameter: int
) -> None:
    flags = [f"--topology={topology}", f"--mesh={mesh}", f"--batch_size={batch_size}", f"--precision={precision}"]
    memory, sums, last = compiled(*flags)
    rows, columns = map(int, mesh.split("x"))
    assert last == ("optimizer (decay, moments, rounding): no collectives in the step; compiled alone: no collectives")
    assert {part for part, _ in sums} == {"model", "clip", "monitor"}

    # Parameters, copies and moments are cut by all chips; embeddings and logits by `data` alone, scales not at all.
    d, layers = 1024, 8
    blocks, tables, scales = 12 * layers * d * d, (128 + 1024 + 128) * d, (2 * layers + 1) * d
    expected = bytes_per_parameter * (blocks / (rows * columns) + tables / rows + scales) / 2**20
    assert memory["state"] == pytest.approx(expected, rel=0.02, abs=0.15)  # and the batch; printed to 0.1
    assert memory["in place"] == pytest.approx(memory["state"], rel=0.02, abs=0.15)

    # FSDP: every layer's kernels are gathered over `data`, or passed round, in bfloat16, at least forward and backward.
    moved = sum(size for (part, _), (_, size) in sums.items() if part == "model")
    assert moved > 2 * 2 * 2 * blocks / columns * (1 - 1 / rows) / 2**20
    # Norms are sums: what clip and monitor send is small beside it.
    assert sum(size for (part, _), (_, size) in sums.items() if part != "model") < 0.05 * moved


@pytest.mark.tpu
@pytest.mark.parametrize("topology", ["v4:2x2x1", "tpu7x:2x2x1", "v6e:2x4"])
def test_every_chip_compiles_on_its_default_mesh(topology: str) -> None:
    memory, sums, last = compiled(f"--topology={topology}", *SMALL)
    assert memory["state"] > 0
    assert {"model", "clip", "monitor"} <= {part for part, _ in sums}
    assert last.endswith("no collectives in the step; compiled alone: no collectives")
