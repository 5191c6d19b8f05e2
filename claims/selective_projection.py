"""Selective projection decay in fine-tuning: whether it keeps weights near the pre-trained ones, and what they knew."""

from typing import Any, NamedTuple

import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from scipy import ndimage

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most
from claims.training import batches, cross_entropy, distance, forward, layers, train

SEEDS, PRE, FINE, BATCH, IMAGES, DEGREES, ETA = 6, 800, 400, 32, 100, 40, 1e-3
STRENGTHS = (1.0, 10.0)
SPD = {strength: f"selective projection, λ = {strength:g}" for strength in STRENGTHS}
ANCHOR = "L2-SP, λ = 0.01"
DISTANCE = {name: f"{name}: distance from the pre-trained weights/Adam's" for name in (*SPD.values(), ANCHOR)}
UPRIGHT = {name: f"{name}: accuracy on upright digits − Adam's" for name in (*SPD.values(), ANCHOR)}

TURNED = {name: f"{name}: accuracy on rotated digits − Adam's" for name in (*SPD.values(), ANCHOR)}


class Start(NamedTuple):
    """State of `selective_projection`: the pre-trained weights."""

    weights: Any


def selective_projection(strength: float) -> optax.GradientTransformationExtraArgs:
    """Where ⟨g, p − a⟩ > 0 in a leaf: c·r(p) = λ·max(0, ‖p' − a‖ − ‖p − a‖)/‖p' − a‖·(p' − a), with p' = p + step."""

    def update(updates: Any, state: Start, params: Any = None, *, step: wd.rules.Step) -> Any:
        def one(p: jax.Array, a: jax.Array, g: jax.Array, s: jax.Array) -> jax.Array:
            before, after = p - a, p + s - a
            norms = jnp.linalg.norm(before.ravel()), jnp.linalg.norm(after.ravel())
            growth = jnp.maximum(0.0, norms[1] - norms[0]) / jnp.maximum(norms[1], 1e-12)
            return jnp.where(jnp.sum(g * before) > 0, strength * growth, 0.0) * after / step.rate

        return wd.rules.tree_map(one, updates, state.weights, step.gradients, step.updates), state

    return optax.GradientTransformationExtraArgs(lambda params: Start(jax.tree.map(jnp.array, params)), update)


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Adam alone, with selective projection, and with L2-SP in the gradient."""
    made = {"Adam": wd.adamw(ETA, weight_decay=0.0)}
    for strength, name in SPD.items():
        rule = selective_projection(strength)  # which divides by its rate, so that any decay will do
        made[name] = wd.adamw(ETA, weight_decay=0.5, coupling="constant", rule=rule, mask=None)
    return made | {ANCHOR: wd.adam_l2(ETA, weight_decay=0.01, rule=wd.rules.toward("init"), mask=None)}


def measure() -> Measured:
    """Pre-training on upright digits, then fine-tuning on 100 that are rotated by 40°, from the same weights."""
    x, x_test, y, y_test = data.digits()
    turn = lambda images: np.clip(ndimage.rotate(images.reshape(-1, 8, 8), DEGREES, (1, 2), reshape=False), 0, 1)
    turned, turned_test = (jnp.asarray(turn(np.asarray(z)).reshape(-1, 64)) for z in (x, x_test))
    logits = lambda params, x: forward(params, x, jax.nn.relu)
    accuracy = lambda params, x: (logits(params, x).argmax(-1) == y_test).mean()

    def fit(optimizer: Any, start: Any, x: jax.Array, rows: jax.Array) -> Any:
        return train(optimizer, start, jax.grad(lambda p, rows: cross_entropy(logits(p, x[rows]), y[rows])), rows)[0]

    first = jax.jit(jax.vmap(lambda start, rows: fit(wd.adamw(ETA, weight_decay=0.0), start, x, rows)))
    start = first(layers(SEEDS, 64, 64, 64, 10), batches(SEEDS, PRE, BATCH, len(x)))
    found = {}
    for name, optimizer in optimizers().items():

        def one(start: Any, rows: jax.Array, optimizer: Any = optimizer) -> Any:
            end = fit(optimizer, start, turned[:IMAGES], rows)
            return distance(end, start), accuracy(end, x_test), accuracy(end, turned_test)

        found[name] = [np.asarray(z) for z in jax.jit(jax.vmap(one))(start, batches(SEEDS, FINE, BATCH, IMAGES))]
    rows = {row: found[name][0] / found["Adam"][0] for name, row in DISTANCE.items()}
    rows |= {row: found[name][1] - found["Adam"][1] for name, row in UPRIGHT.items()}
    rows |= {row: found[name][2] - found["Adam"][2] for name, row in TURNED.items()}
    return Measured(rows, found)


def draw(axes: Any, curves: Any) -> None:
    """Accuracy on rotated against upright digits."""
    for i, (name, (_, upright, turned)) in enumerate(curves.items()):
        axes.plot(upright, turned, "o", label=name, color=plots.line(i)["color"])
    axes.set(xlabel="accuracy on upright digits", ylabel="accuracy on rotated digits")


CLAIM = Claim(
    title="Selective projection decay keeps fine-tuned weights near the pre-trained ones",
    papers=("2411.01713", "1802.01483"),
    statement="Pulling a layer back only while its gradient points to the start keeps what was pre-trained better than "
    "Adam alone does, without hindering the new task; a penalty on the distance also keeps it.",
    expected={row: at_most(0.9) for row in DISTANCE.values()}
    | {row: at_least(0) for row in UPRIGHT.values()}
    | {row: at_least(-0.02) for row in TURNED.values()},
    measure=measure,
    draw=draw,
)
