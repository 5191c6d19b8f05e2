"""Takes ~6 s on a laptop CPU and prints what weight decay does to y = w·x + b, with the formula next to each number.

The data are the 442 patients of scikit-learn's diabetes set. Five short parts: every step compared with
the formula; convergence to ridge regression's closed form; L1 with and without exact zeros; decay without a gradient;
decay as friction.

    python examples/linear_regression.py                      # five parts, and a picture in out/linear_regression.png
    python examples/linear_regression.py --weight_decay=0.01  # another λ; --help lists the knobs
"""

import functools
from collections.abc import Callable
from typing import Any

import console
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app, flags
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso
from sklearn.preprocessing import scale

import wd_optax as wd

_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.1, "η of the first three parts.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.1, "λ of the first three parts.")
_STEPS = flags.DEFINE_integer("steps", 3000, "Steps of the ridge and lasso fits.", lower_bound=10)
_OUT = flags.DEFINE_string("out", "out", "Folder for linear_regression.png; created if missing.")

SHUFFLED = 3  # permuted copies of the columns: they carry no information, and their weights should be 0
MOMENTUM, CURVATURE, FRICTION = 0.98, 1.2, 0.02  # μ; h of ½·h·x² at η = 1, where the path overshoots; c per step
DAMPING = {"none": MOMENTUM**0.5, "L2": MOMENTUM**0.5, "decay": (MOMENTUM * (1 - FRICTION)) ** 0.5}


def squared_error(params: Any, x: Any, y: Any) -> jax.Array:
    """Mean of (w·x + b − y)²."""
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def descend(tx: Any, loss: Callable[[Any], jax.Array], w: np.ndarray, steps: int) -> Any:
    """w and b after each step, starting from `w` and 0, stacked."""

    def step(carry: Any, _: Any) -> Any:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    walk = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=steps)[1])
    return jax.tree.map(np.asarray, walk({"w": jnp.asarray(w, jnp.float32), "b": jnp.zeros(())}))


def by_hand(x: np.ndarray, y: np.ndarray, lr: float, decay: float, steps: int) -> dict[str, Any]:
    """w and b after each step: by the formula, with sgdw, and with the penalty in the loss in both conventions."""
    w, b, formula = 0.0, 0.0, []
    for _ in range(steps):
        wrong = w * x[:, 0] + b - y
        w -= lr * 2 * np.mean(wrong * x[:, 0]) + lr * decay * w  # S6: ηλw off w, none off b
        b -= lr * 2 * np.mean(wrong)
        formula.append((w, b))
    start, loss = np.zeros(1), functools.partial(squared_error, x=x, y=y)
    penalised = lambda params: loss(params) + wd.l2_penalty(params, decay, "weights")  # S1: L2 penalty λ/2·Σw²
    # λ'·Σw², with gradient 2λ'w
    other = lambda params: loss(params) + wd.l2_penalty(params, decay / 2, "weights", half=False)
    runs = {
        "sgdw": descend(wd.sgdw(lr, weight_decay=decay), loss, start, steps),  # S2: SGD with decay, w ← w − η∇L − ηλw
        "λ/2·Σw²": descend(optax.sgd(lr), penalised, start, steps),
        "λ'·Σw²": descend(optax.sgd(lr), other, start, steps),
    }
    return {"formula": np.array(formula)} | {n: np.stack([r["w"][:, 0], r["b"]], 1) for n, r in runs.items()}


def ridge(x: np.ndarray, y: np.ndarray, lr: float, decay: float, steps: int) -> dict[str, np.ndarray]:
    """Final weights with and without decay, and the closed form (2XᵀX/n + λI)⁻¹·2Xᵀy/n."""
    loss = functools.partial(squared_error, x=x, y=y)
    end = lambda decay: descend(wd.sgdw(lr, weight_decay=decay), loss, np.zeros(x.shape[1]), steps)["w"][-1]
    x64, n = x.astype(np.float64), len(x)
    gram = 2 * x64.T @ x64 / n + decay * np.eye(x.shape[1])
    return {
        "ridge": end(decay),
        "none": end(0.0),
        "closed form": np.linalg.solve(gram, 2 * x64.T @ (y - y.mean()) / n),
    }


def sparse(x: np.ndarray, y: np.ndarray, lr: float, decay: float, steps: int) -> dict[str, np.ndarray]:
    """Final weights of the columns and their shuffled copies under λ·Σ|w|, by two methods and by scikit-learn."""
    rng = np.random.default_rng(0)
    x = np.concatenate([x, *(rng.permuted(x, axis=0) for _ in range(SHUFFLED))], axis=1)
    loss, start = functools.partial(squared_error, x=x, y=y), np.zeros(x.shape[1])
    c = wd.decay_rate(decay, learning_rate=lr)
    soft = optax.chain(optax.sgd(lr), wd.proximal(c, "weights", penalty="l1"))  # S10: L1's proximal step makes zeros
    penalised = lambda params: loss(params) + wd.l1_penalty(params, decay, "weights")  # its gradient λ·sign(w) doesn't
    return {
        "proximal": descend(soft, loss, start, steps)["w"][-1],
        "gradient": descend(optax.sgd(lr), penalised, start, steps)["w"][-1],
        "Lasso": Lasso(alpha=decay / 2, tol=1e-8, max_iter=10_000).fit(x, y).coef_,  # it minimises half of ours
    }


def forgetting(steps: int) -> dict[str, np.ndarray]:
    """A weight of 1 without gradient, under L2 (minus 1 % of it per step) and L1 (minus 0.01 per step)."""
    decays = {"L2": wd.shrink(0.01), "L1": wd.proximal(0.01, penalty="l1")}  # S19: forgetting, 0.99ᵗ or 1 − t/100
    none = lambda params: 0.0 * jnp.sum(params["w"])
    return {name: descend(tx, none, np.ones(1), steps)["w"][:, 0] for name, tx in decays.items()}


def friction(steps: int) -> dict[str, np.ndarray]:
    """Paths on ½·h·x² from 1 with η = 1: momentum with decay, L2 or neither; then h = 1.5 without momentum."""
    momentum, c = MOMENTUM, FRICTION
    ways = {
        "none": (CURVATURE, optax.sgd(1.0, momentum=momentum)),
        "L2": (CURVATURE, wd.sgd_l2(1.0, weight_decay=c, momentum=momentum)),
        "decay": (CURVATURE, wd.sgdw(1.0, weight_decay=c, momentum=momentum)),  # S20: friction under momentum
        "steep, none": (1.5, optax.sgd(1.0)),  # ηh > 1: each step jumps over the minimum
        "steep, decay": (1.5, wd.sgdw(1.0, weight_decay=c)),
        "steep, proximal": (1.5, optax.chain(optax.sgd(1.0), wd.proximal(c))),
    }
    hill = lambda h: lambda params: h / 2 * jnp.sum(params["w"] ** 2)
    return {name: descend(tx, hill(h), np.ones(1), steps)["w"][:, 0] for name, (h, tx) in ways.items()}


def amplitude(x: np.ndarray) -> np.ndarray:
    """Amplitude of an oscillation of two modes relative to its first value: √(x₁² − x₀x₂) up to a constant."""
    a = np.sqrt(x[1:-1] ** 2 - x[:-2] * x[2:])
    return a / a[0]


def damping(x: np.ndarray) -> float:
    """The factor by which an oscillation's amplitude shrinks per step."""
    a = amplitude(x)
    return float(a[-1] ** (1 / (len(a) - 1)))


def run(*, learning_rate: float, weight_decay: float, steps: int) -> dict[str, Any]:
    """Runs all five parts."""
    raw, y = load_diabetes(return_X_y=True)
    x, y = scale(raw).astype(np.float32), (y / 100).astype(np.float32)
    lr, decay = learning_rate, weight_decay
    return {
        "by hand": by_hand(x[:, 2:3], y, lr, decay, 50),  # column 2 is the body mass index
        "ridge": ridge(x, y, lr, decay, steps),
        "sparse": sparse(x, y, lr, decay, steps),
        "forgetting": forgetting(120),
        "friction": friction(100),
    }


def report(results: dict[str, Any]) -> str:
    """Formats the results of the five parts."""
    hand, formula = results["by hand"], results["by hand"]["formula"]
    lines = ["step   w: sgdw  formula   b: sgdw  formula"]
    for t in (0, 1, 2, 9, 49):
        (w, b), (w_formula, b_formula) = hand["sgdw"][t], formula[t]
        lines.append(f"{t + 1:<7}{w:<9.6f}{w_formula:<10.6f}{b:<9.6f}{b_formula:.6f}")
    gaps = (f"{name} {np.abs(run - formula).max():.1g}" for name, run in hand.items() if name != "formula")
    lines.append(f"Largest distance from the formula in 50 steps: {', '.join(gaps)}.")
    r = results["ridge"]
    gap, free = (np.linalg.norm(r[name] - r["closed form"]) for name in ("ridge", "none"))
    size = np.linalg.norm(r["closed form"])
    lines += [
        "",
        f"Ridge: sgdw ends {gap / size:.1g} of ‖w‖ from the closed form, without decay {free / size:.2g}.",
        "",
    ]
    lines.append("L1        exact zeros of 10 columns  of their shuffled copies  distance from Lasso")
    for name, w in results["sparse"].items():
        real, copies = w[:10] == 0, w[10:] == 0
        gap = np.abs(w - results["sparse"]["Lasso"]).max()
        lines.append(f"{name:10}{real.sum():<27}{f'{copies.sum()} of {len(copies)}':26}{gap:.1g}")
    l2, l1 = results["forgetting"]["L2"], results["forgetting"]["L1"]
    lines += ["", f"Forgetting: L2 leaves {l2[99]:.4f} of a weight after 100 steps; 0.99¹⁰⁰ is {0.99**100:.4f}."]
    lines.append(
        f"L1's proximal step makes it 0 in step {np.argmax(l1 == 0) + 1}; L2 leaves {l2[-1]:.4f} after {len(l2)}."
    )
    f = results["friction"]
    lines += ["", "Friction: an oscillation under momentum is multiplied per step by"]
    for name, formula in DAMPING.items():
        lines.append(f"  {name:8}{damping(f[name]):.5f}   formula {formula:.5f}")
    steep = {name: f[f"steep, {name}"][1] / f[f"steep, {name}"][0] for name in ("none", "decay", "proximal")}
    both = ", ".join(f"{name} {factor:+.3f}" for name, factor in steep.items())
    widest, least = (choose(steep, key=lambda name: abs(steep[name])) for choose in (max, min))
    lines.append(f"Without momentum, at ηh = 1.5, x is multiplied by: {both}; {widest} overshoots most, {least} least.")
    return "\n".join(lines)


def plot(results: dict[str, Any], folder: str) -> Any:
    """Draws a panel for each part but ridge."""
    figure, (hand, sparse, left, oscillation) = plots.figure(2, 2)
    for i, name in enumerate(("w", "b")):
        hand.plot(results["by hand"]["sgdw"][:, i], label=f"{name}, sgdw", **plots.line(i))
        hand.plot(results["by hand"]["formula"][:, i], label=f"{name}, formula", color="black", linestyle=":")
    for i, (name, marker) in enumerate({"gradient": "x", "proximal": "o"}.items()):
        sizes = np.maximum(np.abs(results["sparse"][name]), 1e-6)
        sparse.plot(sizes, marker, fillstyle="none", label=name, color=plots.line(i)["color"])
    for i, (name, curve) in enumerate(results["forgetting"].items()):
        left.plot(curve, label=name, **plots.line(i))
    for i, (name, factor) in enumerate(DAMPING.items()):
        measured = amplitude(results["friction"][name])
        oscillation.plot(measured, label=name, linewidth=4 - i, **plots.line(i))
        formula = {"label": "formulas √μᵗ, √(μ(1 − c))ᵗ"} if i == 2 else {}
        oscillation.plot(factor ** np.arange(len(measured)), color="black", linestyle=":", **formula)
    hand.set(title="w·x + b and the formula", xlabel="step", ylabel="w, b")
    sparse.set(title="L1", xlabel="column; from 10 on shuffled copies", ylabel="|w|, 10⁻⁶ for 0", yscale="log")
    left.set(title="a weight without gradient", xlabel="step", ylabel="w")
    oscillation.set(
        title=f"friction: ½·{CURVATURE}·x² with μ = {MOMENTUM}, c = {FRICTION}",
        xlabel="step",
        ylabel="amplitude of the oscillation of x",
        yscale="log",
    )
    oscillation.set_yticks([1, 0.5, 0.2, 0.1], ["1", "0.5", "0.2", "0.1"])
    oscillation.set_yticks([], minor=True)
    for axes in (hand, sparse, left, oscillation):
        axes.legend(fontsize="small")
    return plots.save(figure, folder, "linear_regression.png")


def main(argv: list[str]) -> None:
    """Audits the optimizer, runs the five parts, prints and plots the results."""
    del argv
    console.plain()
    lr, decay = _LEARNING_RATE.value, _WEIGHT_DECAY.value
    print(wd.audit(wd.sgdw(lr, weight_decay=decay), {"w": jnp.ones(1), "b": jnp.ones(())}), end="\n\n")
    results = run(learning_rate=lr, weight_decay=decay, steps=_STEPS.value)
    path = plot(results, _OUT.value)
    print(report(results))
    print(f"η = {lr:g}, λ = {decay:g}. Picture: {path}")


if __name__ == "__main__":
    app.run(main)
