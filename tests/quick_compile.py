"""A compilation in a tenth of the time, for tests whose assertions don't depend on how XLA optimises.

Those are verdicts, numbers to a tolerance, texts, errors, and runs of one program that must agree. Tests that compare
the bits of two programs, or count bytes, have the mark `quick_compile(False)` or are in a file of `AS_USERS_COMPILE`:
they check programs as users compile them; bytes are read before LLVM, whose part alone is quick there. `make test-all`
compiles all other tests so.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from jax._src import compiler

MARK = "quick_compile"
# Files without a mark of their own whose tests compare the bits of two programs, or count bytes, or whose programs run
# for longer than they compile.
AS_USERS_COMPILE = {
    "test_bytes.py",
    "test_goldens.py",
    "test_gpu.py",
    "test_lowering.py",
    "test_precision.py",
    "test_precision_numbers.py",
    "test_precision_sharded.py",
    "test_random_bits.py",
    "test_sweep_memory.py",
    "test_sweep_store.py",
}
# No LLVM passes; no MLIR emitters, whose pipeline takes longer than these programs run; no second LLVM module, which
# costs as much again.
WANTED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
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
    """Whether a test is compiled quickly: as its mark or file says, and only where the long tests are left out."""
    mark = item.get_closest_marker(MARK)
    quick = item.path.name not in AS_USERS_COMPILE if mark is None else mark.args != (False,)
    return quick and "not exhaustive" in item.config.option.markexpr


def switch(item: pytest.Item) -> None:
    """Sets how the test's programs are compiled, and forgets those that are compiled in the other way."""
    wanted = _quick if is_quick(item) else _default
    if compiler.get_compile_options is not wanted:
        compiler.get_compile_options = wanted
        jax.clear_caches()


@contextlib.contextmanager
def as_users_compile() -> Iterator[None]:
    """In a quick test, compiles with all optimisations what runs for longer than that takes; decorates functions."""
    before, compiler.get_compile_options = compiler.get_compile_options, _default
    try:
        yield
    finally:
        compiler.get_compile_options = before


def flags() -> str:
    """XLA_FLAGS for a process that a test starts, to compile as the test does."""
    quick = compiler.get_compile_options is _quick
    return "".join(f" --{name}={str(value).lower()}" for name, value in OPTIONS.items()) if quick else ""


compiler.get_compile_options = _quick  # of the arrays that modules make when they are collected
