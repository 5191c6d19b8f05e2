"""SGD and Adam with decoupled (`sgdw`, `adamw`) or coupled (`sgd_l2`, `adam_l2`) weight decay.

Each is a direction in `wd_optax.decoupled` or `wd_optax.coupled`. What is true of all of them:

    - `weight_decay` is required: no default travels between frameworks (Optax 1e-4, PyTorch 1e-2, ...).
    - `learning_rate`, `weight_decay` are numbers, JAX arrays or schedules (step -> number), and leaves of the
      state: see `wd_optax.core.DecayState`. λ = 0 is bitwise the optimizer without decay; for `adam_l2` the gradient
      is, and under `jit` XLA may round the moments' (1 − b)·g + b·m in the other order, in the last bit.
    - `optax.tree.get(state, "count")`, `"learning_rate"` and `"weight_decay"` find one leaf each, unless a rule
      has a `count` of its own.
    - `mask="weights"` decays weights and embeddings, never biases, norms, scalars or tokens: see `wd_optax.masking`.
    - `coupling`, `peak_learning_rate`: c_t, the fraction of a weight removed per step: see `wd_optax.decay_rate`. Rules
      give each parameter its own, the first match decides: [("blocks/.*kernel", "corrected"), (".*", "lr")] is AdamC.
    - `rule`: r(p), toward what and when: None is r(p) = p, see `wd_optax.rules`.
    - `slices`: which axes of a leaf count weights, for every norm: [("blocks", 1)] for layers stacked along axis 0, see
      `wd_optax.explain_slices`; None is one weight per leaf.
    - `penalty`: decay by a proximal step in place of −c_t·m·r(p): "l2", "l1", "elastic", "huber", "group" or one of
      `wd_optax.prox`. It minimises loss + λ·m·penalty (with "constant" + (λ/η)·, with "schedule" + (λ/η_max)·); c_t is
      a threshold, in units of the weight for "l1", and may be 1 or more. It takes no gate such as `cautious`.
    - `rounding`, `key`: None, "nearest", "stochastic", "compensated" or "compensated_all": the optimizer computes in
      float32, and its step is rounded so that low-precision parameters keep it: see `wd_optax.precision.round_updates`.
    - A bad number is a ValueError at once, a mask that doesn't fit the parameters one at `init`, each naming the fix.
"""

from typing import Any

import optax

from wd_optax import hyperparams
from wd_optax.coupling_rules import CouplingRules
from wd_optax.couplings import Coupling
from wd_optax.hyperparams import Scalar, ScalarOrSchedule
from wd_optax.masking.masks import Mask
from wd_optax.masking.slices import Slices
from wd_optax.momentum import heavy_ball
from wd_optax.precision.random_bits import Key
from wd_optax.precision.rounding import Rounding, for_state
from wd_optax.precision.state import low_precision_state
from wd_optax.prox.metrics import adam_metric
from wd_optax.prox.steps import Penalty, Prox
from wd_optax.rules.apply import Rule
from wd_optax.wrappers import build_coupled, build_decoupled


def sgdw(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    dampening: Scalar = 0.0,
    mask: Mask = "weights",
    coupling: Coupling | CouplingRules = "lr",
    peak_learning_rate: Scalar | None = None,
    rule: Rule | None = None,
    slices: Slices = None,
    penalty: Penalty | Prox | None = None,
    accumulator_dtype: Any = None,
    rounding: Rounding | None = None,
    key: Key = 0,
) -> optax.GradientTransformationExtraArgs:
    """SGD with decoupled weight decay: p ← p − η_t·b − c_t·m·r(p); removes c_t = η_t·λ of the weight per step.

    b = g without momentum, else heavy-ball momentum b ← μ·b + (1 − τ)·g, undamped in the first step.

    Args:
      learning_rate: η_t.
      weight_decay: λ.
      momentum: μ.
      nesterov: use g + μ·b in place of b.
      dampening: τ; none with Nesterov, as in PyTorch.
      mask, coupling, peak_learning_rate, rule, slices, rounding, key: see the module.
      penalty: see the module. Momentum accumulates gradients and not thresholds: with it the fixed points minimise
        loss + (1 − μ)/(1 − τ)·λ·penalty. Without it "l1" has few exact zeros where gradients are of small batches.
      accumulator_dtype: the type of b, by default the parameters'.

    Example: momentum and a zero gradient; the decay is η·λ·p, and isn't accumulated.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=0.01, momentum=0.9)
      >>> params = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}
      >>> updates, state = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print(f"{updates['kernel'].item():.4f}", updates["bias"].item() == 0)
      -0.0020 True

    Reference: Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 1.
    """
    direction = heavy_ball(momentum, nesterov, dampening, accumulator_dtype)
    return build_decoupled(
        "sgdw", direction, learning_rate, weight_decay=weight_decay, mask=mask, coupling=coupling,
        peak_learning_rate=peak_learning_rate, rule=rule, slices=slices, penalty=penalty, metric=None,
        rounding=rounding, key=key,
    )  # fmt: skip


def sgd_l2(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    dampening: Scalar = 0.0,
    mask: Mask = "weights",
    rule: Rule | None = None,
    slices: Slices = None,
    accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD on the loss plus λ/2·Σ m·p²: g ← g + λ·m·r(p), then b as in `sgdw`, p ← p − η_t·b.

    PyTorch's `SGD(weight_decay=λ)`. The same trajectory as `sgdw` without momentum; with it the momentum
    accumulates the decay as well.

    Args:
      learning_rate: η_t.
      weight_decay: λ.
      momentum, nesterov, dampening, accumulator_dtype: see `sgdw`.
      mask, rule, slices: see the module.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgd_l2(0.1, weight_decay=0.01)
      >>> params = {"kernel": jnp.array([[2.0]])}
      >>> updates, state = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print(f"{updates['kernel'].item():.4f}")
      -0.0020
    """
    direction = heavy_ball(momentum, nesterov, dampening, accumulator_dtype)
    return build_coupled(
        "sgd_l2", direction, learning_rate, weight_decay=weight_decay, mask=mask, rule=rule, slices=slices
    )


def adamw(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    mask: Mask = "weights",
    coupling: Coupling | CouplingRules = "lr",
    peak_learning_rate: Scalar | None = None,
    rule: Rule | None = None,
    slices: Slices = None,
    penalty: Penalty | Prox | None = None,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    nesterov: bool = False,
    rounding: Rounding | None = None,
    key: Key = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled weight decay: p ← p − η_t·m̂/(√v̂ + ε) − c_t·m·r(p); removes c_t = η_t·λ per step.

    PyTorch's and Optax's AdamW with `coupling="lr"`, the paper's with `coupling="schedule"`.

    Args:
      learning_rate: η_t.
      weight_decay: λ.
      b1, b2, eps, eps_root, mu_dtype, nesterov: as in `optax.scale_by_adam`.
      nu_dtype: the type of the second moment; stored with nearest rounding, or stochastic where `rounding` asks for
        more than nearest: see `wd_optax.precision.low_precision_state`.
      mask, coupling, peak_learning_rate, rule, slices, rounding, key: see the module.
      penalty: see the module; a proximal step in Adam's metric D = √v̂ + ε (ProxGen): "l1" is a soft threshold at
        η·λ/D per entry. λ is in units of the loss, as `adam_l2`'s and not as decay's: where gradients are small, so is
        D, and an entry without a gradient goes to 0 in its first step.

    Example: λ is live: switch decay off in the middle of a run.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.adamw(1e-2, weight_decay=0.1)
      >>> params = {"kernel": jnp.array([[2.0]])}
      >>> zeros, state = optax.tree.zeros_like(params), tx.init(params)
      >>> updates, state = tx.update(zeros, state, params)
      >>> print(f"{updates['kernel'].item():.4f}")
      -0.0020
      >>> state = optax.tree.set(state, weight_decay=jnp.float32(0))
      >>> updates, state = tx.update(zeros, state, params)
      >>> print(f"{updates['kernel'].item():.4f}")
      -0.0000

    References: Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2; Yun et al. 2021, arXiv 2007.07484 (ProxGen).
    """
    hyperparams.check_precision(b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    how = for_state(rounding)
    if how == "stochastic" or nu_dtype is not None:
        direction = optax.scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov)
        direction = low_precision_state(direction, rounding=how, key=key, mu=mu_dtype, nu=nu_dtype)
    else:
        direction = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return build_decoupled(
        "adamw", direction, learning_rate, weight_decay=weight_decay, mask=mask, coupling=coupling,
        peak_learning_rate=peak_learning_rate, rule=rule, slices=slices, penalty=penalty,
        metric=None if penalty is None else adam_metric(b2, eps, eps_root), rounding=rounding, key=key,
    )  # fmt: skip


def adam_l2(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    mask: Mask = "weights",
    rule: Rule | None = None,
    slices: Slices = None,
    eps_root: Scalar = 0.0,
    mu_dtype: Any = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam on the loss plus λ/2·Σ m·p²: g ← g + λ·m·r(p) before the moments, p ← p − η_t·m̂/(√v̂ + ε).

    PyTorch's `Adam(weight_decay=λ)`. Not `adamw`: Adam divides λ·p by √v̂, so weights with large gradients
    hardly decay, and where λ·p dominates the gradient λ cancels.

    Args:
      learning_rate: η_t.
      weight_decay: λ.
      b1, b2, eps, eps_root, mu_dtype, nesterov: as in `optax.scale_by_adam`.
      mask, rule, slices: see the module.

    Example: with a zero gradient the step is η, whatever λ is.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"kernel": jnp.array([[2.0]])}
      >>> for weight_decay in (1e-3, 1e-1):
      ...     tx = wd.adam_l2(1e-2, weight_decay=weight_decay)
      ...     updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      ...     print(f"{updates['kernel'].item():.4f}")
      -0.0100
      -0.0100
    """
    hyperparams.check_precision(b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    direction = optax.scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return build_coupled(
        "adam_l2", direction, learning_rate, weight_decay=weight_decay, mask=mask, rule=rule, slices=slices
    )
