"""What a rule may look at: `Step`, and a `tree_map` that skips the leaves that don't decay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from wd_optax.masking.paths import is_masked


class Step(NamedTuple):
    """One step, as a rule sees it: `rule.update(p, rule_state, p, step=Step(...))`.

    Trees are like the parameters, with zeros where the gradient is None. They hold every leaf, also those that don't
    decay, which are `optax.MaskedNode` in the rule's own `p`: map over both with `wd_optax.rules.tree_map`.

        known to                                 gradients   descent   updates
        decoupled, sgdw, adamw                   yes         yes       yes
        with_decay                               yes         –         yes
        coupled, sgd_l2, adam_l2, add_l2_to_loss yes         yes (−g)  –
        add_decayed_weights                      –           yes       –
        shrink, proximal                         –           –         yes
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in Optax; shape=(), dtype=int32: steps taken before this one
    hyperparams: dict[str, jax.Array]  # this step's: learning_rate, weight_decay, peak_learning_rate; or rate
    rate: jax.Array  # shape=(), c_t; λ where the learning rate comes later, or where the coupling is a list of rules
    rates: optax.Params  # scalars, what r(p) is multiplied by: c_t·m of each leaf, or λ·m; 0.0 where nothing decays
    inner_state: optax.OptState  # the inner optimizer's: after this step, or before it where decay comes first
    gradients: optax.Updates | None  # raw; None in transforms that come later in a chain
    descent: optax.Updates | None  # −u, the step before the learning rate; None where only the finished step is known
    updates: optax.Updates | None  # the finished step without decay; None where decay comes before it


class Displacement:
    """What a rule may return for a leaf in place of r: k·r itself, so that it also acts where the rate k is 0.

    The rule must be the last of a chain, because a later one would need r: any use but `.value` raises.
    """

    def __init__(self, value: jax.Array):
        self.value = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what JAX and Python look for on any object
            raise AttributeError(name)
        raise ValueError(_LAST)

    def _refuse(self, *others: Any) -> Any:
        raise ValueError(_LAST)

    __neg__ = __abs__ = __getitem__ = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = __radd__ = __rsub__ = __rmul__ = __rtruediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse


_LAST = (
    'rule: active_rows(policy="lazy") comes last in a chain, because a later rule would change what its rows have '
    'caught up with: put the other rule on other leaves, optax.partition({...}, labels), or use policy="skip"'
)


def tree_map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map(f, tree, *rest)` that keeps `optax.MaskedNode`s of `tree`, whatever `rest` has there.

    Args:
      f: a function of one leaf of each tree.
      tree: parameters, as a rule gets them: leaves that don't decay are `optax.MaskedNode()`.
      *rest: trees like the parameters, such as those in `Step`.

    Returns:
      A tree like `tree`.

    Raises:
      ValueError: for a tree of `Step` that isn't known where the rule is used.

    Example:
      >>> import optax, wd_optax as wd
      >>> wd.rules.tree_map(lambda p, g: p * g, {"b": optax.MaskedNode(), "w": 2.0}, {"b": 5.0, "w": 3.0})
      {'b': MaskedNode(), 'w': 6.0}
    """
    if any(x is None for x in rest):
        raise ValueError(
            "tree_map: a tree of the rule's Step is None, because this transformation doesn't know it: gradients are "
            "known to optimizers and add_l2_to_loss, descent to all but with_decay, shrink and proximal, updates to "
            "those and to decoupled, sgdw and adamw"
        )
    keep = lambda x, *xs: x if is_masked(x) else f(x, *xs)
    return jax.tree.map(keep, tree, *rest, is_leaf=is_masked)
