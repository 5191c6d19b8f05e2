"""In bfloat16 a decay of c ≤ 2⁻⁹ per step is rounded away; stochastic and compensated rounding keep it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, between, exactly
from claims.training import train

POWERS = np.arange(-14, -5)  # c = 2**power
STEPS, SIZE = 400, 4096
LOST = "c = 2⁻⁹, nearest: weights that a decay of 400 steps moves"
MOVED = "c = 2⁻⁷, nearest: share of the weights that it moves"
ROUNDINGS = ("stochastic", "compensated")
KEPT = {name: f"c = 2⁻¹¹, {name}: what is left of ‖w‖ / (1 − c)⁴⁰⁰" for name in ROUNDINGS}


@functools.partial(jax.jit, static_argnums=0)
def decay(rounding: Any, start: jax.Array, c: jax.Array) -> jax.Array:
    """The weights after all steps without a gradient, η = 1 and λ = c."""
    optimizer = wd.sgdw(1.0, weight_decay=c, rounding=rounding)
    return train(optimizer, {"w": start}, lambda p, _: {"w": jnp.zeros_like(start)}, None, steps=STEPS)[0]["w"]


def measure() -> Measured:
    """Weights between 1 and 2, so that every significand occurs."""
    start = jnp.asarray(np.random.default_rng(0).uniform(1, 2, SIZE), jnp.bfloat16)
    c = jnp.asarray(2.0**POWERS, jnp.float32)
    norm = lambda w: np.linalg.norm(np.asarray(w, float), axis=-1)
    ends = {name: jax.vmap(functools.partial(decay, name, start))(c) for name in ("nearest", *ROUNDINGS)}
    left = {name: norm(end) / norm(start) for name, end in ends.items()}
    moved = np.asarray((ends["nearest"] != start[None]).sum(axis=-1))
    exact = (1 - 2.0**POWERS) ** STEPS
    at = {int(power): i for i, power in enumerate(POWERS)}
    rows = {LOST: moved[at[-9]], MOVED: moved[at[-7]] / SIZE}
    rows |= {KEPT[name]: left[name][at[-11]] / exact[at[-11]] for name in ROUNDINGS}
    return Measured(rows, {"exact": exact} | left)


def draw(axes: Any, curves: Any) -> None:
    """What is left of the norm, by decay per step."""
    for i, (name, left) in enumerate(curves.items()):
        axes.plot(POWERS, left, label=name, marker="o", **plots.line(i))
    axes.set(xlabel="log₂ of c, the decay per step", ylabel=f"left of ‖w‖ after {STEPS} steps")


CLAIM = Claim(
    title="bfloat16 parameters lose the whole decay where c ≤ 2⁻⁹",
    papers=("2010.06192",),
    statement="With bfloat16 parameters, rounding to the nearest value cancels small updates; stochastic rounding and "
    "Kahan summation keep them.",
    expected={LOST: exactly(0), MOVED: at_least(0.9)} | {row: between(0.99, 1.01) for row in KEPT.values()},
    measure=measure,
    draw=draw,
    quick=True,
)
