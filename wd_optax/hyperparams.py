"""Hyperparameters that live in the optimizer's state: numbers, JAX arrays and schedules alike.

A Python or NumPy number becomes a leaf that is read at each step, so it can be logged, edited and swept.
A JAX array (under `optax.inject_hyperparams` it changes from step to step) and a schedule are the caller's:
they are read at each step, and the leaf records what was used.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Scalar = Any  # float | np.generic | jax.Array | tracer
Schedule = Callable[[Any], Any]  # step -> scalar
ScalarOrSchedule = Any  # Scalar | Schedule


def is_static(value: Any) -> bool:
    """Whether `value` is a number known now: not a schedule, not a JAX array, not a tracer."""
    return not callable(value) and not isinstance(value, jax.Array)


def check_number(name: str, value: Any, *, below: float = math.inf) -> None:
    """Raises unless a static `value` is a finite number in [0, below)."""
    if not is_static(value):
        return
    try:
        number = float("not a number" if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, an array or a schedule (step -> number), got {value!r}") from None
    if not 0 <= number < below:
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name}={value!r} must be {limit} and not negative: pass {name} in [0, {below:g})")


def check_wide(**values: Any) -> None:
    """Raises for 16-bit JAX arrays, which `optax.inject_hyperparams` makes of numbers for bfloat16 parameters."""
    narrow = tuple(k for k, v in values.items() if isinstance(v, jax.Array) and v.dtype.itemsize < 4)
    if narrow:
        raise TypeError(
            f"{', '.join(narrow)}: got {values[narrow[0]].dtype} arrays, in which 0.999 is 1; keep them numbers. "
            "learning_rate and weight_decay are live in the state without optax.inject_hyperparams; with it, pass "
            f"static_args={narrow!r}"
        )


def start(value: ScalarOrSchedule, count: jax.Array) -> jax.Array:
    """The leaf at init."""
    return _leaf(value(count) if callable(value) else value)


def now(value: ScalarOrSchedule, count: jax.Array, leaf: jax.Array) -> jax.Array:
    """The value at this step: a schedule's, the caller's array, or what the state's leaf says."""
    return _leaf(value(count) if callable(value) else leaf if is_static(value) else value)


def _leaf(value: Any) -> jax.Array:
    """`value` in JAX's default float type, never the parameters', in a buffer of its own (it may be donated)."""
    return jnp.array(value, dtype=jnp.result_type(float))
