"""AdaBelief as its authors and timm have it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.porting.directions import Slots, per_leaf


def adabelief(
    b1: float, b2: float, eps: float, *, amsgrad: bool = False, rectify: bool = True, degenerated_to_sgd: bool = True
) -> optax.GradientTransformation:
    """u = m̂/(√ŝ + ε), s the variance of gradients around m, to which ε is added at each step, and stays.

    Args:
      b1, b2: of m and of s.
      eps: ε.
      amsgrad: s is its maximum so far; not in rectified steps.
      rectify: RAdam's: the step is r·√(1 − β₂ᵗ)·m̂/(√s + ε) where the variance is known well enough (ρ ≥ 5).
      degenerated_to_sgd: before that u = m̂; else nothing moves.

    Example: the first step of timm's default is momentum's.
      >>> import jax.numpy as jnp
      >>> from wd_optax.porting.adabelief import adabelief
      >>> tx = adabelief(0.9, 0.999, 1e-16)
      >>> u, _ = tx.update(jnp.array([3.0]), tx.init(jnp.zeros(1)))
      >>> print(f"{u.item():.4f}")
      3.0000

    Reference: Zhuang et al. 2020, arXiv 2010.07468.
    """

    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        mu = b1 * slots["mu"] + (1 - b1) * g
        s = b2 * slots["s"] + (1 - b2) * (g - mu) ** 2 + eps
        new = {"mu": mu, "s": s} | ({"s_max": jnp.maximum(slots["s_max"], s)} if amsgrad else {})
        m = mu / (1 - b1**t)
        if not rectify:
            return m / (jnp.sqrt(new["s_max" if amsgrad else "s"] / (1 - b2**t)) + eps), new
        longest = 2 / (1 - b2) - 1
        rho = longest - 2 * t * b2**t / (1 - b2**t)
        known = rho >= 5
        x = jnp.where(known, rho, 5)  # of the root, which is of a negative number otherwise
        r = (x - 4) / (longest - 4) * (x - 2) / x * longest / (longest - 2)
        rectified = jnp.sqrt((1 - b2**t) * r) * m / (jnp.sqrt(s) + eps)
        return jnp.where(known, rectified, m if degenerated_to_sgd else 0), new

    slots: Any = {"mu": 0.0, "s": 0.0} | ({"s_max": 0.0} if amsgrad else {})
    return per_leaf(step, **slots)
