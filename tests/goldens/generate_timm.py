"""Writes timm.npz. Needs timm and torch==2.13.0."""

import importlib
import importlib.util
import os
import sys
import types
from typing import Any

from cases_timm import TIMM
from problem import save
from torch_runs import run_all

MODULES = {  # where each class is
    "SGDW": "sgdw", "AdamWLegacy": "adamw", "NAdamW": "nadamw", "Lion": "lion", "RMSpropTF": "rmsprop_tf",
    "Lamb": "lamb", "Lars": "lars", "Adan": "adan", "AdaBelief": "adabelief", "AdafactorBigVision": "adafactor_bv",
    "Muon": "muon", "create_optimizer_v2": "_optim_factory",
}  # fmt: skip


def original(name: str) -> Any:
    return getattr(importlib.import_module(f"timm.optim.{MODULES[name]}"), name)


def find(call: str) -> Any:
    found = original(call.rpartition(".")[2])
    return lambda *args, **kwargs: found(*args, **_as_torch(kwargs))


def bare_packages() -> None:
    # timm/__init__.py imports every model and timm.data, and with them torchvision, which has no build for this CPU
    # torch. Bare packages with the right __path__ let the optimizers' own modules be imported without running it.
    spec = importlib.util.find_spec("timm")  # finds it without importing it
    assert spec is not None
    assert spec.submodule_search_locations
    for name, folder in (("timm", ""), ("timm.optim", "optim"), ("timm.models", "models")):
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [os.path.join(spec.submodule_search_locations[0], folder)]
    sys.modules["timm.layers"] = layers = types.ModuleType("timm.layers")
    layers.use_reentrant_ckpt = None  # type: ignore[attr-defined]  # of what _manipulate has besides
    models: Any = sys.modules["timm.models"]
    models.group_parameters = importlib.import_module("timm.models._manipulate").group_parameters


def _as_torch(arguments: dict[str, Any]) -> dict[str, Any]:
    import torch

    is_double = arguments.get("momentum_dtype") == "float64"  # no string of timm's, which takes the dtype itself
    return arguments | ({"momentum_dtype": torch.float64} if is_double else {})


if __name__ == "__main__":
    bare_packages()
    save("timm", ["timm", "torch"], run_all(TIMM, find))
