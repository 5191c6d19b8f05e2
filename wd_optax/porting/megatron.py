"""Megatron-LM's optimizer: `wd_mult` 0 for biases and vectors, 1 elsewhere; names and defaults are OptimizerConfig's.

Reference: `_get_param_groups` in `megatron/core/optimizer/__init__.py`, NVIDIA/Megatron-LM commit d086a2e, and
`optimizer_config.py`, commit e914fb7.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from wd_optax.masking import roles
from wd_optax.masking.masks import Mask
from wd_optax.momentum import heavy_ball
from wd_optax.porting.calls import Call, Staged, call, refuse
from wd_optax.porting.clipping import clip_grad_norm
from wd_optax.porting.factories import Decided, is_vector_in_torch, multiplied, ruled
from wd_optax.wrappers import coupled, decoupled

MEGATRON = "megatron.core.optimizer.get_megatron_optimizer"
Condition = Callable[[str, roles.Parameter], bool] | None


def _megatron_groups(params: Any, arguments: Mapping[str, Any]) -> Decided:
    no_decay, scale_lr = arguments["no_weight_decay_cond"], arguments["scale_lr_cond"]
    each = []
    for p in roles.parameters(params):
        if no_decay is None:
            why = is_vector_in_torch(p) or ("a bias" if p.path.endswith("bias") else "")
        else:
            why = "no_weight_decay_cond" if no_decay(p.path, p) else ""
        scaled = scale_lr is not None and scale_lr(p.path, p)
        reason = f"wd_mult 0: {why}" if why else "wd_mult 1"
        each.append((arguments["lr_mult"] if scaled else 1.0, 0.0 if why else 1.0,
                     f"{reason}; scale_lr_cond: lr_mult" if scaled else reason))  # fmt: skip
    return multiplied(each, _megatron, arguments)


@call(
    MEGATRON, version="megatron-lm d086a2e",
    formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√v̂ + ε), gradients clipped by their global norm",
    coupling={"lr": {}, "L2": {"optimizer": "sgd"}}, eps="√v̂ + ε", goldens=(), mask_rule="not biases and rank 1",
    note="optimizer='sgd' is g ← g + λp with momentum; conditions get our path and wd_optax's Parameter",
)  # fmt: skip
def _megatron(
    mask: Mask, *, lr: Any, optimizer: str = "adam", weight_decay: Any = 0.01, adam_beta1: float = 0.9,
    adam_beta2: float = 0.999, adam_eps: float = 1e-8, sgd_momentum: float = 0.9, clip_grad: float = 1.0,
    no_weight_decay_cond: Condition = None, scale_lr_cond: Condition = None, lr_mult: float = 1.0,
) -> optax.GradientTransformation | Staged:  # fmt: skip
    del no_weight_decay_cond, scale_lr_cond, lr_mult  # in the groups
    if optimizer == "adam":
        adam = optax.scale_by_adam(adam_beta1, adam_beta2, adam_eps)
        tx = decoupled(adam, lr, weight_decay=weight_decay, mask=mask)
    elif optimizer == "sgd":
        tx = coupled(heavy_ball(sgd_momentum or None, False, 0.0, None), lr, weight_decay=weight_decay, mask=mask)
    else:
        raise refuse(MEGATRON, f"optimizer={optimizer!r}", "it is not ported", "'adam' or 'sgd'")
    return Staged(clip_grad_norm(clip_grad), tx) if clip_grad > 0 else tx


CALLS: tuple[Call, ...] = (ruled(_megatron, _megatron_groups),)
