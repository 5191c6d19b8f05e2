"""The table of claims: lines for the console, a page of Markdown, one picture per claim."""

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

ABOUT = f"""
The networks are small and the data are digits, sums or random numbers: a row says what a small program shows in seconds
on a CPU, not what happens at the scale of the paper. Statements are paraphrased. The expected bounds are in
[`claims/`](../claims), one file per claim; a row holds if the whole 95 % interval of its mean over seeds is within
them. {intervals.MEANING[0].upper()}{intervals.MEANING[1:]}; differences and ratios of two methods are paired over
seeds. Numbers without ± depend on no seed.
"""


class Row(NamedTuple):
    """A row of the table, as text."""

    what: str
    expected: str
    measured: str
    verdict: str


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


def console(claims: Mapping[str, Claim], found: Mapping[str, list[Row]]) -> str:
    """The table in aligned columns; a claim's papers and statement come above its rows."""
    aligned = tables.align([HEADER, *(row for name in found for row in found[name])]).split("\n")
    lines, body = [aligned[0]], iter(aligned[1:])
    for name, made in found.items():
        lines += ["", f"{name}: {claims[name].title} ({', '.join(claims[name].papers)})", claims[name].statement]
        lines += [f"  {next(body)}" for _ in made]
    return "\n".join(lines)


def page(claims: Mapping[str, Claim], found: Mapping[str, list[Row]], *, pictures: bool = False) -> str:
    """The table in Markdown, with pictures of the same folder if asked for."""
    made = [row for rows in found.values() for row in rows]
    holding = sum(row.verdict == "holds" for row in made)
    lines = [
        "# Published claims about weight decay, measured",
        "",
        f"`make claims` runs this table and writes this page: {len(found)} claims, {len(made)} rows; {holding} hold, "
        f"{len(made) - holding} do not show at this scale.",
        "",
        ABOUT.strip(),
        "",
        "| claim | what is measured | expected | measured | verdict |",
        "|---|---|---:|---:|---|",
    ]
    for name in found:
        claim = claims[name]
        papers = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in claim.papers)
        first = f"**{claim.title}.** {claim.statement} ({papers}; `{name}`)"
        for row in found[name]:
            cells = [escape(cell) for cell in (first, *row)]
            lines.append(f"| {' | '.join(cells)} |")
            first = ""
    if pictures:
        lines += [line for name in found for line in ("", f"![{name}]({name}.png)")]
    return "\n".join(lines) + "\n"


def escape(cell: str) -> str:
    r"""A cell of a Markdown table.

    >>> print(escape("|x − a|"))
    \|x − a\|
    """
    return cell.replace("|", r"\|")


def verdicts(text: str) -> dict[str, str]:
    """What a page says: the name of each row -> its verdict."""
    cells = [re.split(r"(?<!\\)\|", line)[2:6] for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip().replace(r"\|", "|"): row[3].strip() for row in cells[1:]}


def draw(name: str, claim: Claim, measured: Measured, folder: pathlib.Path) -> pathlib.Path:
    """Writes the claim's picture."""
    figure, (axes,) = plots.figure(1)
    claim.draw(axes, measured.curves)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=6)
    axes.set_title(name, fontsize=9)
    return plots.save(figure, folder, f"{name}.png")
