"""Plain text tables: columns aligned, nothing else."""

from collections.abc import Iterable, Sequence


def align(lines: Iterable[Sequence[str]]) -> str:
    """The lines with their cells padded to columns, two spaces between them."""
    rows = [tuple(line) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def show_shape(shape: Sequence[int]) -> str:
    """A shape without spaces: (8,2,4)."""
    return str(tuple(shape)).replace(" ", "")
