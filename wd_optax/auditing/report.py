"""The report of an audit: rows and findings as text, Markdown, HTML or a pandas table, and a check for unit tests."""

import collections
import html
import importlib
import math
import re
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

from wd_optax import tables
from wd_optax.auditing import text, verdicts
from wd_optax.auditing.text import WIDTH
from wd_optax.choosing.published import shares_of_run


class AuditRow(NamedTuple):
    """One parameter."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    size: int
    role: str  # weight, embedding, bias, norm or other
    removed_per_step: float  # fraction of the weight; negative where it grows, nan if it isn't one number
    half_life: float  # steps until half is left; inf if it doesn't shrink
    remaining: float  # fraction left after `horizon` steps; nan without a horizon
    verdict: str  # see `wd_optax.auditing.verdicts`
    changed_fraction: float  # of its entries, by one step of decay alone in the parameter's own dtype
    anchor: str = "zero"  # what it decays toward: "zero", "init", "tree", "moving" or "norm"; "" if not, or unknown
    coupling: str = ""  # what the rate follows: "constant", "lr", "lr/peak", "lr²"; "" if no measurement decides
    dependence: str = ""  # "gated": the step chooses which entries decay; "depends on the step" otherwise; "" if not
    largest_removed_per_step: float = math.nan  # the largest rate; `removed_per_step` is its mean over a horizon

    @property
    def timescale_steps(self) -> float:
        """1/c̄ in steps, where (1 − c̄)^half_life = ½; at least one step."""
        return 1 / -math.expm1(math.log(0.5) / self.half_life) if self.half_life else 1.0

    @property
    def decays(self) -> bool:
        """Whether the weight shrinks, at any rate; not if it grows, or if rounding removes the decay."""
        return self.verdict in verdicts.SHRINKS or (self.verdict == verdicts.LOST and self.changed_fraction >= 0.5)

    @property
    def summary(self) -> str:
        """The verdict, what the leaf decays toward unless it is zero, and how the decay depends on the step."""
        words = [self.verdict, self.dependence]
        target = {"init": "init", "tree": "tree", "moving": "a moving anchor", "norm": "a norm"}.get(self.anchor)
        if target and self.decays and self.verdict != verdicts.CONSTRAINED:
            words[0] += f" to {target}"
        elif target and self.verdict == verdicts.UNKNOWN:
            words.append(f"toward {target}")
        return ", ".join(filter(None, words))


class AuditFinding(NamedTuple):
    """A problem, and the code that fixes it."""

    severity: str  # "error", "warning" or "information"
    rule: str  # its name, a page in docs/what_goes_wrong
    paths: tuple[str, ...]
    what: str
    fix: str  # an expression or keyword arguments, then "  # " and a note on its names

    @property
    def see(self) -> str:
        """The page of the documentation that explains it."""
        return f"docs/what_goes_wrong/{self.rule.replace(' ', '-')}.md"

    def title(self) -> str:
        """The rule and the first three paths."""
        rest = f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        return self.rule + (f" at {', '.join(self.paths[:3])}{rest}" if self.paths else "")

    def lines(self) -> list[str]:
        """The finding as wrapped text; the note on the fix has its own lines, so that the code can be copied."""
        code, _, note = self.fix.partition("  # ")
        texts = [
            f"{self.severity}: {self.title()}: {self.what}",
            f"    fix: {code}",
            f"    # {note}",
            f"    see {self.see}",
        ]
        lines = []
        for line in texts:
            indent = "    # " if line.startswith("    #") else "    "
            if line != "    # ":
                lines += textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
        return lines


class AuditReport(NamedTuple):
    """What an audit measured; prints as a table that fits 100 columns."""

    rows: tuple[AuditRow, ...]
    findings: tuple[AuditFinding, ...]  # worst first
    how: str  # how it was measured
    horizon: int | None = None  # the length of the run, in steps
    steps_per_epoch: float | None = None

    def __str__(self) -> str:
        """The table with similar leaves folded, findings, the timescale, how it was measured, totals."""
        found = [line for finding in self.findings for line in finding.lines()]
        below = [line for text in self._below() for line in textwrap.wrap(text, WIDTH, subsequent_indent="    ")]
        return "\n".join([*text.table(self._folded()), *found, *below])

    def _repr_html_(self) -> str:
        found = "".join(
            f"<li><b>{f.severity}</b> {html.escape(f'{f.title()}: {f.what}')}<br>fix: <code>{html.escape(f.fix)}</code>"
            f"<br>see {html.escape(f.see)}</li>"
            for f in self.findings
        )
        below = "".join(f"<p>{html.escape(text)}</p>" for text in self._below())
        return f"{tables.to_html(self._folded())}{f'<ul>{found}</ul>' if found else ''}{below}"

    def totals(self) -> str:
        """How much of the model decays, whatever else is wrong, and the number of leaves with each verdict."""
        decaying = [row for row in self.rows if row.decays]
        sizes = " of ".join(f"{sum(row.size for row in rows):,}" for rows in (decaying, self.rows))
        tally = collections.Counter(row.verdict for row in self.rows)
        words = ", ".join(f"{count} {word}" for word, count in tally.items())
        return f"{len(decaying)} of {len(self.rows)} leaves decay, {sizes} parameters ({words})"

    def timescale(self) -> str:
        """Over how many steps the weights average: the shortest and the longest 1/c̄; "" if nothing decays.

        With a horizon it adds the share of the run and compares it with published runs; with `steps_per_epoch` it
        adds epochs. A short timescale is no mistake: see `wd_optax.published`.
        """
        steps = sorted(row.timescale_steps for row in self.rows if row.decays and 0 <= row.half_life < math.inf)
        if not steps:
            return ""
        ends = [steps[0], steps[-1]] if steps[-1] > 1.01 * steps[0] else [steps[0]]
        return f"EMA timescale: {' to '.join(map(self._time, ends))}{self._place(ends)}"

    def _time(self, steps: float) -> str:
        share = f" = {_share(steps / self.horizon)} the run" if self.horizon else ""
        return f"{text.number(steps)} steps{share}" + (
            f" = {text.number(steps / self.steps_per_epoch)} epochs" if self.steps_per_epoch else ""
        )

    def _place(self, ends: list[float]) -> str:
        """Compares the timescales with those of published runs."""
        if not self.horizon:
            return ""
        known = shares_of_run()
        low, high = 0.99 * known.smallest, 1.01 * known.largest  # the audit's own error is smaller
        shortest, longest = (n / self.horizon for n in (ends[0], ends[-1]))
        if longest < low:
            where = "shorter than in"
        elif shortest > high:
            where = "longer than in"
        else:
            where = "within the range of" if low <= shortest and longest <= high else "partly outside the range of"
        every, half = _percent(known.smallest, known.largest), _percent(known.lower_quartile, known.upper_quartile)
        return f", {where} {known.runs} published runs ({every}, half of them {half})"

    def _below(self) -> list[str]:
        return [text for text in (self.timescale(), self.how, self.totals()) if text]

    def check(self, *, decays: Iterable[str] = (), spares: Iterable[str] = ()) -> None:
        """Raises unless the parameters decay as they should: for unit tests and CI.

        Args:
          decays: regexes; every parameter whose path matches one (`re.search`) must shrink, at a rate that was asked
            for, or be projected: its verdict is one of `wd_optax.auditing.verdicts.HEALTHY`.
          spares: regexes; every parameter whose path matches one must not decay at all.

        Raises:
          AssertionError: naming the leaves that don't, or a regex that matches nothing, with the report.

        Example:
          >>> import jax.numpy as jnp, optax, wd_optax as wd
          >>> from wd_optax.auditing.audit import audit
          >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
          >>> audit(wd.sgdw(0.1, weight_decay=0.01), params).check(decays=["kernel"], spares=["bias"])
          >>> try:
          ...     audit(optax.sgd(0.1), params).check(decays=["kernel"])
          ... except AssertionError as error:
          ...     print(str(error).splitlines()[0])
          'kernel' should decay, but its verdict is 'no decay'

        """
        wrong = []
        expectations = (decays, "decay", verdicts.HEALTHY), (spares, "not decay", (verdicts.NO_DECAY,))
        for regexes, expected, allowed in expectations:
            if isinstance(regexes, str):
                raise TypeError(f"{regexes!r} is one string: pass a list of regexes, [{regexes!r}]")
            for regex in regexes:
                rows = [row for row in self.rows if re.search(regex, row.path)]
                wrong += [] if rows else [f"regex {regex!r} matches no parameter"]
                wrong += [
                    f"{row.path!r} should {expected}, but its verdict is {row.verdict!r}"
                    for row in rows
                    if row.verdict not in allowed
                ]
        if wrong:
            raise AssertionError("\n".join([*wrong, "", str(self)]))

    def to_markdown(self) -> str:
        """The table and the findings in Markdown, with similar leaves folded."""
        header, *rows = self._folded()
        found = [f"- **{f.severity}** {f.title()}: {f.what}. Fix: `{f.fix}`; see {f.see}" for f in self.findings]
        table = [*map(_markdown_line, (header, ["---"] * len(header), *rows))]
        return "\n\n".join("\n".join(lines) for lines in (table, found, self._below()[:-1], [self.totals()]) if lines)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one row per parameter and the fields of `AuditRow` as columns.

        Raises:
          ImportError: if pandas, an extra, isn't installed.

        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise ImportError('to_pandas needs pandas: pip install "wd_optax[pandas]"') from None
        return pandas.DataFrame([row._asdict() for row in self.rows], columns=list(AuditRow._fields))

    def _folded(self) -> list[list[str]]:
        """Header and rows; leaves that differ only in the numbers of their paths are one row."""
        groups: dict[Any, list[AuditRow]] = {}
        for row in self.rows:
            key = (re.sub(r"\d+", "*", row.path), row.shape, str(row.dtype), row.role, row.summary)
            groups.setdefault((*key, f"{row.removed_per_step:.2g}"), []).append(row)
        timed = any(not math.isnan(row.remaining) for row in self.rows)
        lines = [["path", "type", "role", "removed", "half-life", *(["left"] if timed else []), "verdict"]]
        for (stars, *_), rows in groups.items():
            row = rows[0]
            name = f"{text.stars([r.path for r in rows], stars)} x{len(rows)}" if len(rows) > 1 else row.path
            numbers = (row.removed_per_step, row.half_life, row.remaining)[: 3 if timed else 2]
            lines.append(
                [name, text.array_type(row.dtype, row.shape), row.role, *map(text.number, numbers), row.summary]
            )
        return lines


def _share(x: float) -> str:
    return f"{100 * x:.3g} % of" if x < 1.01 else f"{x:.3g} times"


def _percent(low: float, high: float) -> str:
    return f"{text.number(100 * low)} % to {text.number(100 * high)} %"


def _markdown_line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
