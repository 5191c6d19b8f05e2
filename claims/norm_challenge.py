"""Weight norm control against AdamW at the norms that AdamW ends with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.better_loss import BATCH, IMAGES, RATE, SEEDS, STEPS
from claims.claim import Claim, Measured, at_most, between
from claims.training import batches, cross_entropy, forward, layers, noisy_digits, train

LAMBDAS = (0.4 / 3, 0.4, 1.2)  # AdamW's best λ on this task, a third and three times of it
K = 0.1  # of the distance from its norm that AdamWN removes per step, so that norms stay near it
LOSS = {decay: f"λ = {decay:.2g}: test loss, AdamWN at AdamW's final norms − AdamW" for decay in LAMBDAS}
NORM = {decay: f"λ = {decay:.2g}: final norm, AdamWN's/AdamW's" for decay in LAMBDAS}


def toward_norms(lengths: dict[str, jax.Array]) -> Any:
    """The rule that takes each kernel to a norm of its own."""
    labels = lambda params: {name: jax.tree.map(lambda _, name=name: name, layer) for name, layer in params.items()}
    return optax.partition({name: wd.rules.toward_norm(length) for name, length in lengths.items()}, labels)


def measure() -> Measured:
    """AdamW, then the same run with decay toward each kernel's last norm, on digits with noisy labels."""
    x, x_test, y, y_test = noisy_digits(size=IMAGES)
    logits = lambda params, x: forward(params, x, jax.nn.relu)
    gradient = jax.grad(lambda params, rows: cross_entropy(logits(params, x[rows]), y[rows]))

    def one(weight_decay: jax.Array, params: Any, rows: jax.Array) -> Any:
        end, _ = train(wd.adamw(RATE, weight_decay=weight_decay), params, gradient, rows)
        lengths = {name: jnp.linalg.norm(layer["kernel"]) for name, layer in end.items()}
        control = wd.adamw(RATE, weight_decay=K, coupling="constant", rule=toward_norms(lengths))
        controlled, _ = train(control, params, gradient, rows)
        size = lambda params: optax.tree.norm([layer["kernel"] for layer in params.values()])
        return [(cross_entropy(logits(p, x_test), y_test), size(p)) for p in (end, controlled)]

    given = layers(SEEDS, 64, 64, 64, 10), batches(SEEDS, STEPS, BATCH, IMAGES)
    grid = jnp.asarray(LAMBDAS, jnp.float32)
    runs = jax.jit(jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None)))(grid, *given)
    (loss, norm), (controlled, kept) = jax.tree.map(np.asarray, runs)
    rows = {LOSS[decay]: controlled[i] - loss[i] for i, decay in enumerate(LAMBDAS)}
    rows |= {NORM[decay]: kept[i] / norm[i] for i, decay in enumerate(LAMBDAS)}
    return Measured(rows, {"AdamW": loss, "AdamWN": controlled})


def draw(axes: Any, curves: Any) -> None:
    """Test loss by λ."""
    for i, (name, losses) in enumerate(curves.items()):
        plots.band(axes, np.asarray(LAMBDAS), losses.T, name, plots.line(i))
    axes.set(xscale="log", xlabel="λ", ylabel="test loss")
    axes.set_xticks(LAMBDAS, [f"{decay:.2g}" for decay in LAMBDAS], minor=False)
    axes.minorticks_off()


CLAIM = Claim(
    title="AdamW can be challenged by AdamWN at the norm that it reaches",
    papers=("2311.11446",),
    statement="A target norm of 0 can be suboptimal: a run in which AdamW reaches some norm of the weights can be "
    "challenged by one with norm control that aims at a comparable norm.",
    expected={row: at_most(0) for row in LOSS.values()} | {row: between(0.9, 1.1) for row in NORM.values()},
    measure=measure,
    draw=draw,
)
