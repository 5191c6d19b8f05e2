"""Where weight decay and random gradients balance: the norm of a scale-invariant weight and its rotation per step.

The gradient of a scale-invariant weight w (before a normalisation layer) is orthogonal to w, so steps only lengthen w
and decay only shortens it. With random gradients the two balance: ‖w‖ settles, and w rotates by the same angle per
step whatever the gradient's size. C is the number of entries of w, c the fraction that decay removes per step:

    optimizer   ‖w‖                                             angle per step
    "adamw"     √(η²·C/(2c)), with c = η·λ: √(η·C/(2λ))         √(2c·(1 − β₁)/(1 + β₁))
    "sgdw"      ⁴√(η²·C·E[g̃²]/(2c·(1 − μ)²))                    √(2c·(1 − μ)/(1 + μ))
    "sgd_l2"    ⁴√(η·C·E[g̃²]/(2λ·(1 − μ)))                      √(2ηλ/(1 + μ))
    "lion"      η·√(C·(1 + 2S)/(c·(2 − c)))                     2·asin √(c·(1 − c·S/(1 − c))/(2·(1 + 2S)))

g̃ is an entry of the gradient at ‖w‖ = 1 (gradients scale as 1/‖w‖). "sgd_l2" is "sgdw" with c = ηλ/(1 − μ), because
momentum accumulates its decay too. The first three hold for c ≪ 1, with a relative error of order c.

Lion's step is the sign of x_t = β₁·m_{t−1} + (1 − β₁)·g_t. For Gaussian gradients x_t is Gaussian with autocorrelation
ρ_j = ρ₁·β₂^(j−1), and its sign has (2/π)·asin ρ_j, the arcsine law. S = Σ_{j≥1} (1 − c)ʲ·(2/π)·asin ρ_j is what a step
shares with earlier ones; it is exact for any c. AdamW's angle is the same formula at c ≪ 1 with S = β₁/(1 − β₁).

`cautious_minimum` is another balance: of a gradient with noise and a decay that waits for it.

References: Kosson, Messmer & Jaggi 2023, arXiv 2305.17212 (their SGD with momentum is "sgd_l2"); the arcsine law: Van
Vleck & Middleton 1966, "The spectrum of clipped noise".
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax import couplings
from wd_optax.couplings import Coupling
from wd_optax.hyperparams import Scalar, check_number, is_concrete

# The name of an optimizer: what its momentum is called, with the default.
OPTIMIZERS: dict[str, dict[str, float]] = {
    "adamw": {"b1": 0.9},
    "sgdw": {"momentum": 0.0},
    "sgd_l2": {"momentum": 0.0},
    "lion": {"b1": 0.9, "b2": 0.99},
}
ARCSINE_TERMS = 64  # of asin's series: the rest is 3e-4 of S at β₁ = β₂ = 0.999, and nothing at Lion's defaults
BISECTIONS = 60  # halve [0, a] down to the last bit of a float64


class Equilibrium(NamedTuple):
    """The prediction of `wd_optax.equilibrium`: floats, or arrays with the shape of the learning rate."""

    norm: Scalar | None  # ‖w‖; None without size (for SGD: without size and gradient_rms)
    angle: Scalar  # radians per step
    steps: Scalar  # until 1/e of the distance is left: of ‖w‖² under Adam (if √v̂ follows) and Lion, of ‖w‖⁴ under SGD


def equilibrium(
    learning_rate: Scalar,
    *,
    weight_decay: Scalar,
    optimizer: Literal["adamw", "sgdw", "sgd_l2", "lion"] = "adamw",
    size: Scalar | None = None,
    gradient_rms: Scalar | None = None,
    b1: Scalar | None = None,
    b2: Scalar | None = None,
    momentum: Scalar | None = None,
    coupling: Coupling = "lr",
    peak_learning_rate: Scalar | None = None,
) -> Equilibrium:
    """The norm and angle per step at which a scale-invariant weight settles: AdamW √(ηC/(2λ)), √(2ηλ(1−β₁)/(1+β₁)).

    SGD with decoupled decay ("sgdw"): ‖w‖ = ⁴√(η²·C·E[g̃²]/(2c·(1 − μ)²)) and √(2c·(1 − μ)/(1 + μ)). SGD with L2
    ("sgd_l2") is the same with c = ηλ/(1 − μ). Lion's steps are signs that resemble each other: see the module for S in
    ‖w‖ = η·√(C·(1 + 2S)/(c·(2 − c))). Compare them with the measurements of `wd_optax.monitor_decay`: an angle
    above the prediction means that gradients agree from step to step or that the weights haven't settled; an angle
    below it means that the weights are still longer than their equilibrium, or not scale-invariant.

    Args:
      learning_rate: η, a number, or an array such as the values of a schedule. Each rate has its own equilibrium, which
        the weights follow if the rate changes little within `steps` steps.
      weight_decay: λ, above 0.
      optimizer: "adamw", "sgdw", "sgd_l2" or "lion".
      size: C, the number of entries of the scale-invariant vector (a neuron's fan-in, or a whole kernel).
      gradient_rms: √E[g̃²], the root mean square of the gradient's entries, times ‖w‖. Only SGD's norm needs it.
      b1: AdamW's or Lion's β₁, by default 0.9.
      b2: Lion's β₂, by default 0.99.
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
    betas = _resolve_momentum(optimizer, b1=b1, b2=b2, momentum=momentum)
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
        c = c / (1 - betas[0])
    if is_concrete(c) and np.ndim(c) == 0 and c == 0:
        raise ValueError("learning_rate and weight_decay must be above 0: without decay the norm grows for ever")
    if optimizer == "lion":
        return _lion(eta, c, size, *betas)
    beta = betas[0]
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


def _resolve_momentum(optimizer: str, **given: Scalar | None) -> list[Scalar]:
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer!r} has no formula here: use one of {', '.join(map(repr, OPTIMIZERS))}")
    names = OPTIMIZERS[optimizer]
    for other, value in given.items():
        if other not in names and value is not None:
            raise ValueError(f"{other}={value!r}: {optimizer}'s momentum is called {' and '.join(names)}")
    values = [default if (found := given[name]) is None else found for name, default in names.items()]
    for name, value in zip(names, values, strict=True):
        check_number(name, value, below=1.0)
    return values


def _lion(eta: Scalar, c: Scalar, size: Scalar | None, b1: Scalar, b2: Scalar) -> Equilibrium:
    shared = _shared_by_signs(c, b1, b2)
    half = (c * (1 - c * shared / (1 - c)) / (2 * (1 + 2 * shared))) ** 0.5  # sine of half the angle
    angle = 2 * (jnp.arcsin(half) if isinstance(half, jax.Array) else math.asin(half))
    norm = None if size is None else eta * (size * (1 + 2 * shared) / (c * (2 - c))) ** 0.5
    return Equilibrium(norm, angle, 1 / (2 * c))


def _shared_by_signs(c: Scalar, b1: Scalar, b2: Scalar) -> Scalar:
    """S = Σ_{j≥1} (1 − c)ʲ·(2/π)·asin(ρ₁·β₂^(j−1)): each term of asin's power series is a geometric series in j."""
    past = b1**2 * (1 - b2) / (1 + b2)  # variance of β₁·m; a whole gradient's is 1
    first = (b1 * (1 - b1) * (1 - b2) + past * b2) / ((1 - b1) ** 2 + past)  # ρ₁
    total: Scalar = 0.0
    coefficient = 1.0
    for power in range(1, 2 * ARCSINE_TERMS, 2):
        total = total + coefficient / power * first**power * (1 - c) / (1 - (1 - c) * b2**power)
        coefficient *= power / (power + 1)
    return 2 / math.pi * total


def cautious_minimum(minimum: Scalar, *, weight_decay: Scalar, noise: Scalar, curvature: Scalar = 1.0) -> jax.Array:
    """Where cautious decay leaves a weight under noise: the x with u + λ·x·Φ(u/s) = 0, u = h·(x − a), Φ the normal CDF.

    `wd_optax.rules.cautious` decays an entry x > 0 where the direction u + s·z is above 0, with z the noise of a batch.
    Its chance is Φ(u/s). Without noise it is 0 below the minimum a, and x = a. With noise the weight settles between
    a·h/(h + λ/2), the limit of much noise, and a; plain decay, the gate always open, leaves it at a·h/(h + λ).

    Args:
      minimum: a, the loss's minimum along this weight, a number or an array.
      weight_decay: λ, with c = η·λ; the result holds for small η, at which x itself hardly moves.
      noise: s, the standard deviation of the direction u that the gate sees, over batches; Gaussian.
      curvature: h, above 0: the direction is h·(x − a) on average.

    Returns:
      x, between 0 and a, with the shape that the arguments broadcast to, in JAX's default float type.

    Raises:
      ValueError, TypeError: for a number out of range, a schedule.

    Example:
      >>> from wd_optax.choosing.equilibrium import cautious_minimum
      >>> for noise in (0.0, 0.1, 1.0, 1e6):
      ...     print(f"{cautious_minimum(1.0, weight_decay=1.0, noise=noise):.3f}")
      1.000
      0.886
      0.720
      0.667

    Reference: the rule is Chen et al. 2025, arXiv 2510.12402, who take gradients as exact.
    """
    _check_above_zero("curvature", curvature)
    given: dict[str, Scalar] = {
        "minimum": jnp.abs(minimum), "weight_decay": weight_decay, "noise": noise, "curvature": curvature
    }  # fmt: skip
    numbers = (jnp.asarray(_numbers(name, value), float) for name, value in given.items())
    goal, decay, scale, steepness = jnp.broadcast_arrays(*numbers)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x = (bounds[0] + bounds[1]) / 2
        u = steepness * (x - goal)
        below = u + decay * x * jax.scipy.special.ndtr(u / scale) < 0  # False for 0/0: x = a without noise
        return jnp.where(below, x, bounds[0]), jnp.where(below, bounds[1], x)

    found = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(goal), goal))[1]
    result: jax.Array = jnp.sign(jnp.asarray(minimum, float)) * found
    return result
