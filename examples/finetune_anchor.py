"""Takes ~20 s on a laptop CPU and prints what decay toward zero and toward the pre-trained weights do to fine-tuning.

L2-SP (Li et al. 2018, arXiv 1802.01483) decays toward the weights with which fine-tuning starts, to retain what was
pre-trained. Here an MLP learns scikit-learn's upright digits and is fine-tuned on few rotated ones: on 20 rotated by
20°, half of which it already classifies correctly, and on 100 rotated by 40°, most of which it doesn't. Every λ is run
with both anchors from the same weights, and tested on unseen digits, rotated and upright.

    python examples/finetune_anchor.py            # a table, and accuracies over λ in out/finetune_anchor.png
    python examples/finetune_anchor.py --seeds=8  # --help lists the knobs
"""

from typing import Any

import compare
import data
import jax
import jax.numpy as jnp
import optax
import plots
from absl import app
from scipy.ndimage import rotate

import wd_optax as wd


def optimizer(learning_rate: float, weight_decay: Any, anchor: Any) -> optax.GradientTransformation:
    """AdamW that decays toward the anchor: each step takes ηλ·(w − anchor) off w."""
    return wd.adamw(learning_rate, weight_decay=weight_decay, rule=wd.rules.toward(anchor))


SETTING = compare.Setting(
    "finetune_anchor", seeds=8, steps=(300, "Steps."), epochs=(60, "Of pre-training."), learning_rate=(1e-3, "η.")
)
TARGETS = {"20°, 20 images": (20, 20), "40°, 100 images": (40, 100)}  # degrees, images to fine-tune on
ANCHORS = {"zero": 0.0, "pre-trained": 1.0}  # times the pre-trained weights
WEIGHT_DECAYS = [0.0, 0.1, 1.0, 3.0, 10.0]
MEASURES = {"loss": "test loss", "accuracy": "accuracy", "upright": "accuracy, upright digits"}


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    logits: Any = compare.MLP().apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Fraction of the images with the right largest logit."""
    logits: Any = compare.MLP().apply({"params": params}, x)
    return (jnp.argmax(logits, axis=-1) == y).mean(dtype=jnp.float32)


def run(*, steps: int, epochs: int, learning_rate: float, seeds: int) -> Any:
    """`MEASURES` over (target, anchor, λ, seed); "before" is the accuracy before fine-tuning."""
    images, _, y, _ = data.digits(flat=False, test_size=0)
    turned = {t: jnp.asarray(rotate(images, t, (1, 2), reshape=False, order=1)).reshape(-1, 64) for t in (0, 20, 40)}
    half, batch_loss = len(y) // 2, lambda x: lambda params, rows: loss_fn(params, x[rows], y[rows])
    order = lambda key: jax.random.permutation(key, len(y))  # the first half is for training

    @jax.jit
    @jax.vmap
    def pretrain(key: jax.Array) -> Any:
        params = compare.MLP().init(key, turned[0][:1])["params"]
        batches = order(key)[data.batches(half, 64, epochs=epochs, seed=key)]
        return compare.fit(
            wd.adamw(learning_rate, weight_decay=0.1), params, batch_loss(turned[0]), batches, lambda _: {}
        )[0]

    pretrained = pretrain(jax.vmap(jax.random.key)(jnp.arange(seeds)))

    def train(hparams: dict[str, Any], _: jax.Array) -> dict[str, jax.Array]:
        start = jax.tree.map(lambda p: p[hparams["run"]], pretrained)
        rows, (degrees, count) = order(jax.random.key(hparams["run"])), TARGETS[hparams["target"]]
        few, test, x = rows[:count], rows[half:], turned[degrees]

        def measure(params: Any) -> dict[str, jax.Array]:
            loss, right = loss_fn(params, x[test], y[test]), accuracy(params, x[test], y[test])
            return {"loss": loss, "accuracy": right, "upright": accuracy(params, turned[0][test], y[test])}

        anchor = jax.tree.map(lambda p: hparams["anchor"] * p, start)
        tx = optimizer(learning_rate, hparams["weight_decay"], anchor)
        batches = jnp.broadcast_to(few, (1, steps, count))
        return compare.fit(tx, start, batch_loss(x), batches, measure)[1] | {"before": measure(start)["accuracy"]}

    axes: Any = {"target": list(TARGETS), "anchor": ANCHORS, "weight_decay": WEIGHT_DECAYS, "run": range(seeds)}
    return compare.last(compare.sweep(train, 1, **axes)).isel(seed=0, drop=True).rename(run="seed")


def report(results: Any) -> str:
    """A line per kind of run, then each anchor's effect at its best λ > 0, paired with λ = 0 over seeds."""
    lines = [compare.table(results, **dict.fromkeys([*MEASURES, "before"], ".3f")), ""]
    for target in TARGETS:
        for anchor in ANCHORS:
            own = results.sel(target=target, anchor=anchor)
            best = own["loss"].isel(weight_decay=slice(1, None)).mean("seed").idxmin().item()
            words = (f"{text} {compare.change(own[m], weight_decay=best)}" for m, text in MEASURES.items())
            lines.append(f"{target}, anchor {anchor}, λ = {best:g} against 0: {'; '.join(words)}.")
    kept = compare.change(results["upright"].isel(target=0, weight_decay=-1), anchor="pre-trained")
    where = f"At λ = {WEIGHT_DECAYS[-1]:g} ({next(iter(TARGETS))})"
    lines.append(f"{where} the pre-trained anchor in place of zero changes the accuracy on upright digits by {kept}.")
    return "\n".join(lines)


def plot(results: Any) -> Any:
    """Each measure over λ; colours are anchors, rows targets."""
    figure, panels = plots.figure(3, 2)
    for i, panel in enumerate(panels):
        target, (metric, text) = list(TARGETS)[i // 3], list(MEASURES.items())[i % 3]
        compare.draw(panel, results[metric].sel(target=target, drop=True), "weight_decay")
        panel.set(title=target, xlabel="λ", ylabel=f"{text}; 95 % interval")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, title="decay toward")
    return figure


def main(_: list[str]) -> None:
    """Audits the optimizer, trains, then prints and plots the results."""
    start = lambda: compare.MLP().init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    tx = optimizer(SETTING.values()["learning_rate"], 1.0, "init")
    SETTING.show(lambda: wd.audit(tx, jax.eval_shape(start)), run, report, plot)


if __name__ == "__main__":
    app.run(main)
