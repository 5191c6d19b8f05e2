"""Takes ~12 s on a laptop CPU and prints how five learning-rate schedules change weight decay under four couplings.

A schedule that lowers η_t is no weight decay, but with most optimizers it lowers the decay as well: c_t, the fraction
removed per step, depends on the coupling. Suppose λ was tuned at η = 0.1, where all four remove the same. Here the
schedules peak at η_max = 0.03: "lr" and "corrected" remove less at the peak, "schedule" and "constant" don't. A weight
without gradient shows the total effect. Reduce-on-plateau needs a real loss: a softmax regression on handwritten
digits. The last part tests the claim that Adam's step is at most η.

    python examples/learning_rate_schedules.py               # two tables, and c_t in out/learning_rate_schedules.png
    python examples/learning_rate_schedules.py --steps=3000  # --help lists the knobs
"""

import functools
import math
from typing import Any

import compare
import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app

import wd_optax as wd
from wd_optax.couplings import COUPLINGS

SETTING = compare.Setting(
    "learning_rate_schedules",
    steps=(1000, "Steps of every schedule, at least 20."),
    learning_rate=(0.03, "η_max, the peak of every schedule."),
    tuned_at=(0.1, "The η at which λ was tuned and all couplings remove the same."),
    weight_decay=(0.03, "λ under coupling lr, converted to the others at that η."),
)
BETA1, BETA2 = 0.9, 0.999
START = {"kernel": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}  # softmax regression on digits


def schedules(peak: float, steps: int) -> dict[str, optax.Schedule]:  # S18: four schedules; the plateau is below
    """η_t of the four schedules that don't depend on the loss."""
    fifth, half = steps // 5, steps // 5 // 2
    rise = [optax.linear_schedule(peak / 10, peak, half), optax.linear_schedule(peak, peak / 10, half)]
    restart = {"init_value": 0.0, "peak_value": peak, "warmup_steps": fifth // 10, "decay_steps": fifth}
    return {
        "exponential": optax.exponential_decay(peak, steps, 0.01),
        "cyclical": optax.join_schedules(rise * 5, [i * half for i in range(1, 10)]),  # Smith 2017, arXiv 1506.01186
        "warm-up + cosine": optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps),
        "warm restarts": optax.sgdr_schedule([restart] * 5),  # Loshchilov & Hutter 2017, arXiv 1608.03983
    }


def without_gradient(learning_rate: optax.Schedule, options: dict[str, Any], steps: int) -> np.ndarray:
    """Trajectory of a weight of 1 under AdamW without a gradient."""
    tx, none = wd.adamw(learning_rate, **options), lambda w, _: 0.0 * w.sum()
    walk = jax.jit(lambda w: compare.fit(tx, w, none, jnp.zeros((steps, 1)), lambda w: {"w": w[0, 0]})[1]["w"])
    return np.asarray(walk(jnp.ones((1, 1))))


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a softmax regression."""
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["kernel"] + params["bias"][None], y).mean()


def plateau(peak: float, options: dict[str, Any], steps: int) -> dict[str, np.ndarray]:
    """Trains AdamW on digits; multiplies η by 0.3 when the held-out loss hasn't fallen by 1 % in 10 steps."""
    x, x_test, y, y_test = data.digits()
    tx = wd.adamw(peak, **options)
    lower = optax.contrib.reduce_on_plateau(factor=0.3, patience=10, rtol=0.01, min_scale=0.01)

    def step(carry: Any, _: Any) -> Any:
        params, opt_state, watcher = carry
        learning_rate = peak * watcher.scale
        opt_state = optax.tree.set(opt_state, learning_rate=learning_rate)  # S18: η is a leaf, and c_t follows it
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, x, y), opt_state, params)
        params = optax.apply_updates(params, updates)
        loss = loss_fn(params, x_test, y_test)
        _, watcher = lower.update({}, watcher, value=loss)
        return (params, opt_state, watcher), {"η": learning_rate, "loss": loss}

    train = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params), lower.init(params)), length=steps)[1])
    return jax.tree.map(np.asarray, train(START))


def adams_steps(steps: int) -> dict[str, np.ndarray]:
    """|Δ|/η of Adam's steps: the largest on digits, batch size 16; and for one gradient after 5000 zeros."""
    adam, (x, _, y, _) = optax.scale_by_adam(BETA1, BETA2), data.digits()

    def step(carry: Any, rows: jax.Array) -> Any:
        params, opt_state = carry
        direction, opt_state = adam.update(jax.grad(loss_fn)(params, x[rows], y[rows]), opt_state)
        params = jax.tree.map(lambda p, u: p - 0.01 * u, params, direction)
        return (params, opt_state), optax.tree.norm(direction, ord=jnp.inf)

    rows = data.batches(len(x), 16, epochs=math.ceil(steps / (len(x) // 16)), seed=0).reshape(-1, 16)[:steps]
    digits = jax.jit(lambda p: jax.lax.scan(step, (p, adam.init(p)), rows)[1])(START)
    once = jnp.zeros(5001).at[5000].set(1.0)
    rare = jax.jit(lambda: jax.lax.scan(lambda s, g: adam.update(g, s)[::-1], adam.init(once[0]), once)[1])()
    return {"digits": np.asarray(digits), "rare": np.abs(rare)}


def run(*, learning_rate: float, tuned_at: float, weight_decay: float, steps: int) -> dict[str, Any]:
    """Returns per schedule and coupling c_t and the weight's trajectory; the plateau's runs; Adam's steps."""
    # The λ of each coupling removes η·λ per step at a constant η = tuned_at.
    convert: Any = functools.partial(wd.convert_weight_decay, weight_decay, learning_rate=tuned_at, from_coupling="lr")
    peak = {"peak_learning_rate": learning_rate}
    options: Any = {c: {"weight_decay": convert(to_coupling=c), "coupling": c, **peak} for c in COUPLINGS}
    trained = {c: plateau(learning_rate, options[c], steps) for c in COUPLINGS}
    lowered, found = jnp.asarray(trained["lr"]["η"]), {}
    for name, schedule in (schedules(learning_rate, steps) | {"plateau": lambda t: lowered[t]}).items():
        rates = {c: jax.vmap(wd.decay_rate(learning_rate=schedule, **options[c]))(jnp.arange(steps)) for c in COUPLINGS}
        found[name] = {
            "removed": {c: np.broadcast_to(rates[c], steps) for c in COUPLINGS},
            "left": {c: without_gradient(schedule, options[c], steps) for c in COUPLINGS},
        }
    where = {"peak": learning_rate, "tuned at": tuned_at, "removed": tuned_at * weight_decay}
    return {"schedules": found, "plateau": trained, "adam": adams_steps(steps), **where}


def report(results: dict[str, Any]) -> str:
    """The remaining weight per schedule and coupling, the plateau's losses, Adam's steps."""
    found, plateau, adam = results["schedules"], results["plateau"], results["adam"]
    left = [["remaining weight", *COUPLINGS]]
    left += [[name, *(f"{r['left'][c][-1]:.3f}" for c in COUPLINGS)] for name, r in found.items()]
    gap = max(np.abs(r["left"][c] - np.cumprod(1 - r["removed"][c])).max() for r in found.values() for c in COUPLINGS)
    most = ", ".join(f"{c} {found['plateau']['removed'][c].max():.2g}" for c in COUPLINGS)
    losses = [["plateau, digits", "lowest held-out loss", "final loss", "final η/peak"]]
    for c, r in plateau.items():
        losses.append([c, f"{r['loss'].min():.3f}", f"{r['loss'][-1]:.3f}", f"{r['η'][-1] / r['η'][0]:.3g}"])
    constant, lr = (plateau[c]["loss"][-1] / plateau[c]["loss"].min() for c in ("constant", "lr"))
    over, largest, rare = np.mean(adam["digits"] > 1), adam["digits"].max(), adam["rare"].max()
    return f"""{compare.align(left)}
At η = {results["tuned at"]:g} all remove {results["removed"]:.2g} per step.
At the peak, η_max = {results["peak"]:g}, they remove: {most}.
Largest distance of a weight from Π(1 − c_t) with wd.decay_rate's c_t: {gap:.1g}.

{compare.align(losses)}

Adam's largest |Δ|/η is {largest:.3f} on digits, over 1 in {over:.0%} of the steps; one gradient after 5000 zeros makes
it {rare:.3f}. The bound is (1 − β₁)/√(1 − β₂) = {(1 - BETA1) / math.sqrt(1 - BETA2):.3f}, not 1: \
Kingma & Ba 2015, arXiv 1412.6980, section 2.1.

As η fell on the plateau, a decay that falls with it (lr) left a final loss of {lr:.1f} times the lowest, \
one that doesn't (constant) {constant:.1f} times."""


def plot(results: dict[str, Any]) -> Any:
    """The fraction that every coupling removes per step, in a panel per schedule, then Adam's steps."""
    figure, panels = plots.figure(3, 2)
    for axes, (name, r) in zip(panels, results["schedules"].items(), strict=False):
        for i, c in enumerate(COUPLINGS):
            axes.plot(r["removed"][c], label=c, linewidth=3 - 0.5 * i, **plots.line(i))
        axes.set(title=name, xlabel="step", ylabel="c_t, removed per step", ylim=(0, 1.1 * results["removed"]))
    panels[-1].plot(results["adam"]["digits"], linewidth=0.8, **plots.line(0))
    panels[-1].axhline(1, color="black", linestyle=":")
    panels[-1].set(title="Adam on digits: largest |Δ|/η", xlabel="step", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def decays() -> str:
    """The audit of a run with warm-up and cosine."""
    flags = SETTING.values()
    schedule = schedules(flags["learning_rate"], flags["steps"])["warm-up + cosine"]
    audited = wd.audit(wd.adamw(schedule, weight_decay=flags["weight_decay"]), START, horizon=flags["steps"])
    return f"AdamW with warm-up and cosine:\n{audited}"


main = lambda _: SETTING.show(decays, run, report, plot)

if __name__ == "__main__":
    app.run(main)
