"""Chains composed at random from Optax's transformations and ours, and what they really do to each parameter.

`draw(seed)` gives a case; its optimizer is built with λ or without. `truth` runs both in float64 on one sequence of
gradients: the parameters differ by the decay alone. Nothing of the audit is used.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wd_optax as wd

SHAPES = {"kernel": (6, 5), "bias": (5,), "scale": (7,), "table": {"embedding": (9, 4)}}
MASKS = {
    "all": lambda p: jax.tree.map(lambda x: True, p),
    "matrices": lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
    "kernel": lambda p: jax.tree_util.tree_map_with_path(lambda path, x: path[0].key == "kernel", p),
    "none": lambda p: jax.tree.map(lambda x: False, p),
}


@dataclasses.dataclass
class Case:
    """A chain: its words, and the optimizer at a weight decay (0 for none)."""

    words: list[str]
    build: Callable[[Any], Any]
    decay: float
    sources: int = 1  # decaying stages
    linear: bool = True  # whether the decay is a fraction of the weight at any gradient
    random: bool = False


def params() -> Any:
    """Parameters of size about 1."""
    random = np.random.default_rng(7)
    make = lambda shape: np.sign(random.normal(size=shape)) * random.uniform(0.5, 1.5, shape)
    return jax.tree.map(lambda shape: jnp.asarray(make(shape)), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def draw(seed: int) -> Case:
    """One case."""
    random = np.random.default_rng(seed)
    pick = lambda *options: options[random.integers(len(options))]
    lr = float(10.0 ** random.uniform(-3, -1.5))
    decay = float(10.0 ** random.uniform(-2, 0))
    mask_name = pick(*MASKS)
    mask = MASKS[mask_name]
    eta = _schedule(pick("constant", "constant", "warm-up", "cosine", "linear"), lr)
    words = [f"seed {seed}", f"lr {lr:.2g} {eta[0]}", f"decay {decay:.2g} on {mask_name}"]
    clips = {
        "clip_by_global_norm": lambda: optax.clip_by_global_norm(1.0),
        "clip": lambda: optax.clip(0.5),
        "noise": lambda: optax.add_noise(0.01, 0.5, key=3),
        "centralize": optax.centralize,
        "zero_nans": optax.zero_nans,
        "none": optax.identity,
    }
    scales = {
        "adam": optax.scale_by_adam,
        "adan": optax.scale_by_adan,
        "lion": optax.scale_by_lion,
        "rms": optax.scale_by_rms,
        "yogi": optax.scale_by_yogi,
        "amsgrad": optax.scale_by_amsgrad,
        "belief": optax.scale_by_belief,
        "radam": optax.scale_by_radam,
        "trace": lambda: optax.trace(0.9),
        "nesterov": lambda: optax.trace(0.8, nesterov=True),
        "ema": lambda: optax.ema(0.9),
        "ema, raw": lambda: optax.ema(0.9, debias=False),
        "sign": optax.scale_by_sign,
        "sgd": optax.identity,
    }
    front, scale = pick(*clips), pick(*scales)
    place = pick("after", "after", "after", "before", "ours", "with_decay", "shrink", "adamw", "wrong place", "twice")
    wrapper = pick("plain", "plain", "plain", "MultiSteps", "partition", "apply_if_finite", "inject", "masked")
    words += [front, scale, place, wrapper]

    def build(weight_decay: Any) -> Any:
        l2 = lambda: optax.add_decayed_weights(weight_decay, mask)
        begin, middle, end = clips[front](), scales[scale](), optax.scale_by_learning_rate(eta[1])
        stages = {
            "after": lambda: [begin, middle, l2(), end],
            "before": lambda: [l2(), begin, middle, end],
            "ours": lambda: [begin, middle, wd.add_decayed_weights(weight_decay, mask=mask), end],
            "shrink": lambda: [begin, middle, end, wd.shrink(weight_decay / 20, mask=mask)],
            "adamw": lambda: [begin, optax.adamw(eta[1], weight_decay=weight_decay, mask=mask)],
            "wrong place": lambda: [begin, middle, end, optax.add_decayed_weights(weight_decay / 20, mask)],
            "twice": lambda: [begin, middle, l2(), l2(), end],
            "with_decay": lambda: [
                wd.with_decay(
                    optax.chain(begin, middle, end), learning_rate=eta[1], weight_decay=weight_decay, mask=mask
                )
            ],
        }[place]()
        return _wrapped(wrapper, optax.chain(*stages))

    linear = place != "before" or (
        scale in ("trace", "nesterov", "ema", "ema, raw", "sgd") and front in ("none", "noise", "zero_nans")
    )
    return Case(words, build, decay, sources=2 if place == "twice" else 1, linear=linear, random=front == "noise")


def _schedule(name: str, lr: float) -> tuple[str, Any]:
    return name, {
        "constant": lr,
        "warm-up": optax.warmup_cosine_decay_schedule(0.0, lr, 10, 120),
        "cosine": optax.cosine_decay_schedule(lr, 120, 0.1),
        "linear": optax.linear_schedule(lr, lr / 10, 120),
    }[name]


def _wrapped(name: str, tx: Any) -> Any:
    if name == "MultiSteps":
        return optax.MultiSteps(tx, 3).gradient_transformation()
    if name == "partition":
        label = lambda p: jax.tree.map(lambda x: "one", p)
        return optax.partition({"one": tx}, label)
    if name == "apply_if_finite":
        return optax.apply_if_finite(tx, 3)
    if name == "inject":
        return optax.inject_hyperparams(lambda factor: optax.chain(tx, optax.scale(factor)))(factor=1.0)
    if name == "masked":
        return optax.masked(tx, lambda p: jax.tree.map(lambda x: True, p))
    return tx


@dataclasses.dataclass
class Truth:
    """Per leaf, in JAX's order."""

    removed: list[float]  # mean fraction that decay takes per real step, over the run
    moves: list[bool]  # whether gradients move it
    touched: list[bool]  # whether decay changes it at all


SMALL = 1e-5  # of the decay: what it does is in proportion, and the rate is that of one step


def truth(case: Case, steps: int = 120) -> Truth:
    """Runs with and without (a small part of) the decay, in float64, on one sequence of random gradients.

    Decay takes Σ_t c·p_t, so c is the projection of what it changed on Σ_t p_t.
    """
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        p0 = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params())
        period = 3 if "MultiSteps" in case.words else 1
        run = jax.jit(lambda decay, size: _run(case.build(decay), p0, steps, period, size))  # one compilation
        with_decay, total = jax.device_get(run(case.decay * SMALL, 0.01))
        in_full, _ = jax.device_get(run(case.decay, 0.01))  # a sign may not notice a small part
        without, _ = jax.device_get(run(0.0, 0.01))
        other, _ = jax.device_get(run(0.0, 0.02))
    share = [
        float(np.vdot(a - b, s) / np.vdot(s, s)) / SMALL for a, b, s in zip(without, with_decay, total, strict=True)
    ]
    differs = lambda one, two: [bool(np.max(np.abs(a - b)) > 1e-14) for a, b in zip(one, two, strict=True)]
    return Truth(share, differs(without, other), differs(in_full, without))


def _run(tx: Any, p0: Any, steps: int, period: int, size: Any) -> tuple[list[Any], list[Any]]:
    """Where the parameters end, and their sum over the real steps."""

    def one(i: Any, carry: Any) -> Any:
        p, state, total = carry
        key = jax.random.fold_in(jax.random.key(1), i // period)
        g = jax.tree.map(lambda x: size * x, optax.tree.random_like(key, p, jax.random.normal))
        updates, state = tx.update(g, state, p)
        total = jax.tree.map(lambda s, x: s + x / period, total, p)
        return optax.apply_updates(p, updates), state, total

    start = (p0, tx.init(p0), jax.tree.map(jnp.zeros_like, p0))
    end, _, total = jax.lax.fori_loop(0, steps * period, one, start)
    return jax.tree.leaves(end), jax.tree.leaves(total)
