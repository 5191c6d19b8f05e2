"""Directions of `torch.optim` that Optax lacks, in PyTorch's order of operations.

Read in torch 2.13.0's `_single_tensor_*` functions; the reasons why Optax's differ are beside each.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.porting.directions import Slots, per_leaf


def amsgrad(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """u = m̂/(√(max v)/√(1 − β₂ᵗ) + ε): the maximum is taken before the correction. Optax takes it of v̂."""

    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        mu, nu = b1 * slots["mu"] + (1 - b1) * g, b2 * slots["nu"] + (1 - b2) * g * g
        nu_max = jnp.maximum(slots["nu_max"], nu)
        root = jnp.sqrt(nu_max) / jnp.sqrt(1 - b2**t) + eps
        return mu / (1 - b1**t) / root, {"mu": mu, "nu": nu, "nu_max": nu_max}

    return per_leaf(step, mu=0.0, nu=0.0, nu_max=0.0)


def nadam(b1: float, b2: float, eps: float, momentum_decay: float) -> optax.GradientTransformationExtraArgs:
    """Nesterov Adam with μ_t = β₁·(1 − ½·0.96^(t·ψ)), as Dozat proposes it; Optax's holds μ = β₁.

    u = ((1 − μ_t)/(1 − Π μ)·g + μ_{t+1}/(1 − μ_{t+1}·Π μ)·m)/(√v̂ + ε).

    Reference: Dozat 2016, "Incorporating Nesterov momentum into Adam".
    """

    def momentum(t: jax.Array) -> jax.Array:
        return b1 * (1 - 0.5 * jnp.power(jnp.asarray(0.96, t.dtype), t * momentum_decay))

    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        mu, nu = b1 * slots["mu"] + (1 - b1) * g, b2 * slots["nu"] + (1 - b2) * g * g
        now, after = momentum(t), momentum(t + 1)
        product = slots["mu_product"] * now
        blend = (1 - now) / (1 - product) * g + after / (1 - product * after) * mu
        root = jnp.sqrt(nu / (1 - b2**t)) + eps
        return blend / root, {"mu": mu, "nu": nu, "mu_product": product}

    return per_leaf(step, mu=0.0, nu=0.0, mu_product=_scalar_one)


def radam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """u = r_t·m̂·√(1 − β₂ᵗ)/(√v + ε) where ρ_t > 5, else m̂: ε isn't corrected. Optax adds it to √v̂.

    Reference: Liu et al. 2020, arXiv 1908.03265.
    """
    rho_inf = 2 / (1 - b2) - 1

    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        mu, nu = b1 * slots["mu"] + (1 - b1) * g, b2 * slots["nu"] + (1 - b2) * g * g
        corrected = mu / (1 - b1**t)
        rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
        above = jnp.maximum(rho, 5.0)  # below it the root may be of a negative number
        rectified = (above - 4) * (above - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * above)
        adapted = corrected * jnp.sqrt(1 - b2**t) / (jnp.sqrt(nu) + eps) * jnp.sqrt(rectified)
        return jnp.where(rho > 5, adapted, corrected), {"mu": mu, "nu": nu}

    return per_leaf(step, mu=0.0, nu=0.0)


def adagrad(lr_decay: float, initial: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """u = g/(√Σg² + ε)/(1 + (t − 1)·lr_decay): ε outside the root, where Optax has it inside."""

    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        total = slots["sum_of_squares"] + g * g
        return g / (jnp.sqrt(total) + eps) / (1 + (t - 1) * lr_decay), {"sum_of_squares": total}

    return per_leaf(step, sum_of_squares=initial)


def asgd(lambd: float, alpha: float, t0: float) -> optax.GradientTransformationExtraArgs:
    """The finished step −η'·(g + lambd·p), with the η' that the step before left: η/(1 + lambd·η·t)^alpha.

    The first step's η' is η itself. `ax` is the running mean of the parameters from step t0 on.

    Reference: Polyak & Juditsky 1992; Bottou's stochastic gradient descent for this η'.
    """

    def step(
        g: jax.Array, slots: Slots, t: jax.Array, *, params: jax.Array, learning_rate: jax.Array
    ) -> tuple[jax.Array, Slots]:
        eta = jnp.where(t == 1, learning_rate, slots["eta"])
        u = -eta * (g + lambd * params)
        ax = slots["ax"] + jnp.where(slots["mu"] == 1, 1, slots["mu"]) * (params + u - slots["ax"])
        after = learning_rate / (1 + lambd * learning_rate * t) ** alpha
        return u, {"eta": after, "mu": 1 / jnp.maximum(1.0, t - t0), "ax": ax}

    return per_leaf(step, uses=("params", "learning_rate"), real=False, eta=_scalar_one, mu=_scalar_one, ax=0.0)


def adafactor(beta2_decay: float, eps: tuple[float | None, float], d: float) -> optax.GradientTransformationExtraArgs:
    """The finished step −max(ε₂, RMS(p))·min(η, 1/√t)·u/max(1, RMS(u)/d), u = g/max(√v, ε₁), v factored.

    The last two axes are factored for every rank above 1; Optax factors the two largest, from 128 entries on, adds ε₁
    to g² and multiplies by η without 1/√t.

    Reference: Shazeer & Stern 2018, arXiv 1804.04235.
    """

    def step(
        g: jax.Array, slots: Slots, t: jax.Array, *, params: jax.Array, learning_rate: jax.Array
    ) -> tuple[jax.Array, Slots]:
        eps1 = float(jnp.finfo(g.dtype).eps) if eps[0] is None else eps[0]
        new = t**beta2_decay  # 1 − β₂
        rms_p = jnp.sqrt(jnp.mean(params * params))
        alpha = jnp.maximum(eps[1], rms_p) * jnp.minimum(learning_rate, 1 / jnp.sqrt(t))
        if g.ndim > 1:
            rows = slots["v_row"] + new * (jnp.mean(g * g, -1, keepdims=True) - slots["v_row"])
            columns = slots["v_col"] + new * (jnp.mean(g * g, -2, keepdims=True) - slots["v_col"])
            v = rows * columns / jnp.maximum(jnp.mean(rows, -2, keepdims=True), eps1)
            slots = {"v_row": rows, "v_col": columns, "v": slots["v"]}
        else:
            v = slots["v"] + new * (g * g - slots["v"])
            slots = {**slots, "v": v}
        u = g * jax.lax.rsqrt(jnp.maximum(v, eps1 * eps1))
        return -alpha / jnp.maximum(1.0, jnp.sqrt(jnp.mean(u * u)) / d) * u, slots

    def shaped(*, row: int = 1, column: int = 1) -> Any:
        def zeros(p: jax.Array) -> jax.Array:
            if jnp.iscomplexobj(p):
                raise ValueError("torch.optim.Adafactor refuses complex parameters, as this does")
            if p.ndim < 2:
                return jnp.zeros((), p.dtype)
            return jnp.zeros((*p.shape[:-2], row or p.shape[-2], column or p.shape[-1]), p.dtype)

        return zeros

    def vector(p: jax.Array) -> jax.Array:
        return jnp.zeros_like(p) if p.ndim < 2 else jnp.zeros((), p.dtype)

    slots = {"v_row": shaped(row=0), "v_col": shaped(column=0), "v": vector}
    return per_leaf(step, uses=("params", "learning_rate"), real=False, **slots)


def muon(
    momentum: float, nesterov: bool, coefficients: tuple[float, float, float], eps: float, ns_steps: int,
    adjust_lr_fn: str | None,
) -> optax.GradientTransformationExtraArgs:  # fmt: skip
    """Orthogonalised momentum, by Newton-Schulz in bfloat16 as PyTorch's, times the shape's factor of η.

    m ← μ·m + (1 − μ)·g, and g + μ·(m − g) with Nesterov. PyTorch rounds each product of matrices to bfloat16; so does
    this, from float32 sums whose order differs. Optax's keeps the parameters' dtype.

    Reference: Jordan et al. 2024, "Muon", github.com/KellerJordan/Muon; Liu et al. 2025, arXiv 2502.16982.
    """

    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        mu = slots["mu"] + (1 - momentum) * (g - slots["mu"])
        u = g + momentum * (mu - g) if nesterov else mu
        rows, columns = g.shape
        if adjust_lr_fn == "match_rms_adamw":
            factor = 0.2 * math.sqrt(max(rows, columns))
        else:
            factor = math.sqrt(max(1.0, rows / columns))
        return factor * newton_schulz(u, [coefficients] * ns_steps, eps).astype(g.dtype), {"mu": mu}

    def zeros(p: jax.Array) -> jax.Array:
        if p.ndim != 2 or jnp.iscomplexobj(p):
            raise ValueError(
                f"torch.optim.Muon takes real matrices only, and a parameter is {p.dtype} of shape {p.shape}: give the "
                "others another optimizer, with wd.partition"
            )
        return jnp.zeros_like(p)

    return per_leaf(step, real=False, mu=zeros)


def newton_schulz(
    g: jax.Array, coefficients: Sequence[tuple[float, float, float]], eps: float, safety: float = 1.0
) -> jax.Array:
    """The nearest orthogonal matrix, roughly, in bfloat16: X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, for each (a, b, c).

    X starts as g/max(safety·‖g‖, ε).
    """
    x = _bfloat16(g.T if g.shape[0] > g.shape[1] else g)
    norm = _bfloat16(safety * _f32(_bfloat16(jnp.sqrt(jnp.sum(jnp.square(_f32(x)))))))
    x = _bfloat16(_f32(x) / jnp.maximum(_f32(norm), _f32(_bfloat16(jnp.asarray(eps)))))
    for a, b, c in coefficients:
        gram = _bfloat16(_product(x, x.T))
        update = _bfloat16(b * _f32(gram) + c * _product(gram, gram))
        x = _bfloat16(a * _f32(x) + _product(update, x))
    return x.T if g.shape[0] > g.shape[1] else x


def _bfloat16(x: jax.Array) -> jax.Array:
    """Rounds to bfloat16 where XLA would keep the bits beyond (`xla_allow_excess_precision`)."""
    return jax.lax.reduce_precision(x.astype(jnp.float32), 8, 7).astype(jnp.bfloat16)


def _f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """A product of matrices of bfloat16, summed in float32."""
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _scalar_one(p: jax.Array) -> jax.Array:
    """A scalar slot that starts at 1."""
    return jnp.ones((), jnp.finfo(dtypes.arithmetic(p.dtype)).dtype)
