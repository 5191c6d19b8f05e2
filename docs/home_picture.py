"""Draws docs/pictures/home.png: three weights without a gradient, under a recipe that looks right and under ours."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import wd_optax as wd

STEPS, LR, DECAY = 2000, 1e-2, 0.1
PICTURE = pathlib.Path(__file__).parent / "pictures" / "home.png"


def run(tx: optax.GradientTransformation, params: Any) -> Any:
    """The mean of the one leaf before each step."""

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(optax.tree.zeros_like(params), state, params)
        mean = jax.tree.leaves(params)[0].astype(jnp.float32).mean()
        return (optax.apply_updates(params, updates), state), mean

    return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[1]


def main() -> None:
    """Runs the six optimizers and draws three panels."""
    kernel, bf16 = {"kernel": jnp.ones((32, 32))}, {"kernel": jnp.ones((32, 32), jnp.bfloat16)}
    stacked = {"blocks": {"norm": {"scale": jnp.ones((12, 32))}}}  # twelve layers, as `scan` stacks them
    by_rank = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    left = (1 - LR * DECAY) ** np.arange(STEPS)
    panels = {  # title: (recipe, what it does, what wd_optax does, what is right)
        "bfloat16 weights": (
            "optax.adamw", run(optax.adamw(LR, weight_decay=DECAY), bf16),
            run(wd.adamw(LR, weight_decay=DECAY, rounding="stochastic"), bf16), left,
        ),
        "norm scales of stacked layers": (
            "mask: ndim > 1", run(optax.adamw(LR, weight_decay=DECAY, mask=by_rank), stacked),
            run(wd.adamw(LR, weight_decay=DECAY), stacked), np.ones(STEPS),
        ),
        "decay chained after Adam": (
            "optax.chain(adam, add_decayed_weights)",
            run(optax.chain(optax.adam(LR), optax.add_decayed_weights(LR * DECAY)), kernel),
            run(wd.adamw(LR, weight_decay=DECAY), kernel), left,
        ),
    }  # fmt: skip
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
    for axis, (title, (recipe, theirs, ours, right)) in zip(axes, panels.items(), strict=True):
        axis.plot(right, color="0.75", linewidth=5, label="asked for")
        axis.plot(theirs, color="#d55e00", linewidth=2, label=recipe)
        axis.plot(ours, color="#0072b2", linewidth=2, linestyle="--", label="wd_optax")
        axis.set(title=title, xlabel="step", yscale="log" if theirs[-1] > 2 else "linear")
        axis.yaxis.set_minor_formatter("")
        axis.legend(fontsize="x-small", frameon=False)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("a weight that starts at 1,\nwithout a gradient")
    figure.savefig(PICTURE, dpi=144)


if __name__ == "__main__":
    main()
