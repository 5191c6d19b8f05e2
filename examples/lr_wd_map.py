"""Takes ~5 min on two quiet cores and prints whether η and λ can be tuned apart: the AdamW paper's Figure 2.

L2 regularisation ties the best λ to the learning rate η, says the paper (Loshchilov & Hutter 2019, arXiv 1711.05101);
decoupled decay doesn't. Here six optimizers train a Flax MLP and a small CNN with GroupNorm on 300 of scikit-learn's
digits, over a grid of (η, λ), all points and seeds side by side. As in the paper the learning rate falls along a cosine
(without restarts), SGD has momentum 0.9, and each optimizer has its own range of η and λ. The paper's λ is
multiplied by the schedule but not by η, which is coupling="schedule"; PyTorch's and Optax's is "lr". A diverged run
guesses, and has an error of 90 %.

    python examples/lr_wd_map.py                                 # tables, and out/lr_wd_map_{mlp,cnn}.png
    python examples/lr_wd_map.py --model=mlp --directory=kept    # resumes what was stopped; --help lists the knobs
"""

import functools
import os
import pathlib
from typing import Any, NamedTuple

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
from wd_optax import tables

_MODEL = flags.DEFINE_enum("model", None, ["mlp", "cnn"], "One of them; without it, both.")
_POINTS = flags.DEFINE_integer("points", 12, "Learning rates, and as many λ.", lower_bound=2)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs at each point; a seed gives images and weights.", lower_bound=2)
_EPOCHS = flags.DEFINE_integer("epochs", 100, "Passes over the training images in each run.", lower_bound=1)
_DIRECTORY = flags.DEFINE_string("directory", None, "Folder for finished runs, to resume from.")
_OUT = flags.DEFINE_string("out", "out", "Folder for lr_wd_map_mlp.png and lr_wd_map_cnn.png.")

IMAGES, BATCH_SIZE = 300, 50
MEANING = """\
ρ of the best fifth of a map: < 0 where λ must fall as η grows (η·λ = const), > 0 where it must rise, 0 along the axes.
"""
WHY = """\
Why: GroupNorm takes the size of a kernel out of the CNN. Such kernels settle where they turn by √(2c) per step, c being
the share that decays: √(2ηλ) under "lr" and SGD's L2, √(2λ) under "schedule", whatever η is. In the MLP size counts:
SGD's L2 and "lr" seek the minimum of L + λ/2·‖w‖², the same for every η, and "schedule" that of L + λ/(2η)·‖w‖²."""


class Optimizer(NamedTuple):
    """What a panel shows: η and λ are factors times these units."""

    make: Any
    learning_rate: float
    weight_decay: float


sgdw = functools.partial(wd.sgdw, momentum=0.9)
OPTIMIZERS = {
    "SGD+L2": Optimizer(functools.partial(wd.sgd_l2, momentum=0.9), 0.05, 5e-3),
    "SGDW, lr": Optimizer(sgdw, 0.05, 0.05),
    "SGDW, schedule": Optimizer(functools.partial(sgdw, coupling="schedule"), 0.05, 5e-3),
    "Adam+L2": Optimizer(wd.adam_l2, 5e-3, 5e-3),
    "AdamW, lr": Optimizer(wd.adamw, 5e-3, 0.5),
    "AdamW, schedule": Optimizer(functools.partial(wd.adamw, coupling="schedule"), 5e-3, 5e-3),
}


class MLP(nn.Module):
    """(n, 8, 8, 1) → 128 ReLU → (n, 10)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x.reshape(len(x), -1))))


class CNN(nn.Module):
    """(n, 8, 8, 1) → two convolutions, 3×3 with stride 2, each with GroupNorm → (n, 10)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        for width in (8, 16):
            x = nn.relu(nn.GroupNorm(4)(nn.Dense(width, use_bias=False)(patches(x))))
        return nn.Dense(10)(x.reshape(len(x), -1))


def patches(x: jax.Array) -> jax.Array:
    """The 3×3 patches of every other pixel: Dense of them is nn.Conv(strides=2), which under vmap is slower on CPUs."""
    side = x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    shifted = [x[:, i : i + side : 2, j : j + side : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


MODELS = {"mlp": MLP(), "cnn": CNN()}


def loss_fn(model: Any, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model.apply({"params": params}, x), y).mean()


def make_optimizer(hparams: dict[str, Any], steps: int) -> Any:
    """The optimizer of a point, its learning rate along a cosine from its peak to zero."""
    chosen = OPTIMIZERS[hparams["optimizer"]]
    η, λ = chosen.learning_rate * hparams["learning_rate"], chosen.weight_decay * hparams["weight_decay"]
    peak = {"peak_learning_rate": η} if "schedule" in hparams["optimizer"] else {}
    return chosen.make(optax.cosine_decay_schedule(η, steps), weight_decay=λ, **peak)


def sweep(name: str, *, points: int, seeds: int, epochs: int, directory: str | None = None) -> Any:
    """Test error (%) and loss after the last epoch: all optimizers of a model × η × λ × seeds."""
    model = MODELS[name]
    x_all, x_test, y_all, y_test = data.digits(flat=False, test_size=0.5)
    batches = data.batches(IMAGES, BATCH_SIZE, epochs=epochs, seed=0).reshape(-1, BATCH_SIZE)

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        which, start = jax.random.split(key)
        seen = jax.random.permutation(which, len(x_all))[:IMAGES]
        x, y = x_all[seen], y_all[seen]
        params = model.init(start, x[:1])["params"]
        tx = make_optimizer(hparams, len(batches))

        def step(carry: Any, rows: jax.Array) -> Any:
            params, opt_state = carry
            grads = jax.grad(loss_fn, argnums=1)(model, params, x[rows], y[rows])
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        logits: Any = model.apply({"params": params}, x_test)
        return {"error": 100 * (logits.argmax(axis=-1) != y_test).mean(dtype=jnp.float32)}

    axes = {
        "optimizer": list(OPTIMIZERS),
        "learning_rate": np.logspace(-1.5, 1.5, points),
        "weight_decay": np.logspace(-2, 2, points),
    }
    return wd.sweep(train, axes, seeds=seeds, directory=directory and pathlib.Path(directory) / name)


def run(*, models: list[str], points: int, seeds: int, epochs: int, directory: str | None = None) -> dict[str, Any]:
    """Per model its `SweepResult`."""
    return {m: sweep(m, points=points, seeds=seeds, epochs=epochs, directory=directory) for m in models}


def separability(result: Any) -> dict[str, Any]:
    """Per optimizer ρ and its interval's ends."""
    found = result.separability("error", "min")
    return {o: [float(found[k].sel(optimizer=o)) for k in ("correlation", "low", "high")] for o in OPTIMIZERS}


def table(result: Any) -> str:
    """Per optimizer ρ, the best point, and what tuning η at the least λ, then λ at that η, would have found."""
    lines = [["optimizer", "ρ(η, λ)", "95 % interval", "least error, %", "at η", "at λ", "η first, then λ"]]
    for name, (ρ, low, high) in separability(result).items():
        best = type(result)(result.data.sel(optimizer=[name])).best("error", "min")
        mean = result.data["error"].sel(optimizer=name).mean("seed", skipna=False)
        first = int(mean.isel(weight_decay=0).argmin("learning_rate"))
        η, λ = (best.hyperparams[k] * getattr(OPTIMIZERS[name], k) for k in ("learning_rate", "weight_decay"))
        least = f"{best.mean:.2f} ± {best.standard_error:.2f}"
        alone = f"{float(mean.isel(learning_rate=first).min()):.2f}"
        lines.append([name, f"{ρ:+.2f}", f"[{low:+.2f}, {high:+.2f}]", least, f"{η:.2g}", f"{λ:.2g}", alone])
    return tables.align(lines)


def verdict(result: Any, family: str) -> str:
    """Whether the paper's claim shows, from ρ of L2 and of its decoupled decay."""
    found = separability(result)
    (l2, *ends), (like, *_), (ours, *others) = (found[family + way] for way in ("+L2", "W, lr", "W, schedule"))
    apart = ends[1] < others[0] or others[1] < ends[0]
    shown = "the claim shows" if apart else "as claimed, but the intervals overlap"
    claim = shown if abs(ours) < abs(l2) else "the claim does not show"
    if result.data.sizes["seed"] < intervals.FEWEST:
        claim = f"no verdict from {result.data.sizes['seed']} seeds"
    return f'{family}: ρ is {l2:+.2f} with L2, {like:+.2f} with "lr" and {ours:+.2f} with "schedule": {claim}.'


def report(results: dict[str, Any]) -> str:
    """A table per model and what it says of the paper's claim."""
    lines = [MEANING]
    for model, result in results.items():
        lines += [f"{model}: {result.data['error'].size} runs, {result.data.attrs['strategy']}"]
        lines += [table(result), *(f"{model}, {verdict(result, family)}" for family in ("SGD", "Adam")), ""]
    return "\n".join([*lines, WHY])


def label_in_units(axes: Any, unit: Optimizer) -> None:
    """Ticks and labels of η and λ where a panel has factors to its units."""
    axes.set(xlabel="", ylabel="")
    axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
    scaled = lambda one: (lambda factor: factor * one, lambda value: value / one)
    axes.secondary_xaxis("bottom", functions=scaled(unit.learning_rate)).set_xlabel("learning rate η")
    axes.secondary_yaxis("left", functions=scaled(unit.weight_decay)).set_ylabel("weight decay λ")


def plot(result: Any, folder: str, name: str) -> Any:
    """The maps of a model."""
    least = float(result.data["error"].mean("seed").min())
    figure = result.heatmap("error", mode="min", vmin=least, vmax=3 * least)
    *panels, scale = figure.axes
    scale.set_ylabel(f"test error, %, mean of {result.data.sizes['seed']} seeds; darkest: {3 * least:.0f} or more")
    for axes, (optimizer, (ρ, low, high)) in zip(panels, separability(result).items(), strict=True):
        axes.set_title(f"{optimizer}: ρ = {ρ:+.2f} [{low:+.2f}, {high:+.2f}]", fontsize="medium")
        label_in_units(axes, OPTIMIZERS[optimizer])
    return plots.save(figure, folder, f"lr_wd_map_{name}.png")


def main(argv: list[str]) -> None:
    """Prints what decays, trains, then prints and plots what came of it."""
    del argv
    console.plain()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # a device for each core
    models = [_MODEL.value] if _MODEL.value else list(MODELS)
    steps = _EPOCHS.value * (IMAGES // BATCH_SIZE)
    point = {"optimizer": "AdamW, schedule", "learning_rate": 1.0, "weight_decay": 1.0}
    params = MODELS[models[-1]].init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    print(f"{models[-1]} under {point['optimizer']}, where both factors are 1:")
    print(wd.audit(make_optimizer(point, steps), params, horizon=steps), end="\n\n", flush=True)
    settings = {"points": _POINTS.value, "seeds": _SEEDS.value, "epochs": _EPOCHS.value}
    results = run(models=models, directory=_DIRECTORY.value, **settings)
    print(report(results))
    print("Maps:", *(plot(result, _OUT.value, name) for name, result in results.items()))


if __name__ == "__main__":
    app.run(main)
