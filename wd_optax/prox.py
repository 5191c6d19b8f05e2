"""Penalties by their proximal steps: what decay minimises, exactly, in the metric of the optimizer.

    p ← argmin_x ½·(x − (p + step))ᵀ·D·(x − (p + step)) + c·m·penalty(x − a)

D is the metric: 1 after SGD, √v̂ + ε after Adam, whose step is −η·m̂/D. With c = η·λ the fixed points are the minima of
loss + λ·penalty, whatever D is; with D = 1 after Adam they aren't (ProxGen, Yun, Lozano & Yang 2021, arXiv 2007.07114).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.hyperparams import Scalar, check_number
from wd_optax.masking.slices import SliceAxes
from wd_optax.rules.norms import slice_norm

__all__ = ["adam_metric", "elastic", "group", "huber"]

# (step, r, k, D, axes) -> step: with a = p − r, the minimiser less p; k = c·m, D > 0 an array like p or 1.
Prox = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, SliceAxes], jax.Array]
Penalty = Literal["l2", "l1", "elastic", "huber", "group"]
STEPS = 20  # of Newton's method
ProxMetric = Callable[
    [optax.OptState], optax.Params
]  # the inner optimizer's new state -> D, a tree like the parameters


def _l2(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
    """½·x²: (p + step + t·a)/(1 + t) with t = k/D."""
    del axes
    t = k / metric
    return (step - t * r) / (1 + t)


def _l1(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
    """|x|: soft thresholding by t = k/D; entries within t of a come out as a."""
    del axes
    t, moved = k / metric, r + step
    return jnp.where(jnp.abs(moved) <= t, -r, step - t * jnp.sign(moved))


def elastic(l1_ratio: float | jax.Array = 0.5) -> Prox:
    """l1_ratio·|x| + (1 − l1_ratio)·½·x², scikit-learn's `ElasticNet`."""
    check_number("l1_ratio", l1_ratio)

    def prox(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
        return _l2(_l1(step, r, l1_ratio * k, metric, axes), r, (1 - l1_ratio) * k, metric, axes)

    return prox


def huber(delta: Scalar = 1.0) -> Prox:
    """½·x² where |x| ≤ δ, δ·|x| − ½·δ² beyond: L2 that pulls large weights no harder than those of size δ."""
    check_number("delta", delta)

    def prox(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
        t, moved = k / metric, r + step
        small = jnp.abs(moved) <= delta * (1 + t)
        return jnp.where(small, _l2(step, r, k, metric, axes), step - t * delta * jnp.sign(moved))

    return prox


def group(axis: int | SliceAxes = ()) -> Prox:
    """‖x‖ of each group: group lasso, which sets whole groups to zero.

    Args:
      axis: the axes that count groups, besides those of `slices`: 0 is one group per row, scikit-learn's
        `MultiTaskLasso` for weights (features, tasks); () is one group per weight.
    """
    given = tuple(axis) if isinstance(axis, list | tuple) else (axis,)

    def prox(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
        axes = (*axes, *(i % step.ndim for i in given))
        moved = r + step
        pull = slice_norm(metric * moved, axes)  # D·‖y‖ where D is 1
        if metric.ndim == 0:
            shorter = step - (k / jnp.where(pull > 0, pull, 1)) * moved
        else:
            size = _solve_norm(metric, moved, k, axes)
            shorter = step - moved * (k / (metric * size + k))
        return jnp.where(pull <= k, -r, shorter)

    return prox


def _solve_norm(metric: jax.Array, y: jax.Array, k: jax.Array, axes: SliceAxes) -> jax.Array:
    """n = ‖x‖ of the minimiser x = D·y·n/(D·n + k): the root of 1/‖D·y/(D·n + k)‖ − 1.

    That function is concave and increasing, so Newton's method climbs to the root from 0, and it is linear where D is
    constant (the secular equation of trust regions: Moré & Sorensen 1983).
    """

    def newton(_: int, n: jax.Array) -> jax.Array:
        below = metric * n + k
        q = metric * y / below
        length = slice_norm(q, axes)
        slope = slice_norm(q * jnp.sqrt(metric / below), axes) ** 2  # −½·∂‖q‖²/∂n
        return n + (length - 1) * length**2 / jnp.where(slope > 0, slope, 1)

    size: jax.Array = jax.lax.fori_loop(0, STEPS, newton, jnp.zeros_like(slice_norm(y, axes)))
    return size


def adam_metric(b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0) -> ProxMetric:
    """D = √(ν/(1 − b2ᵗ) + eps_root) + eps, of the `optax.scale_by_adam` in the inner optimizer."""

    def metric(inner_state: optax.OptState) -> Any:
        nu, count = (optax.tree.get(inner_state, name) for name in ("nu", "count"))

        def scale(v: jax.Array) -> jax.Array:
            v = v.astype(dtypes.arithmetic(v.dtype))
            return jnp.sqrt(v / (1 - jnp.asarray(b2, v.dtype) ** count.astype(v.dtype)) + eps_root) + eps

        return jax.tree.map(scale, nu)

    return metric


PENALTIES: dict[Penalty, Prox] = {"l2": _l2, "l1": _l1, "elastic": elastic(), "huber": huber(), "group": group()}


def resolve_penalty(penalty: Penalty | Prox | None, metric: ProxMetric | None = None) -> Prox | None:
    """The proximal step of a penalty, by name or as one of this module's; None without a penalty."""
    if penalty is None:
        if metric is not None:
            raise ValueError('metric= is of a proximal step: give penalty=, such as penalty="l1", or drop metric')
        return None
    if isinstance(penalty, str) and penalty in PENALTIES:
        return PENALTIES[penalty]
    if callable(penalty):
        return penalty
    raise ValueError(
        f"penalty={penalty!r} has no proximal step here: use one of {', '.join(map(repr, PENALTIES))}, or "
        "wd.prox.elastic(l1_ratio), wd.prox.huber(delta), wd.prox.group(axis)"
    )


def penalty_name(prox: Prox | None) -> str:
    """What `penalty=` calls a proximal step, "custom" for another one; "" without one."""
    return "" if prox is None else next((name for name, known in PENALTIES.items() if known is prox), "custom")
