"""Takes ~20 s on a laptop CPU and prints what decay toward zero and toward the pre-trained weights do to fine-tuning.

L2-SP (Li et al. 2018, arXiv 1802.01483) decays toward the weights with which fine-tuning starts, to retain what was
pre-trained. Here an MLP learns scikit-learn's upright digits and is fine-tuned on few rotated ones: on 20 rotated by
20°, half of which it already classifies correctly, and on 100 rotated by 40°, most of which it doesn't. Every λ is run
with both anchors from the same weights, and tested on unseen digits, rotated and upright.

    python examples/finetune_anchor.py            # a table, and accuracies over λ in out/finetune_anchor.png
    python examples/finetune_anchor.py --seeds=8  # --help lists the knobs
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
from scipy.ndimage import rotate

import wd_optax as wd

_STEPS = flags.DEFINE_integer("steps", 300, "Steps of fine-tuning.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 60, "Passes over the upright digits in pre-training.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "η of AdamW, before and after.")
_SEEDS = flags.DEFINE_integer(
    "seeds", 5, "Runs of each kind; a seed gives the split, the weights, the few.", lower_bound=2
)
_OUT = flags.DEFINE_string("out", "out", "Folder for finetune_anchor.png; made if it isn't there.")

TARGETS = {"20°, 20 images": (20, 20), "40°, 100 images": (40, 100)}  # degrees, images to fine-tune on
WEIGHT_DECAYS = (0.0, 0.1, 1.0, 3.0, 10.0)
MEASURES = ("test loss", "accuracy", "upright")  # on turned digits, on turned, on upright


class MLP(nn.Module):
    """64 → 128 → 128 → 10 logits."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, 64) → (n, 10)."""
        for width in (128, 128):
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    logits: Any = MLP().apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Fraction of the images with the right largest logit."""
    logits: Any = MLP().apply({"params": params}, x)
    return (jnp.argmax(logits, axis=-1) == y).mean(dtype=jnp.float32)


def fit(tx: Any, params: Any, opt_state: Any, x: jax.Array, y: jax.Array, batches: jax.Array) -> Any:
    """The parameters after a step per batch of row numbers (steps, batch)."""

    def step(carry: Any, rows: jax.Array) -> Any:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, x[rows], y[rows]), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, opt_state), batches)[0][0]


@jax.jit
def pretrain(seed: Any, learning_rate: Any, x: jax.Array, y: jax.Array, batches: jax.Array) -> Any:
    """The parameters after pre-training with AdamW on upright digits."""
    params, tx = MLP().init(jax.random.key(seed), x[:1])["params"], wd.adamw(learning_rate, weight_decay=0.1)
    return fit(tx, params, tx.init(params), x, y, batches)


@functools.partial(jax.jit, static_argnames="steps")
def finetune(
    params: Any, anchor: Any, learning_rate: Any, few: Any, turned: Any, upright: Any, *, steps: int
) -> jax.Array:
    """Returns `MEASURES` per λ (3, k) after `steps` on the whole of `few`; each set is (x, y)."""
    x, y = few
    tx = wd.adamw(learning_rate, weight_decay=0.0, rule=wd.rules.toward(anchor))

    def one(weight_decay: jax.Array) -> jax.Array:
        opt_state = optax.tree.set(tx.init(params), weight_decay=weight_decay)  # λ is a leaf: one program for all
        end = fit(tx, params, opt_state, x, y, jnp.broadcast_to(jnp.arange(len(x)), (steps, len(x))))
        return jnp.stack([loss_fn(end, *turned), accuracy(end, *turned), accuracy(end, *upright)])

    return jax.vmap(one, out_axes=1)(jnp.array(WEIGHT_DECAYS))


def run(*, steps: int, epochs: int, learning_rate: float, seeds: int) -> dict[str, Any]:
    """Returns per target and anchor each of `MEASURES` as (seeds, λ), and the accuracy before fine-tuning."""
    runs: dict[str, Any] = {name: {"zero": [], "pre-trained": [], "before": []} for name in TARGETS}
    for seed in range(seeds):
        images, images_test, y, y_test = data.digits(seed, flat=False, test_size=0.5)
        turn = lambda x, degrees: jnp.asarray(rotate(x, degrees, (1, 2), reshape=False, order=1)).reshape(-1, 64)
        x, upright = turn(images, 0), (turn(images_test, 0), y_test)
        batches = data.batches(len(x), 64, epochs=epochs, seed=seed).reshape(-1, 64)
        params = pretrain(seed, learning_rate, x, y, batches)
        for name, (degrees, count) in TARGETS.items():
            rows = np.random.default_rng(seed).permutation(len(x))[:count]
            few, turned = (turn(images[rows], degrees), y[rows]), (turn(images_test, degrees), y_test)
            runs[name]["before"].append(accuracy(params, *turned))
            for anchor, tree in {"zero": optax.tree.zeros_like(params), "pre-trained": params}.items():
                runs[name][anchor].append(finetune(params, tree, learning_rate, few, turned, upright, steps=steps))
    return jax.tree.map(np.stack, runs, is_leaf=lambda x: isinstance(x, list))


def report(results: dict[str, Any]) -> str:
    """Formats a table per target, then each anchor's effect at its best λ, paired with λ = 0 over seeds."""
    lines = [f"{'target':17}{'anchor':13}{'λ':6}" + "".join(f"{name:18}" for name in MEASURES)]
    shown = [""]
    for target, r in results.items():
        for anchor in ("zero", "pre-trained"):
            for i, weight_decay in enumerate(WEIGHT_DECAYS):
                cells = (intervals.mean(a, ".3f") for a in r[anchor][:, :, i].T)
                lines.append(
                    f"{target:17}{anchor:13}{weight_decay:<6g}" + "".join(f"{cell:18}" for cell in cells).rstrip()
                )
            best, gaps = gain(r[anchor])
            words = (f"{m} {intervals.change(gap, '+.3f')}" for m, gap in zip(MEASURES, gaps, strict=True))
            shown.append(f"{target}, anchor {anchor}, λ = {WEIGHT_DECAYS[best]:g}: {'; '.join(words)}; against λ = 0.")
        lines.append(f"{target:17}before fine-tuning {intervals.mean(r['before'], '.3f')} of the turned are right")
    return "\n".join(lines + shown)


def gain(measured: np.ndarray) -> tuple[int, np.ndarray]:
    """Index of the λ > 0 with the lowest mean test loss, and its change of each measure from λ = 0 per seed."""
    best = 1 + int(measured[:, 0, 1:].mean(axis=0).argmin())
    return best, (measured[:, :, best] - measured[:, :, 0]).T


def plot(results: dict[str, Any], folder: str) -> Any:
    """Plots each measure over λ, with 95 % intervals; colours are anchors, rows targets."""
    figure, panels = plots.figure(3, 2)
    for row, (target, r) in enumerate(results.items()):
        for column, name in enumerate(MEASURES):
            axes = panels[3 * row + column]
            for i, anchor in enumerate(("zero", "pre-trained")):
                a, at = r[anchor][:, column], np.arange(len(WEIGHT_DECAYS)) + 0.1 * i
                plots.bars(axes, at, a, plots.line(i), label=f"toward {anchor}")
            axes.set_xticks(range(len(WEIGHT_DECAYS)), [f"{weight_decay:g}" for weight_decay in WEIGHT_DECAYS])
            axes.set(title=target, xlabel="λ", ylabel=name)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return plots.save(figure, folder, "finetune_anchor.png")


def main(argv: list[str]) -> None:
    """Audits the optimizer, trains, then prints and plots the results."""
    del argv
    console.plain()
    params = MLP().init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    learning_rate = _LEARNING_RATE.value
    print(
        wd.audit(wd.adamw(learning_rate, weight_decay=1.0, rule=wd.rules.toward("init")), params),
        end="\n\n",
        flush=True,
    )
    results = run(steps=_STEPS.value, epochs=_EPOCHS.value, learning_rate=learning_rate, seeds=_SEEDS.value)
    path = plot(results, _OUT.value)
    print(report(results))
    print("λ is the best of those over 0 on the test digits, for both anchors alike.")
    print(f"{_SEEDS.value} seeds ({intervals.MEANING}), η = {learning_rate:g}, {_STEPS.value} steps. Picture: {path}")


if __name__ == "__main__":
    app.run(main)
