"""One run of the user's function, traced once per static group: its jaxpr, metrics and fingerprint."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from wd_optax.choosing.sweeping.fingerprint import fingerprint, host_calls
from wd_optax.choosing.sweeping.grid import RESERVED, StaticGroup

if TYPE_CHECKING:  # importing it loads Pallas
    from jax.extend.core import Jaxpr


class TrainFunction(Protocol):
    """A training run as a pure function."""

    def __call__(self, hparams: dict[str, Any], key: jax.Array, /) -> Mapping[str, jax.typing.ArrayLike]:
        """Returns {metric: number or array} for hyperparameters and a random key."""


class TracedRun(NamedTuple):
    """One run as a jaxpr, a function of the traced hyperparameters (sorted by name) and a key."""

    jaxpr: "Jaxpr"
    consts: list[Any]  # arrays that `train` closes over
    metrics: dict[str, jax.ShapeDtypeStruct]  # sorted by name
    fingerprint: str
    host_calls: list[str]  # not covered by the fingerprint

    def call(self, consts: list[Any], hparams: dict[str, jax.Array], seed: jax.Array) -> dict[str, jax.Array]:
        """Evaluates the run."""
        from jax.extend import core

        leaves = jax.tree.leaves((hparams, key_of(seed)))
        out = core.jaxpr_as_fun(core.ClosedJaxpr(self.jaxpr, consts))(*leaves)
        return dict(zip(self.metrics, out, strict=True))


def trace_run(train: TrainFunction, group: StaticGroup, make_static: str | None = None) -> TracedRun:
    """Traces `train` with the static values of the group; `make_static` says how a hyperparameter becomes static.

    Raises:
      TypeError: if it doesn't return a dict of real arrays, or needs a traced hyperparameter to be static, by name.
      ValueError: for a metric with the name of an axis or of another variable of the dataset.

    """

    def run(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        return _check_metrics(train({**group.static, **hparams}, key), {*group.static, *group.traced})

    hparams = {name: values[0] for name, values in group.traced.items()}
    key = jax.eval_shape(key_of, 0)
    try:
        closed, metrics = jax.make_jaxpr(run, return_shape=True)(hparams, key)
    except (TypeError, IndexError) as error:
        culprits = _must_be_static(run, hparams, key)
        if not culprits:
            raise
        values = dict.fromkeys(group.traced[culprits[0]].tolist())
        named = f"name its values, one compilation each: axes[{culprits[0]!r}]={ {f'{v:g}': v for v in values} }"
        raise TypeError(
            f"train uses {' and '.join(map(repr, culprits))} where JAX needs a fixed value ({type(error).__name__}); "
            + (make_static or named)
        ) from error
    return TracedRun(closed.jaxpr, closed.consts, metrics, fingerprint(closed, metrics), host_calls(closed.jaxpr))


def _check_metrics(out: Any, taken: set[str]) -> dict[str, jax.Array]:
    """Converts the result of `train` to arrays."""
    if not isinstance(out, dict) or not out or not all(isinstance(name, str) for name in out):
        raise TypeError(f"train must return a dict of metrics such as {{'loss': loss}}, got {out!r}")
    arrays = {name: _metric_array(name, value) for name, value in out.items()}
    dims = {dim for name, array in arrays.items() for dim in curve_dims(name, array.shape)}
    for name in {*arrays, *dims}:
        if name in taken or name in RESERVED or (name in arrays and name in dims):
            raise ValueError(f"train returned {name!r}, a name that the dataset has already: give it another")
    return arrays


def _metric_array(name: str, value: Any) -> jax.Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"train returned {name!r}: {value!r}, which isn't an array") from None
    if not array.size:
        raise TypeError(f"train returned {name!r} of shape {array.shape}, without a number: leave it out")
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, bool)):
        raise TypeError(f"train returned {name!r} of type {array.dtype}: return real numbers")
    return array


def curve_dims(name: str, shape: tuple[int, ...]) -> list[str]:
    """The names of a curve's own dimensions: loss_0, loss_1, and so on."""
    return [f"{name}_{i}" for i in range(len(shape))]


def _must_be_static(run: Callable[..., Any], hparams: dict[str, Any], key: Any) -> list[str]:
    """Hyperparameters that must be static: tracing fails unless they are fixed. Empty if it fails anyway."""

    def works(*free: str) -> bool:
        traced = {name: hparams[name] for name in free}
        try:
            jax.eval_shape(lambda traced, key: run(hparams | traced, key), traced, key)
        except Exception:
            return False
        return True

    return [name for name in hparams if not works(name)] if works() else []


def key_of(seed: Any) -> jax.Array:
    """The random key of a seed; threefry because its numbers are the same with and without `vmap`."""
    return jax.random.key(seed, impl="threefry2x32")
