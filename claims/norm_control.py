"""Decay toward a norm: the distance of the norm from its target shrinks by k per step; at a target of 0 it is AdamW."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_most
from claims.training import train

STEPS, ETA, WEIGHT_DECAY, TARGET = 60, 0.1, 1.0, 2.0
LENGTHS = np.array([0.5, 1.9, 2.0, 8.0])  # of the first weights
RATE = "no gradient, float64: largest |‖p_t‖ − R − (1 − k)ᵗ·(‖p₀‖ − R)|/R, from above and below"
ADAMW = "random gradients, float64, R = 0: largest difference from AdamW's weights in 60 steps"


def paths(weight_decay: float) -> np.ndarray:
    """The norms before and after each step without a gradient, shape=(steps + 1, weights)."""
    with jax.enable_x64(True):
        drawn = np.random.default_rng(0).normal(size=(len(LENGTHS), 6, 5))
        drawn *= (LENGTHS / np.linalg.norm(drawn, axis=(1, 2)))[:, None, None]
        start = {"kernel": jnp.asarray(drawn)}
        tx = wd.adamw(ETA, weight_decay=weight_decay, rule=wd.rules.toward_norm(TARGET), slices=[("kernel", 1)])
        watch = lambda step: step.after["kernel"]
        zeros = lambda p, _: jax.tree.map(jnp.zeros_like, p)
        path = np.asarray(jax.jit(lambda p: train(tx, p, zeros, None, watch, STEPS)[1])(start))
        return np.linalg.norm(np.concatenate([drawn[None], path]), axis=(2, 3))


def distance_from_adamw() -> float:
    """Largest difference of AdamW with R = 0 from AdamW, over a run with random gradients, in float64.

    Not in bits: XLA contracts the two programs differently.
    """
    with jax.enable_x64(True):
        random = np.random.default_rng(1)
        params, noise = {"kernel": jnp.asarray(random.normal(size=(8, 8)))}, jnp.asarray(random.normal(size=STEPS))
        gradient = lambda p, z: jax.tree.map(lambda x: jnp.cos(7 * x + z), p)
        paths = []
        for rule in (None, wd.rules.toward_norm(0.0)):
            tx = wd.adamw(ETA, weight_decay=WEIGHT_DECAY, rule=rule)
            run = jax.jit(lambda p, tx=tx: train(tx, p, gradient, noise, lambda step: step.after["kernel"])[1])
            paths.append(np.asarray(run(params)))
        return float(np.abs(paths[0] - paths[1]).max())


def measure() -> Measured:
    """Four weights of one stack, two of them shorter than R and one at it."""
    found = paths(WEIGHT_DECAY)
    expected = TARGET + (LENGTHS - TARGET) * (1 - ETA * WEIGHT_DECAY) ** np.arange(STEPS + 1)[:, None]
    return Measured({RATE: np.abs(found - expected).max() / TARGET, ADAMW: distance_from_adamw()}, found)


def draw(axes: Any, curves: Any) -> None:
    """The norms over the run."""
    for i, (length, norms) in enumerate(zip(LENGTHS, curves.T, strict=True)):
        axes.plot(norms, label=f"‖p₀‖ = {length:g}", **plots.line(i))
    axes.axhline(TARGET, color="grey")
    axes.set(xlabel="step", ylabel="‖p‖ without gradients")


CLAIM = Claim(
    title="Decay toward a norm reaches it at rate 1 − k; toward 0 it is AdamW",
    papers=("2311.11446",),
    statement="Decoupled weight decay is weight norm control with a target norm of 0; with another target, decay "
    "drives the norm of a weight there, also from below.",
    expected={RATE: at_most(1e-12), ADAMW: at_most(1e-12)},
    measure=measure,
    draw=draw,
    quick=True,
)
