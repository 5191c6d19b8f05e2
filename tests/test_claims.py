"""The claims card: each claim has a source and bounds, verdicts follow from the bounds, the page says what is run."""

import doctest
import importlib
import math
import pathlib
import re
import sys
from typing import Any

import numpy as np
import pytest
from absl import app, flags

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from claims import claim, registry, table
from claims.claim import Claim, Measured, at_least, at_most, between, exactly

ROOT = pathlib.Path(__file__).parents[1]
CLAIMS = registry.load()
PAGE = (ROOT / "docs" / "claims.md").read_text()
QUICK = [name for name, each in CLAIMS.items() if each.quick]
pytestmark = pytest.mark.optax_promotes  # Optax's Adam


# --- the registry ----------------------------------------------------------------------------------------------------


def test_every_file_is_a_claim_or_a_tool() -> None:
    tools = {"__init__", "claim", "registry", "run", "table", "training"}
    assert set(CLAIMS) == {path.stem for path in registry.HERE.glob("*.py")} - tools


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_has_its_source_its_statement_and_its_rule(name: str) -> None:
    each = CLAIMS[name]
    assert each.papers
    assert all(re.fullmatch(r"\d{4}\.\d{5}", paper) for paper in each.papers)
    assert re.fullmatch(r"[A-Z].{40,}\.", each.statement)
    assert each.title
    assert not each.title.endswith(".")
    assert each.expected
    for row, bounds in each.expected.items():
        assert bounds.low <= bounds.high, row
        assert math.isfinite(bounds.low) or math.isfinite(bounds.high), row


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "holds", "fails"),
    [
        (at_most(0.0), [-1.0, -1.2, -0.9], [-1.0, 1.2, -0.9]),  # significantly below 0, or not
        (at_least(0.0), [1.0, 1.2, 0.9], [-1.0, -1.2, -0.9]),
        (between(0.9, 1.1), [1.0, 1.01, 0.99], [1.09, 1.1, 1.09]),  # a mean inside, an interval that isn't
        (between(0.9, 1.1), 1.1, 1.1001),
        (exactly(0), 0, 1e-300),
        (at_most(1.0), [0.5, 0.5, 0.5], [0.5, math.nan, 0.5]),
        (at_least(1.0), 2.0, math.nan),
        (at_most(1.0), [0.1, 0.2, 0.3], [0.1, 0.2, math.inf]),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf − inf in a standard deviation
def test_the_whole_interval_must_be_within_the_bounds(bounds: Any, holds: Any, fails: Any) -> None:
    assert bounds.verdict(holds) == "holds"
    assert bounds.verdict(np.asarray(fails)) == "does not show at this scale"


@pytest.mark.parametrize("runs", [[1.0], [1.0, 2.0], [[1.0, 2.0, 3.0]]])
def test_two_seeds_give_no_verdict(runs: Any) -> None:
    with pytest.raises(ValueError, match=r"expected \(seeds,\) with at least 3, or \(\)"):
        at_most(5.0).verdict(runs)


@pytest.mark.parametrize("module", [claim, table])
def test_examples_of_the_docstrings(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


# --- the table and the runner ----------------------------------------------------------------------------------------


def toy(measured: dict[str, Any]) -> Claim:
    return Claim(
        title="Toys agree",
        papers=("0000.00001",),
        statement="Toys are said to agree.",
        expected={"|x|": at_most(1.0), "gain": at_least(0.0)},
        measure=lambda: Measured(measured, [1.0, 2.0]),
        draw=lambda axes, curves: axes.plot(curves, label="toy"),
    )


def test_rows_must_be_those_that_are_expected() -> None:
    with pytest.raises(ValueError, match=r"Toys agree: rows without bounds, or not measured: .*'extra'"):
        table.rows(toy({}), Measured({"|x|": 0.0, "gain": 1.0, "extra": 1.0}, None))
    with pytest.raises(ValueError, match=r"not measured: \{'gain'\}"):
        table.rows(toy({}), Measured({"|x|": 0.0}, None))


@pytest.fixture
def runner() -> Any:
    """The module of the runner; its flags are taken back."""
    before = set(flags.FLAGS)
    sys.modules.pop("claims.run", None)
    yield importlib.import_module("claims.run")
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)


def test_the_runner_prints_one_table_and_writes_page_and_pictures(runner, tmp_path, monkeypatch, capsys) -> None:
    toys = {"toy": toy({"|x|": [0.1, 0.2, 0.15], "gain": [0.1, -0.2, 0.15]}), "other": toy({"|x|": 2.0, "gain": 1.0})}
    monkeypatch.setattr(registry, "load", lambda: toys)
    docs = tmp_path / "page.md"
    flags.FLAGS(["run", f"--out={tmp_path / 'made'}", f"--docs={docs}"])
    runner.main([])
    printed = capsys.readouterr().out
    assert printed.count("what is measured") == 1
    lines = [re.split(r"  +", line.strip()) for line in printed.splitlines() if line.startswith("  ")]
    assert lines == [
        ["|x|", "≤ 1", "0.15 ± 0.12 (3 seeds)", "holds"],
        ["gain", "≥ 0", "0.02 ± 0.47 (3 seeds)", "does not show at this scale"],
        ["|x|", "≤ 1", "2", "does not show at this scale"],
        ["gain", "≥ 0", "1", "holds"],
    ]
    assert "toy: Toys agree (0000.00001)\nToys are said to agree.\n" in printed
    text = docs.read_text()
    assert "2 claims, 4 rows; 2 hold, 2 do not show at this scale." in text
    assert "Toys are said to agree. ([0000.00001](https://arxiv.org/abs/0000.00001); `toy`) | \\|x\\| | ≤ 1 |" in text
    assert "](toy.png)" not in text
    assert "![other](other.png)" in (tmp_path / "made" / "claims.md").read_text()
    for name in toys:
        assert (tmp_path / "made" / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--only=grokking,nothing"], "--only: no claims nothing; there are adamc, "),
        (["--only=grokking", "--docs=x.md"], "--docs: the page has all claims; drop --only"),
    ],
)
def test_the_runner_refuses(runner, argv, says) -> None:
    flags.FLAGS(["run", *argv])
    with pytest.raises(app.UsageError, match=says):
        runner.main([])


def test_the_page_has_every_claim_with_its_rows() -> None:
    for name, each in CLAIMS.items():
        assert f"| **{each.title}.** {table.escape(each.statement)} (" in PAGE, name
        assert f"; `{name}`) |" in PAGE
    shown = table.verdicts(PAGE)
    assert set(shown) == {row for each in CLAIMS.values() for row in each.expected}
    assert len(shown) == sum(len(each.expected) for each in CLAIMS.values()), "two rows have one name"
    for each in CLAIMS.values():
        for row, bounds in each.expected.items():
            assert f"| {table.escape(row)} | {bounds.text} | " in PAGE


# --- the claims ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_exact_claims_hold(name: str) -> None:
    rows = table.rows(CLAIMS[name], CLAIMS[name].measure())
    assert [row.what for row in rows if row.verdict != "holds"] == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in CLAIMS if name not in QUICK])
def test_the_page_has_the_verdicts_that_are_measured(name: str) -> None:
    rows = table.rows(CLAIMS[name], CLAIMS[name].measure())
    shown = table.verdicts(PAGE)
    assert {row.what: row.verdict for row in rows} == {row.what: shown[row.what] for row in rows}
