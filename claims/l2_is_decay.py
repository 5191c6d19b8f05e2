"""L2 regularisation and weight decay: one trajectory under SGD, two under momentum and under Adam."""

import functools
from typing import Any

import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most
from claims.training import batches, cross_entropy, distance, forward, layers, train

STEPS, BATCH, SEEDS, ETA, WEIGHT_DECAY = 200, 32, 3, 0.1, 0.1
SCHEDULES = {
    "constant": optax.constant_schedule(ETA),
    "linear": optax.linear_schedule(ETA, 0.0, STEPS),
    "warm-up, cosine": optax.warmup_cosine_decay_schedule(0.0, ETA, STEPS // 10, STEPS),
    "steps": optax.piecewise_constant_schedule(ETA, {70: 0.3, 140: 0.1}),
    "sine": lambda t: ETA * (1 + jnp.sin(1.0 * t)) / 2,
}
PAIRS = {
    "SGD with momentum 0.9": (functools.partial(wd.sgd_l2, momentum=0.9), functools.partial(wd.sgdw, momentum=0.9)),
    "Adam": (wd.adam_l2, wd.adamw),
}
SGD = "SGD, the worst of five schedules: largest ‖w_L2 − w_decay‖/‖w_decay‖"
ROWS = {name: f"{name}: largest ‖w_L2 − w_decay‖/‖w_decay‖" for name in PAIRS}


def distances(l2: Any, decay: Any, rates: Any) -> np.ndarray:
    """The distance after each step between two optimizers on the digits, shape=(schedules, seeds, steps).

    `rates` are the learning rates of each schedule, shape=(schedules, steps).
    """
    x, _, y, _ = data.digits(test_size=0)
    x = x.astype(float)

    def one(rates: jax.Array, params: Any, rows: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda p, rows: cross_entropy(forward(p, x[rows]), y[rows]))
        makers = (make(lambda t: rates[t], weight_decay=WEIGHT_DECAY) for make in (l2, decay))
        return jax.vmap(distance)(*(train(tx, params, gradient, rows, lambda step: step.after)[1] for tx in makers))

    of_seeds = jax.vmap(one, (None, 0, 0))
    given = (jnp.asarray(rates), layers(SEEDS, 64, 16, 10), batches(SEEDS, STEPS, BATCH, len(x)))
    return np.asarray(jax.jit(jax.vmap(of_seeds, (0, None, None)))(*given))


def measure() -> Measured:
    """Float64, so that rounding is far below what is claimed."""
    with jax.enable_x64(True):
        rates = [[float(schedule(jnp.int32(t))) for t in range(STEPS)] for schedule in SCHEDULES.values()]
        curves = {"SGD": distances(wd.sgd_l2, wd.sgdw, rates).max(axis=0)}
        for name, pair in PAIRS.items():
            curves[name] = distances(*pair, [[0.003 if name == "Adam" else ETA] * STEPS])[0]
    rows = {SGD: curves["SGD"].max(axis=1)} | {ROWS[name]: curves[name].max(axis=1) for name in PAIRS}
    return Measured(rows, curves)


def draw(axes: Any, curves: Any) -> None:
    """The distances over the run."""
    for i, (name, runs) in enumerate(curves.items()):
        axes.semilogy(np.arange(1, STEPS + 1), np.maximum(runs.mean(axis=0), 1e-17), label=name, **plots.line(i))
    axes.set(xlabel="step", ylabel="‖w_L2 − w_decay‖/‖w_decay‖")


CLAIM = Claim(
    title="L2 regularisation is weight decay under SGD, and under no adaptive method",
    papers=("1711.05101",),
    statement="For plain SGD a decay is an L2 penalty rescaled by the learning rate; for Adam no penalty on the norm "
    "gives the same steps.",
    expected={SGD: at_most(1e-12), ROWS["SGD with momentum 0.9"]: at_least(0.5), ROWS["Adam"]: at_least(0.7)},
    measure=measure,
    draw=draw,
)
