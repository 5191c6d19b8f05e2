"""Four transforms that compose with any Optax transformation, named by their place in the chain.

The place makes it L2 regularisation or weight decay (p parameter, g gradient, u direction before the learning rate,
m the mask's multiplier, r the rule, r(p) = p by default):

    add_l2_to_loss        g ← g + λ·m·r(p)         before the preconditioner: coupled
    add_decayed_weights   u ← u + λ·m·r(p)         after it, before the learning rate: decoupled
    shrink                step ← step − c·m·r(p)   after the learning rate: decoupled
    proximal              p ← prox(p + step)       after the step

Under plain SGD the first three are the same trajectory, with one mask. Under Adam the first is not: the preconditioner
divides λ·p by √v, and most of λ cancels (Loshchilov & Hutter 2019, arXiv 1711.05101).
A stage sees only what comes before it: clipping before the decay does not clip the decay.
"""

import operator

import optax

from wd_optax.core import decayed
from wd_optax.hyperparams import ScalarOrSchedule, check_number, is_concrete
from wd_optax.masking.masks import Mask
from wd_optax.masking.slices import Slices
from wd_optax.prox.checks import fitted
from wd_optax.prox.steps import Penalty, Prox, resolve_penalty
from wd_optax.rules.apply import Rule


def add_l2_to_loss(
    weight_decay: ScalarOrSchedule, mask: Mask = "weights", *, rule: Rule | None = None, slices: Slices = None
) -> optax.GradientTransformationExtraArgs:
    """g ← g + λ·m·r(p): the gradient of λ/2·Σ m·p², without touching the loss. Comes first in the chain.

    Args:
      weight_decay: λ ≥ 0, a number, an array or a schedule.
      mask: which leaves, see `wd_optax.masking`; weights and embeddings by default, as the optimizers.
      rule: r, see `wd_optax.rules`: None is r(p) = p.
      slices: which axes count weights, for rules with norms: see `wd_optax.explain_slices`.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: for a bad λ at once, for a mask or rule that doesn't fit at `init`.

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
        rate=operator.itemgetter("weight_decay"),
        place="before",
        rule=rule,
        slices=slices,
    )


def add_decayed_weights(
    weight_decay: ScalarOrSchedule,
    mask: Mask = None,
    *,
    rule: Rule | None = None,
    slices: Slices = None,
) -> optax.GradientTransformationExtraArgs:
    """u ← u + λ·m·r(p): comes after the preconditioner and before the learning rate, which scales it.

    Drop-in for `optax.add_decayed_weights`: it decays every leaf unless `mask="weights"` is given; everything else
    here excludes biases and norms by default. After the learning rate its sign is wrong and weights grow: there, use
    `shrink`.

    Args:
      weight_decay: λ ≥ 0, a number, an array or a schedule; removes η_t·λ of the weight per step.
      mask: which leaves, see `wd_optax.masking`; None, every leaf, is Optax's default: biases and norms decay too.
      rule: r, see `wd_optax.rules`: None is r(p) = p.
      slices: which axes count weights, for rules with norms: see `wd_optax.explain_slices`.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: for a bad λ at once, for a mask or rule that doesn't fit at `init`.

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
        rate=operator.itemgetter("weight_decay"),
        place="before",
        given="direction",
        rule=rule,
        slices=slices,
    )


def shrink(
    rate: ScalarOrSchedule, mask: Mask = "weights", *, rule: Rule | None = None, slices: Slices = None
) -> optax.GradientTransformationExtraArgs:
    """step ← step − c·m·r(p): comes after the learning rate, and removes `rate` of the weight per step.

    Args:
      rate: c, the fraction removed per step, in [0, 1): a number, an array or a schedule such as
        `wd_optax.decay_rate(...)`.
      mask: which leaves, see `wd_optax.masking`; weights and embeddings by default, as the optimizers.
      rule: r, see `wd_optax.rules`: None is r(p) = p.
      slices: which axes count weights, for rules with norms: see `wd_optax.explain_slices`.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: for a bad rate at once, for a mask or rule that doesn't fit at `init`.

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
        rate=operator.itemgetter("rate"),
        place="after",
        given="step",
        rule=rule,
        slices=slices,
        largest=float(rate) if not callable(rate) and is_concrete(rate) else None,
    )


def proximal(
    rate: ScalarOrSchedule,
    mask: Mask = "weights",
    *,
    penalty: Penalty | Prox = "l2",
    rule: Rule | None = None,
    slices: Slices = None,
) -> optax.GradientTransformationExtraArgs:
    """p ← argmin_x ½·|x − (p + step)|² + c·m·penalty(x − a), a = p − r(p): comes last, after the learning rate.

    With "l2", ½·x², that is (p + step)/(1 + c): stable at any rate, and AdamW + O(η²) for c = η·λ.
    With "l1", |x|, that is soft thresholding by c: weights become exactly zero. An update has the
    gradient's type: a float32 weight reaches zero in up to three steps under bfloat16 gradients, and comes within
    3·10⁻⁸ of it under float16's; in `in_float32(optax.chain(..., wd.proximal(...)))` it reaches zero in one.

    After plain SGD, with c = η·λ, the fixed points minimise loss + λ·m·penalty. After Adam and other directions that
    rescale gradients they minimise nothing of the kind: a threshold of η·λ never wins against Adam's own step, about η
    in size, so that "l1" makes no zeros and hardly shrinks. There use `penalty=` of `wd_optax.adamw`, or of
    `wd_optax.decoupled` with a `metric=`.

    Args:
      rate: c ≥ 0, for "l1" in units of the weight: a number, an array or a schedule, such as
        `wd_optax.decay_rate(λ, learning_rate=η)`, which refuses c ≥ 1; for a larger one pass η·λ itself.
      mask: which leaves, see `wd_optax.masking`; weights and embeddings by default, as the optimizers.
      penalty: "l2" (½·|x|²), "l1" (|x|), "elastic" (half of each), "huber" (δ = 1), "group" (‖x‖ of each weight); one
        of `wd.prox.elastic(l1_ratio)`, `huber(delta)`, `group(axis)`; or a function as `wd_optax.prox` has it.
      rule: r, see `wd_optax.rules`: it says toward what, a = p − r(p); None is a = 0. It takes no gate.
      slices: which axes count weights, for "group": see `wd_optax.explain_slices`.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes.

    Raises:
      ValueError, TypeError: for a bad rate or penalty at once, for a mask, rule, penalty or slices that don't fit at
        `init`.

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
    prox = resolve_penalty(penalty)
    inner, _ = fitted("proximal", optax.identity(), prox, metric="euclidean", mask=mask, slices=slices)
    return decayed(
        "proximal",
        inner,
        {"rate": rate},
        mask=mask,
        rate=operator.itemgetter("rate"),
        place="after",
        given="step",
        rule=rule,
        slices=slices,
        prox=prox,
    )
