"""Takes ~20 s on a laptop CPU and shows norm, rotation and decay's share over a run, live and as a picture.

Three figures show what decay does while a model trains. ‖w‖ settles where decay and gradients balance; before a
normalisation it only grows without decay. The angle that a step turns the weights by is the learning rate that matters
there: without decay it falls, with decay it settles, too. Decay's share of the step says whether decay is felt at all.
`wd.measure_decay` returns them in the steps that log and costs the others nothing; `wd.equilibrium` predicts where they
settle. A Flax MLP with layer normalisation learns scikit-learn's digits, a fifth of them mislabelled, at three λ.

    python examples/watch.py                       # a bar per λ, a table, out/watch.png and out/watch.jsonl
    python examples/watch.py --weight_decay=0,10   # other λ; --help lists the knobs
"""

import json
import pathlib
from typing import Any

import compare
import console
import data
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
import tqdm
from absl import app, flags

import wd_optax as wd

_STEPS = flags.DEFINE_integer("steps", 3000, "Steps of each run.", lower_bound=1)
_EVERY = flags.DEFINE_integer("every", 20, "Steps between two measurements.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "η.")
_WEIGHT_DECAY = flags.DEFINE_list("weight_decay", ["0", "0.3", "3"], "λ of each run.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of images, labels, initial weights and batches.")
_OUT = flags.DEFINE_string("out", "out", "Folder for watch.png and watch.jsonl; created if missing.")

GROUPS = [("hidden", "Dense"), ("head", "head/kernel")]  # names of groups, and what the paths of their leaves contain
FIGURES = {"weight_norm": "‖w‖", "angle": "angle per step (rad)", "decay_share": "decay's share of the step"}


class MLP(nn.Module):
    """64 pixels → 128 → 128 → 10 logits; the norms make the hidden kernels scale-invariant."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, 64) → (n, 10)."""
        for _ in range(2):
            x = nn.gelu(nn.LayerNorm()(nn.Dense(128, use_bias=False)(x)))
        return nn.Dense(10, name="head")(x)


def initial_params(seed: int) -> Any:
    """The same for all λ."""
    return MLP().init(jax.random.key(seed), jnp.ones((1, 64)))["params"]


def optimizer(learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """AdamW whose kernels decay."""
    return wd.adamw(learning_rate, weight_decay=weight_decay, mask="weights")


def run(*, steps: int, every: int, learning_rate: float, weight_decay: list[float], seed: int, log: Any) -> Any:
    """Trains with each λ, shows a bar, and writes a line of JSON per measurement; returns the measurements per λ."""
    x, _, y, _ = data.digits(seed)
    y = jnp.where(jax.random.bernoulli(jax.random.key(seed), 0.2, y.shape), y[::-1], y)  # labels of other images
    batches = data.batches(len(x), 64, epochs=1 + steps // (len(x) // 64), seed=seed).reshape(-1, 64)

    def gradient(params: Any, rows: jax.Array) -> Any:
        logits: Any = lambda params: MLP().apply({"params": params}, x[rows])
        return jax.grad(lambda p: optax.softmax_cross_entropy_with_integer_labels(logits(p), y[rows]).mean())(params)

    def train(decay: float) -> list[dict[str, float]]:
        tx = optimizer(learning_rate, decay)

        @jax.jit
        def measure(params: Any, state: Any, rows: jax.Array) -> Any:
            return wd.measure_decay(tx, gradient(params, rows), state, params, groups=GROUPS)

        @jax.jit
        def train_step(params: Any, state: Any, rows: jax.Array) -> Any:
            updates, state = tx.update(gradient(params, rows), state, params)
            return optax.apply_updates(params, updates), state

        params, found = initial_params(seed), []
        state = tx.init(params)
        bar = tqdm.tqdm(batches[:steps], desc=f"λ = {decay:g}", mininterval=0.5)
        for step, rows in enumerate(bar):
            if step % every == 0:  # before the step, with its arguments
                seen = wd.read_decay(measure(params, state, rows), flat=True)
                print(json.dumps({"weight_decay": decay, "step": step, **seen}), file=log)
                bar.set_postfix({key: f"{seen[f'hidden/{key}']:.3g}" for key in FIGURES}, refresh=False)
                found.append({"step": step, **seen})
            params, state = train_step(params, state, rows)
        return found

    return {decay: train(decay) for decay in weight_decay}


def report(found: dict[float, Any], learning_rate: float) -> str:
    """A line per λ: means over the last tenth of the run, of the hidden kernels, and where they should settle."""
    rows, ends = [["λ", "‖w‖ start → end", "settles at", "angle, rad", "settles at", "share"]], []
    for decay, measured in found.items():
        last, first = measured[-max(1, len(measured) // 10) :], measured[0]
        norm, angle, share = (np.mean([seen[f"hidden/{key}"] for seen in last]) for key in FIGURES)
        cells = ["-", f"{angle:.4f}", "-"]
        if decay:
            to = wd.equilibrium(learning_rate, weight_decay=decay, size=first["hidden/size"])
            cells = [f"{to.norm:.1f}", f"{angle:.4f}", f"{to.angle:.4f}"]
            ends.append(f"{norm / to.norm:.2f} and {angle / to.angle:.2f} at λ = {decay:g}")
        rows.append([f"{decay:g}", f"{first['hidden/weight_norm']:.1f} → {norm:.1f}", *cells, f"{share:.1%}"])
    about = f"η = {learning_rate:g}, AdamW; means of the last tenth of the run, of the hidden kernels."
    claim = f"Norm and angle end at these multiples of what wd.equilibrium predicts: {', '.join(ends) or '-'}."
    return f"{compare.align(rows)}\n{about}\n\n{claim}"


def plot(found: dict[float, Any], folder: str) -> Any:
    """Norm, angle per step and share of decay of the hidden kernels over the steps, a line per λ."""
    figure, panels = plots.figure(len(FIGURES))
    for axes, (key, label) in zip(panels, FIGURES.items(), strict=True):
        for i, (decay, measured) in enumerate(found.items()):
            values = [seen[f"hidden/{key}"] for seen in measured]
            axes.plot([seen["step"] for seen in measured], values, label=f"λ = {decay:g}", **plots.line(i))
        axes.set(xlabel="step", ylabel=label)
    panels[0].set_title("hidden kernels", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return plots.save(figure, folder, "watch.png")


def main(argv: list[str]) -> None:
    """Audits, trains, then prints and draws what was measured."""
    del argv
    console.plain()
    decays = [float(decay) for decay in _WEIGHT_DECAY.value]
    tx = optimizer(_LEARNING_RATE.value, decays[-1])
    print(wd.audit(tx, initial_params(_SEED.value)), end="\n\n", flush=True)
    log = pathlib.Path(_OUT.value) / "watch.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        options: dict[str, Any] = {"steps": _STEPS.value, "every": _EVERY.value, "seed": _SEED.value, "log": file}
        found = run(learning_rate=_LEARNING_RATE.value, weight_decay=decays, **options)
    print(report(found, _LEARNING_RATE.value))
    print(f"Figures: {log}. Picture: {plot(found, _OUT.value)}")


if __name__ == "__main__":
    app.run(main)
