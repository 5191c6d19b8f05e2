"""AdamC: corrected decay in front of normalisations keeps the gradient from growing while the learning rate falls."""

from typing import Any

import data
import jax
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most, between
from claims.training import batches, cross_entropy, forward, layers, relabelled, train

SEEDS, STEPS, BATCH, ETA, WEIGHT_DECAY = 8, 3000, 32, 5e-3, 1.0
RATE = optax.cosine_decay_schedule(ETA, STEPS)
RATIO = {name: f"{name}: gradient norm of the hidden layers, end/middle" for name in ("AdamW", "AdamC")}
LOSS = "final test loss at the same λ, AdamC − AdamW"
CHANGE = "gradient norm end/middle, AdamC − AdamW"


def optimizers() -> dict[str, optax.GradientTransformation]:
    """AdamC corrects the decay of normalised layers only, here all but the last."""
    last = wd.adamw(RATE, weight_decay=WEIGHT_DECAY)
    hidden = wd.adamw(RATE, weight_decay=WEIGHT_DECAY, coupling="corrected", peak_learning_rate=ETA)
    label = lambda parameter: "last" if "layer_2" in parameter.path else "hidden"
    return {"AdamW": last, "AdamC": wd.partition({"last": last, "hidden": hidden}, label)}


def measure() -> Measured:
    """A network with standardised hidden units on digits with four labels in five drawn anew, a cosine to zero."""
    x, x_test, y, y_test = data.digits()
    loss = lambda params, x, y: cross_entropy(forward(params, x, normalised=True), y)
    gradient = jax.grad(lambda params, given: loss(params, x[given[0]], given[1]))
    rows = batches(SEEDS, STEPS, BATCH, len(x))
    start, given = layers(SEEDS, 64, 64, 64, 10), (rows, relabelled(rows, y, 0.8))
    hidden = lambda step: optax.tree.norm([step.gradients[layer]["kernel"] for layer in ("layer_0", "layer_1")])
    norms, losses = {}, {}
    for name, optimizer in optimizers().items():

        def one(params: Any, given: Any, optimizer: Any = optimizer) -> Any:
            end, seen = train(optimizer, params, gradient, given, hidden)
            return loss(end, x_test, y_test), seen

        losses[name], norms[name] = map(np.asarray, jax.jit(jax.vmap(one))(start, given))
    middle, late = slice(int(0.45 * STEPS), int(0.55 * STEPS)), slice(int(0.95 * STEPS), None)
    ratios = {name: seen[:, late].mean(axis=1) / seen[:, middle].mean(axis=1) for name, seen in norms.items()}
    found = {RATIO[name]: ratio for name, ratio in ratios.items()}
    found |= {CHANGE: ratios["AdamC"] - ratios["AdamW"], LOSS: losses["AdamC"] - losses["AdamW"]}
    return Measured(found, norms)


def draw(axes: Any, curves: Any) -> None:
    """The gradient norms, averaged over 50 steps."""
    for i, (name, norms) in enumerate(curves.items()):
        smooth = norms.reshape(SEEDS, -1, 50).mean(axis=2)
        plots.band(axes, 50 * np.arange(smooth.shape[1]), smooth, name, plots.line(i))
    axes.set(xlabel="step", ylabel="‖g‖ of the hidden layers")


CLAIM = Claim(
    title="AdamC keeps the gradient norm from growing at the end of a schedule",
    papers=("2506.02285",),
    statement="Under a falling learning rate AdamW shortens normalised weights, so that their gradients grow; decay "
    "corrected by η/η_max keeps norms and gradients level and reaches a lower loss.",
    expected={
        RATIO["AdamW"]: at_least(1.2), RATIO["AdamC"]: between(0.8, 1.1), CHANGE: at_most(-0.2), LOSS: at_most(0)
    },
    measure=measure,
    draw=draw,
)  # fmt: skip
