"""Where weight decay and random gradients balance: the norm of a scale-invariant weight, and how fast it turns.

The gradient of a scale-invariant weight w (in front of a normalisation) is orthogonal to w, so steps only lengthen
it, and decay only shortens it. With random gradients both balance: ‖w‖ settles, and w turns by the same angle per
step whatever the gradient's size. C is the number of entries of w, c the fraction that decay removes per step:

    optimizer   ‖w‖                                             angle per step
    "adamw"     √(η²·C/(2c)), with c = η·λ: √(η·C/(2λ))         √(2c·(1 − β₁)/(1 + β₁))
    "sgdw"      ⁴√(η²·C·E[g̃²]/(2c·(1 − μ)²))                    √(2c·(1 − μ)/(1 + μ))
    "sgd_l2"    ⁴√(η·C·E[g̃²]/(2λ·(1 − μ)))                      √(2ηλ/(1 + μ))

g̃ is an entry of the gradient where ‖w‖ = 1 (it goes as 1/‖w‖). "sgd_l2" is "sgdw" with c = ηλ/(1 − μ), for
its momentum sums up the decay too. All hold for c ≪ 1, up to a fraction of order c.

Reference: Kosson, Messmer & Jaggi 2023, arXiv 2305.17212 (their SGD with momentum is "sgd_l2").
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wd_optax import couplings
from wd_optax.hyperparams import Scalar, check_number, is_concrete

OPTIMIZERS = {"adamw": "b1", "sgdw": "momentum", "sgd_l2": "momentum"}  # name: what its momentum is called
DEFAULTS = {"b1": 0.9, "momentum": 0.0}


class Equilibrium(NamedTuple):
    """What `wd_optax.equilibrium` predicts; floats, or arrays like the learning rate."""

    norm: Any  # ‖w‖, or None where size (for SGD: or gradient_rms) isn't given
    angle: Any  # radians per step
    steps: Any  # until 1/e of the distance is left: of ‖w‖² under Adam (if √v̂ has kept up), of ‖w‖⁴ under SGD


def equilibrium(
    learning_rate: Scalar,
    *,
    weight_decay: Scalar,
    optimizer: str = "adamw",
    size: Scalar | None = None,
    gradient_rms: Scalar | None = None,
    b1: Scalar | None = None,
    momentum: Scalar | None = None,
    coupling: str = "lr",
    peak_learning_rate: Scalar | None = None,
) -> Equilibrium:
    """The norm and angle per step at which a scale-invariant weight settles: AdamW √(ηC/(2λ)), √(2ηλ(1−β₁)/(1+β₁)).

    All formulas are in the module. What `wd_optax.monitor_decay` measures can be held against them: an angle above the
    prediction means gradients that agree from step to step or weights not settled yet; one below, weights still
    longer than their equilibrium, or not scale-invariant.

    Args:
      learning_rate: η, a number, or an array such as the values of a schedule (the equilibrium of each: the weights
        follow if it changes little in `steps` steps).
      weight_decay: λ, above 0.
      optimizer: "adamw", "sgdw" or "sgd_l2".
      size: C, the number of entries of the vector that is scale-invariant (a neuron's fan-in, or a whole kernel).
      gradient_rms: √E[g̃²], the root mean square entry of the gradient times ‖w‖; only SGD's norm needs it.
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
    eta, decay = _value("learning_rate", learning_rate), _value("weight_decay", weight_decay)
    beta = _momentum(optimizer, b1=b1, momentum=momentum)
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


def _value(name: str, value: Any) -> Any:
    """A number, or an array of numbers, each checked."""
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


def _check_above_zero(name: str, value: Any) -> None:
    """Raises unless a number is above 0, an array in every entry."""
    if is_concrete(value := _value(name, value)) and not np.min(value) > 0:
        raise ValueError(f"{name}={value!r} must be above 0")


def _momentum(optimizer: str, **given: Scalar | None) -> Scalar:
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer!r} has no formula here: use one of {', '.join(map(repr, OPTIMIZERS))}")
    name = OPTIMIZERS[optimizer]
    for other, value in given.items():
        if other != name and value is not None:
            raise ValueError(f"{other}={value!r}: {optimizer}'s momentum is called {name}")
    value = DEFAULTS[name] if given[name] is None else given[name]
    check_number(name, value, below=1.0)
    return value
