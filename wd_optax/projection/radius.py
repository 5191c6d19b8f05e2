"""The radius of each weight's sphere: its norm at init, kept in the state, and the point at that distance from 0."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import init_checks
from wd_optax.masking import forms, masks, roles
from wd_optax.masking.masks import Mask
from wd_optax.masking.slices import SliceAxes, Slices, slice_axes
from wd_optax.rules.norms import check_per_slice, slice_norm, slice_norms, use_slices


class RadiusState(NamedTuple):
    """State of `keep_radius`: arrays only."""

    radius: optax.Params  # ‖p‖ of each weight at init, float32 or wider, reduced axes of size 1; MaskedNode where m = 0
    inner: optax.OptState  # the wrapped transformation's state


def keep_radius(
    name: str, inner: optax.GradientTransformation, mask: Mask, slices: Slices
) -> optax.GradientTransformationExtraArgs:
    """`inner`, with the norm of each weight at init in its state.

    Raises:
      ValueError: at `init`, for a weight of norm 0: its sphere is a point, and it could never move.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> RadiusState:
        hide = lambda p, m: optax.MaskedNode() if forms.is_zero(m) else p
        kept = jax.tree.map(hide, params, masks.multipliers(mask, params))
        with use_slices(slice_axes(slices, params)):
            radius = slice_norms(kept)
        _refuse_zero(name, kept, radius)
        return RadiusState(radius, inner.init(params))

    def update(updates: Any, state: RadiusState, params: Any = None, **extra: Any) -> tuple[Any, RadiusState]:
        if not isinstance(state, RadiusState):
            raise TypeError(
                f"{name}: the state has no radii, but a {type(state).__name__}: start with "
                "state = optimizer.init(params), or resume with state = wd.migrate_state(opt_state, optimizer, params)"
            )
        with use_slices(slice_axes(slices, params)):
            check_per_slice(name, state.radius, params)
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        return updates, RadiusState(state.radius, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def radius_of(state: RadiusState) -> optax.Params:
    """The radii, where `wd_optax.core.decayed` asks for a metric."""
    return state.radius


def onto_sphere(p: jax.Array, step: jax.Array, radius: jax.Array, axes: SliceAxes) -> jax.Array:
    """R·q/‖q‖ − p for each weight, with q = p + step; 0 where q is 0.

    As (s − 1)·p + s·step, with s = R/‖q‖: XLA's CPU compiler would write q to memory for its two uses
    (tests/test_projection.py: test_a_projection_reads_the_leaf_twice).
    """
    norm = slice_norm(p + step, axes)
    s = scale_to(radius, norm).astype(p.dtype)
    return jnp.where(norm == 0, 0, (s - 1) * p + s * step)


def scale_to(radius: jax.Array, norm: jax.Array) -> jax.Array:
    """R/‖x‖, finite where the norm is 0; NaN, and not 0, where it is infinite."""
    return jnp.real(radius) / jnp.where(norm < jnp.inf, jnp.where(norm == 0, 1, norm), jnp.nan)


def refuse_fractions(name: str, mask: Mask, params: optax.Params) -> None:
    """Raises for a multiplier that is neither 0 nor 1."""
    for row in masks.tabulate(mask, params).rows:
        if not isinstance(row.multiplier, float) or row.multiplier not in (0.0, 1.0):
            raise ValueError(
                f"mask: {name} takes the multipliers 0 and 1, got {row.multiplier} for {row.path!r}: a multiplier "
                "scales a decay, and a weight is on its sphere or it isn't. Write 1.0, or 0.0 to leave it alone"
            )


def _refuse_zero(name: str, params: optax.Params, radius: optax.Params) -> None:
    for (path, p), norm in zip(roles.flatten(params)[0], jax.tree.leaves(radius), strict=True):
        error = ValueError(
            f"{name}: a weight in {path!r} has norm 0 at init, which would be its radius, and it could never move: "
            f'give it the multiplier 0 in the mask, as in mask=[(r"^{path}$", 0.0), (".*", "weights")]'
        )
        if p.size:
            init_checks.demand(jnp.all(norm > 0), error)
