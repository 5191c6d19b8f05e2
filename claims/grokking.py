"""Decay makes a small network generalise on modular addition long after it has memorised; without decay it doesn't."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_most, between
from claims.training import cross_entropy, forward, layers, train

PRIME, WIDTH, SHARE, ETA, SEEDS, STEPS = 31, 128, 0.7, 1e-2, 4, 1500
METHODS = {
    "λ = 1": wd.adamw(ETA, weight_decay=1.0, b2=0.98),
    "λ = 0": wd.adamw(ETA, weight_decay=0.0, b2=0.98),
    "cautious, λ = 1": wd.adamw(ETA, weight_decay=1.0, b2=0.98, rule=wd.rules.cautious()),
}
MEMORISED = "λ = 1: step at which training accuracy reaches 95 %"
GENERALISED = "λ = 1: step at which test accuracy reaches 95 %"
BEST = {name: f"{name}: largest test accuracy in 1500 steps" for name in METHODS if name != "λ = 1"}


def accuracies(optimizer: Any, start: Any, order: jax.Array) -> Any:
    """Training and test accuracy of a + b mod 31 after each step on all training pairs."""
    a, b = np.divmod(np.arange(PRIME**2), PRIME)
    x = jnp.concatenate([jax.nn.one_hot(a, PRIME), jax.nn.one_hot(b, PRIME)], axis=1)
    y, parts = jnp.asarray((a + b) % PRIME), jnp.split(order, [int(SHARE * PRIME**2)])
    logits = lambda params, rows: forward(params, x[rows], jnp.square)
    gradient = jax.grad(lambda params, _: cross_entropy(logits(params, parts[0]), y[parts[0]]))
    right = lambda step: [(logits(step.after, rows).argmax(-1) == y[rows]).mean() for rows in parts]
    return train(optimizer, start, gradient, None, right, STEPS)[1]


def measure() -> Measured:
    """Two layers with squares as activation; each seed has its own weights and its own training pairs."""
    start = layers(SEEDS, 2 * PRIME, WIDTH, PRIME)
    orders = jnp.asarray(np.stack([np.random.default_rng(seed).permutation(PRIME**2) for seed in range(SEEDS)]))
    curves = {}
    for name, optimizer in METHODS.items():
        run = jax.jit(jax.vmap(lambda start, order, tx=optimizer: accuracies(tx, start, order)))
        curves[name] = tuple(map(np.asarray, run(start, orders)))
    reached = [np.where((x >= 0.95).any(axis=1), 1 + (x >= 0.95).argmax(axis=1), np.inf) for x in curves["λ = 1"]]
    rows = {MEMORISED: reached[0], GENERALISED: reached[1]}
    return Measured(rows | {row: curves[name][1].max(axis=1) for name, row in BEST.items()}, curves)


def draw(axes: Any, curves: Any) -> None:
    """Training accuracy dotted, test accuracy solid."""
    steps = np.arange(1, STEPS + 1)
    for i, (name, (seen, unseen)) in enumerate(curves.items()):
        axes.plot(steps, seen.mean(axis=0), **plots.line(i) | {"linestyle": ":"})
        plots.band(axes, steps, unseen, name, plots.line(i))
    axes.set(xlabel="step", ylabel="accuracy, test (solid) and training (dotted)")


CLAIM = Claim(
    title="Decay makes a small network grok modular addition",
    papers=("2201.02177",),
    statement="Long after a network has memorised its training pairs it generalises all at once, and of the "
    "interventions that bring this forward weight decay is the strongest.",
    expected={MEMORISED: at_most(100), GENERALISED: between(150, 1000)} | {row: at_most(0.9) for row in BEST.values()},
    measure=measure,
    draw=draw,
)
