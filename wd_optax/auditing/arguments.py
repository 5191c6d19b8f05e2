"""Unpacks what is passed to an audit: an optimizer and a tree of arrays, from the objects of several frameworks."""

import sys
from typing import Any

import jax
import numpy as np
import optax

USAGE = "wd.audit(optimizer, params)"


def unpack(optimizer: Any, params: Any) -> tuple[optax.GradientTransformation, optax.Params]:
    """The Optax transformation and the tree of parameters.

    Args:
      optimizer: a transformation, or an object that has one as `tx`: an `nnx.Optimizer` or a Flax `TrainState`.
      params: a tree of arrays or of `jax.ShapeDtypeStruct`s, an NNX or Equinox module, or a `TrainState`.

    Returns:
      The transformation and a tree of arrays, numbers and `jax.ShapeDtypeStruct`s, without functions.

    Raises:
      TypeError: for anything else, with the correct call.

    """
    if not is_optimizer(getattr(optimizer, "tx", optimizer)) and is_optimizer(getattr(params, "tx", params)):
        raise TypeError(f"optimizer and params are the wrong way round: {USAGE}")
    wrt = getattr(optimizer, "wrt", None)
    tx = getattr(optimizer, "tx", optimizer)
    if not is_optimizer(tx):
        raise TypeError(f"optimizer is {_described(optimizer)}, {_instead_of_optimizer(optimizer)}")
    return tx, _parameters(params, wrt)


def is_optimizer(x: Any) -> bool:
    """Whether `x` has the two functions of an Optax transformation."""
    return not isinstance(x, type) and all(callable(getattr(x, name, None)) for name in ("init", "update"))


def _instead_of_optimizer(x: Any) -> str:
    if isinstance(x, type) and _is_from(x, "flax.nnx"):
        return f"a class: pass an instance, wd.audit(nnx.Optimizer(model, tx, wrt=nnx.Param), model), or {USAGE}"
    if callable(x):
        return "a function that makes one: call it first, as in wd.audit(optax.adam(1e-3), params)"
    return f"not an Optax transformation: {USAGE}"


def _parameters(params: Any, wrt: Any) -> optax.Params:
    if is_optimizer(params) or params is None:
        raise TypeError(f"params is {'None' if params is None else f'an optimizer, {_described(params)}'}: {USAGE}")
    if _is_from(params, "flax.linen") and not isinstance(params, type):
        raise TypeError(
            f"params is {_described(params)}, which holds no parameters: "
            "pass jax.eval_shape(model.init, key, x)['params']"
        )
    if isinstance(params, type) or (callable(params) and _is_single_leaf(params)):
        raise TypeError(
            f"params is {_described(params)}, a function or class: pass its parameters, such as "
            "jax.eval_shape(model.init, key, x), or the model itself if it is an NNX or Equinox module"
        )
    if hasattr(params, "tx") and hasattr(params, "params"):  # a TrainState
        return params.params
    nnx = sys.modules.get("flax.nnx")  # imported already if `params` is one of its modules
    if nnx is not None and isinstance(params, nnx.Module):
        return nnx.state(params, nnx.Param if wrt is None else wrt)
    return _only_arrays(params, numbers=not _is_from(params, "equinox"))


def _only_arrays(tree: Any, numbers: bool) -> optax.Params:
    """Replaces functions, such as activations, by None; in an Equinox module everything but arrays."""
    kinds = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct, *((bool, int, float, complex) if numbers else ()))

    def only(path: Any, x: Any) -> Any:
        if isinstance(x, kinds):
            return x
        if callable(x) or not numbers:
            return None
        where = jax.tree_util.keystr(path) or "the whole tree"
        raise TypeError(f"params: {where} is {_described(x)}: pass a tree of arrays or jax.ShapeDtypeStructs; {USAGE}")

    return jax.tree_util.tree_map_with_path(only, tree)


def _is_from(x: Any, *packages: str) -> bool:
    """Whether one of its base classes is from one of these packages, none of which needs to be installed."""
    ancestors = x.__mro__ if isinstance(x, type) else type(x).__mro__
    return any(f"{base.__module__}.".startswith(f"{package}.") for base in ancestors for package in packages)


def _is_single_leaf(x: Any) -> bool:
    return bool(jax.tree_util.treedef_is_leaf(jax.tree.structure(x)))


def _described(x: Any) -> str:
    return repr(x.__name__ if isinstance(x, type) or hasattr(x, "__name__") else type(x).__name__)
