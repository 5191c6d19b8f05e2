"""Takes ~30 s on a laptop CPU and prints which parameters decay, what decay gains, and how L2 and decay differ.

L2 regularisation (λ·w added to the gradient) and weight decay (η·λ of the weight removed in each step) are the same
thing under SGD and two different things under Adam, which divides λ·w by √v like any other gradient. Here a Flax MLP
learns 200 of scikit-learn's handwritten digits, one in five of them with a random label, so that the network can
over-fit: with SGD and Adam, each without decay, with L2 and with decay at the same λ, and with AdamW at a larger λ.
The seed determines images, labels, initial weights and batches, which are the same for every optimizer.

    python examples/digits_mlp.py                           # tables, and curves in out/digits_mlp.png
    python examples/digits_mlp.py --adamw_weight_decay=0.3  # another λ; --help lists the knobs
"""

import functools
import time
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
from absl import app, flags, logging

import wd_optax as wd

_EPOCHS = flags.DEFINE_integer("epochs", 100, "Passes over the training images in each run.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 8, "Runs of each kind.", lower_bound=2)
_IMAGES = flags.DEFINE_integer("images", 200, "Images to train on.", lower_bound=50, upper_bound=898)
_LABEL_NOISE = flags.DEFINE_float("label_noise", 0.2, "Fraction of labels drawn at random.", 0, 1)
_SGD_LEARNING_RATE = flags.DEFINE_float("sgd_learning_rate", 0.1, "η of SGD, SGD+L2 and SGDW.")
_ADAM_LEARNING_RATE = flags.DEFINE_float("adam_learning_rate", 1e-3, "η of Adam, Adam+L2 and AdamW.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.01, "λ of SGD+L2, SGDW, Adam+L2 and AdamW.")
_ADAMW_WEIGHT_DECAY = flags.DEFINE_float("adamw_weight_decay", 3.0, "λ of a second run of AdamW.")
_OUT = flags.DEFINE_string("out", "out", "Folder for digits_mlp.png; created if missing.")

BATCH_SIZE, POINTS = 50, 20  # images per step; points of a curve, at most
FAMILIES: dict[str, Any] = {  # the first of each family has λ = 0
    "SGD": {  # S3: L2 and decay are one trajectory under SGD
        "SGD": wd.sgdw,
        "SGD+L2": wd.sgd_l2,  # S7: PyTorch's SGD(weight_decay=λ), with momentum=, dampening=, nesterov= too
        "SGDW": wd.sgdw,
    },
    "Adam": {  # S15: L2 and decay are two things under Adam
        "Adam": wd.adamw,
        "Adam+L2": wd.adam_l2,  # S17: PyTorch's Adam(weight_decay=λ)
        "AdamW": wd.adamw,  # S17: PyTorch's AdamW
        "AdamW, more": wd.adamw,  # with the second λ
    },
}
LINES: dict[str, Any] = {  # SGDW is drawn dashed on top of SGD+L2, AdamW on top of Adam
    "SGD": {"color": plots.COLOURS["purple"], "linewidth": 2},
    "SGD+L2": {"color": plots.COLOURS["sky"], "linewidth": 5},
    "SGDW": {"color": plots.COLOURS["black"], "linestyle": "--"},
    "Adam": {"color": plots.COLOURS["orange"], "linewidth": 5},
    "Adam+L2": {"color": plots.COLOURS["vermilion"], "linewidth": 2},
    "AdamW": {"color": plots.COLOURS["green"], "linestyle": "-.", "linewidth": 2},
    "AdamW, more": {"color": plots.COLOURS["blue"], "linewidth": 2},
}


class MLP(nn.Module):
    """64 pixels → 128 → 128 → 10 logits; smooth, because at ReLU's kink rounding makes two equal runs diverge."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, 64) → (n, 10)."""
        for width in (128, 128):
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def initial_params(seed: Any) -> Any:
    """Initial parameters of a seed, the same for every optimizer."""
    return MLP().init(jax.random.key(seed), jnp.zeros((1, 64)))["params"]


def few_noisy_digits(seed: int, images: int, label_noise: float) -> data.Split:
    """Like `data.digits`, with few training images, some with random labels; half of all images are test images."""
    x, x_test, y, y_test = data.digits(seed, test_size=0.5)
    rng = np.random.default_rng(seed)
    guessed = jnp.asarray(np.where(rng.random(images) < label_noise, rng.integers(10, size=images), y[:images]))
    return x[:images], x_test, guessed.astype(jnp.int32), y_test


@functools.partial(jax.jit, static_argnames="optimizer")
def train(
    optimizer: Any, learning_rate: Any, weight_decay: Any, seeds: jax.Array, sets: data.Split, batches: jax.Array
) -> Any:
    """Trains all seeds in parallel in one program; returns final parameters and curves (seeds, points).

    η and λ are shared, all else has a leading seed axis; batches are row indices (seeds, points, steps, batch).
    """
    tx = optimizer(learning_rate, weight_decay=weight_decay)

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits: Any = MLP().apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def one(seed: jax.Array, sets: data.Split, batches: jax.Array) -> Any:
        x, x_test, y, y_test = sets

        def step(carry: Any, rows: jax.Array) -> Any:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, x[rows], y[rows])
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        def point(carry: Any, batches: jax.Array) -> Any:
            carry, losses = jax.lax.scan(step, carry, batches)
            logits: Any = MLP().apply({"params": carry[0]}, x_test)
            accuracy = 100 * (jnp.argmax(logits, axis=-1) == y_test).mean(dtype=jnp.float32)
            return carry, {"loss": losses.mean(), "‖w‖": wd.weight_norm(carry[0]), "accuracy": accuracy}

        params = initial_params(seed)
        (params, _), curves = jax.lax.scan(point, (params, tx.init(params)), batches)
        return params, curves

    return jax.vmap(one)(seeds, sets, batches)


def run(
    *,
    epochs: int,
    seeds: int,
    images: int,
    label_noise: float,
    learning_rates: dict[str, float],
    weight_decay: float,
    adamw_weight_decay: float,
) -> dict[str, Any]:
    """Trains all optimizers. Returns curves per run, and ‖w − w'‖/‖w'‖ of L2 and decay per family."""
    every = range(seeds)
    sets = jax.tree.map(lambda *a: jnp.stack(a), *(few_noisy_digits(seed, images, label_noise) for seed in every))
    rows = np.stack([data.batches(images, BATCH_SIZE, epochs=epochs, seed=seed) for seed in every])
    points = max(n for n in range(1, POINTS + 1) if epochs % n == 0)
    batches = jnp.asarray(rows).reshape(seeds, points, -1, BATCH_SIZE)
    runs, apart = {}, {}
    for family, optimizers in FAMILIES.items():
        ends = {}
        for name, optimizer in optimizers.items():
            began, learning_rate = time.perf_counter(), learning_rates[family]
            decay = {family: 0.0, "AdamW, more": adamw_weight_decay}.get(name, weight_decay)
            trained = train(optimizer, learning_rate, decay, jnp.arange(seeds), sets, batches)
            ends[name], curves = jax.block_until_ready(trained)
            logging.info("%s: %d epochs, %d seeds in %.1f s", name, epochs, seeds, time.perf_counter() - began)
            runs[name] = {"η": learning_rate, "λ": decay, **jax.tree.map(np.asarray, curves)}
        _, l2, decoupled, *_ = ends.values()
        norms = jax.vmap(wd.weight_norm)
        apart[family] = np.asarray(norms(optax.tree.sub(l2, decoupled)) / norms(decoupled))
    steps = batches.shape[2] * np.arange(1, points + 1)
    start = np.asarray(jax.vmap(lambda seed: wd.weight_norm(initial_params(seed)))(jnp.arange(seeds)))
    return {"runs": runs, "apart": apart, "steps": steps, "start": start, "tested": sets[1].shape[1]}


def gains(runs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Test accuracy minus that without decay on the same seeds, for each run with decay: (seeds, points)."""
    names = ((family, name) for family, optimizers in FAMILIES.items() for name in optimizers if name != family)
    return {name: runs[name]["accuracy"] - runs[family]["accuracy"] for family, name in names}


def plot(results: dict[str, Any], folder: str) -> Any:
    """Plots loss and ‖w‖ of every run over the steps, and the gain by decay, with 95 % intervals."""
    figure, panels = plots.figure(3)
    labels = {
        "loss": "training cross-entropy (nats)",
        "‖w‖": "‖w‖ of the weights that decay",
        "gain": "gain in test accuracy (points)",
    }
    runs = {name: r | {"gain": gains(results["runs"]).get(name)} for name, r in results["runs"].items()}
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        axes.set(xlabel="step", ylabel=label, yscale="log" if key == "loss" else "linear")
        for name, r in runs.items():
            if r[key] is not None:
                plots.band(axes, results["steps"], r[key], f"{name}, η = {r['η']:g}, λ = {r['λ']:g}", LINES[name])
    panels[1].axhline(results["start"].mean(), color="grey", linewidth=1, label="‖w‖ at the start")
    panels[1].set_ylim(bottom=0)
    panels[2].set_title("over no decay, on the same seeds", fontsize="medium")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return plots.save(figure, folder, "digits_mlp.png")


def report(results: dict[str, Any]) -> str:
    """Formats a line per run, then the distance between L2 and decay per family."""
    table = [f"{'run':13}{'η':8}{'λ':8}{'test accuracy, %':19}{'‖w‖ start → end':18}gain over no decay, points"]
    shown, gained = [""], gains(results["runs"])
    for family, names in FAMILIES.items():
        for name in names:
            r = results["runs"][name]
            norm = f"{results['start'].mean():.1f} → {r['‖w‖'][:, -1].mean():.1f}"
            accuracy = intervals.mean(r["accuracy"][:, -1], ".1f")
            gain = intervals.change(gained[name][:, -1], "+.1f") if name in gained else ""
            row = f"{name:13}{r['η']:<8g}{r['λ']:<8g}{accuracy:19}{norm:18}{gain}"
            table.append(row.rstrip())
        _, l2, decay, *_ = names
        apart, weight_decay = results["apart"][family].max(), results["runs"][decay]["λ"]
        what = "one trajectory up to rounding" if apart < 1e-4 else "two different results"
        shown.append(
            f"{family}: {l2} and {decay} at λ = {weight_decay:g} are {what}, at most {apart:.2g} of ‖w‖ apart."
        )
    return "\n".join(table + shown)


def main(argv: list[str]) -> None:
    """Prints which parameters decay, trains, then prints and plots the results."""
    del argv
    console.plain()
    start = initial_params(0)
    print(wd.explain("weights", start), end="\n\n", flush=True)  # S4: biases don't decay by default
    learning_rates = {"SGD": _SGD_LEARNING_RATE.value, "Adam": _ADAM_LEARNING_RATE.value}
    for name in ("Adam+L2", "AdamW"):
        tx = FAMILIES["Adam"][name](learning_rates["Adam"], weight_decay=_WEIGHT_DECAY.value)
        print(f"What {name} will do:", wd.audit(tx, start), sep="\n", end="\n\n", flush=True)
    results = run(
        epochs=_EPOCHS.value,
        seeds=_SEEDS.value,
        images=_IMAGES.value,
        label_noise=_LABEL_NOISE.value,
        learning_rates=learning_rates,
        weight_decay=_WEIGHT_DECAY.value,
        adamw_weight_decay=_ADAMW_WEIGHT_DECAY.value,
    )
    path = plot(results, _OUT.value)
    print(report(results))
    about = f"{_IMAGES.value} images, {_LABEL_NOISE.value:.0%} of their labels random, {results['tested']} test images"
    print(f"{_SEEDS.value} seeds, {about}; {intervals.MEANING}.")
    print(f"Under Adam the same λ is not the same strength: Adam divides λ·w by √v too. Curves: {path}")


if __name__ == "__main__":
    app.run(main)
