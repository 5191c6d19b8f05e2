"""Where weight decay and random gradients balance: the norm of a scale-invariant weight and its rotation per step.

The gradient of a scale-invariant weight w (before a normalisation layer) is orthogonal to w, so steps only lengthen w
and decay only shortens it. With random gradients the two balance: ‖w‖ settles, and w rotates by the same angle per
step whatever the gradient's size. C is the number of entries of w, c the fraction that decay removes per step:

    optimizer   ‖w‖                                             angle per step
    "adamw"     √(η²·C/(2c)), with c = η·λ: √(η·C/(2λ))         √(2c·(1 − β₁)/(1 + β₁))
    "sgdw"      ⁴√(η²·C·E[g̃²]/(2c·(1 − μ)²))                    √(2c·(1 − μ)/(1 + μ))
    "sgd_l2"    ⁴√(η·C·E[g̃²]/(2λ·(1 − μ)))                      √(2ηλ/(1 + μ))

g̃ is an entry of the gradient at ‖w‖ = 1 (gradients scale as 1/‖w‖). "sgd_l2" is "sgdw" with c = ηλ/(1 − μ), because
momentum accumulates its decay too. The formulas hold for c ≪ 1, with a relative error of order c.

Reference: Kosson, Messmer & Jaggi 2023, arXiv 2305.17212 (their SGD with momentum is "sgd_l2").
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from wd_optax import couplings
from wd_optax.couplings import Coupling
from wd_optax.hyperparams import Scalar, check_number, is_concrete

OPTIMIZERS = {"adamw": "b1", "sgdw": "momentum", "sgd_l2": "momentum"}  # name: what its momentum is called
DEFAULTS = {"b1": 0.9, "momentum": 0.0}


class Equilibrium(NamedTuple):
    """The prediction of `wd_optax.equilibrium`: floats, or arrays with the shape of the learning rate."""

    norm: Scalar | None  # ‖w‖; None without size (for SGD: without size and gradient_rms)
    angle: Scalar  # radians per step
    steps: Scalar  # until 1/e of the distance is left: of ‖w‖² under Adam (if √v̂ follows), of ‖w‖⁴ under SGD


def equilibrium(
    learning_rate: Scalar,
    *,
    weight_decay: Scalar,
    optimizer: Literal["adamw", "sgdw", "sgd_l2"] = "adamw",
    size: Scalar | None = None,
    gradient_rms: Scalar | None = None,
    b1: Scalar | None = None,
    momentum: Scalar | None = None,
    coupling: Coupling = "lr",
    peak_learning_rate: Scalar | None = None,
) -> Equilibrium:
    """The norm and angle per step at which a scale-invariant weight settles: AdamW √(ηC/(2λ)), √(2ηλ(1−β₁)/(1+β₁)).

    SGD with decoupled decay ("sgdw"): ‖w‖ = ⁴√(η²·C·E[g̃²]/(2c·(1 − μ)²)) and √(2c·(1 − μ)/(1 + μ)). SGD with L2
    ("sgd_l2") is the same with c = ηλ/(1 − μ). Compare them with the measurements of `wd_optax.monitor_decay`: an angle
    above the prediction means that gradients agree from step to step or that the weights haven't settled; an angle
    below it means that the weights are still longer than their equilibrium, or not scale-invariant.

    Args:
      learning_rate: η, a number, or an array such as the values of a schedule. Each rate has its own equilibrium, which
        the weights follow if the rate changes little within `steps` steps.
      weight_decay: λ, above 0.
      optimizer: "adamw", "sgdw" or "sgd_l2".
      size: C, the number of entries of the scale-invariant vector (a neuron's fan-in, or a whole kernel).
      gradient_rms: √E[g̃²], the root mean square of the gradient's entries, times ‖w‖. Only SGD's norm needs it.
      b1: AdamW's β₁, by default 0.9.
      momentum: SGD's μ, by default 0.
      coupling, peak_learning_rate: how λ acts, see `wd_optax.decay_rate`; "lr" alone for "sgd_l2".

    Returns:
      An `Equilibrium`.

    Raises:
      ValueError, TypeError: for an unknown optimizer or coupling, a number out of range, a schedule.

    Example: under "corrected" (AdamC) the norm does not move when the learning rate falls.
      >>> import wd_optax as wd
      >>> for coupling in ("lr", "corrected"):
      ...     options = dict(weight_decay=0.1, size=1000, coupling=coupling, peak_learning_rate=1e-2)
      ...     print(*(f"{wd.equilibrium(lr, **options).norm:.3f}" for lr in (1e-2, 1e-3)))
      7.071 2.236
      7.071 7.071

    """
    eta, decay = _numbers("learning_rate", learning_rate), _numbers("weight_decay", weight_decay)
    beta = _resolve_momentum(optimizer, b1=b1, momentum=momentum)
    if optimizer == "sgd_l2" and coupling != "lr":
        raise ValueError(f"coupling={coupling!r}: sgd_l2 adds λ to the gradient, there is only 'lr'; drop coupling")
    for name, value in (("size", size), ("gradient_rms", gradient_rms)):
        if value is not None:
            _check_above_zero(name, value)
    peak = couplings.resolve_peak(coupling, eta, peak_learning_rate)
    c = couplings.removed(coupling, learning_rate=eta, weight_decay=decay, peak_learning_rate=peak)
    if is_concrete(c) and np.max(c) >= 1:
        raise ValueError(
            f"weight_decay={decay!r} removes {np.max(c):.3g} of each weight per step; it must be below 1: lower it"
        )
    if optimizer == "sgd_l2":
        c = c / (1 - beta)
    if np.ndim(c) == 0 and c == 0:
        raise ValueError("learning_rate and weight_decay must be above 0: without decay the norm grows for ever")
    angle = (2 * c * (1 - beta) / (1 + beta)) ** 0.5
    if optimizer == "adamw":
        return Equilibrium(None if size is None else eta * (size / (2 * c)) ** 0.5, angle, 1 / (2 * c))
    norm = None
    if size is not None and gradient_rms is not None:
        norm = (eta * gradient_rms / (1 - beta)) ** 0.5 * (size / (2 * c)) ** 0.25
    return Equilibrium(norm, angle, 1 / (4 * c))


def _numbers(name: str, value: Scalar) -> Scalar:
    """A number, or an array of numbers, with each number checked."""
    if callable(value):
        raise TypeError(f"{name} is a schedule: pass its value at a step, as {name}(step), or an array of values")
    if np.ndim(value) == 0:
        check_number(name, value)
        return value
    if isinstance(value, str | bytes) or not (value := jnp.asarray(value, float)).size:
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}")
    if is_concrete(value):
        for number in (value.min(), value.max()):
            check_number(name, number.item())
    return value


def _check_above_zero(name: str, value: Scalar) -> None:
    """Raises unless a number, or every entry of an array, is above 0."""
    if is_concrete(value := _numbers(name, value)) and not np.min(value) > 0:
        raise ValueError(f"{name}={value!r} must be above 0")


def _resolve_momentum(optimizer: str, **given: Scalar | None) -> Scalar:
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer!r} has no formula here: use one of {', '.join(map(repr, OPTIMIZERS))}")
    name = OPTIMIZERS[optimizer]
    for other, value in given.items():
        if other != name and value is not None:
            raise ValueError(f"{other}={value!r}: {optimizer}'s momentum is called {name}")
    value = DEFAULTS[name] if (found := given[name]) is None else found
    check_number(name, value, below=1.0)
    return value
