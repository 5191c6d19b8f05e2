"""Composer's DecoupledSGDW and DecoupledAdamW: p ← (1 − (η_t/η₀)·λ)·p; names and defaults are Composer's.

η₀, the group's `initial_lr`, is the lr that its constructor got: the peak, where a schedule multiplies it by factors up
to 1. Reference: `composer/optim/decoupled_weight_decay.py` of MosaicML Composer 0.32.1.
"""

from typing import Any

import optax

from wd_optax.masking.masks import Mask
from wd_optax.momentum import heavy_ball
from wd_optax.porting.adam_directions import adam
from wd_optax.porting.calls import Call, call
from wd_optax.porting.rates import peak
from wd_optax.wrappers import decoupled

COMPOSER = "mosaicml 0.32.1"


def _composer_decay(
    name: str, direction: optax.GradientTransformation, mask: Mask, lr: Any, weight_decay: Any
) -> optax.GradientTransformation:
    initial = peak(name, lr)
    if isinstance(initial, int | float) and initial == 0:  # as there: the factor is 1
        return decoupled(direction, lr, weight_decay=weight_decay, mask=mask, coupling="constant")
    return decoupled(
        direction, lr, weight_decay=weight_decay, mask=mask, coupling="schedule", peak_learning_rate=initial
    )


@call(
    "composer.optim.DecoupledSGDW", version=COMPOSER,
    formula="p ← (1 − (η_t/η₀)·λ)·p − η_t·b, b ← μ·b + (1 − τ)·g, b₁ = g₁", coupling="schedule", eps="",
    goldens=("composer/sgdw", "composer/sgdw_momentum", "composer/sgdw_nesterov", "composer/sgdw_groups"),
    family="sgd", words={word: word for word in ("momentum", "dampening", "nesterov")}, note="η₀ is each group's lr",
)  # fmt: skip
def _composer_sgdw(
    mask: Mask, *, lr: Any, momentum: float = 0, dampening: float = 0, weight_decay: Any = 0, nesterov: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    if nesterov and (not momentum or dampening):
        raise ValueError("composer.optim.DecoupledSGDW: Nesterov momentum requires a momentum and zero dampening")
    direction = heavy_ball(momentum or None, nesterov, dampening if momentum else 0.0, None)
    return _composer_decay("composer.optim.DecoupledSGDW", direction, mask, lr, weight_decay)


@call(
    "composer.optim.DecoupledAdamW", version=COMPOSER, formula="p ← (1 − (η_t/η₀)·λ)·p − η_t·m̂/(√v̂ + ε)",
    coupling="schedule", eps="√v̂ + ε",
    goldens=("composer/adamw", "composer/adamw_amsgrad", "composer/adamw_options", "composer/adamw_groups"),
    family="adam", words={"betas": ("b1", "b2"), "eps": "eps", "amsgrad": "amsgrad"}, note="η₀ is each group's lr",
)  # fmt: skip
def _composer_adamw(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
    weight_decay: Any = 1e-5, amsgrad: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _composer_decay("composer.optim.DecoupledAdamW", adam(*betas, eps, amsgrad=amsgrad), mask, lr, weight_decay)


CALLS: tuple[Call, ...] = (_composer_sgdw, _composer_adamw)
