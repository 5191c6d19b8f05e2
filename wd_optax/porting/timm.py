"""timm's SGD, Adam and Lion, with decoupled decay, its correction and caution: names and defaults are timm's.

`max_lr_snapshot` is no argument of timm's constructors but an entry of its groups: the peak of the learning rate, which
the constructor takes from its lr.
"""

from collections.abc import Mapping
from typing import Any

import optax

from wd_optax.masking.masks import Mask
from wd_optax.momentum import heavy_ball
from wd_optax.porting.adabelief import adabelief
from wd_optax.porting.adam_directions import adam
from wd_optax.porting.adan import adan
from wd_optax.porting.calls import Call, call
from wd_optax.porting.cautious_steps import with_caution
from wd_optax.porting.directions import flipped
from wd_optax.porting.rates import peak
from wd_optax.wrappers import coupled, decoupled

TIMM = "timm 1.0.31"
CORRECTED = {"lr": {}, "corrected": {"corrected_weight_decay": True}}


def max_lr(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """η_max is the call's lr for all groups, also for those with their own: timm takes it from the constructor."""
    if not arguments["corrected_weight_decay"] or arguments["max_lr_snapshot"] is not None:
        return {}
    return {"max_lr_snapshot": peak("timm, corrected_weight_decay=True", arguments["lr"])}


def _timm_decoupled(
    direction: optax.GradientTransformation, mask: Mask, lr: Any, weight_decay: Any, is_corrected: bool, peak: Any,
    maximize: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    tx = decoupled(
        direction, lr, weight_decay=weight_decay, mask=mask, coupling="corrected" if is_corrected else "lr",
        peak_learning_rate=peak,
    )  # fmt: skip
    return flipped(tx, maximize)


@call(
    "timm.optim.SGDW", version=TIMM, derived=max_lr,
    formula="p ← (1 − η_t·λ)·p − η_t·b, b ← μ·b + (1 − τ)·g", coupling=CORRECTED, eps="",
    goldens=(
        "timm/sgdw", "timm/sgdw_momentum", "timm/sgdw_nesterov", "timm/sgdw_corrected", "timm/sgdw_caution",
        "timm/sgdw_caution_nesterov", "timm/sgdw_maximize", "timm/sgdw_groups",
    ),
    family="sgd", words={
        "momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov", "maximize": "maximize",
        "max_lr_snapshot": "peak",
    },
)  # fmt: skip
def _timm_sgdw(
    mask: Mask, *, lr: Any = 1e-3, momentum: float = 0.0, dampening: float = 0.0, weight_decay: Any = 0.0,
    nesterov: bool = False, caution: bool = False, corrected_weight_decay: bool = False, maximize: bool = False,
    foreach: bool | None = None, differentiable: bool = False, max_lr_snapshot: float | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    direction = heavy_ball(momentum or None, nesterov, dampening if momentum else 0.0, None)
    direction = with_caution(direction, caution and momentum != 0)
    return _timm_decoupled(direction, mask, lr, weight_decay, corrected_weight_decay, max_lr_snapshot, maximize)


@call(
    "timm.optim.AdamWLegacy", version=TIMM, derived=max_lr,
    formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√v̂ + ε)", coupling=CORRECTED,
    eps="√v̂ + ε",
    goldens=(
        "timm/adamw", "timm/adamw_amsgrad", "timm/adamw_corrected", "timm/adamw_caution", "timm/adamw_clipping",
        "timm/adamw_options",
    ),
    family="adam", words={
        "betas": ("b1", "b2"), "eps": "eps", "amsgrad": "amsgrad", "maximize": "maximize", "max_lr_snapshot": "peak",
    },
)  # fmt: skip
def _timm_adamw(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: Any = 1e-2, amsgrad: bool = False, caution: bool = False, corrected_weight_decay: bool = False,
    maximize: bool = False, foreach: bool | None = None, capturable: bool = False,
    clipping_threshold: float | None = None, max_lr_snapshot: float | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    direction = with_caution(adam(*betas, eps, amsgrad=amsgrad, clipping_threshold=clipping_threshold), caution)
    return _timm_decoupled(direction, mask, lr, weight_decay, corrected_weight_decay, max_lr_snapshot, maximize)


@call(
    "timm.optim.NAdamW", version=TIMM, derived=max_lr,
    formula="p ← (1 − η_t·λ)·p − η_t·(β₁·m + (1 − β₁)·g)/(1 − β₁ᵗ)/(√v̂ + ε)", coupling=CORRECTED, eps="√v̂ + ε",
    goldens=(
        "timm/nadamw", "timm/nadamw_corrected", "timm/nadamw_caution", "timm/nadamw_clipping", "timm/nadamw_maximize",
    ),
)  # fmt: skip
def _timm_nadamw(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: Any = 1e-2, caution: bool = False, corrected_weight_decay: bool = False, maximize: bool = False,
    foreach: bool | None = None, capturable: bool = False, clipping_threshold: float | None = None,
    max_lr_snapshot: float | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    direction = with_caution(adam(*betas, eps, nesterov=True, clipping_threshold=clipping_threshold), caution)
    return _timm_decoupled(direction, mask, lr, weight_decay, corrected_weight_decay, max_lr_snapshot, maximize)


@call(
    "timm.optim.Lion", version=TIMM, derived=max_lr,
    formula="p ← (1 − η_t·λ)·p − η_t·sign(β₁·m + (1 − β₁)·g)", coupling=CORRECTED,
    eps="", goldens=("timm/lion", "timm/lion_corrected", "timm/lion_caution", "timm/lion_maximize"),
    family="lion", words={"betas": ("b1", "b2"), "maximize": "maximize", "max_lr_snapshot": "peak"},
)  # fmt: skip
def _timm_lion(
    mask: Mask, *, lr: Any = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: Any = 0.0,
    caution: bool = False, corrected_weight_decay: bool = False, maximize: bool = False, foreach: bool | None = None,
    max_lr_snapshot: float | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    direction = with_caution(optax.scale_by_lion(*betas), caution)
    return _timm_decoupled(direction, mask, lr, weight_decay, corrected_weight_decay, max_lr_snapshot, maximize)


@call(
    "timm.optim.Adan", version=TIMM,
    formula="p ← (p − η_t·u)/(1 + η_t·λ), u = (m̂ + β₂·d̂)/(√n̂ + ε)", coupling="lr",
    eps="√n̂ + ε", goldens=("timm/adan", "timm/adan_no_prox", "timm/adan_caution"),
    proportional=False, note="a proximal step by default; no_prox=True is p ← (1 − η_t·λ)·p − η_t·u",
)  # fmt: skip
def _timm_adan(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-8,
    weight_decay: Any = 0.0, no_prox: bool = False, caution: bool = False, foreach: bool | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    direction = adan(*betas, eps, caution=caution)
    if no_prox:
        return decoupled(direction, lr, weight_decay=weight_decay, mask=mask)
    return decoupled(direction, lr, weight_decay=weight_decay, mask=mask, penalty="l2", metric="euclidean")


@call(
    "timm.optim.AdaBelief", version=TIMM,
    formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√ŝ + ε), s the variance of g around m, rectified as RAdam",
    coupling={"lr": {}, "constant": {"fixed_decay": True}, "L2": {"decoupled_decay": False}}, eps="√ŝ + ε, and s + ε",
    goldens=(
        "timm/adabelief", "timm/adabelief_plain", "timm/adabelief_amsgrad", "timm/adabelief_fixed",
        "timm/adabelief_l2", "timm/adabelief_no_sgd", "timm/adabelief_long_memory",
    ),
    proportional=False,  # with fixed_decay
)  # fmt: skip
def _timm_adabelief(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16,
    weight_decay: Any = 0, amsgrad: bool = False, decoupled_decay: bool = True, fixed_decay: bool = False,
    rectify: bool = True, degenerated_to_sgd: bool = True, foreach: bool | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    direction = adabelief(*betas, eps, amsgrad=amsgrad, rectify=rectify, degenerated_to_sgd=degenerated_to_sgd)
    if not decoupled_decay:
        return coupled(direction, lr, weight_decay=weight_decay, mask=mask)
    return decoupled(direction, lr, weight_decay=weight_decay, mask=mask, coupling="constant" if fixed_decay else "lr")


CALLS: tuple[Call, ...] = (_timm_sgdw, _timm_adamw, _timm_nadamw, _timm_lion, _timm_adan, _timm_adabelief)
