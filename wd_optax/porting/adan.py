"""Adan as its authors and timm have it."""

import jax
import jax.numpy as jnp
import optax

from wd_optax.porting.cautious_steps import drop_disagreeing
from wd_optax.porting.directions import Slots, per_leaf


def adan(b1: float, b2: float, b3: float, eps: float, *, caution: bool = False) -> optax.GradientTransformation:
    """u = (m̂ + β₂·d̂)/(√n̂ + ε), of gradients g, their differences and (g + β₂·(g_t − g_{t−1}))².

    The difference of gradients weighs β₂ here; in `optax.scale_by_adan` it weighs 1 − β₂.

    Args:
      b1, b2, b3: of m, of the differences d, and of the squares n.
      eps: ε.
      caution: drops entries of m, and not of d, that disagree with the gradient.

    Example: after gradients 1 and 2, with β = ½ everywhere: m̂ = 5/3, d̂ = 2/3, n̂ = 4.5.
      >>> import jax.numpy as jnp
      >>> from wd_optax.porting.adan import adan
      >>> tx = adan(0.5, 0.5, 0.5, 0.0)
      >>> state = tx.init(params := jnp.zeros(1))
      >>> for g in (1.0, 2.0):
      ...     u, state = tx.update(jnp.array([g]), state, params)
      >>> print(f"{u.item():.4f} {(5 / 3 + 1 / 3) / 4.5**0.5:.4f}")
      0.9428 0.9428

    Reference: Xie et al. 2022, arXiv 2208.06677, Algorithm 1.
    """

    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        difference = jnp.where(t == 1, 0, g - slots["last"])
        mu = b1 * slots["mu"] + (1 - b1) * g
        d = b2 * slots["difference"] + (1 - b2) * difference
        nu = b3 * slots["nu"] + (1 - b3) * (g + b2 * difference) ** 2
        m = drop_disagreeing(mu, g) if caution else mu
        u = (m / (1 - b1**t) + b2 * d / (1 - b2**t)) / (jnp.sqrt(nu / (1 - b3**t)) + eps)
        return u, {"mu": mu, "difference": d, "nu": nu, "last": g}

    return per_leaf(step, mu=0.0, difference=0.0, nu=0.0, last=0.0)
