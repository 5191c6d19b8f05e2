"""Penalties for the loss: the value; autodiff gives the decay.

Under plain SGD the gradient of `l2_penalty` and decoupled decay are the same trajectory; under Adam
they differ, because the penalty's gradient passes through the preconditioner.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wd_optax import dtypes
from wd_optax.hyperparams import Scalar, check_number
from wd_optax.masking import masks


def l2_penalty(params: Any, weight_decay: Scalar, mask: masks.Mask = "weights", *, half: bool = True) -> jax.Array:
    """λ/2·Σ m·|w|², whose gradient is λ·m·w; with `half=False` λ·Σ m·|w|², gradient 2λ·m·w.

    Args:
      params: a tree of arrays.
      weight_decay: λ ≥ 0, a scalar; it means the first form unless `half=False`.
      mask: which leaves, see `wd_optax.masking`: weights and embeddings by default, as the optimizers; None is all.
      half: whether the ½ stands in front.

    Returns:
      A scalar in the widest of float32 and the leaves' types, in which it is summed, too.

    Raises:
      ValueError, TypeError: for a bad λ or mask.

    Example:
      >>> import jax, jax.numpy as jnp, wd_optax as wd
      >>> params = {"kernel": jnp.array([[3.0]]), "bias": jnp.array([5.0])}
      >>> jax.grad(wd.l2_penalty)(params, 0.1)
      {'bias': Array([0.], dtype=float32), 'kernel': Array([[0.3]], dtype=float32)}
    """
    total = _penalty(params, weight_decay, mask, lambda w: jnp.real(w * jnp.conj(w)))
    return total / 2 if half else total


def l1_penalty(params: Any, weight_decay: Scalar, mask: masks.Mask = "weights") -> jax.Array:
    """λ·Σ m·|w|, whose (sub)gradient is λ·m·sign(w), and 0 at w = 0.

    Its gradient makes weights small, never exactly zero; `wd_optax.proximal` with `penalty="l1"` does.

    Args:
      params: a tree of arrays.
      weight_decay: λ ≥ 0, a scalar.
      mask: which leaves, see `wd_optax.masking`: weights and embeddings by default, as the optimizers; None is all.

    Returns:
      A scalar in the widest of float32 and the leaves' types.

    Raises:
      ValueError, TypeError: for a bad λ or mask.

    Example:
      >>> import jax.numpy as jnp, wd_optax as wd
      >>> float(wd.l1_penalty({"kernel": jnp.array([[3.0, -1.0]])}, 0.5))
      2.0
    """
    # |w| as w·sign(w): jnp.abs has derivative 1 at 0, which would push zero weights away from zero
    return _penalty(params, weight_decay, mask, lambda w: jnp.real(w * jnp.conj(jax.lax.stop_gradient(jnp.sign(w)))))


def _penalty(params: Any, weight_decay: Any, mask: masks.Mask, measure: Callable[[Any], Any]) -> jax.Array:
    """λ·Σ m·measure(w), over leaves that may decay."""
    check_number("weight_decay", weight_decay)
    params = dtypes.as_arrays(params)
    every = zip(jax.tree.leaves(params), jax.tree.leaves(masks.multipliers(mask, params)), strict=True)
    pairs = [(w, m) for w, m in every if not masks.is_zero(m)]
    wide = jnp.finfo(dtypes.arithmetic(*(w.dtype for w, _ in pairs))).dtype
    total = jnp.zeros((), wide)
    for w, m in pairs:
        total += jnp.asarray(m, wide) * jnp.sum(measure(w.astype(dtypes.arithmetic(w.dtype)))).astype(wide)
    return jnp.asarray(weight_decay).astype(wide) * total
