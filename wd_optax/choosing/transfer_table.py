"""What published rules give a run: one row each, their range as a grid, and the sources."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from wd_optax import tables
from wd_optax.choosing.runs import Run
from wd_optax.choosing.transfer_rules import LEARNING_RATE_RULES, DecayRule


class Transferred(NamedTuple):
    """What one rule gives the target."""

    rule: DecayRule
    learning_rate: float
    weight_decay: float
    run: Run  # the target with these two


@dataclasses.dataclass(frozen=True, eq=False)
class Transfer:
    """The result of `wd_optax.transfer`; `print` shows a line per rule, where each was validated, and their range.

    Attributes:
      source: the run that λ comes from.
      target: the run that it goes to, with what it took from the source.
      rows: what each rule gives.
      learning_rates: {rule for η: what it gives the target}.
      skipped: {rule: why it isn't here}.
      hold: the name of the rule that was picked, or None.

    """

    source: Run
    target: Run
    rows: tuple[Transferred, ...]
    learning_rates: dict[str, float]
    skipped: dict[str, str]
    hold: str | None

    def __getitem__(self, name: str) -> Transferred:
        """The row of a rule."""
        for row in self.rows:
            if row.rule.name == name:
                return row
        reason = self.skipped.get(name, f"use one of {', '.join(repr(row.rule.name) for row in self.rows)}")
        raise KeyError(f"no row {name!r}: {reason}")

    @property
    def run(self) -> Run:
        """The target with the η and λ of the rule that `hold` picked.

        Raises:
          ValueError: if none was picked: the rules disagree, so there is no default.

        """
        if self.hold is None:
            names = ", ".join(repr(row.rule.name) for row in self.rows)
            raise ValueError(f"no rule was picked, and they disagree: pass hold=..., one of {names}")
        return self[self.hold].run

    @property
    def learning_rate(self) -> float:
        """η of the rule that was picked."""
        return self.run.learning_rate or math.nan

    @property
    def weight_decay(self) -> float:
        """λ of the rule that was picked."""
        return self.run.weight_decay or math.nan

    def grid(self, points: int = 5) -> np.ndarray:
        """The axis of λ to sweep: `points` values from the least to the most that the rules say, evenly in log λ.

        Where they agree within a factor of 4, it is a factor of 2 to either side of their middle.

        Raises:
          ValueError: if the rules give different learning rates: λ at one η and λ at another are no axis.

        """
        if not isinstance(points, int | np.integer) or points < 2:
            raise ValueError(f"points={points!r} must be a whole number, at least 2")
        if len(etas := self._etas()) > 1:
            shown = ", ".join(f"{eta:.4g}" for eta in etas)
            raise ValueError(
                f"the rules give λ at different learning rates ({shown}): pass the one that you will use, "
                "target=wd.Run(..., learning_rate=...), or learning_rate_rule"
            )
        decays = [row.weight_decay for row in self.rows]
        low, high = min(decays), max(decays)
        if high < 4 * low:
            middle = math.sqrt(low * high)
            low, high = middle / 2, middle * 2
        return np.geomspace(low, high, points)

    def lines(self) -> list[tuple[str, ...]]:
        """The cells of the table, header first: one line per rule."""
        head = ("hold", "η", "λ", "λ / least", "timescale, steps", "epochs", "of the run", "it holds")
        least = min(row.weight_decay for row in self.rows)
        return [head, *(_rule_cells(row, least, picked=row.rule.name == self.hold) for row in self.rows)]

    def __str__(self) -> str:
        sources = [(f"  {row.rule.name}", row.rule.source, row.rule.validated) for row in self.rows]
        rules = [(LEARNING_RATE_RULES[name], eta) for name, eta in self.learning_rates.items()]
        etas = [(f"  {x.name}", f"{eta:.4g}", x.formula, x.source, x.validated) for x, eta in rules]
        skipped = [f"  {name}: {reason}" for name, reason in self.skipped.items()]
        runs = tables.align([_describe("from", self.source), _describe("to", self.target)])
        parts = [runs, "", tables.align(self.lines())]
        parts += ["", self._range(), "", "Sources, and where they were validated:", tables.align(sources)]
        parts += ["Rules for η alone (learning_rate_rule=...):", tables.align(etas)] * bool(etas)
        return "\n".join(parts + ["Not shown:"] * bool(skipped) + skipped)

    def _repr_html_(self) -> str:
        return tables.to_html(self.lines()) + tables.to_html([(self._range(),)], header=False)

    def _range(self) -> str:
        """Who says the least and who the most, and by how much they differ."""
        ordered = sorted(self.rows, key=lambda row: row.weight_decay)
        low, high = ordered[0].weight_decay, ordered[-1].weight_decay
        if high <= low * 1.01:
            return f"The rules agree: λ = {low:.4g}."
        names = [
            " and ".join(row.rule.name for row in ordered if math.isclose(row.weight_decay, end, rel_tol=0.01))
            for end in (low, high)
        ]
        etas = " They use different η, so compare timescales." if len(self._etas()) > 1 else ""
        return (
            f"The rules disagree by a factor of {high / low:.3g}: "
            f"from {low:.4g} ({names[0]}) to {high:.4g} ({names[1]}).{etas}"
        )

    def _etas(self) -> list[float]:
        """The different learning rates of the rows."""
        return sorted({float(f"{row.learning_rate:.12g}") for row in self.rows})


def _rule_cells(row: Transferred, least: float, *, picked: bool) -> tuple[str, ...]:
    scale, run = row.run.timescale(), row.run
    return (
        ("→ " if picked else "") + row.rule.name,
        f"{row.learning_rate:.4g}",
        f"{row.weight_decay:.4g}",
        f"{row.weight_decay / least:.3g}",
        f"{scale.timescale_steps:,.0f}",
        f"{scale.timescale_epochs:.3g}" if scale.timescale_epochs else "-",
        f"{scale.timescale_steps / run.steps:.3g}",
        row.rule.holds,
    )


def _describe(word: str, run: Run) -> tuple[str, str]:
    """A run in one line."""
    shape = "constant η" if run.schedule is None else "η on a schedule"
    known = [
        f"{run.optimizer}, {shape}",
        f"batch {run.batch:,.10g}",
        f"{run.steps:,} steps",
        f"{run.epochs:.3g} epochs of {run.examples:,.10g}" if run.examples else "",
        f"width {run.width:,.10g}" if run.width else "",
        f"{run.parameters:,.10g} parameters" if run.parameters else "",
        f"η = {run.learning_rate:.4g}" if run.learning_rate else "",
        f"λ = {run.weight_decay:.4g}" if run.weight_decay else "",
        f'coupling "{run.coupling}"',
    ]
    return word, ", ".join(part for part in known if part)
