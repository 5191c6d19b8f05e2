"""Groups of parameters that are measured together: by role, by leaf, or by named rules; stacked layers one by one."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from wd_optax.masking import roles
from wd_optax.masking.matching import Regex, compile_regex, first_matches
from wd_optax.masking.roles import ROLES, Parameter
from wd_optax.masking.slices import SliceAxes, Slices, check_slices, slice_axes

Groups = Literal["roles", "leaves"] | Sequence[tuple[str, Regex]]
REST = "rest"  # the group of leaves that no rule matches


class Grouping(NamedTuple):
    """Which group each leaf belongs to."""

    sizes: dict[str, int]  # entries of each group
    layers: dict[str, int]  # of each group: how many layers are measured one by one; 0: all leaves as one vector
    of: list[str]  # the group of each leaf
    axes: list[SliceAxes] | None  # those of each leaf that count weights; None without `slices`

    @property
    def stacks(self) -> list[str]:
        """The arrays that hold the figures: "" of all groups without layers, and each other group."""
        layered = [name for name, n in self.layers.items() if n]
        return [""] * (len(layered) < len(self.layers)) + layered

    @property
    def places(self) -> tuple[tuple[str, int, int | None], ...]:
        """Each group, the array of `stacks` that holds it, and its column; None for all columns."""
        flat = itertools.count()
        at = self.stacks.index
        return tuple((name, at(name), None) if n else (name, at(""), next(flat)) for name, n in self.layers.items())


def check_groups(groups: Any) -> None:
    """Raises unless `groups` is one of the two words or a list of (name, regex)."""
    expected = 'expected "roles", "leaves" or rules, as groups=[("attention", "attn/.*kernel"), ("rest", ".*")]'
    if isinstance(groups, str):
        if groups not in ("roles", "leaves"):
            raise ValueError(f"groups={groups!r}: {expected}")
        return
    if not isinstance(groups, Sequence):
        raise TypeError(f"groups={groups!r}: {expected}")
    if len(groups) == 2 and all(isinstance(x, str) for x in groups):
        raise TypeError(f"groups={groups!r} is one rule: write [{tuple(groups)!r}]")
    for rule in groups:
        if not isinstance(rule, list | tuple) or len(rule) != 2 or not isinstance(rule[0], str):
            raise TypeError(f"groups: {rule!r} is no rule: {expected}")
        compile_regex("groups", rule[1])


def assign_groups(groups: Groups, slices: Slices, params: Any) -> Grouping:
    """The group of every leaf of `params`; see `wd_optax.measure_decay`."""
    check_groups(groups)
    check_slices(slices)
    found, hidden = roles.parameters_and_hidden(params)
    axes = _leaf_axes(slices, params, found)
    of = _leaf_names(groups, found, hidden)
    sizes: dict[str, int] = dict.fromkeys(_group_order(groups, of), 0)
    counts: dict[str, set[int]] = {name: set() for name in sizes}
    for i, (p, name) in enumerate(zip(found, of, strict=True)):
        sizes[name] += math.prod(p.shape)
        if jnp.issubdtype(p.dtype, jnp.inexact):
            counts[name].add(p.shape[0] if axes and 0 in axes[i] and groups != "roles" else 0)
    layers = {name: next(iter(n)) if len(n) == 1 else 0 for name, n in counts.items()}
    return Grouping(sizes, layers, of, axes)


def _leaf_names(groups: Groups, found: list[Parameter], hidden: list[str]) -> list[str]:
    if isinstance(groups, str):
        return [p.role if groups == "roles" else p.path for p in found]
    patterns = [compile_regex("groups", regex) for _, regex in groups]
    matches = first_matches("groups", patterns, found, hidden)
    return [REST if i is None else groups[i][0] for i in matches]


def _group_order(groups: Groups, of: list[str]) -> list[str]:
    """All roles, all leaves, or the named groups that hold a leaf, in the order of the rules, with "rest" last."""
    if isinstance(groups, str):
        return list(ROLES) if groups == "roles" else of
    held = set(of)
    return [name for name in dict.fromkeys([*(name for name, _ in groups), REST]) if name in held]


def _leaf_axes(slices: Slices, params: Any, found: list[Parameter]) -> list[SliceAxes] | None:
    if slices is None:
        return None
    axes = slice_axes(slices, params)
    return [axes.get(p.path, ()) for p in found]
