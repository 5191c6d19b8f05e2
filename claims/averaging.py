"""AdamW is an exponential average of its own directions, over 1/(η·λ) steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_most, exactly
from claims.training import train

STEPS, SIZE, ETA, WEIGHT_DECAY = 400, 48, 0.01, 1.0
AVERAGE = "largest |w_t − EMA_t|/‖w_t‖∞ over the run, EMA of −u/λ over 1/(ηλ) steps"
RESCALED = "(2η, λ/2, 2·w₀) against (η, λ, w₀) on a scale-invariant loss: entries w'/2 that differ in a bit"


def gradient(params: Any, x: jax.Array) -> Any:
    """Of a loss that sees the direction of w only: ½·Σ (xᵀw/‖w‖ − 1)²."""
    return jax.grad(lambda p: 0.5 * jnp.sum((x @ p["w"] / jnp.linalg.norm(p["w"]) - 1) ** 2))(params)


def average(directions: jax.Array, start: jax.Array) -> np.ndarray:
    """EMA_t = (1 − ηλ)·EMA_{t−1} + ηλ·(−u_t/λ), from w₀, in float64."""
    made, now = [], np.asarray(start, np.float64)
    rate = ETA * WEIGHT_DECAY
    for u in np.asarray(directions, np.float64):
        now = (1 - rate) * now - rate * u / WEIGHT_DECAY
        made.append(now)
    return np.stack(made)


def measure() -> Measured:
    """One run, the same with η doubled and λ halved, and Adam's directions at the first run's weights."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(STEPS, 8, SIZE)), jnp.float32)
    start = jnp.asarray(np.random.default_rng(1).normal(size=SIZE), jnp.float32)

    def paths(eta: float, weight_decay: float, start: jax.Array) -> jax.Array:
        tx = wd.adamw(eta, weight_decay=weight_decay, eps=0.0)
        return train(tx, {"w": start}, gradient, x, lambda step: step.after["w"])[1]

    def directions(path: jax.Array) -> jax.Array:
        before = jnp.concatenate([start[None], path[:-1]])
        gradients = jax.vmap(lambda w, x: gradient({"w": w}, x)["w"])(before, x)
        adam = optax.scale_by_adam(eps=0.0)
        return jax.lax.scan(lambda state, g: adam.update(g, state)[::-1], adam.init(start), gradients)[1]

    path = jax.jit(paths)(ETA, WEIGHT_DECAY, start)
    again = jax.jit(paths)(2 * ETA, WEIGHT_DECAY / 2, 2 * start)
    averaged = average(jax.jit(directions)(path), start)
    gap = np.abs(path - averaged).max(axis=1) / np.abs(path).max(axis=1)
    return Measured({AVERAGE: gap.max(), RESCALED: int((again / 2 != path).sum())}, (np.asarray(path), averaged))


def draw(axes: Any, curves: Any) -> None:
    """Three weights and their averages."""
    path, averaged = curves
    for i in range(3):
        axes.plot(path[:, i], label=f"w[{i}]", **plots.line(i))
        axes.plot(
            np.arange(0, STEPS, 20), averaged[::20, i], ".", color="black", label=None if i else "average of −u/λ"
        )
    axes.set(xlabel="step", ylabel="weight")


CLAIM = Claim(
    title="AdamW's weights are an average of its directions over 1/(ηλ) steps",
    papers=("2405.13698",),
    statement="AdamW computes an exponential moving average of its updates whose timescale is 1/(ηλ) steps; on a "
    "scale-invariant network η matters only through it, if the initial weights are scaled with η.",
    expected={AVERAGE: at_most(1e-5), RESCALED: exactly(0)},
    measure=measure,
    draw=draw,
    quick=True,
)
