"""The fields of an optimizer's state by name, such as Adam's `mu` and `nu`, at any depth of wrappers and chains.

A parameter may be called `mu`, too: a tree with the parameters' paths is one value, and is never searched.
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
    outer: tuple[str, ...] = ()  # the names of the fields that it is inside of, outermost first


def is_namedtuple(node: Any) -> bool:
    """Whether a node is the kind of tuple that Optax's states are."""
    return isinstance(node, tuple) and hasattr(node, "_fields")


def is_like(params: optax.Params) -> Callable[[Any], bool]:
    """The test for a tree with one entry per parameter; what `optax.masked` hides counts as an entry."""
    leaves, hidden = roles.flatten(params)
    paths = {*(path for path, _ in leaves), *hidden}
    structure: Any = jax.tree.structure(params)

    def like_params(tree: Any) -> bool:
        if jax.tree.structure(tree) == structure:
            return True
        entries = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
        if not len(jax.tree.leaves(tree)) <= len(paths) <= len(entries):  # first, because it is fast
            return False
        leaves, hidden = roles.flatten(tree)
        return {*(path for path, _ in leaves), *paths.intersection(hidden)} == paths

    return like_params


def map_fields(change: Callable[[Field], Any], state: optax.OptState, params: optax.Params) -> optax.OptState:
    """`state` with `change(field)` in place of every field's value.

    Args:
      change: called for every field that holds no further state: a tree like the parameters, an array, a dict of them.
      state: of an Optax transformation: NamedTuples, in tuples, lists and dicts.
      params: a tree with the parameters' structure.

    Returns:
      A state of the same types.
    """
    like_params = is_like(params)

    def is_state(node: Any) -> bool:
        return is_namedtuple(node) and not like_params(node)

    def walk(field: Field) -> Any:
        node = field.value
        if like_params(node) or not any(map(is_state, jax.tree.leaves(node, is_leaf=is_state))):
            return change(field)
        if is_state(node):
            return type(node)(*map(walk, _subfields(field)))
        if isinstance(node, tuple | list):
            return type(node)(walk(field._replace(value=x)) for x in node)
        if isinstance(node, dict):
            return type(node)({key: walk(field._replace(value=node[key])) for key in _sorted(node)})
        return change(field)

    return walk(Field("", state, ""))


def fields(state: optax.OptState, params: optax.Params) -> Iterator[Field]:
    """Every field of a state, outermost first, also where a checkpoint was read as nested dicts and lists.

    Hyperparameters are one field.
    """
    like_params = is_like(params)

    def walk(field: Field) -> Iterator[Field]:
        node = field.value
        if field.name:
            yield field
        if like_params(node) or field.name in ("hyperparams", "hyperparams_states"):
            return
        if is_namedtuple(node) or isinstance(node, dict):
            for child in _subfields(field):
                yield from walk(child)
        elif isinstance(node, tuple | list):
            for value in node:
                yield from walk(Field("", value, field.holder, _outer_of_children(field)))

    return walk(Field("", state, ""))


def _subfields(field: Field) -> Iterator[Field]:
    """The fields of a NamedTuple, or the entries of a dict."""
    node, outer = field.value, _outer_of_children(field)
    holder = "dict" if isinstance(node, dict) else type(node).__name__
    entries = {key: node[key] for key in _sorted(node)} if isinstance(node, dict) else node._asdict()
    for name, value in entries.items():
        yield Field(str(name), value, holder, outer)


def _outer_of_children(field: Field) -> tuple[str, ...]:
    return (*field.outer, field.name) if field.name else field.outer


def _sorted(node: dict[Any, Any]) -> list[Any]:
    """The keys in JAX's order, which a dict has after `jit`."""
    return sorted(node, key=str)
