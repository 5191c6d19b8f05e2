"""timm's LAMB, LARS, RMSpropTF and Adafactor: steps that read norms or η; names and defaults are timm's."""

from typing import Any

import jax.numpy as jnp
import optax

from wd_optax.couplings import Coupling
from wd_optax.masking.masks import Mask
from wd_optax.momentum import heavy_ball
from wd_optax.porting.adafactor_big_vision import adafactor_big_vision, stored_ema
from wd_optax.porting.adam_directions import adam
from wd_optax.porting.calls import Call, Staged, call
from wd_optax.porting.cautious_steps import with_caution
from wd_optax.porting.directions import with_l2
from wd_optax.porting.live import descend, live_decoupled
from wd_optax.porting.rmsprop import rmsprop_step
from wd_optax.porting.timm import TIMM, max_lr
from wd_optax.porting.trust_ratios import lamb_decay, lamb_step, lars_decay
from wd_optax.wrappers import decoupled


@call(
    "timm.optim.Lamb", version=TIMM, derived=max_lr,
    formula="p ← p − η_t·(‖p‖/‖u + λ·p‖)·(u + λ·p), u = m̂/(√v̂ + ε), gradients clipped",
    coupling={"lr": {}, "corrected": {"decoupled_decay": True, "corrected_weight_decay": True}}, eps="√v̂ + ε",
    goldens=(
        "timm/lamb", "timm/lamb_decoupled", "timm/lamb_corrected", "timm/lamb_caution", "timm/lamb_trust_clip",
        "timm/lamb_always_adapt", "timm/lamb_decoupled_always_adapt", "timm/lamb_uncorrected", "timm/lamb_groups",
        "timm/lamb_decoupled_trust_clip",
    ),
    proportional=False,
    note="the global norm of the gradients is clipped to max_grad_norm; λ = 0 takes the trust ratio out, unless "
    "always_adapt; decoupled_decay=True is p ← (1 − η_t·λ)·p before the ratio",
)  # fmt: skip
def _timm_lamb(
    mask: Mask, *, lr: Any = 1e-3, bias_correction: bool = True, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6, weight_decay: Any = 0.01, grad_averaging: bool = True, max_grad_norm: float | None = 1.0,
    trust_clip: bool = False, always_adapt: bool = False, caution: bool = False, decoupled_decay: bool = False,
    corrected_weight_decay: bool = False, foreach: bool | None = None, max_lr_snapshot: float | None = None,
) -> optax.GradientTransformation | Staged:  # fmt: skip
    direction = with_caution(adam(*betas, eps, bias_correction=bias_correction, averages=grad_averaging), caution)
    how: Any = {"trust_clip": trust_clip, "always_adapt": always_adapt}
    if decoupled_decay:
        tx = live_decoupled(
            lamb_step(direction, **how), lr, weight_decay=weight_decay, mask=mask,
            coupling="corrected" if corrected_weight_decay else "lr", peak_learning_rate=max_lr_snapshot,
            decays_first=True,
        )  # fmt: skip
    else:
        tx = descend(optax.chain(direction, lamb_decay(weight_decay, mask, **how)), lr)
    return tx if max_grad_norm is None else Staged(optax.clip_by_global_norm(max_grad_norm), tx)


@call(
    "timm.optim.Lars", version=TIMM,
    formula="g ← c·‖p‖/(‖g‖ + λ·‖p‖ + ε)·(g + λ·p), then torch.optim.SGD", coupling="L2",
    eps="‖g‖ + λ·‖p‖ + ε",
    goldens=(
        "timm/lars", "timm/lars_momentum", "timm/lars_nesterov", "timm/lars_trust_clip", "timm/lars_always_adapt",
    ),
    proportional=False, note="λ = 0 takes the trust ratio out, unless always_adapt",
)  # fmt: skip
def _timm_lars(
    mask: Mask, *, lr: Any = 1.0, momentum: float = 0, dampening: float = 0, weight_decay: Any = 0,
    nesterov: bool = False, trust_coeff: float = 0.001, eps: float = 1e-8, trust_clip: bool = False,
    always_adapt: bool = False, foreach: bool | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    decay = lars_decay(
        weight_decay, mask, trust_coeff=trust_coeff, eps=eps, trust_clip=trust_clip, always_adapt=always_adapt
    )
    buffer = heavy_ball(momentum or None, nesterov, dampening if momentum else 0.0, None)
    return descend(optax.chain(decay, buffer), lr)


@call(
    "timm.optim.RMSpropTF", version=TIMM, derived=max_lr,
    formula="g ← g + λ·p; b ← μ·b + η_t·g/√(v + ε), p ← p − b, v starts at 1",
    coupling={
        "L2": {}, "lr": {"decoupled_decay": True},
        "corrected": {"decoupled_decay": True, "corrected_weight_decay": True},
    },
    eps="√(v + ε)",
    goldens=(
        "timm/rmsproptf", "timm/rmsproptf_decoupled", "timm/rmsproptf_corrected", "timm/rmsproptf_plain",
        "timm/rmsproptf_centered", "timm/rmsproptf_lr_outside", "timm/rmsproptf_caution",
    ),
)  # fmt: skip
def _timm_rmsprop_tf(
    mask: Mask, *, lr: Any = 1e-2, alpha: float = 0.9, eps: float = 1e-10, weight_decay: Any = 0,
    momentum: float = 0.0, centered: bool = False, decoupled_decay: bool = False,
    corrected_weight_decay: bool = False, lr_in_momentum: bool = True, caution: bool = False,
    foreach: bool | None = None, max_lr_snapshot: float | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    step = rmsprop_step(
        alpha, eps, momentum=momentum, centered=centered, initial=1.0, lr_in_momentum=lr_in_momentum, caution=caution
    )
    if not decoupled_decay:
        return with_l2(step, learning_rate=lr, weight_decay=weight_decay, mask=mask)
    return live_decoupled(
        step, lr, weight_decay=weight_decay, mask=mask, coupling="corrected" if corrected_weight_decay else "lr",
        peak_learning_rate=max_lr_snapshot,
    )  # fmt: skip


@call(
    "timm.optim.AdafactorBigVision", version=TIMM, derived=max_lr,
    formula="p ← (1 − η_t·λ)·p − η_t·m, m an average of g/√v, v factored",
    coupling={
        "lr": {}, "corrected": {"corrected_weight_decay": True}, "constant": {"unscaled_wd": True},
        "schedule": {"unscaled_wd": True, "corrected_weight_decay": True},
    },
    eps="√(v + ε)",
    goldens=(
        "timm/adafactorbv", "timm/adafactorbv_factored", "timm/adafactorbv_unscaled", "timm/adafactorbv_corrected",
        "timm/adafactorbv_unscaled_corrected", "timm/adafactorbv_caution", "timm/adafactorbv_no_momentum",
        "timm/adafactorbv_options", "timm/adafactorbv_vector",
    ),
    proportional=False, note="unscaled_wd=True is big_vision's own: p ← (1 − λ)·p",
)  # fmt: skip
def _timm_adafactor_big_vision(
    mask: Mask, *, lr: Any = 1.0, min_dim_size_to_factor: int = 16, decay_rate: float = 0.8, decay_offset: int = 0,
    beta2_cap: float = 0.999, momentum: float | None = 0.9, momentum_dtype: Any = "bfloat16", eps: float | None = None,
    weight_decay: Any = 0.0, clipping_threshold: float | None = None, unscaled_wd: bool = False,
    caution: bool = False, corrected_weight_decay: bool = False, max_lr_snapshot: float | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    direction = adafactor_big_vision(
        min_dim_size_to_factor=min_dim_size_to_factor, decay_rate=decay_rate, decay_offset=decay_offset,
        beta2_cap=beta2_cap, eps=eps, clipping_threshold=clipping_threshold,
    )  # fmt: skip
    if momentum is not None:
        direction = with_caution(optax.chain(direction, stored_ema(momentum, jnp.dtype(momentum_dtype))), caution)
    coupling: Coupling = "constant" if unscaled_wd else "lr"
    if corrected_weight_decay:
        coupling = "schedule" if unscaled_wd else "corrected"
    return decoupled(
        direction, lr, weight_decay=weight_decay, mask=mask, coupling=coupling, peak_learning_rate=max_lr_snapshot
    )


CALLS: tuple[Call, ...] = (_timm_lamb, _timm_lars, _timm_rmsprop_tf, _timm_adafactor_big_vision)
