"""Steps scaled by the norm of the weights: LAMB and LARS."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.hyperparams import ScalarOrSchedule, evaluate
from wd_optax.masking import masks
from wd_optax.masking.masks import Mask
from wd_optax.transforms import add_decayed_weights, add_l2_to_loss


def lamb_step(
    direction: optax.GradientTransformation, *, trust_clip: bool = False, always_adapt: bool = True
) -> optax.GradientTransformationExtraArgs:
    """−η·(‖p‖/‖u‖)·u, the ratio 1 where a norm is 0: a finished step that reads η and λ, see `wd_optax.porting.live`.

    Args:
      direction: u.
      trust_clip: ratios above 1 are 1.
      always_adapt: False takes 1 for the ratio where λ is 0, as timm does.
    """
    inner = optax.with_extra_args_support(direction)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        u, state = inner.update(updates, state, params, **extra)
        adapts = always_adapt or extra["weight_decay"] != 0

        def step(u: Any, p: Any) -> Any:
            if u is None:
                return None
            return (-extra["learning_rate"]).astype(u.dtype) * u * jnp.where(adapts, _ratio(p, u, trust_clip), 1)

        return jax.tree.map(step, u, params, is_leaf=lambda x: x is None), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def lamb_decay(
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    *,
    trust_clip: bool = False,
    always_adapt: bool = False,
    adapted: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """u ← (‖p‖/‖u + λ·p‖)·(u + λ·p): LAMB's decay, inside the trust ratio.

    Args:
      weight_decay: λ.
      mask: which parameters decay.
      trust_clip, always_adapt: as in `lamb_step`.
      adapted: which parameters have the ratio, of 0 and 1.
    """
    decay = add_decayed_weights(weight_decay, mask)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        adapts = always_adapt or _now(weight_decay, state) != 0
        updates, state = decay.update(updates, state, params, **extra)

        def scale(u: Any, p: Any, m: Any) -> Any:
            return u if u is None or m == 0 else u * jnp.where(adapts, _ratio(p, u, trust_clip), 1)

        which = masks.multipliers(adapted, params)
        return jax.tree.map(scale, updates, params, which, is_leaf=lambda x: x is None), state

    return optax.GradientTransformationExtraArgs(decay.init, update)


def lars_decay(
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    *,
    trust_coeff: float,
    eps: float,
    trust_clip: bool,
    always_adapt: bool,
) -> optax.GradientTransformationExtraArgs:
    """g ← c·‖p‖/(‖g‖ + λ·‖p‖ + ε)·(g + λ·p), the ratio 1 where a norm is 0; reads η for `trust_clip`."""
    decay = add_l2_to_loss(weight_decay, mask)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        rate = _now(weight_decay, state)

        def ratio(g: Any, p: Any) -> Any:
            if g is None:
                return None
            w_norm, g_norm, wd = jnp.linalg.norm(p.ravel()), jnp.linalg.norm(g.ravel()), rate.astype(g.dtype)
            ratio = trust_coeff * w_norm / (g_norm + w_norm * wd + eps)
            ratio = jnp.where((w_norm > 0) & (g_norm > 0), ratio, 1)
            if trust_clip:
                ratio = jnp.minimum(ratio / extra["learning_rate"].astype(g.dtype), 1)
            return jnp.where(always_adapt | (wd != 0), ratio, 1)

        ratios = jax.tree.map(ratio, updates, params, is_leaf=lambda x: x is None)
        updates, state = decay.update(updates, state, params, **extra)
        return jax.tree.map(lambda g, r: g * r, updates, ratios), state

    return optax.GradientTransformationExtraArgs(decay.init, update)


def _ratio(p: jax.Array, u: jax.Array, clip: bool) -> jax.Array:
    w_norm, u_norm = jnp.linalg.norm(p.ravel()), jnp.linalg.norm(u.ravel())
    ratio = jnp.where((w_norm > 0) & (u_norm > 0), w_norm / u_norm, 1)
    return jnp.minimum(ratio, 1) if clip else ratio


def _now(weight_decay: ScalarOrSchedule, state: Any) -> jax.Array:
    return evaluate({"weight_decay": weight_decay}, state.step, state.hyperparams)["weight_decay"]
