"""Takes ~12 s on a laptop CPU and prints how five learning-rate schedules change weight decay under four couplings.

A schedule that lowers η_t is no weight decay, but with most optimizers it lowers the decay as well: c_t, the fraction
removed per step, depends on the coupling. Suppose λ was tuned at η = 0.1, where all four remove the same. Here the
schedules peak at η_max = 0.03: "lr" and "corrected" remove less at the peak, "schedule" and "constant" don't. A weight
without gradient shows the total effect. Reduce-on-plateau needs a real loss: a softmax regression on handwritten
digits. The last part tests the claim that Adam's step is at most η.

    python examples/learning_rate_schedules.py               # two tables, and c_t in out/learning_rate_schedules.png
    python examples/learning_rate_schedules.py --steps=3000  # --help lists the knobs
"""

import math
from typing import Any

import console
import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app, flags

import wd_optax as wd
from wd_optax.couplings import COUPLINGS

_STEPS = flags.DEFINE_integer("steps", 1000, "Steps of every schedule.", lower_bound=20)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.03, "η_max, the peak of every schedule.")
_TUNED_AT = flags.DEFINE_float("tuned_at", 0.1, "The η at which λ was tuned and all couplings remove the same.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.03, "λ under coupling lr, converted to the others at that η.")
_OUT = flags.DEFINE_string("out", "out", "Folder for learning_rate_schedules.png; created if missing.")

BETA1, BETA2 = 0.9, 0.999


def schedules(peak: float, steps: int) -> dict[str, optax.Schedule]:  # S18: four schedules; the plateau is below
    """η_t of the four schedules that don't depend on the loss."""
    fifth = steps // 5
    up, down = optax.linear_schedule(peak / 10, peak, fifth // 2), optax.linear_schedule(peak, peak / 10, fifth // 2)
    turns = [i * (fifth // 2) for i in range(1, 10)]
    restart = {"init_value": 0.0, "peak_value": peak, "warmup_steps": fifth // 10, "decay_steps": fifth}
    return {
        "exponential": optax.exponential_decay(peak, steps, 0.01),
        "cyclical": optax.join_schedules([up, down] * 5, turns),  # Smith 2017, arXiv 1506.01186
        "warm-up + cosine": optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps),
        "warm restarts": optax.sgdr_schedule([restart] * 5),  # Loshchilov & Hutter 2017, arXiv 1608.03983
    }


def equal_where_tuned(peak: float, tuned_at: float, weight_decay: float) -> dict[str, Any]:
    """Options per coupling: the λ that removes η·λ per step at a constant η = tuned_at, and the peak."""
    convert = lambda to: wd.convert_weight_decay(
        weight_decay, learning_rate=tuned_at, from_coupling="lr", to_coupling=to
    )
    return {c: {"weight_decay": convert(c), "coupling": c, "peak_learning_rate": peak} for c in COUPLINGS}


def without_gradient(learning_rate: optax.Schedule, options: dict[str, Any], steps: int) -> np.ndarray:
    """Trajectory of a weight of 1 under AdamW without a gradient."""
    tx, start = wd.adamw(learning_rate, **options), {"kernel": jnp.ones(1)}

    def step(carry: Any, _: Any) -> Any:
        params, opt_state = carry
        updates, opt_state = tx.update(optax.tree.zeros_like(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params["kernel"][0]

    return np.asarray(jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[1])(start))


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a softmax regression."""
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["kernel"] + params["bias"][None], y).mean()


def plateau(peak: float, options: dict[str, Any], steps: int) -> dict[str, np.ndarray]:
    """Trains AdamW on digits; multiplies η by 0.3 when the held-out loss hasn't fallen by 1 % in 10 steps."""
    x, x_test, y, y_test = data.digits()
    start = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}
    tx = wd.adamw(peak, **options)
    lower = optax.contrib.reduce_on_plateau(factor=0.3, patience=10, rtol=0.01, min_scale=0.01)

    def step(carry: Any, _: Any) -> Any:
        params, opt_state, watcher = carry
        learning_rate = peak * watcher.scale
        opt_state = optax.tree.set(opt_state, learning_rate=learning_rate)  # S18: η is a leaf, and c_t follows it
        grads = jax.grad(loss_fn)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        loss = loss_fn(params, x_test, y_test)
        _, watcher = lower.update({}, watcher, value=loss)
        return (params, opt_state, watcher), {"η": learning_rate, "loss": loss}

    def train(params: Any) -> Any:
        return jax.lax.scan(step, (params, tx.init(params), lower.init(params)), length=steps)[1]

    return jax.tree.map(np.asarray, jax.jit(train)(start))


def adams_steps(steps: int) -> dict[str, np.ndarray]:
    """|Δ|/η of Adam's steps: the largest on digits, batch size 16; and for one gradient after 5000 zeros."""
    adam = optax.scale_by_adam(BETA1, BETA2)
    x, _, y, _ = data.digits()
    start = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}

    def step(carry: Any, rows: jax.Array) -> Any:
        params, opt_state = carry
        direction, opt_state = adam.update(jax.grad(loss_fn)(params, x[rows], y[rows]), opt_state)
        params = jax.tree.map(lambda p, u: p - 0.01 * u, params, direction)
        return (params, opt_state), optax.tree.norm(direction, ord=jnp.inf)

    epochs = math.ceil(steps / (len(x) // 16))
    rows = data.batches(len(x), 16, epochs=epochs, seed=0).reshape(-1, 16)[:steps]
    digits = jax.jit(lambda p: jax.lax.scan(step, (p, adam.init(p)), rows)[1])(start)
    once = jnp.zeros(5001).at[5000].set(1.0)
    rare = jax.jit(lambda: jax.lax.scan(lambda s, g: adam.update(g, s)[::-1], adam.init(once[0]), once)[1])()
    return {"digits": np.asarray(digits), "rare": np.abs(rare)}


def run(*, learning_rate: float, tuned_at: float, weight_decay: float, steps: int) -> dict[str, Any]:
    """Returns per schedule and coupling c_t and the weight's trajectory; the plateau's runs; Adam's steps."""
    couplings = equal_where_tuned(learning_rate, tuned_at, weight_decay)
    trained = {coupling: plateau(learning_rate, options, steps) for coupling, options in couplings.items()}
    lowered = jnp.asarray(trained["lr"]["η"])
    found: dict[str, dict[str, Any]] = {}
    for name, schedule in (schedules(learning_rate, steps) | {"plateau": lambda t: lowered[t]}).items():
        found[name] = {"removed": {}, "left": {}}
        for coupling, options in couplings.items():
            rate = wd.decay_rate(learning_rate=schedule, **options)
            removed = np.broadcast_to(jax.vmap(rate)(jnp.arange(steps)), steps)
            found[name]["removed"][coupling] = removed
            found[name]["left"][coupling] = without_gradient(schedule, options, steps)
    where = {"peak": learning_rate, "tuned at": tuned_at, "removed": tuned_at * weight_decay}
    return {"schedules": found, "plateau": trained, "adam": adams_steps(steps), **where}


def report(results: dict[str, Any]) -> str:
    """Formats the remaining weight per schedule and coupling, the plateau's losses, Adam's steps."""
    lines, gap = [f"{'remaining weight':18}" + "".join(f"{c:11}" for c in COUPLINGS).rstrip()], 0.0
    for name, r in results["schedules"].items():
        lines.append(f"{name:18}" + "".join(f"{r['left'][c][-1]:<11.3f}" for c in COUPLINGS).rstrip())
        gap = max(gap, *(float(np.abs(r["left"][c] - np.cumprod(1 - r["removed"][c])).max()) for c in COUPLINGS))
    most = ", ".join(f"{c} {removed.max():.2g}" for c, removed in r["removed"].items())
    lines.append(f"At η = {results['tuned at']:g} all remove {results['removed']:.2g} per step.")
    lines.append(f"At the peak, η_max = {results['peak']:g}, they remove: {most}.")
    lines.append(f"Largest distance of a weight from Π(1 − c_t) with wd.decay_rate's c_t: {gap:.1g}.")
    lines += ["", f"{'plateau, digits':18}{'lowest held-out loss':23}{'final loss':13}final η/peak"]
    for c, r in results["plateau"].items():
        lines.append(f"{c:18}{r['loss'].min():<23.3f}{r['loss'][-1]:<13.3f}{r['η'][-1] / r['η'][0]:.3g}")
    constant, lr = (results["plateau"][c]["loss"][-1] / results["plateau"][c]["loss"].min() for c in ("constant", "lr"))
    lines.append(f"η fell; the final loss is {constant:.1f} times the lowest under constant, {lr:.1f} times under lr.")
    bound, adam = (1 - BETA1) / math.sqrt(1 - BETA2), results["adam"]
    share, largest, rare = np.mean(adam["digits"] > 1), adam["digits"].max(), adam["rare"].max()
    lines += [
        "",
        f"Adam's largest |Δ|/η is {largest:.3f} on digits, over 1 in {share:.0%} of the steps; one gradient after",
    ]
    lines.append(
        f"5000 zeros makes it {rare:.3f}. The bound is (1 − β₁)/√(1 − β₂) = {bound:.3f}, not 1: Kingma & Ba 2015,"
    )
    lines.append("arXiv 1412.6980, section 2.1.")
    return "\n".join(lines)


def plot(results: dict[str, Any], folder: str) -> Any:
    """Plots c_t of every coupling in a panel per schedule, then Adam's steps."""
    figure, panels = plots.figure(3, 2)
    for axes, (name, r) in zip(panels, results["schedules"].items(), strict=False):
        for i, c in enumerate(COUPLINGS):
            axes.plot(r["removed"][c], label=c, linewidth=3 - 0.5 * i, **plots.line(i))
        axes.set(title=name, xlabel="step", ylabel="c_t, removed per step", ylim=(0, 1.1 * results["removed"]))
    panels[-1].plot(results["adam"]["digits"], linewidth=0.8, **plots.line(0))
    panels[-1].axhline(1, color="black", linestyle=":")
    panels[-1].set(title="Adam on digits: largest |Δ|/η", xlabel="step", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return plots.save(figure, folder, "learning_rate_schedules.png")


def main(argv: list[str]) -> None:
    """Audits a run with warm-up and cosine, prints the tables and plots c_t."""
    del argv
    console.plain()
    learning_rate, weight_decay, steps = _LEARNING_RATE.value, _WEIGHT_DECAY.value, _STEPS.value
    params = {"kernel": jnp.ones((64, 10)), "bias": jnp.ones(10)}
    tx = wd.adamw(schedules(learning_rate, steps)["warm-up + cosine"], weight_decay=weight_decay)
    print("AdamW with warm-up and cosine:", wd.audit(tx, params, horizon=steps), "", sep="\n", flush=True)
    results = run(learning_rate=learning_rate, tuned_at=_TUNED_AT.value, weight_decay=weight_decay, steps=steps)
    path = plot(results, _OUT.value)
    print(report(results))
    print(f"η_max = {learning_rate:g}, λ = {weight_decay:g}, {steps} steps. Picture: {path}")


if __name__ == "__main__":
    app.run(main)
