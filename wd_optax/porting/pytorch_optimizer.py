"""pytorch-optimizer's SGDW, Lion, Adan, AdaBelief and StableAdamW: names and defaults are that package's.

What its optimizers also take through **kwargs (gradient centralization, AdaNorm, caution, AdamD) has no twin here.
Reference: https://github.com/kozistr/pytorch_optimizer, `pytorch_optimizer/optimizer/`.
"""

from typing import Any

import optax

from wd_optax.masking.masks import Mask
from wd_optax.momentum import heavy_ball
from wd_optax.porting.adabelief import adabelief
from wd_optax.porting.adan import adan
from wd_optax.porting.calls import Call, call, refuse
from wd_optax.porting.directions import flipped
from wd_optax.porting.optimi import without_kahan
from wd_optax.porting.stable_adamw import stable_adamw
from wd_optax.wrappers import coupled, decoupled

PYTORCH_OPTIMIZER = "pytorch_optimizer 4.1.0"
L2 = {"weight_decouple": False}
WITH_FIXED = {"lr": {}, "constant": {"fixed_decay": True}, "L2": L2}


def _decayed(
    direction: optax.GradientTransformation, mask: Mask, lr: Any, weight_decay: Any, *, weight_decouple: bool,
    maximize: bool, fixed_decay: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    """weight_decouple and fixed_decay as that package's `apply_weight_decay` reads them."""
    if not weight_decouple:
        return flipped(coupled(direction, lr, weight_decay=weight_decay, mask=mask), maximize)
    tx = decoupled(direction, lr, weight_decay=weight_decay, mask=mask, coupling="constant" if fixed_decay else "lr")
    return flipped(tx, maximize)


@call(
    "pytorch_optimizer.SGDW", version=PYTORCH_OPTIMIZER, coupling={"lr": {}, "L2": L2}, eps="",
    formula="p ← (1 − η_t·λ)·p − η_t·b, b ← μ·b + (1 − τ)·g, b₁ = g₁",
    goldens=(
        "pytorch_optimizer/sgdw", "pytorch_optimizer/sgdw_dampening", "pytorch_optimizer/sgdw_nesterov",
        "pytorch_optimizer/sgdw_l2",
    ),
    family="sgd", words={word: word for word in ("momentum", "dampening", "nesterov", "maximize")},
)  # fmt: skip
def _pytorch_optimizer_sgdw(
    mask: Mask, *, lr: Any = 1e-4, momentum: float = 0.0, weight_decay: Any = 0.0, weight_decouple: bool = True,
    dampening: float = 0.0, nesterov: bool = False, foreach: bool | None = None, maximize: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    if momentum and nesterov and dampening:
        why = "Nesterov's blend here takes an undamped buffer, as in PyTorch"
        raise refuse("pytorch_optimizer.SGDW", "nesterov=True with dampening", why, "dampening=0.0")
    direction = heavy_ball(momentum or None, nesterov and momentum != 0, dampening if momentum else 0.0, None)
    return _decayed(direction, mask, lr, weight_decay, weight_decouple=weight_decouple, maximize=maximize)


@call(
    "pytorch_optimizer.Lion", version=PYTORCH_OPTIMIZER, coupling=WITH_FIXED, eps="",
    formula="p ← (1 − η_t·λ)·p − η_t·sign(β₁·m + (1 − β₁)·g)", proportional=False,  # with fixed_decay
    goldens=("pytorch_optimizer/lion", "pytorch_optimizer/lion_fixed"),
    family="lion", words={"betas": ("b1", "b2"), "maximize": "maximize"},
)  # fmt: skip
def _pytorch_optimizer_lion(
    mask: Mask, *, lr: Any = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: Any = 0.0,
    weight_decouple: bool = True, fixed_decay: bool = False, foreach: bool | None = None, maximize: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _decayed(
        optax.scale_by_lion(*betas), mask, lr, weight_decay, weight_decouple=weight_decouple, maximize=maximize,
        fixed_decay=fixed_decay,
    )  # fmt: skip


@call(
    "pytorch_optimizer.Adan", version=PYTORCH_OPTIMIZER, coupling="lr", eps="√n̂ + ε", proportional=False,
    formula="p ← (p − η_t·u)/(1 + η_t·λ), u = (m̂ + β₂·d̂)/(√n̂ + ε)",
    goldens=("pytorch_optimizer/adan", "pytorch_optimizer/adan_decoupled"),
    note="a proximal step by default; weight_decouple=True is p ← (1 − η_t·λ)·p − η_t·u",
)  # fmt: skip
def _pytorch_optimizer_adan(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float, float] = (0.98, 0.92, 0.99), weight_decay: Any = 0.0,
    weight_decouple: bool = False, max_grad_norm: float = 0.0, foreach: bool | None = None, eps: float = 1e-8,
    maximize: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    if max_grad_norm:
        why = "its norm is of all groups together, and ε is added to it"
        nearest = "optax.chain(optax.clip_by_global_norm(max_grad_norm), wd.emulate(...))"
        raise refuse("pytorch_optimizer.Adan", f"max_grad_norm={max_grad_norm!r}", why, nearest)
    proximal: dict[str, Any] = {} if weight_decouple else {"penalty": "l2", "metric": "euclidean"}
    return flipped(decoupled(adan(*betas, eps), lr, weight_decay=weight_decay, mask=mask, **proximal), maximize)


@call(
    "pytorch_optimizer.AdaBelief", version=PYTORCH_OPTIMIZER, coupling=WITH_FIXED, eps="√ŝ + ε, and s + ε",
    formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√ŝ + ε), s the variance of g around m", proportional=False,  # fixed_decay
    goldens=(
        "pytorch_optimizer/adabelief", "pytorch_optimizer/adabelief_rectify", "pytorch_optimizer/adabelief_ams_bound",
        "pytorch_optimizer/adabelief_fixed", "pytorch_optimizer/adabelief_l2",
    ),
)  # fmt: skip
def _pytorch_optimizer_adabelief(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), weight_decay: Any = 0.0,
    weight_decouple: bool = True, fixed_decay: bool = False, rectify: bool = False, n_sma_threshold: int = 5,
    degenerated_to_sgd: bool = True, ams_bound: bool = False, foreach: bool | None = None, eps: float = 1e-16,
    maximize: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    name = "pytorch_optimizer.AdaBelief"
    if rectify and ams_bound:
        raise refuse(name, "rectify=True with ams_bound=True", "rectified steps here don't keep the maximum", "one")
    if rectify and n_sma_threshold != 5:
        raise refuse(name, f"n_sma_threshold={n_sma_threshold!r}", "the threshold here is 5", "n_sma_threshold=5")
    direction = adabelief(*betas, eps, amsgrad=ams_bound, rectify=rectify, degenerated_to_sgd=degenerated_to_sgd)
    return _decayed(
        direction, mask, lr, weight_decay, weight_decouple=weight_decouple, maximize=maximize, fixed_decay=fixed_decay
    )


@call(
    "pytorch_optimizer.StableAdamW", version=PYTORCH_OPTIMIZER, coupling="lr", eps="√v̂ + ε",
    formula="p ← (1 − η'·λ)·p − η'·m̂/(√v̂ + ε), η' = η_t/max(1, RMS(g/max(√v̂, ε)))",
    goldens=("pytorch_optimizer/stableadamw", "pytorch_optimizer/stableadamw_maximize"),
    note="where a gradient jumps the decay falls with the step; kahan_sum is for 16-bit parameters",
)  # fmt: skip
def _pytorch_optimizer_stable_adamw(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.99), kahan_sum: bool = True,
    weight_decay: Any = 1e-2, weight_decouple: bool = True, eps: float = 1e-8, foreach: bool | None = None,
    maximize: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    if not weight_decouple:
        why = "the L2 term would have to enter before the clip of its step"
        raise refuse("pytorch_optimizer.StableAdamW", "weight_decouple=False", why, "torch.optim.Adam")
    tx = flipped(stable_adamw(lr, *betas, eps, weight_decay=weight_decay, peak=1.0, mask=mask), maximize)
    return without_kahan("pytorch_optimizer.StableAdamW", tx, kahan_sum)


CALLS: tuple[Call, ...] = (
    _pytorch_optimizer_sgdw,
    _pytorch_optimizer_lion,
    _pytorch_optimizer_adan,
    _pytorch_optimizer_adabelief,
    _pytorch_optimizer_stable_adamw,
)
