"""Cautious decay: unbiased with exact gradients, biased under noise, and no regulariser where it is unbiased."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_most, between
from claims.training import train
from wd_optax.choosing.equilibrium import cautious_minimum

SEEDS, RUNS, ETA, WEIGHT_DECAY, NOISES = 5, 1000, 0.01, 1.0, (0.1, 0.5, 2.0)
INPUTS, EXAMPLES, STEPS, LAMBDAS = 60, 80, 10_000, np.geomspace(0.003, 1.0, 6)
EXACT = "exact gradients, one weight at a time, η → 0: largest |x − a|"
COUPLED = "exact gradients, correlated weights, η = 0.2, λ = 0.3: ‖w − w*‖/‖w*‖"
ORDER = "the same at η = 0.02/at η = 0.2"
PREDICTED = {s: f"noise {s}: bias/predicted bias, u + λ·x·Φ(u/s) = 0" for s in NOISES}
BIASED = {s: f"noise {s}: bias/bias of plain decay" for s in NOISES}
UNBIASED = "noise 0.5: bias/a, as if gradients were exact"
GAIN = "exact gradients, η → 0: test error at the best of six λ, plain decay/no decay"
SHARE = "exact gradients, η → 0: cautious decay's gain in test error/plain decay's"
BETTER = "exact gradients, η → 0: test error at the best of six λ, cautious − plain decay"
GATE = {"plain": None, "cautious": wd.rules.cautious()}


def one_by_one() -> jax.Array:
    """|x − a| at the end, on Σ h·(x − a)²/2 with curvatures between 0.1 and 2; where u is 0, the gate is open."""
    a, h = jnp.linspace(-2.0, 2.0, 32), jnp.geomspace(0.1, 2.0, 32)
    falling = optax.exponential_decay(0.3, 1, 0.995, transition_begin=1000)
    optimizer = wd.sgdw(falling, weight_decay=WEIGHT_DECAY, rule=GATE["cautious"])
    return jnp.abs(train(optimizer, jnp.zeros(32), lambda x, _: h * (x - a), None, steps=4000)[0] - a)


def noisy_bias(rule: Any, noise: jax.Array, key: jax.Array) -> jax.Array:
    """1 − the mean of x over the second half of SGD on (x − 1)²/2 with noise, and over many runs."""
    optimizer = wd.sgdw(ETA, weight_decay=WEIGHT_DECAY, rule=rule)
    gradient = lambda x, key: x - 1.0 + noise * jax.random.normal(key, x.shape)
    keys = jax.random.split(key, 1600)
    return 1 - train(optimizer, jnp.ones(RUNS), gradient, keys, lambda step: step.after.mean())[1][800:].mean()


def regression(seed: int) -> Any:
    """Of 80 noisy examples: the matrix and the vector of the least squares, their solution, and the true weights."""
    random = np.random.default_rng(seed)
    x, truth = random.normal(size=(EXAMPLES, INPUTS)), random.normal(size=INPUTS) / INPUTS**0.5
    y = x @ truth + random.normal(size=EXAMPLES)
    found = (x.T @ x / EXAMPLES, x.T @ y / EXAMPLES, np.linalg.lstsq(x, y)[0], truth)
    return tuple(jnp.asarray(z, jnp.float32) for z in found)


def fit(rule: Any, rate: Any, weight_decay: Any, problem: Any) -> jax.Array:
    """The weights at the end of gradient descent."""
    matrix, vector, *_ = problem
    optimizer = wd.sgdw(rate, weight_decay=weight_decay, rule=rule)
    return train(optimizer, jnp.zeros(INPUTS), lambda w, _: matrix @ w - vector, None, steps=STEPS)[0]


def bias_of_large_steps(problems: Any) -> np.ndarray:
    """‖w − w*‖/‖w*‖ at η = 0.2 and at 0.02, shape=(2, seeds): weights take turns to cross the gate."""

    def one(rate: jax.Array, problem: Any) -> jax.Array:
        end, best = fit(GATE["cautious"], rate, 0.3, problem), problem[2]
        return jnp.linalg.norm(end - best) / jnp.linalg.norm(best)

    return np.asarray(jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(jnp.array([0.2, 0.02]), problems))


def best_errors(problems: Any) -> dict[str, np.ndarray]:
    """The squared distance from the truth, at the best λ, per seed."""
    rate = optax.cosine_decay_schedule(0.2, STEPS)
    grid = jnp.asarray([0.0, *LAMBDAS], jnp.float32)
    found: dict[str, np.ndarray] = {}
    for name, rule in GATE.items():
        one = lambda decay, problem, rule=rule: jnp.sum((fit(rule, rate, decay, problem) - problem[3]) ** 2)
        errors = np.asarray(jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(grid, problems))
        found |= {"none": errors[0], name: errors[1 + errors[1:].mean(axis=1).argmin()]}
    return found


def measure() -> Measured:
    """Without noise, weight by weight and correlated; with noise; and a regression that needs regularisation."""
    noises, keys = jnp.asarray(NOISES), jax.random.split(jax.random.key(0), SEEDS)
    bias = {}
    for name, rule in GATE.items():
        of_noise = lambda noise, key, rule=rule: noisy_bias(rule, noise, key)
        bias[name] = np.asarray(jax.jit(jax.vmap(jax.vmap(of_noise, (None, 0)), (0, None)))(noises, keys))
    predicted = 1 - np.asarray(cautious_minimum(1.0, weight_decay=WEIGHT_DECAY, noise=noises))
    problems = jax.tree.map(lambda *x: jnp.stack(x), *map(regression, range(SEEDS)))
    large, best = bias_of_large_steps(problems), best_errors(problems)
    rows: dict[str, Any] = {EXACT: one_by_one().max(), COUPLED: large[0], ORDER: large[1] / large[0]}
    rows[UNBIASED] = bias["cautious"][1]
    for i, noise in enumerate(NOISES):
        rows[PREDICTED[noise]] = bias["cautious"][i] / predicted[i]
        rows[BIASED[noise]] = bias["cautious"][i] / bias["plain"][i]
    rows |= {GAIN: best["plain"] / best["none"], BETTER: best["cautious"] - best["plain"]}
    rows[SHARE] = (best["none"] - best["cautious"]) / (best["none"] - best["plain"])
    return Measured(rows, bias)


def draw(axes: Any, curves: Any) -> None:
    """The bias by noise, measured and predicted."""
    noises = np.geomspace(0.03, 4, 60)
    line = 1 - cautious_minimum(1.0, weight_decay=WEIGHT_DECAY, noise=noises)
    axes.semilogx(noises, line, label="predicted", **plots.line(0))
    for i, (name, bias) in enumerate(curves.items()):
        plots.bars(axes, NOISES, bias.T, plots.line(i + 1) | {"linestyle": "none"}, label=name)
    axes.set(xlabel="noise of the direction, s", ylabel="bias, 1 − x at a minimum of 1", ylim=(0, None))


CLAIM = Claim(
    title="Cautious decay leaves the minimum alone: with exact gradients and η → 0, not under noise or at a finite η",
    papers=("2510.12402",),
    statement="Decay only where it agrees with the step stops at minima of the original loss instead of a penalised "
    "one, and reaches lower losses than decay everywhere.",
    expected={EXACT: at_most(1e-5), COUPLED: at_most(0.01), ORDER: between(0.05, 0.2), UNBIASED: at_most(0.01)}
    | {row: between(0.95, 1.05) for row in PREDICTED.values()}
    | {row: between(0.2, 0.7) for row in BIASED.values()}
    | {GAIN: at_most(0.9), SHARE: at_most(0.2), BETTER: at_most(0)},
    measure=measure,
    draw=draw,
)
