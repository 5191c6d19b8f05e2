"""Where decay stands in the chain: four transforms that compose with any Optax transformation.

Where it stands is what makes it L2 regularisation or weight decay (p parameter, g gradient, u descent
direction, m the mask's multiplier, a the anchor, zero by default):

    add_l2_to_loss        g ← g + λ·m·p             before the preconditioner: coupled
    add_decayed_weights   u ← u + λ·m·(p − a)       after it, before the learning rate: decoupled
    shrink                step ← step − c·m·(p − a) after the learning rate: decoupled
    proximal              p ← prox(p + step)        after the step

Under plain SGD the first three are the same trajectory, with one mask. Under Adam the first is not: the preconditioner
divides λ·p by √v, and most of λ cancels (Loshchilov & Hutter 2019, arXiv 1711.05101).
A stage sees only what stands before it: clipping in front of the decay does not clip the decay.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.core import decayed
from wd_optax.hyperparams import ScalarOrSchedule, check_number, is_concrete
from wd_optax.masking.masks import Mask
from wd_optax.rules.toward import Anchor


def add_l2_to_loss(weight_decay: ScalarOrSchedule, mask: Mask = "weights") -> optax.GradientTransformationExtraArgs:
    """g ← g + λ·m·p: the gradient of λ/2·Σ m·p², without touching the loss. Stands first in the chain.

    Args:
      weight_decay: λ ≥ 0, a number, an array or a schedule.
      mask: which leaves, see `wd_optax.masking`; weights and embeddings by default, as the optimizers.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: for a bad λ at once, for a mask that doesn't fit at `init`.

    Example: PyTorch's `Adam(lr=1e-3, weight_decay=0.1)`.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = optax.chain(wd.add_l2_to_loss(0.1), optax.adam(1e-3))
      >>> params = {"w": jnp.array(2.0)}
      >>> updates, _ = tx.update({"w": jnp.array(0.0)}, tx.init(params), params)
      >>> print(f"{updates['w']:.4f}")  # Adam normalises: λ's size cancels
      -0.0010
    """
    check_number("weight_decay", weight_decay)
    return decayed(
        "add_l2_to_loss",
        optax.identity(),
        {"weight_decay": weight_decay},
        mask=mask,
        before=lambda grads, pull: pull(grads, pull.hyperparams["weight_decay"]),
    )


def add_decayed_weights(
    weight_decay: ScalarOrSchedule,
    mask: Mask = None,
    *,
    anchor: Anchor = None,
    cautious: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """u ← u + λ·m·(p − a): stands after the preconditioner and before the learning rate, which scales it.

    Drop-in for `optax.add_decayed_weights`: it decays every leaf unless `mask="weights"` is given, where all else here
    spares biases and norms by default. After the learning rate its sign is wrong and weights grow: there, use `shrink`.

    Args:
      weight_decay: λ ≥ 0, a number, an array or a schedule; removes η_t·λ of the weight per step.
      mask: which leaves, see `wd_optax.masking`; None, every leaf, is Optax's default: biases and norms decay too.
      anchor: a: None (zero), "init" (the parameters at `init`, copied) or a tree like the parameters.
      cautious: decay only entries where u·(p − a) ≥ 0 (Chen et al. 2025, arXiv 2510.12402).

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: for a bad λ at once, for a mask or anchor that doesn't fit at `init`.

    Example: AdamW.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = optax.chain(wd.scale_by_adam(), wd.add_decayed_weights(0.1), optax.scale_by_learning_rate(1e-2))
      >>> params = {"w": jnp.array(2.0)}
      >>> updates, _ = tx.update({"w": jnp.array(0.0)}, tx.init(params), params)
      >>> print(f"{updates['w']:.4f}")  # −η·λ·p
      -0.0020
    """
    check_number("weight_decay", weight_decay)
    return decayed(
        "add_decayed_weights",
        optax.identity(),
        {"weight_decay": weight_decay},
        mask=mask,
        anchor=anchor,
        before=lambda u, pull: pull(
            u, pull.hyperparams["weight_decay"], gate=jax.tree.map(jnp.negative, u) if cautious else None
        ),
    )


def shrink(
    rate: ScalarOrSchedule, mask: Mask = "weights", *, anchor: Anchor = None
) -> optax.GradientTransformationExtraArgs:
    """step ← step − c·m·(p − a): stands after the learning rate, and removes `rate` of the weight per step.

    Args:
      rate: c, the fraction removed per step, in [0, 1): a number, an array or a schedule such as
        `wd_optax.decay_rate(...)`.
      mask: which leaves, see `wd_optax.masking`; weights and embeddings by default, as the optimizers.
      anchor: a: None (zero), "init" (the parameters at `init`, copied) or a tree like the parameters.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: for a bad rate at once, for a mask or anchor that doesn't fit at `init`.

    Example: decay 1 % per step, at any learning rate.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = optax.chain(optax.adam(1e-3), wd.shrink(0.01))
      >>> params = {"w": jnp.array(2.0)}
      >>> updates, _ = tx.update({"w": jnp.array(0.0)}, tx.init(params), params)
      >>> print(f"{updates['w']:.4f}")
      -0.0200
    """
    check_number("rate", rate, below=1.0)
    return decayed(
        "shrink",
        optax.identity(),
        {"rate": rate},
        mask=mask,
        anchor=anchor,
        largest=float(rate) if is_concrete(rate) else None,
        after=lambda step, pull: pull(step, -pull.hyperparams["rate"]),
    )


def _proximal_l2(step: Any, p: Any, toward: Any, c: Any) -> Any:
    """Prox of c/2·(p − a)²: (p + step + c·a)/(1 + c), as a step."""
    del p
    return (step - c * toward) / (1 + c)


def _proximal_l1(step: Any, p: Any, toward: Any, c: Any) -> Any:
    """Prox of c·|p − a|: soft thresholding, as a step; entries within c of the anchor land on it."""
    moved = toward + step
    return jnp.where(jnp.abs(moved) <= c, -toward, step - c * jnp.sign(moved))


PROXIMAL = {"l2": _proximal_l2, "l1": _proximal_l1}


def proximal(
    rate: ScalarOrSchedule, mask: Mask = "weights", *, penalty: str = "l2", anchor: Anchor = None
) -> optax.GradientTransformationExtraArgs:
    """p ← argmin_x ½·|x − (p + step)|² + c·m·penalty(x − a): comes last, after the learning rate.

    With "l2", ½·x², that is (p + step)/(1 + c): stable at any rate, and AdamW + O(η²) for c = η·λ.
    With "l1", |x|, that is soft thresholding by c: the one decay that makes weights exactly zero. An update has the
    gradient's type: a float32 weight reaches zero in up to three steps under bfloat16 gradients, and comes within
    3·10⁻⁸ of it under float16's; in `in_float32(optax.chain(..., wd.proximal(...)))` it reaches zero in one.

    Args:
      rate: c ≥ 0, for "l1" in units of the weight: a number, an array or a schedule; with
        `wd_optax.decay_rate(λ, learning_rate=η)` the step minimises the loss plus λ·penalty.
      mask: which leaves, see `wd_optax.masking`; weights and embeddings by default, as the optimizers.
      penalty: "l2" or "l1".
      anchor: a: None (zero), "init" (the parameters at `init`, copied) or a tree like the parameters.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: for a bad rate or penalty at once, for a mask or anchor that doesn't fit at `init`.

    References:
      Parikh & Boyd 2014, "Proximal Algorithms", sections 6.1.1 and 6.5.2;
      Zhuang et al. 2022, arXiv 2202.00089 (AdamProx).

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = optax.chain(optax.sgd(0.1), wd.proximal(0.05, penalty="l1"))
      >>> params = {"w": jnp.array([0.04, 1.0])}
      >>> updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([0.  , 0.95], dtype=float32)}
    """
    check_number("rate", rate)
    if penalty not in PROXIMAL:
        raise ValueError(f"penalty={penalty!r} has no proximal step here: use one of {', '.join(map(repr, PROXIMAL))}")
    return decayed(
        "proximal",
        optax.identity(),
        {"rate": rate},
        mask=mask,
        anchor=anchor,
        after=lambda step, pull: pull(step, pull.hyperparams["rate"], formula=PROXIMAL[penalty]),
    )
