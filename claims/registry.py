"""The claims, found by listing this folder: every file with a `CLAIM` has one."""

import importlib
import pathlib

from claims.claim import Claim

HERE = pathlib.Path(__file__).parent


def load() -> dict[str, Claim]:
    """The name of the file -> its claim, in alphabetical order."""
    names = sorted(path.stem for path in HERE.glob("*.py") if "\nCLAIM = Claim(" in path.read_text())
    return {name: importlib.import_module(f"claims.{name}").CLAIM for name in names}
