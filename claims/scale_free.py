"""AdamW and AdamProx ignore the scale of each coordinate's gradient; Adam with L2 doesn't."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, exactly
from claims.training import distance, train

STEPS, SIZE, ETA, WEIGHT_DECAY = 300, 64, 0.01, 1.0


def adam_prox() -> optax.GradientTransformation:
    """(p − η·u)/(1 + η·λ), with u Adam's direction."""
    steps = optax.chain(optax.scale_by_adam(eps=0.0), optax.scale_by_learning_rate(ETA))
    return optax.chain(steps, wd.proximal(ETA * WEIGHT_DECAY))


OPTIMIZERS = {
    "AdamW": wd.adamw(ETA, weight_decay=WEIGHT_DECAY, eps=0.0),
    "AdamProx": adam_prox(),
    "Adam + L2": wd.adam_l2(ETA, weight_decay=WEIGHT_DECAY, eps=0.0),
}
BITS = "{}: entries, of all steps, that differ in a bit"
DISTANCE = "Adam + L2: ‖w − w_rescaled‖/‖w_rescaled‖ at the end"


def paths(optimizer: optax.GradientTransformation, scale: jax.Array) -> jax.Array:
    """The weights after each step on a least-squares problem whose gradients are multiplied by `scale`."""
    random = np.random.default_rng(0)
    x, y = (jnp.asarray(random.normal(size=size), jnp.float32) for size in ((2 * SIZE, SIZE), 2 * SIZE))
    gradient = lambda p, _: {"w": scale * (x.T @ (x @ p["w"] - y)) / len(y)}
    return train(optimizer, {"w": jnp.ones(SIZE)}, gradient, None, lambda step: step.after["w"], STEPS)[1]


def measure() -> Measured:
    """Gradients as they are, and each coordinate's times a power of two between 2⁻¹⁰ and 2¹⁰, which is exact."""
    scale = jnp.asarray(2.0 ** np.random.default_rng(1).integers(-10, 11, SIZE), jnp.float32)
    both = jax.jit(lambda scale: {name: paths(optimizer, scale) for name, optimizer in OPTIMIZERS.items()})
    plain, scaled = both(jnp.ones(SIZE)), both(scale)
    differ = {name: int((plain[name] != scaled[name]).sum()) for name in OPTIMIZERS}
    rows: dict[str, Any] = {BITS.format(name): differ[name] for name in ("AdamW", "AdamProx")}
    rows[DISTANCE] = float(distance(scaled["Adam + L2"][-1], plain["Adam + L2"][-1]))
    curves = {name: np.asarray(jax.vmap(distance)(scaled[name], plain[name])) for name in OPTIMIZERS}
    return Measured(rows, curves)


def draw(axes: Any, curves: Any) -> None:
    """The distance between the two trajectories."""
    for i, (name, apart) in enumerate(curves.items()):
        axes.plot(np.arange(1, STEPS + 1), apart, label=name, **plots.line(i))
    axes.set(xlabel="step", ylabel="‖w − w_rescaled‖/‖w‖")


CLAIM = Claim(
    title="AdamW and AdamProx are scale-free",
    papers=("2202.00089",),
    statement="With ε = 0, multiplying each coordinate's gradient by a positive number of its own changes no step of "
    "AdamW or of its proximal form, while it changes those of Adam with L2.",
    expected={BITS.format(name): exactly(0) for name in ("AdamW", "AdamProx")} | {DISTANCE: at_least(0.5)},
    measure=measure,
    draw=draw,
    quick=True,
)
