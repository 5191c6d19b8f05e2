"""A comparison of decay rules: each with its own best λ, on the same tasks, paired with AdamW seed by seed.

A small network (64-64-64-10, LayerNorm before each ReLU) is trained by Adam with a cosine learning rate on
scikit-learn's digits: "noise" has 600 images of which 40 % have a random label, "few" has 80 images. Every rule gets a
grid of λ (or of its own strength) by `wd.sweep`; the strength with the lowest mean loss on validation images is chosen,
and the loss and accuracy on other images are reported, with Student's 95 % interval of the difference to AdamW's.

    python benchmarks/rules.py                    # takes ~6 minutes on two cores
    python benchmarks/rules.py --seeds=3 --points=3 --steps=60 --tasks=few
"""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

import wd_optax as wd
from wd_optax import tables

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import console
import data
import intervals

_SEEDS = flags.DEFINE_integer("seeds", 8, "Runs of each point; the seed determines images and weights.", lower_bound=2)
_POINTS = flags.DEFINE_integer("points", 7, "Strengths per rule.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 1000, "Steps of each run.", lower_bound=1)
_TASKS = flags.DEFINE_list("tasks", ["noise", "few"], "Which tasks.")

ETA, BATCH_SIZE, WEIGHTS = 5e-3, 40, [(r"kernel", 1.0)]
TASKS = {"noise": (600, 0.4), "few": (80, 0.0)}  # images, share of random labels
Make = Callable[[Any, Any], optax.GradientTransformation]  # (learning rate, strength) -> optimizer


class Rule(NamedTuple):
    """One row: an optimizer, and the least and largest strength of its grid."""

    make: Make
    least: float
    most: float


def adamw(**options: Any) -> Make:
    """AdamW with another rule, penalty or coupling."""
    return lambda lr, strength: wd.adamw(lr, weight_decay=strength, mask=WEIGHTS, **options)


def ruled(rule: Callable[[Any], Any], weight_decay: float = 1.0) -> Make:
    """AdamW at one λ, where the strength is the rule's own."""
    return lambda lr, strength: wd.adamw(lr, weight_decay=weight_decay, mask=WEIGHTS, rule=rule(strength))


def hyperball(lr: Any, strength: Any) -> optax.GradientTransformation:
    """Adam on spheres; the strength scales the learning rate of the step as a share of the norm."""
    return wd.hyperball(optax.scale_by_adam(), lambda t: strength * lr(t), mask=WEIGHTS)


peak = {"peak_learning_rate": ETA}
RULES: dict[str, Rule] = {
    "AdamW": Rule(adamw(), 0.03, 30),
    "no decay": Rule(lambda lr, strength: wd.adamw(lr, weight_decay=0 * strength), 0.5, 1),
    "AdamC": Rule(
        adamw(coupling=[("Dense_2/kernel", "lr"), ("kernel", "corrected"), (".*", "lr")], **peak), 0.03, 30
    ),
    "AdamW, schedule": Rule(adamw(coupling="schedule", **peak), 0.03 * ETA, 30 * ETA),
    "L2 in the gradient": Rule(lambda lr, s: wd.adam_l2(lr, weight_decay=s, mask=WEIGHTS), 1e-3, 1.0),
    "cautious": Rule(adamw(rule=wd.rules.cautious()), 0.3, 100),
    "toward init": Rule(adamw(rule=wd.rules.toward("init")), 0.03, 30),
    "L2-Init": Rule(
        lambda lr, s: wd.coupled(
            optax.scale_by_adam(), lr, weight_decay=s, mask=WEIGHTS, rule=wd.rules.toward("init")
        ), 1e-3, 1.0,
    ),
    "toward a norm": Rule(lambda lr, s: adamw(rule=wd.rules.toward_norm("init", ratio=s))(lr, 3.0), 1e-3, 1),
    "CPR": Rule(lambda lr, s: adamw(rule=wd.rules.constrained("init", ratio=s, per_entry=True))(lr, 30.0), 1e-3, 10),
    "Hyperball": Rule(hyperball, 0.03, 3),
    "Huber": Rule(adamw(rule=optax.clip(0.05)), 0.03, 30),
    "decoupled L1": Rule(adamw(rule=wd.rules.l1()), 3e-3, 3),
    "L2 in Adam's metric": Rule(adamw(penalty="l2"), 1e-3, 1.0),
    "L1 in Adam's metric": Rule(adamw(penalty="l1"), 3e-4, 0.3),
    "group in Adam's metric": Rule(adamw(penalty=wd.prox.group(axis=0)), 3e-4, 0.3),
}  # fmt: skip


class Network(nn.Module):
    """(n, 64) → (n, 10)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits."""
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(64, use_bias=False)(x)))
        return nn.Dense(10)(x)


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    logits: Any = Network().apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def sweep(task: str, rule: Rule, *, seeds: int, points: int, steps: int) -> Any:
    """Trains a rule at every strength and seed; the losses, the accuracy and the share of zeros at the end."""
    images, noise = TASKS[task]
    x_all, x_held, y_all, y_held = data.digits(test_size=0.5)
    half = len(x_held) // 2

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        which, flip, label, start, order = jax.random.split(key, 5)
        seen = jax.random.permutation(which, len(x_all))[:images]
        x, y = x_all[seen], y_all[seen]
        random = jax.random.randint(label, y.shape, 0, 10, y.dtype)
        y = jnp.where(jax.random.uniform(flip, y.shape) < noise, random, y)
        params = Network().init(start, x[:1])["params"]
        tx = rule.make(optax.cosine_decay_schedule(ETA, steps), hparams["strength"])
        batches = jax.random.randint(order, (steps, BATCH_SIZE), 0, images)

        def step(carry: Any, rows: jax.Array) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(loss_fn)(params, x[rows], y[rows]), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        logits: Any = Network().apply({"params": params}, x_held[half:])
        kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
        return {
            "validation": loss_fn(params, x_held[:half], y_held[:half]),
            "loss": loss_fn(params, x_held[half:], y_held[half:]),
            "accuracy": 100 * (logits.argmax(-1) == y_held[half:]).mean(dtype=jnp.float32),
            "zeros": 100 * sum((p == 0).sum() for p in kernels) / sum(p.size for p in kernels),
        }

    return wd.sweep(train, {"strength": np.geomspace(rule.least, rule.most, points)}, seeds=seeds, progress=False)


def best(result: Any) -> Any:
    """The runs at the strength with the lowest mean validation loss; one that diverged for a seed isn't chosen."""
    mean = result.data["validation"].mean("seed", skipna=False)
    return result.data.isel(strength=int(np.argmin(mean.fillna(np.inf).values)))


def compare(found: dict[str, Any], points: Any) -> str:
    """A table of all rules, best first."""
    reference = found["AdamW"]["loss"].values
    lines = [["rule", "strength", "test loss", "less AdamW's", "accuracy, %", "zeros, %"]]
    for name in sorted(found, key=lambda name: float(found[name]["loss"].mean())):
        runs = found[name]
        gaps = runs["loss"].values - reference
        edge = "" if points[name][0] < float(runs["strength"]) < points[name][-1] or name == "no decay" else ", edge"
        lines.append([
            name,
            "" if name == "no decay" else f"{float(runs['strength']):.2g}{edge}",
            intervals.mean(runs["loss"].values, ".3f"),
            "" if name == "AdamW" else intervals.change(gaps, "+.3f"),
            f"{float(runs['accuracy'].mean()):.1f}",
            f"{float(runs['zeros'].mean()):.0f}",
        ])  # fmt: skip
    return tables.align(lines)


def main(argv: list[str]) -> None:
    """Runs every rule on every task."""
    del argv
    console.plain()
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    for task in _TASKS.value:
        found, points = {}, {}
        for name, rule in RULES.items():
            result = sweep(task, rule, seeds=_SEEDS.value, points=_POINTS.value, steps=_STEPS.value)
            found[name], points[name] = best(result), result.data["strength"].values
        print(f"{task}: {TASKS[task][0]} images, {TASKS[task][1]:.0%} of the labels random; {intervals.MEANING}")
        print(compare(found, points), "\n", flush=True)


if __name__ == "__main__":
    app.run(main)
