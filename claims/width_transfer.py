"""Whether the best learning rate is the same for every width, with weights on a sphere and with AdamW."""

from collections.abc import Callable
from typing import Any

import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most, between
from claims.training import batches, cross_entropy, forward, layers, train

SEEDS, STEPS, BATCH, WIDTHS = 4, 300, 32, (48, 96, 192)
SHAPE = optax.cosine_decay_schedule(1.0, STEPS)
# The optimizer for a peak η, and its grid.
OPTIMIZERS: dict[str, tuple[Callable[[Any], optax.GradientTransformation], np.ndarray]] = {
    "AdamW": (lambda eta: wd.adamw(lambda t: eta * SHAPE(t), weight_decay=0.1), 2.0 ** np.arange(-11, -2)),
    "AdamH": (lambda eta: wd.hyperball(wd.scale_by_adam(), lambda t: eta * SHAPE(t)), 2.0 ** np.arange(-9, 0)),
}
SLOPE = {name: f"{name}: d log(best η)/d log(width), widths 48 to 192" for name in OPTIMIZERS}
LESS = "d log(best η)/d log(width), AdamH − AdamW"


def losses(name: str, width: int) -> np.ndarray:
    """Test losses at the end, shape=(η, seeds); infinite for a run that diverged."""
    make, grid = OPTIMIZERS[name]
    x, x_test, y, y_test = data.digits()
    logits = lambda params, x: forward(params, x, jax.nn.relu)
    gradient = jax.grad(lambda params, rows: cross_entropy(logits(params, x[rows]), y[rows]))

    def one(eta: jax.Array, params: Any, rows: jax.Array) -> jax.Array:
        end, _ = train(make(eta), params, gradient, rows)
        return cross_entropy(logits(end, x_test), y_test)

    given = layers(SEEDS, 64, width, width, 10), batches(SEEDS, STEPS, BATCH, len(x))
    found = jax.jit(jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None)))(jnp.asarray(grid, jnp.float32), *given)
    return np.where(np.isfinite(found), found, np.inf)


def best(grid: np.ndarray, loss: np.ndarray) -> float:
    """log₂ of the best η: the vertex of a parabola through the smallest loss and its neighbours; NaN at an edge."""
    i = int(loss.argmin())
    if not 0 < i < len(grid) - 1:
        return np.nan
    left, middle, right = loss[i - 1 : i + 2]
    shift = 0.5 * (left - right) / (left - 2 * middle + right) if np.isfinite(left + right) else 0.0
    return float(np.log2(grid[i]) + shift)


def measure() -> Measured:
    """The slope of a line through the best η of three widths, for every seed."""
    slopes, curves = {}, {}
    for name, (_, grid) in OPTIMIZERS.items():
        curves[name] = np.stack([losses(name, width) for width in WIDTHS])
        optima = np.asarray([[best(grid, loss) for loss in found.T] for found in curves[name]])
        slopes[name] = np.polyfit(np.log2(WIDTHS), optima, 1)[0]
    rows: dict[str, Any] = {row: slopes[name] for name, row in SLOPE.items()}
    return Measured(rows | {LESS: slopes["AdamH"] - slopes["AdamW"]}, curves)


def draw(axes: Any, curves: Any) -> None:
    """Test loss by η."""
    for i, (name, found) in enumerate(curves.items()):
        for width, loss, dashes in zip(WIDTHS, found.mean(axis=-1), ("-", "--", ":"), strict=True):
            label = f"{name}, width {width}"
            axes.loglog(OPTIMIZERS[name][1], loss, label=label, **plots.line(i) | {"linestyle": dashes})
    axes.set(xlabel="η_max", ylabel="test loss", ylim=(None, 3))


CLAIM = Claim(
    title="With weights on a sphere the best learning rate is the same for every width",
    papers=("2606.16899", "2603.28743"),
    statement="With matrices of fixed Frobenius norm and steps of fixed relative length, a learning rate that was "
    "tuned at a small width is the best at larger ones, too; AdamW's falls with width.",
    expected={SLOPE["AdamW"]: at_most(-0.5), SLOPE["AdamH"]: between(-0.2, 0.2), LESS: at_least(0)},
    measure=measure,
    draw=draw,
)
