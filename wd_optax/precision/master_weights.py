"""The classic way to train in low precision: a float32 copy of the parameters in the optimizer's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.precision import casts
from wd_optax.precision.rounding import difference, is_low_precision, upcast


class MasterState(NamedTuple):
    """The parameters in float32, and the wrapped optimizer's state."""

    master: Any  # like the parameters: float32 where they are narrow, else a scalar that nobody reads
    inner: Any


def with_master_weights(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The classic: a float32 copy w of narrow parameters in the state; w ← w + u, p ← round(w).

    It moves the most bytes of all ways, and the copy rules: parameters that are changed elsewhere are set back.

    Args:
      inner: any Optax optimizer; it sees float32. Extra arguments of `update` reach it.

    Returns:
      A transformation with a `MasterState`. Updates of narrow leaves become float32 and land on round(w).

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

    def init(params: Any) -> MasterState:
        copy = lambda p: p.astype(jnp.float32) if is_low_precision(p) else jnp.zeros((), p.dtype)
        return MasterState(jax.tree.map(copy, dtypes.as_arrays(params)), inner.init(upcast(params)))

    def update(updates: Any, state: MasterState, params: Any = None, **extra: Any) -> tuple[Any, MasterState]:
        if params is None:
            raise ValueError("with_master_weights needs the parameters: tx.update(grads, state, params)")
        params = dtypes.as_arrays(params)
        whole = jax.tree.map(lambda p, w: w if is_low_precision(p) else p, params, state.master)
        updates, inner_state = inner.update(upcast(updates), state.inner, whole, **extra)
        moves = lambda u, p: u is not None and is_low_precision(p)
        master = jax.tree.map(
            lambda u, p, w: w + u if moves(u, p) else w, updates, params, state.master, is_leaf=lambda x: x is None
        )
        land = lambda u, p, w: difference(casts.nearest(w, p.dtype), p) if moves(u, p) else u
        updates = jax.tree.map(land, updates, params, master, is_leaf=lambda x: x is None)
        return updates, MasterState(master, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
