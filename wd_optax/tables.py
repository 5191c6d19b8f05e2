"""Tables as aligned plain text and as HTML, nothing else."""

import html
from collections.abc import Iterable, Sequence


def align(lines: Iterable[Sequence[str]]) -> str:
    """The lines with their cells padded to columns, two spaces between them."""
    rows = [tuple(line) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def to_html(lines: Iterable[Sequence[str]], header: bool = True) -> str:
    """The lines as an HTML table for notebooks, every cell escaped; the first is the header where there is one."""
    row = lambda tag, cells: f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
    rows = [row("th" if header and i == 0 else "td", cells) for i, cells in enumerate(lines)]
    return f"<table>{''.join(rows)}</table>"


def show_shape(shape: Sequence[int]) -> str:
    """A shape without spaces: (8,2,4)."""
    return str(tuple(shape)).replace(" ", "")
