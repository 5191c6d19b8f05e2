"""What a function that turns a PyTorch `state_dict` into parameters does to the entries of the tensors.

Moments can go through the same function if it only rearranges: every entry of a leaf is one entry of one tensor, used
once, or 0. Sums and products of weights mean something else for moments: for p′ = s·p the gradient is g/s.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.masking import roles

Convert = Callable[[dict[str, Any]], optax.Params]
BASE = 4096  # entries are numbered in two digits, each exact in float32


def convert_leaves(convert: Convert, tensors: Mapping[str, Any], params: optax.Params) -> list[Any]:
    """The leaves of `convert(tensors)` in the order of those of `params`.

    Raises:
      ValueError: where the paths or shapes differ from those of `params`, or `convert` wants another tensor.
    """
    try:
        made = dict(roles.flatten(convert(dict(tensors)))[0])
    except KeyError as error:
        raise ValueError(
            f"convert reads {error}, which isn't among {', '.join(map(repr, list(tensors)[:5]))}, ...: pass what it is "
            "made for, weights=model.state_dict()"
        ) from error
    found = roles.parameters(params)
    for path in [p.path for p in found if p.path not in made] + [x for x in made if x not in {p.path for p in found}]:
        where = "params, and convert makes none" if path not in made else "what convert makes, and params has none"
        raise ValueError(
            f"convert: {path!r} is a leaf of {where}: it must return a tree like params, such as "
            "convert=lambda state_dict: my_convert(state_dict)['params']"
        )
    for p in found:
        if (shape := tuple(np.shape(made[p.path]))) != p.shape:
            raise ValueError(f"convert makes {p.path!r} of shape {shape}, expected {p.shape} as in params")
    return [made[p.path] for p in found]


def origins(
    convert: Convert, tensors: Mapping[str, Any], params: optax.Params, tied: Mapping[str, str]
) -> dict[str, list[str]]:
    """Per path of `params`, the names of the tensors whose entries it has; checks that `convert` only rearranges.

    Args:
      convert: state_dict -> params.
      tensors: arrays, or tensors of torch, of the shapes and types that it takes.
      params: the tree that it makes.
      tied: names of tensors that are another one.

    Raises:
      ValueError: where an entry isn't one of the tensors' entries as it is, or one is used twice.
    """
    first, total = {}, 0
    for name in [name for name in tensors if name not in tied]:
        first[name] = total
        total += _entries_in(tensors[name])
    wide = all("float64" in str(x.dtype) for x in tensors.values() if "float" in str(x.dtype))

    def probe(value: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> list[Any]:
        """The leaves that are made of the values of the entries' numbers, which count from 1."""
        given = {}
        for name, x in tensors.items():
            at = first[tied.get(name, name)] + 1
            given[name] = like(x, value(np.arange(at, at + _entries_in(x))))
        return convert_leaves(convert, given, params)

    low, high, random = probe(lambda n: n % BASE), probe(lambda n: n // BASE), probe(lambda n: _noise(n, wide))
    used, names, edges, found = np.zeros(total + 1, bool), list(first), np.array([*first.values()]), {}
    for p, a, b, x in zip(roles.parameters(params), low, high, random, strict=True):
        number = (_float(b) * BASE + _float(a)).astype(np.int64).ravel()
        wanted = np.where(number > 0, _noise(number, wide), 0)
        if number.size and (number.min() < 0 or number.max() > total or not np.array_equal(_float(x).ravel(), wanted)):
            _refuse_convert(p.path, convert, tensors, params)
        number = number[number > 0]
        own = _which(edges, number)
        spans = [used[edges[i] + 1 : edges[i] + 1 + _entries_in(tensors[names[i]])] for i in own]
        before = sum(map(np.count_nonzero, spans))
        used[number] = True
        if sum(map(np.count_nonzero, spans)) < before + len(number):
            raise ValueError(
                f"convert uses an entry twice, the second time in {p.path!r}: in PyTorch the two are one weight, with "
                "one gradient and one moment; tie them in params, too"
            )
        found[p.path] = [names[i] for i in own]
    return found


def _entries_in(tensor: Any) -> int:
    return math.prod(tensor.shape)


def _which(edges: np.ndarray[Any, Any], number: np.ndarray[Any, Any]) -> list[int]:
    """The tensors that the entries are in."""
    if not number.size:
        return []
    ends = np.searchsorted(edges, [number.min(), number.max()], side="left") - 1
    if ends[0] == ends[1]:  # as of most leaves, and fast
        return [int(ends[0])]
    return [int(i) for i in np.unique(np.searchsorted(edges, number, side="left") - 1)]


def _noise(number: np.ndarray[Any, Any], wide: bool) -> np.ndarray[Any, Any]:
    """Random numbers in (0, 1) that use every bit of float32's mantissa, or of float64's: splitmix64 of the number."""
    x = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    bits = 53 if wide else 24
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(64 - bits) | np.uint64(1)) * 2.0**-bits


def like(tensor: Any, values: Any) -> Any:
    """`values` as what `tensor` is, an array or a tensor of torch: of its shape, in float32 or float64."""
    values = np.broadcast_to(values, tuple(tensor.shape)) if np.ndim(values) == 0 else np.reshape(values, tensor.shape)
    if hasattr(tensor, "new_tensor"):
        return (tensor.double() if "float64" in str(tensor.dtype) else tensor.float()).new_tensor(values)
    values = values.astype(np.float64 if tensor.dtype == np.float64 else np.float32)
    return jnp.asarray(values) if isinstance(tensor, jax.Array) else values


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """An array, or a tensor of torch, as a NumPy array."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if "bfloat16" in str(tensor.dtype) else tensor
    return np.asarray(tensor)


def _float(x: Any) -> np.ndarray[Any, Any]:
    return np.asarray(x).astype(np.float64)


def _refuse_convert(path: str, convert: Convert, tensors: Mapping[str, Any], params: optax.Params) -> NoReturn:
    """Raises with what `convert` does to a leaf besides rearranging."""
    at = [p.path for p in roles.parameters(params)].index(path)

    def of(value: float) -> np.ndarray[Any, Any]:
        leaf = convert_leaves(convert, {name: like(x, value) for name, x in tensors.items()}, params)[at]
        return _float(leaf).ravel()

    zero, one, two, fine = of(0.0), of(1.0), of(2.0), of(1 + 2.0**-20)
    if zero.any():
        what = f"adds {zero[zero != 0][0]:g}"
    elif not np.array_equal(two, 2 * one):
        what = "isn't linear"
    elif ((one != 0) & (one != 1)).any():
        what = f"multiplies by {one[(one != 0) & (one != 1)][0]:.6g} or adds entries up"
    elif np.array_equal(fine, one):
        what = "rounds"
    else:
        what = "mixes entries, or rounds"
    raise ValueError(
        f"convert {what} in {path!r}; the moments can go through it only if it rearranges entries and keeps their "
        "type: transposes, splits, stacks, reshapes. Cast params afterwards; float64 tensors need jax_enable_x64"
    )
