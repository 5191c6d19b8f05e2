"""Takes ~45 s on a laptop CPU and prints how too little, enough and too much decay change the 784-128-10 classifier.

The network of many introductions: 28×28 pixels → 128 ReLU → 10, cross-entropy, SGD with η = 0.01, λ = 1e-4. It trains
long on few images, so that it can overfit: 100 of scikit-learn's digits, enlarged to 28×28, or of MNIST. Every λ is run
with and without dropout, on the same seeds; the seed determines images, initial weights, batches and dropout.

    python examples/classifier_784.py                                # a table, and curves in out/classifier_784.png
    python examples/classifier_784.py --mnist_dir=DIR --images=6000 --epochs=20  # MNIST's four files in DIR
"""

import functools
from typing import Any

import console
import data
import flax.linen as nn
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app, flags

import wd_optax as wd

_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.01, "η of SGD.")
_DROPOUT = flags.DEFINE_float("dropout", 0.5, "Dropout rate of the hidden units.")
_IMAGES = flags.DEFINE_integer("images", 100, "Training images.", lower_bound=16)
_EPOCHS = flags.DEFINE_integer("epochs", 1500, "Passes over them in each run.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 4, "Runs of each kind.", lower_bound=2)
_MNIST_DIR = flags.DEFINE_string("mnist_dir", None, "Folder with MNIST's four idx files; without it, digits.")
_OUT = flags.DEFINE_string("out", "out", "Folder for classifier_784.png; created if missing.")

BATCH_SIZE = 16
WEIGHT_DECAYS = (0.0, 1e-4, 3e-3, 1e-2, 1.0)  # S5: λ too small (1e-4 is the documents'), right, too large
MEASURES = ("training loss", "test loss", "accuracy")


class Classifier(nn.Module):  # S8: the classifier 784-128-10
    """784 → 128 → 10 logits."""

    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(n, 784) → (n, 10); with dropout only in training."""
        x = nn.relu(nn.Dense(128)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)  # S16: dropout, training and evaluation
        return nn.Dense(10)(x)


def loss_fn(logits: Any, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def initial_params(seed: Any) -> Any:
    """Initial parameters, the same with and without dropout."""
    return Classifier(0.0).init(jax.random.key(seed), jnp.zeros((1, 784)), train=False)["params"]


@functools.partial(jax.jit, static_argnames="dropout")
def train(
    sets: data.Split, batches: jax.Array, seed: Any, learning_rate: Any, weight_decay: jax.Array, *, dropout: float
) -> Any:
    """Trains k runs, one per λ; batches are row indices (steps, batch). Returns the final `MEASURES`, (3, k)."""
    x, x_test, y, y_test = sets
    model, params, tx = Classifier(dropout), initial_params(seed), wd.sgdw(learning_rate, weight_decay=0.0)
    keys = jax.random.split(jax.random.key(seed + 1), len(batches))

    def step(carry: Any, now: Any) -> Any:
        params, opt_state = carry
        rows, key = now

        def objective(params: Any) -> jax.Array:
            return loss_fn(model.apply({"params": params}, x[rows], train=True, rngs={"dropout": key}), y[rows])

        updates, opt_state = tx.update(jax.grad(objective)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def one(weight_decay: jax.Array) -> jax.Array:
        opt_state = optax.tree.set(tx.init(params), weight_decay=weight_decay)  # λ is a leaf: one program for all
        (end, _), _ = jax.lax.scan(step, (params, opt_state), (batches, keys))
        evaluate: Any = lambda images: model.apply({"params": end}, images, train=False)
        seen, unseen = evaluate(x), evaluate(x_test)
        right = (jnp.argmax(unseen, axis=-1) == y_test).mean(dtype=jnp.float32)
        return jnp.stack([loss_fn(seen, y), loss_fn(unseen, y_test), right])

    return jax.vmap(one, out_axes=1)(weight_decay)


def run(
    *,
    learning_rate: float,
    dropout: float,
    images: int,
    epochs: int,
    seeds: int,
    mnist_dir: str | None = None,
) -> dict[str, Any]:
    """Returns per dropout rate (0 and `dropout`) each of `MEASURES` as (seeds, λ)."""
    x, x_test, y, y_test = data.mnist(mnist_dir) if mnist_dir else data.digits(size=28, test_size=0.5)
    if images > len(x):
        raise ValueError(f"images: only {len(x)} training images are available, got {images}")
    weight_decays, found = jnp.array(WEIGHT_DECAYS), {}
    for rate in (0.0, dropout):
        runs = []
        for seed in range(seeds):
            rows = np.random.default_rng(seed).permutation(len(x))[:images]
            batches = data.batches(images, BATCH_SIZE, epochs=epochs, seed=seed).reshape(-1, BATCH_SIZE)
            sets = (x[rows], x_test, y[rows], y_test)
            runs.append(train(sets, batches, seed, learning_rate, weight_decays, dropout=rate))
        found[rate] = dict(zip(MEASURES, np.stack(runs, axis=1), strict=True))
    return {"dropout": found, "modes": modes(x[:100], dropout)}


def modes(x: jax.Array, dropout: float) -> dict[str, float]:
    """Largest difference between the logits of two passes of the initial network over the same images."""
    model, params = Classifier(dropout), initial_params(0)
    call: Any = lambda key, train: model.apply(
        {"params": params}, x, train=train, rngs={"dropout": jax.random.key(key)}
    )
    gap = lambda train: float(jnp.abs(call(1, train) - call(2, train)).max())
    return {"train": gap(True), "eval": gap(False)}


def report(results: dict[str, Any]) -> str:
    """Formats a table per dropout rate, then the effect of too little, the best and too much decay."""
    weight_decays, shown = WEIGHT_DECAYS, [""]
    lines = [f"{'dropout':10}{'λ':9}" + "".join(f"{name:19}" for name in MEASURES) + "test loss minus λ = 0"]
    for rate, r in results["dropout"].items():
        paired = r["test loss"] - r["test loss"][:, :1]
        for i, k in enumerate(weight_decays):
            cells = (intervals.mean(r[name][:, i], ".4f") for name in MEASURES)
            gap = intervals.mean(paired[:, i], "+.4f")
            lines.append(f"{rate:<10g}{k:<9g}" + "".join(f"{cell:19}" for cell in cells) + gap)
        best = int(r["test loss"].mean(0).argmin())
        shown += [
            f"Dropout {rate:g}: λ = {weight_decays[best]:g} has the lowest test loss of these, against λ = 0 "
            f"{intervals.change(paired[:, best], '+.4f')};",
            f"  λ = {weight_decays[1]:g} changes it by {intervals.change(paired[:, 1], '+.4f')}; "
            f"with λ = {weight_decays[-1]:g} the test accuracy is {r['accuracy'][:, -1].mean():.0%}.",
        ]
    training, evaluation = results["modes"]["train"], results["modes"]["eval"]
    shown.append(
        f"Two passes over the same images differ by {training:.2g} in training, by {evaluation:g} in evaluation."
    )
    return "\n".join(lines + shown)


def plot(results: dict[str, Any], folder: str) -> Any:
    """Plots the change of each measure from λ = 0, paired over seeds, with 95 % intervals."""
    figure, panels = plots.figure(3)
    for axes, name in zip(panels, MEASURES, strict=True):
        for i, (rate, r) in enumerate(results["dropout"].items()):
            at, paired = np.arange(len(WEIGHT_DECAYS)) + 0.1 * i, r[name] - r[name][:, :1]
            plots.bars(axes, at, paired, plots.line(i), label=f"dropout {rate:g}")
        axes.set_xticks(range(len(WEIGHT_DECAYS)), [f"{k:g}" for k in WEIGHT_DECAYS])
        axes.axhline(0, color="grey", linewidth=1)
        axes.set(xlabel="λ", ylabel=f"{name} − {name} at λ = 0")
        axes.set_yscale("symlog", linthresh=0.01)
    panels[1].set_title("paired over seeds, 95 % intervals", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return plots.save(figure, folder, "classifier_784.png")


def main(argv: list[str]) -> None:
    """Audits the optimizer, trains, then prints and plots the results."""
    del argv
    console.plain()
    print(wd.audit(wd.sgdw(_LEARNING_RATE.value, weight_decay=1e-4), initial_params(0)), end="\n\n", flush=True)
    results = run(
        learning_rate=_LEARNING_RATE.value,
        dropout=_DROPOUT.value,
        images=_IMAGES.value,
        epochs=_EPOCHS.value,
        seeds=_SEEDS.value,
        mnist_dir=_MNIST_DIR.value,
    )
    path = plot(results, _OUT.value)
    print(report(results))
    about = f"{_SEEDS.value} seeds ({intervals.MEANING}), {_IMAGES.value} training images, {_EPOCHS.value} epochs"
    print(f"{about}, η = {_LEARNING_RATE.value:g}. Picture: {path}")


if __name__ == "__main__":
    app.run(main)
