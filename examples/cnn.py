"""Takes ~25 s on a laptop CPU and prints what decay and augmentation do to a convolutional network on few images.

A Flax linen CNN with BatchNorm learns scikit-learn's handwritten digits from 200 of them, with AdamW: with decay or
without, on images as they are or shifted by a pixel at random. Training stops when the validation loss has not
fallen for ten epochs; the best epoch is tested. Scales and biases of BatchNorm never decay; its running
averages are not parameters. λ is stored in the optimizer's state, so that one compiled program serves all runs.

    python examples/cnn.py                   # a table, and curves in out/cnn.png
    python examples/cnn.py --images=400      # more training images; --help lists the knobs
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
from flax.training.early_stopping import EarlyStopping
from tqdm import tqdm

import wd_optax as wd

_EPOCHS = flags.DEFINE_integer("epochs", 120, "Maximal number of passes over the training images.", lower_bound=1)
_PATIENCE = flags.DEFINE_integer("patience", 10, "Epochs without a lower validation loss before a run stops.")
_SEEDS = flags.DEFINE_integer("seeds", 8, "Runs of each kind; the seed determines images, weights, batches and shifts.")
_IMAGES = flags.DEFINE_integer(
    "images", 200, "Training images; as many validation images.", lower_bound=32, upper_bound=449
)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "η.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.3, "λ of the runs that decay.")
_OUT = flags.DEFINE_string("out", "out", "Folder for cnn.png; created if missing.")

RUNS = {"neither": (0, 0), "decay": (1, 0), "augmentation": (0, 1), "both": (1, 1)}  # times λ; pixels


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


def optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """AdamW on the kernels alone, which it finds by their names."""
    return wd.adamw(learning_rate, weight_decay=weight_decay)


def loss_fn(model: CNN, params: Any, stats: Any, x: jax.Array, y: jax.Array) -> Any:
    """Mean training cross-entropy, and BatchNorm's updated averages."""
    variables = {"params": params, "batch_stats": stats}
    logits, changed = model.apply(variables, x, True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), changed["batch_stats"]


@functools.partial(jax.jit, static_argnums=0)
def evaluate(model: CNN, state: Any, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Mean cross-entropy and accuracy."""
    logits: Any = model.apply({"params": state["params"], "batch_stats": state["stats"]}, x, False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return {"loss": loss, "accuracy": (logits.argmax(axis=-1) == y).mean()}


def shifted(key: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Shifts each image by up to `most` ≤ 1 pixels in each direction, padding with zeros."""
    starts = 1 + jax.random.randint(key, (len(images), 2), -most, most + 1)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cut = lambda image, start: jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])
    return jax.vmap(cut)(padded, starts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def initial_state(model: CNN, tx: Any, seed: int, weight_decay: float) -> dict[str, Any]:
    """Initial state of a run; its λ is a leaf of the optimizer's state."""
    key = jax.random.key(seed)
    variables = model.init(key, jnp.zeros((1, 8, 8, 1)), False)
    opt_state = optax.tree.set(tx.init(variables["params"]), weight_decay=jnp.float32(weight_decay))
    return {"params": variables["params"], "stats": variables["batch_stats"], "opt_state": opt_state, "key": key}


@functools.partial(jax.jit, static_argnums=(0, 1))
def train_epoch(model: CNN, tx: Any, state: Any, most: int, x: jax.Array, y: jax.Array, rows: jax.Array) -> Any:
    """Trains for an epoch over rows (steps, batch); returns the state and the mean loss."""

    def step(state: Any, rows: jax.Array) -> Any:
        key, now = jax.random.split(state["key"])
        grad = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)
        (loss, stats), grads = grad(model, state["params"], state["stats"], shifted(now, x[rows], most), y[rows])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "stats": stats, "opt_state": opt_state, "key": key}, loss

    state, losses = jax.lax.scan(step, state, rows)
    return state, losses.mean()


def train(model: CNN, tx: Any, state: Any, most: int, x: Any, y: Any, epochs: jax.Array, patience: int) -> Any:
    """Returns the best state, its epoch, and the losses of all epochs; x, y: (training, validation)."""
    stop, curves, best, at = EarlyStopping(min_delta=1e-3, patience=patience), [], state, 0
    for rows in epochs:
        state, loss = train_epoch(model, tx, state, most, x[0], y[0], rows)
        validation = float(evaluate(model, state, x[1], y[1])["loss"])
        curves.append((float(loss), validation))
        stop = stop.update(validation)
        if stop.has_improved:
            best, at = state, len(curves)
        if stop.should_stop:
            break
    return best, at, np.array(curves)


def run(
    *,
    epochs: int,
    patience: int,
    seeds: int,
    images: int,
    learning_rate: float,
    weight_decay: float,
    widths: tuple[int, ...] = (32, 64),
) -> dict[str, dict[str, Any]]:
    """Returns per kind and seed the best epoch, its accuracy in %, loss, ‖w‖ and angle, and all epochs' losses."""
    model, tx = CNN(widths), wd.monitor_decay(optimizer(learning_rate, weight_decay))
    runs: dict[str, Any] = {name: [] for name in RUNS}
    for seed in tqdm(range(seeds), unit="seed", disable=None):
        x_all, x_test, y_all, y_test = data.digits(seed, flat=False, test_size=0.5)
        x, y = (jnp.split(a[: 2 * images], 2) for a in (x_all, y_all))
        batches = data.batches(images, 32, epochs=epochs, seed=seed)
        for name, (decays, most) in RUNS.items():
            state = initial_state(model, tx, seed, decays * weight_decay)
            best, epoch, curves = train(model, tx, state, most, x, y, batches, patience)
            info = wd.read_decay(best["opt_state"])["weight"]
            found = {
                "accuracy": 100 * float(evaluate(model, best, x_test, y_test)["accuracy"]),
                "epoch": epoch,
                "validation": curves[epoch - 1, 1],
                "‖w‖": float(info.weight_norm),
                "angle": float(info.angle),
                "curves": curves,
            }
            runs[name].append(found)
    column = lambda key, all_: [r[key] for r in all_] if key == "curves" else np.array([r[key] for r in all_])
    return {name: {key: column(key, all_) for key in all_[0]} for name, all_ in runs.items()}


def report(runs: dict[str, dict[str, Any]]) -> str:
    """Formats a line per kind, then their differences."""
    lines = [
        f"{'':14}{'test accuracy, %':18}{'validation loss':18}{'best epoch':12}{'‖kernels‖':12}turned per step, rad"
    ]
    for name, r in runs.items():
        accuracy, loss = (intervals.mean(r[k], ".3g") for k in ("accuracy", "validation"))
        rest = f"{r['epoch'].mean():<12.0f}{r['‖w‖'].mean():<12.1f}{r['angle'].mean():.2g}"
        lines.append(f"{name:14}{accuracy:18}{loss:18}{rest}")
    lines.append("")
    pairs = (("decay", "neither"), ("both", "augmentation"), ("augmentation", "neither"), ("both", "decay"))
    for more, less in pairs:
        gap = runs[more]["accuracy"] - runs[less]["accuracy"]
        what = f"{more} against {less}:"
        lines.append(f"{what:30}{intervals.mean(gap, '+.2f')} points, {intervals.verdict(gap)}")
    for more, less in pairs[:2]:
        smaller, faster = (runs[more][key].mean() / runs[less][key].mean() for key in ("‖w‖", "angle"))
        lines.append(
            f"{more}: kernels {smaller:.2f} times as large, turned {faster:.1f} times as far per step as {less}"
        )
    lines.append(
        "BatchNorm cancels the norm of the kernels before it; decay changes how far they turn, not the outputs."
    )
    return "\n".join(lines)


def plot(runs: dict[str, dict[str, Any]], folder: str) -> Any:
    """Plots the validation loss of the first seed's runs, and the test accuracy of all runs."""
    figure, (curve, test) = plots.figure(2)
    for i, (name, r) in enumerate(runs.items()):
        losses, style = r["curves"][0], plots.line(i)
        curve.plot(np.arange(1, len(losses) + 1), losses[:, 1], label=name, **style)
        curve.plot(r["epoch"][0], r["validation"][0], "o", color=style["color"])
        test.plot(np.full(len(r["accuracy"]), i) + 0.15, r["accuracy"], ".", color="grey")
        plots.bars(test, [i], r["accuracy"][:, None], {"color": style["color"]})
    curve.set(
        xlabel="epoch", ylabel="validation cross-entropy (nats)", yscale="log", title="seed 0; dot: its best epoch"
    )
    test.set(ylabel="test accuracy, %", title="mean, 95 % interval; grey: each seed")
    test.set_xticks(range(len(RUNS)), RUNS)
    figure.legend(*curve.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return plots.save(figure, folder, "cnn.png")


def main(argv: list[str]) -> None:
    """Prints which parameters decay, trains, then prints and plots the results."""
    del argv
    console.plain()
    learning_rate, weight_decay = _LEARNING_RATE.value, _WEIGHT_DECAY.value
    tx = optimizer(learning_rate, weight_decay)
    shapes = jax.eval_shape(lambda: initial_state(CNN((32, 64)), tx, 0, weight_decay)["params"])
    print(wd.explain("weights", shapes), end="\n\n", flush=True)
    results = run(
        epochs=_EPOCHS.value,
        patience=_PATIENCE.value,
        seeds=_SEEDS.value,
        images=_IMAGES.value,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
    )
    print(report(results))
    about = f"{_SEEDS.value} seeds ({intervals.MEANING}), η = {learning_rate:g}, λ = {weight_decay:g}"
    print(f"{about}. Picture: {plot(results, _OUT.value)}")


if __name__ == "__main__":
    app.run(main)
