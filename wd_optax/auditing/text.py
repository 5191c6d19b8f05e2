"""Cells and lines of a printed report."""

import math
import re
from typing import Any

WIDTH = 100
SHORT = {"float": "f", "bfloat": "bf", "complex": "c", "int": "i", "uint": "u", "bool": "bool"}


def stars(paths: list[str], stars: str) -> str:
    """A pattern of several paths, with a * only for numbers that differ."""
    numbers = zip(*(re.findall(r"\d+", path) for path in paths), strict=True)
    each = iter(["*" if len(set(column)) > 1 else column[0] for column in numbers])
    return re.sub(r"\*", lambda _: next(each), stars)


def table(lines: list[list[str]]) -> list[str]:
    """Aligned columns; paths are shortened in the middle where lines would be too long."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] = min(widths[0], max(16, WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    short = [[_shorten(line[0], widths[0]), *line[1:]] for line in lines]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in short]


def _shorten(text: str, width: int) -> str:
    tail = (width - 1) * 2 // 3
    return text if len(text) <= width else f"{text[: width - 1 - tail]}…{text[-tail:]}"


def array_type(dtype: Any, shape: tuple[int, ...]) -> str:
    """Dtype and shape as JAX writes them: f32[64,4,16]."""
    kind, bits = re.fullmatch(r"([a-z_]+)(.*)", str(dtype)).groups()  # type: ignore[union-attr]
    return _shorten(f"{SHORT.get(kind, kind)}{bits}[{','.join(map(str, shape))}]", 18)


def number(x: float) -> str:
    """Three significant digits, or an integer with commas; "?" for nan and "never" for infinity."""
    if not math.isfinite(x):
        return "?" if math.isnan(x) else "never"
    return f"{x:,.0f}" if 1000 <= x < 1e6 else f"{x:.3g}"
