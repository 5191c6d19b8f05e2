"""The proximal step of each penalty, as `wd_optax.prox` has it."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from wd_optax.hyperparams import Scalar, check_number, is_concrete
from wd_optax.masking.slices import SliceAxes
from wd_optax.prox.metrics import adam_metric, rms_metric
from wd_optax.rules.norms import slice_norm

Prox = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, SliceAxes], jax.Array]  # see `wd_optax.prox`
Penalty = Literal["l2", "l1", "elastic", "huber", "group"]
# Of Newton's method in `_solve_norm`. Over 4,000 random groups of 2 to 10⁴ entries with D in 10⁻⁸ … 1, and k up to the
# threshold or within 10⁻⁶ of it, the minimiser is within 4 roundings of ‖y‖ after at most 9 steps in float32 and 11 in
# float64, half of them after 1; a search for worse ones found none.
STEPS = 12


def _l2(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
    """½·|x|²: D·y/(D + k)."""
    del axes
    return (metric * step - k * r) / (metric + k)


def _l1(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
    """|x|: soft thresholding by t = k/D; entries within t of a come out as a."""
    del axes
    t, y = k / metric, r + step
    return jnp.where(jnp.abs(y) <= jnp.real(t), -r, step - t * jnp.sign(y))


def elastic(l1_ratio: Scalar = 0.5) -> Prox:
    """l1_ratio·|x| + (1 − l1_ratio)·½·|x|²: L1 and L2 in one, as scikit-learn's `ElasticNet`.

    Args:
      l1_ratio: in [0, 1]: 1 is "l1", 0 is "l2".

    Returns:
      A penalty for `penalty=`: a function of one leaf.

    Raises:
      ValueError: for a number outside of [0, 1].

    Example: p/(1 + ¼·η·λ), after the threshold ¾·η·λ.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=4.0, penalty=wd.prox.elastic(0.75))
      >>> params = {"kernel": jnp.array([[0.2, 1.4]])}
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print([f"{p:.2f}" for p in optax.apply_updates(params, updates)["kernel"][0]])
      ['0.00', '1.00']

    Reference: Zou & Hastie 2005, "Regularization and variable selection via the elastic net".
    """
    check_number("l1_ratio", l1_ratio)
    if is_concrete(l1_ratio) and l1_ratio > 1:
        raise ValueError(f"l1_ratio={l1_ratio!r} must be in [0, 1]: 1 is L1 alone; the strength is weight_decay")

    def prox(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
        ratio = jnp.asarray(l1_ratio, k.dtype)
        step = _l1(step, r, ratio * k, metric, axes)
        return jnp.where(step == -r, step, _l2(step, r, (1 - ratio) * k, metric, axes))  # zeros stay exact

    return prox


def huber(delta: Scalar = 1.0) -> Prox:
    """½·|x|² where |x| ≤ δ, δ·|x| − ½·δ² beyond: L2 that pulls large weights no harder than those of size δ.

    Args:
      delta: δ > 0, in units of the weight.

    Returns:
      A penalty for `penalty=`: a function of one leaf.

    Raises:
      ValueError: for δ ≤ 0.

    Example: 0.5 shrinks by 1/(1 + η·λ), 10 by η·λ·δ.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=2.5, penalty=wd.prox.huber(1.0))
      >>> params = {"kernel": jnp.array([[0.5, 10.0]])}
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print([f"{p:.2f}" for p in optax.apply_updates(params, updates)["kernel"][0]])
      ['0.40', '9.75']

    Reference: Huber 1964, "Robust estimation of a location parameter".
    """
    check_number("delta", delta)
    if is_concrete(delta) and delta == 0:
        raise ValueError(f"delta={delta!r} must be positive: with 0 nothing decays; a small one is nearly delta·|x|")

    def prox(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
        bound, y = jnp.asarray(delta, k.dtype), r + step
        is_small = metric.real * jnp.abs(y) <= jnp.real(bound * (metric + k))
        return jnp.where(is_small, _l2(step, r, k, metric, axes), step - k / metric * bound * jnp.sign(y))

    return prox


def group(axis: int | SliceAxes = ()) -> Prox:
    """‖x‖ of each group: the group lasso, which sets whole groups to zero.

    Args:
      axis: the axes that count groups, besides those of `slices`: 0 is one group per row, as scikit-learn's
        `MultiTaskLasso` has for weights (features, tasks); () is one group per weight.

    Returns:
      A penalty for `penalty=`: a function of one leaf. In the metric of Adam a group's norm solves an equation of one
      unknown, by 12 steps of Newton's method, each of which reads the leaf.

    Raises:
      TypeError: for what isn't an axis; at `init` a ValueError for one that a leaf doesn't have, with its path.

    Example: the row (0.3, 0.4) is as long as the threshold, 0.5, and goes; (3, 4) loses a tenth.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=5.0, penalty=wd.prox.group(axis=0))
      >>> params = {"kernel": jnp.array([[0.3, 0.4], [3.0, 4.0]])}
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print([[f"{p:.1f}" for p in row] for row in optax.apply_updates(params, updates)["kernel"]])
      [['0.0', '0.0'], ['2.7', '3.6']]

    Reference: Yuan & Lin 2006, "Model selection and estimation in regression with grouped variables".
    """
    given = tuple(axis) if isinstance(axis, list | tuple) else (axis,)
    if not all(hasattr(i, "__index__") and not isinstance(i, bool) for i in given):
        raise TypeError(f"axis={axis!r}: expected an int or a tuple of ints: the axes that count groups")

    def prox(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
        if any(not -step.ndim <= i < step.ndim for i in given):
            raise ValueError(f"group(axis={axis!r}) names an axis that an array of rank {step.ndim} doesn't have")
        axes = (*axes, *(i % step.ndim for i in given))
        y = r + step
        pull, bound = slice_norm(metric * y, axes), jnp.real(k)  # D·‖y‖ where D is one number
        if metric.ndim == 0:
            shorter = step - (bound / jnp.where(pull > bound, pull, 1)).astype(y.dtype) * y
        else:
            size = _solve_norm(jnp.real(metric), y, bound, axes)
            shorter = step - y * (bound / (jnp.real(metric) * size + bound)).astype(y.dtype)
        return jnp.where(pull <= bound, -r, shorter)

    return prox


def _solve_norm(metric: jax.Array, y: jax.Array, k: jax.Array, axes: SliceAxes) -> jax.Array:
    """n = ‖x‖ of the minimiser x = y·n/(n + t), t = k/D: the root of 1/‖y/(n + t)‖ − 1.

    That function is concave and increasing, so Newton's method climbs to the root from below it, and it is linear where
    D is constant (the secular equation of trust regions: Moré & Sorensen 1983). One entry alone has the root |y| − t,
    which is below that of all.
    """
    t, size = k / metric, jnp.abs(y)
    reduced = tuple(axis for axis in range(y.ndim) if axis not in axes)

    def newton(_: int, n: jax.Array) -> jax.Array:
        q = size / jnp.where(n + t > 0, n + t, 1)
        length = slice_norm(q, axes)
        slope = jnp.sum(q * q / jnp.where(n + t > 0, n + t, 1), axis=reduced, keepdims=True)  # −½·∂‖q‖²/∂n
        return n + (length - 1) * length**2 / jnp.where(slope > 0, slope, 1)

    start = jnp.max(size - t, axis=reduced, keepdims=True, initial=0.0)
    norm: jax.Array = jax.lax.fori_loop(0, STEPS, newton, start)
    return norm


PENALTIES: dict[Penalty, Prox] = {"l2": _l2, "l1": _l1, "elastic": elastic(), "huber": huber(), "group": group()}


def resolve_penalty(penalty: Penalty | Prox | None, metric: object = None) -> Prox | None:
    """The proximal step of a penalty, by name or as a function; None without a penalty."""
    for function in (elastic, huber, group, adam_metric, rms_metric):
        for name, value in (("penalty", penalty), ("metric", metric)):
            if value is function:
                raise TypeError(f"{name}={function.__name__}: call it, as wd.prox.{function.__name__}()")
    if penalty is None:
        if metric is not None:
            raise ValueError('metric= is of a proximal step: give penalty=, such as penalty="l1", or drop metric')
        return None
    if metric is not None and metric != "euclidean" and not callable(metric):
        raise TypeError(
            f"metric={metric!r}: expected a function from the direction's state to D, as wd.prox.adam_metric(), or "
            '"euclidean"'
        )
    if isinstance(penalty, str) and penalty in PENALTIES:
        return PENALTIES[penalty]
    if callable(penalty):
        return penalty
    raise ValueError(
        f"penalty={penalty!r} has no proximal step here: use one of {', '.join(map(repr, PENALTIES))}, "
        "wd.prox.elastic(l1_ratio), wd.prox.huber(delta), wd.prox.group(axis), or a function as wd_optax.prox has it"
    )


def penalty_name(prox: Prox | None) -> str:
    """What `penalty=` calls a proximal step, "custom" for another one; "" without one."""
    return "" if prox is None else next((name for name, known in PENALTIES.items() if known is prox), "custom")
