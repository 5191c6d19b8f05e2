"""Takes ~30 s on a laptop CPU and prints what decay does to a recurrent language model that over-fits.

A GRU in Flax NNX learns to predict the next character from the first 14 kB of the source of Python's argparse, little
enough to over-fit. A mask rule decides whether the embedding decays too. Adam's step is zero where the gradient has
always been zero, so that decay alone changes the embedding rows of characters that never occur.

    python examples/rnn.py                    # a table, and curves in out/rnn.png
    python examples/rnn.py --weight_decay=3   # too much decay; --help lists the knobs
"""

from typing import Any

import compare
import data
import jax
import jax.numpy as jnp
import optax
from absl import app
from flax import nnx

import wd_optax as wd

# Multipliers of λ for the weights and for the embedding; biases never decay.
RUNS = {"no decay": (0.0, 0.0), "weights decay": (1.0, 0.0), "and the embedding": (1.0, 1.0)}


def rules(embedding: Any) -> list[Any]:
    """Mask: the embedding decays at the given multiple of λ, of the rest only the weights."""
    return [("embed", embedding), (".*", "weights")]


def optimizer(learning_rate: float, weight_decay: Any, embedding: Any) -> optax.GradientTransformation:
    """AdamW."""
    return wd.adamw(learning_rate, weight_decay=weight_decay, mask=rules(embedding))  # S9: an RNN


CHARACTERS = 128  # ASCII
SETTING = compare.Setting(
    "rnn", seeds=4, epochs=(40, "Passes over the text."), learning_rate=(3e-3, "η."), weight_decay=(0.5, "λ.")
)


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


def shapes(width: int) -> Any:
    """The graph definition, and the shapes of the parameters."""
    return jax.eval_shape(lambda: nnx.split(Model(width, jax.random.key(0))))


def run(*, epochs: int, seeds: int, learning_rate: float, weight_decay: float, size: Any = (64, 24_000)) -> Any:
    """Trains every kind; size: width, bytes of text. "unseen" is ‖end‖/‖start‖ of unused embedding rows."""
    width, max_bytes = size
    x, x_val, y, y_val = data.text("argparse", max_bytes, length=32, test_size=0.4)
    graph, absent = shapes(width)[0], jnp.setdiff1d(jnp.arange(CHARACTERS), x)

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), y).mean()

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        weights, embedding = hparams["kind"]
        start, order = jax.random.split(key)
        params = nnx.split(Model(width, start))[1]
        tx = optimizer(learning_rate, weight_decay * weights, embedding)
        batches = data.batches(len(x), 16, epochs=epochs, seed=order)
        measure = lambda params: {"validation": loss_fn(params, x_val, y_val)}
        end, curves = compare.fit(tx, params, lambda p, rows: loss_fn(p, x[rows], y[rows]), batches, measure)
        unseen = lambda params: jnp.linalg.norm(params["embed"]["embedding"][absent])
        return curves | {"‖w‖": wd.weight_norm(end, rules(0.0)), "unseen": unseen(end) / unseen(params)}

    steps = epochs * (len(x) // 16)
    remaining = wd.timescale(weight_decay, learning_rate=learning_rate, steps=steps).remaining
    return compare.sweep(train, seeds, kind=RUNS).assign_attrs(remaining=remaining)


def report(results: Any) -> str:
    """A line per kind, then their differences."""
    weights, both = list(RUNS)[1:]
    last, best = results["validation"].isel(point=-1), results["validation"].min("point")
    embedding = compare.change(last.sel(kind=[weights, both]), kind=both)
    excluded, decayed = (results["unseen"].sel(kind=kind).mean().item() for kind in (weights, both))
    table = compare.table(
        compare.last(results).assign(early=best), training=".3f", validation=".3f", early=".3f", **{"‖w‖": ".1f"}
    )
    return f"""Losses in nats per character at the end; early: the lowest validation loss.
{table}

Decay of the embedding too changes the last validation loss by {embedding}.
Embedding rows without a gradient keep {excluded:.3f} of their norm where the rule excludes them,
{decayed:.3f} where it doesn't; (1 − ηλ)ⁿ predicts {results.attrs["remaining"]:.3f}.
Decay of the weights changes the last validation loss by {compare.change(last, kind=weights)}, \
and with early stopping the lowest by {compare.change(best, kind=weights)}."""


def plot(results: Any) -> Any:
    """Both losses over the epochs."""
    return compare.curves(results, "epoch", training="training loss", validation="validation loss")


def main(_: list[str]) -> None:
    """Audits the optimizer, trains, then prints and plots the results."""
    tx = optimizer(SETTING.values()["learning_rate"], SETTING.values()["weight_decay"], 0.0)
    SETTING.show(lambda: wd.audit(tx, shapes(64)[1]), run, report, plot)


if __name__ == "__main__":
    app.run(main)
