"""The user's function, traced once for each static value: its jaxpr, its metrics, its fingerprint."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wd_optax.choosing.sweeping import fingerprint, grid


class TracedRun(NamedTuple):
    """One run as a jaxpr, from the traced hyperparameters (sorted by name) and a key."""

    jaxpr: Any
    consts: list[Any]  # arrays that `train` closes over
    metrics: dict[str, jax.ShapeDtypeStruct]  # sorted by name
    fingerprint: str
    host_calls: list[str]  # what the fingerprint doesn't cover

    def call(self, consts: list[Any], hparams: dict[str, jax.Array], seed: jax.Array) -> dict[str, jax.Array]:
        """One run."""
        from jax.extend import core  # it loads Pallas

        leaves = jax.tree.leaves((hparams, key_of(seed)))
        out = core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, consts))(*leaves)
        return dict(zip(self.metrics, out, strict=True))


def trace(train: Callable[..., Any], program: grid.Program) -> TracedRun:
    """Traces `train` with the program's static values.

    Raises:
      TypeError: for what isn't a dict of real arrays, or a hyperparameter that doesn't trace, by name.
      ValueError: for a metric's name that an axis or the dataset has already.

    Example:
      >>> from wd_optax.choosing.sweeping import grid, trace
      >>> (program,) = grid.make({"x": [1.0, 2.0]}, seeds=1).programs()
      >>> traced.trace(lambda hparams, key: {"y": hparams["x"] ** 2}, program).metrics
      {'y': ShapeDtypeStruct(shape=(), dtype=float32)}

    """

    def run(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        return _metrics(train({**program.static, **hparams}, key), {*program.static, *program.traced})

    numbers = {name: jax.ShapeDtypeStruct((), values.dtype) for name, values in program.traced.items()}
    key = jax.eval_shape(key_of, 0)
    try:
        closed, metrics = jax.make_jaxpr(run, return_shape=True)(numbers, key)
    except TypeError as error:
        culprits = _culprits(run, program, key)
        if not culprits:
            raise
        values = dict.fromkeys(program.traced[culprits[0]].tolist())
        raise TypeError(
            f"train uses {' and '.join(map(repr, culprits))} where JAX needs a fixed value ({type(error).__name__}); "
            f"name its values, one compilation each: axes[{culprits[0]!r}]={ {f'{v:g}': v for v in values} }"
        ) from error
    return TracedRun(
        closed.jaxpr,
        closed.consts,
        metrics,
        fingerprint.fingerprint(closed, metrics),
        fingerprint.host_calls(closed.jaxpr),
    )


def _metrics(out: Any, taken: set[str]) -> dict[str, jax.Array]:
    """What train returned, checked."""
    if not isinstance(out, dict) or not out or not all(isinstance(name, str) for name in out):
        raise TypeError(f"train must return a dict of metrics such as {{'loss': loss}}, got {out!r}")
    arrays = {}
    for name, value in out.items():
        try:
            arrays[name] = jnp.asarray(value)
        except (TypeError, ValueError):
            raise TypeError(f"train returned {name!r}: {value!r}, which isn't an array") from None
        if not arrays[name].size:
            raise TypeError(f"train returned {name!r} of shape {arrays[name].shape}, without a number: leave it out")
        dtype = arrays[name].dtype
        if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, bool)) or jnp.issubdtype(
            dtype, jnp.complexfloating
        ):
            raise TypeError(f"train returned {name!r} of type {dtype}: return real numbers")
    dims = {dim for name, array in arrays.items() for dim in dims_of(name, array)}
    for name in {*arrays, *dims}:
        if name in taken or name in grid.RESERVED or (name in arrays and name in dims):
            raise ValueError(f"train returned {name!r}, a name that the dataset has already: give it another")
    return arrays


def dims_of(name: str, array: Any) -> list[str]:
    """The dimensions of a curve: loss_0, loss_1, and so on."""
    return [f"{name}_{i}" for i in range(len(array.shape))]


def _culprits(run: Callable[..., Any], program: grid.Program, key: Any) -> list[str]:
    """Hyperparameters that must be static: tracing fails unless they are fixed. Empty if it fails anyhow."""
    first = {name: values[0] for name, values in program.traced.items()}

    def works(*free: str) -> bool:
        fixed = {name: value for name, value in first.items() if name not in free}
        try:
            jax.eval_shape(lambda hparams, key: run(fixed | hparams, key), {n: first[n] for n in free}, key)
        except Exception:
            return False
        return True

    return [name for name in first if not works(name)] if works() else []


def key_of(seed: Any) -> jax.Array:
    """A seed's key, of the kind that is the same alone and under `vmap`, whatever JAX's default is."""
    return jax.random.key(seed, impl="threefry2x32")
