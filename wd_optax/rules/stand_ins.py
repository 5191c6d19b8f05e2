"""Small arrays in place of parameters: a tree of the caller's is cut to their shapes."""

import contextvars
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

from wd_optax.contexts import holding
from wd_optax.masking import roles

_real_shapes: contextvars.ContextVar[Mapping[str, roles.Shape] | None] = contextvars.ContextVar("shapes", default=None)


def use_stand_ins(shapes: Mapping[str, roles.Shape]) -> AbstractContextManager[object]:
    """In this context the parameters at these paths have other shapes than these, their real ones."""
    return holding(_real_shapes, shapes)


def like_stand_in(path: str, a: Any, p: Any) -> Any:
    """An array of the caller's for one parameter: its first entries in the shape of p, if p is a stand-in for it."""
    real = (_real_shapes.get() or {}).get(path)
    if a is None or jnp.shape(a) == jnp.shape(p) or real != jnp.shape(a):
        return a
    return _cut(jnp.asarray(a), jnp.shape(p))


def _cut(a: jax.Array, shape: roles.Shape) -> jax.Array:
    for axis, n in enumerate(shape):
        a = jnp.take(a, jnp.arange(n) % max(a.shape[axis], 1), axis=axis)
    return a
