"""Takes ~20 s on a laptop CPU and prints the decay per step and the test accuracy of Muon with AdamW for the rest.

Muon orthogonalises the update of a matrix, so it trains the hidden matrices only; AdamW trains embeddings, the last
layer, biases and norm scales at its own learning rate. `optax.contrib.muon` couples the decay of both to one of these
learning rates. With `wd.partition` each decays at its own η·λ, and biases and norm scales don't decay. A Flax
MLP with layer normalisation learns scikit-learn's handwritten digits.

    python examples/muon.py                                        # two tables, and curves in out/muon.png
    python examples/muon.py --muon_learning_rate=0.05 --epochs=30  # --help lists the knobs
"""

from typing import Any

import compare
import data
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from absl import app

import wd_optax as wd

SETTING = compare.Setting(
    "muon",
    seeds=5,
    epochs=(15, "Passes over the training images."),
    muon_learning_rate=(0.02, "η of the hidden matrices."),
    adam_learning_rate=(1e-3, "η of the rest."),
    weight_decay=(0.1, "λ of both, in addition to 0."),
)


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


def run(*, seeds: int, epochs: int, weight_decay: float, **rates: float) -> Any:
    """Trains with λ and 0."""
    x, x_test, y, y_test = data.digits()

    def loss_fn(params: Any, rows: jax.Array) -> jax.Array:
        logits: Any = MLP().apply({"params": params}, x[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

    def measure(params: Any) -> dict[str, jax.Array]:
        logits: Any = MLP().apply({"params": params}, x_test)
        right = (logits.argmax(-1) == y_test).mean(dtype=jnp.float32)
        return {"accuracy": 100 * right, "‖w‖": wd.weight_norm(params, [("Dense", "weights")])}

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        tx = optimizer(weight_decay=hparams["weight_decay"], **rates)
        params = MLP().init(key, x[:1])["params"]
        return compare.fit(tx, params, loss_fn, data.batches(len(x), 64, epochs=epochs, seed=key), measure)[1]

    return compare.sweep(train, seeds, weight_decay=[0.0, weight_decay])


def report(results: Any) -> str:
    """A line per λ, then what decay changes."""
    end = compare.last(results)
    of = {"weight_decay": end["weight_decay"][-1]}
    accuracy, norm = (compare.change(end[name], "+.2f", **of) for name in ("accuracy", "‖w‖"))
    return f"""Test accuracy (%) and ‖w‖ of the hidden matrices at the end:
{compare.table(end, training=".3f", accuracy=".2f", **{"‖w‖": ".2f"})}

λ = {of["weight_decay"].item():g} changes ‖w‖ of the hidden matrices by {norm}; the accuracy by {accuracy}."""


def plot(results: Any) -> Any:
    """Test accuracy and norm of the hidden matrices over the epochs, with Muon's decay and without."""
    return compare.curves(results, "epoch", accuracy="test accuracy, %", **{"‖w‖": "hidden ‖w‖"})


def decays() -> str:
    """What one step removes from each parameter."""
    flags, params = SETTING.values(), MLP().init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    rates = {name: flags[name] for name in ("muon_learning_rate", "adam_learning_rate", "weight_decay")}
    return "\n".join(f"{path:20} {rate:.3g}" for path, rate in removed(optimizer(**rates), params).items())


def main(argv: list[str]) -> None:
    """Prints the decay per step of each parameter, trains, then prints and plots the results."""
    del argv
    SETTING.show(decays, run, report, plot)


if __name__ == "__main__":
    app.run(main)
