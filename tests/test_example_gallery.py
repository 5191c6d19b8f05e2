"""The gallery of the examples stays true: which example shows what, with which picture, proving which sentence."""

import ast
import re

import pytest
from example_loading import EXAMPLES, load

ROOT = EXAMPLES.parent
PAGE, INDEX, NOTES = (ROOT / path for path in ("docs/gallery.md", "examples/README.md", "WORKSPACE_NOTES.md"))
SOURCES = {path.name: path.read_text() for path in sorted(EXAMPLES.glob("*.py"))}
SCRIPTS = sorted(name.removesuffix(".py") for name, source in SOURCES.items() if "app.run(main)" in source)
gallery = load("gallery")


def shown() -> list[tuple[int, str, str]]:
    """Every comment `# S<number>: what` as (number, what, example)."""
    found = re.compile(r"# S(\d+): (.+)")
    return sorted(
        (int(number), what.strip(), name.removesuffix(".py"))
        for name, source in SOURCES.items()
        for number, what in found.findall(source)
    )


def test_the_table_names_every_example_that_shows_a_row() -> None:
    rows = "\n".join(f"| S{n} | {what} | [{name}](examples/{name}.py) |" for n, what, name in shown())
    assert rows in NOTES.read_text(), f"the table in WORKSPACE_NOTES.md should be\n{rows}"
    assert NOTES.read_text().count("| S") == rows.count("| S")


def test_every_row_is_shown_somewhere() -> None:
    assert {number for number, *_ in shown()} == set(range(1, 21))


def test_the_page_is_what_the_examples_say_of_themselves() -> None:
    outputs = gallery.outputs(PAGE.read_text())
    assert sorted(outputs) == sorted(gallery.NAMES) == SCRIPTS
    assert gallery.rendered(outputs) == PAGE.read_text(), "python examples/gallery.py --words renews it"
    assert f"```text\n{outputs['bf16_decay']}\n```" in (ROOT / "docs/precision.md").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_section_has_links_pictures_and_the_sentence_that_they_prove(name: str) -> None:
    (section,) = re.findall(rf"^### {name}\n(.*?)(?=^### |^## |\Z)", PAGE.read_text(), re.M | re.S)
    opening = str(ast.get_docstring(ast.parse(SOURCES[f"{name}.py"]))).split("\n")[0]
    assert f"[examples/{name}.py](../examples/{name}.py): {opening[0].lower()}{opening[1:]}\n" in section
    assert f"python examples/{name}.py" in section
    (sentence,) = re.findall(r"^\*\*(.+)\*\*$", section, re.M)
    assert sentence in gallery.outputs(PAGE.read_text())[name].splitlines()[-4:]
    pictures = re.findall(r"^!\[(.+)\]\(\.\./examples/pictures/(\w+)\.png\)$", section, re.M)
    assert all(picture.startswith(name) and len(alt) > 20 for alt, picture in pictures)
    assert bool(pictures) == ("def plot(" in SOURCES[f"{name}.py"])


def test_pictures_are_shown_and_small() -> None:
    linked = re.findall(r"\((\.\./examples/pictures/\w+\.png)\)$", PAGE.read_text(), re.M)
    committed = [*EXAMPLES.glob("pictures/*"), *ROOT.glob("docs/pictures/**/*.png")]
    assert sorted(linked) == sorted(f"../examples/pictures/{path.name}" for path in EXAMPLES.glob("pictures/*"))
    assert sum(path.stat().st_size for path in committed) < 3_000_000


def test_the_index_has_a_line_per_example() -> None:
    index = INDEX.read_text()
    assert sorted(re.findall(r"^- \[(\w+)\]\(\1\.py\): .+\.$", index, re.M)) == SCRIPTS
    assert index.count("\n") <= 40


def test_an_output_begins_after_the_table_of_parameters_and_ends_with_its_sentence() -> None:
    text = gallery.shown(
        "3 of 6 leaves decay, all\n\n1 of 2 leaves decay\n\nrun 1\n\nIt decays.\n4 seeds. Picture: out/a.png\n"
    )
    assert text == "run 1\n\nIt decays.\n4 seeds. Picture: out/a.png"
    assert gallery.conclusion(text) == "It decays."
    assert gallery.conclusion("It pays.\n8 splits (±), η = 0.01.") == "It pays."


def test_some_examples_are_rerun_and_the_others_kept(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    before = gallery.outputs(PAGE.read_text())
    for name in ("GALLERY", "PRECISION"):
        copy = tmp_path / name
        copy.write_text(getattr(gallery, name).read_text())
        monkeypatch.setattr(gallery, name, copy)
    monkeypatch.setattr(gallery, "run", lambda name: f"{name} ran.\\1\nPicture: out/a.png")
    gallery.main(["gan", "bf16_decay"])
    after = gallery.outputs(gallery.GALLERY.read_text())
    assert {name for name in after if after[name] != before[name]} == {"gan", "bf16_decay"}
    assert "**gan ran.\\1**" in gallery.GALLERY.read_text()
    assert gallery.PRECISION.read_text().count("```text\nbf16_decay ran.\\1\nPicture") == 1
    with pytest.raises(SystemExit, match="no example is named cats: choose from linear_regression,"):
        gallery.main(["cats"])


def test_verdicts_come_from_one_place() -> None:
    for name, source in SOURCES.items():
        assert not re.search(r"\bsem\(|two standard errors", source) or name == "intervals.py", name
        if re.search(r"intervals\.(mean|half_width|change)\(", source):
            says = re.search(r"intervals\.MEANING|SETTING\.show\(", source)
            assert says or name == "plots.py", f"{name} doesn't say what ± is"
