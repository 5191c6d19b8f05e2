"""What an audit reports: rows, findings, and their forms: text, Markdown, pandas, a check for unit tests."""

import collections
import importlib
import math
import re
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

from wd_optax.auditing import verdicts

WIDTH = 100
SHORT = {"float": "f", "bfloat": "bf", "complex": "c", "int": "i", "uint": "u", "bool": "bool"}


class Row(NamedTuple):
    """One parameter."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    size: int
    role: str  # weight, embedding, bias, norm or other
    removed_per_step: float  # fraction of the weight; negative where it grows, nan where it isn't one number
    half_life: float  # steps until half is left; inf where nothing shrinks
    remaining: float  # fraction left after `horizon` steps; nan without a horizon
    verdict: str  # see `wd_optax.auditing.verdicts`
    moves: float  # fraction of entries that one step of decay alone changes in the parameter's own type


class Finding(NamedTuple):
    """What is wrong, and the line that mends it."""

    severity: str  # "error", "warning" or "information"
    rule: str  # its name
    footgun: str  # "F13": the test of that name in tests/test_footguns.py; "" where there is none
    paths: tuple[str, ...]
    what: str
    mend: str

    def title(self) -> str:
        """Rule, footgun and the first of the paths."""
        rest = f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        where = f" at {', '.join(self.paths[:3])}{rest}" if self.paths else ""
        return self.rule + (f" ({self.footgun})" if self.footgun else "") + where


class Report(NamedTuple):
    """What `wd_optax.auditing.audit` measured; prints as a table that fits 100 columns."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]  # worst first
    how: str  # how it was measured

    def __str__(self) -> str:
        """Like leaves folded, findings, how it was measured, totals."""
        return "\n".join([*_table(self._folded()), *self._told(), *textwrap.wrap(self.how, WIDTH), self.totals()])

    def totals(self) -> str:
        """How much of the model decays as it should, and the leaves under each verdict."""
        decaying = [row for row in self.rows if row.verdict in verdicts.HEALTHY]
        sizes = " of ".join(f"{sum(row.size for row in rows):,}" for rows in (decaying, self.rows))
        tally = collections.Counter(row.verdict for row in self.rows)
        words = ", ".join(f"{count} {word}" for word, count in tally.items())
        return f"{len(decaying)} of {len(self.rows)} leaves decay, {sizes} parameters ({words})"

    def check(self, *, decays: Iterable[str] = (), spares: Iterable[str] = ()) -> None:
        """Raises unless every leaf is what it should be: for unit tests and CI.

        Args:
          decays: regexes; every parameter whose path one matches (`re.search`) must shrink, at a rate that was asked
            for: its verdict is one of `wd_optax.auditing.verdicts.HEALTHY`.
          spares: regexes; every parameter whose path one matches must not decay at all.

        Raises:
          AssertionError: with the leaves that are otherwise and the table, or naming the regex that matches nothing.

        Example:
          >>> import jax.numpy as jnp, optax, wd_optax as wd
          >>> from wd_optax.auditing.audit import audit
          >>> params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
          >>> audit(wd.sgdw(0.1, weight_decay=0.01), params).check(decays=["kernel"], spares=["bias"])
          >>> try:
          ...     audit(optax.sgd(0.1), params).check(decays=["kernel"])
          ... except AssertionError as error:
          ...     print(str(error).splitlines()[0])
          'kernel' should decay, and is spared

        """
        wrong = []
        for regexes, expected, allowed in ((decays, "decay", verdicts.HEALTHY), (spares, "be spared", ("spared",))):
            if isinstance(regexes, str):
                raise TypeError(f"{regexes!r} is one string: pass a list of regexes, [{regexes!r}]")
            for regex in regexes:
                rows = [row for row in self.rows if re.search(regex, row.path)]
                wrong += [] if rows else [f"regex {regex!r} matches no parameter"]
                wrong += [
                    f"{row.path!r} should {expected}, and {_is(row.verdict)}"
                    for row in rows
                    if row.verdict not in allowed
                ]
        if wrong:
            raise AssertionError("\n".join([*wrong, "", str(self)]))

    def to_markdown(self) -> str:
        """The table and the findings in Markdown, like leaves folded."""
        header, *rows = self._folded()
        line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        told = [f"- **{f.severity}** {f.title()}: {f.what}. Mend: `{f.mend}`" for f in self.findings]
        table = [line(header), line(["---"] * len(header)), *map(line, rows)]
        return "\n".join([*table, "", *told, *([""] if told else []), self.how, "", self.totals()])

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one line per parameter and the fields of `Row` as columns.

        Raises:
          ImportError: without pandas, which is an extra.

        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise ImportError('to_pandas needs pandas: pip install "wd_optax[pandas]"') from None
        return pandas.DataFrame([row._asdict() for row in self.rows], columns=list(Row._fields))

    def _told(self) -> list[str]:
        """The findings as wrapped text."""
        lines = []
        for f in self.findings:
            for text in (f"{f.severity}: {f.title()}: {f.what}", f"    mend: {f.mend}"):
                lines += textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        return lines

    def _folded(self) -> list[list[str]]:
        """Header and rows; leaves that differ only in the numbers in their paths are one row."""
        groups: dict[Any, list[Row]] = {}
        for row in self.rows:
            key = (re.sub(r"\d+", "*", row.path), row.shape, str(row.dtype), row.role, row.verdict)
            groups.setdefault((*key, f"{row.removed_per_step:.2g}"), []).append(row)
        timed = any(not math.isnan(row.remaining) for row in self.rows)
        lines = [["path", "type", "role", "removed", "half-life", *(["left"] if timed else []), "verdict"]]
        for (stars, *_), rows in groups.items():
            row = rows[0]
            name = f"{_stars([r.path for r in rows], stars)} x{len(rows)}" if len(rows) > 1 else row.path
            numbers = (row.removed_per_step, row.half_life, row.remaining)[: 3 if timed else 2]
            lines.append([name, _type(row), row.role, *map(_number, numbers), row.verdict])
        return lines


def _stars(paths: list[str], stars: str) -> str:
    """The common path, with a * only for the numbers that differ."""
    numbers = zip(*(re.findall(r"\d+", path) for path in paths), strict=True)
    each = iter(["*" if len(set(column)) > 1 else column[0] for column in numbers])
    return re.sub(r"\*", lambda _: next(each), stars)


def _table(lines: list[list[str]]) -> list[str]:
    """Columns, the path shortened in its middle where the line would be too long."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = min(widths[0], max(16, WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    cells = lambda line: [_shorten(line[0], widths[0]), *line[1:]]
    return ["  ".join(map(str.ljust, cells(line), widths)).rstrip() for line in lines]


def _shorten(text: str, width: int) -> str:
    tail = (width - 1) * 2 // 3
    return text if len(text) <= width else f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _type(row: Row) -> str:
    """The type as JAX writes it: f32[64,4,16]."""
    kind, bits = re.fullmatch(r"([a-z_]+)(.*)", str(row.dtype)).groups()  # type: ignore[union-attr]
    return _shorten(f"{SHORT.get(kind, kind)}{bits}[{','.join(map(str, row.shape))}]", 18)


def _number(x: float) -> str:
    if not math.isfinite(x):
        return "?" if math.isnan(x) else "never"
    return f"{x:,.0f}" if 1000 <= x < 1e6 else f"{x:.3g}"


def _is(verdict: str) -> str:
    return f"is {verdict}" if verdict in ("spared", "unknown", "lost in rounding", "normalised away") else verdict
