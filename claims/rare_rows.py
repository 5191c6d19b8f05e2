"""Rows of an embedding that no batch touches shrink by every step's decay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_most
from claims.training import train

STEPS, ROWS, WIDTH, WEIGHT_DECAY = 300, 32, 8, 1.0
RATE = optax.warmup_cosine_decay_schedule(0.0, 0.01, 30, STEPS)
OPTIMIZERS: dict[str, Any] = {"SGDW": wd.sgdw, "AdamW": wd.adamw}
SHRINK = {name: f"{name}: largest |w_T/w_0/Π(1 − c_t) − 1| of rows without a gradient" for name in OPTIMIZERS}


def gradient(params: Any, row: jax.Array) -> Any:
    """Pulls one of the first half of the rows to 1."""
    return jax.grad(lambda p: ((p["embedding"][row] - 1) ** 2).sum())(params)


def measure() -> Measured:
    """A schedule, so that each step's decay is another; half of the rows are never looked up."""
    random = np.random.default_rng(0)
    start = jnp.asarray(random.normal(size=(ROWS, WIDTH)), jnp.float32)
    seen = jnp.asarray(random.integers(ROWS // 2, size=STEPS))
    left = np.cumprod([1 - WEIGHT_DECAY * float(RATE(jnp.int32(t))) for t in range(STEPS)])
    rows, curves = {}, {"Π(1 − c)": left}
    for name, optimizer in OPTIMIZERS.items():
        tx = optimizer(RATE, weight_decay=WEIGHT_DECAY)
        run = jax.jit(lambda p, tx=tx: train(tx, p, gradient, seen, lambda step: step.after["embedding"]))
        path = np.asarray(run({"embedding": start})[1])[:, ROWS // 2 :]
        ratio = path / np.asarray(start)[ROWS // 2 :]
        rows[SHRINK[name]] = np.abs(ratio[-1] / left[-1] - 1).max()
        curves[name] = ratio.mean(axis=(1, 2))
    return Measured(rows, curves)


def draw(axes: Any, curves: Any) -> None:
    """What is left of the untouched rows."""
    for i, (name, left) in enumerate(curves.items()):
        axes.plot(left, label=name, **plots.line(i) | {"linestyle": ("-", "--", ":")[i]})
    axes.set(xlabel="step", ylabel="left of a row without gradient")


CLAIM = Claim(
    title="Dense decay shrinks rows that have no gradient by Π(1 − c)",
    papers=("1711.05101",),
    statement="Decoupled decay acts on every weight in every step, also where the batch gives no gradient.",
    expected={row: at_most(1e-5) for row in SHRINK.values()},
    measure=measure,
    draw=draw,
    quick=True,
)
