"""
Takes ~12 s on a laptop CPU and prints which parameters decay, then what four optimizers made of the same λ.

L2 regularisation (λ·w added to the gradient) and weight decay (η·λ of the weight removed in each step) are the same
thing under SGD and two different things under Adam, which divides λ·w by √v like any other gradient. Here a Flax MLP
learns scikit-learn's handwritten digits (1797 real images of 8×8 pixels) with SGD+L2, SGDW, Adam+L2 and AdamW, from
the same initial weights, on the same batches; the two runs of a pair share η and λ.

    python examples/digits_mlp.py                              # two tables, and curves in out/digits_mlp.png
    python examples/digits_mlp.py --adam_weight_decay=0.003    # another λ; --help lists the knobs
"""

import math
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import wd_optax as wd

_EPOCHS = flags.DEFINE_integer("epochs", 60, "Passes over the training images in each run.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per step.", lower_bound=1, upper_bound=1347)
_SGD_LEARNING_RATE = flags.DEFINE_float("sgd_learning_rate", 0.1, "η of SGD+L2 and SGDW.")
_SGD_WEIGHT_DECAY = flags.DEFINE_float("sgd_weight_decay", 0.01, "λ of SGD+L2 and SGDW.")
_ADAM_LEARNING_RATE = flags.DEFINE_float("adam_learning_rate", 1e-3, "η of Adam+L2 and AdamW.")
_ADAM_WEIGHT_DECAY = flags.DEFINE_float("adam_weight_decay", 0.05, "λ of Adam+L2 and AdamW.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the split, the initial weights and the batches.")
_OUT = flags.DEFINE_string("out", "out", "Folder for digits_mlp.png; made if it isn't there.")

# Name: the optimizer, then its line: a colour of Okabe & Ito, dashes and width for who can't see colours.
RUNS: dict[str, Any] = {
    "SGD+L2": (wd.sgd_l2, "#56B4E9", "-", 5),
    "SGDW": (wd.sgdw, "black", "--", 1.5),
    "Adam+L2": (wd.adam_l2, "#D55E00", "-", 2),
    "AdamW": (wd.adamw, "#009E73", "-.", 2),
}
PAIRS = {"SGD": ("SGD+L2", "SGDW"), "Adam": ("Adam+L2", "AdamW")}


class MLP(nn.Module):
    """64 pixels → 128 → 128 → 10 logits; smooth, for at a kink of ReLU one rounding error parts two equal runs."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, 64) → (n, 10)."""
        for width in (128, 128):
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def load(seed: int) -> list[jax.Array]:
    """Images (n, 64) in [0, 1] to train and to test on, three quarters and one, then their labels (n,)."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=0.25, stratify=labels, random_state=seed)
    return [jnp.asarray(a, d) for a, d in zip(split, (jnp.float32, jnp.float32, jnp.int32, jnp.int32), strict=True)]


def initial_params(seed: int) -> Any:
    """What every run starts from."""
    return MLP().init(jax.random.key(seed), jnp.zeros((1, 64)))["params"]


def logits(params: Any, x: jax.Array) -> Any:
    """(n, 64) → (n, 10)."""
    return MLP().apply({"params": params}, x)


def weight_norm(params: Any) -> jax.Array:
    """‖w‖ over the weights that decay."""
    return jnp.sqrt(wd.l2_penalty(params, 1.0, "weights", half=False))


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy, without any penalty."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def train(
    tx: optax.GradientTransformation, params: Any, data: tuple[jax.Array, jax.Array], epochs: Iterable[int],
    batch_size: int, seed: int,
) -> tuple[Any, np.ndarray]:  # fmt: skip
    """The trained parameters, and per epoch its mean loss and its last ‖w‖, shape (epochs, 2). Compiles once."""

    @jax.jit
    def epoch(params: Any, opt_state: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        def step(carry: Any, rows: jax.Array) -> Any:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, x[rows], y[rows])
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        steps = len(x) // batch_size
        order = jax.random.permutation(key, len(x))[: steps * batch_size].reshape(steps, batch_size)
        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), order)
        return params, opt_state, jnp.stack([losses.mean(), weight_norm(params)])

    opt_state, curve = tx.init(params), []
    for i in epochs:
        params, opt_state, point = epoch(params, opt_state, *data, jax.random.fold_in(jax.random.key(seed), i))
        curve.append(np.asarray(point))
    return params, np.stack(curve)


def run(
    *, epochs: int, batch_size: int, seed: int, sgd_learning_rate: float, sgd_weight_decay: float,
    adam_learning_rate: float, adam_weight_decay: float,
) -> dict[str, Any]:  # fmt: skip
    """Trains the four: per run its accuracy and curves; per pair the distance of the final weights, ‖w − w'‖/‖w'‖."""
    x, x_test, y, y_test = load(seed)
    start = initial_params(seed)
    rates = {"SGD": (sgd_learning_rate, sgd_weight_decay), "Adam": (adam_learning_rate, adam_weight_decay)}
    runs: dict[str, Any] = {}
    final, apart = {}, {}
    for pair, names in PAIRS.items():
        learning_rate, weight_decay = rates[pair]
        for name in names:
            tx = RUNS[name][0](learning_rate, weight_decay=weight_decay)
            bar = tqdm(range(epochs), desc=f"{name:7}", unit="epoch", disable=None)  # silent without a terminal
            began = time.perf_counter()
            params, curve = train(tx, start, (x, y), bar, batch_size, seed)
            logging.info("%s: %d epochs in %.1f s with compilation", name, epochs, time.perf_counter() - began)
            right = int((jnp.argmax(logits(params, x_test), axis=-1) == y_test).sum())
            final[name] = params
            runs[name] = {"learning_rate": learning_rate, "weight_decay": weight_decay, "right": right}
            runs[name] |= {"loss": curve[:, 0], "weight_norm": curve[:, 1]}
        l2, decay = (final[name] for name in names)
        apart[pair] = float(weight_norm(optax.tree.sub(l2, decay)) / weight_norm(decay))
    steps = np.arange(1, epochs + 1) * (len(x) // batch_size)
    common = {"steps": steps, "tested": len(x_test), "start_norm": float(weight_norm(start))}
    return {"runs": runs, "apart": apart, **common}


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Loss and ‖w‖ of every run over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = {
        "loss": "training cross-entropy (nats, epoch mean)",
        "weight_norm": "‖w‖ of the weights that decay",
    }
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for name, r in results["runs"].items():
            _, color, dashes, width = RUNS[name]
            what = f"{name}, η = {r['learning_rate']:g}, λ = {r['weight_decay']:g}"
            axes.plot(results["steps"], r[key], dashes, color=color, linewidth=width, label=what)
        axes.set(xlabel="step", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    axes.axhline(results["start_norm"], color="grey", linestyle=":", label="‖w‖ at the start")
    axes.set_ylim(bottom=0)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize="small"
    )
    figure.savefig(path, dpi=150)


def table(results: dict[str, Any]) -> str:
    """One line per run."""
    n, start = results["tested"], results["start_norm"]
    lines = [f"{'run':9}{'η':8}{'λ':8}{'test accuracy':22}{'‖w‖ start → end':19}distance within the pair"]
    for pair, names in PAIRS.items():
        for name in names:
            r = results["runs"][name]
            accuracy = f"{r['right'] / n:.1%} ({r['right']} of {n})"
            norm = f"{start:.2f} → {r['weight_norm'][-1]:.2f}"
            settings = f"{r['learning_rate']:<8g}{r['weight_decay']:<8g}"
            lines.append(f"{name:9}{settings}{accuracy:22}{norm:19}{results['apart'][pair]:.2g} of ‖w‖")
    return "\n".join(lines)


def shown(results: dict[str, Any], pair: str) -> str:
    """What one pair of runs showed, in measured numbers."""
    l2, decay = PAIRS[pair]
    n, apart = results["tested"], results["apart"][pair]
    p, q = (results["runs"][name]["right"] / n for name in (l2, decay))
    error = math.sqrt((p * (1 - p) + q * (1 - q)) / n)
    return (
        f"{pair}: {'one trajectory up to rounding' if apart < 1e-4 else 'two different results'}, {apart:.2g} of ‖w‖ "
        f"apart. Accuracy of {decay} minus {l2}: {100 * (q - p):+.1f} ± {100 * error:.1f} points, "
        f"{'beyond' if abs(q - p) > 2 * error else 'within'} two standard errors."
    )


def main(argv: list[str]) -> None:
    """Prints what decays, trains, then prints and plots what came of it."""
    del argv
    jax.config.update("jax_logging_level", "WARNING")  # not which accelerators this machine lacks
    print(wd.explain("weights", initial_params(_SEED.value)), flush=True)
    results = run(
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        sgd_learning_rate=_SGD_LEARNING_RATE.value,
        sgd_weight_decay=_SGD_WEIGHT_DECAY.value,
        adam_learning_rate=_ADAM_LEARNING_RATE.value,
        adam_weight_decay=_ADAM_WEIGHT_DECAY.value,
    )
    path = pathlib.Path(_OUT.value) / "digits_mlp.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot(results, path)
    print("", table(results), "", *(shown(results, pair) for pair in PAIRS), sep="\n")
    print(f"One seed, and no λ was tuned: under Adam equal λ isn't equal strength. Curves: {path}")


if __name__ == "__main__":
    app.run(main)
