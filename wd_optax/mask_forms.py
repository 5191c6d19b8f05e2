"""The forms of a mask, each turned into one (multiplier, reason) per parameter."""

import difflib
import math
import re
from typing import Any, NoReturn

import jax
import numpy as np

from wd_optax import roles, tables

Mask = Any  # None | "weights" | list[tuple[str, float | str]] | tree | Callable[[params], Mask]
Decision = tuple[Any, str]  # (multiplier, reason)

_FORMS = 'None, "weights", a list of (regex, multiplier), a tree of bool or float, or a function of the parameters'


def is_zero(multiplier: Any) -> bool:
    """Whether a multiplier is known to be 0, so that its leaf is left alone."""
    return isinstance(multiplier, float) and multiplier == 0.0


def decide(mask: Mask, params: Any, found: list[roles.Parameter]) -> list[Decision]:
    """One decision per parameter in `found`, the leaves of `params`."""
    hidden = roles.flatten(params)[1]
    # An Equinox module is callable and a tree, and is meant as a tree; a function is a leaf.
    if not (callable(mask) and _is_leaf(mask)):
        return _by_data(mask, found, hidden)
    bare = roles.unwrap(params)
    decided = _by_data(mask(bare), found, hidden)
    _refuse_what_only_variables_get(mask, params, bare, found, decided)
    return [(multiplier, f"mask function: {reason}") for multiplier, reason in decided]


def _refuse_what_only_variables_get(
    mask: Any, params: Any, bare: Any, found: list[roles.Parameter], decided: list[Decision]
) -> None:
    """NNX wraps arrays in variables at init and not at update: a function must not need the wrapping."""
    if jax.tree.structure(bare) == jax.tree.structure(params):  # type: ignore[operator]  # jaxlib's stub lacks ==
        return
    try:
        wrapped = _by_data(mask(params), found, [])
    except Exception:  # made for bare arrays, as it should be
        return
    lost = [p for p, (m, _), (w, _) in zip(found, decided, wrapped, strict=True) if is_zero(m) and not is_zero(w)]
    if lost:
        _refuse(
            f"mask: the function picks {lost[0].path!r} only while it is wrapped in an NNX variable, as at init; "
            'update passes bare arrays, and it would not decay: use mask="weights" or rules, [(regex, m), ...]',
            lost,
        )


def _by_data(mask: Mask, found: list[roles.Parameter], hidden: list[str]) -> list[Decision]:
    if mask is None:
        return [(1.0, "mask=None: everything") for _ in found]
    if isinstance(mask, str):
        if mask != "weights":
            _refuse(f"mask={mask!r} is not a mask: use {_FORMS}", found, TypeError)
        return [_by_role(p) for p in found]
    if _is_rules(mask):
        return _by_rules(mask, found, hidden)
    if _is_leaf(mask):
        _refuse(
            f"mask={mask!r} is one value for the whole tree. If it came through optax.inject_hyperparams, that "
            'evaluated your mask function as a schedule: pass mask="weights" or rules, which are data, or '
            f"static_args='mask'; a mask is {_FORMS}",
            found,
            TypeError,
        )
    return _by_tree(mask, found, hidden)


def _by_role(p: roles.Parameter) -> Decision:
    return float(p.role in roles.DECAYING_ROLES), p.reason


def _by_rules(rules: Any, found: list[roles.Parameter], hidden: list[str]) -> list[Decision]:
    compiled = []
    for regex, value in rules:
        pattern = _compile(regex)
        matching = [p for p in found if pattern.search(p.path)]
        compiled.append((pattern, _multiplier(value, f"rule {pattern.pattern!r}", matching, "weights")))
    used, decided = set(), []
    for p in found:
        i = next((i for i, (pattern, _) in enumerate(compiled) if pattern.search(p.path)), None)
        if i is None:
            decided.append((0.0, "no rule matches"))
            continue
        used.add(i)
        pattern, multiplier = compiled[i]
        by_role = isinstance(multiplier, str)
        multiplier, reason = _by_role(p) if by_role else (multiplier, "")
        decided.append((multiplier, f"rule {pattern.pattern!r}" + (f": {reason}" if by_role else "")))
    if found and not hidden:  # in a tree cut by masked() or partition() a rule may be for the other part
        for i, (pattern, _) in enumerate(compiled):
            if i not in used:
                _refuse_unused(pattern, found)
    return decided


def _refuse_unused(pattern: re.Pattern[str], found: list[roles.Parameter]) -> NoReturn:
    taken = [p for p in found if pattern.search(p.path)]
    if taken:
        _refuse(
            f"mask rule {pattern.pattern!r} decides nothing, for earlier rules take all it matches: "
            "the first match wins, so put it before them",
            taken,
        )
    _refuse(
        f"mask rule {pattern.pattern!r} matches no parameter: mend the regex or drop the rule; the nearest are",
        _nearest(pattern.pattern, found),
    )


def _by_tree(mask: Any, found: list[roles.Parameter], hidden: list[str]) -> list[Decision]:
    entries = {}
    for path, leaf in roles.flatten(mask)[0]:
        below = [p for p in found if path in _prefixes(p.path)]
        if found and not below and not any(path in _prefixes(h) or h in _prefixes(path) for h in hidden):
            _refuse(
                f"mask entry {path!r} belongs to no parameter: drop it or mend its path; the nearest are",
                _nearest(path, found),
            )
        entries[path] = _multiplier(leaf, f"mask leaf {path!r}", below)
    decided = []
    for p in found:
        at = next((prefix for prefix in _prefixes(p.path) if prefix in entries), None)
        if at is None:
            _refuse(
                f"mask has no entry for parameter {p.path!r}, only for {', '.join(map(repr, entries))}: add one, "
                "or use rules, [(regex, multiplier), ...]",
                [p],
            )
        decided.append((entries[at], f"mask entry {at!r}"))
    return decided


def _multiplier(value: Any, where: str, about: list[roles.Parameter], *words: str) -> Any:
    """A bool or number ≥ 0 as a float; a traced scalar, and a string among `words`, as itself."""
    if isinstance(value, str) and value in words:
        return value
    if not isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array):
        _refuse(
            f"mask: {where} is {value!r}: a multiplier is a bool or a number ≥ 0, such as True or 0.1", about, TypeError
        )
    if np.shape(value) != ():
        _refuse(f"mask: {where} has shape {np.shape(value)}: a multiplier is one number per leaf", about)
    if isinstance(value, jax.core.Tracer):
        return value
    if not 0 <= float(value) < math.inf:
        _refuse(f"mask: {where} is {value!r}: a multiplier scales the decay; it must be finite and ≥ 0", about)
    return float(value)


def _compile(regex: Any) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise ValueError(f"mask rule {regex!r} is not a regular expression: {error}") from None


def _refuse(message: str, about: list[roles.Parameter], error: type[Exception] = ValueError, most: int = 5) -> NoReturn:
    """Raises with the lines of `explain` that the message is about."""
    lines = [("path", "shape", "role"), *((p.path, tables.show_shape(p.shape), p.role) for p in about[:most])]
    rest = f"\n... and {len(about) - most} more" if len(about) > most else ""
    raise error(message + ("\n" + tables.align(lines) + rest if about else ""))


def _nearest(text: str, found: list[roles.Parameter]) -> list[roles.Parameter]:
    words = re.sub(r"[^\w/]+", " ", text).strip()
    return sorted(found, key=lambda p: -difflib.SequenceMatcher(None, words, p.path).ratio())[:3]


def _is_rules(mask: Any) -> bool:
    is_rule = lambda r: isinstance(r, list | tuple) and len(r) == 2 and isinstance(r[0], str | re.Pattern)
    return isinstance(mask, list | tuple) and len(mask) > 0 and all(map(is_rule, mask))


def _is_leaf(tree: Any) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(tree))


def _prefixes(path: str) -> list[str]:
    """`a/b` → a/b, a and the root."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), -1, -1)]
