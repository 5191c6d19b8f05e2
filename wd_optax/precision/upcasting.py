"""Floats of 8 and 16 bits as float32, for an optimizer that computes in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wraps `inner` so that it sees low-precision parameters and gradients as float32, and returns float32 updates.

    Otherwise Optax casts each update to the gradient's dtype, and precision is lost before `round_updates` sees it. Put
    `round_updates` after it:
    `optax.chain(wd.precision.in_float32(optax.adamw(...)), wd.precision.round_updates("stochastic"))`.

    Args:
      inner: any Optax optimizer; extra arguments of `update` reach it.

    Returns:
      A transformation with `inner`'s state, made of float32 parameters.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"w": jnp.ones(2, jnp.bfloat16)}
      >>> tx = wd.precision.in_float32(optax.adamw(1e-3))
      >>> tx.update(params, tx.init(params), params)[0]["w"].dtype, tx.init(params)[0].mu["w"].dtype
      (dtype('float32'), dtype('float32'))
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(upcast(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = inner.update(upcast(updates), state, upcast(params), **extra)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def upcast(tree: Any) -> Any:
    """The tree with its floats of 8 and 16 bits as float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_low_precision(x) else x, dtypes.as_arrays(tree))


def is_low_precision(x: Any) -> bool:
    """Whether a leaf is a float of 8 or 16 bits."""
    return is_float(x) and jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits in (8, 16)


def is_float(x: Any) -> bool:
    """Whether a leaf is floating point or complex, of any precision; None isn't."""
    return x is not None and jnp.issubdtype(x.dtype, jnp.inexact)
