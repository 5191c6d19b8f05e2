"""Small arrays in place of parameters: a tree of the caller's is cut to their shapes."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wd_optax.masking import roles

_real_shapes: contextvars.ContextVar[Mapping[str, roles.Shape]] = contextvars.ContextVar("real shapes", default={})  # noqa: B039


@contextlib.contextmanager
def use_stand_ins(shapes: Mapping[str, roles.Shape]) -> Iterator[None]:
    """In this context the parameters at these paths have other shapes than these, their real ones."""
    token = _real_shapes.set(shapes)
    try:
        yield
    finally:
        _real_shapes.reset(token)


def like_stand_in(path: str, a: Any, p: Any) -> Any:
    """An array of the caller's for one parameter: its first entries in the shape of p, if p is a stand-in for it."""
    if a is None or jnp.shape(a) == jnp.shape(p) or _real_shapes.get().get(path) != jnp.shape(a):
        return a
    return _cut(jnp.asarray(a), jnp.shape(p))


def _cut(a: jax.Array, shape: roles.Shape) -> jax.Array:
    for axis, n in enumerate(shape):
        a = jnp.take(a, jnp.arange(n) % max(a.shape[axis], 1), axis=axis)
    return a
