"""Examples and benchmarks as modules: each is loaded from its file, without its flags staying behind."""

import contextlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
BENCHMARKS = EXAMPLES.parent / "benchmarks"
sys.path += map(str, (EXAMPLES, BENCHMARKS))  # as Python does for a script, for its `import data, plots`


@contextlib.contextmanager
def flagged(name: str, *argv: str, folder: pathlib.Path = EXAMPLES) -> Iterator[Any]:
    """The module of a script with its flags set as by `python name.py *argv`, until the end of the block."""
    before = set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flags.FLAGS([name, *argv])
    try:
        yield module
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)


def load(name: str, folder: pathlib.Path = EXAMPLES) -> Any:
    """The module; its flags are taken back, because every script may have an --out of its own."""
    with flagged(name, folder=folder) as module:
        return module
