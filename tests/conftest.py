"""Eight host devices; strict promotion of dtypes and ranks wherever Optax itself allows it.

Many tests compile the same small programs: all workers of a run share a compilation cache, which goes with the run
(`make test-fast` keeps it). A run ends with a list of the tests that took long and aren't marked `slow`.
"""

import functools
import gc
import itertools
import os
import tempfile
import time
import types
import zlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory()  # deleted with this process, the first of the run
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # lowering is quicker without pytest's long stacks

import cpu_only
import jax
import pytest
import quick_compile
from _pytest import unraisableexception
from jax._src import compilation_cache, lru_cache
from jax._src.interpreters import mlir

from wd_optax.choosing.sweeping.execute import Executor

gc.disable()  # until the tests are collected, for nearly all that is made stays
collect_ignore = ["faults", "goldens"]  # no tests: `make faults`, and generators, which need other frameworks
LONG = 4.0  # seconds of CPU time, which other programs of the machine don't change much

# JAX makes an MLIR context for each program, which takes a third of the tracing and lowering of a small one. Here 500
# programs share one, which keeps their constants; a program that is made while another is lowered has its own.
_make_context, _programs = mlir.make_ir_context, itertools.count()
_shared = functools.lru_cache(maxsize=1)(lambda _: _make_context())


def _context():
    try:
        lowering = mlir.ir.Context.current  # None outside of a lowering, where older releases raise
    except ValueError:
        lowering = None
    return _make_context() if lowering else _shared(next(_programs) // 500)


mlir.make_ir_context = _context


class _Files(lru_cache.LRUCache):
    """JAX's files of compiled programs, read and written at once: half of their time goes to paths and compression."""

    def get(self, key):
        try:
            with open(f"{self.path}/{key}-cache", "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def put(self, key, value):
        with open(f"{self.path}/{key}.{os.getpid()}", "wb") as file:
            file.write(value)
        os.replace(file.name, f"{self.path}/{key}-cache")  # no other worker reads half of it


compilation_cache.get_file_cache = lambda path: (_Files(path, max_size=-1), path)
compilation_cache.reset_cache()  # quick_compile has compiled, with JAX's own
compilation_cache.zlib = types.SimpleNamespace(compress=lambda x: zlib.compress(x, 0), decompress=zlib.decompress)

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    with jax.numpy_dtype_promotion("standard" if request.node.get_closest_marker("optax_promotes") else "strict"):
        yield


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def compiled(monkeypatch):
    """The widths that sweeps and searches compile."""
    widths, real = [], Executor.compile
    monkeypatch.setattr(Executor, "compile", lambda self, width: widths.append(width) or real(self, width))
    return widths


def pytest_configure(config):
    if key := getattr(unraisableexception, "gc_collect_iterations_key", None):  # not in the oldest pytest
        config.stash[key] = 1  # collections of garbage at the end: five take 2 seconds


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        cpu_only.mark(item)
    items.sort(key=lambda item: not quick_compile.is_quick(item))  # a worker changes the way once


def pytest_collection_finish():
    gc.freeze()  # half a million objects of libraries and tests that stay: no collection looks at them
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    quick_compile.switch(item)  # before the fixtures


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    start = time.process_time()
    result = yield
    if (spent := time.process_time() - start) > LONG and not item.get_closest_marker("slow"):
        item.user_properties.append(("unmarked", f"{spent:.0f} s"))
    return result


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and (spent := dict(report.user_properties).get("unmarked")):
            terminalreporter.write_line(f"{spent} of CPU time, and not marked slow: {report.nodeid}")
