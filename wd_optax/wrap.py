"""Decay around an optimizer: before its direction (coupled) or after its learning rate (decoupled)."""

from typing import Any

import jax
import optax

from wd_optax import precision, rates
from wd_optax.anchors import Anchor
from wd_optax.hyperparams import Scalar, ScalarOrSchedule, check_number
from wd_optax.masks import Mask
from wd_optax.pull import Pull, decayed


def with_decay(
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: Mask = "weights",
    coupling: str = "lr",
    peak_learning_rate: Scalar | None = None,
    cautious: bool = False,
    anchor: Anchor = None,
    rounding: str | None = None,
    key: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled weight decay on any finished optimizer: p ← p + step − c_t·m·p; removes c_t = η_t·λ per step.

    Args:
      optimizer: any Optax optimizer, its learning rate included and its own decay switched off (Optax's lion, lamb,
        adamw, ... decay by default); extra arguments of `update` reach it.
      learning_rate: η_t, the optimizer's, to which the decay is coupled; editing this leaf in the state changes
        the decay alone, for the optimizer keeps its own.
      weight_decay: λ.
      mask, coupling, peak_learning_rate, cautious, anchor, rounding, key: see `wd_optax.optimizers`.

    Averaging wrappers such as schedule-free stand outside, so that every sequence they keep decays:
    `optax.contrib.schedule_free(wd.with_decay(optax.sgd(lr), ...), lr)`. `optax.contrib.cocob`, `madgrad` and
    `mechanize` compute the weights from a copy that they keep, and take the decay back: for these use
    `add_l2_to_loss`. Where the optimizer scales `learning_rate` itself (prodigy, dog, ...), c_t does not follow.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.with_decay(optax.lion(1e-3, weight_decay=0.0), learning_rate=1e-3, weight_decay=1.0)
      >>> params = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print(f"{updates['kernel'].item():.4f}", updates["bias"].item() == 0)
      -0.0020 True
    """
    tx = decoupled(
        "with_decay", optimizer, learning_rate, weight_decay, mask, coupling, peak_learning_rate, cautious, anchor,
        finished=True,
    )  # fmt: skip
    return precision.rounded(tx, rounding, key)


def decoupled(
    name: str,
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    coupling: str,
    peak_learning_rate: Scalar | None,
    cautious: bool,
    anchor: Anchor,
    finished: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """step = −η·direction (or the direction itself where it is finished), then step − c·m·(p − a)."""
    peak = rates.check_rates(
        coupling, learning_rate=learning_rate, weight_decay=weight_decay, peak_learning_rate=peak_learning_rate
    )
    hyperparams = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    if peak is not None:
        hyperparams["peak_learning_rate"] = peak

    def after(updates: Any, pull: Pull) -> Any:
        step = updates if finished else _descend(updates, pull)
        return pull(step, -rates.removed(coupling, **pull.hyperparams), cautious=cautious)

    return decayed(name, direction, hyperparams, mask=mask, anchor=anchor, after=after)


def coupled(
    name: str,
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: Mask,
) -> optax.GradientTransformationExtraArgs:
    """g + λ·m·p, through the direction, times −η."""
    check_number("learning_rate", learning_rate)
    check_number("weight_decay", weight_decay)
    return decayed(
        name,
        direction,
        {"learning_rate": learning_rate, "weight_decay": weight_decay},
        mask=mask,
        before=lambda grads, pull: pull(grads, pull.hyperparams["weight_decay"]),
        after=_descend,
    )


def _descend(direction: Any, pull: Pull) -> Any:
    """−η·u, with η rounded to the update's type as Optax does: λ = 0 is bitwise Optax's optimizer."""
    eta = -pull.hyperparams["learning_rate"]
    return jax.tree.map(lambda u: eta.astype(u.dtype) * u, direction)
