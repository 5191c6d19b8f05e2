"""A compilation in a third of the time, for tests whose assertions don't depend on how XLA optimises.

Tests with the mark `quick_compile` check verdicts, numbers to a tolerance, texts, errors, and runs of one program that
must agree. Tests that compare the bits of two programs, or count bytes, don't have it, or have
`@pytest.mark.quick_compile(False)` in a file that has: they check programs as users compile them. `make test-all`
compiles all tests so.
"""

import functools
from typing import Any

import jax
import pytest
from jax._src import compiler

MARK = "quick_compile"
# no LLVM passes, and no MLIR emitters, whose pipeline takes longer than these programs run
WANTED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


def _is_known(name: str, value: Any) -> bool:
    """Whether this release of XLA has the option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


OPTIONS = {name: value for name, value in WANTED.items() if _is_known(name, value)}
_default = compiler.get_compile_options


@functools.wraps(_default)
def _quick(*args: Any, **options: Any) -> Any:
    given = options.pop("env_options_overrides", None) or {}
    return _default(*args, **options, env_options_overrides=OPTIONS | given)


def is_quick(item: pytest.Item) -> bool:
    """Whether a test is compiled quickly: it has the mark, and the long tests are left out of the run."""
    mark = item.get_closest_marker(MARK)
    return mark is not None and mark.args != (False,) and "not exhaustive" in item.config.option.markexpr


def switch(item: pytest.Item) -> None:
    """Sets how the test's programs are compiled, and forgets those that are compiled in the other way."""
    wanted = _quick if is_quick(item) else _default
    if compiler.get_compile_options is not wanted:
        compiler.get_compile_options = wanted
        jax.clear_caches()


def flags() -> str:
    """XLA_FLAGS for a process that a test starts, to compile as the test does."""
    quick = compiler.get_compile_options is _quick
    return "".join(f" --{name}={str(value).lower()}" for name, value in OPTIONS.items()) if quick else ""


compiler.get_compile_options = _quick  # of the arrays that modules make when they are collected
