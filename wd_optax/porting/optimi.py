"""The optimizers of optimī: L2, `decouple_wd` and `decouple_lr`; names and defaults are optimī's.

`kahan_sum` acts on 16-bit parameters only. There it is refused, unless it is False.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.couplings import Coupling
from wd_optax.masking.masks import Mask
from wd_optax.momentum import heavy_ball
from wd_optax.porting.adan import adan
from wd_optax.porting.calls import Call, call, refuse
from wd_optax.porting.rates import peak
from wd_optax.porting.stable_adamw import stable_adamw
from wd_optax.wrappers import coupled, decoupled

OPTIMI = "torch-optimi 0.3.3"
OPTIMI_L2 = {"L2": {}, "lr": {"decouple_wd": True}, "schedule": {"decouple_lr": True}}
OPTIMI_DECOUPLED = {"lr": {}, "schedule": {"decouple_lr": True}}
OPTIMI_LION = {"betas": ("b1", "b2"), "max_lr": "peak"}
OPTIMI_ADAM = {**OPTIMI_LION, "eps": "eps"}


def _optimi_max_lr(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """η_max is the call's lr for all groups, also for those with their own."""
    if not arguments["decouple_lr"] or arguments["max_lr"] is not None:
        return {}
    return {"max_lr": peak("optimi, decouple_lr=True without max_lr", arguments["lr"])}


def _optimi_around(
    name: str, direction: optax.GradientTransformation, mask: Mask, lr: Any, weight_decay: Any, *, decouple_wd: bool,
    decouple_lr: bool, max_lr: float | None, kahan_sum: bool | None, penalty: Any = None,
) -> optax.GradientTransformation:  # fmt: skip
    """The direction with optimī's decay: L2, η_t·λ or (η_t/η_max)·λ."""
    direction = without_kahan(name, direction, kahan_sum)
    if not decouple_wd and not decouple_lr:
        return coupled(direction, lr, weight_decay=weight_decay, mask=mask)
    coupling: Coupling = "schedule" if decouple_lr else "lr"
    return decoupled(
        direction, lr, weight_decay=weight_decay, mask=mask, coupling=coupling, peak_learning_rate=max_lr,
        penalty=penalty, metric="euclidean" if penalty else None,
    )  # fmt: skip


def without_kahan(
    name: str, direction: optax.GradientTransformation, kahan_sum: bool | None
) -> optax.GradientTransformation:
    """`direction`, which refuses 16-bit parameters where the framework would add them up by Kahan's summation."""
    if kahan_sum is False:
        return direction
    inner = optax.with_extra_args_support(direction)

    def init(params: Any) -> Any:
        if any(jnp.dtype(p.dtype).itemsize < 4 for p in jax.tree.leaves(params)):
            raise refuse(
                name, f"kahan_sum={kahan_sum} on 16-bit parameters", "it compensates the step and not the decay",
                'kahan_sum=False in wd.precision.round_updates(..., "compensated"), which compensates both',
            )  # fmt: skip
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)


@call(
    "optimi.SGD", version=OPTIMI, derived=_optimi_max_lr,
    formula="g ← g + λ·p; p ← p − η_t·b, b ← μ·b + g", coupling=OPTIMI_L2, eps="",
    goldens=(
        "optimi/sgd", "optimi/sgd_momentum", "optimi/sgd_dampening", "optimi/sgd_torch_init", "optimi/sgd_decouple_wd",
        "optimi/sgd_decouple_lr", "optimi/sgd_groups",
    ),
    family="sgd", words={"momentum": "momentum", "max_lr": "peak"},
    note="dampening=True averages, b ← μ·b + (1 − μ)·g from b = 0, from g with torch_init",
)  # fmt: skip
def _optimi_sgd(
    mask: Mask, *, lr: Any, momentum: float = 0, weight_decay: Any = 0, dampening: bool = False,
    decouple_wd: bool = False, decouple_lr: bool = False, max_lr: float | None = None, torch_init: bool = False,
    kahan_sum: bool | None = None, foreach: bool | None = None, triton: bool | None = None,
    gradient_release: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    if momentum and dampening and not torch_init:
        direction = optax.ema(momentum, debias=False)
    else:
        direction = heavy_ball(momentum or None, False, momentum if dampening else 0.0, None)
    return _optimi_around(
        "optimi.SGD", direction, mask, lr, weight_decay, decouple_wd=decouple_wd, decouple_lr=decouple_lr,
        max_lr=max_lr, kahan_sum=kahan_sum,
    )  # fmt: skip


@call(
    "optimi.Adam", version=OPTIMI, derived=_optimi_max_lr,
    formula="g ← g + λ·p; p ← p − η_t·m̂/(√v̂ + ε)", coupling=OPTIMI_L2, eps="√v̂ + ε",
    goldens=("optimi/adam", "optimi/adam_decouple_wd", "optimi/adam_decouple_lr"), family="adam", words=OPTIMI_ADAM,
)  # fmt: skip
def _optimi_adam(
    mask: Mask, *, lr: Any, betas: tuple[float, float] = (0.9, 0.99), weight_decay: Any = 0, eps: float = 1e-6,
    decouple_wd: bool = False, decouple_lr: bool = False, max_lr: float | None = None, kahan_sum: bool | None = None,
    foreach: bool | None = None, triton: bool | None = None, gradient_release: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _optimi_around(
        "optimi.Adam", optax.scale_by_adam(*betas, eps), mask, lr, weight_decay, decouple_wd=decouple_wd,
        decouple_lr=decouple_lr, max_lr=max_lr, kahan_sum=kahan_sum,
    )  # fmt: skip


@call(
    "optimi.AdamW", version=OPTIMI, derived=_optimi_max_lr,
    formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√v̂ + ε)", coupling=OPTIMI_DECOUPLED, eps="√v̂ + ε",
    goldens=("optimi/adamw", "optimi/adamw_decouple_lr", "optimi/adamw_max_lr"), family="adam", words=OPTIMI_ADAM,
)  # fmt: skip
def _optimi_adamw(
    mask: Mask, *, lr: Any, betas: tuple[float, float] = (0.9, 0.99), weight_decay: Any = 1e-2, eps: float = 1e-6,
    decouple_lr: bool = False, max_lr: float | None = None, kahan_sum: bool | None = None,
    foreach: bool | None = None, triton: bool | None = None, gradient_release: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _optimi_around(
        "optimi.AdamW", optax.scale_by_adam(*betas, eps), mask, lr, weight_decay, decouple_wd=True,
        decouple_lr=decouple_lr, max_lr=max_lr, kahan_sum=kahan_sum,
    )  # fmt: skip


@call(
    "optimi.RAdam", version=OPTIMI, derived=_optimi_max_lr,
    formula="g ← g + λ·p; p ← p − η_t·r_t·m̂/(√v̂ + ε), m̂ alone where ρ_t ≤ 5",
    coupling=OPTIMI_L2, eps="√v̂ + ε",
    goldens=("optimi/radam", "optimi/radam_decouple_wd", "optimi/radam_decouple_lr"),
)  # fmt: skip
def _optimi_radam(
    mask: Mask, *, lr: Any, betas: tuple[float, float] = (0.9, 0.99), weight_decay: Any = 0, eps: float = 1e-6,
    decouple_wd: bool = False, decouple_lr: bool = False, max_lr: float | None = None, kahan_sum: bool | None = None,
    foreach: bool | None = None, triton: bool | None = None, gradient_release: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _optimi_around(
        "optimi.RAdam", optax.scale_by_radam(*betas, eps), mask, lr, weight_decay, decouple_wd=decouple_wd,
        decouple_lr=decouple_lr, max_lr=max_lr, kahan_sum=kahan_sum,
    )  # fmt: skip


@call(
    "optimi.Lion", version=OPTIMI, derived=_optimi_max_lr,
    formula="p ← (1 − η_t·λ)·p − η_t·sign(β₁·m + (1 − β₁)·g)", coupling=OPTIMI_DECOUPLED,
    eps="", goldens=("optimi/lion", "optimi/lion_decouple_lr"), family="lion", words=OPTIMI_LION,
)  # fmt: skip
def _optimi_lion(
    mask: Mask, *, lr: Any, betas: tuple[float, float] = (0.9, 0.99), weight_decay: Any = 0, decouple_lr: bool = False,
    max_lr: float | None = None, kahan_sum: bool | None = None, foreach: bool | None = None,
    triton: bool | None = None, gradient_release: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _optimi_around(
        "optimi.Lion", optax.scale_by_lion(*betas), mask, lr, weight_decay, decouple_wd=True, decouple_lr=decouple_lr,
        max_lr=max_lr, kahan_sum=kahan_sum,
    )  # fmt: skip


@call(
    "optimi.Adan", version=OPTIMI, derived=_optimi_max_lr,
    formula="p ← (p − η_t·u)/(1 + η_t·λ), u = (m̂ + β₂·d̂)/(√n̂ + ε)",
    coupling=OPTIMI_DECOUPLED, eps="√n̂ + ε",
    goldens=("optimi/adan", "optimi/adan_decouple_lr", "optimi/adan_adam_wd", "optimi/adan_adam_wd_decouple_lr"),
    proportional=False, note="a proximal step; adam_wd changes nothing: optimī 0.3.3 doesn't pass it on",
)  # fmt: skip
def _optimi_adan(
    mask: Mask, *, lr: Any, betas: tuple[float, float, float] = (0.98, 0.92, 0.99), weight_decay: Any = 2e-2,
    eps: float = 1e-6, decouple_lr: bool = False, max_lr: float | None = None, adam_wd: bool = False,
    kahan_sum: bool | None = False, foreach: bool | None = None, triton: bool | None = None,
    gradient_release: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _optimi_around(
        "optimi.Adan", adan(*betas, eps), mask, lr, weight_decay, decouple_wd=True, decouple_lr=decouple_lr,
        max_lr=max_lr, kahan_sum=kahan_sum, penalty="l2",
    )  # fmt: skip


@call(
    "optimi.StableAdamW", version=OPTIMI, derived=_optimi_max_lr,
    formula="p ← (1 − η'·λ)·p − η'·m̂/(√v̂ + ε), η' = η_t/max(1, RMS(g/max(√v̂, ε)))", coupling=OPTIMI_DECOUPLED,
    eps="√v̂ + ε", goldens=("optimi/stableadamw", "optimi/stableadamw_decouple_lr"),
    note="where a gradient jumps the decay falls with the step",
)  # fmt: skip
def _optimi_stable_adamw(
    mask: Mask, *, lr: Any, betas: tuple[float, float] = (0.9, 0.99), weight_decay: Any = 1e-2, eps: float = 1e-6,
    decouple_lr: bool = False, max_lr: float | None = None, kahan_sum: bool | None = None,
    foreach: bool | None = None, triton: bool | None = None, gradient_release: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    name = "optimi.StableAdamW"
    top = 1.0 if max_lr is None or not decouple_lr else max_lr
    tx = stable_adamw(lr, *betas, eps, weight_decay=weight_decay, peak=top, mask=mask)
    return without_kahan(name, tx, kahan_sum)


CALLS: tuple[Call, ...] = (
    _optimi_sgd,
    _optimi_adam,
    _optimi_adamw,
    _optimi_radam,
    _optimi_lion,
    _optimi_adan,
    _optimi_stable_adamw,
)
