"""The role of a parameter, inferred from its path: weight, embedding, bias, norm or other.

The name decides first and the rank second, because ranks mislead: attention biases are `(heads, head_dim)`, and layers
stacked by `scan` or `vmap` have two-dimensional norm scales. Names are read word by word (`words`).
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp

from wd_optax.masking import paths, words
from wd_optax.masking.paths import flatten as flatten
from wd_optax.masking.paths import unwrap as unwrap

Role = Literal["weight", "embedding", "bias", "norm", "other"]
ROLES: tuple[Role, ...] = get_args(Role)
DECAYING_ROLES: tuple[Role, ...] = ("weight", "embedding")

# Why a role may be wrong: `Parameter.doubt`.
BY_RANK = "rank"  # the names say nothing
UNNAMED = "unnamed"  # there is no name: lists and tuples only
KEYLESS = "keyless"  # there is no name: a class registered without keys
HIDDEN = "hidden"  # only the shape of the bias distinguishes a stacked norm from a matrix, and the bias is masked out

Shape = tuple[int, ...]


class Parameter(NamedTuple):
    """One leaf of a parameter tree."""

    path: str  # normalised, components joined by "/"
    shape: Shape
    dtype: Any
    role: Role
    reason: str  # what decided the role
    doubt: str = ""  # one of the four above, or "" where a name decided


class _Leaf(NamedTuple):
    name: str  # as written; an element of a list has the list's name
    parent: str  # the nearest component above with a name
    shape: Shape
    siblings: dict[str, Shape | None]  # the leaves of the same layer; None for the shape of a hidden one
    in_list: bool
    may_be_stacked: bool  # no list of layers above it, or matrices with its first axis in the tree

    @property
    def axes(self) -> int:
        """How many axes are longer than 1: `cls` of shape (1, 1, d) is a vector."""
        return sum(n > 1 for n in self.shape)


_Decision = tuple[Role, str]


def parameters(params: Any) -> list[Parameter]:
    """Every leaf of `params` with its role, in JAX's order.

    Args:
      params: a tree of arrays or of `jax.ShapeDtypeStruct`s.

    Returns:
      One `Parameter` per leaf. Leaves that are not floating point or complex are "other".

    Raises:
      TypeError: where a leaf is no array.
      ValueError: where two leaves have one path.
    """
    return list(iterate(params))


def parameters_and_hidden(params: Any) -> tuple[list[Parameter], list[str]]:
    """`parameters`, and the paths that `optax.masked` or `optax.partition` hide."""
    leaves, hidden = paths.leaves(params)
    return list(_read(leaves, hidden)), hidden


def iterate(params: Any) -> Iterator[Parameter]:
    """Lazy version of `parameters`."""
    return _read(*paths.leaves(params))


def _read(leaves: list[paths.NamedLeaf], hidden: list[str]) -> Iterator[Parameter]:
    shapes = [_shape_of(leaf) for leaf in leaves]
    layers: dict[str, dict[str, Shape | None]] = defaultdict(dict)
    for path, shape in [*((h, None) for h in hidden), *((p.path, s) for p, s in zip(leaves, shapes, strict=True))]:
        layer, _, name = path.rpartition("/")
        layers[layer][name] = shape
    stacks = {shape[:1] for shape in shapes if len(shape) == 3}
    for i, leaf in enumerate(leaves):
        layer, _, name = leaf.path.rpartition("/")
        parts = leaf.path.split("/")
        named = ["", "", *(part for part in parts if not part.isdigit())]
        may_be_stacked = len(named) == len(parts) + 2 or shapes[i][:1] in stacks
        about = _Leaf(named[-1], named[-2], shapes[i], layers[layer], name.isdigit(), may_be_stacked)
        after = shapes[i + 1] if i + 1 < len(leaves) else None
        yield _parameter(leaf, about, after)


def _parameter(leaf: paths.NamedLeaf, about: _Leaf, after: Shape | None) -> Parameter:
    dtype = getattr(leaf.value, "dtype", None) or jnp.result_type(leaf.value)
    dtype = jnp.dtype(dtype) if isinstance(dtype, str) else dtype  # a Keras variable's

    def known(role: Role, reason: str, doubt: str = "") -> Parameter:
        return Parameter(leaf.path, about.shape, dtype, role, reason, doubt)

    if not jnp.issubdtype(dtype, jnp.inexact):
        return known("other", f"{dtype} is not trained")
    if not leaf.path:
        return known("weight", "the only parameter")
    if named := _by_name(about) or _by_layer(about):
        return known(*named)
    if about.in_list and len(about.shape) >= 2 and after == about.shape[-1:] and (about.axes >= 2 or after == (1,)):
        return known("weight", f"rank {len(about.shape)}, and its bias follows", KEYLESS if leaf.keyless else BY_RANK)
    role, reason = _by_rank(about)
    return known(role, reason, _doubt(about, role, leaf.keyless))


def _doubt(leaf: _Leaf, role: Role, keyless: bool) -> str:
    """Why a role that the rank decided may be wrong; one that doesn't decay is a harmless guess."""
    if role == "weight" and leaf.in_list:
        return KEYLESS if keyless else UNNAMED
    if role == "weight" and None in [leaf.siblings.get(b, ()) for b in words.biases_of(leaf.name)]:
        sure = len(leaf.shape) != 2 or not leaf.may_be_stacked or words.is_matrix_layer(leaf.parent)
        return "" if sure else HIDDEN
    return "" if words.contains_weight(leaf.name) and (leaf.parent or "bias" in leaf.siblings) else BY_RANK


def _by_name(leaf: _Leaf) -> _Decision | None:
    """By the last word of the leaf's name that says something."""
    reason = f"in {leaf.name!r}" if leaf.in_list else f"named {leaf.name!r}"
    kind, rank = words.of_leaf(leaf.name), len(leaf.shape)
    layer = words.of_layer(leaf.parent)
    if rank >= 2 and words.is_lora(leaf.parent, leaf.name):
        return "weight", f"{reason}: LoRA"
    if words.is_state_space(leaf.name, leaf.siblings):
        return "other", f"{reason}: state space"
    if kind == "bias" or _is_bias(leaf):
        return "bias", reason
    if kind == "embedding" and layer == "bias":
        return "bias", f"{reason}, in {leaf.parent!r}"
    if kind == "embedding":
        return _table_or_vector(leaf, reason)
    if kind == "token":
        return "other", reason
    if kind == "matrix" and leaf.parent == "scales" and not _is_matrix(leaf):
        return "norm", f"{reason} of {leaf.parent!r}"  # NNX's WeightNorm
    if kind in ("scale", "norm") and not _is_matrix(leaf):
        return ("norm", reason) if rank else ("other", f"{reason}: a scalar")
    if kind == "matrix" and (layer != "norm" or _is_matrix(leaf)):
        any_rank = words.is_kernel(leaf.name) and not leaf.in_list
        return ("weight", reason) if any_rank or leaf.axes >= 2 else None
    return None


def _by_layer(leaf: _Leaf) -> _Decision | None:
    """By the layer that holds it."""
    reason, kind = f"in {leaf.parent!r}", words.of_layer(leaf.parent)
    if kind == "embedding" and len(leaf.shape) >= 2:
        return _table_or_vector(leaf, reason)
    if _is_matrix(leaf):
        return None
    if kind == "norm":
        return "norm", reason
    roles: dict[str, Role] = {"bias": "bias", "scale": "norm", "token": "other"}
    return (roles[kind], reason) if kind in roles and words.is_plain(leaf.name) else None


def _table_or_vector(leaf: _Leaf, reason: str) -> _Decision:
    """A table of vectors decays; an embedding of one thing is a vector, as a token is."""
    one = words.is_one_vector(leaf.name) or math.prod(leaf.shape[:-1]) == 1
    return ("other", f"{reason}: one vector is no table") if one else ("embedding", reason)


def _by_rank(leaf: _Leaf) -> _Decision:
    if not words.contains_weight(leaf.name):
        return ("weight", f"rank {leaf.axes}") if leaf.axes >= 2 else ("other", f"rank {leaf.axes}, no telling name")
    if leaf.shape and leaf.shape == leaf.siblings.get("bias"):
        return "norm", "same shape as the bias beside it"
    rank = len(leaf.shape)
    return ("weight", f"named {leaf.name!r}") if rank >= 2 else ("norm", f"{leaf.name!r} of rank {rank}")


def _is_matrix(leaf: _Leaf) -> bool:
    """Whether the layer's bias has another shape: a norm's scale has that of its bias."""
    return any(leaf.siblings.get(bias) not in (None, leaf.shape) for bias in words.biases_of(leaf.name))


def _is_bias(leaf: _Leaf) -> bool:
    """Whether the layer has a weight that fits: `gating_b` has `gating_w`; `q_b` without `q_w` is a matrix."""
    partners = [leaf.siblings[name] for name in words.weights_of(leaf.name) if name in leaf.siblings]
    return any(shape is None or _fits(leaf.shape, shape) for shape in partners)


def _fits(bias: Shape, weight: Shape) -> bool:
    """Whether the bias's axes are the weight's first ones (of a stack) and last ones (outputs)."""
    cut = len(weight) - len(bias)
    return cut > 0 and any(bias == weight[:n] + weight[n + cut :] for n in range(len(bias) + 1))


def _shape_of(leaf: paths.NamedLeaf) -> Shape:
    if not hasattr(leaf.value, "shape") and not isinstance(leaf.value, bool | int | float | complex):
        what = f"params: {leaf.path!r}" if leaf.path else "params"
        short = f" {leaf.value!r}" if len(repr(leaf.value)) < 40 else ""
        raise TypeError(
            f"{what} is a {type(leaf.value).__name__}{short}, not an array: pass arrays only, such as "
            "model.init(key, inputs)['params'] of a Linen module, eqx.filter(model, eqx.is_inexact_array) of Equinox'"
        )
    return tuple(leaf.value.shape) if hasattr(leaf.value, "shape") else ()
