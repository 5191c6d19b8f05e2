"""Sums over the entries of one leaf, or of leaves of one shape: of parameters, updates and decay."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from wd_optax import dtypes
from wd_optax.step_derivative import LeafStep

REPLACED = 1 - 2.0**-7  # a step that removes more than this of a weight overwrites it; bfloat16 rounds to 2⁻⁸


class Sums(NamedTuple):
    """Sums over the entries of leaves or of a group: scalars, float64 on a CPU and at least float32 elsewhere.

    They are arrays: one entry for each leaf at first, or for each layer, then for each group.
    """

    pp: jax.Array  # |p|²
    uu: jax.Array
    pu: jax.Array  # Re p̄·u
    dd: jax.Array
    rr: jax.Array  # |u − d|²
    xx: jax.Array  # |d|² where d contradicts a decay


class Multiples(NamedTuple):
    """Sums of leaves with d = rate·p, from which all others follow: half of the work of `Sums`."""

    pp: jax.Array
    rr: jax.Array  # |u − d|²
    pr: jax.Array  # Re p̄·(u − d)


Columns = tuple[jax.Array, ...]  # the fields of `Sums` or `Multiples`, and with slices angles and numbers of weights
SumAll = Callable[..., Columns]  # axes to keep, arrays of one shape -> the sums of each


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6, 7))
def loop_sums(
    leaves: list[LeafStep],
    rate: jax.Array | None,
    axes: tuple[int, ...],
    layered: bool,
    sum_all: SumAll,
    dtype: DTypeLike,
    sliced: bool,
    few: bool,
) -> Columns:
    """The `Sums` or the `Multiples` of each leaf or layer; jitted, so that equal loops are traced once.

    Where weights are slices, also the sum of the angles of the weights that aren't 0, and how many these are.
    """
    leaf, kept = (leaves[0], axes) if len(leaves) == 1 else (_stacked(leaves), (0,))
    if rate is not None:
        rate = rate.reshape(rate.shape + (1,) * (leaf.p.ndim - 1)) if len(leaves) > 1 else rate.reshape(())
    each = sum_all(kept, *(_few_terms if few else _terms)(leaf, rate, dtype))
    if sliced:
        pp, uu, pu = each[:3]  # or with `Multiples` those of u − d, which is as much across p as u is
        p, along = jnp.sqrt(pp), part_along(pp, pu)
        across = jnp.sqrt(jnp.maximum(uu - along**2, jnp.zeros_like(p)))
        along = along + rate * p if few and rate is not None else along
        each += (jnp.where(p > 0, jnp.arctan2(across, p + along), jnp.zeros_like(p)), (p > 0).astype(p.dtype))
    if len(leaves) > 1:
        return each
    summed = tuple(jnp.sum(x, axis=tuple(range(int(layered), x.ndim))) for x in each)
    return summed if layered else tuple(x.reshape(1) for x in summed)


def _stacked(leaves: Sequence[LeafStep]) -> LeafStep:
    """Leaves of one shape as one, on a new first axis: no entry moves to another device."""

    def stack(*x: Any) -> Any:
        return None if x[0] is None else lax.concatenate([lax.expand_dims(a, (0,)) for a in x], 0)

    return LeafStep(*map(stack, *leaves))


def from_multiples(each: Columns, rate: jax.Array | None) -> Columns:
    """`Sums`, and what follows them, from `Multiples`."""
    pp, rr, pr, *rest = each
    zero = lax.full_like(pp, 0)
    rate = zero if rate is None else jnp.broadcast_to(rate, pp.shape)
    pd = lax.mul(rate, pp)
    dd = lax.mul(rate, pd)
    uu = lax.add(rr, lax.add(lax.mul(lax.add(rate, rate), pr), dd))
    decays = lax.le(rate, zero) & lax.gt(rate, lax.full_like(pp, -REPLACED))  # see `_terms`
    return pp, uu, lax.add(pr, pd), dd, rr, lax.select(decays, zero, dd), *rest


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    is_complex = jnp.issubdtype(a.dtype, jnp.complexfloating)
    return lax.real(lax.mul(lax.conj(a), b)) if is_complex else lax.mul(a, b)


def _few_terms(leaf: LeafStep, rate: jax.Array | None, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    """What is summed, entry by entry: the fields of `Multiples`."""
    p, u = (lax.convert_element_type(x, dtypes.arithmetic(x.dtype, dtype)) for x in (leaf.p, leaf.u))
    rest = u if rate is None else lax.sub(u, _scaled(rate, p))
    return _dot(p, p), _dot(rest, rest), _dot(p, rest)


def _scaled(rate: jax.Array, p: jax.Array) -> jax.Array:
    return lax.mul(p, jnp.broadcast_to(lax.convert_element_type(rate, p.dtype), p.shape))


def _terms(leaf: LeafStep, rate: jax.Array | None, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    """What is summed, entry by entry: the fields of `Sums`. `lax`, because it traces in a fifth of `jnp`'s time."""
    if (d := leaf.d) is None:
        wide = lax.convert_element_type(leaf.p, dtypes.arithmetic(leaf.p.dtype, leaf.u.dtype))
        d = lax.full_like(wide, 0) if rate is None else _scaled(rate, wide)
    p, d = (lax.convert_element_type(x, dtypes.arithmetic(x.dtype)) for x in (leaf.p, d))
    bound = lax.add(d, lax.mul(p, lax.full_like(p, REPLACED)))
    zero = lax.full_like(lax.real(p) if jnp.iscomplexobj(p) else p, 0)
    odd = lax.lt(_dot(d, bound), zero)  # −REPLACED·p < d < 0 for p > 0: no decay grows or overwrites a weight
    if leaf.mirrored is not None:  # decay of −p has the opposite sign, or is 0 where it is cautious
        odd &= lax.le(_dot(d, lax.convert_element_type(leaf.mirrored, d.dtype)), zero)
    p, u, d = (lax.convert_element_type(x, dtypes.arithmetic(x.dtype, dtype)) for x in (leaf.p, leaf.u, d))
    rest = lax.sub(u, d)
    dd, uu = _dot(d, d), _dot(u, u)
    noise = 4 * float(jnp.finfo(leaf.u.dtype).eps)
    odd |= lax.le(dd, lax.mul(uu, lax.full_like(uu, noise**2)))
    return _dot(p, p), uu, _dot(p, u), dd, _dot(rest, rest), lax.select(odd, lax.full_like(dd, 0), dd)


def sum_each(kept: tuple[int, ...], *terms: jax.Array) -> tuple[jax.Array, ...]:
    """A sum of each term."""
    return tuple(jnp.sum(x, axis=_others(x, kept)) for x in terms)


def sum_fused(kept: tuple[int, ...], *terms: jax.Array) -> tuple[jax.Array, ...]:
    """One `lax.reduce` of all terms. With a sum for each, XLA's CPU compiler writes u and d to memory.

    (tests/test_bytes.py: test_the_monitor_reads_once_more_what_the_step_reads)
    """
    add = lambda a, b: tuple(map(lax.add, a, b))
    zeros = tuple(np.zeros((), x.dtype) for x in terms)
    return tuple(lax.reduce(terms, zeros, add, _others(terms[0], kept)))


def _others(x: jax.Array, kept: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis not in kept)


def part_along(pp: jax.Array, pu: jax.Array) -> jax.Array:
    """The part of u along p, with its sign."""
    return lax.div(pu, lax.sqrt(one_for_zero(pp)))


def one_for_zero(x: jax.Array) -> jax.Array:
    """A denominator that divides 0 by 1."""
    return lax.select(lax.eq(x, lax.full_like(x, 0)), lax.full_like(x, 1), x)
