"""Steps of Keras that Optax lacks: η inside the momentum, and its Adafactor."""

import jax
import jax.numpy as jnp
import optax

from wd_optax.porting.directions import Slots, per_leaf


def momentum_step(momentum: float, nesterov: bool) -> optax.GradientTransformation:
    """−b, b ← μ·b + η·g; with Nesterov −(μ·b + η·g): a finished step that reads η, see `wd_optax.porting.live`.

    Keras, TensorFlow: where η falls, what is in the momentum keeps the η that it came with.
    """

    def step(g: jax.Array, slots: Slots, t: jax.Array, learning_rate: jax.Array) -> tuple[jax.Array, Slots]:
        del t
        b = momentum * slots["trace"] + learning_rate * g
        return -(momentum * b + learning_rate * g if nesterov else b), {"trace": b}

    return per_leaf(step, uses=("learning_rate",), trace=0.0)


def adafactor_step(
    *, beta_2_decay: float, epsilon_1: float, epsilon_2: float, clip_threshold: float
) -> optax.GradientTransformation:
    """−max(ε₂, RMS(p))·min(η, 1/√t)·u/max(1, RMS(u)/threshold), u = g/√v, v factored over the last two axes.

    A finished step that reads η. Not PyTorch's or Optax's: v is r·c/mean(r), with ε₁ added to g².

    Args:
      beta_2_decay: β₂ = 1 − t^decay.
      epsilon_1: ε₁.
      epsilon_2: ε₂.
      clip_threshold: of the RMS of u.

    Reference: Shazeer & Stern 2018, arXiv 1804.04235.
    """

    def rms(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean(x**2))

    def step(
        g: jax.Array, slots: Slots, t: jax.Array, params: jax.Array, learning_rate: jax.Array
    ) -> tuple[jax.Array, Slots]:
        beta, square = 1 - t**beta_2_decay, g**2 + epsilon_1
        if g.ndim >= 2:
            row = beta * slots["v_row"] + (1 - beta) * jnp.mean(square, -1)
            col = beta * slots["v_col"] + (1 - beta) * jnp.mean(square, -2)
            v = (row / jnp.mean(row, -1, keepdims=True))[..., None] * col[..., None, :]
            new = {**slots, "v_row": row, "v_col": col}
        else:
            v = beta * slots["v"] + (1 - beta) * square
            new = {**slots, "v": v}
        u = g / jnp.sqrt(v)
        rate = jnp.maximum(epsilon_2, rms(params)) * jnp.minimum(learning_rate, 1 / jnp.sqrt(t))
        return -rate * (u / jnp.maximum(1, rms(u) / clip_threshold)), new

    whole = lambda p: jnp.zeros_like(p) if p.ndim < 2 else jnp.zeros((), p.dtype)
    row = lambda p: jnp.zeros(p.shape[:-1] if p.ndim >= 2 else (), p.dtype)
    col = lambda p: jnp.zeros((*p.shape[:-2], p.shape[-1]) if p.ndim >= 2 else (), p.dtype)
    return per_leaf(step, uses=("params", "learning_rate"), real=False, v=whole, v_row=row, v_col=col)
