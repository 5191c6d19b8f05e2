"""Takes ~40 s on a laptop CPU and prints how each λ changes a small transformer that over-fits.

Two causal blocks in Flax NNX learn to predict the next character from the first 12 kB of the source of Python's
argparse, with AdamW at λ = 0 and four others. Mask rules treat the embeddings separately: positions never decay, tokens
at half the rate of the weights; attention biases and norm scales don't, whatever rank stacking the blocks gives them.
λ is chosen on the text after the training text, and tested on the text after that.

    python examples/transformer.py                                 # a table, and curves in out/transformer.png
    python examples/transformer.py --weight_decay=0.2 --seeds=8    # 0 and this λ; --help lists the knobs
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

CHARACTERS, LENGTH, LAYERS = 128, 32, 2  # ASCII; per window; blocks
RULES = [("positions", 0.0), ("tokens", 0.5), (".*", "weights")]  # the first match wins
RATES = [0.03, 0.3, 3.0, 30.0]
SETTING = compare.Setting(
    "transformer", seeds=5, epochs=(30, "Passes."), learning_rate=(3e-3, "η."), weight_decay=(RATES, "λ beside 0.")
)


def optimizer(learning_rate: float, weight_decay: Any) -> optax.GradientTransformation:
    """AdamW with the mask rules."""
    return wd.adamw(learning_rate, weight_decay=weight_decay, mask=RULES)  # S9: a transformer


class Block(nnx.Module):
    """Pre-norm block: causal self-attention and an MLP, each with a residual connection."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        """Four heads."""
        self.attention_norm, self.mlp_norm = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, keep_rngs=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, h: jax.Array, mask: jax.Array) -> jax.Array:
        """(n, length, width) → the same."""
        h = h + self.attention(self.attention_norm(h), mask=mask)
        return h + self.down(nnx.gelu(self.up(self.mlp_norm(h))))


class Model(nnx.Module):
    """Characters (n, length) → logits of those that follow (n, length, 128)."""

    def __init__(self, width: int, key: jax.Array) -> None:
        """Stacked blocks, applied by scan; the output is tied to the token embedding."""
        rngs = nnx.Rngs(key)
        self.tokens, self.positions = (nnx.Embed(n, width, rngs=rngs) for n in (CHARACTERS, LENGTH))
        self.blocks = nnx.vmap(lambda key: Block(width, nnx.Rngs(key)))(jax.random.split(rngs.params(), LAYERS))
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: int32."""
        h, mask = self.tokens(x) + self.positions(jnp.arange(LENGTH))[None], nnx.make_causal_mask(x)
        layers = nnx.scan(lambda h, block: block(h, mask), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.tokens.attend(self.norm(layers(h, self.blocks)))


def shapes(width: int) -> Any:
    """The graph definition, and the shapes of the parameters."""
    return jax.eval_shape(lambda: nnx.split(Model(width, jax.random.key(0))))


def run(*, epochs: int, seeds: int, learning_rate: float, weight_decay: list[float], size: Any = (32, 20_000)) -> Any:
    """Trains every λ; size: width, bytes of text. Half of the held-out text is for validation, half for the test."""
    width, max_bytes = size
    x, x_rest, y, y_rest = data.text("argparse", max_bytes, length=LENGTH, test_size=0.4)
    graph = shapes(width)[0]

    def losses(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), y)

    def measure(params: Any) -> dict[str, jax.Array]:
        validation, test = jnp.array_split(losses(params, x_rest, y_rest), 2)
        return {"validation": validation.mean(), "test": test.mean()}

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        start, order = jax.random.split(key)
        tx, params = optimizer(learning_rate, hparams["weight_decay"]), nnx.split(Model(width, start))[1]
        batches = data.batches(len(x), 16, epochs=epochs, seed=order)
        params, curves = compare.fit(tx, params, lambda p, rows: losses(p, x[rows], y[rows]).mean(), batches, measure)
        return curves | {"‖w‖": wd.weight_norm(params)}

    return compare.sweep(train, seeds, weight_decay=[0.0, *weight_decay])


def report(results: Any) -> str:
    """A line per λ, then what the λ that validation chooses does to the test loss, at the end and stopped early."""
    end, best = compare.last(results), results["validation"].min("point")
    chosen = end["validation"].mean("seed").idxmin("weight_decay").item()
    columns = {"training": ".3f", "validation": ".3f", "early": ".3f", "test": ".3f", "‖w‖": ".1f"}
    return f"""Losses in nats per character at the end; early: the lowest validation loss.
{compare.table(end.assign(early=best), **columns)}

With early stopping λ = {chosen:g} changes the lowest validation loss by {compare.change(best, weight_decay=chosen)}.
λ = {chosen:g}, the best on validation, changes the test loss by {compare.change(end["test"], weight_decay=chosen)}."""


def plot(results: Any) -> Any:
    """Both losses over the epochs."""
    return compare.curves(results, "epoch", training="training loss", validation="validation loss")


def main(_: list[str]) -> None:
    """Prints which parameters decay, trains, then prints and plots the results."""
    SETTING.show(lambda: wd.explain(RULES, shapes(32)[1]), run, report, plot)


if __name__ == "__main__":
    app.run(main)
