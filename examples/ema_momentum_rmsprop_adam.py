"""Takes ~3 s on a laptop CPU and prints how Optax's calls differ from the textbook formulas of EMA, momentum … Adam.

Texts write the same method in several ways: α weights the old or the new value, momentum has a factor 1 − α or not, ε
is inside or outside the root, Adam has bias correction or not. Here each formula is next to the equivalent Optax call.
Both descend the valley x²/2 + 10·y², and the largest distance between the two paths is printed, then the largest
distances between variants of one method.

Last, Adam with L2 and with decay, chained by hand, and the named optimizers that are the same chains.

    python examples/ema_momentum_rmsprop_adam.py             # a table, and paths in out/ema_momentum_rmsprop_adam.png
    python examples/ema_momentum_rmsprop_adam.py --steps=20  # --help lists the knobs
"""

import math
from collections.abc import Callable
from typing import Any

import compare
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app

import wd_optax as wd

SETTING = compare.Setting(
    "ema_momentum_rmsprop_adam",
    learning_rate=(0.02, "η of every method."),
    steps=(100, "Steps of each path."),
)
START, STEEPNESS = (-1.0, 0.5), np.array([1.0, 20.0])
alpha, b1, b2, eps = 0.9, 0.9, 0.999, 1e-3  # this ε is RMSProp's, large enough to show; Adam's is 1e-8
DECAY = 0.1  # λ of the two at the end

# A formula maps t = 1, 2, ..., the gradient and two moments, initially 0, to the direction and the new moments.
Formula = Callable[[int, Any, Any, Any], tuple[Any, Any, Any]]


def adam(t: int, g: Any, m: Any, v: Any, corrected: bool = True) -> Any:
    """m̂/(√v̂ + ε), m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ): bias correction divides each average by the sum of its weights."""
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    m_hat, v_hat = (m / (1 - b1**t), v / (1 - b2**t)) if corrected else (m, v)
    return m_hat / (np.sqrt(v_hat) + 1e-8), m, v


# Optax always corrects the bias. Both corrections are a factor of η: Kingma & Ba 2015, arXiv 1412.6980, section 2.
uncorrect = optax.scale_by_schedule(lambda t: (1 - b1 ** (t + 1.0)) / jnp.sqrt(1 - b2 ** (t + 1.0)))

METHODS: dict[str, tuple[Formula, Any]] = {  # per method the formula and the equivalent Optax call
    "EMA V ← αV + (1−α)g": (  # S11: exponential moving average, α is the weight of the old value
        lambda t, g, m, v: ((m := alpha * m + (1 - alpha) * g), m, v),
        optax.ema(alpha, debias=False),
    ),
    "EMA V ← (1−α')V + α'g": (  # α' = 1 − α is the weight of the new value
        lambda t, g, m, v: ((m := (1 - 0.1) * m + 0.1 * g), m, v),
        optax.ema(1 - 0.1, debias=False),
    ),
    "EMA V/(1−αᵗ)": (
        lambda t, g, m, v: ((m := alpha * m + (1 - alpha) * g) / (1 - alpha**t), m, v),
        optax.ema(alpha, debias=True),
    ),
    "heavy ball V ← αV + g": (  # S12: momentum as heavy ball; the first is its EMA form
        lambda t, g, m, v: ((m := alpha * m + g), m, v),
        optax.trace(alpha),
    ),
    "RMSProp g/(√S + ε)": (  # S13: RMSProp, ε outside the root; inside below
        lambda t, g, m, v: (g / (np.sqrt(v := alpha * v + (1 - alpha) * g**2) + eps), m, v),
        optax.scale_by_rms(alpha, eps, eps_in_sqrt=False),
    ),
    "RMSProp g/√(S + ε)": (  # ε inside it, Optax's default
        lambda t, g, m, v: (g / np.sqrt((v := alpha * v + (1 - alpha) * g**2) + eps), m, v),
        optax.scale_by_rms(alpha, eps),
    ),
    "Adam": (adam, optax.scale_by_adam(b1, b2)),  # S14: Adam with bias correction, and without
    "Adam uncorrected": (
        lambda t, g, m, v: adam(t, g, m, v, corrected=False),
        optax.chain(optax.scale_by_adam(b1, b2), uncorrect),
    ),
}
NAMES = list(METHODS)
VARIANTS = [NAMES[0:2], NAMES[0:3:2], NAMES[0:4:3], NAMES[4:6], NAMES[6:8]]
MASK = {"x": False, "y": True}  # only y decays
BY_HAND: dict[str, tuple[Any, Any]] = {  # Adam with L2 and with decay by hand, and the optimizer that is the same
    "Adam with L2": (optax.chain(wd.add_l2_to_loss(DECAY, MASK), wd.scale_by_adam(b1, b2)), wd.adam_l2),
    "AdamW": (optax.chain(wd.scale_by_adam(b1, b2), wd.add_decayed_weights(DECAY, MASK)), wd.adamw),
}


def by_formula(formula: Formula, learning_rate: float, steps: int) -> np.ndarray:
    """w ← w − η·direction in float64 from the start: (steps + 1, 2)."""
    path, m, v = [np.array(START)], np.zeros(2), np.zeros(2)
    for t in range(1, steps + 1):
        direction, m, v = formula(t, STEEPNESS * path[-1], m, v)
        path.append(path[-1] - learning_rate * direction)
    return np.stack(path)


def by_optax(tx: Any, steps: int) -> np.ndarray:
    """Like `by_formula`, with an Optax optimizer of x²/2 + 10·y² in JAX's default float type."""
    valley = lambda w, _: w["x"] ** 2 / 2 + 10 * w["y"] ** 2
    walk = jax.jit(lambda w: compare.fit(tx, w, valley, jnp.zeros((steps, 1)), lambda w: w)[1])
    path = walk(dict(zip("xy", jnp.array(START), strict=True)))
    return np.concatenate([[START], np.stack([path["x"], path["y"]], axis=1)])


def run(*, learning_rate: float, steps: int) -> dict[str, Any]:
    """Returns both paths of every method, heavy ball's at (1 − α)·η, and those of the chains by hand."""
    scaled = lambda direction, rate=learning_rate: optax.chain(direction, optax.scale_by_learning_rate(rate))
    whole = lambda make: make(learning_rate, weight_decay=DECAY, mask=MASK, b1=b1, b2=b2)
    return {
        "formula": {name: by_formula(formula, learning_rate, steps) for name, (formula, _) in METHODS.items()},
        "optax": {name: by_optax(scaled(direction), steps) for name, (_, direction) in METHODS.items()},
        "slower": by_optax(scaled(optax.trace(alpha), (1 - alpha) * learning_rate), steps),
        "by hand": {n: [by_optax(tx, steps) for tx in (scaled(c), whole(make))] for n, (c, make) in BY_HAND.items()},
        "η": learning_rate,
    }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two paths in x or y; start and end are 1 apart."""
    return float(np.abs(a - b).max())


def report(results: dict[str, Any]) -> str:
    """A line per method, then how variants differ, and the chains by hand."""
    ours = results["optax"]
    first = {name: np.abs(path[1] - path[0]).max() / results["η"] for name, path in ours.items()}
    apart = {name: distance(path, results["formula"][name]) for name, path in ours.items()}
    rows = [["direction", "Optax from the formula", "first step/η", "distance from 0 at the end"]]
    rows += [[n, f"{apart[n]:.1g}", f"{first[n]:.3f}", f"{math.hypot(*path[-1]):.4f}"] for n, path in ours.items()]
    variants = "\n".join(f"{a} and {b} differ by {distance(ours[a], ours[b]):.2g}." for a, b in VARIANTS)
    slower, slow = distance(ours[NAMES[0]], results["slower"]), (1 - alpha) * results["η"]
    (l2, adam_l2), (decay, adamw) = results["by hand"].values()
    return f"""{compare.align(rows)}

{variants}
At (1 − α)·η = {slow:g} heavy ball is {slower:.1g} from the average at η: they differ in the unit of η.
Adam's first step is {first["Adam"]:.3f}·η; without bias correction {first["Adam uncorrected"]:.3f}·η, \
and (1 − β₁)/√(1 − β₂) = {(1 - b1) / math.sqrt(1 - b2):.3f}.
By hand, add_l2_to_loss then scale_by_adam is {distance(l2, adam_l2):.1g} from wd.adam_l2, \
scale_by_adam then add_decayed_weights {distance(decay, adamw):.1g} from wd.adamw, \
and the two are {distance(l2, decay):.2g} apart.

Every formula and the Optax call beside it take one path, to {max(apart.values()):.1g}."""


def plot(results: dict[str, Any]) -> Any:
    """Paths down the valley: averages and heavy ball; RMSProp; Adam with and without bias correction."""
    figure, panels = plots.figure(3, sharey=True)
    titles = ("averages and heavy ball", "RMSProp, ε outside the root or inside", "Adam, bias corrected or not")
    x, y = np.meshgrid(np.linspace(-1.1, 0.6, 80), np.linspace(-0.6, 0.6, 80))
    for axes, title, names in zip(panels, titles, ([NAMES[0], *NAMES[2:4]], *VARIANTS[3:]), strict=True):
        axes.contour(x, y, np.sqrt((STEEPNESS[0] * x**2 + STEEPNESS[1] * y**2) / 2), levels=12, colors="lightgrey")
        for i, name in enumerate(names):
            axes.plot(*results["optax"][name].T, label=name, **plots.line(i))
        axes.plot(*START, "ko", label="start")
        axes.plot(0, 0, "k*", markersize=10, label="minimum")
        axes.set(title=title, xlabel="x", ylabel="y; contours of √(x²/2 + 10·y²)" if axes is panels[0] else "")
        axes.legend(fontsize="small", loc="lower right")
    return figure


def decays() -> str:
    """The audit of the last of the eight with decay."""
    rate = SETTING.values()["learning_rate"]
    tx = optax.chain(METHODS["Adam uncorrected"][1], optax.scale_by_learning_rate(rate))
    tx = wd.with_decay(tx, learning_rate=rate, weight_decay=DECAY)  # works with any of the eight
    return f"AdamW without bias correction:\n{wd.audit(tx, {'kernel': jnp.ones(2)})}"


main = lambda _: SETTING.show(decays, run, report, plot)

if __name__ == "__main__":
    app.run(main)
