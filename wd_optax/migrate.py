"""Resume a checkpoint of an Optax optimizer under one of ours, moments and counts kept."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging

from wd_optax import roles
from wd_optax.pull import DecayState


def migrate_state(opt_state: Any, optimizer: optax.GradientTransformation, params: Any) -> DecayState:
    """
    The state of `optimizer` with the moments and the step count of an Optax state.

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
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(fresh.inner)[0]]
        fields = {name for path in paths if (name := _field(path))}
        values = {name: _moment(opt_state, name, fresh.inner) for name in sorted(fields - {"count"})}
        inner = optax.tree.set(fresh.inner, **values, **({"count": count} if "count" in fields else {}))
    return fresh._replace(count=count, inner=inner)


def _field(path: Any) -> str | None:
    """The first attribute in a key path: the NamedTuple's field that holds the leaf."""
    return next((entry.name for entry in path if isinstance(entry, jax.tree_util.GetAttrKey)), None)


def _count(opt_state: Any) -> jax.Array:
    """The one step count of a state; 0 where it keeps none, as SGD at a constant rate."""
    counts = {int(value) for _, value in optax.tree.get_all_with_path(opt_state, "count")}
    if len(counts) > 1:
        raise ValueError(
            f"opt_state has different step counts {sorted(counts)}: migrate the state of the inner optimizer, "
            "without the wrapper (MultiSteps, apply_if_finite) that counts apart"
        )
    if not counts:
        logging.warning("migrate_state: opt_state keeps no step count; schedules start again at step 0")
    return jnp.asarray(counts.pop() if counts else 0, jnp.int32)


def _moment(opt_state: Any, name: str, inner: Any) -> Any:
    """The tree `name` of an old state, in the structure and types of the new one."""
    found = [tree for _, tree in optax.tree.get_all_with_path(opt_state, name)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state has {len(found)} trees named {name!r}, and the optimizer needs one; migrate from the state of "
            "an Optax optimizer of the same kind: adam to adamw or adam_l2, sgd with momentum to sgdw or sgd_l2"
        )
    new = optax.tree.get(inner, name)
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
