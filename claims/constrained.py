"""Constrained parameter regularization: whether the bound holds, and how good its untuned versions are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.better_loss import BATCH, IMAGES, RATE, SEEDS, STEPS
from claims.claim import Claim, Measured, at_most
from claims.training import Taken, batches, cross_entropy, forward, layers, noisy_digits, train

LAMBDAS = 0.4 * 3.0 ** np.arange(
    -2, 4
)  # around AdamW's best λ on this task; the best is looked for in all but the last
C = 0.1  # any fraction: the update is the authors' with μ = 4/c per entry, whatever c is
BOUNDS: dict[str, dict[str, Any]] = {
    'κ = "init"': {},
    'κ = "warm", 50 steps': {"kappa": "warm", "steps": STEPS // 20},  # a twentieth of the run, as a usual warm-up
    'κ = "inflection", 5 steps': {"kappa": "inflection", "steps": 5},
    'κ = "inflection", 20 steps': {"kappa": "inflection", "steps": 20},
}
END = {name: f"CPR, {name}: largest ½‖p‖²/κ of a layer at the end" for name in BOUNDS}
LATER = {name: f"CPR, {name}: largest ½‖p‖²/κ in the second half" for name in BOUNDS}
BEST = {name: f"test loss, CPR, {name} − AdamW at its best λ" for name in BOUNDS}
THRICE = {name: f"test loss, CPR, {name} − AdamW at three times its best λ" for name in BOUNDS}


def cpr(**options: Any) -> optax.GradientTransformation:
    """AdamCPR with the authors' settings, whose multiplier doesn't follow the learning rate."""
    rule = wd.rules.constrained(**options, update_rate=4 / C, per_entry=True)
    return optax.chain(optax.adam(RATE), wd.shrink(C, rule=rule))


def share_of_bound(step: Taken) -> jax.Array:
    """½‖p‖²/κ of each kernel after a step; NaN until there is a bound."""
    kappa = optax.tree.get(step.state, "kappa")
    pairs = [(step.after[name]["kernel"], kappa[name]["kernel"]) for name in step.after]
    return jnp.stack([jnp.where(jnp.isinf(k), jnp.nan, jnp.sum(p**2) / 2 / k).reshape(()) for p, k in pairs])


def fit(optimizer: Any, params: Any, rows: jax.Array, watch: Any = lambda step: None) -> tuple[Any, Any]:
    """The weights after training on digits with noisy labels, their test loss, and what was watched."""
    x, x_test, y, y_test = noisy_digits(size=IMAGES)
    logits = lambda params, x: forward(params, x, jax.nn.relu)
    gradient = jax.grad(lambda params, rows: cross_entropy(logits(params, x[rows]), y[rows]))
    end, watched = train(optimizer, params, gradient, rows, watch)
    return cross_entropy(logits(end, x_test), y_test), watched


def adamw(given: Any) -> np.ndarray:
    """AdamW's test losses, shape=(λ, seeds)."""
    one = lambda weight_decay, *given: fit(wd.adamw(RATE, weight_decay=weight_decay), *given)[0]
    grid = jnp.asarray(LAMBDAS, jnp.float32)
    return np.asarray(jax.jit(jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None)))(grid, *given))


def measure() -> Measured:
    """AdamW's λ is chosen by the mean test loss; CPR has its defaults."""
    given = layers(SEEDS, 64, 64, 64, 10), batches(SEEDS, STEPS, BATCH, IMAGES)
    losses, rows, curves = adamw(given), {}, {}
    best = losses[:-1].mean(axis=1).argmin()
    for name, options in BOUNDS.items():
        one = lambda params, rows, options=options: fit(cpr(**options), params, rows, share_of_bound)
        run = jax.jit(jax.vmap(one))
        loss, shares = map(np.asarray, run(*given))
        rows[END[name]] = shares[:, -1].max(axis=-1)
        rows[LATER[name]] = shares[:, STEPS // 2 :].max(axis=(1, 2))
        rows[BEST[name]], rows[THRICE[name]] = loss - losses[best], loss - losses[best + 1]
        curves[name] = loss
    return Measured(rows, {"AdamW": losses} | curves)


def draw(axes: Any, curves: Any) -> None:
    """AdamW's test loss by λ, and CPR's."""
    for i, (name, losses) in enumerate(curves.items()):
        if name == "AdamW":
            plots.band(axes, LAMBDAS, losses.T, name, plots.line(i))
        else:
            axes.axhline(losses.mean(), label=f"CPR, {name}", **plots.line(i))
    axes.set(xscale="log", xlabel="AdamW's λ", ylabel="test loss")


CLAIM = Claim(
    title="Constrained parameter regularization keeps its bound, and is robust untuned",
    papers=("2311.09058",),
    statement="An upper bound on the norm of each weight matrix, kept by a multiplier that grows while it is exceeded, "
    "needs one hyperparameter or none and can do better than weight decay.",
    expected={row: at_most(1.001) for row in END.values()}
    | {row: at_most(1.05) for row in LATER.values()}
    | {row: at_most(0) for row in THRICE.values()}
    | {row: at_most(0) for row in BEST.values()},
    measure=measure,
    draw=draw,
)
