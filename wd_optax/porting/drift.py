"""Two optimizers on one problem: by how much their weights come to differ."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPE = (4, 3)


def trajectory(optimizer: optax.GradientTransformation, steps: int, *, noise: float = 1.0) -> np.ndarray:
    """The weights after each step under given gradients of size `noise`, in float64, of shape (steps, 4, 3)."""
    random = np.random.default_rng(0)
    start = random.uniform(0.5, 2.0, SHAPE) * random.choice([-1.0, 1.0], SHAPE)
    gradients = noise * random.standard_normal((steps, *SHAPE))

    def step(carry: Any, g: jax.Array) -> Any:
        params, state = carry
        updates, state = optimizer.update({"kernel": g}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["kernel"]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params = {"kernel": jnp.asarray(start)}
        run = jax.jit(lambda params, gradients: jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1])
        return np.asarray(run(params, jnp.asarray(gradients)))


def drift(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest ‖difference‖/‖theirs‖ of a run; NaN where one of them diverges."""
    distance, size = (np.sqrt(np.sum(np.square(x), axis=(1, 2))) for x in (ours - theirs, theirs))
    return float(np.max(distance / size))
