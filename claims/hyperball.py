"""Weights of fixed norm: what a decay does beside a normalised step and inside it, and whether their norm drifts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most, between
from claims.training import train

ETAS, WEIGHT_DECAY = 2.0 ** np.arange(-10, -3), 0.5
SEEDS, STEPS, SIZE, LENGTH = 3, 20_000, 64, 0.005  # random steps in bfloat16, each 0.5 % of the norm
SLOPE = {
    "beside": "d log(change of the new weight)/d log η, decay beside the step",
    "inside": "d log(change of the new weight)/d log η, decay inside the normalised direction",
}
DRIFT = {
    "stored": "bfloat16, 20,000 steps: |drift of the norm|, R stored",
    "hyperball": "bfloat16, 20,000 steps: |drift of the norm|, `wd.hyperball`",
    "recomputed": "bfloat16, 20,000 steps: |drift of the norm|, R of each step's weights",
}


def with_decay(kind: str, radius: float, eta: float, weight_decay: float) -> optax.GradientTransformation:
    """A step of length η·R and a projection, with λ·p added to the step after or before it gets this length."""
    if kind == "inside":
        return wd.hyperball(wd.add_decayed_weights(weight_decay), eta)
    normalised = optax.stateless(lambda u, _: jax.tree.map(lambda x: x * (radius / jnp.linalg.norm(x)), u))
    return optax.chain(normalised, optax.sgd(eta), wd.shrink(eta * weight_decay), wd.project("init"))


def changes(kind: str) -> np.ndarray:
    """‖p' with decay − p' without‖ after one step, for every η, in float64."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        params, gradient = ({"kernel": jnp.asarray(random.normal(size=(6, 5)))} for _ in range(2))
        radius = float(jnp.linalg.norm(params["kernel"]))

        def step(eta: float, weight_decay: float) -> jax.Array:
            tx = with_decay(kind, radius, eta, weight_decay)
            return tx.update(gradient, tx.init(params), params)[0]["kernel"]

        return np.asarray([jnp.linalg.norm(step(eta, WEIGHT_DECAY) - step(eta, 0.0)) for eta in map(float, ETAS)])


def project_onto_present_norm() -> optax.GradientTransformation:
    """The projection with R = ‖p‖ of this step's weights, in place of the norm at init."""

    def one(step: jax.Array, p: jax.Array) -> jax.Array:
        moved = p + step
        return moved * (jnp.linalg.norm(p) / jnp.linalg.norm(moved)) - p

    return optax.stateless(lambda updates, params: jax.tree.map(one, updates, params))


def rounded(projection: optax.GradientTransformation) -> optax.GradientTransformation:
    """SGD, then the projection in float32, then a rounding to the nearest."""
    return optax.chain(optax.sgd(1.0), wd.precision.in_float32(projection), wd.precision.round_updates("nearest"))


def norms(optimizer: optax.GradientTransformation, starts: Any) -> np.ndarray:
    """‖p‖/‖p₀‖ − 1 after each of the random steps, shape=(seeds, steps); p is bfloat16."""
    length = lambda p: jnp.linalg.norm(p["kernel"].astype(jnp.float32))
    gradient = lambda p, key: {"kernel": LENGTH * jax.random.normal(key, p["kernel"].shape)}

    def one(start: Any, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, STEPS)
        return train(optimizer, start, gradient, keys, lambda step: length(step.after))[1] / length(start) - 1

    return np.asarray(jax.jit(jax.vmap(one))(starts, jax.random.split(jax.random.key(0), SEEDS)))


def measure() -> Measured:
    """One step with and without decay; then a random walk on the sphere, rounded to the nearest bfloat16."""
    found = {kind: changes(kind) for kind in SLOPE}
    slopes = {kind: np.log2(change[1] / change[0]) for kind, change in found.items()}
    start = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(SEEDS, SIZE, SIZE)), jnp.bfloat16)}
    walks = {
        "stored": rounded(wd.project("init")),
        "hyperball": wd.hyperball(optax.identity(), LENGTH, rounding="nearest"),
        "recomputed": rounded(project_onto_present_norm()),
    }
    drift = {kind: norms(optimizer, start) for kind, optimizer in walks.items()}
    rows = {SLOPE[kind]: slope for kind, slope in slopes.items()}
    return Measured(rows | {DRIFT[kind]: np.abs(walk[:, -1]) for kind, walk in drift.items()}, drift)


def draw(axes: Any, curves: Any) -> None:
    """The norm over the random walk."""
    for i, (kind, walk) in enumerate(curves.items()):
        plots.band(axes, np.arange(0, STEPS, 20), walk[:, ::20], kind, plots.line(i))
    axes.set(xlabel="step", ylabel="‖p‖/‖p₀‖ − 1, bfloat16")


CLAIM = Claim(
    title="On a sphere, decay beside the step does nothing to first order; a stored radius doesn't drift",
    papers=("2606.16899", "2603.28743"),
    statement="With weights projected back to a fixed norm after each step, weight decay changes the step by O(η²) "
    "only, so that it can be left out. The rows on decay inside the normalised direction and on rounding are ours.",
    expected={SLOPE["beside"]: between(1.99, 2.01), SLOPE["inside"]: between(0.9, 1.1)}
    # a rounding moves the norm of 4096 entries by 4.4e-5, and in a recomputed norm each rounding stays
    | {DRIFT["stored"]: at_most(2.2e-4), DRIFT["hyperball"]: at_most(2.2e-4), DRIFT["recomputed"]: at_least(1e-2)},
    measure=measure,
    draw=draw,
)
