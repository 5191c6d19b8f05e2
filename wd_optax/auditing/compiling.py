"""Compiles the small programs of an audit in less than half of XLA's time: they run for less than they compile."""

import functools
from collections.abc import Callable
from typing import Any

import jax

QUICK_ENTRIES = 2**15  # of all leaves together; the programs of larger trees are optimised
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


def jit(function: Callable[..., Any], entries: int) -> jax.stages.Wrapped:
    """`jax.jit`, with the options for a tree of so many entries; such a program can't be part of another one."""
    return jax.jit(function, compiler_options=_quick_options() if entries <= QUICK_ENTRIES else None)


@functools.cache
def _quick_options() -> dict[str, Any] | None:
    """The options; None on other platforms than the CPU, and for releases of XLA that don't know them."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=QUICK).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return QUICK
