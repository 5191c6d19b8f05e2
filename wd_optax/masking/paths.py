"""The path of a leaf, in one spelling for every container.

A path is `attn/query/kernel`, whether the leaf is in a dict, a FrozenDict, an `nnx.State`, an Equinox module, a
dataclass or a list. Dotted keys and tuple keys are split, and nodes that only wrap one array (NNX variables, Haliax and
Penzai arrays) add nothing. A class that is registered without keys keeps the names of its attributes.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

_WRAPPERS = {"value", "array", "data_array"}  # of nnx.Variable, haliax.NamedArray, penzai's NamedArray
_DOTTED = re.compile(r"[\w~-]+(?:\.[\w~-]+)+")


class NamedLeaf(NamedTuple):
    """One leaf of a tree."""

    path: str  # components joined by "/"
    value: Any
    keyless: bool = False  # its last key is a child's number, because the class gives JAX no name


def leaves(tree: Any) -> tuple[list[NamedLeaf], list[str]]:
    """The leaves of `tree` in JAX's order, and the paths that `optax.masked` or `optax.partition` hide.

    Raises:
      ValueError: where two leaves have one path, as in {"a": {"b": x}, "a/b": y}.
    """
    entries = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_end)[0]
    if any(_needs_names(path, leaf) for path, leaf in entries):
        entries = list(_walk(tree, ()))
    found, masked = [], []
    for i, (path, leaf) in enumerate(entries):
        if leaf is None:
            continue
        # JAX flattens depth first, so other children of a node come right before or after.
        siblings = [entries[j][0] for j in (i - 1, i + 1) if 0 <= j < len(entries)]
        while len(path) > 1 and _wraps(path[-1]) and not any(other[: len(path) - 1] == path[:-1] for other in siblings):
            path = path[:-1]
        name = "/".join(map(_text, path))
        if is_masked(leaf):
            masked.append(name)
        else:
            found.append(NamedLeaf(name, leaf, bool(path) and isinstance(path[-1], FlattenedIndexKey)))
    _refuse_doubles([leaf.path for leaf in found] + masked)
    return found, masked


def flatten(tree: Any) -> tuple[list[tuple[str, Any]], list[str]]:
    """`leaves` as plain `(path, leaf)` pairs."""
    found, masked = leaves(tree)
    return [(leaf.path, leaf.value) for leaf in found], masked


def prefixes(path: str) -> list[str]:
    """`a/b` → a/b, a and the root."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), -1, -1)]


def unwrap(params: Any) -> Any:
    """`params` with every node that only wraps one array in `.value` (an `nnx.Variable`) replaced by it."""

    def wraps(node: Any) -> bool:
        children = _children(node)
        return len(children) == 1 and children[0][0] == GetAttrKey("value")

    return jax.tree.map(lambda x: _children(x)[0][1] if wraps(x) else x, params, is_leaf=wraps)


def is_masked(leaf: Any) -> bool:
    """Whether `optax.masked` or `optax.partition` has put a placeholder in place of a leaf."""
    return isinstance(leaf, optax.MaskedNode)


def _is_end(node: Any) -> bool:
    """None counts as a child: a layer without bias doesn't wrap its weight."""
    return node is None or is_masked(node)


@functools.lru_cache(maxsize=1 << 16)
def _text(entry: Any) -> str:
    """The bare names in a key-path entry: dict key, sequence index, attribute or flat index."""
    name = next((getattr(entry, a) for a in ("key", "idx", "name") if hasattr(entry, a)), entry)
    texts = [text for part in (name if isinstance(name, tuple) else (name,)) for text in str(part).split("/")]
    return "/".join(text.replace(".", "/") if _DOTTED.fullmatch(text) else text for text in texts)


def _wraps(entry: Any) -> bool:
    return isinstance(entry, FlattenedIndexKey) or (isinstance(entry, GetAttrKey) and entry.name in _WRAPPERS)


def _needs_names(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether it is below a class without keys, or has a name of its own that containers of mere indices don't show."""
    kinds = set(map(type, path))
    if FlattenedIndexKey in kinds or DictKey in kinds:
        return FlattenedIndexKey in kinds
    named = [entry for entry in path if not isinstance(entry, SequenceKey)]
    return all(map(_wraps, named)) and (len(named) > 0 or _own_name(leaf) is not None)


def _walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """`tree_flatten_with_path`, with the attribute names of classes that are registered without keys."""
    named = any(not isinstance(entry, SequenceKey) for entry in path)
    if not named and (own := _own_name(node)):
        path = (*path, GetAttrKey(own))
    if _is_end(node) or jax.tree_util.all_leaves([node]):
        yield path, node
        return
    for key, child in _named_children(node):
        yield from _walk(child, (*path, key))


def _children(node: Any) -> list[tuple[Any, Any]]:
    try:
        return list(jax.tree_util.default_registry.flatten_one_level_with_keys(node)[0])
    except (ValueError, TypeError):  # a leaf
        return []


def _named_children(node: Any) -> list[tuple[Any, Any]]:
    """The children; those without a key are found again among the node's items or attributes, by identity."""
    children = _children(node)
    if not any(isinstance(key, FlattenedIndexKey) for key, _ in children):
        return children
    if isinstance(node, Mapping) and _same_leaves(node):  # Haiku's FlatMap flattens as a dict does
        return _children({key: node[key] for key in node})
    names = collections.defaultdict(list)
    for name in _attributes(node):
        names[id(getattr(node, name, None))].append(name)
    return [(GetAttrKey(names[id(c)].pop(0)) if names[id(c)] else key, c) for key, c in children]


def _same_leaves(node: Mapping[Any, Any]) -> bool:
    mine, dicts = (jax.tree.leaves(x, is_leaf=_is_end) for x in (node, {key: node[key] for key in node}))
    return len(mine) == len(dicts) and all(a is b for a, b in zip(mine, dicts, strict=True))


def _attributes(node: Any) -> list[str]:
    if dataclasses.is_dataclass(node):
        return [field.name for field in dataclasses.fields(node)]
    return [*getattr(node, "__dict__", {}), *getattr(type(node), "__slots__", ())]


def _own_name(node: Any) -> str | None:
    """The name that a variable carries: `path` of Keras', `label` of Penzai's."""
    if not hasattr(node, "value"):
        return None
    names = (getattr(node, attribute, None) for attribute in ("path", "label"))
    return next((name for name in names if isinstance(name, str)), None)


def _refuse_doubles(names: list[str]) -> None:
    if len(set(names)) < len(names):
        path = next(name for name, n in collections.Counter(names).items() if n > 1)
        raise ValueError(
            f"two leaves have the path {path!r}, as in {{'a': {{'b': x}}, 'a/b': y}}: rename one of the keys, "
            "since masks, anchors and reports go by path"
        )
