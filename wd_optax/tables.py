"""Tables as aligned plain text and as HTML."""

import html
from collections.abc import Iterable, Sequence


def align(lines: Iterable[Sequence[str]]) -> str:
    """Pads the cells of each line to columns that are two spaces apart."""
    rows = [tuple(line) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def to_html(lines: Iterable[Sequence[str]], header: bool = True) -> str:
    """An HTML table of the lines, with every cell escaped; the first line is the header unless `header` is False."""
    rows = [_html_row("th" if header and i == 0 else "td", cells) for i, cells in enumerate(lines)]
    return f"<table>{''.join(rows)}</table>"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def show_shape(shape: Sequence[int]) -> str:
    """A shape without spaces: (8,2,4)."""
    return str(tuple(shape)).replace(" ", "")
