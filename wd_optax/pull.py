"""The one mechanism: wrap a transformation, and pull its updates toward the anchor before or after it.

Every transform and optimizer of this library is `decayed(...)` with a rule for where the pull stands.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import anchors, dtypes, masks
from wd_optax import hyperparams as live


class DecayState(NamedTuple):
    """State of every transform and optimizer here: arrays only, the same tree for any mask or schedule.

    `hyperparams` are live: a value given as a Python or NumPy number is read from here at each step, so it can be
    logged, swept with `vmap` and edited: `optax.tree.set(state, weight_decay=jnp.float32(0))`, and under
    `nnx.Optimizer` `optimizer.opt_state.hyperparams["weight_decay"][...] = 0`. A schedule or a JAX array is the
    caller's: it is read at each step, and recorded here.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in Optax; shape=(), dtype=int32: steps taken
    hyperparams: dict[str, jax.Array]  # shapes=(), dtype: JAX's default float
    anchor: Any  # like the parameters, or () where decay goes to zero
    inner: Any  # the wrapped optimizer's state


Formula = Callable[[Any, Any, Any, Any], Any]  # (u, p, p − anchor, k) -> u, entry by entry


def add(u: Any, p: Any, toward: Any, k: Any) -> Any:
    """u + k·(p − anchor)."""
    del p
    return u + k * toward


class Pull(NamedTuple):
    """One step's pull toward the anchor: call it with the updates and a strength."""

    hyperparams: dict[str, jax.Array]
    params: Any
    multipliers: Any
    anchor: Any

    def __call__(self, updates: Any, strength: jax.Array, *, formula: Formula = add, cautious: bool = False) -> Any:
        """Maps `formula` over the leaves that decay; by default u + k·(p − anchor), with k = strength·m.

        Computed in float32 or wider, returned in the update's type. Where k is 0 the update comes back bit for
        bit, also where p is infinite; None leaves and leaves whose multiplier is 0 are not touched at all.

        Args:
          updates: gradients, descent directions (positive strength) or finished steps (negative strength).
          strength: a scalar.
          formula: the rule, (u, p, p − anchor, k) -> u.
          cautious: pull only the entries where the pull has the update's sign, 1[u·k·(p − anchor) ≥ 0].

        """

        def pulled(u: Any, p: Any, m: Any, anchor: Any = None) -> Any:
            if u is None or masks.is_zero(m):
                return u
            dtype = dtypes.arithmetic(p.dtype, u.dtype)
            wide = lambda x: jnp.asarray(x).astype(dtype)
            k = wide(strength * jnp.asarray(m, strength.dtype))
            toward = wide(p) if anchor is None else wide(p) - wide(anchor)
            use = k != 0
            if cautious:
                use &= jnp.real(jnp.sign(jnp.conj(wide(u))) * jnp.sign(k) * jnp.sign(toward)) >= 0
            return jnp.where(use, formula(wide(u), wide(p), toward, k).astype(u.dtype), u)

        trees = (self.params, self.multipliers) + ((self.anchor,) if jax.tree.leaves(self.anchor) else ())
        return jax.tree.map(pulled, updates, *trees, is_leaf=lambda x: x is None)


Hook = Callable[[Any, Pull], Any]  # (updates, pull) -> updates


def decayed(
    name: str,
    inner: optax.GradientTransformation,
    hyperparams: dict[str, live.ScalarOrSchedule],
    *,
    mask: masks.Mask,
    anchor: Any = None,
    before: Hook = lambda updates, pull: updates,
    after: Hook = lambda updates, pull: updates,
) -> optax.GradientTransformationExtraArgs:
    """`inner` with decay before it, after it, or both: what every function of this library is made of.

    Args:
      name: what to call it in errors.
      inner: the wrapped transformation; its extra arguments pass through.
      hyperparams: numbers, arrays or schedules, which become leaves of the state.
      mask: see `wd_optax.masks`.
      anchor: None, "init" or a tree.
      before: updates before `inner` sees them.
      after: updates that `inner` returned.
    """
    anchors.check(anchor)
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> DecayState:
        masks.warn_if_nothing_decays(mask, params)
        count = jnp.zeros((), jnp.int32)
        values = {k: live.start(v, count) for k, v in hyperparams.items()}
        return DecayState(count, values, anchors.resolve(anchor, params), inner.init(params))

    def update(updates: Any, state: DecayState, params: Any = None, **extra: Any) -> tuple[Any, DecayState]:
        if params is None:
            raise ValueError(f"{name} decays the parameters, so update needs them: tx.update(grads, state, params)")
        values = {k: live.now(v, state.count, state.hyperparams[k]) for k, v in hyperparams.items()}
        pull = Pull(values, params, masks.multipliers(mask, params), state.anchor)
        updates, inner_state = inner.update(before(updates, pull), state.inner, params, **extra)
        count = optax.safe_increment(state.count)
        return after(updates, pull), DecayState(count, values, state.anchor, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
