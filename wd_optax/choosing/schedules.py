"""Learning-rate schedules: evaluated at every step of a run, and as data.

As data a schedule is a list of phases, each with a shape, the step where it ends and the rate at that step. The first
phase starts at step 0 from a rate of 0; every other phase starts where the previous one ended. A "constant" phase has
its rate throughout, and one that ends at step 0 only sets where the next phase starts.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax.hyperparams import Scalar, ScalarOrSchedule, Schedule, check_number

Phase = tuple[str, int, float]  # shape, step where it ends, η there


class _Shape(Protocol):
    def __call__(self, xp: Any, f: Any, a: float, b: float, /) -> Any:
        """The rate at the fraction f of a phase from a to b, in NumPy or jax.numpy."""


SHAPES: dict[str, _Shape] = {
    "constant": lambda xp, f, a, b: xp.full_like(f, b),
    "linear": lambda xp, f, a, b: a + (b - a) * f,
    "cosine": lambda xp, f, a, b: b + (a - b) * (1 + xp.cos(math.pi * f)) / 2,
    "exponential": lambda xp, f, a, b: a * xp.exp(math.log(b / a) * f),
    "rsqrt": lambda xp, f, a, b: (a**-2 + (b**-2 - a**-2) * f) ** -0.5,
}


def per_step(name: str, value: ScalarOrSchedule, steps: int | None) -> np.ndarray:
    """The values of a number, a schedule or an array (steps,) at steps 0, ..., steps − 1, in float64."""
    if isinstance(value, np.ndarray | jax.Array) and value.ndim:
        at = np.asarray(value, np.float64)
        if at.shape != (steps,):
            raise ValueError(f"{name} has the shape {at.shape}: pass one rate for each of `steps` steps, ({steps},)")
    elif not callable(value):
        return np.full(steps or 1, as_float(name, value))
    elif steps is None:
        raise ValueError(f"{name} is a schedule, and its effect depends on the length of the run: pass steps")
    else:
        try:  # Optax passes the step count as int32.
            at = np.asarray(jax.jit(jax.vmap(value))(jnp.arange(steps, dtype=jnp.int32)), np.float64)
        except jax.errors.JAXTypeError:  # a schedule in plain Python, which can't be traced
            at = np.asarray([value(count) for count in range(steps)], np.float64)
    if (bad := ~((at >= 0) & (at < math.inf))).any():
        step = bad.argmax()
        raise ValueError(f"{name} is {at[step]:g} in step {step}: fix the schedule (finite, not negative)")
    return at


def as_float(name: str, value: Scalar, below: float = math.inf) -> float:
    """A number or a JAX array as a float, checked to be finite and in [0, below)."""
    if callable(value):
        raise TypeError(f"{name} is a schedule: pass a number")
    value = value.item() if isinstance(value, jax.Array) else value
    check_number(name, value, below=below)
    return float(value)


def from_phases(phases: Sequence[Phase]) -> Schedule:
    """An Optax schedule. After the last phase the rate stays where it ended."""

    def rate(count: jax.Array | int) -> jax.Array:
        t = jnp.asarray(count, float)
        eta = jnp.zeros_like(t)
        for shape, start, until, a, b in _spans(phases):
            f = jnp.clip((t - start) / (until - start), 0, 1)
            eta = jnp.where(t < start, eta, SHAPES[shape](jnp, f, a, b))
        return eta

    return rate


def step_rates(phases: Sequence[Phase], steps: int) -> np.ndarray:
    """η_t at steps 0, ..., steps − 1, in float64; for a million steps much faster than `from_phases`."""
    etas = np.full(steps, phases[-1][2])
    for shape, start, until, a, b in _spans(phases):
        f = (np.arange(start, min(until, steps)) - start) / (until - start)
        etas[start:until] = SHAPES[shape](np, f, a, b)
    return etas


def describe(phases: Sequence[Phase]) -> str:
    """Each phase in words: its shape, its end and the learning rate there."""
    prepositions = {"constant": "at"}
    return ", ".join(
        f"{shape} {prepositions.get(shape, 'to')} {eta:g} until {until:,}" if until else f"from {eta:g}"
        for shape, until, eta in phases
    )


def summary(phases: Sequence[Phase]) -> str:
    """The shapes, and the length of the warm-up: a linear phase that leads up to the largest rate."""
    peak = max(eta for _, _, eta in phases)
    phases = [phase for phase in phases if phase[1]]
    shape, until, eta = phases[0]
    warmup = until if len(phases) > 1 and (shape, eta) == ("linear", peak) else 0
    words, last = [], peak
    for shape, _, eta in phases[bool(warmup) :]:
        words.append("step" if shape == "constant" and eta != last else shape)
        last = eta
    return ", ".join(dict.fromkeys(words)) + (f"; warm-up {warmup:,}" if warmup else "")


def _spans(phases: Sequence[Phase]) -> Iterator[tuple[str, int, int, float, float]]:
    """(shape, first step, end, η at the start, η at the end) of each phase of non-zero length."""
    start, a = 0, 0.0
    for shape, until, b in phases:
        if until > start:
            yield shape, start, until, a, b
        start, a = until, b
