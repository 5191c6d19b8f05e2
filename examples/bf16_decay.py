"""Takes ~60 s on a laptop CPU and prints how much weight decay survives in bfloat16, without gradients and in training.

A bfloat16 has 8 significant bits: a step below 2⁻⁹ of the weight is rounded away, and η·λ is usually below that. First,
weights of 1 decay without a gradient. Then a Flax MLP on scikit-learn's handwritten digits and a character-level
transformer on the source of Python's argparse are trained with AdamW in pure bfloat16 (parameters, activations,
gradients) under each rounding, and in float32, with the same initial weights and batches. λ is ten times the usual
value, so that 800 steps remove as much as 8000.

    python examples/bf16_decay.py                          # three tables, and a picture in out/bf16_decay.png
    python examples/bf16_decay.py --task=digits --seeds=8  # the MLP alone, ~20 s; --help lists the knobs
"""

import functools
from typing import Any

import compare
import data
import flax.linen as nn
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app

import wd_optax as wd

SETTING = compare.Setting(
    "bf16_decay",
    seeds=3,
    task=(("digits", "text"), "What to train."),
    steps=(800, "Steps of each training run."),
    learning_rate=(3e-4, "η in training."),
    weight_decay=(1.0, "λ in training."),
)
BF16 = jnp.bfloat16
# Dtype of the parameters and options of wd.adamw. With a rounding the optimizer's state is float32.
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "float32": (jnp.float32, {}),
    "float32, λ = 0": (jnp.float32, {"weight_decay": 0.0}),
    "no rounding": (BF16, {}),  # as in Optax: bfloat16 moments too
    "nearest": (BF16, {"rounding": "nearest"}),
    "stochastic": (BF16, {"rounding": "stochastic"}),
    "stochastic, m, v": (BF16, {"rounding": "stochastic", "mu_dtype": BF16, "nu_dtype": BF16}),
    "compensated": (BF16, {"rounding": "compensated"}),
    "master weights": (BF16, {}),
}
SAME = "The same: the loss is closer to float32's than another seed's (95 % interval), and ‖w‖ is within 1 %."


def optimizer(way: str, learning_rate: Any, weight_decay: float, key: Any) -> optax.GradientTransformation:
    """AdamW in one of `WAYS`."""
    tx = wd.adamw(learning_rate, **({"weight_decay": weight_decay, "key": key} | WAYS[way][1]))
    return wd.precision.with_master_weights(tx) if way == "master weights" else tx


class Transformer(nn.Module):
    """Causal blocks of width 32 over ASCII."""

    blocks: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Characters (n, length) → logits of those that follow (n, length, 128)."""
        h = nn.Embed(128, 32)(x) + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[-1], 32))
        for _ in range(self.blocks):
            h = h + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(h), mask=nn.make_causal_mask(x))
            h = h + nn.Dense(32)(nn.gelu(nn.Dense(128)(nn.LayerNorm()(h))))
        return nn.Dense(128)(nn.LayerNorm()(h))


def load_task(name: str) -> tuple[Any, jax.Array, jax.Array, int]:
    """Returns model, inputs (n, ...), targets (n, ...) and batch size."""
    text = name == "text"
    x, _, y, _ = data.text("argparse", length=32, test_size=0) if text else data.digits(test_size=0)
    return (Transformer(), x, y, 8) if text else (compare.MLP(), x, y, 64)


def initial_params(model: Any, x: jax.Array, seed: Any) -> Any:
    """Common initial parameters: float32 numbers that are exact in bfloat16."""
    return optax.tree.cast(optax.tree.cast(model.init(jax.random.key(seed), x[:1])["params"], BF16), jnp.float32)


def loss_fn(model: Any, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy; activations have the parameters' dtype, only the softmax is float32."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jax.tree.leaves(params)[0].dtype)
    logits = model.apply({"params": params}, x).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(way: str, task: Any, steps: int, seeds: int, learning_rate: float, weight_decay: float) -> dict[str, Any]:
    """Trains all seeds; judges each in float32: the loss over all training data, and ‖w‖ of the weights that decay."""
    model, x, y, batch = task
    rows = [np.random.default_rng(seed).integers(len(x), size=(1, steps, batch)) for seed in range(seeds)]

    def judge(params: Any) -> dict[str, jax.Array]:
        params = optax.tree.cast(params, jnp.float32)
        return {"loss": loss_fn(model, params, x, y), "norm": wd.weight_norm(params)}

    def one_seed(seed: jax.Array, rows: jax.Array) -> Any:
        params = optax.tree.cast(initial_params(model, x, seed), WAYS[way][0])
        tx = optimizer(way, learning_rate, weight_decay, seed)
        return judge(compare.fit(tx, params, lambda p, r: loss_fn(model, p, x[r], y[r]), rows, lambda _: {})[0])

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one_seed))(jnp.arange(seeds), jnp.stack(rows)))


def without_gradients(steps: int) -> dict[str, np.ndarray]:
    """Mean of 10⁴ weights of 1 after decay without gradients, λ = 0.1, at η = 0.01 and 0.001."""
    rates = np.array([1e-2, 1e-3])
    params, none = {"kernel": jnp.ones((100, 100), BF16)}, lambda p, _: 0.0 * p["kernel"].sum()

    def end(way: str, learning_rate: jax.Array) -> jax.Array:
        ours = way in WAYS
        tx = optimizer(way, learning_rate, 0.1, 0) if ours else optax.adamw(learning_rate, weight_decay=0.1)
        last, _ = compare.fit(tx, params, none, jnp.zeros((1, steps)), lambda _: {})
        return last["kernel"].astype(jnp.float32).mean()

    ends = {"exact": (1 - 0.1 * rates) ** steps}
    for way in ("optax.adamw", "nearest", "stochastic", "compensated", "master weights"):
        ends[way] = np.asarray(jax.jit(jax.vmap(functools.partial(end, way)))(jnp.asarray(rates, jnp.float32)))
    return ends


def second_moment(steps: int) -> dict[str, float]:
    """Mean of 10⁴ entries of Adam's v under gradients of 1, stored in bfloat16 with either rounding."""
    grads, ends = jnp.ones((100, 100)), {"exact": 1 - 0.999**steps}
    for rounding in ("nearest", "stochastic"):
        tx = wd.precision.low_precision_state(optax.scale_by_adam(), rounding=rounding, nu=BF16)
        state = jax.lax.fori_loop(0, steps, lambda _, state, tx=tx: tx.update(grads, state)[1], tx.init(grads))
        ends[rounding] = float(state.inner.nu.astype(jnp.float32).mean())
    return ends


def run(*, task: list[str], ways: Any = tuple(WAYS), **setting: Any) -> dict[str, Any]:
    """The weights after 2000 steps without gradients, v likewise, and the result of `train` per task and way."""
    tasks = {name: load_task(name) for name in task}
    trained = {name: {way: train(way, loaded, **setting) for way in ways} for name, loaded in tasks.items()}
    return {"zeros": without_gradients(2000), "moment": second_moment(2000), "trained": trained}


def compared(runs: dict[str, Any], way: str) -> tuple[float, float, bool]:
    """Loss minus float32's, ‖w‖ relative to float32's minus 1, and whether both are practically equal.

    The 95 % interval of the loss difference, paired over seeds, lies within a standard deviation of float32's loss over
    seeds; ‖w‖ is within 1 %.
    """
    ours, theirs = runs[way], runs["float32"]
    gaps, stretch = ours["loss"] - theirs["loss"], float((ours["norm"] / theirs["norm"]).mean() - 1)
    close = abs(gaps.mean()) + intervals.half_width(gaps) <= theirs["loss"].std(ddof=1)
    return float(gaps.mean()), stretch, bool(close and abs(stretch) < 0.01)


def report(results: dict[str, Any]) -> str:
    """The tables, then whether each way trains as float32 does."""
    lines = [["no gradient", "η = 0.01", "η = 0.001", "a weight of 1, 2000 steps, λ = 0.1"]]
    lines += [[name, f"{a:.4f}", f"{b:.4f}", ""] for name, (a, b) in results["zeros"].items()]
    moment = ", ".join(f"{name} {v:.3f}" for name, v in results["moment"].items())
    parts, verdicts, mean = [f"{compare.align(lines)}\nAdam's v in bf16, gradients of 1: {moment}"], [], intervals.mean
    for task, runs in results["trained"].items():
        loss, norm = runs["float32"].values()
        few = intervals.verdict(loss) if len(loss) < intervals.FEWEST else ""
        same = {w: few or ("yes" if compared(runs, w)[2] else "no") for w in runs if WAYS[w][0] == BF16}
        table = [[task, "training loss", "minus float32, paired", "‖w‖", "to float32, %", "the same"]]
        for way, r in runs.items():
            losses = mean(r["loss"], ".4f"), mean(r["loss"] - loss, "+.4f")
            norms = mean(r["norm"], ".3f"), mean(100 * (r["norm"] / norm - 1), "+.2f")
            table.append([way, *losses, *norms, same.get(way, "")])
        parts.append(compare.align(table))
        verdicts.append(f"on {task} {few or ', '.join(repr(w) for w in same if same[w] == 'yes') or 'none'}")
    return "\n\n".join([*parts, f"{SAME}\nWays in bfloat16 that train as float32 does: {'; '.join(verdicts)}."])


def plot(results: dict[str, Any]) -> Any:
    """Training loss and ‖w‖ of every way relative to float32's, with 95 % intervals."""
    figure, panels = plots.figure(2, sharey=True)
    for axes, key, label in zip(panels, ("loss", "norm"), ("training loss", "‖w‖ of the weights"), strict=True):
        for i, (task, runs) in enumerate(results["trained"].items()):
            off = {way: 100 * (r[key] / runs["float32"][key] - 1) for way, r in runs.items() if way != "float32"}
            at, runs = np.arange(len(off)) + 0.2 * i - 0.1, np.stack([*off.values()], 1)
            style: Any = {"fmt": "os"[i], "color": plots.line(i)["color"], "capsize": 3, "label": task}
            axes.errorbar(runs.mean(0), at, xerr=intervals.half_width(runs), **style)
            axes.set_yticks(range(len(off)), off)
        axes.set_xlabel(f"{label} over float32's, %")
        axes.axvline(0, color="grey", linewidth=1)
    panels[1].axvspan(-1, 1, color="grey", alpha=0.3, linewidth=0, label="within 1 %")
    panels[0].invert_yaxis()
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def decays() -> str:
    """Which parameters decay, and what AdamW will do in bfloat16."""
    flags = SETTING.values()
    model, x, _, _ = load_task(flags["task"][-1])
    params = optax.tree.cast(jax.jit(initial_params, static_argnums=0)(model, x, 0), BF16)
    audited = wd.audit(wd.adamw(flags["learning_rate"], weight_decay=flags["weight_decay"]), params)
    return f"{wd.explain('weights', params)}\n\nWhat AdamW will do in bfloat16:\n{audited}"


main = lambda _: SETTING.show(decays, run, report, plot)

if __name__ == "__main__":
    app.run(main)
