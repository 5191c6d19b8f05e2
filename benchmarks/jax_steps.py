"""Optimizer steps of this library and of Optax for `step.py`, one per entry of VARIANTS."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import trees

import wd_optax as wd
from wd_optax.precision.rounding import Rounding

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
Make = Callable[[], optax.GradientTransformation]


def _adamw_bf16(rounding: Rounding) -> optax.GradientTransformation:
    return _adamw(mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16, rounding=rounding)


def _adamw_flat() -> optax.GradientTransformation:
    moments = optax.flatten(optax.scale_by_adam())
    return optax.chain(
        moments, wd.add_decayed_weights(WEIGHT_DECAY, mask=None), optax.scale_by_learning_rate(LEARNING_RATE)
    )


def _optax_sgdw() -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(WEIGHT_DECAY), optax.scale_by_learning_rate(LEARNING_RATE)
    )


_adamw = functools.partial(wd.adamw, LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=None)
_sgdw = functools.partial(wd.sgdw, LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=None, momentum=0.9)
_ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic", "compensated")
# Ratios are relative to the first variant of each optimizer, to Optax and to torch.
VARIANTS: dict[str, dict[str, Make]] = {
    "adamw": {
        "wd_optax": _adamw,
        "wd_optax, monitor": lambda: wd.monitor_decay(_adamw()),
        "optax": lambda: optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    },
    "adamw_flat": {  # one buffer per moment, by optax.flatten
        "wd_optax": _adamw,
        "wd_optax, flat moments": _adamw_flat,
        "optax": lambda: optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    },
    "adam_l2": {
        "wd_optax": lambda: wd.adam_l2(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=None),
        "wd_optax, monitor": lambda: wd.monitor_decay(wd.adam_l2(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=None)),
        "optax": lambda: optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.adam(LEARNING_RATE)),
    },
    "sgdw": {
        "wd_optax": _sgdw,
        "wd_optax, monitor": lambda: wd.monitor_decay(_sgdw()),
        "optax": _optax_sgdw,
    },
    "lion": {
        "wd_optax": lambda: wd.with_decay(
            optax.lion(LEARNING_RATE, weight_decay=0.0),
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            mask=None,
        ),
        "optax": lambda: optax.lion(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    },
    "adamw_bf16": {
        **{f"wd_optax, {rounding}": functools.partial(_adamw_bf16, rounding) for rounding in _ROUNDINGS},
        "wd_optax, master": lambda: wd.precision.with_master_weights(_adamw()),
        "optax": lambda: optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    },
    "sgdw_bf16": {
        **{f"wd_optax, {rounding}": functools.partial(_sgdw, rounding=rounding) for rounding in _ROUNDINGS},
        "wd_optax, master": lambda: wd.precision.with_master_weights(_sgdw()),
        "optax": _optax_sgdw,
    },
}


def nbytes(tree: Any) -> int:
    """Bytes of all leaves of a tree of arrays or shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


class JaxSteps:
    """Times blocks of steps of one tree at a time. Parameters and state last for a block; gradients are reused."""

    def load(self, tree: str, optimizer: str, dtype: str) -> list[dict[str, Any]]:
        """Draws the gradients and compiles; returns the properties of each variant."""
        self.grads = {path: jnp.array(x, dtype) for path, x in trees.values(trees.TREES[tree]()).items()}
        stream = jax.jit(lambda x: (x * 0.999,), donate_argnums=0)
        self.variants: list[Any] = [(lambda: (jnp.ones(trees.STREAM),), stream)]
        found = [{"variant": "stream, jax", "floor": 8 * trees.STREAM}]
        return found + [{"variant": name, **self._compile(make())} for name, make in VARIANTS[optimizer].items()]

    def _compile(self, tx: optax.GradientTransformation) -> dict[str, Any]:
        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def start() -> tuple[Any, Any]:
            params = jax.tree.map(jnp.copy, self.grads)
            return params, tx.init(params)

        jitted = jax.jit(step, donate_argnums=(0, 1))
        self.variants.append((start, lambda params, state: jitted(params, state, self.grads)))
        state = jax.eval_shape(tx.init, self.grads)
        began = time.perf_counter()
        compiled: Any = jitted.lower(self.grads, state, self.grads).compile()  # the first call reuses it
        seconds, moved = time.perf_counter() - began, compiled.cost_analysis()["bytes accessed"]
        return {"bytes": moved, "floor": 3 * nbytes(self.grads) + 2 * nbytes(state), "compile": seconds}

    def block(self, variant: int, steps: int) -> float:
        """Seconds per step."""
        start, step = self.variants[variant]
        carry = start()

        def once() -> None:
            nonlocal carry
            carry = step(*carry)

        return trees.timed(once, lambda: jax.block_until_ready(carry), steps)
