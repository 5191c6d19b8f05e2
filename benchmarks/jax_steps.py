"""Optimizer steps of this library and of Optax for `step.py`, one per entry of VARIANTS.

`python jax_steps.py cpu` reads lines of JSON, [method, arguments...], and answers each with a line of JSON.
"""

import collections
import functools
import gzip
import importlib.metadata
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import serving
import trees

import wd_optax as wd
from wd_optax.precision.rounding import Rounding

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}  # the first is the default device
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


def digest(text: str) -> dict[str, int]:
    """How often each operation that moves memory occurs in a compiled program, outside of its fusions' bodies."""
    counts: collections.Counter[str] = collections.Counter()
    fused = False
    for line in text.splitlines():
        if line.endswith("{"):
            fused = re.match(r"(ENTRY )?%?(fused|wrapped)", line) is not None
        elif not fused and (found := re.search(r" = .*? ([a-z][a-z-]*)\(", line)):
            counts[found[1]] += 1
    free = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
    return {name: n for name, n in sorted(counts.items()) if name not in free}


class JaxSteps:
    """Times blocks of steps of one tree at a time. Parameters and state last for a block; gradients are reused."""

    def __init__(self, device: str) -> None:
        self.device = device
        jax.config.update("jax_logging_level", "WARNING")  # no messages about missing accelerators
        jax.config.update("jax_platforms", PLATFORMS[device])

    def about(self) -> dict[str, Any]:
        """Versions and the device's kind, or why JAX can't use it."""
        versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "optax")}
        try:
            device = jax.devices(self.device)[0]  # without the plugin JAX falls back on the CPU
        except RuntimeError as error:
            return {"error": str(error)}
        return {"device": device.device_kind, "versions": versions | {"wd_optax": wd.__version__}}

    def load(
        self, tree: str, optimizer: str, dtype: str, *, stream: int, without: list[str], text: str | None
    ) -> list[dict[str, Any]]:
        """Makes the gradients and compiles; returns the properties of each variant.

        Args:
          tree: a name in trees.TREES.
          optimizer: a name in VARIANTS.
          dtype: of the gradients and parameters.
          stream: float32 numbers in the array whose update and copy measure the bandwidth.
          without: leaves out the variants whose names contain one of these words.
          text: a folder for the compiled programs, or None.
        """
        self.grads: Any = None  # of the tree before: both needn't fit
        tile, resize = jnp.asarray(trees.tile(), dtype), jax.jit(jnp.resize, static_argnums=1)
        self.grads = {path: resize(tile, shape) for path, shape in trees.TREES[tree]().items()}
        self.variants: list[Any] = []
        found = self._streams(stream)
        for name, make in VARIANTS[optimizer].items():
            if not any(word in name for word in without):
                known, program = self._compile(make())
                found.append({"variant": name, **known, "program": digest(program)})
                if text:
                    path = pathlib.Path(text) / f"{tree}-{optimizer}-{name.replace(', ', '-')}.txt.gz"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(gzip.compress(program.encode()))
        return found

    def _streams(self, size: int) -> list[dict[str, Any]]:
        """An array updated in place, and one copied to another."""
        update = jax.jit(lambda x: (x * 0.999,), donate_argnums=0)
        copy = jax.jit(lambda x, y: (x, jnp.copy(x)), donate_argnums=(0, 1), keep_unused=True)  # into y
        self.variants.append((lambda: (jnp.ones(size),), update))
        self.variants.append((lambda: (jnp.ones(size), jnp.zeros(size)), copy))
        return [{"variant": name, "floor": 8 * size} for name in ("stream, jax", "copy, jax")]

    def _compile(self, tx: optax.GradientTransformation) -> tuple[dict[str, Any], str]:
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
        seconds, costs = time.perf_counter() - began, compiled.cost_analysis() or {}
        known = {"floor": 3 * nbytes(self.grads) + 2 * nbytes(state), "compile": seconds}
        moved = {"bytes": costs["bytes accessed"]} if "bytes accessed" in costs else {}
        return known | moved, compiled.as_text()

    def block(self, variant: int, steps: int) -> float:
        """Seconds per step."""
        start, step = self.variants[variant]
        carry = start()

        def once() -> None:
            nonlocal carry
            carry = step(*carry)

        return trees.timed(once, lambda: jax.block_until_ready(carry), steps)


if __name__ == "__main__":
    serving.serve_methods(JaxSteps(*sys.argv[1:]))
