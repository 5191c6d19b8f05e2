"""AdamW whose η falls, for the step and the decay, where a gradient is large beside its past."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.hyperparams import Scalar, ScalarOrSchedule
from wd_optax.masking.masks import Mask
from wd_optax.porting.live import descend
from wd_optax.transforms import add_decayed_weights


def stable_adamw(
    learning_rate: ScalarOrSchedule,
    b1: float,
    b2: float,
    eps: float,
    *,
    weight_decay: ScalarOrSchedule,
    peak: Scalar,
    mask: Mask,
) -> optax.GradientTransformationExtraArgs:
    """p ← p − η'·(m̂/(√v̂ + ε) + (λ/η_max)·p), η' = η/max(1, RMS(g/max(√v̂, ε))) of each parameter.

    Args:
      learning_rate: η.
      b1, b2, eps: as in Adam.
      weight_decay: λ.
      peak: η_max, where the decay is coupled to η/η_max; 1 for η·λ.
      mask: which parameters decay.

    Example: a gradient 10 times those before; η' is a fifth of η, and the decay with it.
      >>> import jax.numpy as jnp
      >>> from wd_optax.porting.stable_adamw import stable_adamw
      >>> tx = stable_adamw(0.1, 0.0, 0.99, 0.0, weight_decay=1.0, peak=1.0, mask=None)
      >>> state = tx.init(params := jnp.array([100.0]))
      >>> for g in [1.0] * 50 + [10.0]:
      ...     step, state = tx.update(jnp.array([g]), state, params)
      >>> print(f"{step.item():.1f}")
      -2.0

    Reference: Wortsman et al. 2023, arXiv 2304.13013, Algorithm 2.
    """
    adam = optax.scale_by_adam(b1, b2, eps)
    decay = add_decayed_weights(weight_decay, mask)

    def init(params: Any) -> Any:
        return adam.init(params), decay.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        u, adam_state = adam.update(updates, state[0], params)
        decayed, decay_state = decay.update(optax.tree.zeros_like(updates), state[1], params)  # λ·p
        bias = 1 - b2 ** adam_state.count.astype(jnp.result_type(float))

        def scale(u: Any, d: Any, g: Any, nu: Any) -> Any:
            variance = jnp.maximum(nu / bias.astype(nu.dtype), eps**2)
            return (u + d / peak) / jnp.maximum(1, jnp.sqrt(jnp.mean(g**2 / variance)))

        updates = jax.tree.map(scale, u, decayed, updates, adam_state.nu)
        return updates, (adam_state, decay_state)

    return descend(optax.GradientTransformationExtraArgs(init, update), learning_rate)
