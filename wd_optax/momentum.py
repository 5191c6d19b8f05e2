"""Heavy-ball momentum as PyTorch has it, with dampening."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import hyperparams
from wd_optax.hyperparams import Scalar


class MomentumState(NamedTuple):
    """Heavy-ball momentum, and the steps taken."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in Optax; shape=(), dtype=int32
    trace: Any  # like the parameters; () without momentum


def heavy_ball(
    momentum: Scalar | None, nesterov: bool, dampening: Scalar, accumulator_dtype: Any
) -> optax.GradientTransformation:
    """PyTorch's heavy-ball buffer: b₀ = g₀ undamped, then b ← μ·b + (1 − τ)·g."""
    damped = hyperparams.is_static(dampening) and dampening != 0  # an array may be 0
    if damped and nesterov:
        raise ValueError("nesterov=True takes no dampening, as in PyTorch: drop dampening")
    if momentum is None and (nesterov or damped):
        raise ValueError("nesterov and dampening act on the momentum buffer: give momentum, as momentum=0.9")
    trace = None if momentum is None else optax.trace(momentum, nesterov, accumulator_dtype)
    damps = trace is not None and (damped or not hyperparams.is_static(dampening))

    def init(params: Any) -> MomentumState:
        return MomentumState(jnp.zeros((), jnp.int32), () if trace is None else trace.init(params).trace)

    def update(updates: Any, state: MomentumState, params: Any = None) -> tuple[Any, MomentumState]:
        if damps:
            factor = jnp.where(state.count == 0, 1.0, 1.0 - dampening)
            updates = jax.tree.map(lambda g: factor.astype(g.dtype) * g, updates)
        buffer: Any = ()
        if trace is not None:
            updates, (buffer,) = trace.update(updates, optax.TraceState(state.trace), params)
        return updates, MomentumState(optax.safe_increment(state.count), buffer)

    return optax.GradientTransformation(init, update)
