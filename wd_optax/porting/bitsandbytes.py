"""bitsandbytes' Adam, AdamW and Lion with 32-bit state: names and defaults are bitsandbytes'.

Its `Adam(weight_decay)` is decoupled, as its AdamW: they differ in the default of λ alone. `amsgrad` is accepted there
and changes nothing. Reference: bitsandbytes 0.50.2, `backends/cpu/ops.py`.
"""

from typing import Any

import optax

from wd_optax.masking.masks import Mask
from wd_optax.porting.calls import Call, call, refuse
from wd_optax.wrappers import decoupled

BITSANDBYTES = "bitsandbytes 0.50.2"
IGNORED = "amsgrad is accepted and changes nothing, there as here"


def _bnb_around(
    name: str, direction: optax.GradientTransformation, mask: Mask, lr: Any, weight_decay: Any, optim_bits: int,
    args: Any,
) -> optax.GradientTransformation:  # fmt: skip
    if optim_bits != 32:
        raise refuse(name, f"optim_bits={optim_bits}", "its blocks of 8-bit numbers are not ported",
                     "optim_bits=32, in wd.precision.low_precision_state for 16-bit moments")  # fmt: skip
    if args is not None:
        raise refuse(name, "args", "it replaces the other arguments by an object of options", "args=None")
    return decoupled(direction, lr, weight_decay=weight_decay, mask=mask)


def _bnb_any_adam(
    name: str, mask: Mask, lr: Any, betas: Any, eps: float, weight_decay: Any, bits: int, args: Any
) -> Any:
    return _bnb_around(name, optax.scale_by_adam(*betas, eps), mask, lr, weight_decay, bits, args)


@call(
    "bitsandbytes.optim.Adam", version=BITSANDBYTES, formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√v̂ + ε)", coupling="lr",
    eps="√v̂ + ε", goldens=("bitsandbytes/adam", "bitsandbytes/adam_groups"), family="adam",
    words={"betas": ("b1", "b2"), "eps": "eps"}, note=f"decoupled, unlike torch's; {IGNORED}",
)  # fmt: skip
def _bnb_adam(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: Any = 0,
    amsgrad: bool = False, optim_bits: int = 32, args: Any = None, min_8bit_size: int = 4096, is_paged: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _bnb_any_adam("bitsandbytes.optim.Adam", mask, lr, betas, eps, weight_decay, optim_bits, args)


@call(
    "bitsandbytes.optim.AdamW", version=BITSANDBYTES, formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√v̂ + ε)", coupling="lr",
    eps="√v̂ + ε", goldens=("bitsandbytes/adamw", "bitsandbytes/adamw_options"), family="adam",
    words={"betas": ("b1", "b2"), "eps": "eps"}, note=IGNORED,
)  # fmt: skip
def _bnb_adamw(
    mask: Mask, *, lr: Any = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: Any = 1e-2, amsgrad: bool = False, optim_bits: int = 32, args: Any = None, min_8bit_size: int = 4096,
    is_paged: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _bnb_any_adam("bitsandbytes.optim.AdamW", mask, lr, betas, eps, weight_decay, optim_bits, args)


@call(
    "bitsandbytes.optim.Lion", version=BITSANDBYTES, formula="p ← (1 − η_t·λ)·p − η_t·sign(β₁·m + (1 − β₁)·g)",
    coupling="lr", eps="", goldens=("bitsandbytes/lion", "bitsandbytes/lion_options"), family="lion",
    words={"betas": ("b1", "b2")},
)  # fmt: skip
def _bnb_lion(
    mask: Mask, *, lr: Any = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: Any = 0,
    optim_bits: int = 32, args: Any = None, min_8bit_size: int = 4096, is_paged: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    direction = optax.scale_by_lion(*betas)
    return _bnb_around("bitsandbytes.optim.Lion", direction, mask, lr, weight_decay, optim_bits, args)


CALLS: tuple[Call, ...] = (_bnb_adam, _bnb_adamw, _bnb_lion)
