"""Takes ~12 s on a laptop CPU and prints which parameters decay, then what four optimizers made of the same λ.

L2 regularisation (λ·w added to the gradient) and weight decay (η·λ of the weight removed in each step) are the same
thing under SGD and two different things under Adam, which divides λ·w by √v like any other gradient. Here a Flax MLP
learns scikit-learn's handwritten digits (1797 real images of 8×8 pixels) with SGD+L2, SGDW, Adam+L2 and AdamW, from
the same initial weights, on the same batches; the two runs of a pair share η and λ.

    python examples/digits_mlp.py                              # two tables, and curves in out/digits_mlp.png
    python examples/digits_mlp.py --adam_weight_decay=0.003    # another λ; --help lists the knobs
"""

import math
import time
from typing import Any

import data
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app, flags, logging
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

PAIRS: dict[str, Any] = {
    "SGD": {  # S3: L2 and decay are one trajectory under SGD
        "SGD+L2": wd.sgd_l2,  # S7: PyTorch's SGD(weight_decay=λ), with momentum=, dampening=, nesterov= too
        "SGDW": wd.sgdw,
    },
    "Adam": {  # S15: L2 and decay are two things under Adam
        "Adam+L2": wd.adam_l2,  # S17: PyTorch's Adam(weight_decay=λ)
        "AdamW": wd.adamw,  # S17: PyTorch's AdamW
    },
}
LINES: dict[str, Any] = {  # SGDW runs dashed on top of SGD+L2
    "SGD+L2": {"color": plots.COLOURS["sky"], "linewidth": 5},
    "SGDW": {"color": plots.COLOURS["black"], "linestyle": "--"},
    "Adam+L2": {"color": plots.COLOURS["vermilion"], "linewidth": 2},
    "AdamW": {"color": plots.COLOURS["green"], "linestyle": "-.", "linewidth": 2},
}


class MLP(nn.Module):
    """64 pixels → 128 → 128 → 10 logits; smooth, for at a kink of ReLU one rounding error parts two equal runs."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, 64) → (n, 10)."""
        for width in (128, 128):
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def initial_params(seed: int) -> Any:
    """What every run starts from."""
    return MLP().init(jax.random.key(seed), jnp.zeros((1, 64)))["params"]


def weight_norm(params: Any) -> float:
    """‖w‖ over the weights that decay."""
    return math.sqrt(wd.l2_penalty(params, 1.0, "weights", half=False))


def train(tx: Any, params: Any, x: jax.Array, y: jax.Array, batches: Any) -> Any:
    """The parameters after all epochs, and per epoch its mean loss and what the monitor saw in its last step."""
    tx = wd.monitor(tx)

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits: Any = MLP().apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry: Any, rows: jax.Array) -> Any:
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, x[rows], y[rows])
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    @jax.jit
    def epoch(carry: Any, batches: jax.Array) -> Any:
        carry, losses = jax.lax.scan(step, carry, batches)
        return carry, {"loss": losses.mean(), **wd.read_monitor(carry[1])["weight"]._asdict()}

    carry, curve = (params, tx.init(params)), []
    for i, rows in enumerate(batches, 1):
        carry, now = epoch(carry, rows)
        curve.append(now)
        if i % 20 == 0:
            line = "epoch %d: loss %.4f, ‖w‖ %.2f, %.1f %% of the step is decay, %.5f rad per step"
            logging.info(line, i, now["loss"], now["weight_norm"], 100 * now["decay_share"], now["angle"])
    return carry[0], jax.tree.map(lambda *points: np.array(points), *curve)


def run(*, epochs: int, batch_size: int, seed: int, rates: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Trains the four; `rates` is (η, λ) of each pair. Per run: accuracy and curves; per pair: ‖w − w'‖/‖w'‖."""
    x, x_test, y, y_test = data.digits(seed)
    start, batches = initial_params(seed), data.batches(len(x), batch_size, epochs=epochs, seed=seed)
    runs, apart = {}, {}
    for pair, optimizers in PAIRS.items():
        final = []
        learning_rate, weight_decay = rates[pair]
        for name, optimizer in optimizers.items():
            bar = tqdm(batches, desc=f"{name:7}", unit="epoch", disable=None)  # silent without a terminal
            began = time.perf_counter()
            params, curve = train(optimizer(learning_rate, weight_decay=weight_decay), start, x, y, bar)
            logging.info("%s: %d epochs in %.1f s with compilation", name, epochs, time.perf_counter() - began)
            final.append(params)
            logits: Any = MLP().apply({"params": params}, x_test)
            right = int((jnp.argmax(logits, axis=-1) == y_test).sum())
            runs[name] = {"η": learning_rate, "λ": weight_decay, "right": right, "‖w‖": weight_norm(params)} | curve
        apart[pair] = weight_norm(optax.tree.sub(*final)) / weight_norm(final[1])
    steps = batches.shape[1] * np.arange(1, epochs + 1)
    return {"runs": runs, "apart": apart, "steps": steps, "tested": len(x_test), "start": weight_norm(start)}


def predicted(results: dict[str, Any], name: str) -> Any:
    """Where random gradients and decay would balance, or None where there is no formula or no decay."""
    r, formulas = results["runs"][name], {"SGD+L2": "sgd_l2", "SGDW": "sgdw", "AdamW": "adamw"}
    if name not in formulas or not r["λ"]:
        return None
    return wd.equilibrium(r["η"], weight_decay=r["λ"], optimizer=formulas[name])


def plot(results: dict[str, Any], folder: str) -> Any:
    """Loss, ‖w‖ and the angle turned of every run over the steps, and the angle at which it would settle."""
    figure, panels = plots.figure(3)
    labels = {
        "loss": "training cross-entropy (nats, epoch mean)",
        "weight_norm": "‖w‖ of the weights that decay",
        "angle": "angle turned per step (rad)\nthin: predicted equilibrium",
    }
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        axes.set(xlabel="step", ylabel=label, yscale="linear" if key == "weight_norm" else "log")
        for name, r in results["runs"].items():
            axes.plot(results["steps"], r[key], label=f"{name}, η = {r['η']:g}, λ = {r['λ']:g}", **LINES[name])
            if key == "angle" and (equilibrium := predicted(results, name)):
                axes.axhline(equilibrium.angle, **LINES[name] | {"linewidth": 0.8})
    panels[1].axhline(results["start"], color="grey", linestyle=":", label="‖w‖ at the start")
    panels[1].set_ylim(bottom=0)
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return plots.save(figure, folder, "digits_mlp.png")


def report(results: dict[str, Any]) -> str:
    """A line per run, then what each pair showed, all in measured numbers."""
    n, apart = results["tested"], results["apart"]
    table = [f"{'run':9}{'η':8}{'λ':8}{'test accuracy':22}{'‖w‖ start → end':19}distance within the pair"]
    shown = [""]
    for pair, names in PAIRS.items():
        for name in names:
            r = results["runs"][name]
            accuracy = f"{r['right'] / n:.1%} ({r['right']} of {n})"
            norm = f"{results['start']:.2f} → {r['‖w‖']:.2f}"
            table.append(f"{name:9}{r['η']:<8g}{r['λ']:<8g}{accuracy:22}{norm:19}{apart[pair]:.2g} of ‖w‖")
        p, q = (results["runs"][name]["right"] / n for name in names)
        error = math.sqrt((p * (1 - p) + q * (1 - q)) / n)
        shown.append(
            f"{pair}: {'one trajectory up to rounding' if apart[pair] < 1e-4 else 'two different results'}, "
            f"{apart[pair]:.2g} of ‖w‖ apart. Accuracy of {' minus '.join(reversed(names))}: {100 * (q - p):+.1f} ± "
            f"{100 * error:.1f} points, {'beyond' if abs(q - p) > 2 * error else 'within'} two standard errors."
        )
    for name, r in results["runs"].items():
        if (equilibrium := predicted(results, name)) and name != "SGD+L2":
            share, turn = 100 * r["decay_share"][-1], r["angle"][-1]
            shown.append(
                f"{name}: {share:.1f} % of the last step is decay; w turns {turn:.2g} rad per step. "
                f"Random gradients would settle at {equilibrium.angle:.2g}, {equilibrium.steps:.0f} steps on."
            )
    return "\n".join(table + shown)


def main(argv: list[str]) -> None:
    """Prints what decays, trains, then prints and plots what came of it."""
    del argv
    jax.config.update("jax_logging_level", "WARNING")  # not which accelerators this machine lacks
    start = initial_params(_SEED.value)
    print(wd.explain("weights", start), end="\n\n", flush=True)  # S4: biases don't decay by default
    rates = {
        "SGD": (_SGD_LEARNING_RATE.value, _SGD_WEIGHT_DECAY.value),
        "Adam": (_ADAM_LEARNING_RATE.value, _ADAM_WEIGHT_DECAY.value),
    }
    for name, optimizer in PAIRS["Adam"].items():
        learning_rate, weight_decay = rates["Adam"]
        print(f"What {name} will do:", wd.audit(optimizer(learning_rate, weight_decay=weight_decay), start), sep="\n")
        print(flush=True)
    results = run(epochs=_EPOCHS.value, batch_size=_BATCH_SIZE.value, seed=_SEED.value, rates=rates)
    path = plot(results, _OUT.value)
    print(report(results))
    print(f"One seed, and no λ was tuned: under Adam equal λ isn't equal strength. Curves: {path}")


if __name__ == "__main__":
    app.run(main)
