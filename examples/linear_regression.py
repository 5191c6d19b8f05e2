"""Takes ~6 s on a laptop CPU and prints what weight decay does to y = w·x + b, with the formula next to each number.

The data are the 442 patients of scikit-learn's diabetes set. Five short parts: every step compared with
the formula; convergence to ridge regression's closed form; L1 with and without exact zeros; decay without a gradient;
decay as friction.

    python examples/linear_regression.py                      # five parts, and a picture in out/linear_regression.png
    python examples/linear_regression.py --weight_decay=0.01  # another λ; --help lists the knobs
"""

from collections.abc import Callable
from typing import Any

import compare
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso
from sklearn.preprocessing import scale

import wd_optax as wd

SETTING = compare.Setting(
    "linear_regression",
    learning_rate=(0.1, "η of the first three parts."),
    weight_decay=(0.1, "λ of the first three parts."),
    steps=(3000, "Steps of the ridge and lasso fits."),
)
SHUFFLED = 3  # permuted copies of the columns: they carry no information, and their weights should be 0
MOMENTUM, CURVATURE, FRICTION = 0.98, 1.2, 0.02  # μ; h of ½·h·x² at η = 1, where the path overshoots; c per step
DAMPING = {"none": MOMENTUM**0.5, "L2": MOMENTUM**0.5, "decay": (MOMENTUM * (1 - FRICTION)) ** 0.5}


def squared_error(x: Any, y: Any) -> Callable[[Any], jax.Array]:
    """The mean of (w·x + b − y)², a function of the parameters."""
    return lambda params: jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def descend(tx: Any, loss: Callable[[Any], jax.Array], w: np.ndarray, steps: int) -> np.ndarray:
    """The entries of w, then b, after each step, starting from `w` and 0: (steps, n + 1)."""

    def step(carry: Any, _: Any) -> Any:
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), jnp.append(params["w"], params["b"])

    walk = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=steps)[1])
    return np.asarray(walk({"w": jnp.asarray(w, jnp.float32), "b": jnp.zeros(())}))


def by_hand(x: np.ndarray, y: np.ndarray, lr: float, decay: float, steps: int) -> dict[str, Any]:
    """w and b after each step: by the formula, with sgdw, and with the penalty in the loss in both conventions."""
    w, b, formula = 0.0, 0.0, []
    for _ in range(steps):
        wrong = w * x[:, 0] + b - y
        w -= lr * 2 * np.mean(wrong * x[:, 0]) + lr * decay * w  # S6: ηλw off w, none off b
        b -= lr * 2 * np.mean(wrong)
        formula.append((w, b))
    loss, start = squared_error(x, y), np.zeros(1)
    penalised = lambda params: loss(params) + wd.l2_penalty(params, decay, "weights")  # S1: L2 penalty λ/2·Σw²
    # λ'·Σw², with gradient 2λ'w
    other = lambda params: loss(params) + wd.l2_penalty(params, decay / 2, "weights", half=False)
    return {
        "formula": np.array(formula),
        "sgdw": descend(wd.sgdw(lr, weight_decay=decay), loss, start, steps),  # S2: SGD with decay, w ← w − η∇L − ηλw
        "λ/2·Σw²": descend(optax.sgd(lr), penalised, start, steps),
        "λ'·Σw²": descend(optax.sgd(lr), other, start, steps),
    }


def ridge(x: np.ndarray, y: np.ndarray, lr: float, decay: float, steps: int) -> dict[str, np.ndarray]:
    """Final weights with and without decay, and the closed form (2XᵀX/n + λI)⁻¹·2Xᵀy/n."""
    loss = squared_error(x, y)
    end = lambda decay: descend(wd.sgdw(lr, weight_decay=decay), loss, np.zeros(x.shape[1]), steps)[-1, :-1]
    xt = 2 * x.astype(np.float64).T / len(x)
    closed = np.linalg.solve(xt @ x + decay * np.eye(x.shape[1]), xt @ (y - y.mean()))
    return {"ridge": end(decay), "none": end(0.0), "closed form": closed}


def sparse(x: np.ndarray, y: np.ndarray, lr: float, decay: float, steps: int) -> dict[str, np.ndarray]:
    """Final weights of the columns and their shuffled copies under λ·Σ|w|, by two methods and by scikit-learn."""
    rng = np.random.default_rng(0)
    x = np.concatenate([x, *(rng.permuted(x, axis=0) for _ in range(SHUFFLED))], axis=1)
    loss, c = squared_error(x, y), wd.decay_rate(decay, learning_rate=lr)
    end = lambda tx, loss: descend(tx, loss, np.zeros(x.shape[1]), steps)[-1, :-1]
    soft = optax.chain(optax.sgd(lr), wd.proximal(c, "weights", penalty="l1"))  # S10: L1's proximal step makes zeros
    penalised = lambda params: loss(params) + wd.l1_penalty(params, decay, "weights")  # its gradient λ·sign(w) doesn't
    lasso = Lasso(alpha=decay / 2, tol=1e-8, max_iter=10_000).fit(x, y).coef_  # it minimises half of ours
    return {"proximal": end(soft, loss), "gradient": end(optax.sgd(lr), penalised), "Lasso": lasso}


def forgetting(steps: int) -> dict[str, np.ndarray]:
    """A weight of 1 without gradient, under L2 (minus 1 % of it per step) and L1 (minus 0.01 per step)."""
    decays = {"L2": wd.shrink(0.01), "L1": wd.proximal(0.01, penalty="l1")}  # S19: forgetting, 0.99ᵗ or 1 − t/100
    none = lambda params: 0.0 * jnp.sum(params["w"])
    return {name: descend(tx, none, np.ones(1), steps)[:, 0] for name, tx in decays.items()}


def friction(steps: int) -> dict[str, np.ndarray]:
    """Paths on ½·h·x² from 1 with η = 1: momentum with decay, L2 or neither; then h = 1.5 without momentum."""
    walk = lambda tx, h: descend(tx, lambda params: h / 2 * jnp.sum(params["w"] ** 2), np.ones(1), steps)[:, 0]
    c, steep = FRICTION, 1.5  # ηh > 1: each step jumps over the minimum
    return {
        "none": walk(optax.sgd(1.0, momentum=MOMENTUM), CURVATURE),
        "L2": walk(wd.sgd_l2(1.0, weight_decay=c, momentum=MOMENTUM), CURVATURE),
        "decay": walk(wd.sgdw(1.0, weight_decay=c, momentum=MOMENTUM), CURVATURE),  # S20: friction under momentum
        "steep, none": walk(optax.sgd(1.0), steep),
        "steep, decay": walk(wd.sgdw(1.0, weight_decay=c), steep),
        "steep, proximal": walk(optax.chain(optax.sgd(1.0), wd.proximal(c)), steep),
    }


def amplitude(x: np.ndarray) -> np.ndarray:
    """Amplitude of an oscillation of two modes relative to its first value: √(x₁² − x₀x₂) up to a constant."""
    return np.sqrt((x[1:-1] ** 2 - x[:-2] * x[2:]) / (x[1] ** 2 - x[0] * x[2]))


def damping(x: np.ndarray) -> float:
    """The factor by which an oscillation's amplitude shrinks per step."""
    return float(amplitude(x)[-1] ** (1 / (len(x) - 3)))


def run(*, learning_rate: float, weight_decay: float, steps: int) -> dict[str, Any]:
    """Runs all five parts."""
    raw, y = load_diabetes(return_X_y=True)
    x, y, rates = scale(raw).astype(np.float32), (y / 100).astype(np.float32), (learning_rate, weight_decay)
    return {
        "by hand": by_hand(x[:, 2:3], y, *rates, 50),  # column 2 is the body mass index
        "ridge": ridge(x, y, *rates, steps),
        "sparse": sparse(x, y, *rates, steps),
        "forgetting": forgetting(120),
        "friction": friction(100),
    }


def report(results: dict[str, Any]) -> str:
    """The five parts, each with its formula."""
    hand, r, l1, left, f = results.values()
    formula = hand["formula"]
    apart = {name: np.abs(run - formula).max() for name, run in hand.items() if name != "formula"}
    steps = [["step", "w: sgdw", "formula", "b: sgdw", "formula"]]
    for t in (0, 1, 2, 9, 49):
        steps.append([f"{t + 1}", *(f"{run[t, i]:.6f}" for i in (0, 1) for run in (hand["sgdw"], formula))])
    gap, free = (np.linalg.norm(r[n] - r["closed form"]) / np.linalg.norm(r["closed form"]) for n in ("ridge", "none"))
    zeros = [["L1", "exact zeros of 10 columns", "of their shuffled copies", "distance from Lasso"]]
    for name, w in l1.items():
        real, copies, distance = w[:10] == 0, w[10:] == 0, np.abs(w - l1["Lasso"]).max()
        zeros.append([name, f"{real.sum()}", f"{copies.sum()} of {len(copies)}", f"{distance:.1g}"])
    damped = [[f"  {name}", f"{damping(f[name]):.5f}", f"formula {formula:.5f}"] for name, formula in DAMPING.items()]
    steep = {name: f[f"steep, {name}"][1] / f[f"steep, {name}"][0] for name in ("none", "decay", "proximal")}
    least, *_, widest = sorted(steep, key=lambda name: abs(steep[name]))
    return f"""{compare.align(steps)}
Largest distance from the formula in 50 steps: {", ".join(f"{name} {gap:.1g}" for name, gap in apart.items())}.

Ridge: sgdw ends {gap:.1g} of ‖w‖ from the closed form, without decay {free:.2g}.

{compare.align(zeros)}

Forgetting: L2 leaves {left["L2"][99]:.4f} of a weight after 100 steps; 0.99¹⁰⁰ is {0.99**100:.4f}.
L1's proximal step makes it 0 in step {np.argmax(left["L1"] == 0) + 1}; L2 leaves {left["L2"][-1]:.4f} after 120.

Friction: an oscillation under momentum is multiplied per step by
{compare.align(damped)}
Without momentum, at ηh = 1.5, x is multiplied by: {", ".join(f"{name} {x:+.3f}" for name, x in steep.items())};
{widest} overshoots most, {least} least.

sgdw and L2 in the loss follow the formula to {max(apart.values()):.1g}, and reach ridge's solution to {gap:.1g}; \
L1's proximal step makes {(l1["proximal"] == 0).sum()} exact zeros, its gradient {(l1["gradient"] == 0).sum()}."""


def plot(results: dict[str, Any]) -> Any:
    """Steps of sgdw on the formula; L1's zeros; a weight without a gradient; the friction of decay under momentum."""
    figure, panels = plots.figure(2, 2)
    hand, sparse, left, oscillation = panels
    for i, name in enumerate(("w", "b")):
        hand.plot(results["by hand"]["sgdw"][:, i], label=f"{name}, sgdw", **plots.line(i))
        hand.plot(results["by hand"]["formula"][:, i], label=f"{name}, formula", color="black", linestyle=":")
    for i, (name, marker) in enumerate({"gradient": "x", "proximal": "o"}.items()):
        sizes = np.maximum(np.abs(results["sparse"][name]), 1e-6)
        sparse.plot(sizes, marker, fillstyle="none", label=name, color=plots.line(i)["color"])
    for i, (name, curve) in enumerate(results["forgetting"].items()):
        left.plot(curve, label=name, **plots.line(i))
    for i, (name, factor) in enumerate(DAMPING.items()):
        measured, formula = amplitude(results["friction"][name]), "formulas √μᵗ, √(μ(1 − c))ᵗ" if i == 2 else None
        oscillation.plot(measured, label=name, linewidth=4 - i, **plots.line(i))
        oscillation.plot(factor ** np.arange(len(measured)), color="black", linestyle=":", label=formula)
    hand.set(title="w·x + b and the formula", xlabel="step", ylabel="w, b")
    sparse.set(title="L1", xlabel="column; from 10 on shuffled copies", ylabel="|w|, 10⁻⁶ for 0", yscale="log")
    left.set(title="a weight without gradient", xlabel="step", ylabel="w")
    title = f"friction: ½·{CURVATURE}·x² with μ = {MOMENTUM}, c = {FRICTION}"
    oscillation.set(title=title, xlabel="step", ylabel="amplitude of x", yscale="log")
    for axes in panels:
        axes.legend(fontsize="small")
    return figure


def decays() -> Any:
    """The audit of sgdw on w and b."""
    flags, params = SETTING.values(), {"w": jnp.ones(1), "b": jnp.ones(())}
    return wd.audit(wd.sgdw(flags["learning_rate"], weight_decay=flags["weight_decay"]), params)


main = lambda _: SETTING.show(decays, run, report, plot)

if __name__ == "__main__":
    app.run(main)
