"""Each claim has a source and bounds, verdicts follow from the bounds, and all pages say what is run."""

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
from wd_optax import prox, rules
from wd_optax.prox.steps import PENALTIES

ROOT = pathlib.Path(__file__).parents[1]
CLAIMS = registry.load()
DOCS = ROOT / "docs"
PAGE = (DOCS / "claims.md").read_text()
INDEX = (DOCS / "rules" / "index.md").read_text()
RULES = {path.stem: path.read_text() for path in DOCS.glob("rules/*.md") if path.stem != "index"}
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
        draw=lambda axes, curves: axes.set(xlabel="step", ylabel="size") and axes.plot(curves, label="toy"),
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


def test_the_runner_prints_one_table_and_writes_pages_and_pictures(runner, tmp_path, monkeypatch, capsys) -> None:
    toys = {"toy": toy({"|x|": [0.1, 0.2, 0.15], "gain": [0.1, -0.2, 0.15]}), "other": toy({"|x|": 2.0, "gain": 1.0})}
    monkeypatch.setattr(registry, "load", lambda: toys)
    rule = tmp_path / "rules" / "toys.md"
    rule.parent.mkdir()
    words, end = ', rows with "ai"', "<!-- end of claim -->"
    empty = f"a\n<!-- claim: other -->\n{end}\nb\n<!-- claim: toy{words} -->\n{end}\n"
    rule.write_text(empty.replace(end, f"old\n{end}", 1))
    flags.FLAGS(["run", f"--docs={tmp_path / 'claims.md'}"])
    runner.main([])
    printed = capsys.readouterr().out
    assert printed.count("what is measured") == 1
    lines = [re.split(r"  +", line.strip()) for line in printed.splitlines() if line.startswith("  ")]
    rows = [
        ["|x|", "≤ 1", "0.15 ± 0.12 (3 seeds)", "holds"],
        ["gain", "≥ 0", "0.02 ± 0.47 (3 seeds)", "does not show at this scale"],
        ["|x|", "≤ 1", "2", "does not show at this scale"],
        ["gain", "≥ 0", "1", "holds"],
    ]
    assert lines == rows
    assert "toy: Toys agree (0000.00001)\nToys are said to agree.\n" in printed
    text = (tmp_path / "claims.md").read_text()
    assert "2 claims, 4 rows; 2 hold, 2 do not show at this scale." in text
    assert [list(row) for row in table.shown(text)] == rows
    assert text.count("| [Toys agree](#toys-agree) | 1 of 2 |") == 2
    said = "Toys are said to agree. ([0000.00001](https://arxiv.org/abs/0000.00001); measured by "
    assert said + "[`claims/other.py`](../claims/other.py))" in text
    assert "![size over step: toy](pictures/claims/other.png)" in text
    filled = rule.read_text()
    assert re.sub(r"(?s)(claim: .*?-->\n).*?(<!-- end)", r"\1\2", filled) == empty
    assert [list(row) for row in table.shown(filled)] == [*rows[2:], rows[1]]
    assert said + "[`claims/other.py`](../../claims/other.py))" in filled
    assert re.findall(r"!\[.*", filled) == ["![size over step: toy](../pictures/claims/other.png)"]
    for name in toys:
        assert (tmp_path / table.PICTURES / f"{name}.png").stat().st_size > 5000


def test_without_docs_the_page_is_written_to_out(runner, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(registry, "load", lambda: {"toy": toy({"|x|": 0.5, "gain": 1.0})})
    flags.FLAGS(["run", f"--out={tmp_path / 'made'}"])
    runner.main([])
    assert "1 claims, 2 rows; 2 hold" in (tmp_path / "made" / "claims.md").read_text()
    assert [path.name for path in tmp_path.glob(f"made/{table.PICTURES}/*")] == ["toy.png"]


@pytest.mark.parametrize(
    ("comment", "says"),
    [
        ("claim: nothing", "toys.md: <!-- claim: nothing -->: there is no claim 'nothing', but toy"),
        ('claim: toy, rows with "zz"', "toys.md: .*: 'zz' is in no row of 'toy'"),
    ],
)
def test_a_comment_that_names_nothing_is_found_before_anything_is_measured(
    runner, tmp_path, monkeypatch, comment, says
) -> None:
    each = toy({})._replace(measure=lambda: pytest.fail("measured"))
    monkeypatch.setattr(registry, "load", lambda: {"toy": each})
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "toys.md").write_text(f"<!-- {comment} -->\n<!-- end of claim -->\n")
    flags.FLAGS(["run", f"--docs={tmp_path / 'claims.md'}"])
    with pytest.raises(ValueError, match=says):
        runner.main([])


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


def section(name: str) -> str:
    """What the page says of a claim."""
    return PAGE.split(f"\n## {CLAIMS[name].title}\n")[1].split("\n## ")[0].strip()


@pytest.mark.parametrize("name", CLAIMS)
def test_the_page_has_every_claim_with_its_rows_and_its_picture(name: str) -> None:
    each, said = CLAIMS[name], section(name)
    rows = table.shown(said)
    assert f"| [{each.title}](#{table.anchor(each.title)}) | {table.holding(rows)} of {len(rows)} |" in PAGE
    assert said.startswith(f"{each.statement} ([{each.papers[0]}](https://arxiv.org/abs/{each.papers[0]})")
    assert f"[`claims/{name}.py`](../claims/{name}.py)" in said
    assert [(row.what, row.expected) for row in rows] == [(what, x.text) for what, x in each.expected.items()]
    assert re.search(rf"\n!\[.+ over .+\]\({table.PICTURES}/{name}\.png\)$", said)
    assert (DOCS / table.PICTURES / f"{name}.png").exists()


def test_the_page_has_nothing_else() -> None:
    assert PAGE.count("\n## ") == len(CLAIMS) == len(list(DOCS.glob(f"{table.PICTURES}/*")))
    names = [row.what for row in table.shown(PAGE)]
    assert len(names) == len(set(names)), "two rows have one name"


# --- a page for each rule --------------------------------------------------------------------------------------------

TOOLS = {"Step", "slice_norms", "tree_map"}  # for rules of one's own: docs/write_your_own_rule.md
SECTIONS = ["When to use it", "Formula", "Example", "Claims and measurements", "Composing", "Sources"]
SHOWN = [(page, *shown) for page, text in RULES.items() for shown in table.PLACE.findall(text)]


@pytest.mark.parametrize(
    "name",
    [
        *(f"{{func}}`wd_optax.rules.{name}`" for name in sorted(set(rules.__all__) - TOOLS)),
        *(f"{{func}}`wd_optax.prox.{name}`" for name in prox.__all__),
        *(f'`penalty="{name}"`' for name in PENALTIES),
        "{func}`wd_optax.project`",
        "{func}`wd_optax.hyperball`",
        "`coupling=[(regex, name), ...]`",
    ],
)
def test_one_page_begins_with_it(name: str) -> None:
    assert len([page for page, text in RULES.items() if name in text.split("\n## ")[0]]) == 1


@pytest.mark.parametrize("page", RULES)
def test_the_page_of_a_rule_has_its_sections(page: str) -> None:
    parts = re.split(r"^## (.+)\n", RULES[page], flags=re.M)
    assert parts[1::2] == SECTIONS
    _, when, formula, example, claims, _, sources = (parts[0], *parts[2::2])
    assert "\n- Not " in when
    assert re.search(r"^\$\$.+\$\$$", formula, re.M)
    assert "State: " in formula
    assert re.search(r"```python\n.+?```\n\n```text\n.+?```", example, re.S)
    assert ("<!-- claim: " in claims) != ("Nothing was published to check" in claims)
    assert re.search(r"^- .+\d{4}", sources, re.M)
    assert re.search(rf"^{page}$", INDEX.split("{toctree}")[1].split("```")[0], re.M)
    assert f"]({page}.md)" in INDEX


def test_rules_show_some_claims_and_no_place_is_misspelt() -> None:
    assert len(SHOWN) > len(RULES)
    for page, text in RULES.items():
        assert text.count("<!--") == 2 * sum(shown[0] == page for shown in SHOWN), page


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: f"{shown[0]}: {shown[2]} {shown[3]}")
def test_the_page_of_a_rule_says_what_the_page_of_claims_says(shown: tuple[str, ...]) -> None:
    page, _, name, word, said, _ = shown
    title = CLAIMS[name].title
    head = f"**[{title}](../claims.md#{table.anchor(title)}).**"
    if word:
        rows = [row for row in table.shown(section(name)) if word in row.what]
        assert said.strip() == f"{head}\n\n{table.table(rows)}", f"make claims, for {page}"
    else:
        there = section(name).replace("](pictures/", "](../pictures/").replace("](../claims/", "](../../claims/")
        assert said.strip() == f"{head} {there}", f"make claims, for {page}"


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
