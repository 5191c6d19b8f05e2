"""Takes ~5 min on two quiet cores and prints how the best λ changes with width, dataset and batch, beside the papers.

Papers disagree about which λ a wider network, a larger dataset or another batch needs. Here an MLP learns
scikit-learn's digits, two fifths of them with a random label, with AdamW in muP: the η of hidden weights is ∝ 1/width,
the last layer starts at 0 and doesn't decay, and the first layer has the ηλ of the hidden ones. λ is swept at each
width, each size of the dataset and each batch (at equal epochs), all seeds and λ vmapped; a small character transformer
repeats the widths. `result.optimum` reads off λ* and its exponent with an interval; `wd.transfer` says what each rule
predicts for the very same runs.

    python examples/transfer.py                                # tables, and out/transfer_{width,examples,batch}.png
    python examples/transfer.py --task=width --seeds=20        # one of them, more precisely; --help lists the knobs
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import compare
import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app

import wd_optax as wd

SETTING = compare.Setting(
    "transfer",
    seeds=5,
    task=(("width", "examples", "batch", "text"), "Which of them."),
    points=(11, "Number of λ, at least 5."),
    epochs=(60, "Passes over the training images."),
    directory=(None, "Folder of finished runs, to resume from."),
)
BASE = {"width": 64, "examples": 400, "batch": 32}
ETA, NOISE, CLASSES = 1e-2, 0.4, 10  # η at the base width; the share of random labels
LENGTH, CHARACTERS, HEADS = 32, 128, 4  # of the transformer


class Task(NamedTuple):
    """An axis, what varies along it, and the λ to try."""

    over: str
    values: tuple[int, ...]
    decays: tuple[float, float]  # decades
    train: Callable[..., Any]


def dense(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Normal with variance 1/rows."""
    return jax.random.normal(key, (rows, columns)) / rows**0.5


def mlp(key: jax.Array, width: int) -> dict[str, jax.Array]:
    """64 → width → width → 10 in muP: the last layer starts at 0."""
    first, hidden = jax.random.split(key)
    return {
        "first": dense(first, 64, width),
        "hidden": dense(hidden, width, width),
        "last": jnp.zeros((width, CLASSES)),
    }


def mlp_logits(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Logits of images (n, 64); the last layer is multiplied by base width/width, as muP has it."""
    h = scaled_relu(scaled_relu(x @ params["first"]) @ params["hidden"])
    return h @ params["last"] * (BASE["width"] / len(params["last"]))


def scaled_relu(x: jax.Array) -> jax.Array:
    """√2·max(x, 0), which keeps the mean square of a normal x."""
    return jnp.maximum(x, 0) * 2**0.5


def transformer(key: jax.Array, width: int) -> dict[str, jax.Array]:
    """One causal block, its output not tied to the embedding; hidden weights are those that map width to width."""
    keys = jax.random.split(key, 5)
    return {
        "tokens": jax.random.normal(keys[0], (CHARACTERS, width)),
        "positions": jax.random.normal(keys[1], (LENGTH, width)),
        "hidden_qkv": dense(keys[2], width, 3 * width),
        "hidden_up": dense(keys[3], width, 4 * width),
        "hidden_down": dense(keys[4], 4 * width, width),
        "last": jnp.zeros((width, CHARACTERS)),
    }


def transformer_logits(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Characters (n, length) → logits (n, length, 128); attention is divided by the width of a head, as muP has it."""
    width = params["tokens"].shape[1]
    norm = lambda h: h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-6)
    h = params["tokens"][x] + params["positions"][None]
    q, k, v = (
        a.reshape(*x.shape, HEADS, -1).swapaxes(1, 2) for a in jnp.split(norm(h) @ params["hidden_qkv"], 3, axis=-1)
    )
    scores = q @ k.swapaxes(-1, -2) / (width / HEADS)
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    mixed = jax.nn.softmax(jnp.where(causal[None, None], scores, -1e9)) @ v
    h = h + mixed.swapaxes(1, 2).reshape(*x.shape, width)
    h = h + jax.nn.gelu(norm(h) @ params["hidden_up"]) @ params["hidden_down"]
    return norm(h) @ params["last"] * (BASE["width"] / width)


def optimizer(width: int, weight_decay: Any, steps: int, params: Any) -> optax.GradientTransformation:
    """AdamW for hidden weights, at η·base/width and λ, and for a first layer, at η and equal ηλ; Adam for the rest."""
    schedule, ratio = optax.cosine_decay_schedule(1.0, steps), BASE["width"] / width
    groups = {
        "hidden": wd.adamw(lambda t: ETA * ratio * schedule(t), weight_decay=weight_decay, mask=None),
        "first": wd.adamw(lambda t: ETA * schedule(t), weight_decay=weight_decay * ratio, mask=None),
        "rest": optax.adam(lambda t: ETA * schedule(t)),
    }
    labels = {name: name.split("_")[0] if name.split("_")[0] in groups else "rest" for name in params}
    used = {name: tx for name, tx in groups.items() if name in labels.values()}
    return wd.partition(used, lambda p: labels[p.path])


def test_loss(logits: Any, params: Any, tx: Any, train: Any, test: Any, batches: jax.Array) -> dict[str, jax.Array]:
    """Trains and returns the test loss."""
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = lambda params, x, y: cross_entropy(logits(params, x), y).mean()
    on = lambda params, rows: loss(params, train[0][rows], train[1][rows])
    return {"loss": loss(compare.fit(tx, params, on, batches[None], lambda _: {})[0], *test)}


def train_digits(hparams: dict[str, Any], key: jax.Array, *, epochs: int) -> dict[str, jax.Array]:
    """An MLP on `examples` of the digits, two fifths of their labels random; the test labels are right."""
    size = {name: int(hparams.get(name, value)) for name, value in BASE.items()}
    x_all, x_test, y_all, y_test = data.digits(test_size=0.5)
    which, wrong, labels, start, order = jax.random.split(key, 5)
    seen = jax.random.permutation(which, len(x_all))[: size["examples"]]
    noisy = jax.random.bernoulli(wrong, NOISE, (len(x_all),))
    y = jnp.where(noisy, jax.random.randint(labels, (len(x_all),), 0, CLASSES), y_all)[seen]
    batches = data.batches(size["examples"], size["batch"], epochs=epochs, seed=order).reshape(-1, size["batch"])
    params = mlp(start, size["width"])
    tx = optimizer(size["width"], hparams["weight_decay"], len(batches), params)
    return test_loss(mlp_logits, params, tx, (x_all[seen], y), (x_test, y_test), batches)


def train_text(hparams: dict[str, Any], key: jax.Array, *, epochs: int) -> dict[str, jax.Array]:
    """A transformer on 12 kB of Python's own source, for a third of the epochs; it is tested on what follows."""
    width = int(hparams["width"])
    x, x_test, y, y_test = data.text("argparse", 16_000, length=LENGTH, test_size=0.25)
    start, order = jax.random.split(key)
    batches = data.batches(len(x), 16, epochs=max(epochs // 3, 1), seed=order).reshape(-1, 16)
    params = transformer(start, width)
    tx = optimizer(width, hparams["weight_decay"], len(batches), params)
    return test_loss(transformer_logits, params, tx, (x, y), (x_test, y_test), batches)


TASKS = {
    "width": Task("width", (32, 64, 128, 256), (-1.5, 2.0), train_digits),
    "examples": Task("examples", (100, 200, 400, 800), (-1.5, 2.0), train_digits),
    "batch": Task("batch", (16, 32, 64, 128), (-1.5, 2.0), train_digits),
    "text": Task("width", (16, 32, 64), (-1.5, 2.0), train_text),
}


def sweep(name: str, *, points: int, seeds: int, epochs: int, directory: str | None = None) -> Any:
    """Sweeps λ at each value of a task's axis, and reads off the optima."""
    task = TASKS[name]
    axes = {
        task.over: {str(value): value for value in task.values},  # static: each has a program of its own
        "weight_decay": np.logspace(*task.decays, points),
    }
    train = functools.partial(task.train, epochs=epochs)
    result = wd.sweep(train, axes, seeds=seeds, directory=directory and pathlib.Path(directory) / name)
    return result.optimum("loss", of="weight_decay", over=task.over, mode="min")


def run(*, task: list[str], epochs: int, **settings: Any) -> dict[str, Any]:
    """Returns epochs, and per task the optima of `sweep`."""
    return {"epochs": epochs, "optima": {name: sweep(name, epochs=epochs, **settings) for name in task}}


def run_at(value: int, over: str, epochs: int) -> wd.Run:
    """The run at one value of an axis, to transfer from or to."""
    size = BASE | {over: value}
    steps = epochs * (size["examples"] // size["batch"])
    cosine = 1 + np.cos(np.pi * np.arange(steps) / steps)
    settings: Any = size | {"steps": steps, "parameters": size["width"] ** 2, "schedule": cosine}
    return wd.Run(**settings)


def claims(name: str, epochs: int) -> dict[str, float]:
    """The exponent that each published rule has over a task's axis, from the transfer between its ends."""
    task = TASKS[name]
    low, high = task.values[0], task.values[-1]
    eta = lambda value: ETA * BASE["width"] / (value if task.over == "width" else BASE["width"])
    found = wd.transfer(
        source=run_at(low, task.over, epochs),
        target=run_at(high, task.over, epochs).replace(learning_rate=eta(high)),
        learning_rate=eta(low),
        weight_decay=1e-3,  # so small that the rates add up
    )
    return {row.rule.name: math.log(row.weight_decay / 1e-3) / math.log(high / low) for row in found.rows}


def report(results: dict[str, Any]) -> str:
    """Per task the optima, the measured exponent, and the rules inside its interval."""
    parts, ends = [], []
    for name, found in results["optima"].items():
        (low, high), lines, inside = found.interval, [["rule", "exponent", "inside the interval"]], []
        for rule, exponent in claims(name, results["epochs"]).items():
            yes = low <= exponent <= high
            lines.append([rule, f"{exponent:+.2f}", "-" if not math.isfinite(low) else "yes" if yes else "no"])
            inside += [rule] if yes else []
        parts.append(f"{name}:\n{found}\n{compare.align(lines)}\n")
        law = f"{found.exponent:+.2f} ({', '.join(inside) or 'none'})" if math.isfinite(low) else "no law"
        ends.append(f"{name} {law}")
    parts.append("Exponents are at the η of muP over width, at equal η over examples and batch, at equal epochs.\n")
    return "\n".join(
        [*parts, f"Measured exponents of the best λ, and the rules inside their intervals: {'; '.join(ends)}."]
    )


def plot(results: dict[str, Any]) -> dict[str, Any]:
    """Test loss over λ at each size, and the best λ over the size with its power law."""
    return {f"transfer_{name}": found.plot() for name, found in results["optima"].items()}


def decays() -> str:
    """The audit of the widest network."""
    params = mlp(jax.random.key(0), 256)
    return f"The widest network at λ = 1:\n{wd.audit(optimizer(256, 1.0, 500, params), params, horizon=500)}"


def main(argv: list[str]) -> None:
    """Audits the optimizer, sweeps, then prints and plots the results."""
    del argv
    SETTING.show(decays, run, report, plot)


if __name__ == "__main__":
    app.run(main)
