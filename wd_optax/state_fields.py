"""The fields of an optimizer's state by name, as `mu` and `nu` of Adam, at any depth of wrappers and chains.

A parameter may have a field's name: a tree with the parameters' paths is one value, and is never looked into.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optax

from wd_optax.masking import roles


class Field(NamedTuple):
    """One field of one state."""

    name: str
    value: Any
    holder: str  # the type of the NamedTuple that has it, or "dict" for a checkpoint read without types


def is_namedtuple(node: Any) -> bool:
    """Whether a node is the kind of tuple that Optax's states are."""
    return isinstance(node, tuple) and hasattr(node, "_fields")


def like_params(params: Any) -> Callable[[Any], bool]:
    """The test for a tree with one entry per parameter; what `optax.masked` hides counts as an entry."""
    every = lambda tree: {*(path for path, _ in roles.flatten(tree)[0]), *roles.flatten(tree)[1]}
    paths, structure = every(params), jax.tree.structure(params)
    count = lambda tree: len(jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode)))  # fast
    alike = lambda tree: count(tree) == len(paths) and every(tree) == paths
    return lambda tree: jax.tree.structure(tree) == structure or alike(tree)  # type: ignore[operator]


def transform(change: Callable[[Field], Any], state: Any, params: Any) -> Any:
    """`state` with `change(field)` in place of every field's value.

    Args:
      change: called for every field that holds no further state: a tree like the parameters, an array, a dict of them.
      state: of an Optax transformation: NamedTuples, in tuples, lists and dicts.
      params: a tree with the parameters' structure.

    Returns:
      A state of the same types.
    """
    whole = like_params(params)
    is_state = lambda node: is_namedtuple(node) and not whole(node)
    holds_states = lambda node: any(map(is_state, jax.tree.leaves(node, is_leaf=is_state)))

    def walk(field: Field) -> Any:
        node = field.value
        if whole(node) or not (is_state(node) or holds_states(node)):
            return change(field)
        if is_state(node):
            return type(node)(*(walk(Field(name, x, type(node).__name__)) for name, x in node._asdict().items()))
        if isinstance(node, tuple | list):
            return type(node)(walk(field._replace(value=x)) for x in node)
        if isinstance(node, dict):
            return type(node)({key: walk(field._replace(value=node[key])) for key in _sorted(node)})
        return change(field)

    return walk(Field("", state, ""))


def find(state: Any, params: Any) -> Iterator[Field]:
    """Every field of a state, outermost first, also where a checkpoint was read as nested dicts and lists.

    Hyperparameters are one field.
    """
    whole = like_params(params)

    def walk(field: Field) -> Iterator[Field]:
        node = field.value
        if field.name:
            yield field
        if whole(node) or field.name in ("hyperparams", "hyperparams_states"):
            return
        if is_namedtuple(node) or isinstance(node, dict):
            holder, entries = type(node).__name__, node._asdict() if is_namedtuple(node) else {}
            if isinstance(node, dict):
                holder, entries = "dict", {key: node[key] for key in _sorted(node)}
            for name, value in entries.items():
                yield from walk(Field(str(name), value, holder))
        elif isinstance(node, tuple | list):
            for value in node:
                yield from walk(Field("", value, field.holder))

    return walk(Field("", state, ""))


def _sorted(node: dict[Any, Any]) -> list[Any]:
    """The keys in JAX's order, which a dict has after `jit`."""
    return sorted(node, key=str)
