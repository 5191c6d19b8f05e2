"""Hyperball: a step of fixed length, and weights of fixed norm."""

import operator

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.core import decayed
from wd_optax.hyperparams import ScalarOrSchedule, check_number
from wd_optax.masking.masks import Mask
from wd_optax.masking.slices import SliceAxes, Slices
from wd_optax.precision.random_bits import Key
from wd_optax.precision.rounding import Rounding, rounded
from wd_optax.projection.radius import keep_radius, onto_sphere, radius_of, refuse_fractions, scale_to
from wd_optax.rules.norms import slice_norm
from wd_optax.wrappers import never_skipping


def hyperball(
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    mask: Mask = "weights",
    slices: Slices = None,
    rounding: Rounding | None = None,
    key: Key = 0,
) -> optax.GradientTransformationExtraArgs:
    """p ← R·N(p − η_t·R·N(u)) with N(x) = x/‖x‖ and R = ‖p₀‖, each weight by itself; no decay is needed.

    η is relative to the norm of the weight: a step turns it by at most arcsin η radians, whatever the sizes of p and u
    are. Leaves outside the mask take the plain step p − η_t·u. A weight whose u is 0 stays bit for bit.

    A decay of p by η·λ beside the step changes the new weight by O(η²) only, because it points along p; λ·p as a part
    of u changes it by O(η), because it takes a share of the step's fixed length.

    Args:
      direction: what comes before the learning rate, as for `wd_optax.decoupled`: `optax.scale_by_adam()`, a chain of
        such, or an optimizer at learning rate 1, turned around: `optax.chain(optax.contrib.muon(1.0),
        optax.scale(-1.0))`. Extra arguments of `update` reach it.
      learning_rate: η_t, a live leaf: a number, an array or a schedule.
      mask: which leaves, see `wd_optax.masking`; weights and embeddings by default. The authors train embeddings
        with plain Adam: mask=[("embed", 0.0), (".*", "weights")]. Its multipliers must be 0 or 1.
      slices: which axes count weights, see `wd_optax.explain_slices`: each has its own R and ‖u‖.
      rounding, key: see `wd_optax.optimizers`.

    Returns:
      A transformation with a `wd_optax.core.DecayState`; updates keep their shapes and dtypes (float32 with a
      `rounding`). The radii are `optax.tree.get(state, "radius")`, in float32 or wider.

    Raises:
      ValueError, TypeError: for a bad number at once; at `init` for a mask or slices that don't fit, for a multiplier
        that is neither 0 nor 1, for a weight of norm 0, and for a direction that skips updates.

    Example: η = 1 across the weight turns it by arctan 1, 45°; the norm stays 5.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
      >>> tx = wd.hyperball(optax.identity(), 1.0)
      >>> updates, _ = tx.update({"kernel": jnp.array([[8.0, -6.0]])}, tx.init(params), params)
      >>> new = optax.apply_updates(params, updates)["kernel"]
      >>> print(*(f"{x:.3f}" for x in (*new[0], jnp.linalg.norm(new))))
      -0.707 4.950 5.000

    References:
      Wen, Dang, Lyu, Ma & Liang 2026, arXiv 2606.16899.
    """
    check_number("learning_rate", learning_rate)
    wasted = "the learning rate's schedule around it would count the skipped ones"
    inner = keep_radius("hyperball", never_skipping("hyperball", direction, wasted), mask, slices)
    tx = decayed(
        "hyperball", inner, {"learning_rate": learning_rate}, mask=mask, place="after", descends=True, slices=slices,
        prox=_turn, metric=radius_of, rate=operator.itemgetter("learning_rate"),
    )  # fmt: skip

    def init(params: optax.Params) -> optax.OptState:
        refuse_fractions("hyperball", mask, dtypes.as_arrays(params))
        return tx.init(params)

    return rounded(optax.GradientTransformationExtraArgs(init, tx.update), rounding, key)


def _turn(step: jax.Array, r: jax.Array, k: jax.Array, metric: jax.Array, axes: SliceAxes) -> jax.Array:
    """The step from r = p, with −η·u in `step`, η in k and R in the metric's place."""
    length = slice_norm(step, axes)
    moved = onto_sphere(r, scale_to(k * metric, length).astype(step.dtype) * step, metric, axes)
    return jnp.where(length == 0, 0, moved)
