"""The result of `translate`: the other call's arguments, what moved, and what can't be the same."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from wd_optax import tables
from wd_optax.choosing.timescales import Timescale


class Translation(NamedTuple):
    """A call in another framework's words; prints as that call with a sentence for each thing that moved."""

    from_: str
    to: str
    arguments: Mapping[
        str, Any
    ]  # of the call `to`, for `wd.emulate(to, params=params, schedule=schedule, **arguments)`
    equal: bool  # whether both calls compute the same numbers at every step
    moved: tuple[str, ...]  # one sentence each
    differs: tuple[str, ...]  # the same, for what can't be the same
    drift: float  # the largest relative distance between both runs' weights, measured on `steps` steps
    decay_gap: float | None  # the same between what both leave of a weight without gradient; None where unknown
    steps: int  # of that measurement
    before: Timescale | None  # the decay of `from_` over the run; None for L2 that the optimizer changes
    after: Timescale | None  # and of `to`

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={_show_argument(value)}" for name, value in self.arguments.items())
        lines = [f"{self.to}({shown})", *(f"- {sentence}" for sentence in self.moved)]
        if self.equal:
            return "\n".join([*lines, f"The same numbers as {self.from_} at every step."])
        lines += ["Not the same:", *(f"- {sentence}" for sentence in self.differs)]
        lines.append(
            f"Within {self.steps:,} steps of random gradients weights come to be {self.drift:.2g} apart, relatively."
        )
        return "\n".join(lines) + self._timescales()

    def _timescales(self) -> str:
        if self.before is None or self.after is None:
            return ""
        both = (self.before, self.after)
        rows: list[tuple[str, ...]] = [("decay", self.from_, self.to)]
        rows.append(("removed per step", *(f"{x.removed_per_step:.3g}" for x in both)))
        rows.append(("timescale, steps", *(f"{x.timescale_steps:,.3g}" for x in both)))
        if all(x.remaining is not None for x in both):
            rows.append(("remaining", *(f"{x.remaining:.4g}" for x in both)))
        return "\n" + tables.align(rows)


def _show_argument(value: Any) -> str:
    if callable(value):
        return "<schedule>"
    return f"{value:.7g}" if isinstance(value, float) else repr(value)
