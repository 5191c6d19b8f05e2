"""Takes ~5 min on two quiet cores and prints whether η and λ can be tuned separately: the AdamW paper's Figure 2.

The paper (Loshchilov & Hutter 2019, arXiv 1711.05101) claims that L2 regularisation ties the best λ to the learning
rate η, and decoupled decay doesn't. Here six optimizers train a Flax MLP and a small CNN with GroupNorm on 300 of
scikit-learn's digits, over a grid of (η, λ), with all points and seeds vmapped. As in the paper the
learning rate falls along a cosine (without restarts), SGD has momentum 0.9, and each optimizer has its own range of η
and λ. The paper's λ is multiplied by the schedule but not by η, which is coupling="schedule"; PyTorch's and Optax's
coupling is "lr". A diverged run has an error of 90 %, that of guessing.

    python examples/lr_wd_map.py                                 # tables, and out/lr_wd_map_{mlp,cnn}.png
    python examples/lr_wd_map.py --model=mlp --directory=kept    # resumes a stopped run; --help lists the knobs
"""

import functools
import pathlib
from typing import Any, NamedTuple

import compare
import data
import flax.linen as nn
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app

import wd_optax as wd

SETTING = compare.Setting(
    "lr_wd_map",
    seeds=5,
    model=(("mlp", "cnn"), "Which models."),
    points=(12, "Number of learning rates and of λ."),
    epochs=(100, "Passes over the training images in each run."),
    directory=(None, "Folder of finished runs, to resume from."),
)
IMAGES, BATCH_SIZE = 300, 50
MEANING = """\
ρ over the best fifth of a map: < 0 if λ must fall as η grows (η·λ = const), > 0 if it must rise, 0 if independent."""
WHY = """\
Why: GroupNorm makes the CNN invariant to the norm of its kernels. At equilibrium such kernels turn by √(2c) per step,
c being the fraction removed: √(2ηλ) under "lr" and SGD's L2, √(2λ) under "schedule" for any η. In the MLP the norm
matters: SGD's L2 and "lr" minimise L + λ/2·‖w‖², the same for every η, and "schedule" L + λ/(2η)·‖w‖²."""


class Optimizer(NamedTuple):
    """The optimizer of a panel; the grid's η and λ are multiples of these units."""

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
        """Returns logits."""
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x.reshape(len(x), -1))))


class CNN(nn.Module):
    """(n, 8, 8, 1) → two convolutions, 3×3 with stride 2, each with GroupNorm → (n, 10)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits."""
        for width in (8, 16):
            x = nn.relu(nn.GroupNorm(4)(nn.Dense(width, use_bias=False)(patches(x))))
        return nn.Dense(10)(x.reshape(len(x), -1))


def patches(x: jax.Array) -> jax.Array:
    """The 3×3 patches of every other pixel: Dense on them is nn.Conv(strides=2), but faster under vmap on CPUs."""
    side, x = x.shape[1], jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return jnp.concatenate([x[:, i : i + side : 2, j : j + side : 2] for i in range(3) for j in range(3)], axis=-1)


MODELS = {"mlp": MLP(), "cnn": CNN()}


def make_optimizer(hparams: dict[str, Any], steps: int) -> Any:
    """The optimizer of a grid point, with a cosine learning-rate schedule to zero."""
    make, *units = OPTIMIZERS[hparams["optimizer"]]
    learning_rate, weight_decay = units[0] * hparams["learning_rate"], units[1] * hparams["weight_decay"]
    peak = {"peak_learning_rate": learning_rate} if "schedule" in hparams["optimizer"] else {}
    return make(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=weight_decay, **peak)


def sweep(name: str, *, points: int, seeds: int, epochs: int, directory: str | None = None) -> Any:
    """Sweeps all optimizers of a model × η × λ × seeds; measures the test error (%) after the last epoch."""
    model = MODELS[name]
    x_all, x_test, y_all, y_test = data.digits(flat=False, test_size=0.5)
    batches = data.batches(IMAGES, BATCH_SIZE, epochs=epochs, seed=0).reshape(1, -1, BATCH_SIZE)

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        which, start = jax.random.split(key)
        seen = jax.random.permutation(which, len(x_all))[:IMAGES]
        logits: Any = lambda params, x: model.apply({"params": params}, x)
        losses = lambda params, x, y: optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
        loss_fn = lambda params, rows: losses(params, x_all[seen[rows]], y_all[seen[rows]]).mean()
        params = model.init(start, x_all[:1])["params"]
        params, _ = compare.fit(make_optimizer(hparams, batches.shape[1]), params, loss_fn, batches, lambda _: {})
        return {"error": 100 * (logits(params, x_test).argmax(axis=-1) != y_test).mean(dtype=jnp.float32)}

    factors = {"learning_rate": np.logspace(-1.5, 1.5, points), "weight_decay": np.logspace(-2, 2, points)}
    axes = {"optimizer": list(OPTIMIZERS), **factors}
    return wd.sweep(train, axes, seeds=seeds, directory=directory and pathlib.Path(directory) / name)


def run(*, model: list[str], **settings: Any) -> dict[str, Any]:
    """Returns the `SweepResult` of each model."""
    return {name: sweep(name, **settings) for name in model}


def separability(result: Any) -> dict[str, Any]:
    """Returns ρ and its interval per optimizer."""
    found = result.separability("error", "min")
    return {o: [float(found[k].sel(optimizer=o)) for k in ("correlation", "low", "high")] for o in OPTIMIZERS}


def table(result: Any) -> str:
    """Formats per optimizer ρ, the best point, and the error found by tuning η at the smallest λ, then λ at that η."""
    lines = [["optimizer", "ρ(η, λ)", "95 % interval", "lowest error, %", "at η", "at λ", "η first, then λ"]]
    for name, (rho, low, high) in separability(result).items():
        best, unit = type(result)(result.data.sel(optimizer=[name])).best("error", "min"), OPTIMIZERS[name]
        rates = (f"{best.hyperparams[k] * getattr(unit, k):.2g}" for k in ("learning_rate", "weight_decay"))
        mean = result.data["error"].sel(optimizer=name).mean("seed", skipna=False)
        alone = mean.isel(learning_rate=int(mean.isel(weight_decay=0).argmin("learning_rate"))).min().item()
        lowest = f"{best.mean:.2f} ± {best.standard_error:.2f}"
        lines.append([name, f"{rho:+.2f}", f"[{low:+.2f}, {high:+.2f}]", lowest, *rates, f"{alone:.2f}"])
    return compare.align(lines)


def claim(result: Any, family: str) -> str:
    """Whether ρ of L2 and of decoupled decay confirm the paper's claim."""
    if result.data.sizes["seed"] < intervals.FEWEST:
        return f"no verdict from {result.data.sizes['seed']} seeds"
    found = separability(result)
    (l2, *l2_ends), (schedule, *ends) = (found[family + way] for way in ("+L2", "W, schedule"))
    separate = l2_ends[1] < ends[0] or ends[1] < l2_ends[0]
    shown = "the claim holds" if separate else "as claimed, but the intervals overlap"
    return shown if abs(schedule) < abs(l2) else "the claim does not hold"


def report(results: dict[str, Any]) -> str:
    """A table per model, the verdicts on the paper's claim, and why."""
    lines, claims = [f"{MEANING}\n"], []
    for model, result in results.items():
        lines += [f"{model}: {result.data['error'].size} runs, {result.data.attrs['strategy']}", table(result)]
        found = separability(result)
        for family in ("SGD", "Adam"):
            l2, lr, schedule = (found[family + way][0] for way in ("+L2", "W, lr", "W, schedule"))
            rho = f'{l2:+.2f} with L2, {lr:+.2f} with "lr" and {schedule:+.2f} with "schedule"'
            verdict = claim(result, family)
            lines.append(f"{model}, {family}: ρ is {rho}: {verdict}.")
            claims.append(f"on the {model} with {family} {verdict}")
        lines.append("")
    return "\n".join([*lines, WHY, "", f"Whether η and λ separate under the paper's decay: {'; '.join(claims)}."])


def plot(results: dict[str, Any]) -> dict[str, Any]:
    """Test error over learning rate and weight decay, a panel for each of six optimizers."""
    return {f"lr_wd_map_{name}": heatmaps(result) for name, result in results.items()}


def heatmaps(result: Any) -> Any:
    """The maps of a model, with η and λ in place of multiples of the units."""
    least = float(result.data["error"].mean("seed").min())
    figure = result.heatmap("error", mode="min", vmin=least, vmax=3 * least)
    *panels, scale = figure.axes
    scale.set_ylabel(f"test error, %, mean of {result.data.sizes['seed']} seeds; darkest: {3 * least:.0f} or more")
    scaled = lambda one: (lambda factor: factor * one, lambda value: value / one)
    for axes, (name, (rho, low, high)) in zip(panels, separability(result).items(), strict=True):
        axes.set(xlabel="", ylabel="")
        axes.set_title(f"{name}: ρ = {rho:+.2f} [{low:+.2f}, {high:+.2f}]", fontsize="medium")
        axes.tick_params(which="both", bottom=False, left=False, labelbottom=False, labelleft=False)
        axes.secondary_xaxis("bottom", functions=scaled(OPTIMIZERS[name].learning_rate)).set_xlabel("learning rate η")
        axes.secondary_yaxis("left", functions=scaled(OPTIMIZERS[name].weight_decay)).set_ylabel("weight decay λ")
    return figure


def decays() -> str:
    """The audit of AdamW in the middle of its grid."""
    flags, point = SETTING.values(), {"optimizer": "AdamW, schedule", "learning_rate": 1.0, "weight_decay": 1.0}
    steps, model = flags["epochs"] * (IMAGES // BATCH_SIZE), flags["model"][-1]
    params = jax.jit(MODELS[model].init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    audited = wd.audit(make_optimizer(point, steps), params, horizon=steps)
    return f"{model} under AdamW, schedule, where both multiples are 1:\n{audited}"


main = lambda _: SETTING.show(decays, run, report, plot)

if __name__ == "__main__":
    app.run(main)
