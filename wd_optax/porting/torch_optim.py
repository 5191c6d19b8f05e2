"""The optimizers of `torch.optim`: each function's keyword arguments are PyTorch's, with its defaults.

`foreach`, `fused`, `capturable` and `differentiable` choose PyTorch's kernels, which compute the same numbers up to
rounding, so they are accepted and do nothing.
"""

from typing import Any

import optax

from wd_optax.hyperparams import check_number
from wd_optax.masking.masks import Mask
from wd_optax.momentum import heavy_ball
from wd_optax.porting import torch_directions
from wd_optax.porting.calls import Call, call
from wd_optax.porting.directions import flipped, pairs, with_l2, with_learning_rate
from wd_optax.wrappers import coupled, decoupled, with_decay

TORCH = "torch 2.13.0"
Flag = bool | None
Betas = tuple[float, float]
_DECOUPLES = {"L2": {"decoupled_weight_decay": False}, "lr": {"decoupled_weight_decay": True}}
_ADAM = {"betas": ("b1", "b2"), "eps": "eps", "amsgrad": "amsgrad", "maximize": "maximize"}


def _goldens(*names: str) -> tuple[str, ...]:
    return tuple(f"torch/{name}" for name in names)


def _finish(
    direction: optax.GradientTransformation, lr: Any, weight_decay: Any, mask: Mask, maximize: bool, l2: bool = True
) -> optax.GradientTransformationExtraArgs:
    """p ← (1 − ηλ)·p − η·u, or −η·u(g + λp); `maximize` flips g before λp is added."""
    wrap = coupled if l2 else decoupled
    return flipped(wrap(direction, lr, weight_decay=weight_decay, mask=mask), maximize)


def _check_ranges(betas: Any = (), **numbers: Any) -> None:
    """Raises where PyTorch does: each β in [0, 1), other numbers not negative."""
    if not isinstance(betas, tuple | list) or len(betas) not in (0, 2):
        raise TypeError(f"betas={betas!r}: expected two numbers, betas=(0.9, 0.999)")
    for i, beta in enumerate(betas):
        check_number(f"betas[{i}]", beta, below=1.0)
    for name, value in numbers.items():
        check_number(name, value)


@call(
    "torch.optim.SGD", version=TORCH, formula="g ← g + λp; b ← μb + (1 − τ)g, b₁ = g₁; p ← p − η_t·b", coupling="L2",
    eps="", goldens=_goldens("sgd", "sgd_momentum", "sgd_dampening", "sgd_nesterov", "sgd_maximize",
    "sgd_maximize_momentum", "sgd_groups", "sgd_complex"), family="sgd",
    words={word: word for word in ("momentum", "dampening", "nesterov", "maximize")},
)  # fmt: skip
def _torch_sgd(
    mask: Mask, *, lr: Any = 1e-3, momentum: float = 0, dampening: float = 0, weight_decay: Any = 0,
    nesterov: bool = False, maximize: bool = False, foreach: Flag = None, differentiable: bool = False,
    fused: Flag = None,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(momentum=momentum)
    if nesterov and (not momentum or dampening):
        raise ValueError("torch.optim.SGD: Nesterov momentum requires a momentum and zero dampening")
    direction = heavy_ball(momentum or None, nesterov, dampening if momentum else 0.0, None)
    return _finish(direction, lr, weight_decay, mask, maximize)


def _adam(
    mask: Mask, lr: Any, betas: Betas, eps: float, weight_decay: Any, amsgrad: bool, maximize: bool, l2: bool
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(betas, eps=eps)
    b1, b2 = betas
    direction = torch_directions.amsgrad(b1, b2, eps) if amsgrad else pairs(optax.scale_by_adam(b1, b2, eps))
    return _finish(direction, lr, weight_decay, mask, maximize, l2)


@call(
    "torch.optim.Adam", version=TORCH, formula="g ← g + λp; p ← p − η_t·m̂/(√v̂ + ε)", coupling=_DECOUPLES,
    eps="√v̂ + ε", goldens=_goldens("adam", "adam_complex", "adam_amsgrad", "adam_decoupled", "adam_maximize"),
    family="adam", words=_ADAM,
)  # fmt: skip
def _torch_adam(
    mask: Mask, *, lr: Any = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8, weight_decay: Any = 0,
    amsgrad: bool = False, foreach: Flag = None, maximize: bool = False, capturable: bool = False,
    differentiable: bool = False, fused: Flag = None, decoupled_weight_decay: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _adam(mask, lr, betas, eps, weight_decay, amsgrad, maximize, not decoupled_weight_decay)


@call(
    "torch.optim.AdamW", version=TORCH, formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√v̂ + ε)", coupling="lr", eps="√v̂ + ε",
    goldens=_goldens("adamw", "adamw_complex", "adamw_amsgrad", "adamw_amsgrad_maximize", "adamw_groups"),
    family="adam", words=_ADAM,
)  # fmt: skip
def _torch_adamw(
    mask: Mask, *, lr: Any = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8, weight_decay: Any = 1e-2,
    amsgrad: bool = False, maximize: bool = False, foreach: Flag = None, capturable: bool = False,
    differentiable: bool = False, fused: Flag = None,
) -> optax.GradientTransformation:  # fmt: skip
    return _adam(mask, lr, betas, eps, weight_decay, amsgrad, maximize, l2=False)


@call(
    "torch.optim.RMSprop", version=TORCH, formula="g ← g + λp; b ← μb + g/(√v + ε); p ← p − η_t·b", coupling="L2",
    eps="√v + ε", goldens=_goldens("rmsprop", "rmsprop_complex", "rmsprop_momentum", "rmsprop_centered",
    "rmsprop_centered_maximize"), family="rmsprop", words={"alpha": "decay", "eps": "eps", "momentum": "momentum",
    "centered": "centered", "maximize": "maximize"}, note="η outside the momentum",
)  # fmt: skip
def _torch_rmsprop(
    mask: Mask, *, lr: Any = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: Any = 0, momentum: float = 0,
    centered: bool = False, capturable: bool = False, foreach: Flag = None, maximize: bool = False,
    differentiable: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(alpha=alpha, eps=eps, momentum=momentum)
    scale = optax.scale_by_stddev if centered else optax.scale_by_rms
    direction = scale(alpha, eps, eps_in_sqrt=False)
    direction = optax.chain(direction, optax.trace(momentum)) if momentum else direction
    return _finish(pairs(direction), lr, weight_decay, mask, maximize)


@call(
    "torch.optim.Adagrad", version=TORCH,
    formula="g ← g + λp; s ← s + g²; p ← p − η_t/(1 + (t − 1)·lr_decay)·g/(√s + ε)", coupling="L2", eps="√s + ε",
    goldens=_goldens("adagrad", "adagrad_complex", "adagrad_options"), family="adagrad", words={"lr_decay": "lr_decay",
    "initial_accumulator_value": "initial", "eps": "eps", "maximize": "maximize"},
)  # fmt: skip
def _torch_adagrad(
    mask: Mask, *, lr: Any = 1e-2, lr_decay: float = 0, weight_decay: Any = 0, initial_accumulator_value: float = 0,
    eps: float = 1e-10, foreach: Flag = None, maximize: bool = False, differentiable: bool = False,
    fused: Flag = None,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(lr_decay=lr_decay, initial_accumulator_value=initial_accumulator_value, eps=eps)
    direction = torch_directions.adagrad(lr_decay, initial_accumulator_value, eps)
    return _finish(direction, lr, weight_decay, mask, maximize)


@call(
    "torch.optim.Adadelta", version=TORCH, formula="g ← g + λp; u = √(d + ε)/√(v + ε)·g; p ← p − η_t·u", coupling="L2",
    eps="√(v + ε)", goldens=_goldens("adadelta", "adadelta_complex", "adadelta_maximize"), family="adadelta",
    words={"rho": "rho", "eps": "eps", "maximize": "maximize"},
)  # fmt: skip
def _torch_adadelta(
    mask: Mask, *, lr: Any = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: Any = 0, foreach: Flag = None,
    capturable: bool = False, maximize: bool = False, differentiable: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(rho=rho, eps=eps)
    return _finish(pairs(optax.scale_by_adadelta(rho, eps)), lr, weight_decay, mask, maximize)


@call(
    "torch.optim.Adamax", version=TORCH, formula="g ← g + λp; n ← max(β₂n, |g| + ε); p ← p − η_t·m̂/n", coupling="L2",
    eps="|g| + ε", goldens=_goldens("adamax", "adamax_complex", "adamax_maximize"), family="adamax",
    words={"betas": ("b1", "b2"), "eps": "eps", "maximize": "maximize"},
)  # fmt: skip
def _torch_adamax(
    mask: Mask, *, lr: Any = 2e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8, weight_decay: Any = 0,
    foreach: Flag = None, maximize: bool = False, differentiable: bool = False, capturable: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(betas, eps=eps)
    return _finish(pairs(optax.scale_by_adamax(*betas, eps)), lr, weight_decay, mask, maximize)


@call(
    "torch.optim.NAdam", version=TORCH,
    formula="g ← g + λp; p ← p − η_t·((1 − μ_t)/(1 − Πμ)·g + μ_{t+1}/(1 − Πμ)·m)/(√v̂ + ε)", coupling=_DECOUPLES,
    eps="√v̂ + ε", goldens=_goldens("nadam", "nadam_complex", "nadam_decoupled", "nadam_maximize"), family="nadam",
    words={"betas": ("b1", "b2"), "eps": "eps", "momentum_decay": "momentum_decay", "maximize": "maximize"},
)  # fmt: skip
def _torch_nadam(
    mask: Mask, *, lr: Any = 2e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8, weight_decay: Any = 0,
    momentum_decay: float = 4e-3, decoupled_weight_decay: bool = False, foreach: Flag = None, maximize: bool = False,
    capturable: bool = False, differentiable: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(betas, eps=eps, momentum_decay=momentum_decay)
    direction = torch_directions.nadam(*betas, eps, momentum_decay)
    return _finish(direction, lr, weight_decay, mask, maximize, not decoupled_weight_decay)


@call(
    "torch.optim.RAdam", version=TORCH, formula="g ← g + λp; p ← p − η_t·r_t·m̂·√(1 − β₂ᵗ)/(√v + ε), r_t·… = 1 at first",
    coupling=_DECOUPLES, eps="√v + ε", goldens=_goldens("radam", "radam_complex", "radam_decoupled", "radam_maximize"),
    family="radam", words={"betas": ("b1", "b2"), "eps": "eps", "maximize": "maximize"},
)  # fmt: skip
def _torch_radam(
    mask: Mask, *, lr: Any = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8, weight_decay: Any = 0,
    decoupled_weight_decay: bool = False, foreach: Flag = None, maximize: bool = False, capturable: bool = False,
    differentiable: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(betas, eps=eps)
    direction = torch_directions.radam(*betas, eps)
    return _finish(direction, lr, weight_decay, mask, maximize, not decoupled_weight_decay)


@call(
    "torch.optim.ASGD", version=TORCH, formula="g ← g + λp; p ← (1 − lambd·η')·p − η'·g; η' ← η_t/(1 + lambd·η_t·t)^α",
    coupling="L2", eps="", goldens=_goldens("asgd", "asgd_complex", "asgd_options", "asgd_groups"), family="asgd",
    words={"lambd": "lambd", "alpha": "alpha", "t0": "t0", "maximize": "maximize"}, proportional=False,
    note="the η of a step acts in the next one; the averaged parameters are the slot ax of the state",
)  # fmt: skip
def _torch_asgd(
    mask: Mask, *, lr: Any = 1e-2, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6, weight_decay: Any = 0,
    foreach: Flag = None, maximize: bool = False, differentiable: bool = False, capturable: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(lambd=lambd, alpha=alpha, t0=t0)
    step = torch_directions.asgd(lambd, alpha, t0)
    return flipped(with_l2(step, learning_rate=lr, weight_decay=weight_decay, mask=mask), maximize)


@call(
    "torch.optim.Adafactor", version=TORCH,
    formula="p ← (1 − η_t·λ)·p − max(ε₂, RMS(p))·min(η_t, 1/√t)·u/max(1, RMS(u)/d), u = g/max(√v, ε₁)", coupling="lr",
    eps="max(√v, ε₁)", goldens=_goldens("adafactor", "adafactor_vector", "adafactor_options"), family="adafactor",
    words={"beta2_decay": "beta2_decay", "eps": ("eps1", "eps2"), "d": "d", "maximize": "maximize"},
    proportional=False, note="the last two axes are factored; ε₁=None is the parameters' machine epsilon",
)  # fmt: skip
def _torch_adafactor(
    mask: Mask, *, lr: Any = 1e-2, beta2_decay: float = -0.8, eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0, weight_decay: Any = 0.0, foreach: Flag = None, maximize: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(eps1=eps[0] or 0.0, eps2=eps[1], minus_beta2_decay=-beta2_decay)
    if d < 1:
        raise ValueError(f"torch.optim.Adafactor: d={d!r} is the clipping threshold and must be at least 1")
    step = torch_directions.adafactor(beta2_decay, eps, d)
    finished = with_decay(step, learning_rate=lr, weight_decay=weight_decay, mask=mask)
    return flipped(with_learning_rate(finished, lr), maximize)


@call(
    "torch.optim.Muon", version=TORCH, formula="p ← (1 − η_t·λ)·p − η_t·√max(1, rows/columns)·NS(m)", coupling="lr",
    eps="‖m‖ ≥ ε", goldens=_goldens("muon", "muon_match_rms", "muon_options"), family="muon",
    words={"momentum": "momentum", "nesterov": "nesterov", "ns_coefficients": "ns_coefficients", "eps": "eps",
    "ns_steps": "ns_steps", "adjust_lr_fn": "adjust_lr_fn"}, accuracy="bfloat16",
    note="Newton-Schulz in bfloat16, as PyTorch's; the shape's factor acts on the step and not on the decay",
)  # fmt: skip
def _torch_muon(
    mask: Mask, *, lr: Any = 1e-3, weight_decay: Any = 0.1, momentum: float = 0.95, nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315), eps: float = 1e-7, ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    _check_ranges(momentum=momentum, eps=eps)
    if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
        raise ValueError(
            f"torch.optim.Muon: adjust_lr_fn={adjust_lr_fn!r} is unknown: use None, 'original' or 'match_rms_adamw'"
        )
    direction = torch_directions.muon(momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)
    return _finish(direction, lr, weight_decay, mask, maximize=False, l2=False)


CALLS: tuple[Call, ...] = (
    _torch_sgd, _torch_adam, _torch_adamw, _torch_rmsprop, _torch_adagrad, _torch_adadelta, _torch_adamax,
    _torch_nadam, _torch_radam, _torch_asgd, _torch_adafactor, _torch_muon,
)  # fmt: skip
