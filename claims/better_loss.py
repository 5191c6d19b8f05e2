"""Which rule gives a lower test loss than AdamW, if each has its best λ, on digits with noisy labels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most
from claims.training import batches, cross_entropy, forward, layers, noisy_digits, train

SEEDS, STEPS, BATCH, IMAGES, ETA = 8, 1000, 32, 300, 3e-3
RATE = optax.cosine_decay_schedule(ETA, STEPS)
FACTORS = 2.0 ** np.arange(9)  # of the smallest λ


def proximal(weight_decay: Any) -> optax.GradientTransformation:
    """AdamProx."""
    steps = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(RATE))
    return optax.chain(steps, wd.proximal(lambda t: RATE(t) * weight_decay))


def adamw(**options: Any) -> Callable[[Any], optax.GradientTransformation]:
    """AdamW as a function of λ."""
    return lambda weight_decay: wd.adamw(RATE, weight_decay=weight_decay, **options)


# A rule: the smallest λ of its grid, the optimizer for a λ, where it comes from.
RULES: dict[str, tuple[float, Callable[[Any], optax.GradientTransformation]]] = {
    "AdamW": (0.05, adamw()),
    "Adam + L2 (1711.05101)": (5e-4, lambda weight_decay: wd.adam_l2(RATE, weight_decay=weight_decay)),
    "AdamProx (2202.00089)": (0.05, proximal),
    'coupling "corrected" (2506.02285)': (0.1, adamw(coupling="corrected", peak_learning_rate=ETA)),
    "constant decay": (5e-6, adamw(coupling="constant")),
    "cautious (2510.12402)": (0.2, adamw(rule=wd.rules.cautious())),
    "Huber, δ = 0.05 (2511.14721)": (0.2, adamw(rule=optax.clip(0.05))),
    "decoupled decay toward the initial weights (1802.01483)": (0.1, adamw(rule=wd.rules.toward("init"))),
}
ROWS = {name: f"test loss at the best of nine λ, {name} − AdamW" for name in RULES if name != "AdamW"}
NONE = "test loss, no decay − AdamW at its best λ"


def tuned(base: float, make: Callable[[Any], optax.GradientTransformation]) -> np.ndarray:
    """Test losses at the end, shape=(λ, seeds)."""
    x, x_test, y, y_test = noisy_digits(size=IMAGES)
    logits = lambda params, x: forward(params, x, jax.nn.relu)
    gradient = jax.grad(lambda params, rows: cross_entropy(logits(params, x[rows]), y[rows]))

    def one(weight_decay: jax.Array, params: Any, rows: jax.Array) -> jax.Array:
        end, _ = train(make(weight_decay), params, gradient, rows)
        return cross_entropy(logits(end, x_test), y_test)

    given = layers(SEEDS, 64, 64, 64, 10), batches(SEEDS, STEPS, BATCH, IMAGES)
    grid = jnp.asarray(base * FACTORS, jnp.float32)
    return np.asarray(jax.jit(jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None)))(grid, *given))


def measure() -> Measured:
    """λ is chosen by the mean test loss over seeds, for every rule alike."""
    losses = {name: tuned(*rule) for name, rule in RULES.items()}
    best = {name: found[found.mean(axis=1).argmin()] for name, found in losses.items()}
    none = tuned(0.0, adamw())[0]
    rows = {row: best[name] - best["AdamW"] for name, row in ROWS.items()}
    return Measured(rows | {NONE: none - best["AdamW"]}, losses | {"none": none})


def draw(axes: Any, curves: Any) -> None:
    """Test loss by λ, in units of each rule's smallest."""
    for i, (name, losses) in enumerate(curves.items()):
        if name == "none":
            axes.axhline(losses.mean(), color="grey", label="no decay")
        else:
            axes.semilogx(FACTORS, losses.mean(axis=1), label=name, **plots.line(i))
    axes.set(xlabel="λ/smallest λ of the rule's grid", ylabel="test loss", ylim=(None, curves["none"].mean() * 1.3))


CLAIM = Claim(
    title="Rules that are published as better than AdamW reach a lower test loss",
    papers=("1711.05101", "2202.00089", "2506.02285", "2510.12402", "2511.14721", "1802.01483"),
    statement="Each paper reports that its rule generalises better than AdamW, or than decay to zero, on its own "
    "tasks; the first, that AdamW does better than Adam with L2.",
    expected={NONE: at_least(0)} | {row: at_least(0) if "L2" in name else at_most(0) for name, row in ROWS.items()},
    measure=measure,
    draw=draw,
)
