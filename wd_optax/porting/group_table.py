"""The table of parameter groups: which group each parameter is in, and why."""

from typing import Any, NamedTuple

from wd_optax import tables
from wd_optax.porting.rates import Scheduled


class GroupRow(NamedTuple):
    """One parameter, its group, and what the group's η and λ are."""

    path: str
    shape: tuple[int, ...]
    group: str
    learning_rate: Any  # of stacked layers a tuple, one per layer
    weight_decay: Any  # times the mask's multiplier
    because: str
    other_name: str = ""  # in the framework that it comes from


class GroupTable(NamedTuple):
    """The group of every parameter; prints as a table, also in notebooks."""

    rows: tuple[GroupRow, ...]

    def __str__(self) -> str:
        return tables.align(self._lines())

    def _repr_html_(self) -> str:
        return tables.to_html(self._lines())

    def _lines(self) -> list[tuple[str, ...]]:
        header: tuple[str, ...] = ("path", "shape", "group", "lr", "weight_decay", "because")
        named = any(row.other_name for row in self.rows)
        lines = [header + ("from",) * named]
        for row in self.rows:
            cells: tuple[str, ...] = (row.path, tables.show_shape(row.shape), row.group, show(row.learning_rate))
            cells += (show(row.weight_decay), row.because)
            lines.append(cells + (row.other_name,) * named)
        return lines


def show(value: Any) -> str:
    """A rate in a cell: a number, "schedule", or both."""
    if isinstance(value, Scheduled):
        return f"{show(value.base)}·schedule"
    if isinstance(value, tuple):
        return f"{show(value[0])} … {show(value[-1])}"
    if callable(value):
        return "schedule"
    return f"{value:.6g}" if isinstance(value, int | float) else str(value)
