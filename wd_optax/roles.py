"""What a parameter is, read off its path: weight, embedding, bias, norm or other.

Paths are written as `attn/query/kernel`, whatever container holds the leaf: dict, FrozenDict,
`nnx.State`, an Equinox module, a dataclass, a list. The name decides first and the rank second,
because ranks lie: attention biases are `(heads, head_dim)`, and layers stacked by `scan` or
`vmap` have two-dimensional norm scales.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Role = str  # "weight" | "embedding" | "bias" | "norm" | "other"
DECAYING_ROLES = ("weight", "embedding")


class Parameter(NamedTuple):
    """One leaf of a parameter tree."""

    path: str  # normalised, components joined by "/"
    shape: tuple[int, ...]
    dtype: Any
    role: Role
    reason: str  # what decided the role


def _component(entry: Any) -> str:
    """The bare name in a key-path entry: dict key, sequence index, attribute or flat index."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def flatten(tree: Any) -> tuple[list[tuple[str, Any]], list[str]]:
    """The leaves of `tree` as `(path, leaf)`, in JAX's order, and the paths that are masked out.

    The `.value` that wraps each array of an `nnx.State` is dropped, so that a state, its pure
    form and a dict of arrays have the same paths. Masked out is what `optax.masked` and
    `optax.partition` hide behind `optax.MaskedNode`.
    """
    is_masked = lambda x: isinstance(x, optax.MaskedNode)
    entries = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_masked)[0]
    children = collections.Counter(path[:-1] for path, _ in entries)
    leaves, masked = [], []
    for path, leaf in entries:
        wrapper = jax.tree_util.GetAttrKey("value")  # of an nnx.Variable: an only child
        if len(path) > 1 and path[-1] == wrapper and children[path[:-1]] == 1:
            path = path[:-1]
        name = "/".join(map(_component, path))
        if is_masked(leaf):
            masked.append(name)
        else:
            leaves.append((name, leaf))
    return leaves, masked


# A leading (?<![a-z]) and a trailing (?![a-z]) keep words apart: "norm" is not found in "normal_dense".
_BIAS = re.compile(r"(?<![a-z])(?:bias|biases|beta|offset|shift)(?![a-z])")
_SHORT_BIAS = re.compile(r"^b(?:\d+|_[A-Za-z0-9]+)?$")  # b, b1, b_Q; "B" is a state-space matrix
_SCALE = re.compile(r"(?<![a-z])(?:scales?|gamma(?:_?\d+)?|gain|weight_g|g)$|^ls\d+$")
_NORM = re.compile(
    r"norm(?:s|alization|alisation)?\d*[a-z]?(?![a-z])|(?<![a-z])(?:ln|bn|gn|rms)f?(?![a-z])|layer_?scale|^ls\d+$"
)
_EMBEDDING = re.compile(r"embed|(?<![a-z])(?:wte|wpe|emb|codebook)(?![a-z])")
_TOKEN = re.compile(
    r"(?<![a-z])(?:cls|tokens?|temperature|temp|tau)$|^(?:a_log|log_a|d_skip)$"
)  # the last: state spaces
_KERNEL = re.compile(r"^w\d*$|^w_")
_WEIGHT = re.compile(r"weights?(?![a-z])")


class _Leaf(NamedTuple):
    name: str  # as written, "" for the elements of a list
    parent: str  # the nearest component with a name, lower case
    shape: tuple[int, ...]
    bias_shape: tuple[int, ...] | None  # of the leaf `bias` beside it


def _decide(leaf: _Leaf) -> tuple[Role, str]:
    """Role and reason: by the leaf's own name, else by the layer that holds it, else by its rank."""
    return _by_name(leaf) or _by_layer(leaf) or _by_rank(leaf)


def _by_name(leaf: _Leaf) -> tuple[Role, str] | None:
    name, rank = leaf.name.lower(), len(leaf.shape)
    reason = f"named {leaf.name!r}"
    if rank >= 2 and ("lora" in name or ("lora" in leaf.parent and name in ("a", "b"))):
        return "weight", f"{reason}: LoRA"
    if _EMBEDDING.search(name):
        return ("embedding", reason) if rank >= 2 else ("other", f"{reason}: rank {rank} is no table")
    if _BIAS.search(name) or _SHORT_BIAS.search(leaf.name):
        return "bias", reason
    if _TOKEN.search(name):
        return "other", reason
    if _SCALE.search(name):
        return ("norm", reason) if rank else ("other", f"{reason}: a scalar")
    if name.endswith("kernel") or (_KERNEL.search(name) and not _NORM.search(leaf.parent)):
        return "weight", reason
    return None


def _by_layer(leaf: _Leaf) -> tuple[Role, str] | None:
    reason = f"in {leaf.parent!r}"
    if not leaf.name and (_BIAS.search(leaf.parent) or _SHORT_BIAS.search(leaf.parent)):
        return "bias", reason
    # A norm's scale has the shape of its bias; a `weight` whose bias is smaller is a matrix, whatever holds it.
    matrix = _WEIGHT.search(leaf.name.lower()) and leaf.bias_shape not in (None, leaf.shape)
    if _NORM.search(leaf.parent) and not matrix:
        return "norm", reason
    if _EMBEDDING.search(leaf.parent) and len(leaf.shape) >= 2:
        return "embedding", reason
    return None


def _by_rank(leaf: _Leaf) -> tuple[Role, str]:
    rank = len(leaf.shape)
    if not _WEIGHT.search(leaf.name.lower()):
        return ("weight", f"rank {rank}") if rank >= 2 else ("other", f"rank {rank}, no telling name")
    if rank and leaf.shape == leaf.bias_shape:
        return "norm", "same shape as the bias beside it"
    return ("weight", f"named {leaf.name!r}") if rank >= 2 else ("norm", f"{leaf.name!r} of rank {rank}")


def parameters(params: Any) -> list[Parameter]:
    """Every leaf of `params` with its role, in JAX's order.

    Args:
      params: a tree of arrays or of `jax.ShapeDtypeStruct`s.

    Returns:
      One `Parameter` per leaf. Leaves that are not floating point or complex are "other".
    """
    return list(iterate(params))


def iterate(params: Any) -> Iterator[Parameter]:
    """`parameters`, one by one, for who needs only the first."""
    leaves = flatten(params)[0]
    shapes = {path: tuple(jnp.shape(leaf)) for path, leaf in leaves}
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        *layers, name = path.split("/")
        named = [layer for layer in layers if not layer.isdigit()]
        bias_shape = shapes.get("/".join([*layers, "bias"]))
        about = _Leaf("" if name.isdigit() else name, named[-1].lower() if named else "", shapes[path], bias_shape)
        if not jnp.issubdtype(dtype, jnp.inexact):
            role, reason = "other", f"{dtype} is not trained"
        else:
            role, reason = _decide(about) if path else ("weight", "the only parameter")
        yield Parameter(path, shapes[path], dtype, role, reason)


def unwrap(params: Any) -> Any:
    """`params` with every node that only wraps one array in `.value` (an `nnx.Variable`) replaced by it."""

    def child(node: Any) -> tuple[Any, ...]:
        try:
            return tuple(jax.tree_util.default_registry.flatten_one_level_with_keys(node)[0])
        except (ValueError, TypeError):
            return ()

    def wraps(node: Any) -> bool:
        children = child(node)
        return len(children) == 1 and children[0][0] == jax.tree_util.GetAttrKey("value")

    return jax.tree.map(lambda x: child(x)[0][1] if wraps(x) else x, params, is_leaf=wraps)
