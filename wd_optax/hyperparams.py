"""Hyperparameters stored in the optimizer's state: numbers, JAX arrays and schedules alike.

A Python or NumPy number becomes a leaf that is read at each step, so it can be logged, edited and swept. Schedules and
JAX arrays stay under the caller's control: they are evaluated at every step. A schedule's leaf only records the value,
and an array has no leaf, because `optax.inject_hyperparams` passes arrays and keeps the one leaf of each name itself.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

Scalar = float | np.number[Any] | np.ndarray[Any, Any] | jax.Array  # shape=(); a tracer is a jax.Array
Schedule = Callable[[Any], Any]  # step, an int or a scalar array -> Scalar
ScalarOrSchedule = Scalar | Schedule  # as Optax's, and NumPy's numbers


def is_static(value: ScalarOrSchedule) -> TypeGuard[Scalar]:
    """Whether `value` is a number known now: not a schedule, not a JAX array, not a tracer."""
    return not callable(value) and not isinstance(value, jax.Array)


def is_concrete(value: ScalarOrSchedule) -> bool:
    """Whether the value is known now: a number, or a JAX array that this process can read."""
    if callable(value) or isinstance(value, jax.core.Tracer):
        return False
    return not isinstance(value, jax.Array) or value.is_fully_addressable


def check_number(name: str, value: ScalarOrSchedule | None, *, below: float = math.inf) -> None:
    """Raises unless `value` is a scalar and, where it is known now, a finite number in [0, below)."""
    if callable(value):
        return
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        _check_array(name, value)
    if value is not None and not is_concrete(value):
        return
    try:
        number = float("not a number" if value is None or isinstance(value, str | bytes | bool) else value)
    except (TypeError, ValueError):
        raise _not_a_number(name, value) from None
    if not 0 <= number < below:
        limit = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"{name}={value!r} must be {limit} and not negative: pass {name} in [0, {below:g})")


def check_scalar(name: str, value: Any, *, below: float = math.inf) -> None:
    """`check_number` of a number that no schedule may give."""
    if callable(value):
        raise TypeError(f"{name} must be a number or a scalar array, got {value!r}: this argument takes no schedule")
    check_number(name, value, below=below)


def _check_array(name: str, value: jax.Array | np.ndarray[Any, Any] | np.generic) -> None:
    """Raises unless an array is one real number."""
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise _not_a_number(name, value)
    if value.shape != ():
        raise ValueError(
            f"{name} has shape {value.shape}, expected (): one number for all parameters. Multipliers per "
            "leaf are the mask's; for several values use wd.sweep, or jax.vmap over what builds the optimizer"
        )


def _not_a_number(name: str, value: object) -> TypeError:
    return TypeError(f"{name} must be a number, an array or a schedule (step -> number), got {value!r}")


def check_precision(**values: Scalar) -> None:
    """Raises for 16-bit JAX arrays, which `optax.inject_hyperparams` makes of numbers for bfloat16 parameters."""
    low = {name: x.dtype for name, x in values.items() if isinstance(x, jax.Array) and x.dtype.itemsize < 4}
    if low:
        names = tuple(low)
        raise TypeError(
            f"{', '.join(names)}: got {low[names[0]]} arrays, in which 0.999 is 1; keep them numbers. "
            "learning_rate and weight_decay are in the state without optax.inject_hyperparams; with it, pass "
            f"static_args={names!r}"
        )


def check_transformation(name: str, value: object) -> None:
    """Raises unless `value` has the `init` and `update` of an Optax transformation."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        called = f"; call it, as {getattr(value, '__name__', name)}(...)" if callable(value) else ""
        raise TypeError(f"{name} must be an Optax transformation, got {value!r}{called}")


def init_leaves(values: Mapping[str, ScalarOrSchedule], step: jax.Array) -> dict[str, jax.Array]:
    """The leaves at init: one for each number and each schedule, which is checked at step 0."""
    first = {name: value(step) if callable(value) else value for name, value in values.items()}
    for name, value in first.items():
        check_number(name, value)
    return keep(values, {name: _to_scalar(name, value) for name, value in first.items()})


def evaluate(
    values: Mapping[str, ScalarOrSchedule], step: jax.Array, leaves: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The values at this step: a schedule's, the caller's array, or the state's leaf."""

    def at(name: str, value: ScalarOrSchedule) -> Scalar:
        if callable(value):
            scalar: Scalar = value(step)
            return scalar
        return value if isinstance(value, jax.Array) else leaves[name]

    return {name: _to_scalar(name, at(name, value)) for name, value in values.items()}


def keep(values: Mapping[str, ScalarOrSchedule], current: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The part of `current` that the state keeps: all but the caller's arrays."""
    return {name: current[name] for name, value in values.items() if not isinstance(value, jax.Array)}


def _to_scalar(name: str, value: Scalar) -> jax.Array:
    """`value` in JAX's default float type, never the parameters', in a buffer of its own (it may be donated)."""
    if isinstance(value, jax.Array | np.ndarray):
        _check_array(name, value)
    elif not isinstance(value, np.generic):
        value = float(value)
    return jnp.array(value, dtype=jnp.result_type(float))
