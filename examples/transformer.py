"""Takes ~40 s on a laptop CPU and prints what each λ makes of a small transformer that over-fits.

Two causal blocks in Flax NNX learn to predict the next character from the first 12 kB of the source of Python's
argparse, with AdamW at five λ, 0 among them. Rules choose among the embeddings: positions never decay, tokens at half
the rate of the weights; biases of attention and scales of norms don't, whatever rank stacked blocks give them. The
best λ is chosen on the text behind the training text, and judged on what stands behind that.

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
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each λ; a seed gives weights and batches.", lower_bound=2)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-3, "η.")
_WEIGHT_DECAY = flags.DEFINE_multi_float("weight_decay", [0.03, 0.3, 3.0, 30.0], "λ beside 0; may be repeated.")
_OUT = flags.DEFINE_string("out", "out", "Folder for transformer.png; made if it isn't there.")

CHARACTERS, LENGTH, LAYERS = 128, 32, 2  # ASCII; per window; blocks
RULES = [("positions", 0.0), ("tokens", 0.5), (".*", "weights")]  # the first match wins


class Block(nnx.Module):
    """Causal self-attention and an MLP, each behind a norm and beside a skip."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        """Four heads."""
        self.attention_norm, self.mlp_norm = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, keep_rngs=False, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, h: jax.Array, mask: jax.Array) -> jax.Array:
        """(n, length, width) → the same."""
        h = h + self.attention(self.attention_norm(h), mask=mask)
        return h + self.narrow(nnx.gelu(self.wide(self.mlp_norm(h))))


class Model(nnx.Module):
    """Characters (n, length) → logits of those that follow (n, length, 128)."""

    def __init__(self, width: int, key: jax.Array) -> None:
        """Stacked blocks, applied in a scan; the tokens' embedding gives the logits too."""
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
    """The model's structure, and its parameters drawn from the seed."""
    return nnx.split(Model(width, jax.random.key(seed)))


def shapes(width: int) -> Any:
    """The same, with shapes for the parameters."""
    return jax.eval_shape(lambda: split(width, 0))


def optimizer(learning_rate: float, weight_decay: Any) -> optax.GradientTransformation:
    """AdamW with the rules."""
    return wd.adamw(learning_rate, weight_decay=weight_decay, mask=RULES)  # S9: a transformer


def train(text: data.Split, batches: jax.Array, learning_rate: float, weight_decays: jax.Array, width: int) -> Any:
    """All seeds at all λ as one program; batches: (seeds, epochs, steps, rows). Returns arrays (λ, seeds, ...).

    Of the text held out the first half validates and the second tests.
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
        return losses | {"‖w‖": jnp.sqrt(wd.l2_penalty(params, 1.0, "weights", half=False))}

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
    """Per λ: losses "training", "validation" and "test" (seeds, epochs), and ‖w‖ (seeds,)."""
    text = data.text("argparse", max_bytes, length=LENGTH, test_size=0.4)
    batches = jnp.stack([data.batches(len(text[0]), 16, epochs=epochs, seed=seed) for seed in range(seeds)])
    found = train(text, batches, learning_rate, jnp.array(weight_decays), width)
    runs = {λ: {key: v[i] for key, v in found.items()} for i, λ in enumerate(weight_decays)}
    return {"runs": runs, "steps": batches.shape[1] * batches.shape[2]}


def report(results: dict[str, Any]) -> str:
    """A line per λ, then what the best on the validation text does to the test text."""
    lines = [f"{'λ':8}{'training':17}{'validation':17}{'its best epoch':17}{'test':17}‖w‖"]
    runs = results["runs"]
    end = {λ: {key: r[key][:, -1] for key in ("training", "validation", "test")} for λ, r in runs.items()}
    best = {λ: r["validation"].min(axis=1) for λ, r in runs.items()}
    for λ, r in runs.items():
        columns = [intervals.mean(a, ".3f") for a in (*end[λ].values(), best[λ])]
        line = "".join(column.ljust(17) for column in (columns[0], columns[1], columns[3], columns[2]))
        lines.append(f"{λ:<8g}{line}{intervals.mean(r['‖w‖'], '.1f')}")
    chosen = min(runs, key=lambda λ: end[λ]["validation"].mean())
    change = lambda a, b: intervals.change(a - b, "+.3f")
    tested = change(end[chosen]["test"], end[0.0]["test"])
    lines += ["", f"λ = {chosen:g} has the least last validation loss; its test loss against no decay: {tested}."]
    lines.append(f"Best epochs alone, as early stopping has it: validation {change(best[chosen], best[0.0])}.")
    for λ in (λ for λ in runs if λ not in (0.0, chosen)):
        gap = change(end[λ]["validation"], end[0.0]["validation"])
        lines.append(f"λ = {λ:g}, validation against no decay: {gap}.")
    return "\n".join(lines)


def plot(results: dict[str, Any], folder: str) -> Any:
    """Both losses over the steps, mean and 95 % interval."""
    figure, panels = plots.figure(2, sharey=True)
    for key, axes in zip(("training", "validation"), panels, strict=True):
        for i, (λ, r) in enumerate(results["runs"].items()):
            plots.band(
                axes, np.linspace(0, results["steps"], r[key].shape[1] + 1)[1:], r[key], f"λ = {λ:g}", plots.line(i)
            )
        axes.set(xlabel="step", title=f"{key} loss")
    panels[0].set_ylabel("nats per character; band: 95 % interval")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return plots.save(figure, folder, "transformer.png")


def main(argv: list[str]) -> None:
    """Prints what decays, trains, then prints and plots what came of it."""
    del argv
    console.plain()
    η, rates = _LEARNING_RATE.value, [0.0, *_WEIGHT_DECAY.value]
    print(wd.explain(RULES, shapes(32)[1]), end="\n\n", flush=True)
    results = run(epochs=_EPOCHS.value, seeds=_SEEDS.value, learning_rate=η, weight_decays=rates)
    print("Losses in nats per character:", report(results), sep="\n")
    print(f"{_SEEDS.value} seeds ({intervals.MEANING}), η = {η:g}. Curves: {plot(results, _OUT.value)}")


if __name__ == "__main__":
    app.run(main)
