"""Lazy decay of an embedding's rows is dense decay, and writes only the rows that a step moves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots

import wd_optax as wd
from claims.claim import Claim, Measured, at_least, at_most, exactly
from claims.rare_rows import OPTIMIZERS, RATE, ROWS, STEPS, WEIGHT_DECAY, WIDTH, gradient

READ = {name: f"{name}: largest |lazy − dense|/max|w₀| at any read" for name in OPTIMIZERS}
WRITTEN = "SGDW, lazy: entries of rows without a gradient that a step writes"
STALE = "SGDW, lazy, read without `materialize`: largest |lazy − dense|/max|w₀|"


def run(optimizer: optax.GradientTransformation, start: jax.Array, seen: jax.Array, read: Callable[..., Any]) -> Any:
    """The stored table and what is read of it after each step; gradients are taken at what is read."""

    def step(carry: Any, row: jax.Array) -> Any:
        params, state = carry
        updates, state = optimizer.update(gradient(read(params, state), row), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params["embedding"], read(params, state)["embedding"])

    params = {"embedding": start}
    return jax.lax.scan(step, (params, optimizer.init(params)), seen)[1]


def measure() -> Measured:
    """The table and the schedule of `rare_rows`: half of the rows are looked up in turns, the others never."""
    random = np.random.default_rng(0)
    start = jnp.asarray(random.normal(size=(ROWS, WIDTH)), jnp.float32)
    seen = jnp.asarray(random.integers(ROWS // 2, size=STEPS))
    stored_only, rows, size = lambda params, state: params, {}, float(jnp.abs(start).max())
    curves: dict[str, np.ndarray] = {}
    for name, make in OPTIMIZERS.items():
        lazy = make(RATE, weight_decay=WEIGHT_DECAY, rule=wd.rules.active_rows(policy="lazy"))
        dense = make(RATE, weight_decay=WEIGHT_DECAY)
        one = jax.jit(
            lambda p, lazy=lazy, dense=dense: (run(lazy, p, seen, wd.materialize), run(dense, p, seen, stored_only))
        )
        (stored, read), (_, expected) = jax.tree.map(np.asarray, one(start))
        rows[READ[name]] = np.abs(read - expected).max() / size
        if name == "SGDW":
            rows[WRITTEN] = written(np.concatenate([start[None], stored]), np.asarray(seen))
            rows[STALE] = np.abs(stored - expected).max() / size
            curves = {"stored": stored[:, 0, 0], "read by materialize": read[:, 0, 0], "dense": expected[:, 0, 0]}
    return Measured(rows, curves)


def written(path: np.ndarray, seen: np.ndarray) -> int:
    """Entries that change in a step which doesn't look up their row."""
    changed = path[1:] != path[:-1]
    changed[np.arange(len(seen)), seen] = False
    return int(changed.sum())


def draw(axes: Any, curves: Any) -> None:
    """An entry of a row that is looked up now and then."""
    for i, (name, path) in enumerate(curves.items()):
        axes.plot(path, label=name, **plots.line(i) | {"linestyle": ("-", "--", ":")[i]})
    axes.set(xlabel="step", ylabel="first entry of row 0")


CLAIM = Claim(
    title="Lazy decay of rows is dense decay at every read",
    papers=("1505.06449",),
    statement="Regularised weights of features that a step doesn't use can wait, and be brought up to date in closed "
    "form when they are next used, also under a changing learning rate.",
    expected={row: at_most(1e-5) for row in READ.values()} | {WRITTEN: exactly(0), STALE: at_least(0.1)},
    measure=measure,
    draw=draw,
    quick=True,
)
