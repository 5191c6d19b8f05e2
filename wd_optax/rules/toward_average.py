"""Decay toward a moving average of the parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax.hyperparams import Scalar, check_scalar
from wd_optax.rules.checks import check_has_state, check_is_first
from wd_optax.rules.step import tree_map


class AverageState(NamedTuple):
    """The average: like the parameters, in float32 or wider; `optax.MaskedNode` for leaves that don't decay."""

    average: optax.Params


def toward_average(decay: Scalar) -> optax.GradientTransformation:
    """r(p) = p − a, after a ← decay·a + (1 − decay)·p: decay toward the moving average of the parameters.

    The average starts at the parameters at `init`. r takes it after its update: a step removes c·decay of the distance
    from the average before. (Taken before, both p and a would be needed after they are overwritten: 24 more bytes per
    parameter for copies on a CPU.)

    The average is kept in float32 (float64 for float64 parameters), also for parameters in fewer bits. In bfloat16 it
    wouldn't move: with decay=0.999 an update is below half a unit in the last place as soon as p is within twice a.

    Args:
      decay: β in [0, 1), the share of the average that stays per step: it averages over about 1/(1 − β) steps.
        Tracers aren't checked.

    Returns:
      A rule with an `AverageState`: one more array per decaying parameter, read and written at each step (8 bytes per
      float32 parameter; 16 on a CPU, whose loops write one array each).

    Raises:
      ValueError: for a decay outside [0, 1), and where another rule comes first in the chain.

    Example: a weight that jumps from 2 to 3 and is held there decays toward 2.5, then toward 2.75.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=1.0, rule=wd.rules.toward_average(0.5))
      >>> state, moved = tx.init({"kernel": jnp.array([[2.0]])}), {"kernel": jnp.array([[3.0]])}
      >>> for _ in range(2):
      ...     updates, state = tx.update(optax.tree.zeros_like(moved), state, moved)
      ...     average = optax.tree.get(state, "average")["kernel"]
      ...     print(f"{updates['kernel'].item():.3f} {average.item():.3f}")
      -0.050 2.500
      -0.025 2.750

    Reference: Polyak & Juditsky 1992 (averaging); Tarvainen & Valpola 2017, arXiv 1703.01780 (a moving average as the
    teacher of the weights).
    """
    check_scalar("decay", decay, below=1)

    def init(params: optax.Params) -> AverageState:
        return AverageState(jax.tree.map(lambda p: jnp.array(p, dtype=p.dtype), params))

    def update(updates: optax.Params, state: AverageState, params: Any = None) -> tuple[optax.Params, AverageState]:
        fix = "the average goes first, as in optax.chain(wd.rules.toward_average(0.999), wd.rules.cautious())"
        check_is_first("toward_average(...)", updates, params, fix)
        check_has_state("average", updates, state.average)

        def moved(p: jax.Array, a: jax.Array) -> jax.Array:
            a, beta = a.astype(p.dtype), jnp.asarray(decay, p.dtype)
            return beta * a + (1 - beta) * p

        average = tree_map(moved, updates, state.average)
        return tree_map(jnp.subtract, updates, average), AverageState(average)

    return optax.GradientTransformation(init, update)
