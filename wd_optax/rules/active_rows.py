"""Decay of tables in which a step uses few rows: the other rows don't decay, or catch up when they are next touched."""

import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax.masking import paths
from wd_optax.masking.paths import is_masked
from wd_optax.rules.cautious import GateState
from wd_optax.rules.checks import check_is_first
from wd_optax.rules.missed_decay import RowsState, add_step, catch_up_to, missed, no_rows
from wd_optax.rules.step import Displacement, Step, tree_map

RowAxes = int | tuple[int, ...]


def active_rows(
    axis: RowAxes = 0, *, policy: Literal["skip", "lazy"] = "skip"
) -> optax.GradientTransformationExtraArgs:
    """r(p) = p for rows that this step uses, else 0: rare rows of an embedding don't shrink, or catch up later.

    Dense decay multiplies a row that is never used by Π(1 − c_t).

    "skip": rows whose raw gradient is all zero don't decay. Their updates come back bit for bit, with Adam's momentum
    in them. An anchor may come first, `optax.chain(toward("init"), active_rows())`. Needs the raw gradients, so not
    `add_decayed_weights` and `shrink`.

    "lazy": rows that the step doesn't move wait, and are written at the step that next moves them. There

        p ← p·M·(1 − c_t·m) + step,    M = Π(1 − c·m) over the steps that the row has missed,

    also at c_t = 0. So the stored rows lack a factor M, and `wd_optax.materialize(params, state)` is what dense decay
    has, at every step and up to rounding, if gradients are taken there. Where the loss reads the stored rows instead,
    a rare row is used once before it has caught up: its gradient is taken at p and not at M·p, and the run is no longer
    that of dense decay. Momentum moves rows, too: Adam writes a row until its first moment is 0. Needs the finished
    step, so not `add_l2_to_loss`, `coupled` and `add_decayed_weights`; c_t·m must be below 1.

    Args:
      axis: the axis that counts rows, or several as a tuple: (0, 1) for tables stacked as (tables, rows, features).
      policy: "skip" or "lazy".

    Returns:
      A rule: "skip" without arrays, "lazy" with a `RowsState`, 4 bytes per row (8 with x64). For one table:
      `optax.masked(wd.rules.active_rows(), wd.optax_mask(["embed"]))`. The last in a chain, if lazy.

    Raises:
      ValueError, TypeError: for another policy or axis at once; at `init` for a leaf without this axis, where what the
        policy needs isn't known, and for a lazy rule in a chain with an anchor or a gate.

    Example: two rows; a step uses the first only.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> for policy in ("skip", "lazy"):
      ...     tx = wd.sgdw(0.1, weight_decay=1.0, rule=wd.rules.active_rows(policy=policy))
      ...     params = {"embedding": jnp.array([[2.0], [2.0]])}
      ...     updates, state = tx.update({"embedding": jnp.array([[1.0], [0.0]])}, tx.init(params), params)
      ...     params = optax.apply_updates(params, updates)
      ...     print([f"{x:.2f}" for x in params["embedding"][:, 0]])
      ['1.70', '2.00']
      ['1.70', '2.00']
      >>> print([f"{x:.2f}" for x in wd.materialize(params, state)["embedding"][:, 0]])
      ['1.70', '1.80']

    Reference: Carpenter 2008, "Lazy Sparse Stochastic Gradient Descent for Regularized Multinomial Logistic
      Regression".
    """
    if policy not in ("skip", "lazy"):
        raise ValueError(
            f'policy={policy!r}: use "skip" (rows without a gradient don\'t decay) or "lazy" (they catch up)'
        )
    given = axis if isinstance(axis, tuple | list) else (axis,)
    if not given or not all(hasattr(x, "__index__") and not isinstance(x, bool) for x in given):
        raise TypeError(f"axis={axis!r}: expected the axis that counts rows, such as 0, or a tuple of axes")
    axes = tuple(map(operator.index, given))
    return _lazy(axes) if policy == "lazy" else _skip(axes)


def _skip(axes: tuple[int, ...]) -> optax.GradientTransformationExtraArgs:
    def init(params: optax.Params) -> GateState:
        _check_axes(axes, params)
        return GateState()

    def update(
        updates: optax.Params, state: GateState, params: Any = None, *, step: Step
    ) -> tuple[optax.Params, GateState]:
        del params
        if step.gradients is None:
            raise ValueError(
                'rule: active_rows(policy="skip") goes by the raw gradients, which this transformation doesn\'t know: '
                'use it in an optimizer or in add_l2_to_loss, or policy="lazy", which goes by the step'
            )
        keep = lambda r, g: jnp.where(_any_in_row(g, axes), r, jnp.zeros_like(r))
        return tree_map(keep, updates, step.gradients), state

    return optax.GradientTransformationExtraArgs(init, update)


def _lazy(axes: tuple[int, ...]) -> optax.GradientTransformationExtraArgs:
    def init(params: optax.Params) -> RowsState:
        _check_axes(axes, params)
        return no_rows(params, lambda p: _inside(p, axes))

    def update(
        updates: optax.Params, state: RowsState, params: Any = None, *, step: Step
    ) -> tuple[optax.Params, RowsState]:
        fix = 'give the leaves separate rules by optax.partition({...}, labels), or use policy="skip"'
        check_is_first('active_rows(policy="lazy")', updates, params, fix)
        if step.updates is None:
            raise ValueError(
                'rule: active_rows(policy="lazy") needs the finished step, and here the decay comes before it: use it '
                'in decoupled, sgdw, adamw, with_decay or shrink, or policy="skip"'
            )
        trees = step.updates, step.rates, state.total, state.rest, state.rows
        leaves = tree_map(_advance(axes), updates, *trees)
        is_one = lambda x: isinstance(x, _Rows)
        r, total, rest, rows = (jax.tree.map(operator.itemgetter(i), leaves, is_leaf=is_one) for i in range(4))
        return r, RowsState(total, rest, rows, state.gate)

    return optax.GradientTransformationExtraArgs(init, update)


class _Rows(NamedTuple):
    """One leaf's step."""

    taken: Displacement  # off the touched rows
    total: jax.Array
    rest: jax.Array
    rows: jax.Array


def _advance(axes: tuple[int, ...]) -> Callable[..., _Rows]:
    """The step of one leaf."""

    def advance(p: jax.Array, s: jax.Array, k: Any, total: Any, rest: Any, rows: Any) -> _Rows:
        if is_masked(total):
            raise ValueError(
                "active_rows: a leaf decays and has no rows in the state, because its multiplier was 0 at init: "
                "a mask with arrays must be known at init and update, or traced at both"
            )
        k = jnp.asarray(k, rest.dtype)
        lost = -jnp.expm1(-missed(total, rows, k.dtype))  # 1 − M
        removed = k + (1 - k) * lost  # 1 − M·(1 − k), which is exactly k where nothing is missed
        touched = _any_in_row(s, axes)
        taken = jnp.where(touched & (removed != 0), p * removed.astype(p.dtype), jnp.zeros_like(p))
        total, rest = add_step(total, rest, k)
        return _Rows(Displacement(taken), total, rest, catch_up_to(total, rows, touched))

    return advance


def _any_in_row(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.any(x != 0, axis=_inside(x, axes), keepdims=True)


def _inside(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes inside a row."""
    return tuple(set(range(x.ndim)) - {axis % x.ndim for axis in axes})


def _check_axes(axes: tuple[int, ...], params: optax.Params) -> None:
    for path, p in paths.flatten(params)[0]:
        rank = jnp.ndim(p)
        if any(not -rank <= axis < rank for axis in axes):
            raise ValueError(
                f"active_rows: axis {axes[0] if len(axes) == 1 else axes}, and {path!r} has shape {jnp.shape(p)}: give "
                'the rule the tables only, optax.masked(rule, wd.optax_mask(["embed"]))'
            )
