"""Writes transformers.npz. Needs transformers, accelerate and torch==2.13.0."""

import tempfile
from typing import Any

import numpy as np
from cases_transformers import TRANSFORMERS
from problem import GRADS, LR, P0, PEAK, WDS, Case, parts, save, whole


def run(case: Case, weight_decay: float) -> np.ndarray:
    """The Trainer's own optimizer, schedule and clip; its η_t is multiplied by LR/PEAK, as in all runs."""
    import torch
    from transformers import Trainer, TrainingArguments

    torch.set_default_dtype(torch.float64)
    given: dict[str, Any] = {"learning_rate": PEAK, "weight_decay": weight_decay, **case.arguments}
    model = torch.nn.Module()
    for name, x in parts(case, P0).items():
        model.register_parameter(name, torch.nn.Parameter(torch.tensor(x)))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, use_cpu=True, report_to=[], **given)
        trainer = Trainer(model=model, args=arguments)
        trainer.create_optimizer_and_scheduler(arguments.max_steps)
    p, out = dict(model.named_parameters()), []
    for lr, g in zip(LR, GRADS, strict=True):
        for group, rate in zip(trainer.optimizer.param_groups, trainer.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate * (lr / PEAK)
        for name, x in parts(case, g).items():
            p[name].grad = torch.tensor(x)
        if arguments.max_grad_norm:  # as in Trainer._inner_training_loop
            torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        out.append(whole({name: p[name].detach().numpy().copy() for name in parts(case, P0)}))
    return np.stack(out)


if __name__ == "__main__":
    runs = {
        key: np.stack([run(case, float(weight_decay)) for weight_decay in WDS]) for key, case in TRANSFORMERS.items()
    }
    save("transformers", ["transformers", "torch"], runs)
