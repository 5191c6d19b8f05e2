"""Checks of values at init: an init that is traced can't raise them, and whoever traces it may defer them."""

import contextvars
from contextlib import AbstractContextManager

import jax

from wd_optax.contexts import holding

_deferred: contextvars.ContextVar[list[jax.Array] | None] = contextvars.ContextVar("checks", default=None)


def defer() -> AbstractContextManager[list[jax.Array]]:
    """A list of what is checked in this context and is traced: init raises where one of them is false."""
    return holding(_deferred, [])


def is_possible(traced: bool) -> bool:
    """Whether a check has an effect: it is not of traced values, or it is deferred."""
    return not traced or _deferred.get() is not None


def demand(holds: jax.Array, error: Exception) -> None:
    """Raises the error if `holds`, a scalar, is false; if it is traced, the context's list gets it."""
    if not isinstance(holds, jax.core.Tracer):
        if not holds:
            raise error
    elif (deferred := _deferred.get()) is not None:
        deferred.append(holds)
