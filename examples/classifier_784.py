"""Takes ~45 s on a laptop CPU and prints how too little, enough and too much decay change the 784-128-10 classifier.

The network of many introductions: 28×28 pixels → 128 ReLU → 10, cross-entropy, SGD with η = 0.01, λ = 1e-4. It trains
long on few images, so that it can overfit: 100 of scikit-learn's digits, enlarged to 28×28, or of MNIST. Every λ is run
with and without dropout, on the same seeds; the seed determines images, initial weights, batches and dropout.

    python examples/classifier_784.py                                # a table, and a picture in out/classifier_784.png
    python examples/classifier_784.py --mnist_dir=DIR --images=6000 --epochs=20  # MNIST's four files in DIR
"""

from typing import Any

import compare
import data
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import app

import wd_optax as wd

WEIGHT_DECAYS = [0.0, 1e-4, 3e-3, 1e-2, 1.0]  # S5: λ too small (1e-4 is the documents'), right, too large


class Classifier(nn.Module):  # S8: the classifier 784-128-10
    """784 → 128 → 10 logits."""

    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(n, 784) → (n, 10); with dropout only in training."""
        x = nn.relu(nn.Dense(128)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)  # S16: dropout, training and evaluation
        return nn.Dense(10)(x)


def optimizer(learning_rate: float, weight_decay: Any) -> optax.GradientTransformation:
    """SGD with decay of the kernels."""
    return wd.sgdw(learning_rate, weight_decay=weight_decay)


BATCH_SIZE = 16
SETTING = compare.Setting(
    "classifier_784",
    seeds=8,
    learning_rate=(0.01, "η of SGD."),
    dropout=(0.5, "Dropout rate of the hidden units."),
    images=(100, "Training images."),
    epochs=(1500, "Passes over them in each run."),
    mnist_dir=(None, "Folder with MNIST's four idx files; without it, digits."),
)


def initial_params(key: jax.Array) -> Any:
    """The same with and without dropout."""
    return Classifier(0.0).init(key, jnp.zeros((1, 784)), train=False)["params"]


def cross_entropy(logits: Any, y: jax.Array) -> jax.Array:
    """Mean over the images."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def run(*, learning_rate: float, dropout: float, images: int, epochs: int, seeds: int, mnist_dir: Any = None) -> Any:
    """Losses and accuracy at the end; "passes" and "passes in evaluation" say how far two of one image differ."""
    x_all, x_test, y_all, y_test = data.mnist(mnist_dir) if mnist_dir else data.digits(size=28, test_size=0.5)
    if images > len(x_all):
        raise ValueError(f"images: only {len(x_all)} training images are available, got {images}")

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        choose, start, order, drop = jax.random.split(key, 4)
        rows = jax.random.permutation(choose, len(x_all))[:images]
        x, y = x_all[rows], y_all[rows]
        model = Classifier(dropout if hparams["dropout"] == "dropout" else 0.0)
        apply: Any = lambda p, x, key, train=True: model.apply({"params": p}, x, train=train, rngs={"dropout": key})
        loss_fn = lambda params, batch: cross_entropy(apply(params, x[batch[0]], batch[1]), y[batch[0]])

        def measure(params: Any) -> dict[str, jax.Array]:
            gap = lambda train: jnp.abs(apply(params, x, order, train) - apply(params, x, drop, train)).max()
            seen, unseen = (apply(params, images, drop, False) for images in (x, x_test))
            right = (jnp.argmax(unseen, axis=-1) == y_test).mean(dtype=jnp.float32)
            losses = {"training": cross_entropy(seen, y), "test": cross_entropy(unseen, y_test)}
            return losses | {"accuracy": right, "passes": gap(True), "passes in evaluation": gap(False)}

        tx = optimizer(learning_rate, hparams["weight_decay"])
        batches = data.batches(images, BATCH_SIZE, epochs=epochs, seed=order).reshape(1, -1, BATCH_SIZE)
        keys = jax.random.split(drop, batches.shape[:2])
        return compare.fit(tx, initial_params(start), loss_fn, (batches, keys), measure)[1]

    return compare.last(compare.sweep(train, seeds, dropout=["no dropout", "dropout"], weight_decay=WEIGHT_DECAYS))


def report(results: Any) -> str:
    """A line per kind, how far two passes differ, then the effect of too little, the best and too much decay."""
    passes = [results[key].max().item() for key in ("passes", "passes in evaluation")]
    lines = ["Two passes over the same images differ by {:.2g} in training, by {:g} in evaluation.".format(*passes)]
    for dropout in ("dropout", "no dropout"):
        own = results.sel(dropout=dropout)
        best, small, large = own["test"].mean("seed").idxmin().item(), WEIGHT_DECAYS[1], WEIGHT_DECAYS[-1]
        lowest, little = (compare.change(own["test"], "+.4f", weight_decay=k) for k in (best, small))
        accuracy = own["accuracy"].sel(weight_decay=large).mean().item()
        lines.append(
            f"With {dropout} λ = {small:g} changes the test loss by {little}, the best λ = {best:g} by {lowest}, "
            f"and λ = {large:g} leaves an accuracy of {accuracy:.0%}."
        )
    return "\n".join([compare.table(results, training=".4f", test=".4f", accuracy=".4f"), "", *lines])


def plot(results: Any) -> Any:
    """The change of each measure from λ = 0, paired over seeds."""
    measured = results[["training", "test", "accuracy"]]
    gaps, label = measured - measured.isel(weight_decay=0), "Δ {}".format
    texts = {"training": label("training loss"), "test": label("test loss"), "accuracy": label("accuracy")}
    figure = compare.curves(gaps, "λ", "weight_decay", **texts)
    figure.axes[1].set_title("minus that of the same seed at λ = 0", fontsize="medium")
    for panel in figure.axes:
        panel.axhline(0, color="grey", linewidth=1)
        panel.set_yscale("symlog", linthresh=0.01)
    return figure


def main(_: list[str]) -> None:
    """Audits the optimizer, trains, then prints and plots the results."""
    tx = optimizer(SETTING.values()["learning_rate"], 1e-4)
    shapes = lambda: jax.eval_shape(initial_params, jax.random.key(0))
    SETTING.show(lambda: wd.audit(tx, shapes()), run, report, plot)


if __name__ == "__main__":
    app.run(main)
