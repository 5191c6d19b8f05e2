"""timm's Muon, with AdamW for what isn't a matrix; names and defaults are timm's."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.masking.masks import Mask
from wd_optax.porting.adam_directions import adam
from wd_optax.porting.calls import Call, call, refuse
from wd_optax.porting.directions import Slots, per_leaf
from wd_optax.porting.rates import scaled
from wd_optax.porting.timm import TIMM
from wd_optax.porting.torch_directions import newton_schulz
from wd_optax.wrappers import decoupled

# of modded-nanogpt, by leloykun.github.io/ponder/muon-opt-coeffs
QUINTIC = (
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)  # fmt: skip
MUON_PRESETS = {"quintic": QUINTIC, "original": ((3.4445, -4.7750, 2.0315),)}
MUON_SCALES = {  # of the step, for a matrix (out, in)
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "rms_to_rms": lambda rows, columns: math.sqrt(rows / columns),
    None: lambda rows, columns: 1.0,
}
TIMM_MUON = "timm.optim.Muon"


@call(
    TIMM_MUON, version=TIMM, formula="p ← (1 − η_t·λ)·p − η_t·0.2·√max(rows, columns)·NS(m); AdamW on other parameters",
    coupling="lr", eps="‖m‖ ≥ ε", accuracy="bfloat16",
    goldens=("timm/muon", "timm/muon_options", "timm/muon_too_small", "timm/muon_fallback"),
    note="Newton-Schulz in bfloat16; for matrices of 4 × 4 and more, and kernels flattened to (axis 0, the rest), "
    "whose sides differ by less than 128 times",
)  # fmt: skip
def _timm_muon(
    mask: Mask, *, lr: Any = 0.02, weight_decay: Any = 0, momentum: float = 0.95, nesterov: bool = False,
    ns_steps: int = 5, ns_coefficients: Any = "quintic", eps: float = 1e-7, safety_factor: float = 1.0,
    adjust_lr_fn: str | None = "match_rms_adamw", conv_mode: str = "flatten", normalize_spatial: bool = True,
    adamw_lr: float | None = None, fallback_lr_scale: float = 1.0, betas: tuple[float, float] = (0.9, 0.95),
    algo: str = "muon", scale_eps: bool = False, capturable: bool = False, verbose: bool = False,
    use_fallback: bool = False, use_muon: bool | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    """`use_fallback` and `use_muon` are entries of timm's groups."""
    _check_muon(algo, conv_mode, adamw_lr, scale_eps)
    if adjust_lr_fn not in MUON_SCALES:
        raise ValueError(
            f"{TIMM_MUON}: adjust_lr_fn={adjust_lr_fn!r} is unknown: use {', '.join(map(repr, MUON_SCALES))}"
        )
    coefficients = _coefficients(ns_coefficients, ns_steps)
    matrices = _orthogonalised(momentum, nesterov, coefficients, eps, safety_factor, MUON_SCALES[adjust_lr_fn])
    others = adam(*betas, eps, nesterov=nesterov)
    optimizers = {
        "muon": decoupled(matrices, lr, weight_decay=weight_decay, mask=mask),
        "adamw": decoupled(others, scaled(lr, fallback_lr_scale), weight_decay=weight_decay, mask=mask),
    }
    if use_fallback or use_muon is not None:
        return optimizers["muon" if use_muon and not use_fallback else "adamw"]
    name = lambda p: "muon" if suits_muon(p.shape) else "adamw"
    return optax.partition(optimizers, lambda params: jax.tree.map(name, params))


def suits_muon(shape: tuple[int, ...], smallest: int = 4, longest: float = 128.0) -> bool:
    """Whether timm's Muon takes a parameter of this shape, by default: not vectors, positions, depthwise kernels."""
    if len(shape) < 2 or sum(size > 1 for size in shape) < 2 or 1 in shape[:2]:
        return False
    sides = shape[0], math.prod(shape[1:])
    return min(sides) >= smallest and max(sides) / min(sides) <= longest


def _orthogonalised(
    momentum: float, nesterov: bool, coefficients: Sequence[tuple[float, float, float]], eps: float, safety: float,
    scale: Any,
) -> optax.GradientTransformation:  # fmt: skip
    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        del t
        mu = slots["mu"] + (1 - momentum) * (g - slots["mu"])
        u = (g + momentum * (mu - g) if nesterov else mu).reshape(g.shape[0], -1)
        orthogonal = newton_schulz(u, coefficients, eps, safety).astype(g.dtype)
        return (scale(*u.shape) * orthogonal).reshape(g.shape), {"mu": mu}

    return per_leaf(step, real=False, mu=jnp.zeros_like)


def _coefficients(coefficients: Any, steps: int) -> list[tuple[float, float, float]]:
    """One triple per step: the last one is repeated, as in timm."""
    if isinstance(coefficients, str):
        if coefficients not in MUON_PRESETS:
            raise refuse(
                TIMM_MUON, f"ns_coefficients={coefficients!r}", "only 'quintic' and 'original' are known here",
                "its coefficients, a list of triples",
            )  # fmt: skip
        coefficients = MUON_PRESETS[coefficients]
    if not isinstance(coefficients[0], tuple | list):
        coefficients = [coefficients]
    given = [(float(a), float(b), float(c)) for a, b, c in coefficients]
    return given[:steps] if steps <= len(given) else given + [given[-1]] * (steps - len(given))


def _check_muon(algo: str, conv_mode: str, adamw_lr: float | None, scale_eps: bool) -> None:
    if algo != "muon":
        raise refuse(TIMM_MUON, f"algo={algo!r}", "its second moment is not ported", 'algo="muon"')
    if conv_mode != "flatten":
        raise refuse(TIMM_MUON, f"conv_mode={conv_mode!r}", "kernels are flattened here", 'conv_mode="flatten"')
    if adamw_lr is not None:
        raise refuse(TIMM_MUON, "adamw_lr", "timm has deprecated it", "fallback_lr_scale=adamw_lr/lr")
    if scale_eps:
        raise refuse(TIMM_MUON, "scale_eps=True", "ε is one number here", "eps·√(in/out) for a group of one shape")


CALLS: tuple[Call, ...] = (_timm_muon,)
