"""Steps of this library and of Optax for `step.py`: each a line of VARIANTS."""

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

η, λ = 1e-3, 0.1
Make = Callable[[], optax.GradientTransformation]


def _adamw_bf16(rounding: str) -> optax.GradientTransformation:
    narrow = jnp.bfloat16
    return wd.adamw(η, weight_decay=λ, mask=None, mu_dtype=narrow, nu_dtype=narrow, rounding=rounding)


def _adamw_flat() -> optax.GradientTransformation:
    moments = optax.flatten(optax.scale_by_adam())
    return optax.chain(moments, wd.add_decayed_weights(λ, mask=None), optax.scale_by_learning_rate(η))


def _optax_sgdw() -> optax.GradientTransformation:
    return optax.chain(optax.trace(0.9), optax.add_decayed_weights(λ), optax.scale_by_learning_rate(η))


_adamw = functools.partial(wd.adamw, η, weight_decay=λ, mask=None)
_sgdw = functools.partial(wd.sgdw, η, weight_decay=λ, mask=None, momentum=0.9)
_ROUNDINGS = ("nearest", "stochastic", "compensated")
# The first variant of each optimizer is what the others are held against, beside Optax and torch.
VARIANTS: dict[str, dict[str, Make]] = {
    "adamw": {
        "wd_optax": _adamw,
        "wd_optax, monitor": lambda: wd.monitor_decay(_adamw()),
        "optax": lambda: optax.adamw(η, weight_decay=λ),
    },
    "adamw_flat": {  # one buffer per moment, by Optax's wrapper
        "wd_optax": _adamw,
        "wd_optax, flat moments": _adamw_flat,
        "optax": lambda: optax.adamw(η, weight_decay=λ),
    },
    "adam_l2": {
        "wd_optax": lambda: wd.adam_l2(η, weight_decay=λ, mask=None),
        "wd_optax, monitor": lambda: wd.monitor_decay(wd.adam_l2(η, weight_decay=λ, mask=None)),
        "optax": lambda: optax.chain(optax.add_decayed_weights(λ), optax.adam(η)),
    },
    "sgdw": {
        "wd_optax": _sgdw,
        "wd_optax, monitor": lambda: wd.monitor_decay(_sgdw()),
        "optax": _optax_sgdw,
    },
    "lion": {
        "wd_optax": lambda: wd.with_decay(optax.lion(η, weight_decay=0.0), learning_rate=η, weight_decay=λ, mask=None),
        "optax": lambda: optax.lion(η, weight_decay=λ),
    },
    "adamw_bf16": {
        **{f"wd_optax, {rounding}": functools.partial(_adamw_bf16, rounding) for rounding in _ROUNDINGS},
        "wd_optax, master": lambda: wd.precision.with_master_weights(_adamw()),
        "optax": lambda: optax.adamw(η, weight_decay=λ),
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
    """Blocks of steps of one tree at a time. Parameters and state live as long as a block; gradients stay."""

    def load(self, tree: str, optimizer: str, dtype: str) -> list[dict[str, Any]]:
        """Draws the gradients and compiles; what is known of each variant."""
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
        compiled: Any = jitted.lower(self.grads, state, self.grads).compile()  # which the first call uses, too
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
