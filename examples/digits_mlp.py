"""Takes ~30 s on a laptop CPU and prints which parameters decay, what decay gains, and how L2 and decay differ.

L2 regularisation (λ·w added to the gradient) and weight decay (η·λ of the weight removed in each step) are the same
thing under SGD and two different things under Adam, which divides λ·w by √v like any other gradient. Here a Flax MLP
learns 200 of scikit-learn's handwritten digits, one in five of them with a random label, so that the network can
over-fit: with SGD and Adam, each without decay, with L2 and with decay at the same λ, and with AdamW at a larger λ.
The training loop, in `train`, is the usual one; only the `jax.vmap` over seeds is added.

    python examples/digits_mlp.py                           # tables, and curves in out/digits_mlp.png
    python examples/digits_mlp.py --adamw_weight_decay=0.3  # another λ; --help lists the knobs
"""

from typing import Any

import compare
import data
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app, logging

import wd_optax as wd

SETTING = compare.Setting(
    "digits_mlp",
    seeds=8,
    epochs=(100, "Passes over the training images in each run."),
    images=(200, "Images to train on."),
    label_noise=(0.2, "Fraction of labels drawn at random."),
    sgd_learning_rate=(0.1, "η of SGD, SGD+L2 and SGDW."),
    adam_learning_rate=(1e-3, "η of Adam, Adam+L2 and AdamW."),
    weight_decay=(0.01, "λ of SGD+L2, SGDW, Adam+L2 and AdamW."),
    adamw_weight_decay=(3.0, "λ of a second run of AdamW."),
)
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
COLOURS = ("purple", "sky", "black", "orange", "vermilion", "green", "blue")  # of the runs, in the picture


@jax.jit
def initial_params(seed: Any) -> Any:
    """Initial parameters of a seed, the same for every optimizer."""
    return compare.MLP().init(jax.random.key(seed), jnp.zeros((1, 64)))["params"]


def few_noisy_digits(seed: int, images: int, label_noise: float) -> data.Split:
    """Like `data.digits`, with few training images, some with random labels; half of all images are test images."""
    x, x_test, y, y_test = data.digits(seed, test_size=0.5)
    if images > len(x):
        raise ValueError(f"images: only {len(x)} training images are available, got {images}")
    rng = np.random.default_rng(seed)
    guessed = jnp.asarray(np.where(rng.random(images) < label_noise, rng.integers(10, size=images), y[:images]))
    return x[:images], x_test, guessed.astype(jnp.int32), y_test


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy, and accuracy in %."""
    logits: Any = compare.MLP().apply({"params": params}, x)
    right = (jnp.argmax(logits, axis=-1) == y).mean(dtype=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), 100 * right


@jax.jit
@jax.vmap  # over seeds
def measure(params: Any, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """‖w‖ and the accuracy, one program for all optimizers."""
    return {"‖w‖": wd.weight_norm(params), "accuracy": loss_fn(params, x, y)[1]}


def train(tx: Any, sets: data.Split, batches: jax.Array) -> Any:
    """Trains all seeds on batches of row indices (points, steps, seeds, batch).

    Returns the last parameters and curves (seeds, points).
    """
    x, x_test, y, y_test = sets

    @jax.jit
    @jax.vmap  # over seeds
    def train_step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array, rows: jax.Array) -> Any:
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, x[rows], y[rows])
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = jax.vmap(initial_params)(jnp.arange(len(x)))
    opt_state, curves = jax.vmap(tx.init)(params), []
    for point in batches:
        losses = []
        for rows in point:
            params, opt_state, loss = train_step(params, opt_state, x, y, rows)
            losses.append(loss)
        curves.append({"loss": sum(losses) / len(losses), **measure(params, x_test, y_test)})
    return params, jax.tree.map(lambda *points: np.stack(points, axis=1), *curves)


def run(*, epochs: int, seeds: int, images: int, label_noise: float, weight_decay: float, **rates: float) -> Any:
    """Trains all optimizers. Returns curves per run, and ‖w − w'‖/‖w'‖ of L2 and decay per family.

    The gain is the test accuracy minus that without decay on the same seeds.
    """
    drawn = (few_noisy_digits(seed, images, label_noise) for seed in range(seeds))
    sets = jax.tree.map(lambda *a: jnp.stack(a), *drawn)
    rows = np.stack([data.batches(images, BATCH_SIZE, epochs=epochs, seed=seed) for seed in range(seeds)], axis=2)
    points = max(n for n in range(1, POINTS + 1) if epochs % n == 0)
    batches = jnp.asarray(rows.reshape(points, -1, seeds, BATCH_SIZE))
    norms, runs, apart = jax.vmap(wd.weight_norm), {}, {}
    for family, optimizers in FAMILIES.items():
        learning_rate, ends = rates[f"{family.lower()}_learning_rate"], {}
        for name, optimizer in optimizers.items():
            decay = {family: 0.0, "AdamW, more": rates["adamw_weight_decay"]}.get(name, weight_decay)
            logging.info("%s: %d epochs, %d seeds", name, epochs, seeds)
            ends[name], curves = train(optimizer(learning_rate, weight_decay=decay), sets, batches)
            runs[name] = {"η": learning_rate, "λ": decay, **curves}
            if name != family:
                runs[name]["gain"] = curves["accuracy"] - runs[family]["accuracy"]
        _, l2, decoupled, *_ = ends.values()
        apart[family] = np.asarray(norms(optax.tree.sub(l2, decoupled)) / norms(decoupled))
    start = np.asarray(norms(jax.vmap(initial_params)(jnp.arange(seeds))))
    about = f"{images} images, {label_noise:.0%} of their labels random, {sets[1].shape[1]} test images."
    steps = batches.shape[1] * np.arange(1, points + 1)
    return {"runs": runs, "apart": apart, "steps": steps, "start": start, "about": about}


def report(results: dict[str, Any]) -> str:
    """A line per run, then the distance between L2 and decay per family."""
    rows, apart = [["run", "η", "λ", "test accuracy, %", "‖w‖ start → end", "gain over no decay, points"]], []
    for name, r in results["runs"].items():
        norm = f"{results['start'].mean():.1f} → {r['‖w‖'][:, -1].mean():.1f}"
        gain = intervals.change(r["gain"][:, -1], "+.1f") if "gain" in r else ""
        rows.append([name, f"{r['η']:g}", f"{r['λ']:g}", intervals.mean(r["accuracy"][:, -1], ".1f"), norm, gain])
    for family, (_, l2, decay, *_) in FAMILIES.items():
        weight_decay, most = results["runs"][decay]["λ"], results["apart"][family].max()
        what = "one trajectory up to rounding" if most < 1e-4 else "two different results"
        apart.append(f"{l2} and {decay} at λ = {weight_decay:g} are {what}, at most {most:.2g} of ‖w‖ apart")
    why = "Under Adam the same λ is not the same strength: Adam divides λ·w by √v too."
    return f"{compare.align(rows)}\n\n{results['about']} {why}\n{'; '.join(apart)}."


def plot(results: dict[str, Any]) -> Any:
    """Loss and ‖w‖ of every run over the steps, and the gain in test accuracy by decay, with 95 % intervals."""
    figure, panels = plots.figure(3)
    labels = "training cross-entropy (nats)", "‖w‖ of the weights that decay", "gain in test accuracy (points)"
    for axes, key, label in zip(panels, ("loss", "‖w‖", "gain"), labels, strict=True):
        axes.set(xlabel="step", ylabel=label, yscale="log" if key == "loss" else "linear")
        for colour, (name, r) in zip(COLOURS, results["runs"].items(), strict=True):
            style: Any = {"color": plots.COLOURS[colour], "linestyle": "--" if name in ("SGDW", "AdamW") else "-"}
            style["linewidth"] = 5 if name in ("SGD+L2", "Adam") else 2  # so that the line on top of it shows both
            if key in r:
                plots.band(axes, results["steps"], r[key], f"{name}, η = {r['η']:g}, λ = {r['λ']:g}", style)
    panels[1].axhline(results["start"].mean(), color="grey", linewidth=1, label="‖w‖ at the start")
    panels[1].set_ylim(bottom=0)
    panels[2].set_title("over no decay, on the same seeds", fontsize="medium")
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def decays() -> str:
    """Which parameters decay, and by how much under Adam+L2 and AdamW."""
    flags, params = SETTING.values(), initial_params(0)
    rates = {"learning_rate": flags["adam_learning_rate"], "weight_decay": flags["weight_decay"]}
    audits = (f"What {n} will do:\n{wd.audit(FAMILIES['Adam'][n](**rates), params)}" for n in ("Adam+L2", "AdamW"))
    return "\n\n".join([str(wd.explain("weights", params)), *audits])  # S4: biases don't decay by default


main = lambda _: SETTING.show(decays, run, report, plot)

if __name__ == "__main__":
    app.run(main)
