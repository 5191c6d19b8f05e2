"""Hyperparameters that live in the optimizer's state: numbers, JAX arrays and schedules alike.

A Python or NumPy number becomes a leaf that is read at each step, so it can be logged, edited and swept. A schedule is
evaluated at each step, and its leaf records the value. A JAX array stays under the caller's control and has no leaf:
`optax.inject_hyperparams` passes arrays, and keeps the one leaf of each name itself.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Scalar = Any  # float | np.generic | jax.Array | tracer
Schedule = Callable[[Any], Any]  # step -> scalar
ScalarOrSchedule = Any  # Scalar | Schedule


def is_static(value: Any) -> bool:
    """Whether `value` is a number known now: not a schedule, not a JAX array, not a tracer."""
    return not callable(value) and not isinstance(value, jax.Array)


def is_concrete(value: Any) -> bool:
    """Whether the value is known now: a number, or a JAX array that this process can read."""
    is_array = isinstance(value, jax.Array)
    return not (callable(value) or isinstance(value, jax.core.Tracer) or (is_array and not value.is_fully_addressable))


def check_number(name: str, value: Any, *, below: float = math.inf) -> None:
    """Raises unless `value` is a scalar and, where it is known now, a finite number in [0, below)."""
    if callable(value):
        return
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        _check_array(name, value)
    if not is_concrete(value):
        return
    try:
        number = float("not a number" if isinstance(value, str | bytes | bool) else value)
    except (TypeError, ValueError):
        raise _not_a_number(name, value) from None
    if not 0 <= number < below:
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name}={value!r} must be {limit} and not negative: pass {name} in [0, {below:g})")


def _check_array(name: str, value: Any) -> None:
    """Raises unless an array is one real number."""
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise _not_a_number(name, value)
    if value.shape != ():
        raise ValueError(
            f"{name} has shape {value.shape}, expected (): one number for all parameters. Multipliers per "
            "leaf are the mask's; for several values use wd.sweep, or jax.vmap over what builds the optimizer"
        )


def _not_a_number(name: str, value: Any) -> TypeError:
    return TypeError(f"{name} must be a number, an array or a schedule (step -> number), got {value!r}")


def check_wide(**values: Any) -> None:
    """Raises for 16-bit JAX arrays, which `optax.inject_hyperparams` makes of numbers for bfloat16 parameters."""
    narrow = tuple(k for k, v in values.items() if isinstance(v, jax.Array) and v.dtype.itemsize < 4)
    if narrow:
        raise TypeError(
            f"{', '.join(narrow)}: got {values[narrow[0]].dtype} arrays, in which 0.999 is 1; keep them numbers. "
            "learning_rate and weight_decay are live in the state without optax.inject_hyperparams; with it, pass "
            f"static_args={narrow!r}"
        )


def check_transformation(name: str, value: Any) -> None:
    """Raises unless `value` has the `init` and `update` of an Optax transformation."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        called = f"; call it, as {getattr(value, '__name__', name)}(...)" if callable(value) else ""
        raise TypeError(f"{name} must be an Optax transformation, got {value!r}{called}")


def start(values: dict[str, ScalarOrSchedule], step: jax.Array) -> dict[str, jax.Array]:
    """The leaves at init: one for each number and each schedule, which is checked at step 0."""
    first = {name: value(step) if callable(value) else value for name, value in values.items()}
    for name, value in first.items():
        check_number(name, value)
    return keep(values, {name: _scalar(name, value) for name, value in first.items()})


def now(values: dict[str, ScalarOrSchedule], step: jax.Array, leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The values at this step: a schedule's, the caller's array, or what the state's leaf says."""
    at = lambda name, value: value(step) if callable(value) else leaves[name] if is_static(value) else value
    return {name: _scalar(name, at(name, value)) for name, value in values.items()}


def keep(values: dict[str, ScalarOrSchedule], current: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The part of `current` that the state keeps: all but the caller's arrays."""
    return {name: current[name] for name, value in values.items() if not isinstance(value, jax.Array)}


def _scalar(name: str, value: Any) -> jax.Array:
    """`value` in JAX's default float type, never the parameters', in a buffer of its own (it may be donated)."""
    if isinstance(value, jax.Array | np.ndarray):
        _check_array(name, value)
    elif not isinstance(value, np.generic):
        value = float(value)
    return jnp.array(value, dtype=jnp.result_type(float))
