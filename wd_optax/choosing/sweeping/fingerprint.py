"""A hash of a traced function: of its equations and of every array in them; and the host calls it can't cover."""

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from wd_optax.dtypes import is_random_key

if TYPE_CHECKING:  # importing it loads Pallas
    from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Primitives that call host code, which isn't part of the traced program.
HOST_CALLS = {"pure_callback", "io_callback", "ffi_call"}

NOISE = re.compile(r"0x[0-9a-f]+|np_printoptions=.*")  # memory addresses, and the print options of `debug.print`


def fingerprint(closed: "ClosedJaxpr", metrics: dict[str, jax.ShapeDtypeStruct]) -> str:
    """Hashes the types of the metrics, the jaxpr's text, and every array in it and in its inner jaxprs.

    Example: arrays that the function closes over are part of it.
      >>> import jax, numpy as np
      >>> from wd_optax.choosing.sweeping.fingerprint import fingerprint
      >>> prints = [fingerprint(jax.make_jaxpr(lambda x: x + np.arange(3.0) * k)(1.0), {}) for k in (1, 1, 2)]
      >>> prints[0] == prints[1], prints[0] == prints[2]
      (True, False)

    """
    digest = hashlib.sha256(str(metrics).encode())
    for jaxpr in [closed.jaxpr, *inner_jaxprs(closed.jaxpr)]:
        digest.update(NOISE.sub("", str(jaxpr)).encode())
    for array in [*closed.consts, *_inner_arrays(closed.jaxpr)]:
        digest.update(_content(array))
    return digest.hexdigest()


def host_calls(jaxpr: "Jaxpr") -> list[str]:
    """The calls of host code, such as "pure_callback of sample". `jax.debug` isn't one: it can't change a number.

    Example:
      >>> import jax
      >>> from wd_optax.choosing.sweeping.fingerprint import host_calls
      >>> def sample(x):
      ...     return x
      >>> host_calls(jax.make_jaxpr(lambda x: jax.pure_callback(sample, x, x))(1.0).jaxpr)
      ['pure_callback of sample']

    """
    found = [e for j in (jaxpr, *inner_jaxprs(jaxpr)) for e in j.eqns if e.primitive.name in HOST_CALLS]
    return sorted({f"{e.primitive.name} of {_callback_name(e.params)}" for e in found})


def _callback_name(params: dict[str, Any]) -> str:
    function = getattr(params.get("callback"), "callback_func", params.get("callback"))
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    wrapped = [cell for cell in cells if callable(cell)]  # JAX may wrap the user's function in one of its own
    function = wrapped[0] if getattr(function, "__module__", "").startswith("jax.") and wrapped else function
    return str(params.get("target_name") or getattr(function, "__name__", function))


def inner_jaxprs(jaxpr: "Jaxpr") -> Iterator["Jaxpr"]:
    """The jaxprs in its equations, at any depth: jitted functions, bodies of scans, kernels."""
    for equation in jaxpr.eqns:
        for found in _params(equation):
            if _is_jaxpr(found):
                found = getattr(found, "jaxpr", found)
                yield found
                yield from inner_jaxprs(found)


def _inner_arrays(jaxpr: "Jaxpr") -> Iterator[Any]:
    """Literals, array parameters and constants of inner jaxprs, at any depth. The jaxpr's text abbreviates arrays."""
    from jax.extend import core  # it loads Pallas

    for equation in jaxpr.eqns:
        yield from (var.val for var in equation.invars if isinstance(var, core.Literal))
        for found in _params(equation):
            if _is_jaxpr(found):
                yield from getattr(found, "consts", ())
                yield from _inner_arrays(getattr(found, "jaxpr", found))
            elif isinstance(found, (np.ndarray, jax.Array)):
                yield found


def _params(equation: "JaxprEqn") -> list[Any]:
    return jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)


def _is_jaxpr(x: Any) -> bool:
    from jax.extend import core

    return isinstance(x, (core.Jaxpr, core.ClosedJaxpr))


def _content(x: Any) -> bytes:
    kind = str(jax.random.key_impl(x)) if is_random_key(x) else ""
    array = np.asarray(jax.random.key_data(x) if is_random_key(x) else x)
    return f"{kind}{array.dtype}{array.shape}".encode() + array.tobytes()
