"""Decay toward an anchor: the parameters at `init`, or a tree of the caller's."""

import operator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax.masking import roles
from wd_optax.masking.paths import is_masked
from wd_optax.rules.step import tree_map


class AnchorState(NamedTuple):
    """The anchor: like the parameters, in their types; `optax.MaskedNode` for leaves that don't decay."""

    anchor: optax.Params

    def stored_like(self, params: optax.Params) -> "AnchorState":
        """The anchor in the types and on the devices of the parameters, of which there may be more."""
        return AnchorState(tree_map(_stored_like, self.anchor, params))


def toward(anchor: Literal["init"] | optax.Params) -> optax.GradientTransformation:
    """r(p) = p − a: decay toward the anchor a in place of zero, as L2-SP and fine-tuning have it.

    Args:
      anchor: "init" (the parameters at `init`), or a tree with the parameters' paths and shapes. Both are copied into
        the state, so that parameters can be donated; only leaves that can decay are.

    Returns:
      A rule with an `AnchorState`: one more array per decaying parameter, in its type.

    Raises:
      ValueError: for another string at once; at `init` for a leaf that is missing or has another shape, and where
        another rule comes first in the chain: p − a is of the parameters.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=0.5, rule=wd.rules.toward("init"))
      >>> start = {"kernel": jnp.array([[2.0]])}
      >>> moved = {"kernel": jnp.array([[3.0]])}
      >>> updates, _ = tx.update(optax.tree.zeros_like(moved), tx.init(start), moved)
      >>> print(f"{updates['kernel'].item():.3f}")  # −η·λ·(3 − 2)
      -0.050

    Reference: Xuhong et al. 2018, arXiv 1802.01483 (L2-SP).
    """
    if anchor is None or (isinstance(anchor, str) and anchor != "init"):
        raise ValueError(
            f'anchor={anchor!r}: use "init" (the parameters at init) or a tree of arrays; decay to zero needs no rule'
        )

    def init(params: optax.Params) -> AnchorState:
        if isinstance(anchor, str):
            return AnchorState(jax.tree.map(lambda p: jnp.array(p, dtype=p.dtype), params))
        return AnchorState(_like(anchor, params))

    def update(updates: optax.Params, state: AnchorState, params: Any = None) -> tuple[optax.Params, AnchorState]:
        if params is not None and any(map(operator.is_not, *map(jax.tree.leaves, (updates, params)))):
            raise ValueError(
                "rule: toward(...) comes after another rule, whose result isn't the parameters: the anchor goes first, "
                'as in optax.chain(wd.rules.toward("init"), wd.rules.cautious())'
            )
        return jax.tree.map_with_path(_displacement, updates, state.anchor, is_leaf=is_masked), state

    return optax.GradientTransformation(init, update)


def _displacement(path: Any, p: Any, a: Any) -> Any:
    if is_masked(a) and not is_masked(p):
        raise ValueError(
            f"anchor: {jax.tree_util.keystr(path)} decays and has no anchor, because its multiplier was 0 at init: "
            "a mask with arrays must be known at init and update, or traced at both"
        )
    return p if is_masked(p) else p - a.astype(p.dtype)


def _stored_like(a: jax.Array, p: jax.Array) -> jax.Array:
    placed = isinstance(p, jax.Array) and not isinstance(p, jax.core.Tracer) and p.committed
    a = a.astype(p.dtype)
    return jax.device_put(a, p.sharding) if placed and not isinstance(a, jax.core.Tracer) else a


def _like(anchor: optax.Params, params: optax.Params) -> optax.Params:
    """A copy of the anchor in the structure and types of the parameters."""
    given = dict(roles.flatten(anchor)[0])
    leaves = []
    for path, p in roles.flatten(params)[0]:
        if path not in given or jnp.shape(given[path]) != jnp.shape(p):
            got = f"shape {jnp.shape(given[path])}" if path in given else "nothing"
            raise ValueError(
                f"anchor at {path!r}: expected shape {jnp.shape(p)} like the parameter, got {got}: "
                'pass a tree with the parameters\' paths and shapes, or wd.rules.toward("init")'
            )
        leaves.append(jnp.array(given[path], dtype=p.dtype))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
