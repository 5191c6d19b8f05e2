"""What several rules check of what they get."""

import operator

import jax
import optax

from wd_optax.masking import paths


def check_is_first(name: str, updates: optax.Params, params: optax.Params | None, fix: str) -> None:
    """Raises where another rule comes before this one, so that it doesn't get the parameters.

    Args:
      name: the rule, as the user writes it.
      updates: what the rule gets.
      params: the parameters.
      fix: what to write.
    """
    if params is not None and any(map(operator.is_not, *map(jax.tree.leaves, (updates, params)))):
        raise ValueError(f"rule: {name} comes after another rule, whose result isn't the parameters: {fix}")


def check_has_state(name: str, params: optax.Params, state: optax.Params, paths_of: set[str] | None = None) -> None:
    """Raises for a leaf that decays and for which the state of a rule has nothing.

    Args:
      name: what the state has, such as "anchor".
      params: what the rule gets.
      state: the tree of the state.
      paths_of: the leaves that must have it; None for all.
    """
    there = dict(paths.flatten(state)[0])
    for path, _ in paths.flatten(params)[0]:
        if path not in there and (paths_of is None or path in paths_of):
            raise ValueError(
                f"{name}: {path!r} decays and has no {name}, because its multiplier was 0 at init: a mask with arrays "
                "must be known at init and update, or traced at both"
            )
