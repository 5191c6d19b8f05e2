"""Decay around an optimizer: `decoupled` and `coupled` for directions, `with_decay` for finished optimizers.

The two words are those of the AdamW paper (Loshchilov & Hutter 2019, arXiv 1711.05101).
"""

import operator
from typing import Any

import jax
import optax

from wd_optax import coupling_rules
from wd_optax.core import decayed
from wd_optax.coupling_rules import CouplingRules
from wd_optax.couplings import Coupling
from wd_optax.hyperparams import Scalar, ScalarOrSchedule, check_number, check_transformation
from wd_optax.masking.masks import Mask
from wd_optax.masking.slices import Slices
from wd_optax.precision.random_bits import Key
from wd_optax.precision.rounding import Rounding, rounded
from wd_optax.prox.checks import fitted
from wd_optax.prox.metrics import Euclidean, ProxMetric
from wd_optax.prox.steps import Penalty, Prox, resolve_penalty
from wd_optax.rules.apply import Rule


def with_decay(
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: Mask = "weights",
    coupling: Coupling | CouplingRules = "lr",
    peak_learning_rate: Scalar | None = None,
    rule: Rule | None = None,
    slices: Slices = None,
    penalty: Penalty | Prox | None = None,
    metric: ProxMetric | Euclidean | None = None,
    rounding: Rounding | None = None,
    key: Key = 0,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled weight decay on any finished optimizer: p ← p + step − c_t·m·r(p); removes c_t = η_t·λ per step.

    Args:
      optimizer: any Optax optimizer, its learning rate included and its own decay switched off (Optax's lion, adamw,
        nadamw, ... decay by default); extra arguments of `update` reach it.
      learning_rate: η_t, the optimizer's, to which the decay is coupled; editing this leaf in the state changes
        the decay alone, because the optimizer keeps its own.
      weight_decay: λ.
      mask, coupling, peak_learning_rate, slices, rounding, key: see `wd_optax.optimizers`.
      rule: see `wd_optax.rules`; it sees the finished step, not the direction before the learning rate.
      penalty, metric: as for `decoupled`; the metric reads the state of `optimizer`.

    Averaging wrappers such as schedule-free go outside, so that every sequence they keep decays:
    `optax.contrib.schedule_free(wd.with_decay(optax.sgd(lr), ...), lr)`. `optax.contrib.cocob`, `madgrad` and
    `mechanize` recompute the weights from an internal copy, which undoes the decay: for these use
    `add_l2_to_loss`. Where the optimizer scales `learning_rate` itself (prodigy, dog, ...), c_t does not follow.
    `optax.MultiSteps` and `apply_if_finite` go outside, too: they skip updates, and a decay around them would not.

    Raises:
      ValueError: at `init`, for an optimizer that skips updates, or whose steps need a metric for `penalty`.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.with_decay(optax.lion(1e-3, weight_decay=0.0), learning_rate=1e-3, weight_decay=1.0)
      >>> params = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print(f"{updates['kernel'].item():.4f}", updates["bias"].item() == 0)
      -0.0020 True
    """
    return build_decoupled(
        "with_decay", optimizer, learning_rate, weight_decay=weight_decay, mask=mask, coupling=coupling,
        peak_learning_rate=peak_learning_rate, rule=rule, slices=slices, penalty=penalty, metric=metric,
        rounding=rounding, key=key, finished=True,
    )  # fmt: skip


def decoupled(
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    mask: Mask = "weights",
    coupling: Coupling | CouplingRules = "lr",
    peak_learning_rate: Scalar | None = None,
    rule: Rule | None = None,
    slices: Slices = None,
    penalty: Penalty | Prox | None = None,
    metric: ProxMetric | Euclidean | None = None,
    rounding: Rounding | None = None,
    key: Key = 0,
) -> optax.GradientTransformationExtraArgs:
    """Any direction u with decoupled weight decay: p ← p − η_t·u − c_t·m·r(p); removes c_t = η_t·λ per step.

    η is one live leaf, for the step and the decay: editing it in the state changes both.

    Args:
      direction: what comes before the learning rate: `optax.scale_by_lion()`, `optax.trace(0.9)`, a chain of such, or
        an optimizer at learning rate 1, turned around: `optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0))`. It
        climbs: the step is −η·u. Extra arguments of `update` reach it.
      learning_rate: η_t.
      weight_decay: λ.
      mask, coupling, peak_learning_rate, rule, slices, rounding, key: see `wd_optax.optimizers`.
      penalty: decay by its proximal step, see `wd_optax.prox`: minimises loss + λ·m·penalty if D is `metric`.
      metric: what the direction divides the gradient by, a function from its state to D: `wd.prox.adam_metric(b2, eps)`
        for Adam's. None: measured for one Adam in a chain, D = 1 for directions like SGD's, and refused for others that
        rescale gradients; "euclidean" is D = 1.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: for a bad number at once; at `init` for a mask, rule, penalty or metric that doesn't fit,
        and for a direction that skips updates, such as `optax.MultiSteps`.

    Example: Lion; halving η in the state halves step and decay.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.decoupled(optax.scale_by_lion(), 1e-3, weight_decay=1.0)
      >>> params = {"kernel": jnp.array([[2.0]])}
      >>> for lr in (1e-3, 5e-4):
      ...     state = optax.tree.set(tx.init(params), learning_rate=jnp.float32(lr))
      ...     updates, _ = tx.update({"kernel": jnp.array([[1.0]])}, state, params)
      ...     print(f"{updates['kernel'].item():.4f}")  # −η·sign − η·λ·p
      -0.0030
      -0.0015
    """
    return build_decoupled(
        "decoupled", direction, learning_rate, weight_decay=weight_decay, mask=mask, coupling=coupling,
        peak_learning_rate=peak_learning_rate, rule=rule, slices=slices, penalty=penalty, metric=metric,
        rounding=rounding, key=key,
    )  # fmt: skip


def coupled(
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    mask: Mask = "weights",
    rule: Rule | None = None,
    slices: Slices = None,
) -> optax.GradientTransformationExtraArgs:
    """Any direction with L2 in the gradient: u = direction(g + λ·m·r(p)), p ← p − η_t·u.

    What the direction does to a gradient it does to λ·m·r(p): Adam divides it by √v̂, momentum accumulates it.

    Args:
      direction: what comes before the learning rate, as for `decoupled`.
      learning_rate: η_t, a live leaf.
      weight_decay: λ.
      mask, rule, slices: see `wd_optax.optimizers`.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: as `decoupled`.

    Example: PyTorch's `RMSprop(weight_decay=0.1)`: the step is η/√(1 − decay), whatever λ is.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.coupled(optax.scale_by_rms(0.99, eps_in_sqrt=False), 1e-3, weight_decay=0.1)
      >>> params = {"kernel": jnp.array([[2.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.array([[0.0]])}, tx.init(params), params)
      >>> print(f"{updates['kernel'].item():.4f}")
      -0.0100
    """
    return build_coupled(
        "coupled", direction, learning_rate, weight_decay=weight_decay, mask=mask, rule=rule, slices=slices
    )


def build_decoupled(
    name: str,
    inner: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    coupling: Coupling | CouplingRules,
    peak_learning_rate: Scalar | None,
    rule: Rule | None,
    slices: Slices,
    penalty: Penalty | Prox | None,
    metric: ProxMetric | Euclidean | None,
    rounding: Rounding | None,
    key: Key,
    finished: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """`decoupled` for a direction, `with_decay` for a finished optimizer, under the name that errors call it."""
    peak, largest, rate, leaf_rates = coupling_rules.resolve(
        coupling, mask, learning_rate=learning_rate, weight_decay=weight_decay, peak_learning_rate=peak_learning_rate,
        fraction=penalty is None,
    )  # fmt: skip
    prox = resolve_penalty(penalty, metric)
    inner, metric = fitted(name, never_skipping(name, inner), prox, metric=metric, mask=mask, slices=slices)
    hyperparams = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    if peak is not None:
        hyperparams["peak_learning_rate"] = peak
    tx = decayed(
        name, inner, hyperparams, mask=mask, place="after", descends=not finished, rule=rule, slices=slices, prox=prox,
        metric=metric, rate=rate, leaf_rates=leaf_rates, largest=largest,
    )  # fmt: skip
    return rounded(tx, rounding, key)


def build_coupled(
    name: str,
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    rule: Rule | None,
    slices: Slices,
) -> optax.GradientTransformationExtraArgs:
    """`coupled`, under the name that errors call it."""
    check_number("learning_rate", learning_rate)
    check_number("weight_decay", weight_decay)
    hyperparams = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    return decayed(
        name, never_skipping(name, direction), hyperparams, mask=mask, place="before", descends=True, rule=rule,
        slices=slices, rate=operator.itemgetter("weight_decay"),
    )  # fmt: skip


# States of Optax's wrappers that return no step from some updates.
SKIPPING = (optax.MultiStepsState, optax.ApplyIfFiniteState, optax.ConditionallyMaskState)
_WHY = "the decay around it would act on the skipped ones, too"


def never_skipping(
    name: str, optimizer: optax.GradientTransformation, why: str = _WHY
) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, refused at `init` where it skips updates: what is around it, such as the decay, would not skip."""
    check_transformation("optimizer" if name == "with_decay" else "direction", optimizer)
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        state = optimizer.init(params)
        is_skipping = lambda node: isinstance(node, SKIPPING)
        for node in filter(is_skipping, jax.tree.leaves(state, is_leaf=is_skipping)):
            wrapper = type(node).__name__.removesuffix("State")
            raise ValueError(
                f"{name}: the optimizer has a {wrapper} inside, which skips updates, and {why}. Put {wrapper} outside: "
                f"optax.MultiSteps(wd.{name}(optimizer, ...), k), optax.apply_if_finite(wd.{name}(optimizer, ...), n)"
            )
        return state

    return optax.GradientTransformationExtraArgs(init, optimizer.update)
