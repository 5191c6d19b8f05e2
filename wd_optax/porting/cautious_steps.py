"""Cautious optimizers: entries of the step that disagree with the gradient are dropped, and the rest is scaled up.

Not cautious decay (`wd_optax.rules.cautious`), which drops entries of the decay. Reference: Liang et al. 2024, arXiv
2411.16085.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def drop_disagreeing(u: jax.Array, g: jax.Array) -> jax.Array:
    """u·1[u·g > 0], divided by the share of entries that stay (at least 10⁻³), as timm does."""
    stays = (u * g > 0).astype(u.dtype)
    return u * (stays / jnp.maximum(jnp.mean(stays), 1e-3))


def with_caution(direction: optax.GradientTransformation, caution: bool = True) -> optax.GradientTransformation:
    """`direction`, whose entries that disagree with the gradient are dropped; itself where `caution` is False."""
    if not caution:
        return direction
    inner = optax.with_extra_args_support(direction)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        directions, state = inner.update(updates, state, params, **extra)
        drop = lambda g, u: None if g is None else drop_disagreeing(u, g)
        return jax.tree.map(drop, updates, directions, is_leaf=lambda x: x is None), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
