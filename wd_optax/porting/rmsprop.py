"""RMSprop as TensorFlow and Keras have it: ε inside the root, and η inside the momentum."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.porting.cautious_steps import drop_disagreeing
from wd_optax.porting.directions import Slots, per_leaf


def rmsprop_step(
    decay: float,
    eps: float,
    *,
    momentum: float = 0.0,
    centered: bool = False,
    initial: float = 0.0,
    lr_in_momentum: bool = True,
    caution: bool = False,
) -> optax.GradientTransformation:
    """−b, b ← μ·b + η·g/√(v + ε): a finished step that reads η, see `wd_optax.porting.live`.

    Args:
      decay: of v.
      eps: ε.
      momentum: μ.
      centered: v less the square of the mean gradient.
      initial: v before the first step: 1 in timm's RMSpropTF.
      lr_in_momentum: False accumulates g/√(v + ε) and takes η times that.
      caution: drops entries of b that disagree with the gradient; not without momentum.
    """

    def step(g: jax.Array, slots: Slots, t: jax.Array, learning_rate: jax.Array) -> tuple[jax.Array, Slots]:
        del t
        new: dict[str, Any] = {"nu": decay * slots["nu"] + (1 - decay) * g**2}
        variance = new["nu"]
        if centered:
            new["mean"] = decay * slots["mean"] + (1 - decay) * g
            variance = variance - new["mean"] ** 2
        b, after = g / jnp.sqrt(variance + eps), learning_rate
        if lr_in_momentum:
            b, after = learning_rate * b, jnp.ones_like(learning_rate)
        if momentum:
            b = new["trace"] = momentum * slots["trace"] + b
            b = drop_disagreeing(b, g) if caution else b
        return -after * b, new

    slots: Any = {"nu": initial} | ({"mean": 0.0} if centered else {}) | ({"trace": 0.0} if momentum else {})
    return per_leaf(step, uses=("learning_rate",), **slots)
