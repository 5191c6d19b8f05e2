"""Resume a checkpoint of an Optax optimizer under one of ours, moments and counts kept."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging

from wd_optax import roles
from wd_optax.pull import DecayState


def migrate_state(opt_state: Any, optimizer: optax.GradientTransformation, params: Any) -> DecayState:
    """The state of `optimizer` with the moments and the step count of an Optax state.

    Args:
      opt_state: the state of `optax.adamw`, `optax.adam`, `optax.sgd` or a chain of them with
        `optax.add_decayed_weights`, or of the optimizer that `with_decay` wraps: as Optax made it, or as nested
        dicts and lists, as a checkpoint reader gives it without a target.
      optimizer: one of ours.
      params: the parameters, as at `init`.

    Returns:
      `optimizer.init(params)` with every moment and count found in `opt_state`, in `optimizer`'s types; learning
      rate and weight decay are `optimizer`'s own.

    Raises:
      ValueError: where a moment is missing, found twice or of another shape, where counts differ, and for an
        optimizer that isn't ours.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> old = optax.adamw(1e-3)
      >>> _, opt_state = old.update(params, old.init(params), params)
      >>> state = wd.migrate_state(opt_state, wd.adamw(1e-3, weight_decay=0.1), params)
      >>> int(state.count), float(state.inner.mu["kernel"][0, 0])
      (1, 0.10000000149011612)
    """
    fresh = optimizer.init(params)
    if not isinstance(fresh, DecayState):
        raise ValueError(f"optimizer makes a {type(fresh).__name__}: pass an optimizer of wd_optax, or with_decay(...)")
    count = _count(opt_state)
    same = jax.tree.structure(opt_state) == jax.tree.structure(fresh.inner)  # type: ignore[operator]  # jaxlib's stub
    if same:
        inner = jax.tree.map(_like, fresh.inner, opt_state)
    else:
        is_field = lambda path, _: bool(path) and isinstance(path[-1], jax.tree_util.GetAttrKey)
        fill = lambda path, new: count if path[-1].name == "count" else _moment(opt_state, path[-1].name, new)
        inner = jax.tree_util.tree_map_with_path(fill, fresh.inner, is_leaf=is_field, is_leaf_takes_path=True)
    return fresh._replace(count=count, inner=inner)


def _count(opt_state: Any) -> jax.Array:
    """The one step count of a state; 0 where it keeps none, as SGD at a constant rate."""
    is_count = lambda x: getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.integer)
    counts = {int(x) for _, x in optax.tree.get_all_with_path(opt_state, "count") if is_count(x)}
    if len(counts) > 1:
        raise ValueError(
            f"opt_state has different step counts {sorted(counts)}: migrate the state of the inner optimizer, "
            "without the wrapper (MultiSteps, apply_if_finite) that counts apart"
        )
    if not counts:
        logging.warning("migrate_state: opt_state keeps no step count; schedules start again at step 0")
    return jnp.asarray(counts.pop() if counts else 0, jnp.int32)


def _moment(opt_state: Any, name: str, new: Any) -> Any:
    """The tree `name` of an old state, in the structure and types of the new one."""
    found = [tree for _, tree in optax.tree.get_all_with_path(opt_state, name)]
    paths = lambda tree: {path for path, _ in roles.flatten(tree)[0]}
    found = [tree for tree in found if paths(tree) == paths(new)] or found  # not a parameter of that name
    if len(found) != 1:
        raise ValueError(
            f"opt_state has {len(found)} trees named {name!r}, and the optimizer needs one; migrate from the state of "
            "an Optax optimizer of the same kind: adam to adamw or adam_l2, sgd with momentum to sgdw or sgd_l2"
        )
    old = dict(roles.flatten(found[0])[0])
    leaves = []
    for path, leaf in roles.flatten(new)[0]:
        if path not in old:
            raise ValueError(f"opt_state has no {name!r} for parameter {path!r}; it has {', '.join(old)}")
        leaves.append(_like(leaf, old[path], f"{name} of {path!r}"))
    return jax.tree.unflatten(jax.tree.structure(new), leaves)


def _like(new: Any, old: Any, what: str = "opt_state") -> jax.Array:
    if jnp.shape(new) != jnp.shape(old):
        raise ValueError(f"{what} has shape {jnp.shape(old)}, expected {jnp.shape(new)} as in params")
    return jnp.array(old, dtype=new.dtype)
