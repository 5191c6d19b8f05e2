"""Adds recipes to recipes.npz: published training recipes, run for 100 steps with their own optimizers and schedules.

    python tests/goldens/generate_recipes.py torch    # needs torch==2.13.0, timm, transformers and accelerate
    python tests/goldens/generate_recipes.py keras    # needs keras and jax

η, λ, β, ε, clips and groups are the published ones; so are schedules that count epochs, of one step each here.
nanoGPT's schedule counts steps: warm-up and decay take 10 and 80 here in place of 2,000 and 600,000.
"""

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from recipe_trees import EVERY, STEPS, TREES, flat, gradients, initial

PATH = Path(__file__).with_name("recipes.npz")


def module(recipe: str) -> Any:
    """A module with the recipe's names; what is called a norm is a LayerNorm."""
    import torch

    torch.set_default_dtype(torch.float64)
    root = torch.nn.Module()
    for name, x in initial(recipe).items():
        at, (*folders, last) = root, name.split(".")
        for folder in folders:
            if not hasattr(at, folder):
                is_norm = folder.startswith(("ln_", "norm"))
                at.add_module(folder, torch.nn.LayerNorm(4, bias=False) if is_norm else torch.nn.Module())
            at = getattr(at, folder)
        setattr(at, last, torch.nn.Parameter(torch.tensor(x)))
    return root


def run(recipe: str, model: Any, steps: Callable[[int], None]) -> np.ndarray:
    """`steps(i)` does step i with the gradients that are set."""
    import torch

    p, out = dict(model.named_parameters()), []
    for i in range(STEPS):
        for name, g in gradients(recipe, i).items():
            p[name].grad = torch.tensor(g)
        steps(i)
        if (i + 1) % EVERY == 0:
            out.append(flat(recipe, {name: x.detach().numpy().copy() for name, x in p.items()}))
    return np.stack(out)


def nano_gpt() -> np.ndarray:
    """train.py and model.py's configure_optimizers of karpathy/nanoGPT."""
    import torch

    model = module("nano_gpt")
    decay, rest = ([p for p in model.parameters() if (p.dim() >= 2) is is_matrix] for is_matrix in (True, False))
    groups = [{"params": decay, "weight_decay": 1e-1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95))
    warmup, last = 10, 80

    def rate(i: int) -> float:
        if i < warmup:
            return 6e-4 * (i + 1) / (warmup + 1)
        if i > last:
            return 6e-5
        return 6e-5 + 0.5 * (1 + math.cos(math.pi * (i - warmup) / (last - warmup))) * (6e-4 - 6e-5)

    def step(i: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate(i)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run("nano_gpt", model, step)


def deit() -> np.ndarray:
    """main.py of facebookresearch/deit with its defaults and 1024 images a step, an epoch of one step."""
    from generate_timm import bare_packages, original

    bare_packages()
    from timm.scheduler.cosine_lr import CosineLRScheduler

    model = module("deit")
    model.no_weight_decay = lambda: {"pos_embed", "cls_token"}
    optimizer = original("create_optimizer_v2")(model, opt="adamw", lr=5e-4 * 1024 / 512, weight_decay=0.05)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=300, lr_min=1e-5, warmup_lr_init=1e-6, warmup_t=5, cycle_limit=1, t_in_epochs=True
    )

    def step(epoch: int) -> None:
        optimizer.step()
        scheduler.step(epoch)

    return run("deit", model, step)


def mae_fine_tuning() -> np.ndarray:
    """main_finetune.py of facebookresearch/mae for ViT-B with timm's groups by layer, an epoch of one step."""
    from generate_timm import bare_packages, original

    bare_packages()
    model = module("mae_fine_tuning")
    model.no_weight_decay = lambda: {"pos_embed", "cls_token"}
    model.group_matcher = lambda coarse: {  # of timm's VisionTransformer, whose class MAE's extends
        "stem": r"^cls_token|reg_token|pos_embed|patch_embed|norm_pre",
        "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
    }
    peak, least, warmup, epochs = 5e-4 * 1024 / 256, 1e-6, 5, 100
    create = original("create_optimizer_v2")
    optimizer = create(model, opt="adamw", lr=peak, weight_decay=0.05, layer_decay=0.65)

    def step(epoch: int) -> None:
        rate = peak * epoch / warmup
        if epoch >= warmup:
            rate = least + (peak - least) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        optimizer.step()

    return run("mae_fine_tuning", model, step)


def resnet50() -> np.ndarray:
    """references/classification/train.py of pytorch/vision with its defaults, an epoch of one step."""
    import torch

    model = module("resnet50")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)

    def step(i: int) -> None:
        optimizer.step()
        scheduler.step()

    return run("resnet50", model, step)


def run_clm() -> np.ndarray:
    """run_clm.py and run_mlm.py of Transformers, whose optimizer is the Trainer's by default."""
    import torch
    from transformers import Trainer, TrainingArguments

    model = module("run_clm")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to=[], max_steps=STEPS)
        trainer = Trainer(model=model, args=arguments)
        trainer.create_optimizer_and_scheduler(STEPS)

    def step(i: int) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()

    return run("run_clm", model, step)


def keras_vit() -> np.ndarray:
    """image_classification_with_vision_transformer.py of keras-io."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    import keras

    keras.config.set_floatx("float64")
    p = {
        name: keras.Variable(x, dtype="float64", name=name.replace("/", "_"))
        for name, x in initial("keras_vit").items()
    }
    optimizer, out = keras.optimizers.AdamW(learning_rate=0.001, weight_decay=0.0001), []
    for i in range(STEPS):
        each = [keras.ops.convert_to_tensor(g, dtype="float64") for g in gradients("keras_vit", i).values()]
        optimizer.apply(each, list(p.values()))
        if (i + 1) % EVERY == 0:
            out.append(flat("keras_vit", {name: keras.ops.convert_to_numpy(x) for name, x in p.items()}))
    return np.stack(out)


# timm's last: they hide its package
RECIPES = {"torch": (run_clm, nano_gpt, resnet50, deit, mae_fine_tuning), "keras": (keras_vit,)}


def recorded() -> Iterator[tuple[str, np.ndarray]]:
    if PATH.exists():
        yield from np.load(PATH).items()
    for made in RECIPES[sys.argv[1]]:
        yield made.__name__, made()


if __name__ == "__main__":
    runs = dict(recorded())
    assert set(runs) <= set(TREES)
    np.savez_compressed(PATH, **runs)
    print(f"{PATH.name}: {', '.join(runs)}, {PATH.stat().st_size} bytes")
