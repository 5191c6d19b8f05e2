"""The one mechanism: wrap a transformation, and decay toward the anchor before or after it.

Every transform and optimizer of this library is a call of `decayed(...)` that says where the decay is placed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax import hyperparams as live
from wd_optax.masking import masks
from wd_optax.rules import toward


class DecayState(NamedTuple):
    """State of every transform and optimizer here: arrays only, the same tree for any mask or schedule.

    `hyperparams` are live: a value given as a Python or NumPy number is read from here at each step, so it can be
    logged, swept with `vmap` and edited: `optax.tree.set(state, weight_decay=jnp.float32(0))`, and under
    `nnx.Optimizer` `optimizer.opt_state.hyperparams["weight_decay"][...] = 0`. A schedule's value is recorded here. A
    JAX array is the caller's and has no leaf, so that under `optax.inject_hyperparams` each name is found once.

    The counter is called `step`, so that `optax.tree.get(state, "count")` finds the `count` of the wrapped optimizer.
    """

    step: jax.Array  # shape=(), dtype=int32: steps taken
    hyperparams: dict[str, jax.Array]  # shapes=(), dtype: JAX's default float
    anchor: Any  # like the parameters, or () where decay goes to zero
    inner: Any  # the wrapped optimizer's state


Formula = Callable[[Any, Any, Any, Any], Any]  # (u, p, p − anchor, k) -> u, entry by entry


def add(u: Any, p: Any, toward: Any, k: Any) -> Any:
    """u + k·(p − anchor)."""
    del p
    return u + k * toward


class Pull(NamedTuple):
    """One step's decay toward the anchor: call it with the updates and a strength."""

    hyperparams: dict[str, jax.Array]
    params: Any
    multipliers: Any
    anchor: Any

    def __call__(self, updates: Any, strength: jax.Array, *, formula: Formula = add, gate: Any = None) -> Any:
        """Maps `formula` over the leaves that decay; by default u + k·(p − anchor), with k = strength·m.

        Computed in float32 or wider, returned in the update's type. Where k is 0 the update comes back bit for
        bit, also where p is infinite; None leaves and leaves whose multiplier is 0 are not touched at all.

        Args:
          updates: gradients, descent directions (positive strength) or finished steps (negative strength).
          strength: a scalar.
          formula: the rule, (u, p, p − anchor, k) -> u.
          gate: steps s like `updates`, of any length, for cautious decay: only entries with s·(p − anchor) ≤ 0 decay.

        """
        trees = {"anchor": self.anchor} if jax.tree.leaves(self.anchor) else {}
        trees |= {} if gate is None else {"gate": gate}

        def pulled(u: Any, p: Any, m: Any, *others: Any) -> Any:
            if u is None or masks.is_zero(m):
                return u
            given = dict(zip(trees, others, strict=True))
            dtype = dtypes.arithmetic(p.dtype, u.dtype)
            wide = lambda x: jnp.asarray(x).astype(dtype)
            k = wide(strength * jnp.asarray(m, strength.dtype))
            toward = wide(p) - wide(given["anchor"]) if "anchor" in given else wide(p)
            use = k != 0
            if "gate" in given:
                use &= jnp.real(jnp.sign(jnp.conj(wide(given["gate"]))) * jnp.sign(toward)) <= 0
            return jnp.where(use, formula(wide(u), wide(p), toward, k).astype(u.dtype), u)

        is_none = lambda x: x is None
        return jax.tree.map(pulled, updates, self.params, self.multipliers, *trees.values(), is_leaf=is_none)


Hook = Callable[[Any, Pull], Any]  # (updates, pull) -> updates


def decayed(
    name: str,
    inner: optax.GradientTransformation,
    hyperparams: dict[str, live.ScalarOrSchedule],
    *,
    mask: masks.Mask,
    anchor: Any = None,
    largest: float | None = None,
    before: Hook = lambda updates, pull: updates,
    after: Hook = lambda updates, pull: updates,
) -> optax.GradientTransformationExtraArgs:
    """Builds a transformation that applies `inner` and decays before it, after it, or both.

    Args:
      name: what to call it in errors.
      inner: the wrapped transformation; its extra arguments pass through.
      hyperparams: numbers, arrays or schedules; numbers and schedules become leaves of the state.
      mask: see `wd_optax.masking`.
      anchor: None, "init" or a tree.
      largest: the largest fraction removed per step where m = 1, if it is known: then m·c must be below 1.
      before: updates before `inner` sees them.
      after: updates that `inner` returned.
    """
    toward.check(anchor)
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> DecayState:
        params = dtypes.as_arrays(params)
        masks.warn_if_nothing_decays(mask, params)
        if largest is not None:
            _check_multipliers(mask, params, largest)
        step = jnp.zeros((), jnp.int32)
        return DecayState(step, live.start(hyperparams, step), toward.resolve(anchor, params), inner.init(params))

    def update(updates: Any, state: DecayState, params: Any = None, **extra: Any) -> tuple[Any, DecayState]:
        if params is None:
            raise ValueError(f"{name} decays the parameters, so update needs them: tx.update(grads, state, params)")
        check_state(name, state)
        updates, params = dtypes.as_arrays(updates), dtypes.as_arrays(params)
        values = live.now(hyperparams, state.step, state.hyperparams)
        pull = Pull(values, params, masks.multipliers(mask, params), state.anchor)
        updates, inner_state = inner.update(before(updates, pull), state.inner, params, **extra)
        step = optax.safe_increment(state.step)
        return after(updates, pull), DecayState(step, live.keep(hyperparams, values), state.anchor, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def check_state(name: str, state: Any) -> None:
    """Raises for the state of another optimizer, such as an Optax checkpoint's."""
    if not isinstance(state, DecayState):
        kind = type(state).__name__
        if isinstance(state, tuple) and not hasattr(state, "_fields"):
            kind += f" of {', '.join(type(x).__name__ for x in state)}"
        raise TypeError(
            f"{name}: state is a {kind}, expected a DecayState. Start with state = optimizer.init(params), or resume a "
            "checkpoint of another optimizer with state = wd.migrate_state(opt_state, optimizer, params)"
        )


def _check_multipliers(mask: masks.Mask, params: Any, c: float) -> None:
    """Raises where m·c ≥ 1: that removes the whole weight, and more would flip its sign."""
    m, path = masks.largest_multiplier(mask, params)
    if m * c >= 1:
        raise ValueError(
            f"mask: the multiplier {m:g} of {path!r} times c = {c:.3g} removes {m * c:.3g} of the weight per step; "
            f"it must be below 1: pass a multiplier below {1 / c:.3g}, or lower the decay"
        )
