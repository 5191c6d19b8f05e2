"""Gradients of penalties as rules: what decay adds to a step in place of p.

These are steps along a gradient: entries cross zero and don't stay there. For exact zeros use a proximal step,
`penalty=` of the optimizers (`wd_optax.prox`). Huber decay is `optax.clip(delta)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.hyperparams import Scalar, check_scalar, is_concrete
from wd_optax.masking.slices import SliceAxes
from wd_optax.rules.norms import group_norms
from wd_optax.rules.step import tree_map


def l1() -> optax.GradientTransformation:
    """r(p) = sign(p), the gradient of |p|: every entry moves by c per step, 0 stays 0 (p/|p| for complex p).

    Entries smaller than c go past zero and back at each step. `wd.sgdw(..., penalty="l1")` sets them to zero.

    Returns:
      A rule without arrays.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=1.0, rule=wd.rules.l1())
      >>> params = {"kernel": jnp.array([[2.0, -0.5, 0.0]])}
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print([f"{u:.1f}" for u in updates["kernel"][0]])
      ['-0.1', '0.1', '-0.0']

    Reference: Tibshirani 1996 (lasso).
    """
    return optax.stateless(lambda p, _: jax.tree.map(jnp.sign, p))


def elastic(l1_ratio: Scalar = 0.5) -> optax.GradientTransformation:
    """r(p) = l1_ratio·sign(p) + (1 − l1_ratio)·p, the gradient of l1_ratio·|p| + (1 − l1_ratio)·½·p².

    Args:
      l1_ratio: the share of |p|, in [0, 1]: 0 is L2, 1 is `l1`, as scikit-learn's `ElasticNet` has it. Tracers aren't
        checked.

    Returns:
      A rule without arrays.

    Raises:
      ValueError: for a ratio outside [0, 1].

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=1.0, rule=wd.rules.elastic(0.75))
      >>> params = {"kernel": jnp.array([[2.0, -1.0]])}
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print([f"{u:.3f}" for u in updates["kernel"][0]])
      ['-0.125', '0.100']

    Reference: Zou & Hastie 2005 (elastic net).
    """
    check_scalar("l1_ratio", l1_ratio)
    if is_concrete(l1_ratio) and l1_ratio > 1:
        raise ValueError(f"l1_ratio={l1_ratio!r} is a share of the penalty: pass l1_ratio in [0, 1]")

    def r(p: jax.Array) -> jax.Array:
        share = jnp.asarray(l1_ratio, p.dtype)
        return share * jnp.sign(p) + (1 - share) * p

    return optax.stateless(lambda p, _: jax.tree.map(r, p))


def group(axis: int | SliceAxes = ()) -> optax.GradientTransformation:
    """r(p) = p/‖p‖ of each group, the gradient of Σ‖p‖ (group lasso): every norm shrinks by c per step; 0 where p is 0.

    Args:
      axis: the axes that count groups, besides those of the optimizer's `slices`: 0 is one group per row; () is one
        group per weight.

    Returns:
      A rule without arrays.

    Raises:
      TypeError: for an axis that is neither an int nor a tuple of ints.
      ValueError: at `init` for a leaf that has no such axis.

    Example: a norm of 5 and one of 10 shrink by 0.5 each.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=5.0, rule=wd.rules.group(axis=0))
      >>> params = {"kernel": jnp.array([[3.0, 4.0], [6.0, 8.0]])}
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print([[f"{u:.1f}" for u in row] for row in updates["kernel"]])
      [['-0.3', '-0.4'], ['-0.3', '-0.4']]

    Reference: Yuan & Lin 2006 (group lasso).
    """
    axes = tuple(axis) if isinstance(axis, list | tuple) else (axis,)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in axes):
        raise TypeError(f"axis={axis!r}: expected an int or a tuple of ints, as group(axis=0)")

    def unit(p: jax.Array, norm: jax.Array) -> jax.Array:
        return p / jnp.where(norm > 0, norm, 1).astype(p.dtype)

    def r(p: optax.Params, _: Any) -> optax.Params:
        return tree_map(unit, p, group_norms(p, axes))

    return optax.stateless(r)
