"""The Trainer of Transformers: AdamW, its clip, schedule and rule for decay; names and defaults are TrainingArguments'.

Reference: `Trainer.create_optimizer` and `Trainer.get_decay_parameter_names` of Transformers 5.24.0.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.hyperparams import Schedule
from wd_optax.masking import roles
from wd_optax.masking.masks import Mask
from wd_optax.porting.calls import Call, Staged, call, refuse
from wd_optax.porting.clipping import clip_grad_norm
from wd_optax.porting.factories import ruled, spare
from wd_optax.porting.rates import scheduled
from wd_optax.wrappers import decoupled

TRAINER = "transformers.Trainer"
# what get_decay_parameter_names searches for in a lower-cased torch name, "h.0.attn.c_attn.bias"
FORBIDDEN = tuple(map(re.compile, (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")))
# a `scale` of these is the `weight` of a module that is no torch.nn.LayerNorm, and decays
NO_LAYER_NORM = re.compile(r"batch_?norm|(?:^|\.)bn|group_?norm|(?:^|\.)gn|instance_?norm")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused")  # one step, by four kernels


def _not_by_the_trainer(p: roles.Parameter) -> str:
    """Why the Trainer doesn't decay it, or ""."""
    name = p.path.replace("/", ".").lower()
    found = next((pattern.pattern for pattern in FORBIDDEN if pattern.search(name)), None)
    if found is not None:
        return f"the Trainer's pattern {found!r} is in its name"
    if p.role == "bias":
        return "a bias: the Trainer's pattern 'bias' is in its torch name"
    if p.role == "norm" and not NO_LAYER_NORM.search(name):
        return "of a torch.nn.LayerNorm, by its name"
    return ""


def trainer_schedule(kind: str, warmup_steps: float, max_steps: int) -> Schedule:
    """The factor of η after `step` updates.

    Args:
      kind: "linear" or "cosine", which fall to 0 at `max_steps`, "constant", or "constant_with_warmup".
      warmup_steps: over which it rises from 0; below 1, a fraction of `max_steps`.
      max_steps: of the run.
    """
    if kind not in SCHEDULES:
        raise refuse(TRAINER, f"lr_scheduler_type={kind!r}", "it is not ported",
                     f"one of {', '.join(SCHEDULES)}, or 'constant' and schedule=step -> factor")  # fmt: skip
    if max_steps <= 0 and (kind in ("linear", "cosine") or 0 < warmup_steps < 1):
        raise ValueError(
            f"{TRAINER}: max_steps={max_steps}: the Trainer takes it from the length of the data, which lr_scheduler_"
            f"type={kind!r} depends on: pass max_steps=<updates of the whole run>, or lr_scheduler_type='constant'"
        )
    warmup = int(warmup_steps) if warmup_steps >= 1 else math.ceil(max(max_steps, 0) * warmup_steps)
    if kind == "constant":
        return lambda step: jnp.ones(())
    rest = max(1, max_steps - warmup)

    def factor(step: Any) -> jax.Array:
        t = jnp.asarray(step, float)
        after = {"linear": lambda: (max_steps - t) / rest,
                 "cosine": lambda: 0.5 * (1 + jnp.cos(jnp.pi * (t - warmup) / rest))}  # fmt: skip
        value = after[kind]() if kind in after else jnp.ones(())
        return jnp.where(t < warmup, t / max(1, warmup), jnp.maximum(0, value))

    return factor


@call(
    TRAINER, version="transformers 5.24.0",
    formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√v̂ + ε), gradients clipped by their global norm", coupling="lr", eps="√v̂ + ε",
    mask_rule="not biases, LayerNorm, and names with layernorm, rmsnorm, norm, …_norm",
    learning_rate="learning_rate",
    goldens=("transformers/trainer", "transformers/trainer_linear", "transformers/trainer_cosine",
             "transformers/trainer_options"),
    note="η falls linearly to 0 over max_steps by default",
)  # fmt: skip
def _hf_trainer(
    mask: Mask, *, learning_rate: Any = 5e-5, weight_decay: Any = 0.0, adam_beta1: float = 0.9,
    adam_beta2: float = 0.999, adam_epsilon: float = 1e-8, max_grad_norm: float = 1.0,
    optim: str = "adamw_torch_fused", optim_args: str | None = None, lr_scheduler_type: str = "linear",
    lr_scheduler_kwargs: Any = None, warmup_steps: float = 0, max_steps: int = -1,
) -> optax.GradientTransformation | Staged:  # fmt: skip
    if optim not in ADAMW:
        raise refuse(TRAINER, f"optim={optim!r}", "only its AdamW is ported",
                     "that optimizer's own call, with the groups that wd.emulate.explain shows")  # fmt: skip
    if optim_args or lr_scheduler_kwargs:
        raise refuse(TRAINER, "optim_args, or lr_scheduler_kwargs", "they are text for optimizers and schedules that "
                     "aren't ported", "lr_scheduler_type='constant' and schedule=step -> factor")  # fmt: skip
    lr = scheduled(learning_rate, trainer_schedule(lr_scheduler_type, warmup_steps, max_steps))
    direction = optax.scale_by_adam(adam_beta1, adam_beta2, adam_epsilon)
    tx = decoupled(direction, lr, weight_decay=weight_decay, mask=mask)
    return Staged(clip_grad_norm(max_grad_norm), tx) if max_grad_norm else tx


CALLS: tuple[Call, ...] = (ruled(_hf_trainer, lambda params, arguments: spare(params, _not_by_the_trainer)),)
