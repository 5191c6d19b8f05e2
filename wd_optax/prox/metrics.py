"""The metric of a proximal step: D, by which a direction divides, read from the direction's own state.

    p ← argmin_x ½·(x − (p + step))ᵀ·D·(x − (p + step)) + c·m·penalty(x)

A metric is any function from the inner optimizer's state after the step to D, a tree like the parameters; leaves may be
scalars, and `optax.MaskedNode` counts as 1.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes, state_fields
from wd_optax.hyperparams import Scalar, check_number
from wd_optax.masking.paths import is_masked

ProxMetric = Callable[[optax.OptState], optax.Params]
Euclidean = Literal["euclidean"]


def adam_metric(b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0) -> ProxMetric:
    """D = √(ν/(1 − b2ᵗ) + eps_root) + eps, by which `optax.scale_by_adam` divides m̂; `wd_optax.adamw` knows its own.

    It fits every direction that divides by this, such as `optax.adam`, `nadam`, `yogi` and `adabelief`; not `adamax`,
    whose D is ν itself, though it has Adam's state. A ν that is stored in bfloat16 gives D to 2⁻⁹.

    Args:
      b2, eps, eps_root: the direction's. Its state doesn't hold them, so that they can't be read from it.

    Returns:
      A function from the inner state to D, a tree like the parameters in float32 or wider. Where the state has several
      of Adam's, as that of `optax.partition` does, each parameter has its own, and all have this b2.

    Raises:
      ValueError: for a number that is negative; at `init` for an inner state without `nu` and `count`.

    Example: a gradient of 0.1 is within λ = 0.15 of 0, and the weight stays exactly 0.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> metric = wd.prox.adam_metric(b2=0.999, eps=1e-8)
      >>> tx = wd.decoupled(optax.scale_by_adam(), 1e-2, weight_decay=0.15, penalty="l1", metric=metric)
      >>> params = {"kernel": jnp.array([[0.0, 0.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.array([[-0.1, -1.0]])}, tx.init(params), params)
      >>> print([f"{u:.4f}" for u in updates["kernel"][0]])  # the second: η·(1 − 0.15)
      ['-0.0000', '0.0085']

    Reference: Yun, Lozano & Yang 2021, arXiv 2007.07484 (ProxGen).
    """
    _check_numbers(b2=b2, eps=eps, eps_root=eps_root)

    def metric(inner_state: optax.OptState) -> Any:
        found = _states_with(inner_state, "nu", "count")
        root = functools.partial(_root, eps=eps, eps_root=eps_root, b2=b2)
        return _merged([jax.tree.map(functools.partial(root, count=state.count), state.nu) for state in found])

    return metric


def rms_metric(field: str = "nu", *, eps: Scalar = 0.0, eps_root: Scalar = 0.0) -> ProxMetric:
    """D = √(ν + eps_root) + eps, without a correction of bias, of the field `field` of the direction's state.

        optax.rmsprop     rms_metric(eps_root=1e-8), or rms_metric(eps=1e-8) with eps_in_sqrt=False
        optax.adagrad     rms_metric("sum_of_squares", eps_root=1e-7)
        optax.amsgrad     rms_metric("nu_max", eps=1e-8)

    Args:
      field: the field with the second moments.
      eps, eps_root: the direction's: outside and inside of the root.

    Returns:
      A function from the inner state to D, a tree like the parameters in float32 or wider.

    Raises:
      ValueError: for a number that is negative; at `init` for an inner state without the field.

    Example: Adagrad divides by |g| in the first step, and a weight at 0 moves by η·(1 − λ/|g|) where |g| > λ.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> metric = wd.prox.rms_metric("sum_of_squares", eps_root=1e-7)
      >>> adagrad = optax.adagrad(0.1, initial_accumulator_value=0.0)
      >>> tx = wd.with_decay(adagrad, learning_rate=0.1, weight_decay=0.5, penalty="l1", metric=metric)
      >>> params = {"kernel": jnp.array([[0.0, 0.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.array([[-0.4, -1.0]])}, tx.init(params), params)
      >>> print([f"{u:.4f}" for u in updates["kernel"][0]])
      ['-0.0000', '0.0500']
    """
    _check_numbers(eps=eps, eps_root=eps_root)

    def metric(inner_state: optax.OptState) -> Any:
        states = _states_with(inner_state, field)
        root = functools.partial(_root, eps=eps, eps_root=eps_root)
        return _merged([jax.tree.map(root, getattr(state, field)) for state in states])

    return metric


def _check_numbers(**values: Scalar) -> None:
    for name, value in values.items():
        check_number(name, value, below=1.0) if name == "b2" else check_number(name, value)


def _root(v: jax.Array, eps: Scalar, eps_root: Scalar, b2: Scalar | None = None, count: Any = None) -> jax.Array:
    """√v̂ + eps, in v's type, float32 or wider; of integers, which never decay, in JAX's default float."""
    is_float = jnp.issubdtype(v.dtype, jnp.inexact)
    v = v.astype(dtypes.arithmetic(v.dtype) if is_float else jnp.result_type(float))
    if b2 is not None:
        v = v / (1 - jnp.asarray(b2, v.dtype) ** count.astype(v.dtype))
    return jnp.sqrt(v + jnp.asarray(eps_root, v.dtype)) + jnp.asarray(eps, v.dtype)


def _states_with(inner_state: optax.OptState, *fields: str) -> list[Any]:
    """The states with these fields, in any wrapper."""

    def has(node: Any) -> bool:
        return state_fields.is_namedtuple(node) and set(fields) <= set(node._fields)

    if found := [node for node in jax.tree.leaves(inner_state, is_leaf=has) if has(node)]:
        return found
    if isinstance(inner_state, jax.Array):
        raise TypeError(
            "metric: called with an array and not with the direction's state. optax.inject_hyperparams takes functions "
            'for schedules: pass it static_args=("metric",), and "penalty" where that is a function'
        )
    raise ValueError(
        f"metric: the direction's state has no {' and '.join(fields)}: it is a {type(inner_state).__name__}; give the "
        "metric of this direction, a function from its state to what it divides the gradient by"
    )


def _merged(trees: list[Any]) -> Any:
    """One tree of those in which `optax.masked` hides each other's leaves."""
    first = lambda a, b: b if is_masked(a) else a
    return functools.reduce(lambda a, b: jax.tree.map(first, a, b, is_leaf=is_masked), trees)
