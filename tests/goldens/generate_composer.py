"""Writes composer.npz. Needs mosaicml, without what it depends on, and torch==2.13.0."""

import importlib.util
import inspect
import logging
import os
import sys
import types
from typing import Any

from cases_composer import COMPOSER
from problem import save
from torch_runs import run_all


def bare_packages() -> None:
    # composer/__init__.py imports the trainer and all that it depends on. Bare packages with the right __path__ let the
    # optimizers' own module be imported without running it; composer.utils.dist serves its metrics only.
    spec = importlib.util.find_spec("composer")
    assert spec is not None
    assert spec.submodule_search_locations
    for name, folder in (("composer", ""), ("composer.optim", "optim"), ("composer.utils", "utils")):
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [os.path.join(spec.submodule_search_locations[0], folder)]
    sys.modules["composer.utils"].dist = None  # type: ignore[attr-defined]
    torch_optimizer = importlib.import_module("torch.optim.optimizer")
    if not hasattr(torch_optimizer, "required"):  # a default that newer versions of PyTorch no longer have
        torch_optimizer.required = inspect.Parameter.empty  # type: ignore[attr-defined]
    logging.disable(logging.WARNING)  # λ is large on purpose


def original(call: str) -> Any:
    return getattr(importlib.import_module("composer.optim.decoupled_weight_decay"), call.rpartition(".")[2])


if __name__ == "__main__":
    bare_packages()
    save("composer", ["mosaicml", "torch"], run_all(COMPOSER, original))
