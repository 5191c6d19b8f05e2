"""Decay that rows have missed: a sum per leaf, its value at each row's last touch, and what that makes of the rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax import dtypes
from wd_optax.masking import paths
from wd_optax.rules.cautious import GateState


class RowsState(NamedTuple):
    """S = Σ −ln(1 − c_t·m) over all steps, and its value at each row's last touch: a row lacks exp(its S − S).

    S is a fixed-point number, an unsigned integer in units of 2⁻²⁵ that wraps around at 128 (2⁻⁵⁷ with JAX's x64). So
    differences are exact after any number of steps, and a cast of the state's floats to 16 bits does no harm.
    """

    total: optax.Params  # shapes=(), dtype=uint32: S of each leaf
    rest: optax.Params  # shapes=(), dtype: JAX's default float, in [0, 1): what `total` leaves over, in its units
    rows: optax.Params  # like the leaf, with size 1 for axes inside a row, dtype=uint32: S at the row's last touch
    gate: GateState = GateState()  # rows that aren't touched keep their updates bit for bit


def no_rows(params: optax.Params, inside: Callable[[Any], tuple[int, ...]]) -> RowsState:
    """The state of rows that have missed nothing; `inside` gives the axes inside a row of a leaf."""
    word = _word()
    # A sum of zeros, because its result is placed like the parameter.
    start = lambda p: jnp.sum(jnp.zeros_like(p, word), axis=inside(p), dtype=word, keepdims=True)
    total = jax.tree.map(lambda p: jnp.zeros((), word), params)
    rest = jax.tree.map(lambda p: jnp.zeros((), jnp.result_type(float)), params)
    return RowsState(total, rest, jax.tree.map(start, params))


def add_step(total: jax.Array, rest: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """S after a step that decays by k: (total, rest)."""
    log = -jnp.log1p(-jnp.minimum(k, 1 - jnp.finfo(k.dtype).eps))
    units = log / _unit() + rest
    whole = jnp.floor(units)
    return total + whole.astype(total.dtype), units - whole


def catch_up_to(total: jax.Array, rows: jax.Array, touched: jax.Array) -> jax.Array:
    """Each row's S after a step: all of it where touched, else as before, or S − 64, so that S never overtakes it."""
    return jnp.where(touched, total, total - jnp.minimum(total - rows, _furthest()))


def missed(total: jax.Array, rows: jax.Array, dtype: Any) -> jax.Array:
    """S now less S at the last touch, at most 64: a row is then at e⁻⁶⁴ of its value."""
    return jnp.minimum(total - rows, _furthest()).astype(dtype) * jnp.asarray(_unit(), dtype)


def _word() -> np.dtype[Any]:
    """The type of S: as many bits as JAX's default float."""
    return np.dtype(f"uint{8 * jnp.dtype(jnp.result_type(float)).itemsize}")


def _unit() -> float:
    return 2.0 ** (7 - 8 * _word().itemsize)


def _furthest() -> Any:
    return np.asarray(1 << (8 * _word().itemsize - 1), _word())


def materialize(params: optax.Params, state: optax.OptState) -> optax.Params:
    """The parameters with all decay that rows of `wd_optax.rules.active_rows(policy="lazy")` have missed.

    For evaluation, export, and the loss of a training step. It doesn't change the state: keep the stored parameters
    for the optimizer,

        grads = jax.grad(loss)(wd.materialize(params, state))
        updates, state = tx.update(grads, state, params)

    and differentiate at the result, not through it, which would scale the gradients by M.

    Args:
      params: the parameters as the optimizer has them, the whole tree.
      state: the optimizer's state, or any tree that holds it (a `TrainState`; `nnx.Optimizer.opt_state`).

    Returns:
      A tree like `params`, in its types; leaves without lazy rows are the same objects.

    Raises:
      ValueError: where the state has no lazy rows, or rows of other parameters.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=1.0, rule=wd.rules.active_rows(policy="lazy"))
      >>> params = {"embedding": jnp.ones((2, 1))}
      >>> state = tx.init(params)
      >>> for _ in range(3):  # no row is used
      ...     updates, state = tx.update(optax.tree.zeros_like(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params["embedding"][0], wd.materialize(params, state)["embedding"][0])  # 0.9³
      [1.] [0.729]
    """
    found = _rows_by_path(state)
    leaves, _ = paths.flatten(params)
    if lost := sorted(found.keys() - {path for path, _ in leaves}):
        raise ValueError(
            f"materialize: the state has rows of {lost[0]!r}, which params lacks: pass the tree that init was given, "
            f"materialize(params, state); it has {', '.join(repr(path) for path, _ in leaves[:5]) or 'no leaves'}"
        )
    values = [_materialized(path, p, *found[path]) if path in found else p for path, p in leaves]
    return jax.tree.unflatten(jax.tree.structure(params), values)


def _rows_by_path(state: optax.OptState) -> dict[str, tuple[Any, Any]]:
    """path -> (total, rows), of every `RowsState` in a state."""
    is_rows = lambda node: isinstance(node, RowsState)
    nodes = list(filter(is_rows, jax.tree.leaves(state, is_leaf=is_rows)))
    if not nodes:
        raise ValueError(
            'materialize: the state has no rows that wait: with rule=wd.rules.active_rows(policy="lazy") it has; with '
            "any other rule use the parameters as they are. The arguments are materialize(params, state)"
        )
    found: dict[str, tuple[Any, Any]] = {}
    for node in nodes:
        for (path, total), (_, rows) in zip(paths.flatten(node.total)[0], paths.flatten(node.rows)[0], strict=True):
            if path in found:
                raise ValueError(f"materialize: two rules of the optimizer keep rows of {path!r}: let one decay it")
            found[path] = total, rows
    return found


def _materialized(path: str, p: Any, total: Any, rows: Any) -> jax.Array:
    p = jnp.asarray(p)
    if jnp.ndim(total) or jnp.ndim(rows) != p.ndim or jnp.broadcast_shapes(rows.shape, p.shape) != p.shape:
        raise ValueError(
            f"materialize: {path!r} has shape {p.shape}, and the state has rows of shape {jnp.shape(rows)}: pass the "
            "parameters of this state; for a batch of runs use jax.vmap(wd.materialize)(params, state)"
        )
    dtype = dtypes.arithmetic(p.dtype)
    factor = jnp.exp(-missed(total, rows, jnp.result_type(float))).astype(dtype)
    return jnp.multiply(p.astype(dtype), factor).astype(p.dtype)
