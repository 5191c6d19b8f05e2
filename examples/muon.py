"""Takes ~15 s on a laptop CPU and prints the decay per step and the test accuracy of Muon with AdamW for the rest.

Muon orthogonalises the update of a matrix, so it trains the hidden matrices only; AdamW trains embeddings, the last
layer, biases and norm scales at its own learning rate. `optax.contrib.muon` couples the decay of both to one of these
learning rates. With `wd.partition` each decays at its own η·λ, and biases and norm scales don't decay. A Flax
MLP with layer normalisation learns scikit-learn's handwritten digits.

    python examples/muon.py                                        # two tables
    python examples/muon.py --muon_learning_rate=0.05 --epochs=30  # --help lists the knobs
"""

from typing import Any

import data
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from absl import app, flags

import wd_optax as wd

_EPOCHS = flags.DEFINE_integer("epochs", 15, "Passes over the training images.", lower_bound=1)
_MUON_LEARNING_RATE = flags.DEFINE_float("muon_learning_rate", 0.02, "η of the hidden matrices.")
_ADAM_LEARNING_RATE = flags.DEFINE_float("adam_learning_rate", 1e-3, "η of the rest.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.1, "λ of both.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the split, the initial weights and the batches.")


class MLP(nn.Module):
    """64 pixels → 128 → 128 → 10 logits."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, 64) → (n, 10)."""
        for width in (128, 128):
            x = nn.gelu(nn.LayerNorm()(nn.Dense(width)(x)))
        return nn.Dense(10, name="head")(x)


def choose(p: Any) -> str:
    """Chooses the optimizer of a parameter by its role, shape and path."""
    return "muon" if p.role == "weight" and len(p.shape) == 2 and not p.path.startswith("head") else "adamw"


def optimizer(muon_learning_rate: Any, adam_learning_rate: Any, weight_decay: Any) -> Any:
    """Muon and AdamW, each with its own η and λ in the state. An optimizer at η = 1, negated, is a direction."""
    muon = optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0))
    return wd.partition(
        {
            "muon": wd.decoupled(muon, muon_learning_rate, weight_decay=weight_decay),
            "adamw": wd.adamw(adam_learning_rate, weight_decay=weight_decay),
        },
        choose,
    )


def removed(tx: Any, params: Any) -> dict[str, float]:
    """The fraction that one step without gradient removes from each parameter."""
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, ones), tx.init(ones), ones)
    flat = jax.tree_util.tree_leaves_with_path(updates)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): 0.0 - float(u.mean()) for path, u in flat}


def run(*, epochs: int, muon_learning_rate: float, adam_learning_rate: float, weight_decay: float, seed: int) -> Any:
    """Trains with λ and 0. Returns the decay per step, and per λ the test accuracy and norm of the hidden matrices."""
    x, x_test, y, y_test = data.digits(seed)
    start = MLP().init(jax.random.key(seed), x[:1])["params"]
    batches = data.batches(len(x), 64, epochs=epochs, seed=seed).reshape(-1, 64)

    def loss(params: Any, rows: jax.Array) -> Any:
        logits: Any = MLP().apply({"params": params}, x[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

    def step(carry: Any, rows: jax.Array) -> Any:
        updates, state = tx.update(jax.grad(loss)(carry[0], rows), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    ends = {}
    for decay in (weight_decay, 0.0):
        tx = optimizer(muon_learning_rate, adam_learning_rate, decay)
        (end, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))((start, tx.init(start)))
        logits: Any = MLP().apply({"params": end}, x_test)
        norm = wd.weight_norm(end, [("Dense", "weights")])
        ends[decay] = {"accuracy": float((logits.argmax(-1) == y_test).mean()), "‖w‖": float(norm)}
    rates = removed(optimizer(muon_learning_rate, adam_learning_rate, weight_decay), start)
    return {"removed": rates, "ends": ends}


def main(argv: list[str]) -> None:
    """Trains, then prints the decay per step of each parameter and the results."""
    del argv
    jax.config.update("jax_logging_level", "WARNING")  # no messages about missing accelerators
    results = run(
        epochs=_EPOCHS.value,
        muon_learning_rate=_MUON_LEARNING_RATE.value,
        adam_learning_rate=_ADAM_LEARNING_RATE.value,
        weight_decay=_WEIGHT_DECAY.value,
        seed=_SEED.value,
    )
    for path, rate in results["removed"].items():
        print(f"{path:20} {rate:.3g}")
    for decay, end in results["ends"].items():
        print(
            f"λ = {decay:<6g} test accuracy {100 * end['accuracy']:.1f} %, ‖w‖ of the hidden matrices {end['‖w‖']:.2f}"
        )


if __name__ == "__main__":
    app.run(main)
