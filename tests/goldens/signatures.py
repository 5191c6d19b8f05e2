"""Writes signatures_<framework>.json: the arguments and defaults of each call, as the installed framework has them.

    python tests/goldens/signatures.py torch|timm|optimi|keras|tfa|bitsandbytes|composer|pytorch_optimizer

Run it where that framework is installed: see generate_*.py.
"""

import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

CALLS = {
    "torch": [
        "SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD", "Adafactor",
        "Muon",
    ],
    "optimi": ["SGD", "Adam", "AdamW", "RAdam", "Lion", "Adan", "StableAdamW"],
    "keras": ["SGD", "Adam", "AdamW", "RMSprop", "Lion", "Lamb", "Adafactor"],
    "tfa": ["SGDW", "AdamW", "LAMB"],
    "bitsandbytes": ["Adam", "AdamW", "Lion"],
    "composer": ["DecoupledSGDW", "DecoupledAdamW"],
    "pytorch_optimizer": ["SGDW", "Lion", "Adan", "AdaBelief", "StableAdamW"],
}  # fmt: skip
MODULES = {
    "torch": "torch.optim",
    "optimi": "optimi",
    "keras": "keras.optimizers",
    "tfa": "tensorflow_addons.optimizers",
    "bitsandbytes": "bitsandbytes.optim",
    "composer": "composer.optim.decoupled_weight_decay",
    "pytorch_optimizer": "pytorch_optimizer",
}


def classes(framework: str) -> dict[str, Any]:
    if framework == "timm":
        import generate_timm

        generate_timm.bare_packages()
        return {f"timm.optim.{name}": generate_timm.original(name) for name in generate_timm.MODULES}
    if framework == "composer":
        import generate_composer

        generate_composer.bare_packages()
    module = importlib.import_module(MODULES[framework])
    prefix = {"tfa": "tfa.optimizers", "composer": "composer.optim"}.get(framework, MODULES[framework])
    return {f"{prefix}.{name}": getattr(module, name) for name in CALLS[framework]}


def arguments(made: Any) -> dict[str, str]:
    """name: the default as text, "" for none; without the parameters and **kwargs."""
    found = inspect.signature(made).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = ("params", "model_or_params", "self")
    each = [p for p in found if p.kind in kinds and p.name not in names]
    return {
        p.name: "" if p.default is p.empty or str(p.default) == "<required parameter>" else str(p.default) for p in each
    }


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    found = {name: arguments(made) for name, made in classes(sys.argv[1]).items()}
    path = Path(__file__).with_name(f"signatures_{sys.argv[1]}.json")
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{path.name}: {len(found)} calls")
