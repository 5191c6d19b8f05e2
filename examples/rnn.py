"""Takes ~30 s on a laptop CPU and prints what decay does to a recurrent language model that over-fits.

A GRU in Flax NNX learns to predict the next character from the first 14 kB of the source of Python's argparse, little
enough to over-fit. A mask rule decides whether the embedding decays too. Adam's step is zero where the gradient has
always been zero, so that decay alone changes the embedding rows of characters that never occur.

    python examples/rnn.py                    # a table, and curves in out/rnn.png
    python examples/rnn.py --weight_decay=3   # too much decay; --help lists the knobs
"""

from typing import Any

import console
import data
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app, flags
from flax import nnx

import wd_optax as wd

_EPOCHS = flags.DEFINE_integer("epochs", 40, "Passes over the training text.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 4, "Runs of each kind; the seed determines weights and batches.", lower_bound=2)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "η.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.5, "λ of the runs that decay.")
_OUT = flags.DEFINE_string("out", "out", "Folder for rnn.png; created if missing.")

CHARACTERS = 128  # ASCII
# Multipliers of λ for the weights and for the embedding; biases never decay.
RUNS = {"no decay": (0.0, 0.0), "weights decay": (1.0, 0.0), "and the embedding": (1.0, 1.0)}


class Model(nnx.Module):
    """Characters (n, length) → logits of those that follow (n, length, 128)."""

    def __init__(self, width: int, key: jax.Array) -> None:
        """The embedding has half the width of the GRU."""
        rngs = nnx.Rngs(key)
        self.width = width
        self.embed = nnx.Embed(CHARACTERS, width // 2, rngs=rngs)
        self.gru = nnx.RNN(nnx.GRUCell(width // 2, width, rngs=rngs), rngs=False)
        self.out = nnx.Linear(width, CHARACTERS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The GRU starts from zeros."""
        return self.out(self.gru(self.embed(x), initial_carry=jnp.zeros((len(x), self.width))))


def split(width: int, seed: Any) -> Any:
    """Returns the graph definition and parameters drawn from the seed."""
    return nnx.split(Model(width, jax.random.key(seed)))


def shapes(width: int) -> Any:
    """Like `split`, with shapes in place of parameters."""
    return jax.eval_shape(lambda: split(width, 0))


def rules(embedding: Any) -> list[Any]:
    """Mask: the embedding decays with the given multiplier, of the rest only the weights."""
    return [("embed", embedding), (".*", "weights")]  # S9: an RNN


def train(text: data.Split, batches: jax.Array, rates: tuple[float, float], width: int) -> Any:
    """Trains all seeds of all kinds in one program; batches: (seeds, epochs, steps, rows). Returns runs as in `run`."""
    x, x_val, y, y_val = text
    absent = jnp.setdiff1d(jnp.arange(CHARACTERS), x)
    graph = shapes(width)[0]

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), y).mean()

    def one(seed: jax.Array, batches: jax.Array, multipliers: jax.Array) -> dict[str, jax.Array]:
        tx = wd.adamw(rates[0], weight_decay=rates[1] * multipliers[0], mask=rules(multipliers[1]))
        start = split(width, seed)[1]

        def step(carry: Any, rows: jax.Array) -> Any:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(loss_fn)(params, x[rows], y[rows])
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        def epoch(carry: Any, batches: jax.Array) -> Any:
            carry, losses = jax.lax.scan(step, carry, batches)
            return carry, {"training": losses.mean(), "validation": loss_fn(carry[0], x_val, y_val)}

        (end, _), losses = jax.lax.scan(epoch, (start, tx.init(start)), batches)
        unseen = lambda params: jnp.linalg.norm(params["embed"]["embedding"][absent])
        norm = wd.weight_norm(end, rules(0.0))
        return losses | {"‖w‖": norm, "unseen": unseen(end) / unseen(start)}

    every_kind = jax.vmap(jax.vmap(one, (0, 0, None)), (None, None, 0))
    found = jax.jit(every_kind)(jnp.arange(len(batches)), batches, jnp.array(list(RUNS.values())))
    return {name: {key: np.asarray(v[i]) for key, v in found.items()} for i, name in enumerate(RUNS)}


def run(
    *, epochs: int, seeds: int, learning_rate: float, weight_decay: float, width: int = 64, max_bytes: int = 24_000
) -> dict[str, Any]:
    """Returns per kind losses (seeds, epochs), ‖w‖ (seeds,), and ‖end‖/‖start‖ (seeds,) of unused embedding rows."""
    text = data.text("argparse", max_bytes, length=32, test_size=0.4)
    batches = jnp.stack([data.batches(len(text[0]), 16, epochs=epochs, seed=seed) for seed in range(seeds)])
    runs = train(text, batches, (learning_rate, weight_decay), width)
    steps = batches.shape[1] * batches.shape[2]
    remaining = wd.timescale(weight_decay, learning_rate=learning_rate, steps=steps).remaining
    return {"runs": runs, "steps": steps, "sizes": (text[0].size, text[1].size), "remaining": remaining}


def report(results: dict[str, Any]) -> str:
    """Formats a line per kind, then their differences."""
    lines = [f"{'loss, nats per character':26}{'training':17}{'validation':17}{'its best epoch':17}‖w‖"]
    end, best = {}, {}
    for name, r in results["runs"].items():
        end[name], best[name] = r["validation"][:, -1], r["validation"].min(axis=1)
        columns = [intervals.mean(a, ".3f").ljust(17) for a in (r["training"][:, -1], end[name], best[name])]
        lines.append(f"{name:26}{''.join(columns)}{intervals.mean(r['‖w‖'], '.1f')}")
    none, weights, all_ = RUNS
    change = lambda a, b: intervals.change(a - b, "+.3f")
    excluded, decayed = (results["runs"][name]["unseen"].mean() for name in (weights, all_))
    return "\n".join(
        [
            *lines,
            "",
            f"Decay of the weights changes the last validation loss by {change(end[weights], end[none])};",
            f"with early stopping, the best by {change(best[weights], best[none])}.",
            f"Decay of the embedding too changes the last by {change(end[all_], end[weights])}.",
            f"Embedding rows without a gradient keep {excluded:.3f} of their norm where the rule excludes them,",
            f"{decayed:.3f} where it doesn't; (1 − ηλ)ⁿ predicts {results['remaining']:.3f}.",
        ]
    )


def plot(results: dict[str, Any], folder: str) -> Any:
    """Plots both losses over the steps, mean and 95 % interval."""
    figure, panels = plots.figure(2, sharey=True)
    for key, axes in zip(("training", "validation"), panels, strict=True):
        for i, (name, r) in enumerate(results["runs"].items()):
            plots.band(axes, np.linspace(0, results["steps"], r[key].shape[1] + 1)[1:], r[key], name, plots.line(i))
        axes.set(xlabel="step", title=f"{key} loss")
    panels[0].set_ylabel("nats per character; band: 95 % interval")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return plots.save(figure, folder, "rnn.png")


def main(argv: list[str]) -> None:
    """Audits the optimizer, trains, then prints and plots the results."""
    del argv
    console.plain()
    learning_rate, weight_decay = _LEARNING_RATE.value, _WEIGHT_DECAY.value
    tx = wd.adamw(learning_rate, weight_decay=weight_decay, mask=rules(0.0))
    print(wd.audit(tx, shapes(64)[1]), end="\n\n", flush=True)
    results = run(epochs=_EPOCHS.value, seeds=_SEEDS.value, learning_rate=learning_rate, weight_decay=weight_decay)
    print(report(results))
    about = f"{_SEEDS.value} seeds ({intervals.MEANING}), η = {learning_rate:g}, λ = {weight_decay:g}"
    print(f"{about}. Curves: {plot(results, _OUT.value)}")


if __name__ == "__main__":
    app.run(main)
