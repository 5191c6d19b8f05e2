"""Adam's direction as other frameworks have it, where `optax.scale_by_adam` isn't the same numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.porting.directions import Slots, per_leaf


def adam(
    b1: float,
    b2: float,
    eps: float,
    *,
    nesterov: bool = False,
    amsgrad: bool = False,
    eps_corrected: bool = True,
    bias_correction: bool = True,
    averages: bool = True,
    clipping_threshold: float | None = None,
) -> optax.GradientTransformation:
    """u = m̂/(√v̂ + ε), Optax's own transformation where no option asks for more.

    Args:
      b1, b2: of the moments.
      eps: ε.
      nesterov: m is blended with g once more, both corrected by 1 − β₁ᵗ, as timm does; Optax corrects the blend's
        first half by 1 − β₁ᵗ⁺¹.
      amsgrad: v is its maximum so far, taken before the correction of its bias, as PyTorch and Keras do; Optax takes it
        after or corrects nothing.
      eps_corrected: False adds ε to √v and corrects the sum, as Keras and TensorFlow do: ε_t = ε/√(1 − β₂ᵗ).
      bias_correction: False is û = m/(√v + ε).
      averages: False adds g to m in place of (1 − β₁)·g.
      clipping_threshold: divides u by max(1, RMS(g/(√v̂ + ε))/threshold) of each leaf, as StableAdamW (Wortsman et al.
        2023, arXiv 2304.13013).

    Example: after gradients 1 and 0, AMSGrad keeps the larger v.
      >>> import jax.numpy as jnp
      >>> from wd_optax.porting.adam_directions import adam
      >>> for amsgrad in (False, True):
      ...     tx = adam(0.5, 0.5, 0.0, amsgrad=amsgrad)
      ...     state = tx.init(params := jnp.zeros(1))
      ...     for g in (1.0, 0.0):
      ...         u, state = tx.update(jnp.array([g]), state, params)
      ...     print(f"{u.item():.3f}")
      0.577
      0.408
    """
    own = nesterov or amsgrad or not eps_corrected or not bias_correction or not averages
    if not own and clipping_threshold is None:
        return optax.scale_by_adam(b1, b2, eps)

    def step(g: jax.Array, slots: Slots, t: jax.Array) -> tuple[jax.Array, Slots]:
        mu = b1 * slots["mu"] + ((1 - b1) * g if averages else g)
        nu = b2 * slots["nu"] + (1 - b2) * g**2
        new = {"mu": mu, "nu": nu} | ({"nu_max": jnp.maximum(slots["nu_max"], nu)} if amsgrad else {})
        bias1, bias2 = (1 - b1**t, 1 - b2**t) if bias_correction else (1, 1)
        root = jnp.sqrt(new["nu_max" if amsgrad else "nu"])
        d = root / jnp.sqrt(bias2) + eps if eps_corrected else (root + eps) / jnp.sqrt(bias2)
        if clipping_threshold is not None:
            d = d * jnp.maximum(jnp.sqrt(jnp.mean((g / d) ** 2)) / clipping_threshold, 1)
        m = b1 * mu + (1 - b1) * g if nesterov else mu
        return m / bias1 / d, new

    slots: Any = {"mu": 0.0, "nu": 0.0} | ({"nu_max": 0.0} if amsgrad else {})
    return per_leaf(step, **slots)
