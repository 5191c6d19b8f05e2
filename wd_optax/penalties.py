"""Norms of the parameters that decay: penalties for the loss, whose gradient is the decay, and the norm itself.

Under plain SGD the gradient of `l2_penalty` and decoupled decay are the same trajectory. Under Adam they differ,
because the penalty's gradient passes through the preconditioner.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.hyperparams import Scalar, check_number
from wd_optax.masking import forms, masks
from wd_optax.masking.forms import Mask, Multiplier


def weight_norm(params: optax.Params, mask: Mask = "weights") -> jax.Array:
    """‖w‖ = √Σ |w|² over the parameters that the mask decays, each counted fully whatever its multiplier is.

    A multiplier scales the decay and not the weight, so a leaf with m = 0.1 counts as one with m = 1 does;
    `wd_optax.l2_penalty` weighs them. The gradient at w = 0 is 0.

    Args:
      params: a tree of arrays.
      mask: which leaves, see `wd_optax.masking`: weights and embeddings by default, as the optimizers; None is all.

    Returns:
      A scalar in float32, or float64 for float64 leaves, in which it is summed, too; 0 where nothing decays.

    Raises:
      ValueError, TypeError: for a bad mask.

    Example:
      >>> import jax.numpy as jnp, wd_optax as wd
      >>> params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([5.0])}
      >>> float(wd.weight_norm(params)), float(wd.weight_norm(params, [("kernel", 0.1)]))
      (5.0, 5.0)
    """
    counted = jax.tree.map(_is_positive, masks.multipliers(mask, params))
    total = _weighted_sum(params, counted, _square)
    is_zero = total == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, total)))


def l2_penalty(params: optax.Params, weight_decay: Scalar, mask: Mask = "weights", *, half: bool = True) -> jax.Array:
    """λ/2·Σ m·|w|², whose gradient is λ·m·w; with `half=False` λ·Σ m·|w|², gradient 2λ·m·w.

    Args:
      params: a tree of arrays.
      weight_decay: λ ≥ 0, a scalar; it means the first form unless `half=False`.
      mask: which leaves, see `wd_optax.masking`: weights and embeddings by default, as the optimizers; None is all.
      half: whether to multiply by ½.

    Returns:
      A scalar in float32, or float64 for float64 leaves, in which it is summed, too.

    Raises:
      ValueError, TypeError: for a bad λ or mask.

    Example:
      >>> import jax, jax.numpy as jnp, wd_optax as wd
      >>> params = {"kernel": jnp.array([[3.0]]), "bias": jnp.array([5.0])}
      >>> jax.grad(wd.l2_penalty)(params, 0.1)
      {'bias': Array([0.], dtype=float32), 'kernel': Array([[0.3]], dtype=float32)}
    """
    total = _penalty(params, weight_decay, mask, _square)
    return total / 2 if half else total


def l1_penalty(params: optax.Params, weight_decay: Scalar, mask: Mask = "weights") -> jax.Array:
    """λ·Σ m·|w|, whose (sub)gradient is λ·m·sign(w), and 0 at w = 0.

    Its gradient makes weights small, never exactly zero; `wd_optax.proximal` with `penalty="l1"` does.

    Args:
      params: a tree of arrays.
      weight_decay: λ ≥ 0, a scalar.
      mask: which leaves, see `wd_optax.masking`: weights and embeddings by default, as the optimizers; None is all.

    Returns:
      A scalar in float32, or float64 for float64 leaves.

    Raises:
      ValueError, TypeError: for a bad λ or mask.

    Example:
      >>> import jax.numpy as jnp, wd_optax as wd
      >>> float(wd.l1_penalty({"kernel": jnp.array([[3.0, -1.0]])}, 0.5))
      2.0
    """
    return _penalty(params, weight_decay, mask, _abs)


Measure = Callable[[jax.Array], jax.Array]  # entry by entry


def _square(w: jax.Array) -> jax.Array:
    return jnp.real(w * jnp.conj(w))


def _abs(w: jax.Array) -> jax.Array:
    """|w| as w·sign(w): the derivative of `jnp.abs` at 0 is 1, which would push zero weights away from zero."""
    return jnp.real(w * jnp.conj(jax.lax.stop_gradient(jnp.sign(w))))


def _is_positive(m: Multiplier) -> Multiplier:
    return float(m > 0) if isinstance(m, float) else jnp.asarray(m) > 0


def _penalty(params: optax.Params, weight_decay: Scalar, mask: Mask, measure: Measure) -> jax.Array:
    """λ·Σ m·measure(w)."""
    check_number("weight_decay", weight_decay)
    total = _weighted_sum(params, masks.multipliers(mask, params), measure)
    return jnp.asarray(weight_decay).astype(total.dtype) * total


def _weighted_sum(params: optax.Params, multipliers: optax.Params, measure: Measure) -> jax.Array:
    """Σ m·measure(w), over leaves that may decay."""
    every = zip(jax.tree.leaves(dtypes.as_arrays(params)), jax.tree.leaves(multipliers), strict=True)
    pairs = [(w, m) for w, m in every if not forms.is_zero(m)]
    dtype = jnp.finfo(dtypes.arithmetic(*(w.dtype for w, _ in pairs))).dtype
    total = jnp.zeros((), dtype)
    for w, m in pairs:
        total += jnp.asarray(m, dtype) * jnp.sum(measure(w.astype(dtypes.arithmetic(w.dtype)))).astype(dtype)
    return total
