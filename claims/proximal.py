"""Penalties as proximal steps: which zeros a regression has, against scikit-learn's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from sklearn.linear_model import ElasticNet, Lasso, MultiTaskLasso

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most, exactly
from claims.training import batches, train

ROWS, INPUTS, TRUE, TARGETS, STEPS, BATCH, SEEDS, ETA = 400, 60, 12, 3, 4000, 32, 4, 0.02
EXACT: dict[str, Any] = {"fit_intercept": False, "tol": 1e-12, "max_iter": 100_000}
MODELS: dict[str, tuple[Any, Any, int]] = {
    "Lasso": (Lasso(0.1, **EXACT), "l1", 1),
    "ElasticNet": (ElasticNet(0.15, l1_ratio=0.7, **EXACT), wd.prox.elastic(0.7), 1),
    "MultiTaskLasso": (MultiTaskLasso(0.1, **EXACT), wd.prox.group(axis=0), TARGETS),
}
DIFFER = {
    (model, name): f"{model}, {name}, all rows: coefficients that are 0 in one of ours and scikit-learn's only"
    for model in MODELS
    for name in ("SGDW", "AdamW")
}
FAR = {key: f"{key[0]}, {key[1]}, all rows: largest difference from scikit-learn's coefficients" for key in DIFFER}
AGREE = {model: f"{model}, AdamW, batches of 32: share of coefficients that are 0, or not, in both" for model in MODELS}
NONE = "Lasso, `proximal` after Adam, all rows: coefficients that are 0"
LASSO = "Lasso, `proximal` after Adam, all rows: share of scikit-learn's zeros"


def problem() -> tuple[np.ndarray, np.ndarray]:
    """400 rows of 60 features, of which 12 count, and three targets with noise."""
    random = np.random.default_rng(3)
    x, w = random.normal(size=(ROWS, INPUTS)), np.zeros((INPUTS, TARGETS))
    w[:TRUE] = 2 * random.normal(size=(TRUE, TARGETS))
    return x, x @ w + 0.5 * random.normal(size=(ROWS, TARGETS))


def optimizer(name: str, weight_decay: float, penalty: Any) -> optax.GradientTransformation:
    """SGD and Adam with the penalty in their own metric; "after": Adam, and then a proximal step without it."""
    if name == "after":
        rate = wd.decay_rate(weight_decay, learning_rate=ETA)
        return optax.chain(optax.adam(ETA), wd.proximal(rate, None, penalty=penalty))
    if name == "SGDW":
        return wd.sgdw(0.2, weight_decay=weight_decay, mask=None, penalty=penalty)
    return wd.adamw(ETA, weight_decay=weight_decay, mask=None, penalty=penalty)


def fit(name: str, model: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Our coefficients, with an axis of seeds where batches are drawn, and scikit-learn's."""
    estimator, penalty, targets = MODELS[model]
    x, y = problem()
    y = y[:, :targets]
    theirs = estimator.fit(x, y if targets > 1 else y[:, 0]).coef_.T.reshape(INPUTS, targets)
    inputs, outputs = (jnp.asarray(z, jnp.float32) for z in (x, y))
    tx = optimizer(name, estimator.alpha, penalty)

    def run(rows: jax.Array | None) -> jax.Array:
        def gradient(w: jax.Array, taken: jax.Array | None) -> jax.Array:
            a, b = (inputs, outputs) if taken is None else (inputs[taken], outputs[taken])
            return a.T @ (a @ w - b) / len(a)

        return train(tx, jnp.zeros((INPUTS, targets)), gradient, rows, steps=STEPS)[0]

    if size == ROWS:
        return np.asarray(jax.jit(lambda: run(None))()), theirs
    return np.asarray(jax.jit(jax.vmap(run))(batches(SEEDS, STEPS, size, ROWS))), theirs


def measure() -> Measured:
    """Each estimator by SGD and by Adam with all rows, then by Adam with batches, then by `proximal` after Adam."""
    rows: dict[str, Any] = {}
    for model, name in DIFFER:
        ours, theirs = fit(name, model, ROWS)
        rows[DIFFER[model, name]] = ((ours == 0) != (theirs == 0)).sum()
        rows[FAR[model, name]] = np.abs(ours - theirs).max()
    for model, row in AGREE.items():
        ours, theirs = fit("AdamW", model, BATCH)
        rows[row] = ((ours == 0) == (theirs == 0)).mean(axis=(1, 2))
    found = {name: fit(name, "Lasso", ROWS) for name in ("SGDW", "AdamW", "after")}
    ours, theirs = found["after"]
    rows |= {NONE: (ours == 0).sum(), LASSO: (ours[theirs == 0] == 0).mean()}
    curves = {name: np.sort(np.abs(coefficients.ravel())) for name, (coefficients, _) in found.items()}
    return Measured(rows, curves)


def draw(axes: Any, curves: Any) -> None:
    """The coefficients of the Lasso in order of size."""
    labels = {"after": "proximal after Adam"}
    for i, (name, sizes) in enumerate(curves.items()):
        axes.plot(sizes, label=labels.get(name, f"{name}, penalty in its metric"), **plots.line(i))
    axes.set_yscale("symlog", linthresh=1e-6)
    axes.set(xlabel="coefficient, in order of size", ylabel="|coefficient|")


CLAIM = Claim(
    title="A proximal step in the optimizer's metric minimises loss + penalty, with exact zeros; after Adam it doesn't",
    papers=("2007.07484",),
    statement="Proximal steps in the metric of an adaptive method converge for nonsmooth penalties such as l1 and give "
    "sparse solutions; without the preconditioner in the proximal step they solve another problem.",
    expected={row: bound for key in DIFFER for row, bound in ((DIFFER[key], exactly(0)), (FAR[key], at_most(1e-5)))}
    | {row: at_least(0.9) for row in AGREE.values()}
    | {NONE: exactly(0), LASSO: at_most(0.1)},
    measure=measure,
    draw=draw,
)
