"""Decay toward the initial weights keeps a network able to learn, task after task."""

from typing import Any

import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most
from claims.training import cross_entropy, forward, layers, train

SEEDS, TASKS, EPOCHS, IMAGES, BATCH, ETA = 4, 24, 100, 256, 32, 5e-3
STEPS = EPOCHS * IMAGES // BATCH  # per task
METHODS = {
    "Adam": wd.adamw(ETA, weight_decay=0.0),
    "AdamW, λ = 0.1": wd.adamw(ETA, weight_decay=0.1),
    "AdamW, λ = 0.3": wd.adamw(ETA, weight_decay=0.3),
    "Adam + L2, λ = 0.003": wd.adam_l2(ETA, weight_decay=0.003),
    "L2-Init, λ = 0.003": wd.coupled(
        optax.scale_by_adam(), ETA, weight_decay=0.003, rule=wd.rules.toward("init"), mask=None
    ),
}
OURS = "L2-Init, λ = 0.003"
LOST = "Adam: online accuracy, last task − first"
KEPT = f"{OURS}: online accuracy, last task − first"
AVERAGE = {name: f"average online accuracy, {OURS} − {name}" for name in METHODS if name != OURS}


def tasks() -> tuple[jax.Array, jax.Array]:
    """The rows of each step and their labels, shape=(seeds, steps, batch): each task has new random labels."""
    random = np.random.default_rng(0)
    labels = random.integers(10, size=(SEEDS, TASKS, IMAGES), dtype=np.int32)
    orders = [[random.permutation(IMAGES) for _ in range(TASKS * EPOCHS)] for _ in range(SEEDS)]
    rows = np.asarray(orders).reshape(SEEDS, TASKS * STEPS, BATCH)
    return jnp.asarray(rows), jnp.asarray(np.take_along_axis(np.repeat(labels, STEPS, axis=1), rows, axis=2))


def measure() -> Measured:
    """Accuracy on each batch before the step on it, averaged over a task."""
    x = data.digits(test_size=0)[0][:IMAGES]
    logits = lambda params, given: forward(params, x[given[0]], jax.nn.relu)
    gradient = jax.grad(lambda params, given: cross_entropy(logits(params, given), given[1]))
    online = {}
    for name, optimizer in METHODS.items():

        def one(params: Any, given: Any, optimizer: Any = optimizer) -> jax.Array:
            correct = lambda step: (logits(step.before, step.given).argmax(-1) == step.given[1]).mean()
            return train(optimizer, params, gradient, given, correct)[1].reshape(TASKS, STEPS).mean(axis=1)

        online[name] = np.asarray(jax.jit(jax.vmap(one))(layers(SEEDS, 64, 64, 64, 10), tasks()))
    rows = {LOST: online["Adam"][:, -1] - online["Adam"][:, 0], KEPT: online[OURS][:, -1] - online[OURS][:, 0]}
    rows |= {row: (online[OURS] - online[name]).mean(axis=1) for name, row in AVERAGE.items()}
    return Measured(rows, online)


def draw(axes: Any, curves: Any) -> None:
    """Online accuracy, task by task."""
    for i, (name, runs) in enumerate(curves.items()):
        plots.band(axes, np.arange(1, TASKS + 1), runs, name, plots.line(i))
    axes.set(xlabel="task", ylabel="online accuracy")


CLAIM = Claim(
    title="L2-Init keeps plasticity over 24 relabellings",
    papers=("2308.11958",),
    statement="Networks that are trained on one task after another learn ever more slowly; an L2 penalty on the "
    "distance from the initial weights keeps them plastic, better than one on the weights.",
    expected={LOST: at_most(-0.2), KEPT: at_least(-0.05)} | {row: at_least(0) for row in AVERAGE.values()},
    measure=measure,
    draw=draw,
)
