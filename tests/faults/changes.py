"""Calls that differ in one thing from the call that made the folder: they are refused by name and change nothing."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import wd_optax as wd
from wd_optax.choosing.sweeping import identity

from . import sweeps

DATA = np.arange(4, dtype=np.float32)
AXES = {"x": [1.0, 2.0], "y": [0.5, 0.25], "kind": ["a", "b"], "size": {"s": 2, "l": 3}}


def make(
    data: Any = DATA, factor: float = 2.0, metric: str = "m", dtype: Any = jnp.float32, inner: Any = jnp.sin
) -> Any:
    """A training function that closes over data."""
    nested = jax.jit(lambda x: (x * data).sum())

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        scale = {"a": 1.0, "b": -1.0}[hparams["kind"]] * hparams["size"]
        out = inner(nested(hparams["x"]) * scale - factor * hparams["y"]) + jax.random.uniform(key)
        return {metric: out.astype(dtype), "flag": jnp.ones((2,), bool)}

    return train


def base() -> dict[str, Any]:
    """The call that made the folder."""
    return {"train": make(), "axes": dict(AXES), "seeds": 2, "chunk": 4}


def call(options: dict[str, Any], folder: pathlib.Path) -> Any:
    """The dataset's bits."""
    return sweeps.bits(wd.sweep(directory=folder, progress=False, **options).data)


def order(*names: str) -> dict[str, Any]:
    """Another order of the axes."""
    return {"axes": {name: AXES[name] for name in names}}


def axes(**changed: Any) -> dict[str, Any]:
    """Other axes."""
    return {"axes": AXES | changed}


def host(x: Any) -> Any:
    """Runs on the host, outside of the traced program."""
    return jax.pure_callback(np.sin, x, x)


# {change: (options of the call, what the error must name)}
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "two traced axes swapped": (order("y", "x", "kind", "size"), "axes: ['x', 'y', 'kind', 'size'] there"),
    "two static axes swapped": (order("x", "y", "size", "kind"), "axes: ['x', 'y', 'kind', 'size'] there"),
    "a traced and a static axis swapped": (order("kind", "y", "x", "size"), "axes: "),
    "values of an axis in another order": (axes(x=[2.0, 1.0]), "axes.x: [1.0, 2.0] there, [2.0, 1.0] here"),
    "another value": (axes(x=[1.0, 3.0]), "axes.x: "),
    "a value that differs in the last bit": (axes(x=[1.0, float(np.nextafter(2, 3))]), "axes.x: "),
    "one value more": (axes(x=[1.0, 2.0, 3.0]), "axes.x: "),
    "one value less": (axes(x=[1.0]), "axes.x: "),
    "integers for floats": (axes(x=[1, 2]), "axes.x: "),
    "a traced axis made static": (axes(x={"1.0": 1.0, "2.0": 2.0}), "axes.x"),
    "labels in another order": (axes(kind=["b", "a"]), "axes.kind: "),
    "labels swapped": (axes(size={"s": 3, "l": 2}), "train."),
    "another value of a label": (axes(size={"s": 2, "l": 4}), "train."),
    "an axis more": (axes(z=[1.0]), "axes.z: nothing there"),
    "other seeds": ({"seeds": [0, 7]}, "seeds: [0, 1] there, [0, 7] here"),
    "seeds in another order": ({"seeds": [1, 0]}, "seeds: "),
    "one seed more": ({"seeds": 3}, "seeds: "),
    "another chunk": ({"chunk": 8}, "chunk: "),
    "code": ({"train": make(inner=jnp.cos)}, "train."),
    "a constant in the code": ({"train": make(factor=2.5)}, "train."),
    "a constant's last bit": ({"train": make(factor=float(np.nextafter(np.float32(2), np.float32(3))))}, "train."),
    "data that it closes over": ({"train": make(data=DATA + 1)}, "train."),
    "one entry of the data": ({"train": make(data=np.array([0, 1, 2, 3.0000002], np.float32))}, "train."),
    "the data's type": ({"train": make(data=DATA.astype(np.float16).astype(np.int32))}, "train."),
    "a metric's name": ({"train": make(metric="n")}, "metrics."),
    "a metric's type": ({"train": make(dtype=jnp.float16)}, "train."),
    "a callback to the host": ({"train": make(inner=host)}, "pure_callback of sin"),
}
# Settings that are changed around the call; None negates a flag.
SETTINGS: dict[str, Any] = {
    "jax_threefry_partitionable": False,
    "jax_default_matmul_precision": "highest",
    "jax_default_prng_impl": "rbg",
    "jax_enable_x64": True,
    "jax_random_seed_offset": 1,
    "jax_softmax_custom_jvp": None,
    "jax_disable_most_optimizations": True,
    "jax_use_direct_linearize": None,
    "jax_optimization_level": "O0",
}
VERSIONS = ("jax", "jaxlib", "numpy")
AROUND = [
    *(f"setting {name}" for name in SETTINGS),
    *(f"version of {name}" for name in VERSIONS),
    "version of wd_optax",
    "version of Python",
    "kind of machine",
    "XLA_FLAGS",
]
KINDS = [kind for i in range(5) for kind in [*OPTIONS, *AROUND][i::5]]  # mixed, so that the first few are of all sorts


def changed(seed: int, folder: pathlib.Path) -> str:
    """Makes one change, then the unchanged call, which must find everything as it was."""
    kind = KINDS[seed % len(KINDS)]
    options, name = OPTIONS.get(kind, ({}, ""))
    before = call(base(), folder)
    files = sweeps.chunks(folder)
    try:
        with around(kind) as named:
            call(base() | options, folder)
        return f"ACCEPTED WRONG: {kind}"
    except (ValueError, TypeError) as error:
        if (name or named) not in str(error):
            return f"ERROR: {kind}: not named in: {error}"
    if sweeps.chunks(folder) != files or call(base(), folder) != before:
        return f"LOST: {kind}"
    return "refused by name, folder as it was"


@contextlib.contextmanager
def around(kind: str) -> Iterator[str]:
    """Makes a change around the call; yields what its error must name."""
    subject = kind.split()[-1]
    with contextlib.ExitStack() as stack:
        if subject in SETTINGS:
            old, new = jax.config.values[subject], SETTINGS[subject]
            jax.config.update(subject, not old if new is None else new)
            stack.callback(jax.config.update, subject, old.name if hasattr(old, "name") else old)
            yield "settings." + subject
        elif subject in VERSIONS:
            real = importlib.metadata.version
            version = lambda name: "0.0" if name == subject else real(name)
            stack.enter_context(replaced(importlib.metadata, "version", version))
            yield "versions." + subject
        elif subject == "wd_optax":
            stack.enter_context(replaced(identity, "__version__", "0.0"))
            yield "versions.wd_optax"
        elif subject == "Python":
            stack.enter_context(replaced(platform, "python_version_tuple", lambda: ("3", "0", "1")))
            yield "versions.python"
        elif subject == "machine":
            stack.enter_context(replaced(platform, "machine", lambda: "abacus"))
            yield "device"
        elif subject == "XLA_FLAGS":
            flags = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}
            stack.enter_context(replaced(os, "environ", os.environ | flags))
            yield "settings.XLA_FLAGS"
        else:
            yield ""


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute for the duration of a `with` block."""
    old = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, old)
