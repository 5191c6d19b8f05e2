"""Adafactor as big_vision has it, and timm's port of it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.porting.directions import Slots, per_leaf


def adafactor_big_vision(
    *,
    min_dim_size_to_factor: int = 16,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    beta2_cap: float = 0.999,
    eps: float | None = None,
    clipping_threshold: float | None = None,
) -> optax.GradientTransformation:
    """u = g/√v, v ← β_t·v + (1 − β_t)·(g² + ε) factored over the two largest axes; β_t = min(cap, 1 − (t − offset)^−d).

    Args:
      min_dim_size_to_factor: v is factored where both axes are at least as long.
      decay_rate: d.
      decay_offset: the step at which d's clock starts.
      beta2_cap: the largest β_t.
      eps: ε, by default 10⁻³⁰, and 10⁻⁷ for float16.
      clipping_threshold: divides u by max(1, RMS(u)/threshold).

    References: Shazeer & Stern 2018, arXiv 1804.04235; Zhai et al. 2021, arXiv 2106.04560, section 3.4.
    """

    def axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
        order = sorted((size, axis) for axis, size in enumerate(shape))
        if len(shape) < 2 or order[-2][0] < min_dim_size_to_factor:
            return None
        return order[-2][1], order[-1][1]

    def mean_of(axis: int) -> Any:
        def start(p: jax.Array) -> jax.Array:
            found = axes(p.shape)
            return jnp.zeros(()) if found is None else jnp.zeros_like(jnp.mean(p, found[axis], keepdims=True))

        return start

    def whole(p: jax.Array) -> jax.Array:
        return jnp.zeros_like(p) if axes(p.shape) is None else jnp.zeros(())

    def step(g: jax.Array, slots: Slots, t: jax.Array, params: jax.Array) -> tuple[jax.Array, Slots]:
        small = eps if eps is not None else 1e-7 if params.dtype == jnp.float16 else 1e-30
        beta = jnp.minimum(beta2_cap, 1 - jnp.maximum(t - decay_offset, 1) ** -decay_rate)
        ema: Any = lambda old, x: old + (1 - beta) * (x - old)
        square, found = g**2 + small, axes(g.shape)
        if found is None:
            v = ema(slots["v"], square)
            u, new = g / jnp.sqrt(v), {**slots, "v": v}
        else:
            row = ema(slots["v_row"], jnp.mean(square, found[1], keepdims=True))
            col = ema(slots["v_col"], jnp.mean(square, found[0], keepdims=True))
            scale = jnp.sqrt(row / jnp.mean(row, found[0], keepdims=True)) * jnp.sqrt(col)
            u, new = g / scale, {**slots, "v_row": row, "v_col": col}
        if clipping_threshold is not None:
            rms = jnp.linalg.norm(u.ravel()) / math.sqrt(u.size)
            u = u / jnp.maximum(rms / clipping_threshold, 1)
        return u, new

    return per_leaf(step, uses=("params",), v=whole, v_row=mean_of(1), v_col=mean_of(0))


def stored_ema(decay: float, dtype: Any) -> optax.GradientTransformation:
    """m ← m + (1 − β)·(u − m) in `dtype`, and m comes out: momentum in bfloat16, computed in float32."""

    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        del t
        kind = dtypes.arithmetic(dtype)
        old, u = slots["mu"].astype(kind), g.astype(dtype).astype(kind)
        mu = (old + (1 - decay) * (u - old)).astype(dtype)
        return mu.astype(g.dtype), {"mu": mu}

    return per_leaf(step, mu=lambda p: jnp.zeros_like(p, dtype=dtype))
