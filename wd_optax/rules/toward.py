"""Decay toward an anchor: the parameters at `init`, or a tree of the caller's."""

import difflib
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax.masking import paths
from wd_optax.masking.paths import is_masked
from wd_optax.rules.checks import check_has_state, check_is_first
from wd_optax.rules.stand_ins import like_stand_in
from wd_optax.rules.step import tree_map


class AnchorState(NamedTuple):
    """The anchor: like the parameters, in their types; `optax.MaskedNode` for leaves without one."""

    anchor: optax.Params

    def stored_like(self, params: optax.Params) -> "AnchorState":
        """The anchor in the types and on the devices of the parameters, of which there may be more."""
        return AnchorState(tree_map(_stored_like, self.anchor, params))


def toward(anchor: Literal["init"] | optax.Params) -> optax.GradientTransformation:
    """r(p) = p − a: decay toward the anchor a in place of zero, as L2-SP and fine-tuning have it.

    A tree may be partial: leaves that it doesn't name have no anchor and decay to zero, r(p) = p. In it, entries of
    leaves that never decay are ignored.

    Args:
      anchor: "init" (the parameters at `init`), or a tree with paths and shapes of parameters. Both are copied into
        the state, so that parameters can be donated; only leaves that can decay are.

    Returns:
      A rule with an `AnchorState`: one more array per anchored parameter, in its type.

    Raises:
      ValueError: for another string at once; at `init` for an entry that belongs to no parameter or has another
        shape, and where another rule comes first in the chain: p − a is of the parameters.

    Example: the backbone decays to where it starts, and the new head to zero.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> start = {"backbone": {"kernel": jnp.array([[2.0]])}, "head": {"kernel": jnp.array([[2.0]])}}
      >>> moved = {"backbone": {"kernel": jnp.array([[3.0]])}, "head": {"kernel": jnp.array([[3.0]])}}
      >>> rule = wd.rules.toward({"backbone": start["backbone"]})
      >>> tx = wd.sgdw(0.1, weight_decay=0.5, rule=rule)
      >>> updates, _ = tx.update(optax.tree.zeros_like(moved), tx.init(start), moved)
      >>> for part in updates:  # −η·λ·(3 − 2) and −η·λ·3
      ...     print(part, f"{updates[part]['kernel'].item():.3f}")
      backbone -0.050
      head -0.150

    Reference: Xuhong et al. 2018, arXiv 1802.01483 (L2-SP).
    """
    if anchor is None or (isinstance(anchor, str) and anchor != "init"):
        raise ValueError(
            f'anchor={anchor!r}: use "init" (the parameters at init) or a tree of arrays; decay to zero needs no rule'
        )
    if not isinstance(anchor, str) and not jax.tree.leaves(anchor):
        raise ValueError("anchor: the tree has no arrays, so it anchors nothing; decay to zero needs no rule")
    named = None if isinstance(anchor, str) else {path for path, _ in paths.flatten(anchor)[0]}

    def init(params: optax.Params) -> AnchorState:
        if isinstance(anchor, str):
            return AnchorState(jax.tree.map(lambda p: jnp.array(p, dtype=p.dtype), params))
        return AnchorState(_like(anchor, params))

    def update(updates: optax.Params, state: AnchorState, params: Any = None) -> tuple[optax.Params, AnchorState]:
        fix = 'the anchor goes first, as in optax.chain(wd.rules.toward("init"), wd.rules.cautious())'
        check_is_first("toward(...)", updates, params, fix)
        check_has_state("anchor", updates, state.anchor, named)
        return tree_map(_displacement, updates, state.anchor), state

    return optax.GradientTransformation(init, update)


def _displacement(p: Any, a: Any) -> Any:
    return p if is_masked(a) else p - a.astype(p.dtype)


def _stored_like(a: jax.Array, p: jax.Array) -> jax.Array:
    placed = isinstance(p, jax.Array) and not isinstance(p, jax.core.Tracer) and p.committed
    a = a.astype(p.dtype)
    return jax.device_put(a, p.sharding) if placed and not isinstance(a, jax.core.Tracer) else a


def _like(anchor: optax.Params, params: optax.Params) -> optax.Params:
    """A copy of the anchor in the structure and types of the parameters, `optax.MaskedNode` where it has nothing."""
    given = dict(paths.flatten(anchor)[0])
    found, hidden = paths.flatten(jax.tree.map(_hide_none, params, is_leaf=lambda x: x is None))
    _check_entries(given, [path for path, _ in found], hidden)
    leaves = []
    for path, p in found:
        a = like_stand_in(path, given.get(path), p)
        if a is not None and jnp.shape(a) != jnp.shape(p):
            raise ValueError(
                f"anchor at {path!r}: expected shape {jnp.shape(p)} like the parameter, got shape {jnp.shape(a)}: "
                'pass a tree with the parameters\' shapes, or wd.rules.toward("init")'
            )
        leaves.append(optax.MaskedNode() if a is None else jnp.array(a, dtype=p.dtype))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _hide_none(p: Any) -> Any:
    """A parameter that is None, as in a tree of which a part is trained, has a path and never decays."""
    return optax.MaskedNode() if p is None else p


def _check_entries(given: dict[str, Any], found: list[str], hidden: list[str]) -> None:
    """Raises for an entry that belongs to no parameter; a placeholder of `optax.partition` may hide a subtree."""
    shown, masked = set(found), set(hidden)
    wrong = [path for path in given if path not in shown and masked.isdisjoint(paths.prefixes(path))]
    if wrong and (found or hidden):
        nearest = difflib.get_close_matches(wrong[0], [*found, *hidden], n=3, cutoff=0)
        others = f" and {len(wrong) - 1} more entries belong" if len(wrong) > 1 else " belongs"
        raise ValueError(
            f"anchor: {wrong[0]!r}{others} to no parameter: the nearest are {', '.join(map(repr, nearest))}; drop "
            "what isn't of this tree, or rename it"
        )
