"""Rules by path: the first regex that a parameter's path contains decides, and one that decides nothing is an error."""

import re
from collections.abc import Sequence
from typing import NoReturn

from wd_optax.masking.errors import most_similar, refuse
from wd_optax.masking.roles import Parameter

Regex = str | re.Pattern[str]


def compile_regex(argument: str, regex: Regex) -> re.Pattern[str]:
    """The compiled regex of a rule of `argument`, such as "mask"."""
    try:
        return re.compile(regex)
    except TypeError:
        raise TypeError(f"{argument}: {regex!r} is not a regular expression: expected a string, such as '.*'") from None
    except re.error as error:
        raise ValueError(f"{argument} rule {regex!r} is not a regular expression: {error}") from None


def first_matches(
    argument: str, patterns: Sequence[re.Pattern[str]], found: list[Parameter], hidden: list[str]
) -> list[int | None]:
    """Per parameter the index of the first pattern that is found in its path, or None.

    Args:
      argument: what the rules are of, for errors.
      patterns: one per rule.
      found: the parameters.
      hidden: paths that `optax.masked` or `optax.partition` hide: a rule may be for them, so it may decide nothing.

    Raises:
      ValueError: for a rule that decides nothing, with the nearest paths.
    """
    matches = [next((i for i, p in enumerate(patterns) if p.search(leaf.path)), None) for leaf in found]
    unused = [p for i, p in enumerate(patterns) if i not in set(matches)]
    if found and not hidden and unused:
        _refuse_unused(argument, unused[0], found)
    return matches


def _refuse_unused(argument: str, pattern: re.Pattern[str], found: list[Parameter]) -> NoReturn:
    taken = [p for p in found if pattern.search(p.path)]
    if taken:
        refuse(
            f"{argument} rule {pattern.pattern!r} decides nothing, because earlier rules take all it matches: "
            "the first match wins, so put it before them",
            taken,
        )
    refuse(
        f"{argument} rule {pattern.pattern!r} matches no parameter: correct the regex or drop the rule; the nearest "
        "are",
        most_similar(pattern.pattern, found),
    )
