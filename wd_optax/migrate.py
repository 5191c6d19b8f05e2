"""Resume a checkpoint of an Optax optimizer under one of ours, with its moments and counts."""

import collections
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from wd_optax import state_fields
from wd_optax.core import DecayState
from wd_optax.hyperparams import check_transformation
from wd_optax.masking import roles
from wd_optax.state_fields import Field

COUNT_FIELDS = ("count", "step", "gradient_step")  # of the optimizer, of ours, of MultiSteps
# Fields of wrappers that are carried over where both states have them; `anchor` was a field of DecayState in 0.1.0.
CARRIED = ("anchor", "residual", "master", "mini_step", "acc_grads", "radius")
# The other fields of wrappers are `optimizer`'s own.
WRAPPERS = (
    "DecayState", "RadiusState", "RoundState", "MasterState", "MultiStepsState", "ApplyIfFiniteState",
    "InjectStatefulHyperparamsState", "InjectHyperparamsState", "WrappedScheduleState",
)  # fmt: skip
SAME_MOMENT = {"MomentumState": "TraceState"}  # two types that hold the same moment


def migrate_state(
    opt_state: optax.OptState,
    optimizer: optax.GradientTransformation,
    params: optax.Params,
    *,
    check_moments: bool = True,
) -> optax.OptState:
    """The state of `optimizer` with the moments and the step count of another optimizer's state.

    Args:
      opt_state: the state of `optax.adamw`, `optax.adam`, `optax.sgd` or a chain of them with
        `optax.add_decayed_weights`, of the optimizer that `with_decay` wraps, of an optimizer of ours, or of one of
        these in `MultiSteps`, `apply_if_finite`, `inject_hyperparams` or a chain: as it was made, or as nested dicts
        and lists, as a checkpoint reader gives it without a target.
      optimizer: one of ours, also inside a chain or a wrapper, with `rounding`, or monitored.
      params: the parameters, as at `init`.
      check_moments: refuse second moments that can't be means of g², see below.

    Returns:
      `optimizer.init(params)` with every moment and count found in `opt_state`, in `optimizer`'s types; learning
      rate and weight decay are `optimizer`'s own. The rule's state (such as an anchor), radii, rounding residuals,
      float32 copies and the pending gradients of `MultiSteps` are carried over where both states have them.

    Raises:
      ValueError: where a moment is missing, found twice, of another shape or would be dropped, as amsgrad's `nu_max`;
        where it means something else, as adabelief's `nu`; where counts differ; for an optimizer that isn't ours.

    The state of `optax.adamax` has Adam's types, but its `nu` is a largest |g|, never below |mu|. A state with
    nu ≥ |mu| in every entry is refused as adamax's by `adamw` and the like. Adam's looks so where all gradients are far
    above 1: then pass `check_moments=False`.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> old = optax.adamw(1e-3)
      >>> _, opt_state = old.update(params, old.init(params), params)
      >>> state = wd.migrate_state(opt_state, wd.adamw(1e-3, weight_decay=0.1), params)
      >>> int(optax.tree.get(state, "count")), float(state.inner.mu["kernel"][0, 0])
      (1, 0.10000000149011612)
    """
    check_transformation("optimizer", optimizer)
    fresh = optimizer.init(params)
    nodes = jax.tree.leaves(fresh, is_leaf=lambda node: isinstance(node, DecayState))
    ours = [node for node in nodes if isinstance(node, DecayState)]
    if not ours:
        raise ValueError(f"optimizer makes a {type(fresh).__name__}: pass an optimizer of wd_optax, or with_decay(...)")
    # A checkpoint that is read without types has {} for `optax.MaskedNode`.
    unmasked = lambda x: optax.MaskedNode() if isinstance(x, dict) else x
    opt_state = jax.tree.map(unmasked, opt_state, is_leaf=lambda x: isinstance(x, dict) and not x)
    old = _OldState(list(state_fields.fields(opt_state, params)), fresh, params)
    count = old.count()

    def change(new: Field) -> Any:
        if new.name in COUNT_FIELDS and _is_count(new.value) and not _in_rule(new):
            return count
        if not jax.tree.leaves(new.value) or not old.provides(new):
            return new.value
        return old.take(new)

    state = state_fields.map_fields(change, fresh, params)
    old.refuse_lost()
    if check_moments and any(map(state_fields.is_namedtuple, (node.inner for node in ours))):
        _refuse_largest(old)
    return state


def _in_rule(field: Field) -> bool:
    """Whether it is the rule's state: a rule may have a `count` or `mu` of its own, which isn't the optimizer's."""
    return "rule" in (*field.outer, field.name)


class _OldState:
    """The fields of the old state, and which of them were taken over."""

    def __init__(self, found: list[Field], fresh: optax.OptState, params: optax.Params):
        wanted: list[Field] = []
        state_fields.map_fields(wanted.append, fresh, params)
        self.numbers = collections.Counter((_in_rule(field), field.name) for field in wanted)
        self.next = {key: itertools.count() for key in self.numbers}
        self.found, self.like_params = found, state_fields.is_like(params)
        self.shapes = [jnp.shape(p) for p in jax.tree.leaves(params)]
        self.used: set[int] = set()

    def named(self, name: str, in_rule: bool = False) -> list[Field]:
        """Those that have an entry per parameter, or, if there is none, all of that name."""
        same = [field for field in self.found if (_in_rule(field), field.name) == (in_rule, name)]
        if in_rule and name == "anchor" and not same:
            return self.named(name)  # of 0.1.0
        return [field for field in same if self.like_params(field.value)] or same

    def count(self) -> jax.Array:
        """The one step count; 0 where the state keeps none, as SGD at a constant rate."""
        found = [field for field in self.found if not _in_rule(field)]
        counts = {int(field.value) for field in found if field.name in COUNT_FIELDS[:2] and _is_count(field.value)}
        counts = counts or {int(field.value) for field in found if field.name == "gradient_step"}
        if len(counts) > 1:
            raise ValueError(
                f"opt_state has different step counts {sorted(counts)}: migrate the state of the inner optimizer, "
                "without the wrapper that keeps a count of its own"
            )
        if not counts:
            logging.warning("migrate_state: opt_state keeps no step count; schedules start again at step 0")
        return jnp.asarray(counts.pop() if counts else 0, jnp.int32)

    def provides(self, new: Field) -> bool:
        """Whether a field comes from the old state. Fields of rules and wrappers, and scalars, may be new."""
        there, number = self.named(new.name, _in_rule(new)), self.numbers[_in_rule(new), new.name]
        if _in_rule(new):
            if there and len(there) != number:
                raise ValueError(
                    f"opt_state has {len(there)} trees named {new.name!r} in its rule, the optimizer has {number}: "
                    "migrate to an optimizer with a rule of the same parts, or start it with optimizer.init(params)"
                )
            return bool(there)
        if new.holder in WRAPPERS:
            return new.name in CARRIED and len(there) in (1, number)
        return bool(there) or self.like_params(new.value)

    def take(self, new: Field) -> Any:
        """The old value of a field, in the new one's structure and types."""
        key = (_in_rule(new), new.name)
        found, place = self.named(new.name, _in_rule(new)), next(self.next[key])
        if len(found) not in (1, self.numbers[key]):
            raise ValueError(
                f"opt_state has {len(found)} trees named {new.name!r}, and the optimizer needs one; migrate from the "
                "state of an Optax optimizer of the same kind: adam to adamw or adam_l2, sgd with momentum to sgdw or "
                "sgd_l2"
            )
        old = found[place if len(found) > 1 else 0]
        if old.holder not in ("dict", new.holder, SAME_MOMENT.get(new.holder)) and old.holder not in SAME_MOMENT:
            raise ValueError(
                f"opt_state has {new.name!r} in a {old.holder}, where it means something else than in the optimizer's "
                f"{new.holder}: keep that optimizer, as wd.with_decay(optimizer, ...) or wd.decoupled(direction, ...)"
            )
        self.used.add(id(old.value))
        return _refill(new, old)

    def refuse_lost(self) -> None:
        """Raises for an old tree with an entry per parameter that has no place in the new state."""
        steps = [field.value for field in self.found if field.name == "mini_step"]
        pending = any(int(step) for step in steps)
        for field in self.found:
            if id(field.value) in self.used or _in_rule(field) or not self._is_moment(field.value):
                continue
            if field.name == "acc_grads" and pending:
                raise ValueError(
                    f"opt_state is a MultiSteps state with gradients pending (mini_step={int(steps[0])}), which would "
                    "be lost: pass optimizer=optax.MultiSteps(optimizer, k), or migrate after a full accumulation"
                )
            if field.name not in CARRIED:
                raise ValueError(
                    f"opt_state has {field.name!r} (in a {field.holder}), for which the optimizer has no place: it "
                    "would be lost, and the steps would differ. Keep that optimizer, as wd.with_decay(optimizer, ...) "
                    "or wd.decoupled(direction, ...)"
                )

    def _is_moment(self, tree: Any) -> bool:
        leaves = jax.tree.leaves(tree)
        if not self.like_params(tree) or [jnp.shape(x) for x in leaves] != self.shapes:
            return False
        return all(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in leaves)


def _is_count(x: Any) -> bool:
    return getattr(x, "shape", None) == () and bool(jnp.issubdtype(x.dtype, jnp.integer))


def _refill(new: Field, old: Field) -> Any:
    """The leaves of an old field in the structure and types of the new one."""
    values = dict(roles.flatten(old.value)[0])
    leaves = []
    for path, leaf in roles.flatten(new.value)[0]:
        if path not in values:
            raise ValueError(f"opt_state has no {new.name!r} for parameter {path!r}; it has {', '.join(values)}")
        if jnp.shape(leaf) != jnp.shape(values[path]):
            what = f"{new.name} of {path!r}" if path else new.name
            raise ValueError(f"{what} has shape {jnp.shape(values[path])}, expected {jnp.shape(leaf)} as in params")
        leaves.append(jnp.array(values[path], dtype=leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(new.value), leaves)


def _refuse_largest(old: _OldState) -> None:
    """Raises for the moments of adamax: its nu bounds |mu|, which a mean of squares doesn't."""
    mus, nus = (old.named(name) for name in ("mu", "nu"))
    if not all(len(fields) == 1 and id(fields[0].value) in old.used for fields in (mus, nus)):
        return
    pairs = zip(*(map(np.asarray, jax.tree.leaves(fields[0].value)) for fields in (mus, nus)), strict=True)
    moved = [(abs(mu[mu != 0]), nu[mu != 0]) for mu, nu in pairs if mu.shape == nu.shape]
    if sum(mu.size for mu, _ in moved) and all((mu <= 1.02 * nu).all() for mu, nu in moved):
        raise ValueError(
            "opt_state has nu ≥ |mu| in every entry, as the state of optax.adamax, whose nu is a largest |g| and not a "
            "mean of g²: keep adamax, as wd.with_decay(optax.adamax(...), ...). If it is Adam's, from gradients far "
            "above 1, pass check_moments=False"
        )
