"""Decay bounds a norm: Lion's weights stay within ±1/λ, Muon's singular values below 1/λ."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_most
from claims.training import train

STEPS, SHAPE, WEIGHT_DECAY, ETA = 4000, (12, 8), 2.0, 0.05
FALL = optax.exponential_decay(ETA, 1, (1e-7 / ETA) ** (1 / STEPS))  # to 1e-7, as far as the signs swing at the end
EXACT = {
    "ns_coeffs": (1.5, -0.5, 0.0),
    "ns_steps": 40,
    "eps": 1e-30,
}  # the cubic iteration converges; Muon's own doesn't
DIRECTIONS = {
    "Lion": optax.scale_by_lion(),
    "Muon": optax.contrib.scale_by_muon(beta=0.9, nesterov=False, **EXACT),
}
NORMS = {"Lion": lambda w: jnp.max(jnp.abs(w)), "Muon": lambda w: jnp.linalg.norm(w, 2)}
NAMES = {"Lion": "‖w‖∞", "Muon": "‖W‖₂"}


def project(name: str, goal: np.ndarray) -> np.ndarray:
    """The nearest point with a norm of at most 1/λ."""
    if name == "Lion":
        return np.clip(goal, -1 / WEIGHT_DECAY, 1 / WEIGHT_DECAY)
    left, values, right = np.linalg.svd(goal, full_matrices=False)
    return (left * np.minimum(values, 1 / WEIGHT_DECAY)) @ right


def rows_of(name: str) -> tuple[str, str]:
    """The names of an optimizer's two rows."""
    bound = f"{name}: largest λ·{NAMES[name]} of the run, noisy gradients"
    return bound, f"{name}: distance to the projection of the minimum, largest entry"


def measure() -> Measured:
    """½‖W − A‖² with A outside of the bound: with noise for the bound, without and with η → 0 for the minimiser."""
    random = np.random.default_rng(0)
    goal = random.normal(size=SHAPE) * 0.6
    noise = jnp.asarray(random.normal(size=(STEPS, *SHAPE)), float)
    rows, curves = {}, {}
    for name, direction in DIRECTIONS.items():
        norm = NORMS[name]

        def both(noise: jax.Array, direction: Any = direction, norm: Any = norm) -> Any:
            gradient = lambda w, z: w - goal + 3 * z
            watch = lambda step: norm(step.after)
            start = jnp.zeros(SHAPE)
            steady = wd.decoupled(direction, ETA, weight_decay=WEIGHT_DECAY)
            falling = wd.decoupled(direction, FALL, weight_decay=WEIGHT_DECAY)
            _, norms = train(steady, start, gradient, noise, watch)
            end, without = train(falling, start, gradient, jnp.zeros_like(noise), watch)
            return end, norms, without

        end, norms, without = jax.jit(both)(noise)
        bound, projection = rows_of(name)
        rows[bound] = WEIGHT_DECAY * norms.max()
        rows[projection] = np.abs(end - project(name, goal)).max()
        curves[name] = (WEIGHT_DECAY * np.asarray(norms), WEIGHT_DECAY * np.asarray(without))
    return Measured(rows, curves)


def draw(axes: Any, curves: Any) -> None:
    """λ times the norm over the run."""
    for i, (name, (noisy, exact)) in enumerate(curves.items()):
        axes.plot(noisy[:400], label=f"{name}, noisy", **plots.line(i))
        axes.plot(exact[:400], label=f"{name}, exact", **plots.line(i) | {"linestyle": ":"})
    axes.axhline(1, color="grey")
    axes.set(xlabel="step", ylabel="λ·norm")


CLAIM = Claim(
    title="Decay bounds the norm dual to the step: Lion ‖w‖∞ ≤ 1/λ, Muon ‖W‖₂ ≤ 1/λ",
    papers=("2310.05898", "2506.15054"),
    statement="Lion with decoupled decay minimises the loss under ‖w‖∞ ≤ 1/λ, and Muon under a spectral norm of at "
    "most 1/λ.",
    expected={
        row: at_most(bound) for name in DIRECTIONS for row, bound in zip(rows_of(name), (1 + 1e-5, 1e-5), strict=True)
    },
    measure=measure,
    draw=draw,
)
