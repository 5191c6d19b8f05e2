"""Takes ~40 s on a laptop CPU and prints how each λ changes a small transformer that over-fits.

Two causal blocks in Flax NNX learn to predict the next character from the first 12 kB of the source of Python's
argparse, with AdamW at λ = 0 and four others. Mask rules treat the embeddings separately: positions never decay, tokens
at half the rate of the weights; attention biases and norm scales don't, whatever rank stacking the blocks gives them.
λ is chosen on the text after the training text, and tested on the text after that.

    python examples/transformer.py                                 # a table, and curves in out/transformer.png
    python examples/transformer.py --weight_decay=0.2 --seeds=8    # 0 and this λ; --help lists the knobs
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

_EPOCHS = flags.DEFINE_integer("epochs", 30, "Passes over the training text.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each λ; the seed determines weights and batches.", lower_bound=2)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "η.")
_WEIGHT_DECAY = flags.DEFINE_multi_float(
    "weight_decay", [0.03, 0.3, 3.0, 30.0], "λ, in addition to 0; may be repeated."
)
_OUT = flags.DEFINE_string("out", "out", "Folder for transformer.png; created if missing.")

CHARACTERS, LENGTH, LAYERS = 128, 32, 2  # ASCII; per window; blocks
RULES = [("positions", 0.0), ("tokens", 0.5), (".*", "weights")]  # the first match wins


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


def split(width: int, seed: Any) -> Any:
    """Returns the graph definition and parameters drawn from the seed."""
    return nnx.split(Model(width, jax.random.key(seed)))


def shapes(width: int) -> Any:
    """Like `split`, with shapes in place of parameters."""
    return jax.eval_shape(lambda: split(width, 0))


def optimizer(learning_rate: float, weight_decay: Any) -> optax.GradientTransformation:
    """AdamW with the mask rules."""
    return wd.adamw(learning_rate, weight_decay=weight_decay, mask=RULES)  # S9: a transformer


def train(text: data.Split, batches: jax.Array, learning_rate: float, weight_decays: jax.Array, width: int) -> Any:
    """Trains all seeds at all λ in one program; batches: (seeds, epochs, steps, rows). Returns arrays (λ, seeds, ...).

    The first half of the held-out text is for validation, the second for testing.
    """
    graph, (x, x_rest, y, y_rest) = shapes(width)[0], text

    def losses_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), y)

    def one(seed: jax.Array, batches: jax.Array, weight_decay: jax.Array) -> dict[str, jax.Array]:
        params, tx = split(width, seed)[1], optimizer(learning_rate, weight_decay)

        def step(carry: Any, rows: jax.Array) -> Any:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(lambda p: losses_of(p, x[rows], y[rows]).mean())(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        def epoch(carry: Any, batches: jax.Array) -> Any:
            carry, losses = jax.lax.scan(step, carry, batches)
            validation, test = jnp.array_split(losses_of(carry[0], x_rest, y_rest), 2)
            return carry, {"training": losses.mean(), "validation": validation.mean(), "test": test.mean()}

        (params, _), losses = jax.lax.scan(epoch, (params, tx.init(params)), batches)
        return losses | {"‖w‖": wd.weight_norm(params)}

    every_rate = jax.vmap(jax.vmap(one, (0, 0, None)), (None, None, 0))
    return jax.tree.map(np.asarray, jax.jit(every_rate)(jnp.arange(len(batches)), batches, weight_decays))


def run(
    *,
    epochs: int,
    seeds: int,
    learning_rate: float,
    weight_decays: list[float],
    width: int = 32,
    max_bytes: int = 20_000,
) -> dict[str, Any]:
    """Returns per λ the losses "training", "validation" and "test" (seeds, epochs), and ‖w‖ (seeds,)."""
    text = data.text("argparse", max_bytes, length=LENGTH, test_size=0.4)
    batches = jnp.stack([data.batches(len(text[0]), 16, epochs=epochs, seed=seed) for seed in range(seeds)])
    found = train(text, batches, learning_rate, jnp.array(weight_decays), width)
    runs = {weight_decay: {key: v[i] for key, v in found.items()} for i, weight_decay in enumerate(weight_decays)}
    return {"runs": runs, "steps": batches.shape[1] * batches.shape[2]}


def report(results: dict[str, Any]) -> str:
    """Formats a line per λ, then the effect of the best λ on the test text."""
    lines = [f"{'λ':8}{'training':17}{'validation':17}{'its best epoch':17}{'test':17}‖w‖"]
    runs = results["runs"]
    end = {
        weight_decay: {key: r[key][:, -1] for key in ("training", "validation", "test")}
        for weight_decay, r in runs.items()
    }
    best = {weight_decay: r["validation"].min(axis=1) for weight_decay, r in runs.items()}
    for weight_decay, r in runs.items():
        columns = [intervals.mean(a, ".3f") for a in (*end[weight_decay].values(), best[weight_decay])]
        line = "".join(column.ljust(17) for column in (columns[0], columns[1], columns[3], columns[2]))
        lines.append(f"{weight_decay:<8g}{line}{intervals.mean(r['‖w‖'], '.1f')}")
    chosen = min(runs, key=lambda weight_decay: end[weight_decay]["validation"].mean())
    change = lambda a, b: intervals.change(a - b, "+.3f")
    tested = change(end[chosen]["test"], end[0.0]["test"])
    lines += [
        "",
        f"λ = {chosen:g} has the lowest final validation loss; its test loss compared with no decay: {tested}.",
    ]
    lines.append(f"With early stopping (best epochs only): validation {change(best[chosen], best[0.0])}.")
    for weight_decay in (weight_decay for weight_decay in runs if weight_decay not in (0.0, chosen)):
        gap = change(end[weight_decay]["validation"], end[0.0]["validation"])
        lines.append(f"λ = {weight_decay:g}, validation compared with no decay: {gap}.")
    return "\n".join(lines)


def plot(results: dict[str, Any], folder: str) -> Any:
    """Plots both losses over the steps, mean and 95 % interval."""
    figure, panels = plots.figure(2, sharey=True)
    for key, axes in zip(("training", "validation"), panels, strict=True):
        for i, (weight_decay, r) in enumerate(results["runs"].items()):
            plots.band(
                axes,
                np.linspace(0, results["steps"], r[key].shape[1] + 1)[1:],
                r[key],
                f"λ = {weight_decay:g}",
                plots.line(i),
            )
        axes.set(xlabel="step", title=f"{key} loss")
    panels[0].set_ylabel("nats per character; band: 95 % interval")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return plots.save(figure, folder, "transformer.png")


def main(argv: list[str]) -> None:
    """Prints which parameters decay, trains, then prints and plots the results."""
    del argv
    console.plain()
    learning_rate, rates = _LEARNING_RATE.value, [0.0, *_WEIGHT_DECAY.value]
    print(wd.explain(RULES, shapes(32)[1]), end="\n\n", flush=True)
    results = run(epochs=_EPOCHS.value, seeds=_SEEDS.value, learning_rate=learning_rate, weight_decays=rates)
    print("Losses in nats per character:", report(results), sep="\n")
    print(f"{_SEEDS.value} seeds ({intervals.MEANING}), η = {learning_rate:g}. Curves: {plot(results, _OUT.value)}")


if __name__ == "__main__":
    app.run(main)
