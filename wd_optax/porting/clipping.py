"""Clips of the gradients' global norm, as PyTorch does it and over what is trained."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def clip_grad_norm(largest: float, eps: float = 1e-6) -> optax.GradientTransformation:
    """g ← g·min(1, c/(‖g‖ + ε)) with the norm of all gradients: `torch.nn.utils.clip_grad_norm_`, which adds ε = 10⁻⁶.

    Example: Optax's clip has no ε.
      >>> import jax.numpy as jnp
      >>> from wd_optax.porting.clipping import clip_grad_norm
      >>> clip = clip_grad_norm(1.0, eps=1.0)
      >>> clip.update(jnp.array([3.0, 4.0]), clip.init(jnp.zeros(2)))[0].tolist()
      [0.5, 0.6666666865348816]
    """

    def clip(updates: Any, params: Any) -> Any:
        del params
        factor = jnp.minimum(1, largest / (optax.tree.norm(updates) + eps))
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates)

    return of_trained(optax.stateless(clip))


def of_trained(clip: optax.GradientTransformation) -> optax.GradientTransformation:
    """`clip` for floating-point and complex leaves alone: integers have no gradient."""
    is_trained = lambda tree: jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.inexact), tree)
    return optax.masked(clip, is_trained)
