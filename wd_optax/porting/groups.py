"""Parameter groups: each has its own arguments of one call, and becomes an optimizer of its own."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from wd_optax.masking import masks, roles
from wd_optax.masking.matching import compile_regex, first_matches
from wd_optax.partition import partition
from wd_optax.porting.calls import Call, Staged, bind

NOT_TRAINED = "not trained"


class Group(NamedTuple):
    """Parameters that share the arguments of a call."""

    name: str
    arguments: Mapping[str, Any]  # of the call, without defaults
    because: str  # what put a parameter here


def by_regex(
    groups: Sequence[Mapping[str, Any]] | None, arguments: Mapping[str, Any], params: optax.Params
) -> tuple[list[Group], list[int]]:
    """The groups and, per leaf of `params`, the index of its group.

    Args:
      groups: as in torch, [{"params": regex, "weight_decay": 0.0, ...}, ...], or several regexes: the first one that
        is found in a path decides, and what no regex takes is a group with `arguments` alone. "name" names the group in
        the state.
      arguments: of the call, for what a group doesn't say.
      params: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: for a regex that decides nothing, with the nearest paths, and for a name that two groups have.
      KeyError: for a group without "params".
      TypeError: for groups that aren't a list of dicts.
    """
    if isinstance(groups, Mapping | str):
        raise TypeError(f'groups={groups!r}: expected a list of dicts, [{{"params": regex, "weight_decay": 0.0}}, ...]')
    rest = Group("rest" if groups else "all", dict(arguments), "no group's regex is in its path" if groups else "")
    patterns, made = [], []
    for i, group in enumerate(groups or ()):
        if not isinstance(group, Mapping):
            raise TypeError(f'groups[{i}]={group!r} is no dict: expected {{"params": regex, "weight_decay": 0.0, ...}}')
        if "params" not in group:
            raise KeyError(f'groups[{i}]={group!r} has no "params": give the regex of its paths, {{"params": "bias"}}')
        regexes = group["params"] if isinstance(group["params"], list | tuple) else [group["params"]]
        for regex in regexes:
            compile_regex(f'groups[{i}]["params"]', regex)
        patterns.append(
            compile_regex("groups", regexes[0] if len(regexes) == 1 else "|".join(f"(?:{x})" for x in regexes))
        )
        own = {name: value for name, value in group.items() if name not in ("params", "name")}
        made.append(Group(group.get("name", f"group{i}"), {**arguments, **own}, f"groups[{i}] {group['params']!r}"))
    double = [name for name, n in collections.Counter(group.name for group in [*made, rest]).items() if n > 1]
    if double:
        raise ValueError(f"groups: {double[0]!r} is the name of two groups: give each its own")
    found = roles.parameters(params)
    matches = first_matches("groups", patterns, found, []) if patterns else [None] * len(found)
    return [*made, rest], [len(made) if match is None else match for match in matches]


def assemble(
    found: Call, groups: Sequence[Group], index: Sequence[int | None], params: optax.Params
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of these groups: one of the call's for each group that has parameters.

    Args:
      found: the call.
      groups: each with its arguments.
      index: per leaf of `params` its group; None for one that isn't trained.
      params: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The call's optimizer for one group, else `wd_optax.partition` of one per group, under the groups' names. Leaves
      that aren't trained, or neither floating point nor complex, are a group of their own, NOT_TRAINED, and stay as
      they are.
    """
    found_parameters = roles.parameters(params)
    index = [i if jnp.issubdtype(p.dtype, jnp.inexact) else None for p, i in zip(found_parameters, index, strict=True)]
    used = sorted({i for i in index if i is not None}) or [len(groups) - 1]
    mask = None if found.mask is None else masks.multipliers(found.mask, params)
    built = {groups[i].name: found.build(mask, **bind(found, groups[i].arguments)) for i in used}
    first = next((x.first for x in built.values() if isinstance(x, Staged)), None)
    optimizers = {name: x.optimizer if isinstance(x, Staged) else x for name, x in built.items()}
    if None in index:
        optimizers[NOT_TRAINED] = optax.set_to_zero()
    if len(optimizers) == 1:
        optimizer = optax.with_extra_args_support(next(iter(optimizers.values())))
    else:
        names = [NOT_TRAINED if i is None else groups[i].name for i in index]
        by_path = dict(zip((p.path for p in found_parameters), names, strict=True))
        optimizer = partition(optimizers, lambda p: _group_of(p, by_path))
    return optimizer if first is None else optax.with_extra_args_support(optax.chain(first, optimizer))


def _group_of(p: roles.Parameter, by_path: Mapping[str, str]) -> str:
    if p.path not in by_path:
        few = ", ".join(map(repr, [*by_path][:5]))
        raise ValueError(
            f"{p.path!r} isn't in the params that the groups were made for, {few}, ...: pass the same tree"
        )
    return by_path[p.path]
