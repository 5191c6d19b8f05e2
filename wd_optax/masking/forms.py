"""The forms of a mask, each turned into one (multiplier, reason) per parameter."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeGuard

import jax
import numpy as np

from wd_optax.masking import paths, roles
from wd_optax.masking.errors import most_similar, refuse, refuse_to_guess
from wd_optax.masking.matching import Regex, compile_regex, first_matches

Multiplier = bool | float | np.number[Any] | np.ndarray[Any, Any] | jax.Array  # shape=()
MaskRules = list[Regex] | Sequence[tuple[Regex, Multiplier | Literal["weights"]]]  # str is a Sequence[str]


class _Dataclass(Protocol):
    """An Equinox module or another dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


# A tree of bools or numbers, in any container that JAX knows; its type can't be said more exactly.
MaskTree = Mapping[Any, Any] | list[Any] | tuple[Any, ...] | _Dataclass
MaskFunction = Callable[[Any], Any]  # params -> Mask
Mask = None | Literal["weights"] | MaskRules | MaskTree | MaskFunction

_FORMS = 'None, "weights", a list of (regex, multiplier), a tree of bool or float, or a function of the parameters'


class Decision(NamedTuple):
    """The mask's decision for one leaf."""

    multiplier: float | jax.Array  # an array where it is traced
    reason: str
    by_role: bool = False


def is_zero(multiplier: object) -> bool:
    """Whether a multiplier is known to be 0, so that its leaf is left alone."""
    return isinstance(multiplier, float) and multiplier == 0.0


def decide(mask: Mask, params: Any) -> list[tuple[roles.Parameter, Decision]]:
    """Every parameter with the mask's decision, in JAX's order."""
    found, hidden = roles.parameters_and_hidden(params)
    return list(zip(found, _decide(mask, params, found, hidden), strict=True))


def _decide(mask: Mask, params: Any, found: list[roles.Parameter], hidden: list[str]) -> list[Decision]:
    # An Equinox module is callable and a tree, and is meant as a tree; a function is a leaf.
    if not (callable(mask) and _is_one_leaf(mask)):
        return _by_data(mask, params, found, hidden)
    bare = paths.unwrap(params)
    decided = _by_data(mask(bare), bare, found, hidden)
    _refuse_dependence_on_wrapping(mask, params, bare, found, decided)
    return [decision._replace(reason=f"mask function: {decision.reason}") for decision in decided]


def _refuse_dependence_on_wrapping(
    mask: Any, params: Any, bare: Any, found: list[roles.Parameter], decided: list[Decision]
) -> None:
    """NNX wraps arrays in variables at init and not at update: a function must not need the wrapping."""
    if jax.tree.structure(bare) == jax.tree.structure(params):  # type: ignore[operator]  # jaxlib's stub lacks ==
        return
    try:
        wrapped = _by_data(mask(params), params, found, [])
    except Exception:  # made for bare arrays, as it should be
        return
    pairs = zip(found, decided, wrapped, strict=True)
    lost = [p for p, bare, whole in pairs if is_zero(bare.multiplier) and not is_zero(whole.multiplier)]
    if lost:
        refuse(
            f"mask: the function picks {lost[0].path!r} only while it is wrapped in an NNX variable, as at init; "
            'update passes bare arrays, and it would not decay: use mask="weights" or rules, [(regex, m), ...]',
            lost,
        )


def _by_data(mask: Mask, params: Any, found: list[roles.Parameter], hidden: list[str]) -> list[Decision]:
    if mask is None:
        return [Decision(1.0, "mask=None: everything") for _ in found]
    if isinstance(mask, str):
        if mask != "weights":
            refuse(f"mask={mask!r} is not a mask: use {_FORMS}; as a rule it is [({mask!r}, 1.0)]", found, TypeError)
        refuse_to_guess(found)
        return [_by_role(p) for p in found]
    if rules := _as_rules(mask):
        return _by_rules(rules, found, hidden)
    if _is_one_leaf(mask):
        refuse(
            f"mask={mask!r} is one value for the whole tree. If it came through optax.inject_hyperparams, that "
            'evaluated your mask function as a schedule: pass mask="weights" or rules, which are data, or '
            f"static_args='mask'; a mask is {_FORMS}",
            found,
            TypeError,
        )
    if jax.tree.structure(mask) == jax.tree.structure(params):  # type: ignore[operator]
        return [_by_leaf(leaf, p) for leaf, p in zip(jax.tree.leaves(mask), found, strict=True)]
    return _by_tree(mask, found, hidden)


def _by_role(p: roles.Parameter) -> Decision:
    return Decision(float(p.role in roles.DECAYING_ROLES), p.reason, True)


def _by_leaf(value: object, p: roles.Parameter) -> Decision:
    return Decision(_multiplier(value, f"mask leaf {p.path!r}", [p]), f"mask entry {p.path!r}")


def _by_rules(rules: list[tuple[Regex, object]], found: list[roles.Parameter], hidden: list[str]) -> list[Decision]:
    compiled = []
    for regex, value in rules:
        pattern = compile_regex("mask", regex)
        matching = [p for p in found if pattern.search(p.path)]
        by_role = isinstance(value, str) and value == "weights"
        compiled.append((pattern, None if by_role else _multiplier(value, f"rule {pattern.pattern!r}", matching)))
    decided = []
    for p, i in zip(found, first_matches("mask", [pattern for pattern, _ in compiled], found, hidden), strict=True):
        if i is None:
            decided.append(Decision(0.0, "no rule matches"))
            continue
        pattern, multiplier = compiled[i]
        decision = _by_role(p) if multiplier is None else Decision(multiplier, "")
        because = decision.reason and f": {decision.reason}"
        decided.append(decision._replace(reason=f"rule {pattern.pattern!r}{because}"))
    refuse_to_guess([p for p, decision in zip(found, decided, strict=True) if decision.by_role])
    return decided


def _by_tree(mask: Any, found: list[roles.Parameter], hidden: list[str]) -> list[Decision]:
    """By paths, for a mask in another container, of prefixes, or of a tree that is partly hidden."""
    given = dict(paths.flatten(mask)[0])
    prefixes = {p.path: paths.prefixes(p.path) for p in found}
    below: dict[str, list[roles.Parameter]] = {path: [] for path in given}
    for p in found:
        for prefix in prefixes[p.path]:
            if prefix in below:
                below[prefix].append(p)
    hidden_paths = set(hidden)
    hidden_or_above = {prefix for path in hidden for prefix in paths.prefixes(path)}
    entries = {}
    for path, leaf in given.items():
        is_hidden = path in hidden_or_above or not hidden_paths.isdisjoint(paths.prefixes(path))
        if found and not below[path] and not is_hidden:
            refuse(
                f"mask entry {path!r} belongs to no parameter: drop it or correct its path; the nearest are",
                most_similar(path, found),
            )
        entries[path] = _multiplier(leaf, f"mask leaf {path!r}", below[path])
    decided = []
    for p in found:
        at = next((prefix for prefix in prefixes[p.path] if prefix in entries), None)
        if at is None:
            few = [*map(repr, entries)][:5] + ["..."] * (len(entries) > 5)
            refuse(
                f"mask has no entry for parameter {p.path!r}, only for {', '.join(few)}: add one, "
                "or use rules, [(regex, multiplier), ...]",
                [p],
            )
        decided.append(Decision(entries[at], f"mask entry {at!r}"))
    return decided


def _multiplier(value: object, where: str, about: list[roles.Parameter]) -> float | jax.Array:
    """A bool or number ≥ 0 as a float; a traced scalar as itself."""
    if not isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array):
        refuse(
            f"mask: {where} is {value!r}: a multiplier is a bool or a number ≥ 0, such as True or 0.1", about, TypeError
        )
    if np.shape(value) != ():
        refuse(f"mask: {where} has shape {np.shape(value)}: a multiplier is one number per leaf", about)
    if isinstance(value, jax.core.Tracer):
        return value
    if not 0 <= float(value) < math.inf:
        refuse(f"mask: {where} is {value!r}: a multiplier scales the decay; it must be finite and ≥ 0", about)
    return float(value)


def _as_rules(mask: Mask) -> list[tuple[Regex, object]]:
    """A list of (regex, multiplier), where a plain regex decays; empty for what isn't one."""
    if not is_rules(mask):
        return []
    one = len(mask) == 2 and _is_rule(mask) and (mask[1] == "weights" or not _is_rule(mask[1]))
    if one or not all(map(_is_rule, mask)) or any(rule == "weights" for rule in mask):
        refuse(
            f"mask={mask!r} is no list of rules, [(regex, multiplier), ...]: "
            + (f"write [{tuple(mask)!r}]" if one else 'a plain regex decays, and "weights" alone is mask="weights"'),
            [],
            TypeError,
        )
    return [(rule[0], rule[1]) if isinstance(rule, list | tuple) else (rule, 1.0) for rule in mask]


def is_rules(mask: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether a mask is a list with rules in it."""
    return isinstance(mask, list | tuple) and any(isinstance(_regex_of(rule), str | re.Pattern) for rule in mask)


def _is_rule(rule: object) -> bool:
    return isinstance(_regex_of(rule), str | re.Pattern) and (not isinstance(rule, list | tuple) or len(rule) == 2)


def _regex_of(rule: object) -> object:
    return rule[0] if isinstance(rule, list | tuple) and rule else rule


def _is_one_leaf(tree: Any) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(tree))
