"""A hash of a traced function: its equations, every array in them, and what can't be hashed, by name."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Python or library functions that run on the host: their code isn't part of the traced program.
HOST_CALLS = {"pure_callback", "io_callback", "ffi_call"}

NOISE = re.compile(r"0x[0-9a-f]+|np_printoptions=.*")  # addresses in memory, and how `debug.print` shows arrays


def fingerprint(closed: Any, metrics: dict[str, Any]) -> str:
    """A hash of the jaxpr's text, without addresses in memory, and of every array in it and in its functions.

    Args:
      closed: a `ClosedJaxpr`.
      metrics: {name: shape and dtype} of what it returns.

    Example: arrays count that the function closes over.
      >>> import jax, numpy as np
      >>> from wd_optax.choosing.sweeping.fingerprint import fingerprint
      >>> prints = [fingerprint(jax.make_jaxpr(lambda x: x + np.arange(3.0) * k)(1.0), {}) for k in (1, 1, 2)]
      >>> prints[0] == prints[1], prints[0] == prints[2]
      (True, False)

    """
    digest = hashlib.sha256(str(metrics).encode())
    for jaxpr in [closed.jaxpr, *inner(closed.jaxpr)]:
        digest.update(NOISE.sub("", str(jaxpr)).encode())
    for array in [*closed.consts, *_arrays(closed.jaxpr)]:
        digest.update(_content(array))
    return digest.hexdigest()


def host_calls(jaxpr: Any) -> list[str]:
    """What runs on the host and can't be hashed: "pure_callback of sample"; `debug` prints change no number.

    Example:
      >>> import jax
      >>> from wd_optax.choosing.sweeping.fingerprint import host_calls
      >>> def sample(x):
      ...     return x
      >>> host_calls(jax.make_jaxpr(lambda x: jax.pure_callback(sample, x, x))(1.0).jaxpr)
      ['pure_callback of sample']

    """
    found = [e for j in (jaxpr, *inner(jaxpr)) for e in j.eqns if e.primitive.name in HOST_CALLS]
    return sorted({f"{e.primitive.name} of {_name(e.params)}" for e in found})


def _name(params: dict[str, Any]) -> str:
    function = getattr(params.get("callback"), "callback_func", params.get("callback"))
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    wrapped = [cell for cell in cells if callable(cell)]  # JAX's own wrapper around the user's function
    function = wrapped[0] if getattr(function, "__module__", "").startswith("jax.") and wrapped else function
    return str(params.get("target_name") or getattr(function, "__name__", function))


def inner(jaxpr: Any) -> Iterator[Any]:
    """The jaxprs of functions that it calls: jitted ones, bodies of scans, kernels."""
    for equation in jaxpr.eqns:
        for found in _leaves(equation):
            if _is_jaxpr(found):
                found = getattr(found, "jaxpr", found)
                yield found
                yield from inner(found)


def _arrays(jaxpr: Any) -> Iterator[Any]:
    """Arrays inside of it, which its text may shorten: literals, parameters, and what inner functions close over."""
    from jax.extend import core  # it loads Pallas

    for equation in jaxpr.eqns:
        yield from (var.val for var in equation.invars if isinstance(var, core.Literal))
        for found in _leaves(equation):
            if _is_jaxpr(found):
                yield from getattr(found, "consts", ())
                yield from _arrays(getattr(found, "jaxpr", found))
            elif isinstance(found, (np.ndarray, jax.Array)):
                yield found


def _leaves(equation: Any) -> list[Any]:
    return jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)


def _is_jaxpr(x: Any) -> bool:
    from jax.extend import core

    return isinstance(x, (core.Jaxpr, core.ClosedJaxpr))


def is_key(x: Any) -> bool:
    """Whether it is an array of random keys."""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _content(x: Any) -> bytes:
    kind = str(jax.random.key_impl(x)) if is_key(x) else ""
    array = np.asarray(jax.random.key_data(x) if is_key(x) else x)
    return f"{kind}{array.dtype}{array.shape}".encode() + array.tobytes()
