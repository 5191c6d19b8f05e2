"""CITATION.cff parses, and says of the package and the papers what the code says."""

import re
import tomllib
from pathlib import Path

import yaml

import wd_optax as wd

ROOT = Path(__file__).parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
PAGE = (ROOT / "docs" / "citing.md").read_text()


def test_it_has_what_the_format_requires_and_the_packages_own_facts() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["message"]
    assert CITATION["authors"] == [{"name": "wd_optax contributors"}]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {key: CITATION[key] for key in ("license", "keywords")} == {k: project[k] for k in ("license", "keywords")}
    assert str(CITATION["version"]) == wd.__version__
    assert re.findall(r"version = \{(.*)\}", PAGE) == [wd.__version__]


def test_the_papers_are_those_of_the_docstrings_and_of_the_page() -> None:
    package = "\n".join(path.read_text() for path in (ROOT / "wd_optax").rglob("*.py"))
    for paper in CITATION["references"]:
        assert paper["type"] == "article"
        assert all({"family-names", "given-names"} == set(author) for author in paper["authors"]), paper["title"]
        identifier = paper["identifiers"][0]["value"].removeprefix("arXiv:")
        assert paper["url"] == f"https://arxiv.org/abs/{identifier}"
        assert identifier in package, paper["title"]
        cited = re.search(rf"^\|[^|]*\| (\w+)[^|]* (\d{{4}}), \[arXiv {identifier}\]", PAGE, re.M)
        assert cited, paper["title"]
        assert (cited[1], int(cited[2])) == (paper["authors"][0]["family-names"], paper["year"])
    assert len(CITATION["references"]) == len(re.findall(r"^\| .*\[arXiv", PAGE, re.M))
