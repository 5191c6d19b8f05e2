"""Optimizers whose step reads η and λ itself, live: momentum that contains η, norms of weights after their decay.

They take them as the extra arguments `learning_rate` and `weight_decay` of `update`, this step's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import couplings
from wd_optax.couplings import Coupling
from wd_optax.hyperparams import Scalar, ScalarOrSchedule, evaluate, init_leaves, keep
from wd_optax.masking import masks
from wd_optax.masking.masks import Mask
from wd_optax.wrappers import with_decay


def live_decoupled(
    inner: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    coupling: Coupling = "lr",
    peak_learning_rate: Scalar | None = None,
    decays_first: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """`wd_optax.with_decay` around an optimizer that reads η and λ: p ← p + step − c_t·m·p.

    Args:
      inner: the finished optimizer, with extra arguments `learning_rate` and `weight_decay`.
      learning_rate, weight_decay, mask, coupling, peak_learning_rate: as in `wd_optax.with_decay`.
      decays_first: `inner` is given the parameters (1 − c_t·m)·p, as where a trust ratio is taken after the decay.
    """
    rates = couplings.resolve_rates(
        coupling, learning_rate=learning_rate, weight_decay=weight_decay, peak_learning_rate=peak_learning_rate,
        below=float("inf"),
    )  # fmt: skip

    def decay(params: Any, values: dict[str, jax.Array]) -> Any:
        c = couplings.removed(coupling, **values, peak_learning_rate=rates.peak)
        return jax.tree.map(lambda p, m: (p * (1 - m * c)).astype(p.dtype), params, masks.multipliers(mask, params))

    stage = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if decays_first:
            params = decay(params, {name: extra[name] for name in ("learning_rate", "weight_decay")})
        out: tuple[Any, Any] = stage.update(updates, state, params, **extra)
        return out

    tx = with_decay(
        optax.GradientTransformationExtraArgs(stage.init, update), learning_rate=learning_rate,
        weight_decay=weight_decay, mask=mask, coupling=coupling, peak_learning_rate=peak_learning_rate,
    )  # fmt: skip
    return _told(tx, learning_rate, weight_decay)


class LearningRateState(NamedTuple):
    """State of `descend`: arrays only; η is a leaf, as in `wd_optax.core.DecayState`."""

    step: jax.Array  # shape=(), dtype=int32: steps taken
    hyperparams: dict[str, jax.Array]  # shapes=(), dtype: JAX's default float
    inner: optax.OptState


def descend(
    direction: optax.GradientTransformation, learning_rate: ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """−η·u with η live, for a direction u that contains its decay, and may read η."""
    inner, given = optax.with_extra_args_support(direction), {"learning_rate": learning_rate}

    def init(params: Any) -> LearningRateState:
        step = jnp.zeros((), jnp.int32)
        return LearningRateState(step, init_leaves(given, step), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        values = evaluate(given, state.step, state.hyperparams)
        updates, inner_state = inner.update(updates, state.inner, params, **{**extra, **values})
        updates = jax.tree.map(lambda u: -values["learning_rate"].astype(u.dtype) * u, updates)
        step = optax.safe_increment(state.step)
        return updates, LearningRateState(step, keep(given, values), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _told(
    tx: optax.GradientTransformationExtraArgs, learning_rate: ScalarOrSchedule, weight_decay: ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """`tx` with this step's η and λ as extra arguments, which reach its inner optimizer."""
    given = {"learning_rate": learning_rate, "weight_decay": weight_decay}

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        values = evaluate(given, state.step, state.hyperparams)
        out: tuple[Any, Any] = tx.update(updates, state, params, **{**extra, **values})
        return out

    return optax.GradientTransformationExtraArgs(tx.init, update)
