"""Slices: which axes of a leaf count weights, so that one array holds many of them.

Layers stacked by `scan` or `vmap`, experts, heads and fused projections are several weights in one array, and a norm is
one of each. `slices` says so by rules, as a mask does: [(regex, axes), ...], where the first match wins, an int n means
the n leading axes, a tuple these axes, and a leaf that no rule matches is one weight:

    slices=[("blocks", 1), ("experts/.*kernel", 2), ("qkv/kernel", (1,))]

    blocks/kernel           (layers, d, h)        one weight (d, h) per layer
    experts/up/kernel       (layers, e, d, h)     one per layer and expert
    qkv/kernel              (d, 3, h)             one (d, h) for each of q, k and v
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from wd_optax import tables
from wd_optax.masking import paths, roles
from wd_optax.masking.errors import refuse
from wd_optax.masking.matching import Regex, compile_regex, first_matches

SliceAxes = tuple[int, ...]  # ascending, from 0
Slices = None | Sequence[tuple[Regex, int | SliceAxes]]

_EXAMPLE = 'rules, [(regex, axes), ...], as slices=[("blocks", 1), ("qkv/kernel", (1,))]'


class SliceRow(NamedTuple):
    """How one leaf is divided into weights."""

    path: str
    shape: roles.Shape
    axes: SliceAxes  # those that count weights
    weights: int  # in the leaf
    each: roles.Shape  # the shape of one
    reason: str


class SliceTable(NamedTuple):
    """How every leaf of a tree is divided into weights; prints as a table, also in notebooks."""

    rows: tuple[SliceRow, ...]

    def __str__(self) -> str:
        """The table, aligned."""
        return tables.align([_COLUMNS, *map(_cells, self.rows)])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return tables.to_html([_COLUMNS, *map(_cells, self.rows)])


_COLUMNS = ("path", "shape", "weights", "each", "because")


def _cells(row: SliceRow) -> tuple[str, ...]:
    return row.path, tables.show_shape(row.shape), f"{row.weights:,}", tables.show_shape(row.each), row.reason


def explain_slices(slices: Slices, params: Any) -> SliceTable:
    """Per leaf: path, shape, how many weights it holds, the shape of each, and the rule that says so.

    Args:
      slices: [(regex, axes), ...], see `wd_optax.masking.slices`; None: every leaf is one weight.
      params: a tree of arrays or of `jax.ShapeDtypeStruct`s.

    Returns:
      A `SliceTable` with `.rows`, in JAX's order; `print` shows it as a table.

    Raises:
      ValueError, TypeError: for rules that don't fit the parameters, naming rule and path.

    Example:
      >>> import jax.numpy as jnp, wd_optax as wd
      >>> params = {"blocks": {"mlp": jnp.ones((12, 8, 32))}, "head": jnp.ones((8, 5))}
      >>> print(wd.explain_slices([("blocks", 1)], params))
      path        shape      weights  each    because
      blocks/mlp  (12,8,32)  12       (8,32)  rule 'blocks'
      head        (8,5)      1        (8,5)   no rule matches
    """
    found, hidden = roles.parameters_and_hidden(params)
    return SliceTable(tuple(_divide(slices, found, hidden)))


def slice_axes(slices: Slices, params: Any) -> Mapping[str, SliceAxes]:
    """The path of every leaf that holds several weights, and the axes that count them."""
    if slices is None:
        return {}
    return {row.path: row.axes for row in explain_slices(slices, params).rows if row.axes}


def check_slices(slices: Any) -> None:
    """Raises unless `slices` is None or a list of rules whose axes may fit some shape."""
    if slices is None:
        return
    if isinstance(slices, str | Mapping | int) or not isinstance(slices, Sequence):
        raise TypeError(f"slices={slices!r}: expected {_EXAMPLE}")
    if len(slices) == 2 and isinstance(slices[0], str) and not isinstance(slices[1], str):
        raise TypeError(f"slices={slices!r} is one rule: write [{tuple(slices)!r}]")
    for rule in slices:
        if not isinstance(rule, list | tuple) or len(rule) != 2 or isinstance(rule[0], int):
            raise TypeError(f"slices: {rule!r} is no rule: expected {_EXAMPLE}")
        regex, axes = rule
        compile_regex("slices", regex)
        if not all(map(_is_axis, axes if isinstance(axes, list | tuple) else [axes])):
            raise TypeError(
                f"slices rule {regex!r}: axes={axes!r}, expected an int n (leading axes) or a tuple of axes"
            )
        if _is_axis(axes) and axes < 0:
            raise ValueError(f"slices rule {regex!r}: {axes} leading axes: for the last one write ({axes},)")


def _is_axis(x: Any) -> bool:
    return hasattr(x, "__index__") and not isinstance(x, bool)


def _divide(slices: Slices, found: list[roles.Parameter], hidden: list[str]) -> list[SliceRow]:
    check_slices(slices)
    rules = [(compile_regex("slices", regex), axes) for regex, axes in slices or ()]
    matches = first_matches("slices", [pattern for pattern, _ in rules], found, hidden)
    rows = []
    for p, i in zip(found, matches, strict=True):
        axes: SliceAxes = () if i is None else _normalise(rules[i][0].pattern, rules[i][1], p)
        reason = "no rule matches" if i is None else f"rule {rules[i][0].pattern!r}"
        each = tuple(n for axis, n in enumerate(p.shape) if axis not in axes)
        rows.append(SliceRow(p.path, p.shape, axes, math.prod(p.shape[axis] for axis in axes), each, reason))
    return rows


def _normalise(pattern: str, axes: Any, p: roles.Parameter) -> SliceAxes:
    """The axes from 0, in ascending order."""
    rank = len(p.shape)
    given = tuple(map(operator.index, axes)) if isinstance(axes, list | tuple) else tuple(range(axes))
    normal = sorted(axis + rank if axis < 0 else axis for axis in given)
    if any(not 0 <= axis < rank for axis in normal):
        said = f"axes {axes!r}" if isinstance(axes, list | tuple) else f"{axes} leading axes"
        refuse(
            f"slices rule {pattern!r} says {said}, and {p.path!r} has rank {rank}: give it a rule of its own "
            f"before this one, such as (r'^{re.escape(p.path)}$', 0)",
            [p],
        )
    if len(set(normal)) < len(normal):
        refuse(f"slices rule {pattern!r} names an axis of {p.path!r} twice: {axes!r}", [p])
    return tuple(normal)


def axes_tree(axes: Mapping[str, SliceAxes], params: Any) -> Any:
    """The axes of every leaf as a tree like the parameters, with tuples as leaves."""
    return jax.tree.unflatten(jax.tree.structure(params), [axes.get(path, ()) for path, _ in paths.flatten(params)[0]])
