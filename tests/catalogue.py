"""Every transform and optimizer of the library, read from its modules: a new one falls under every law by itself."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd
from wd_optax import optimizers, transforms, wrappers

LEARNING_RATE, WEIGHT_DECAY, RATE = 0.5, 0.2, 0.1  # 10 % per step by any route
REQUIRED = {
    "direction": optax.identity(),
    "learning_rate": LEARNING_RATE,
    "weight_decay": WEIGHT_DECAY,
    "rate": RATE,
}


FACTORIES: dict[str, Callable[..., Any]] = {
    name: value
    for name, value in vars(wd).items()
    if inspect.isfunction(value) and value.__module__ in (transforms.__name__, optimizers.__name__, wrappers.__name__)
}
NAMES = sorted(FACTORIES)
takes = lambda name, argument: argument in inspect.signature(FACTORIES[name]).parameters


def build(name: str, **options: Any) -> optax.GradientTransformationExtraArgs:
    """`name` with the options it takes, and a required argument's default above where none is given."""
    arguments = {k: v for k, v in (REQUIRED | options).items() if takes(name, k)}
    if takes(name, "optimizer") and "optimizer" not in arguments:
        arguments["optimizer"] = optax.sgd(arguments["learning_rate"])
    return FACTORIES[name](**arguments)


def optimizer(name: str, **options: Any) -> optax.GradientTransformation:
    """`name` as a finished optimizer: what stands before the learning rate gets one behind it."""
    tx = build(name, **options)
    if takes(name, "learning_rate"):
        return tx
    if takes(name, "rate"):
        return optax.chain(optax.sgd(LEARNING_RATE), tx)
    return optax.chain(tx, optax.scale_by_learning_rate(options.get("learning_rate", LEARNING_RATE)))


BASES = {"adam": optax.adam(LEARNING_RATE), "sgd": optax.sgd(LEARNING_RATE)}


def without_decay(name: str) -> optax.GradientTransformation:
    """The optimizer that `optimizer(name)` must be, bit for bit, at λ = 0."""
    return BASES["adam" if name.startswith("adam") else "sgd"]


# What one step with a zero gradient removes, given c = RATE or LEARNING_RATE·WEIGHT_DECAY; None: no closed form.
REMOVES = dict.fromkeys(NAMES, lambda c: c) | {"proximal": lambda c: c / (1 + c), "adam_l2": None}


@functools.cache
def _normal(seed: int, i: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The i-th array of a seed, by NumPy, for JAX draws slowly outside of jit."""
    return np.random.default_rng((seed, i)).standard_normal(shape, np.float32).astype(dtype)


def params(dtype: Any = jnp.float32) -> Any:
    """New arrays at each call, because a test may donate them."""
    draw = itertools.count()
    normal = lambda *shape: jnp.array(_normal(0, next(draw), shape, dtype))
    return {
        "embed": {"embedding": normal(5, 3)},
        "attn": {"kernel": normal(3, 2, 4), "bias": normal(2, 4)},
        "norms": {"scale": normal(3, 4)},
        "frozen": None,
    }


def grads(tree: Any, seed: int = 1) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    drawn = [jnp.array(_normal(seed, i, p.shape, jnp.dtype(p.dtype))) for i, p in enumerate(leaves)]
    return jax.tree.unflatten(treedef, drawn)


# mask -> the multipliers it must give for (attn/bias, attn/kernel, embed/embedding, norms/scale), in JAX's order
MASKS = {
    "none": (None, (1.0, 1.0, 1.0, 1.0)),
    "weights": ("weights", (0.0, 1.0, 1.0, 0.0)),
    "rules": ([("embed", 0.25), (".*", "weights")], (0.0, 1.0, 0.25, 0.0)),
    "tree": ({"attn": {"kernel": True, "bias": 0.5}, "embed": False, "norms": 0.0}, (0.5, 1.0, 0.0, 0.0)),
}


def in_pairs(*axes: Iterable[Any]) -> list[Any]:
    """The product of the axes as parameters: some that cover all pairs of values, the rest marked exhaustive."""
    points = list(itertools.product(*axes))
    pairs = lambda point: set(itertools.combinations(enumerate(point), 2))
    missing, chosen = set().union(*map(pairs, points)), set()
    while missing:
        best = max(points, key=lambda point: len(pairs(point) & missing))
        chosen.add(best)
        missing -= pairs(best)
    return [pytest.param(*point, marks=[] if point in chosen else pytest.mark.exhaustive) for point in points]


def step(tx: optax.GradientTransformation, gradients: Any, state: Any, p: Any) -> tuple[Any, Any]:
    updates, state = tx.update(gradients, state, p)
    return optax.apply_updates(p, updates), state


def run(tx: optax.GradientTransformation, p: Any, gradients: Any, steps: int, mode: str = "jit") -> tuple[Any, Any]:
    """`steps` steps with the same gradients; mode is "eager", "jit" or "scan"."""
    carry = (p, tx.init(p))
    if mode == "scan":
        return _scanned(tx)(gradients, carry, steps)
    one = jitted(tx) if mode == "jit" else functools.partial(step, tx)
    for _ in range(steps):
        p, state = carry
        carry = one(gradients, state, p)
    return carry


def run_each(txs: Sequence[optax.GradientTransformation], p: Any, gradients: Any, steps: int) -> list[Any]:
    """The parameters after `run` with each optimizer, by one program, which takes half as long to compile as theirs."""
    every = jax.jit(lambda g, ends: [step(tx, g, state, q) for tx, (q, state) in zip(txs, ends, strict=True)])
    ends = [(p, tx.init(p)) for tx in txs]
    for _ in range(steps):
        ends = every(gradients, ends)
    return [q for q, _ in ends]


@functools.cache
def jitted(tx: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """`step` of an optimizer, compiled once for all calls and tests that share it."""
    return jax.jit(functools.partial(step, tx))


@functools.cache
def _scanned(tx: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    @functools.partial(jax.jit, static_argnums=2)
    def loop(gradients: Any, carry: tuple[Any, Any], steps: int) -> tuple[Any, Any]:
        return jax.lax.scan(lambda c, _: (step(tx, gradients, c[1], c[0]), None), carry, length=steps)[0]

    return loop


class Average(NamedTuple):
    """The state of `toward_average`."""

    average: Any  # like the parameters


def toward_average(beta: float) -> optax.GradientTransformation:
    """A rule with memory: r = p − a, a ← β·a + (1 − β)·p."""

    def update(p: Any, state: Average, params: Any = None) -> tuple[Any, Average]:
        del params
        average = jax.tree.map(lambda a, p: beta * a.astype(p.dtype) + (1 - beta) * p, state.average, p)
        return jax.tree.map(jnp.subtract, p, average), Average(average)

    return optax.GradientTransformation(lambda p: Average(jax.tree.map(jnp.copy, p)), update)


def where_gradient_is_positive() -> optax.GradientTransformationExtraArgs:
    """A rule that reads the raw gradients."""

    def update(p: Any, state: Any, params: Any = None, *, step: wd.rules.Step) -> tuple[Any, Any]:
        del params
        return wd.rules.tree_map(lambda p, g: jnp.where(g > 0, p, jnp.zeros_like(p)), p, step.gradients), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def by_inner_state() -> optax.GradientTransformationExtraArgs:
    """A rule that reads the inner optimizer's state: r = p/(1 + Σs²) over all of its floats."""

    def update(p: Any, state: Any, params: Any = None, *, step: wd.rules.Step) -> tuple[Any, Any]:
        del params
        floats = [x for x in jax.tree.leaves(step.inner_state) if jnp.issubdtype(x.dtype, jnp.floating)]
        total = sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in floats), jnp.float32(1))
        return jax.tree.map(lambda p: p / total.astype(p.dtype), p), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def half(tree: Any) -> Any:
    """The anchor of the rule "tree"."""
    return jax.tree.map(lambda x: 0.5 * x, tree)


# name -> the parameters at init -> a rule; what each must do is in tests/test_rules.py, ORACLES
RULES: dict[str, Callable[[Any], optax.GradientTransformation | None]] = {
    "none": lambda p: None,
    "identity": lambda p: optax.identity(),
    "init": lambda p: wd.rules.toward("init"),
    "tree": lambda p: wd.rules.toward(half(p)),
    "cautious": lambda p: wd.rules.cautious(),
    "init, cautious": lambda p: optax.chain(wd.rules.toward("init"), wd.rules.cautious()),
    "clip": lambda p: optax.clip(0.5),
    "average": lambda p: toward_average(0.5),
    "gradient": lambda p: where_gradient_is_positive(),
    "inner state": lambda p: by_inner_state(),
    "norm": lambda p: wd.rules.toward_norm("init", ratio=0.5),
    "elastic": lambda p: wd.rules.elastic(0.25),
    "group": lambda p: wd.rules.group(),
    "moving average": lambda p: wd.rules.toward_average(0.5),
}


def applies(name: str, rule: str) -> bool:
    """Whether a transform takes a rule: some aren't given raw gradients, and a proximal step has no gate."""
    no_gradients = ("add_decayed_weights", "shrink", "proximal")
    return not (rule == "gradient" and name in no_gradients) and not (rule.endswith("cautious") and name == "proximal")
