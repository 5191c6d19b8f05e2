"""The standard way to train in low precision: a float32 copy of the parameters in the optimizer's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.precision import casts
from wd_optax.precision.exact_steps import difference
from wd_optax.precision.upcasting import is_low_precision, upcast


class MasterState(NamedTuple):
    """The parameters in float32, and the wrapped optimizer's state."""

    master: optax.Params  # like the parameters: float32 where they are low-precision, else an unused scalar placeholder
    inner: optax.OptState


def with_master_weights(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Keeps a float32 copy w of low-precision parameters in the state: w ← w + u, p ← round(w).

    It needs the most memory traffic. The float32 copy is the source of truth: outside edits of `params` are
    overwritten.

    Args:
      inner: any Optax optimizer; it sees float32. Extra arguments of `update` reach it.

    Returns:
      A transformation with a `MasterState`. Updates of low-precision leaves are float32, and p + update is round(w).

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"w": jnp.ones(1, jnp.bfloat16)}
      >>> tx = wd.precision.with_master_weights(optax.chain(optax.sgd(0.1), wd.shrink(1e-3)))
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     updates, state = tx.update(optax.tree.zeros_like(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params["w"].item(), round(state.master["w"].item(), 4))  # exact: 0.9048
      0.90625 0.9048

    Reference: Micikevicius et al. 2018, arXiv 1710.03740.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> MasterState:
        copy = lambda p: p.astype(jnp.float32) if is_low_precision(p) else jnp.zeros((), p.dtype)
        return MasterState(jax.tree.map(copy, dtypes.as_arrays(params)), inner.init(upcast(params)))

    def update(
        updates: optax.Updates, state: MasterState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, MasterState]:
        if params is None:
            raise ValueError("with_master_weights needs the parameters: tx.update(grads, state, params)")
        params = dtypes.as_arrays(params)
        in_float32 = jax.tree.map(lambda p, w: w if is_low_precision(p) else p, params, state.master)
        updates, inner_state = inner.update(upcast(updates), state.inner, in_float32, **extra)
        add = lambda u, p, w: w if u is None or not is_low_precision(p) else w + u
        master = jax.tree.map(add, updates, params, state.master, is_leaf=lambda x: x is None)
        move = lambda u, p, w: u if u is None or not is_low_precision(p) else difference(casts.nearest(w, p.dtype), p)
        updates = jax.tree.map(move, updates, params, master, is_leaf=lambda x: x is None)
        return updates, MasterState(master, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
