"""Toward what weights decay: zero, the parameters at `init`, or a tree of the caller's."""

from typing import Any

import jax
import jax.numpy as jnp

from wd_optax.masking import roles

Anchor = Any  # None (zero) | "init" | tree of arrays


def check(anchor: Anchor) -> None:
    """Raises for a string that names no anchor."""
    if isinstance(anchor, str) and anchor != "init":
        raise ValueError(f'anchor={anchor!r}: use None (zero), "init" (the parameters at init) or a tree of arrays')


def resolve(anchor: Anchor, params: Any) -> Any:
    """The anchor as a tree like `params`, copied, for a buffer that is shared can't be donated; () for zero."""
    if anchor is None:
        return ()
    copy = lambda p: jnp.array(p, dtype=p.dtype)
    if isinstance(anchor, str):
        return jax.tree.map(copy, params)
    given = dict(roles.flatten(anchor)[0])
    leaves = []
    for path, p in roles.flatten(params)[0]:
        if path not in given or jnp.shape(given[path]) != jnp.shape(p):
            got = f"shape {jnp.shape(given[path])}" if path in given else "nothing"
            raise ValueError(
                f"anchor at {path!r}: expected shape {jnp.shape(p)} like the parameter, got {got}: "
                'pass a tree with the parameters\' paths and shapes, or anchor="init"'
            )
        leaves.append(jnp.array(given[path], dtype=p.dtype))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
