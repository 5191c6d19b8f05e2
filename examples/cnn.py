"""Takes ~25 s on a laptop CPU and prints what decay and augmentation do to a convolutional network on few images.

A Flax linen CNN with BatchNorm learns scikit-learn's handwritten digits from 200 of them, with AdamW and a cosine
learning rate: with decay or without, on images as they are or shifted by a pixel at random. Of each run the epoch with
the lowest validation loss is tested. Scales and biases of BatchNorm never decay; its running averages are not
parameters. The seed determines images, weights, batches and shifts, so that the runs of a seed are compared in pairs.

    python examples/cnn.py                   # a table, and curves in out/cnn.png
    python examples/cnn.py --images=400      # more training images; --help lists the knobs
"""

import math
import os
from typing import Any

import compare
import data
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app

import wd_optax as wd

RUNS = {"neither": (0, 0), "decay": (1, 0), "augmentation": (0, 1), "both": (1, 1)}  # times λ; pixels


def optimizer(learning_rate: float, weight_decay: Any, steps: int) -> optax.GradientTransformation:
    """AdamW on the kernels alone, which it finds by their names; η and with it the decay follow a cosine to 0."""
    return wd.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=weight_decay)


SETTING = compare.Setting(
    "cnn",
    seeds=12,
    epochs=(60, "Passes over the training images."),
    images=(200, "Training images; as many validation images."),
    learning_rate=(1e-2, "The highest η."),
    weight_decay=(3.0, "λ of the runs that decay."),
)


class CNN(nn.Module):  # S9: images
    """(n, 8, 8, 1) → (n, 10)."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """In training BatchNorm uses the moments of the batch and updates its averages."""
        for width in self.widths:
            x = nn.Conv(width, (3, 3), strides=2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def loss_fn(model: CNN, params: Any, stats: Any, x: jax.Array, y: jax.Array) -> Any:
    """Mean training cross-entropy, and BatchNorm's updated averages."""
    logits, changed = model.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), changed["batch_stats"]


def evaluate(model: CNN, variables: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy, and accuracy in %."""
    logits: Any = model.apply(variables, x, False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, 100 * (logits.argmax(axis=-1) == y).mean()


def shifted(key: jax.Array, images: jax.Array, most: Any) -> jax.Array:
    """Shifts each image by up to `most` ≤ 1 pixels in each direction, padding with zeros."""
    starts = 1 + jax.random.randint(key, (len(images), 2), -most, most + 1)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cut = lambda image, start: jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])
    return jax.vmap(cut)(padded, starts)


def run(
    *, epochs: int, seeds: int, images: int, learning_rate: float, weight_decay: float, widths: Any = (32, 64)
) -> Any:
    """Curves of each kind, over the epochs at which it was measured."""
    model, every, (x_all, _, y_all, _) = CNN(widths), math.gcd(epochs, 4), data.digits(flat=False, test_size=0)
    if 3 * images > len(x_all):
        raise ValueError(f"images: at most {len(x_all) // 3}, so that a third is left for the test, got {images}")

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        (decays, most), (choose, start, order, shift) = hparams["kind"], jax.random.split(key, 4)
        split = jnp.split(jax.random.permutation(choose, len(x_all)), [images, 2 * images])
        (x, y), validation, test = ((x_all[rows], y_all[rows]) for rows in split)
        batches = data.batches(images, 32, epochs=epochs, seed=order).reshape(epochs // every, -1, 32)
        tx = wd.monitor_decay(optimizer(learning_rate, weight_decay * decays, batches.shape[0] * batches.shape[1]))
        variables = model.init(start, x_all[:1], False)

        def step(carry: Any, batch: Any) -> Any:
            params, stats, opt_state = carry
            images, labels = shifted(batch[1], x[batch[0]], most), y[batch[0]]
            grad = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)
            (loss, stats), grads = grad(model, params, stats, images, labels)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), stats, opt_state), loss

        def point(carry: Any, batches: Any) -> Any:
            (params, stats, opt_state), losses = jax.lax.scan(step, carry, batches)
            info, variables = wd.read_decay(opt_state)["weight"], {"params": params, "batch_stats": stats}
            found = {"training": losses.mean(), "validation": evaluate(model, variables, *validation)[0]}
            found |= {
                "accuracy, %": evaluate(model, variables, *test)[1],
                "‖w‖": info.weight_norm,
                "turned": info.angle,
            }
            return (params, stats, opt_state), found

        carry = variables["params"], variables["batch_stats"], tx.init(variables["params"])
        return jax.lax.scan(point, carry, (batches, jax.random.split(shift, batches.shape[:2])))[1]

    found = compare.sweep(train, seeds, chunk=os.cpu_count(), kind=RUNS)  # vmapped convolutions are slow on a CPU
    return found.assign_coords(point=range(every, epochs + 1, every))


def gain(results: Any, more: str, less: str) -> Any:
    """Points of test accuracy, per seed, that one kind of run has over another; each at its best epoch."""
    accuracy = results["accuracy, %"].isel(point=results["validation"].argmin("point"))
    return (accuracy.sel(kind=more) - accuracy.sel(kind=less)).values


def report(results: Any) -> str:
    """A line per kind at its best epoch, then what differs; "turned" is the mean angle per step, in rad."""
    best = results.isel(point=results["validation"].argmin("point"))
    best = best.assign(epoch=best["point"], turned=results["turned"].mean("point"))
    columns = {"accuracy, %": ".1f", "validation": ".3f", "epoch": ".0f", "‖w‖": ".1f", "turned": ".4f"}
    change = lambda more, less: compare.change(best["accuracy, %"].sel(kind=[less, more]), "+.2f", kind=more)
    alone, beside = change("decay", "neither"), change("both", "augmentation")
    return f"""{compare.table(best, **columns)}

augmentation against neither, points: {change("augmentation", "neither")}
both against decay, points: {change("both", "decay")}
BatchNorm cancels the norm of the kernels before it; decay changes how far they turn (rad per step), not the outputs.
Decay changes the test accuracy, in points, by {alone}, and beside augmentation by {beside}."""


def plot(results: Any) -> Any:
    """Validation losses over the epochs, and what decay gains in each seed."""
    figure, (losses, points) = plots.figure(2)
    compare.draw(losses, results["validation"])
    losses.set(xlabel="epoch", ylabel="validation loss; 95 % interval", yscale="log")
    figure.legend(*losses.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    for i, pair in enumerate((("decay", "neither"), ("both", "augmentation"))):
        gaps = gain(results, *pair)
        points.plot(np.full(len(gaps), i + 0.1), gaps, ".", color="grey")
        plots.bars(points, [i], gaps[:, None], plots.line(i))
    points.axhline(0, color="grey", linewidth=1)
    points.set_xticks([0, 1], ["decay against neither", "both against augmentation"])
    points.set(ylabel="test accuracy, points; grey: each seed", xlim=(-0.5, 1.5))
    return figure


def main(_: list[str]) -> None:
    """Prints which parameters decay, trains, then prints and plots the results."""
    start = lambda: CNN((32, 64)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), False)
    SETTING.show(lambda: wd.explain("weights", jax.eval_shape(start)["params"]), run, report, plot)


if __name__ == "__main__":
    app.run(main)
