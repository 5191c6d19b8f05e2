"""The gallery of the examples stays true: which example shows what, where, with which picture."""

import ast
import re

import pytest
from example_loading import EXAMPLES, load

README = (EXAMPLES / "README.md").read_text()
SOURCES = {path.name: path.read_text() for path in sorted(EXAMPLES.glob("*.py"))}
SCRIPTS = [name for name, source in SOURCES.items() if "app.run(main)" in source]


def shown() -> list[tuple[int, str, str, int]]:
    """Every comment `# S<number>: what` as (number, what, file, line)."""
    return sorted(
        (int(number), what.strip(), name, line)
        for name, source in SOURCES.items()
        for line, text in enumerate(source.splitlines(), 1)
        for number, what in re.findall(r"# S(\d+): (.+)", text)
    )


def test_the_table_names_every_line_that_shows_a_row() -> None:
    rows = "\n".join(f"| S{n} | {what} | [{name}:{line}]({name}#L{line}) |" for n, what, name, line in shown())
    assert rows in README, f"the table in examples/README.md should be\n{rows}"
    assert README.count("| S") == rows.count("| S")


def test_every_row_is_shown_somewhere() -> None:
    assert {number for number, *_ in shown()} == set(range(1, 21))


def test_every_example_has_a_section_that_begins_with_its_own_words() -> None:
    assert sorted(re.findall(r"^## \[(\w+\.py)\]", README, re.M)) == SCRIPTS
    for name in SCRIPTS:
        opening = str(ast.get_docstring(ast.parse(SOURCES[name]))).split("\n")[0]
        assert f"## [{name}]({name})\n\n{opening}\n" in README, name


def test_pictures_are_there_and_shown() -> None:
    linked = re.findall(r"^!\[[^\]]+\]\((pictures/\w+\.png)\)$", README, re.M)
    assert sorted(linked) == sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("pictures/*"))
    committed = [*EXAMPLES.glob("pictures/*"), *EXAMPLES.parent.glob("docs/pictures/**/*.png")]
    assert sum(path.stat().st_size for path in committed) < 3_000_000


def test_output_is_put_below_its_own_heading() -> None:
    gallery = load("gallery")
    text = gallery.shown("3 of 6 leaves decay, all\n\n1 of 2 leaves decay\n\nrun 1\n\nrun 2\n")
    assert text == "run 1\n\nrun 2"
    document = "## a\n\n```text\nold\n```\n\n## b\n\n```text\nof b\n```\n\n## c\n"
    assert gallery.updated(document, "## b", text) == document.replace("of b", text)
    with pytest.raises(ValueError, match="the section '## c' has no"):
        gallery.updated(document + "\n## d\n```text\n```\n", "## c", text)
    assert {f"{name}.py" for name in gallery.NAMES} == set(SCRIPTS) - {"tpu_run.py"}


def test_verdicts_come_from_one_place() -> None:
    for name, source in SOURCES.items():
        assert not re.search(r"\bsem\(|two standard errors", source) or name == "intervals.py", name
        if re.search(r"intervals\.(mean|half_width|change)\(", source):
            assert "intervals.MEANING" in source or name == "plots.py", f"{name} doesn't say what ± is"
