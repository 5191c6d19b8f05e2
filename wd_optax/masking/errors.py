"""Errors about masks and trees: they name the argument, the leaves and the line that fixes it."""

import contextlib
import difflib
import re
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax

from wd_optax import tables
from wd_optax.masking import roles


def refuse(message: str, about: list[roles.Parameter], error: type[Exception] = ValueError, most: int = 5) -> NoReturn:
    """Raises with the rows of `explain` that the message is about."""
    lines = [("path", "shape", "role"), *((p.path, tables.show_shape(p.shape), p.role) for p in about[:most])]
    rest = f"\n... and {len(about) - most} more" if len(about) > most else ""
    raise error(message + ("\n" + tables.align(lines) + rest if about else ""))


def most_similar(text: str, found: list[roles.Parameter]) -> list[roles.Parameter]:
    """The three parameters whose paths are most similar to `text`."""
    words = re.sub(r"[^\w/]+", " ", text).strip()
    return sorted(found, key=lambda p: -difflib.SequenceMatcher(None, words, p.path).ratio())[:3]


def refuse_to_guess(found: list[roles.Parameter]) -> None:
    """Raises where a class or `optax.masked` hides whether a leaf is a matrix, and warns where plain lists do."""
    by_doubt = {doubt: [p for p in found if p.doubt == doubt] for doubt in (roles.KEYLESS, roles.HIDDEN, roles.UNNAMED)}
    if about := by_doubt[roles.KEYLESS]:
        refuse(
            f'mask="weights" goes by names, and the class that holds {about[0].path!r} is registered without keys: '
            "register it by jax.tree_util.register_dataclass or register_pytree_with_keys_class, or give the mask "
            f"rules, such as mask=[({_exactly(about[0].path)!r}, 1.0)]",
            about,
        )
    if about := by_doubt[roles.HIDDEN]:
        refuse(
            f"mask=\"weights\" can't tell whether {about[0].path!r} is a matrix or a stacked norm's scale: the bias "
            "beside it, whose shape would show it, is hidden by optax.masked or optax.partition: decide on the whole "
            'tree, mask=wd.multipliers("weights", params), or by a rule, '
            f'mask=[({_exactly(about[0].path)!r}, 1.0), (".*", "weights")]',
            about,
        )
    if about := by_doubt[roles.UNNAMED]:
        warnings.warn(
            f'mask="weights" goes by names, and {about[0].path!r} of shape {about[0].shape} has none: by its rank '
            "it decays, as a stacked norm or a bias of two axes would. Pass a dict of arrays by name, or rules, "
            f"such as mask=[({_exactly(about[0].path)!r}, 1.0)]; for Keras: "
            'mask=wd.multipliers("weights", model.trainable_variables)',
            stacklevel=2,
        )


def _exactly(path: str) -> str:
    return f"^{re.escape(path)}$"


@contextlib.contextmanager
def explaining(name: str, updates: Any, params: optax.Params) -> Iterator[None]:
    """Where an optimizer fails on updates that don't fit `params`, raises the error of `check_updates` instead.

    It isn't asked before: some take others, such as gradients of each example, or of Lookahead's fast parameters.
    """
    try:
        yield
    except Exception:
        check_updates(name, updates, params)
        raise


def check_updates(name: str, updates: Any, params: optax.Params) -> None:
    """Raises a ValueError where updates aren't a tree like `params`, with its shapes; None is an update of nothing."""
    pairs: list[tuple[Any, Any]] = []
    try:
        jax.tree.map(lambda u, p: pairs.append((u, p)), updates, params, is_leaf=lambda x: x is None)
    except ValueError:
        _refuse_updates(name, _difference(updates, params))
    if updates is None or any(u is not None and jnp.shape(u) != getattr(p, "shape", None) for u, p in pairs):
        _refuse_updates(name, _difference(updates, params))


def _difference(updates: Any, params: optax.Params) -> str:
    if updates is None or (hasattr(updates, "shape") and not hasattr(params, "shape")):
        return f"updates is {'None' if updates is None else f'an array of shape {updates.shape}'}"
    ours, theirs = (dict(roles.flatten(tree)[0]) for tree in (updates, params))
    for tree, one, other in (("updates", ours, theirs), ("params", theirs, ours)):
        if alone := [path for path in one if path not in other]:
            return f"{alone[0]!r} is in {tree} alone"
    for path, p in theirs.items():
        if jnp.shape(ours[path]) != p.shape:
            return f"{path!r} has shape {p.shape} in params and {jnp.shape(ours[path])} in updates"
    return f"updates is a {type(updates).__name__} and params a {type(params).__name__}, or containers in them differ"


def _refuse_updates(name: str, what: str) -> NoReturn:
    raise ValueError(
        f"{name}: {what}. Pass the gradients of these parameters, tx.update(grads, state, params); "
        "jax.value_and_grad returns the value first"
    )
