"""Norms of weights, one per slice where a leaf holds several."""

import contextvars
from collections.abc import Mapping
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.contexts import holding
from wd_optax.masking import paths
from wd_optax.masking.slices import SliceAxes

_axes: contextvars.ContextVar[Mapping[str, SliceAxes] | None] = contextvars.ContextVar("slices", default=None)


def use_slices(axes: Mapping[str, SliceAxes]) -> AbstractContextManager[object]:
    """In this context the leaves at these paths hold several weights, counted along these axes."""
    return holding(_axes, axes)


def slice_norms(tree: optax.Params) -> optax.Params:
    """‖p‖ of each weight: √Σ|p|² over all axes but those that `slices=` of the optimizer names.

    Args:
      tree: parameters as a rule gets them, or another tree with their paths and shapes.

    Returns:
      A tree like it of norms in float32 (float64 for float64 leaves), with reduced axes of size 1: they broadcast
      against the leaves. Outside an optimizer with `slices=` each leaf is one weight.

    Example: a stack of two layers; in `rule.init` and `rule.update` the optimizer's `slices` hold.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> unit = optax.stateless(lambda p, _: wd.rules.tree_map(jnp.divide, p, wd.rules.slice_norms(p)))
      >>> params = {"blocks": jnp.array([[3.0, 4.0], [6.0, 8.0]])}
      >>> for slices in (None, [("blocks", 1)]):
      ...     tx = wd.sgdw(0.1, weight_decay=1.0, rule=unit, slices=slices)
      ...     updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      ...     print([[f"{u:.3f}" for u in row] for row in updates["blocks"]])
      [['-0.027', '-0.036'], ['-0.054', '-0.072']]
      [['-0.060', '-0.080'], ['-0.060', '-0.080']]
    """
    return group_norms(tree, ())


def group_norms(tree: optax.Params, axis: SliceAxes) -> optax.Params:
    """`slice_norms` of groups: along `axis` (which may count from the end) a weight is divided, too."""
    axes = _axes.get() or {}
    flat = []
    for path, p in paths.flatten(tree)[0]:
        rank = jnp.ndim(p)
        if any(not -rank <= i < rank for i in axis):
            raise ValueError(
                f"axis={axis} is out of range for {path!r} of shape {jnp.shape(p)}: give this leaf another rule with "
                "optax.partition, or the multiplier 0 in the mask"
            )
        flat.append(slice_norm(p, (*axes.get(path, ()), *(i % rank for i in axis))))
    return jax.tree.unflatten(jax.tree.structure(tree), flat)


def check_per_slice(name: str, state: optax.Params, tree: optax.Params) -> None:
    """Raises where a state has another number per leaf of `tree` than its slices ask for."""
    axes, kept = _axes.get() or {}, dict(paths.flatten(state)[0])
    for path, p in paths.flatten(tree)[0]:
        ours = axes.get(path, ())
        expected = tuple(n if axis in ours else 1 for axis, n in enumerate(jnp.shape(p)))
        if path in kept and jnp.shape(kept[path]) != expected:
            raise ValueError(
                f"{name}: {path!r} has shape {jnp.shape(kept[path])} in the state, and slices= ask for {expected}: the "
                "state was made with other slices. Use those, or start with state = optimizer.init(params)"
            )


def slice_norm(x: jax.Array, axes: SliceAxes) -> jax.Array:
    """√Σ|x|² over all axes but `axes`, which stay; the others have size 1. Its derivative at 0 is 0."""
    x = jnp.asarray(x)
    x = x.astype(dtypes.arithmetic(x.dtype))
    reduced = tuple(axis for axis in range(x.ndim) if axis not in axes)
    total = jnp.sum(jnp.real(x * jnp.conj(x)), axis=reduced, keepdims=True)
    is_zero = total == 0  # where √ has no derivative
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, total)))
