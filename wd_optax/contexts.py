"""Values that hold in a context: what a function below needs to know, and its arguments can't say."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TypeVar

Value = TypeVar("Value")


@contextlib.contextmanager
def holding(variable: contextvars.ContextVar[Value | None], value: Value) -> Iterator[Value]:
    """In this context the variable has this value."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
