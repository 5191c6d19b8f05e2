"""The norm and the angle per step where decay and gradients balance, as `wd.equilibrium` predicts them."""

from typing import Any

import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, between
from claims.training import batches, cross_entropy, forward, layers, relabelled, train

SEEDS, FAN_IN, COLUMNS, STEPS, ETA, WEIGHT_DECAY = 4, 256, 16, 6000, 1e-2, 0.2
L2 = WEIGHT_DECAY / 10  # momentum 0.9 accumulates ten times of it
CASES: dict[str, tuple[optax.GradientTransformation, dict[str, Any]]] = {
    "AdamW": (wd.adamw(ETA, weight_decay=WEIGHT_DECAY), {"optimizer": "adamw"}),
    "SGDW, momentum 0.9": (
        wd.sgdw(ETA, weight_decay=WEIGHT_DECAY, momentum=0.9), {"optimizer": "sgdw", "momentum": 0.9}
    ),
    "SGD + L2, momentum 0.9": (
        wd.sgd_l2(ETA, weight_decay=L2, momentum=0.9), {"optimizer": "sgd_l2", "momentum": 0.9, "weight_decay": L2}
    ),
    "Lion": (wd.decoupled(optax.scale_by_lion(), ETA, weight_decay=WEIGHT_DECAY), {"optimizer": "lion"}),
}  # fmt: skip
NORM = {name: f"random gradients, {name}: ‖w‖/predicted" for name in CASES}
ANGLE = {name: f"random gradients, {name}: angle per step/predicted" for name in CASES}
NETWORK = {
    "norm": "digits, normalised hidden layer, AdamW: ‖w‖/predicted",
    "angle": "digits, normalised hidden layer, AdamW: angle per step/predicted",
}


def geometry(before: jax.Array, after: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The norm (RMS over columns) and the mean angle that a step turns columns by."""
    norms = [jnp.linalg.norm(w, axis=0) for w in (before, after)]
    cosine = jnp.sum(before * after, axis=0) / (norms[0] * norms[1])
    return jnp.sqrt(jnp.mean(norms[1] ** 2)), jnp.mean(jnp.arccos(cosine))


def random_gradients(optimizer: optax.GradientTransformation, norm: float, key: jax.Array) -> Any:
    """Norm and angle after each step, with gradients orthogonal to each column and of size 1/‖w‖."""

    def gradient(w: jax.Array, key: jax.Array) -> jax.Array:
        length = jnp.linalg.norm(w, axis=0, keepdims=True)
        g = jax.random.normal(key, w.shape)
        return (g - w / length * jnp.sum(g * w / length, axis=0, keepdims=True)) / length

    start = jax.random.normal(key, (FAN_IN, COLUMNS)) * (1.2 * norm / FAN_IN**0.5)
    return train(
        optimizer, start, gradient, jax.random.split(key, STEPS), lambda step: geometry(step.before, step.after)
    )[1]


def network(eta: float, weight_decay: float) -> Any:
    """The same of the second of two hidden layers with standardised units, on digits with labels drawn anew."""
    x, _, y, _ = data.digits(test_size=0)
    gradient = jax.grad(lambda p, given: cross_entropy(forward(p, x[given[0]], normalised=True), given[1]))
    watch = lambda step: geometry(*(p["layer_1"]["kernel"] for p in (step.before, step.after)))
    optimizer = wd.adamw(eta, weight_decay=weight_decay)
    run = lambda params, given: train(optimizer, params, gradient, given, watch)[1]
    rows = batches(SEEDS, STEPS, 32, len(x))
    return jax.jit(jax.vmap(run))(layers(SEEDS, 64, 64, 64, 10), (rows, relabelled(rows, y, 0.8)))


def measure() -> Measured:
    """The second half of each run against the prediction, for every seed."""
    rows, curves = {}, {}
    keys = jax.random.split(jax.random.key(0), SEEDS)
    for name, (optimizer, options) in CASES.items():
        found = wd.equilibrium(ETA, **{"weight_decay": WEIGHT_DECAY, "size": FAN_IN, "gradient_rms": 1.0} | options)
        run = jax.jit(jax.vmap(lambda key, tx=optimizer, norm=found.norm: random_gradients(tx, norm, key)))
        norms, angles = run(keys)
        rows[NORM[name]] = np.asarray(norms)[:, STEPS // 2 :].mean(axis=1) / found.norm
        rows[ANGLE[name]] = np.asarray(angles)[:, STEPS // 2 :].mean(axis=1) / found.angle
        curves[name] = np.asarray(norms) / found.norm
    eta, weight_decay = 2e-3, 1.0
    found = wd.equilibrium(eta, weight_decay=weight_decay, size=64)
    norms, angles = network(eta, weight_decay)
    rows[NETWORK["norm"]] = np.asarray(norms)[:, STEPS // 2 :].mean(axis=1) / found.norm
    rows[NETWORK["angle"]] = np.asarray(angles)[:, STEPS // 2 :].mean(axis=1) / found.angle
    return Measured(rows, curves | {"network, AdamW": np.asarray(norms) / found.norm})


def draw(axes: Any, curves: Any) -> None:
    """The norms on their way to the predicted one."""
    for i, (name, norms) in enumerate(curves.items()):
        axes.plot(norms.mean(axis=0)[::10], label=name, **plots.line(i))
    axes.set(xlabel="step/10", ylabel="‖w‖/predicted")


CLAIM = Claim(
    title="Decay and random gradients balance at a norm and an angle per step",
    papers=("2305.17212",),
    statement="Weights before a normalisation settle at a norm where gradient steps lengthen as much as decay "
    "shortens; from then on η and λ alone determine how far they rotate per step.",
    expected={row: between(0.98, 1.02) for names in (NORM, ANGLE) for row in names.values()}
    | {row: between(0.9, 1.05) for row in NETWORK.values()},
    measure=measure,
    draw=draw,
)
