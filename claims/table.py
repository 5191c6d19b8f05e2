"""The claims as lines for the console, and as Markdown with pictures: a page of all, and parts of the rules' pages."""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import intervals
import numpy as np
import plots

from claims.claim import Claim, Measured, interval
from wd_optax import tables

HEADER = ("what is measured", "expected", "measured", "verdict")
PICTURES = "pictures/claims"  # below the folder of the page

ABOUT = f"""
The networks are small and the data are digits, sums or random numbers: a row says what a small program shows in seconds
on a CPU, not what happens at the scale of the paper. Statements are paraphrased. The expected bounds are in
[`claims/`](../claims), one file per claim; a row holds if the whole 95 % interval of its mean over seeds is within
them. {intervals.MEANING[0].upper()}{intervals.MEANING[1:]}; differences and ratios of two methods are paired over
seeds. Numbers without ± depend on no seed.
"""

# In a rule's page: what is between these comments is written by `claims.run --docs`. The rows may be those with a word.
PLACE = re.compile(r'(<!-- claim: (\w+)(?:, rows with "([^"]+)")? -->\n)(.*?)(<!-- end of claim -->)', re.S)


class Row(NamedTuple):
    """A row of the table, as text."""

    what: str
    expected: str
    measured: str
    verdict: str


class Found(NamedTuple):
    """What was found of a claim."""

    rows: list[Row]
    seen: str  # what its picture shows, for those who don't see it


def number(runs: Any) -> str:
    """The mean, half of its 95 % interval and the number of seeds; or a number that no seed changes.

    >>> number(0.25), number([1.0, 1.2, 1.1]), number([1e-9, 2e-9, 3e-9]), number([1.0, 1.000001, 1.000002])
    ('0.25', '1.10 ± 0.25 (3 seeds)', '2.0e-09 ± 2.5e-09 (3 seeds)', '1.0000010 ± 0.0000025 (3 seeds)')
    """
    mean, half = interval(runs)
    if not np.ndim(runs):
        return f"{mean:.3g}"
    if half == 0 or half > 1e5 or (half < 1e-5 and abs(mean) < 1e-3):
        digits = ".3g" if half == 0 else ".1e"
    else:
        digits = f".{max(0, 1 - math.floor(math.log10(half)))}f"
    return f"{mean:{digits}} ± {half:{digits}} ({len(runs)} seeds)"


def rows(claim: Claim, measured: Measured) -> list[Row]:
    """One row for each bound, in the claim's order.

    Raises:
      ValueError: if the program measured other rows than the claim expects.
    """
    if measured.rows.keys() != claim.expected.keys():
        raise ValueError(
            f"{claim.title}: rows without bounds, or not measured: {measured.rows.keys() ^ claim.expected}"
        )
    return [
        Row(what, bounds.text, number(measured.rows[what]), bounds.verdict(measured.rows[what]))
        for what, bounds in claim.expected.items()
    ]


def unmeasured(claim: Claim) -> list[Row]:
    """The rows before anything is measured."""
    return [Row(what, bounds.text, "", "") for what, bounds in claim.expected.items()]


def console(claims: Mapping[str, Claim], found: Mapping[str, Found]) -> str:
    """The table in aligned columns; a claim's papers and statement come above its rows."""
    aligned = tables.align([HEADER, *(row for each in found.values() for row in each.rows)]).split("\n")
    lines, body = [aligned[0]], iter(aligned[1:])
    for name, each in found.items():
        lines += ["", f"{name}: {claims[name].title} ({', '.join(claims[name].papers)})", claims[name].statement]
        lines += [f"  {next(body)}" for _ in each.rows]
    return "\n".join(lines)


def holding(rows: list[Row]) -> int:
    """How many rows hold."""
    return sum(row.verdict == "holds" for row in rows)


def page(claims: Mapping[str, Claim], found: Mapping[str, Found]) -> str:
    """All claims in Markdown: how many of their rows hold, then a section for each."""
    made = [row for each in found.values() for row in each.rows]
    lines = [
        "# Published claims about weight decay, measured",
        "",
        f"`make claims` measures these claims and writes this page: {len(found)} claims, {len(made)} rows; "
        f"{holding(made)} hold, {len(made) - holding(made)} do not show at this scale.",
        "",
        ABOUT.strip(),
        "",
        "| claim | rows that hold |",
        "|---|---:|",
    ]
    for name, each in found.items():
        title = claims[name].title
        lines.append(f"| [{title}](#{anchor(title)}) | {holding(each.rows)} of {len(each.rows)} |")
    for name, each in found.items():
        lines += ["", f"## {claims[name].title}", "", section(name, claims[name], each)]
    return "\n".join(lines) + "\n"


def section(name: str, claim: Claim, found: Found, *, up: str = "") -> str:
    """A claim in Markdown: what the papers say, the rows, the picture. `up` leads from the page to docs/."""
    papers = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in claim.papers)
    return "\n".join(
        [
            f"{claim.statement} ({papers}; measured by [`claims/{name}.py`]({up}../claims/{name}.py))",
            "",
            table(found.rows),
            "",
            f"![{found.seen}]({up}{PICTURES}/{name}.png)",
        ]
    )


def table(rows: list[Row]) -> str:
    """Rows as a table of Markdown."""
    lines = [f"| {' | '.join(HEADER)} |", "|---|---:|---:|---|"]
    return "\n".join(lines + [f"| {' | '.join(map(escape, row))} |" for row in rows])


def filled(document: pathlib.Path, claims: Mapping[str, Claim], found: Mapping[str, Found]) -> str:
    """The page of a rule with its claims as they were found, between the comments that name them.

    `<!-- claim: NAME -->` is the claim, and `<!-- claim: NAME, rows with "WORD" -->` those of its rows that contain a
    word, without the picture; each ends at `<!-- end of claim -->`.

    Raises:
      ValueError: for a claim that doesn't exist, or a word that is in none of its rows.
    """

    def fill(match: re.Match[str]) -> str:
        start, name, word, _, end = match.groups()
        if name not in found:
            raise ValueError(f"{document}: {start.strip()}: there is no claim {name!r}, but {', '.join(found)}")
        rows = [row for row in found[name].rows if not word or word in row.what]
        if not rows:
            raise ValueError(f"{document}: {start.strip()}: {word!r} is in no row of {name!r}")
        title = claims[name].title
        head = f"**[{title}](../claims.md#{anchor(title)}).**"
        text = f"{head}\n\n{table(rows)}" if word else f"{head} {section(name, claims[name], found[name], up='../')}"
        return f"{start}\n{text}\n\n{end}"

    return PLACE.sub(fill, document.read_text())


def anchor(title: str) -> str:
    """What MyST and GitHub call the heading in a link.

    >>> anchor("AdamW's norms, 1/(ηλ) steps")
    'adamws-norms-1ηλ-steps'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def escape(cell: str) -> str:
    r"""A cell of a Markdown table.

    >>> print(escape("|x − a|"))
    \|x − a\|
    """
    return cell.replace("|", r"\|")


def verdicts(text: str) -> dict[str, str]:
    """What a page says: the name of each row -> its verdict."""
    return {row.what: row.verdict for row in shown(text)}


def shown(text: str) -> list[Row]:
    """The rows of all tables of a page."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    rows = [Row(*(cell.strip().replace(r"\|", "|") for cell in line)) for line in lines if len(line) == len(HEADER)]
    return [row for row in rows if row != HEADER]


def draw(name: str, claim: Claim, measured: Measured, folder: pathlib.Path) -> str:
    """Writes the claim's picture, and returns what it shows: its axes and lines."""
    figure, (axes,) = plots.figure(1)
    claim.draw(axes, measured.curves)
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        axes.legend(fontsize=6)
    axes.set_title(name, fontsize=9)
    plots.save(figure, folder, f"{name}.png")
    return f"{axes.get_ylabel()} over {axes.get_xlabel()}{': ' if labels else ''}{'; '.join(labels)}"
