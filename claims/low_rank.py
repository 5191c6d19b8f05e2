"""LoRA: decay of the factors A and B is a nuclear-norm penalty on their product; a rule decays the product."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most
from claims.training import train

STEPS, SHAPE, RANK, ETA, WEIGHT_DECAY = 4000, (12, 8), 8, 0.05, 1.0
VALUES = np.array([4.0, 3.0, 2.2, 1.6, 0.7, 0.4, 0.2, 0.1])  # singular values of the target, four of them below λ
PENALTY = "largest entry of AB − the target with its singular values lowered by λ"
RIDGE = "largest entry of AB − the target/(1 + λ), which decay of AB itself would give"
RULE = "with `wd.rules.low_rank`: largest entry of AB − the target/(1 + λ)"
SQUARE = "AB after one step of decay c on both factors, relative to (1 − c)²·AB"
SINGLE = "AB after one step of decay 1 − √(1 − c) on both, relative to (1 − c)·AB"


def product(params: Any) -> jax.Array:
    """AB."""
    return params["lora_a"]["kernel"] @ params["lora_b"]["kernel"]


def shrunk(params: Any, c: float) -> jax.Array:
    """AB after one step of decay without a gradient."""
    optimizer = wd.shrink(c)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    return product(jax.tree.map(jnp.add, params, updates))


def measure() -> Measured:
    """½‖AB − Y‖² by gradient descent with decay of A and B, in float64."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        left, right = (np.linalg.qr(random.normal(size=(n, RANK)))[0] for n in SHAPE)
        target = (left * VALUES) @ right.T
        nearest = (left * np.maximum(VALUES - WEIGHT_DECAY, 0)) @ right.T
        sizes = {"lora_a": (SHAPE[0], RANK), "lora_b": (RANK, SHAPE[1])}
        start = {name: {"kernel": jnp.asarray(random.normal(size=size))} for name, size in sizes.items()}
        gradient = jax.grad(lambda p, _: 0.5 * jnp.sum((product(p) - target) ** 2))
        values = lambda step: jnp.linalg.svd(product(step.after), compute_uv=False)
        optimizer = wd.sgdw(ETA, weight_decay=WEIGHT_DECAY)
        end, path = jax.jit(lambda p: train(optimizer, p, gradient, None, values, STEPS))(start)
        found, c = product(end), 0.1
        rule = wd.rules.low_rank([("(.*)lora_a/kernel", r"\1lora_b/kernel", 1.0)])
        ridge = wd.sgdw(ETA, weight_decay=WEIGHT_DECAY, rule=rule)
        turned = np.linalg.qr(random.normal(size=(RANK, RANK)))[0]  # factors without small singular values
        level = {"lora_a": {"kernel": 2 * left @ turned}, "lora_b": {"kernel": 2 * np.eye(*sizes["lora_b"])}}
        effective, _ = jax.jit(lambda p: train(ridge, p, gradient, None, steps=STEPS))(jax.tree.map(jnp.asarray, level))
        rows = {
            PENALTY: jnp.abs(found - nearest).max(),
            RIDGE: jnp.abs(found - target / (1 + WEIGHT_DECAY)).max(),
            RULE: jnp.abs(product(effective) - target / (1 + WEIGHT_DECAY)).max(),
            SQUARE: jnp.abs(shrunk(start, c) / product(start) / (1 - c) ** 2 - 1).max(),
            SINGLE: jnp.abs(shrunk(start, 1 - (1 - c) ** 0.5) / product(start) / (1 - c) - 1).max(),
        }
        return Measured({name: float(x) for name, x in rows.items()}, np.asarray(path))


def draw(axes: Any, curves: Any) -> None:
    """The singular values of AB over the run, and where a nuclear-norm penalty ends."""
    for i, value in enumerate(VALUES):
        axes.semilogx(np.arange(1, STEPS + 1), curves[:, i], label=f"σ = {value}", **plots.line(i))
        axes.plot(STEPS, max(value - WEIGHT_DECAY, 0), "o", color="black", markersize=4)
    axes.set(xlabel="step", ylabel="singular values of AB; ●: σ − λ")


CLAIM = Claim(
    title="LoRA: decay of A and B is a nuclear-norm penalty on AB; decay of AB itself is ridge",
    papers=("2410.23819",),
    statement="An L2 penalty on both factors of a product has the minimisers of a nuclear-norm penalty on the product, "
    "so decay of LoRA's factors lowers its rank. The rule that decays AB is ours.",
    expected={
        PENALTY: at_most(1e-10),
        RIDGE: at_least(0.1),
        RULE: at_most(5e-3),
        SQUARE: at_most(1e-12),
        SINGLE: at_most(1e-12),
    },
    measure=measure,
    draw=draw,
    quick=True,
)
