"""The update that moves one parameter exactly to a rounded value, and the residual that rounding leaves over."""

import jax
import jax.numpy as jnp

from wd_optax import dtypes
from wd_optax.precision import casts
from wd_optax.precision.upcasting import is_low_precision


def round_to_param(u: jax.Array, p: jax.Array, bits: jax.Array | None) -> jax.Array:
    """round(p + u) − p, exact in float32, for a low-precision p: to the nearest, or at random where bits are given."""
    total = p.astype(jnp.float32) + u.astype(jnp.float32)
    target = casts.nearest(total, p.dtype) if bits is None else casts.stochastic(total, p.dtype, bits)
    return _straight_through(u.astype(jnp.float32), difference(target, p))


@jax.custom_jvp
def _straight_through(u: jax.Array, rounded: jax.Array) -> jax.Array:
    """Straight-through estimator: returns `rounded`, differentiates as u.

    The derivative of rounding is 0 almost everywhere, so `monitor_decay` would see no decay in the step
    (tests/test_monitor.py: test_around_a_rounding_the_decay_is_what_it_is_without).
    """
    del u
    return rounded


_straight_through.defjvps(lambda tangent, out, u, rounded: tangent, None)


def difference(target: jax.Array, p: jax.Array) -> jax.Array:
    """The float32 u' with p + u' = target; −0.0 where nothing changes, because p + (−0.0) is p, also for ±0 and ±∞.

    (tests/test_precision.py: test_rounds_to_the_right_bits_everywhere)
    """
    return jnp.where(target == p, jnp.float32(-0.0), target.astype(jnp.float32) - p.astype(jnp.float32))


def add_residual(u: jax.Array, residual: jax.Array) -> jax.Array:
    """u plus the last step's residual, in at least float32."""
    dtype = dtypes.arithmetic(residual.dtype)
    return u.astype(dtype) + residual.astype(dtype)


def left_over(u: jax.Array, p: jax.Array, bits: jax.Array | None) -> jax.Array:
    """What rounding p + u will leave over, in p's type; 0 where that is infinite, because p or the step is.

    A low-precision p needs bits: its residual is rounded at random, so that E[p' + residual] = p + u for a u of any
    size. To the nearest, a residual of 8 bits would lose every u under 2⁻⁹ of it. For a p of 32 bits or more the
    residual is exact.
    """
    if bits is not None:
        rest = u - round_to_param(u, p, None)
    else:  # `optax.apply_updates` rounds p + u: Knuth's two-sum finds its error
        total = p + u
        added = total - p
        rest = (p - (total - added)) + (u - added)
    rest = jnp.where(jnp.abs(rest) <= float(jnp.finfo(p.dtype).max), rest, 0)
    return rest.astype(p.dtype) if bits is None else casts.stochastic(rest, p.dtype, bits)


def subtract_residual(u: jax.Array | None, p: jax.Array, residual: jax.Array) -> jax.Array | None:
    """Subtracts half of the new residual from u. p + (u − residual/2) rounds to the same value.

    The chain p → residual → moments then fuses into one TPU loop; two results of one sum would be two loops
    (tests/tpu: test_a_step_moves_the_least_bytes_in_one_fusion). All of it would do for bfloat16. The least float16 or
    float8 may be a whole unit of p: where what is left over is rounded up to that, p + (u − residual) would round to
    the next value (tests/test_precision.py: test_rounds_to_the_right_bits_everywhere).
    """
    return u if u is None or not is_low_precision(p) else u - 0.5 * residual.astype(u.dtype)
