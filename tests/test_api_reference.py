"""docs/api.md lists exactly the public API, with its signatures; every public name is used in a document or example."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import wd_optax as wd

ROOT = Path(__file__).parents[1]
SPACES = ("precision", "prox", "rules")
PUBLIC = [f"wd.{name}" for name in wd.__all__ if name not in SPACES]
PUBLIC += [f"wd.{space}.{name}" for space in SPACES for name in getattr(wd, space).__all__]
REFERENCE = (ROOT / "docs" / "api.md").read_text()
LISTED = re.findall(r"^- `((wd\.[\w.]+).*?)`", REFERENCE, re.M)
USES = "\n".join(
    path.read_text()
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py"))
    if path.name != "api.md"
)


def resolve(name: str) -> Any:
    """The object that `wd.a.b` names."""
    thing: Any = wd
    for part in name.split(".")[1:]:
        thing = getattr(thing, part)
    return thing


def call(name: str) -> str:
    """The signature of a public name as the reference has it: without annotations, `...` for a private default."""
    thing = resolve(name)
    if not callable(thing) or name == "wd.scale_by_adam":  # Optax's signature depends on its version
        return name if not callable(thing) else f"{name}(...)"
    bare = []
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.default is not parameter.empty and repr(parameter.default).startswith("<"):
            parameter = parameter.replace(default=...)
        bare.append(parameter.replace(annotation=parameter.empty))
    return name + str(inspect.Signature(bare)).replace("Ellipsis", "...").replace("'", '"')


def test_the_reference_lists_exactly_the_public_names() -> None:
    assert sorted(name for _, name in LISTED) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_reference_has_the_signature(name: str) -> None:
    assert call(name) in {shown for shown, _ in LISTED}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_used(name: str) -> None:
    assert re.search(rf"\b{re.escape(name)}\b", USES), f"{name} is in no document or example"


def test_result_types_have_their_module() -> None:
    for path in set(re.findall(r"`(wd_optax\.[\w.]+)`", REFERENCE)):
        module, _, name = path.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), name)), path
