"""docs/api has every public name once, whose docstring Sphinx shows; each is used in a document or example."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import wd_optax as wd

ROOT = Path(__file__).parents[1]
SPACES = ("precision", "prox", "rules")
PUBLIC = [f"wd_optax.{name}" for name in wd.__all__ if name not in SPACES]
PUBLIC += [f"wd_optax.{space}.{name}" for space in SPACES for name in getattr(wd, space).__all__]
LISTED = re.findall(
    r"^\.\. auto(function|class|data):: (\S+)", "\n".join(p.read_text() for p in ROOT.glob("docs/api/*.md")), re.M
)
USES = "\n".join(
    path.read_text()
    for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.py"))
    if path.parent.name != "api"
)


def resolve(name: str) -> Any:
    """The object of a dotted name: a public one, or a class in its module."""
    parts = name.split(".")[1:]
    thing: Any = wd
    for i, part in enumerate(parts):
        if inspect.ismodule(thing) and not hasattr(thing, part):
            thing = importlib.import_module(".".join(["wd_optax", *parts[: i + 1]]))
        else:
            thing = getattr(thing, part)
    return thing


def test_the_reference_has_every_public_name_once() -> None:
    names = [name for _, name in LISTED]
    assert len(names) == len(set(names))
    assert set(PUBLIC) <= set(names)


@pytest.mark.parametrize(("kind", "name"), LISTED)
def test_the_reference_names_what_exists_by_its_kind(kind: str, name: str) -> None:
    thing = resolve(name)
    is_public = name in PUBLIC
    assert (kind == "class") == inspect.isclass(thing)
    assert is_public or inspect.isclass(thing), f"{name} is not public, and no result type"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_used(name: str) -> None:
    short = re.escape(name.removeprefix("wd_optax."))
    assert re.search(rf"\b(wd|wd_optax)\.{short}\b", USES), f"{name} is in no document or example"
