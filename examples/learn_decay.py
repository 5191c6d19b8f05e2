"""Takes ~25 s on a laptop CPU and prints whether a λ for every leaf, learned by gradient, beats the best single λ.

A training run is a differentiable function of its λ: `wd.adamw` takes a tree of them as a mask of traced multipliers.
The gradient of the validation loss goes back through all 200 steps of a small MLP on noisy digits, each recomputed on
the way (Maclaurin et al. 2015, arXiv 1502.03492), and Adam descends in log λ. A gradient costs several runs, so a sweep
of one λ for all kernels gets as many runs as the gradients cost. Both choose by the validation loss of the same split.

    python examples/learn_decay.py --outer=40  # more gradients, and more runs for the sweep; --help lists the knobs
"""

from typing import Any

import console
import data
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import wd_optax as wd

_STEPS = flags.DEFINE_integer("steps", 200, "Steps of a training run.", lower_bound=1)
_OUTER = flags.DEFINE_integer("outer", 20, "Gradients with respect to λ.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 8, "Splits of the digits, each with its own initial weights.", lower_bound=2)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-2, "η of the training runs.")

TRAIN, VALID, BATCH_SIZE, WIDTHS = 200, 400, 50, (64, 32, 32, 10)
FIRST, RANGE, OUTER_RATE = 0.3, (1e-2, 100.0), 0.3  # λ to begin with; of the sweep; Adam's η for log λ
COST = 3.7  # of a gradient, in runs: a step and its way back by XLA's count of operations; a test measures it
MEASURES = ("validation loss", "test loss", "test accuracy")
WAYS = ("no decay", "best single λ", "λ of each leaf")
Sets = dict[str, jax.Array]


def initial_params(seed: Any, dtype: Any = jnp.float32) -> Any:
    """64-32-32-10, with variances of 1/n."""
    keys = jax.random.split(jax.random.key(seed), 3)
    kernels = [jax.random.normal(keys[i], WIDTHS[i : i + 2], dtype) * WIDTHS[i] ** -0.5 for i in range(3)]
    return {f"layer{i}": {"kernel": w, "bias": jnp.zeros(w.shape[1], dtype)} for i, w in enumerate(kernels)}


def logits(params: Any, x: jax.Array) -> jax.Array:
    """(n, 64) → (n, 10); smooth, because the gradient of a gradient goes through it."""
    for name, layer in params.items():
        x = (x if name == "layer0" else jnp.tanh(x)) @ layer["kernel"] + layer["bias"][None]
    return x


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y))


def split(seed: int, steps: int) -> Sets:
    """Images to train on, one label in five random; others for validation and test; the rows of each batch."""
    x, x_test, y, y_test = data.digits(seed, test_size=0.5)
    rng, last = np.random.default_rng(seed), TRAIN + VALID
    noisy = np.where(rng.random(TRAIN) < 0.2, rng.integers(10, size=TRAIN), y[:TRAIN]).astype(np.int32)
    rows = data.batches(TRAIN, BATCH_SIZE, epochs=-(-steps * BATCH_SIZE // TRAIN), seed=seed)
    sets = {"x": x[:TRAIN], "y": jnp.asarray(noisy), "rows": rows.reshape(-1, BATCH_SIZE)[:steps]}
    sets |= {"x_valid": x[TRAIN:last], "y_valid": y[TRAIN:last], "x_test": x_test, "y_test": y_test}
    return sets | {"seed": jnp.uint32(seed)}


def step(decays: Any, carry: Any, rows: jax.Array, sets: Sets, learning_rate: float) -> Any:
    """The parameters and the optimizer's state after one step; None is their start."""
    # The λ are multipliers of λ = 1. Without eps_root √v has an infinite derivative where a pixel has been 0 so far.
    tx = wd.adamw(learning_rate, weight_decay=1.0, mask=decays, eps_root=1e-8)
    if carry is None:
        return (params := initial_params(sets["seed"], sets["x"].dtype)), tx.init(params)
    updates, opt_state = tx.update(jax.grad(loss_fn)(carry[0], sets["x"][rows], sets["y"][rows]), carry[1], carry[0])
    return optax.apply_updates(carry[0], updates), opt_state


def measure(decays: Any, sets: Sets, learning_rate: float) -> jax.Array:
    """The `MEASURES` after all steps, differentiable in the λ of each leaf; only the states between steps are kept."""
    one = jax.checkpoint(lambda carry, rows: (step(decays, carry, rows, sets, learning_rate), None))
    (params, _), _ = jax.lax.scan(one, step(decays, None, sets["rows"][0], sets, learning_rate), sets["rows"])
    losses = [loss_fn(params, sets[f"x_{part}"], sets[f"y_{part}"]) for part in ("valid", "test")]
    right = jnp.argmax(logits(params, sets["x_test"]), axis=-1) == sets["y_test"]
    return jnp.stack([*losses, right.mean(dtype=losses[0].dtype)])


def objective(log_decays: Any, sets: Sets, learning_rate: float) -> jax.Array:
    """The validation loss after training, as a function of log λ."""
    return measure(jax.tree.map(jnp.exp, log_decays), sets, learning_rate)[0]


def learn(sets: Sets, learning_rate: float, outer: int) -> tuple[jax.Array, Any]:
    """The `MEASURES` at the best λ on the way of the gradients, and those λ."""
    tx, start = optax.adam(OUTER_RATE), jax.tree.map(lambda p: jnp.log(FIRST), initial_params(0))

    def descend(carry: Any, _: None) -> Any:
        loss, slope = jax.value_and_grad(objective)(carry[0], sets, learning_rate)
        updates, state = tx.update(slope, carry[1])
        return (optax.apply_updates(carry[0], updates), state), (loss, carry[0])

    _, (losses, way) = jax.lax.scan(descend, (start, tx.init(start)), length=outer)
    best = jax.tree.map(lambda at: jnp.exp(at[jnp.argmin(losses)]), way)
    return measure(best, sets, learning_rate), best


def run(*, steps: int, outer: int, seeds: int, learning_rate: float) -> dict[str, Any]:
    """Returns the `MEASURES` (seeds, 3) of each of `WAYS`, the learned λ of each leaf and the sweep's, (seeds,)."""
    sets = jax.tree.map(lambda *a: jnp.stack(a), *(split(seed, steps) for seed in range(seeds)))
    learned, decays = jax.jit(jax.vmap(lambda s: learn(s, learning_rate, outer)))(sets)

    def one(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        each = jax.tree.map(lambda m: m * hparams["weight_decay"], wd.multipliers("weights", initial_params(0)))
        own = jax.tree.map(lambda a: a[hparams["split"]], sets)
        return dict(zip(MEASURES, measure(each, own, learning_rate), strict=True))

    axes = {"weight_decay": [0.0, *np.geomspace(*RANGE, round(outer * COST))], "split": range(seeds)}
    found = wd.sweep(one, axes, seeds=1).data.isel(seed=0)
    table = np.stack([found[name].values for name in MEASURES], axis=2)  # (λ, seeds, measures)
    best = 1 + table[1:, :, 0].argmin(axis=0)
    measured = dict(zip(WAYS, (table[0], table[best, np.arange(seeds)], np.asarray(learned)), strict=True))
    return {"measured": measured, "learned": decays, "single": found["weight_decay"].values[best]}


def report(results: dict[str, Any]) -> str:
    """The `MEASURES` of each way, the learned λ, what learning changes, and whether it pays."""
    lines, measured = [f"{'':17}" + "".join(f"{name:18}" for name in MEASURES).rstrip()], results["measured"]
    for name in WAYS:
        lines.append(f"{name:17}" + "".join(f"{intervals.mean(a, '.3f'):18}" for a in measured[name].T).rstrip())
    leaves = jax.tree_util.tree_leaves_with_path(results["learned"] | {"one for all kernels": results["single"]})
    shown = (f"{jax.tree_util.keystr(p, simple=True, separator='/')} {np.exp(np.log(x).mean()):.2g}" for p, x in leaves)
    lines += ["", "λ, geometric means: " + ", ".join(shown)]
    gaps = (measured[WAYS[2]] - measured[WAYS[1]]).T
    lines += [f"learned minus single, {m}: {intervals.change(g, '+.3f')}" for m, g in zip(MEASURES, gaps, strict=True)]
    pays = "pays" if intervals.clear(gaps[1]) and gaps[1].mean() < 0 else "doesn't pay"
    claim = f"At equal compute, learning a λ for each leaf {pays} on the test images; here biases decay, too."
    return "\n".join([*lines, claim])


def main(argv: list[str]) -> None:
    """Audits the optimizer, learns and sweeps, then prints the results."""
    del argv
    console.plain()
    print(wd.audit(wd.adamw(_LEARNING_RATE.value, weight_decay=1.0), initial_params(0)), end="\n\n", flush=True)
    results = run(steps=_STEPS.value, outer=_OUTER.value, seeds=_SEEDS.value, learning_rate=_LEARNING_RATE.value)
    print(report(results))
    print(f"{_SEEDS.value} splits ({intervals.MEANING}), η = {_LEARNING_RATE.value:g}, {_OUTER.value} gradients.")


if __name__ == "__main__":
    app.run(main)
