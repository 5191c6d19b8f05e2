"""Docstrings are written for `help()`: what reStructuredText would read otherwise is escaped, for Sphinx alone."""

import re
from typing import Any

CODE = re.compile(r"(`[^`\n]+`)")


def _escape_text(line: str) -> str:
    """Escapes |p|, **options and names_ outside of code, and separates `code`s from the letter after it."""
    parts = CODE.split(line)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = part + "\\ " * bool(re.match(r"\w", parts[i + 1]))
        else:
            parts[i] = re.sub(r"(\w)_(?!\w)", r"\1\\_", part.replace("|", r"\|").replace("**", r"\*\*"))
    return "".join(parts)


def escape(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's `autodoc-process-docstring`, before napoleon's: edits `lines` in place."""
    escaped: list[str] = []
    example, listed = False, None  # whether this line is code or its output; the indentation of the list it is in
    for line in lines:
        text, indent = line.lstrip(), len(line) - len(line.lstrip())
        example = text.startswith(">>>") or (example and bool(text))
        begins = text.startswith((">>>", "- "))
        ends = listed is not None and bool(text) and indent < listed
        if escaped and (above := escaped[-1].lstrip()) and ((begins and above[:2] != text[:2] and not listed) or ends):
            escaped.append("")  # a list or an example is a paragraph of its own
        if text:
            listed = indent if text.startswith("- ") else listed if listed is not None and indent > listed else None
        escaped.append(line if example else _escape_text(line))
    lines[:] = escaped
