"""Runs optimizers with PyTorch's interface: PyTorch's own, timm's, optimī's."""

from collections.abc import Callable
from typing import Any

import numpy as np
from problem import GRADS, LR, P0, PEAK, WDS, Case, groups, parts, whole


def run(optimizer_class: Callable[..., Any], case: Case, weight_decay: float, **arguments: Any) -> np.ndarray:
    """The parameters after each step. Built with the peak (timm takes its η_max from the constructor)."""
    import torch

    torch.set_default_dtype(torch.float64)  # the step-size scalars some optimizers keep as tensors take this dtype
    p = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in parts(case, P0).items()}
    given: Any = list(p.values())
    if case.form == "groups":
        own = {group["params"]: group for group in groups(weight_decay)}
        given = [own.get(name, {}) | {"params": [x]} for name, x in p.items()]
    own_arguments = dict(case.arguments)
    if "use_muon" in own_arguments:  # timm takes it in groups only
        given = [{"params": given, "use_muon": own_arguments.pop("use_muon")}]
    if case.form == "model":
        given = torch.nn.Module()
        for name, x in p.items():
            given.register_parameter(name, x)
        given.no_weight_decay = lambda: {"pos_embed"}
    optimizer = optimizer_class(given, **{"lr": PEAK, "weight_decay": weight_decay, **own_arguments, **arguments})
    peaks, out = [group["lr"] for group in optimizer.param_groups], []
    for lr, g in zip(LR, GRADS, strict=True):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = float(peak * (lr / PEAK))
        for name, x in parts(case, g).items():
            p[name].grad = torch.tensor(x)  # a fresh one: optimī's L2 writes into it
        optimizer.step()
        out.append(whole({name: x.detach().numpy().copy() for name, x in p.items()}))
    return np.stack(out)


def run_all(cases: dict[str, Case], find: Callable[[str], Callable[..., Any]]) -> dict[str, np.ndarray]:
    """Every case with every λ; `find` gives the class of a call."""
    return {
        key: np.stack([run(find(case.call), case, float(weight_decay)) for weight_decay in WDS])
        for key, case in cases.items()
    }
