"""Whether decay that is independent of the peak learning rate makes training less sensitive to it."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_most
from claims.training import batches, cross_entropy, forward, layers, noisy_digits, train

SEEDS, STEPS, BATCH, IMAGES = 8, 1000, 32, 300
ETAS, TUNED, WEIGHT_DECAY = np.geomspace(3e-4, 3e-2, 9), 3e-3, 0.4  # λ is AdamW's best at the middle η
COUPLINGS: dict[Literal["lr", "schedule"], float] = {"lr": WEIGHT_DECAY, "schedule": WEIGHT_DECAY * TUNED}
SENSITIVITY = 'sensitivity (mean over nine η of the test loss − the smallest), "schedule" − "lr"'


def losses(coupling: Literal["lr", "schedule"], weight_decay: float) -> np.ndarray:
    """Test losses at the end, shape=(η, seeds)."""
    x, x_test, y, y_test = noisy_digits(size=IMAGES)
    logits = lambda params, x: forward(params, x, jax.nn.relu)
    gradient = jax.grad(lambda params, rows: cross_entropy(logits(params, x[rows]), y[rows]))
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, STEPS // 20, STEPS)

    def one(eta: jax.Array, params: Any, rows: jax.Array) -> jax.Array:
        rate = lambda t: eta * shape(t)
        optimizer = wd.adamw(rate, weight_decay=weight_decay, coupling=coupling, peak_learning_rate=eta)
        end, _ = train(optimizer, params, gradient, rows)
        return cross_entropy(logits(end, x_test), y_test)

    given = layers(SEEDS, 64, 64, 64, 10), batches(SEEDS, STEPS, BATCH, IMAGES)
    grid = jnp.asarray(ETAS, jnp.float32)
    return np.asarray(jax.jit(jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None)))(grid, *given))


def measure() -> Measured:
    """Both couplings are the same optimizer at the middle η."""
    found = {coupling: losses(coupling, weight_decay) for coupling, weight_decay in COUPLINGS.items()}
    sensitivity = {coupling: (each - each.min(axis=0)).mean(axis=0) for coupling, each in found.items()}
    return Measured({SENSITIVITY: sensitivity["schedule"] - sensitivity["lr"]}, found)


def draw(axes: Any, curves: Any) -> None:
    """Test loss by peak learning rate."""
    for i, (coupling, found) in enumerate(curves.items()):
        plots.band(axes, ETAS, found.T, f'"{coupling}"', plots.line(i))
    axes.set(xscale="log", xlabel="η_max", ylabel="test loss")


CLAIM = Claim(
    title='Decay independent of η (coupling "schedule") makes training less sensitive to η',
    papers=("2309.14322",),
    statement="With a decay that isn't multiplied by the peak learning rate, the final loss depends less on that rate.",
    expected={SENSITIVITY: at_most(0)},
    measure=measure,
    draw=draw,
)
