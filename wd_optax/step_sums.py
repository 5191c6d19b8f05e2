"""Sums over the parameters, the updates and the decay of one step, accurate for any shape."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike

from wd_optax import dtypes

REPLACED = 1 - 2.0**-7  # a step that removes more than this of a weight overwrites it; bfloat16 rounds to 2⁻⁸
CONTRADICTED = 0.01  # d is not a decay if more than this share of |d|² is on entries that contradict one


class LeafStep(NamedTuple):
    """One leaf of a step; all four have the parameter's shape."""

    p: jax.Array
    u: jax.Array  # the update
    d: jax.Array  # ∂u(s·p)/∂s at s = 1
    mirrored: jax.Array  # ∂u(−s·p)/∂s at s = 1


class Sums(NamedTuple):
    """Sums over the entries of a leaf or of a role: scalars, float64 on a CPU and at least float32 elsewhere.

    Of a leaf that holds several weights they are arrays at first, one entry for each.
    """

    pp: jax.Array  # |p|²
    uu: jax.Array
    pu: jax.Array  # Re p̄·u
    dd: jax.Array
    rr: jax.Array  # |u − d|²
    xx: jax.Array  # |d|² where d contradicts a decay


class StepSummary(NamedTuple):
    """The step of one role: float32 scalars, see `monitor.DecayInfo`."""

    weight_norm: jax.Array
    update_norm: jax.Array
    decay_share: jax.Array
    angle: jax.Array


Summaries = tuple[list[jax.Array], list[StepSummary]]
LeafAxes = tuple[int, ...]
SumAll = Callable[..., tuple[jax.Array, ...]]  # axes to keep, arrays of one shape -> the sums of each


def leaf_steps(step: Callable[[optax.Params], optax.Updates], params: optax.Params) -> list[LeafStep]:
    """Each leaf of `params` with u = step(params) and the derivatives of u along p, at p and at −p.

    Integers have no derivative and are measured as an empty leaf.
    """
    treedef: Any = jax.tree.structure(params)  # jaxlib's stub hides its methods
    values = [jnp.asarray(p) for p in jax.tree.leaves(params)]
    is_float = [jnp.issubdtype(p.dtype, jnp.inexact) for p in values]

    def updates_of(floats: list[jax.Array]) -> list[jax.Array]:
        rest = iter(floats)
        mixed = [next(rest) if f else p for p, f in zip(values, is_float, strict=True)]
        updates = _flatten_updates(treedef, step(treedef.unflatten(mixed)))
        pairs = [(u, p) for u, p, f in zip(updates, mixed, is_float, strict=True) if f]
        return [jnp.zeros_like(p) if u is None else u for u, p in pairs]

    floats = [p for p, f in zip(values, is_float, strict=True) if f]
    derivative = _derivative(updates_of, floats)
    (u, d), (_, mirrored) = derivative(floats), derivative([-p for p in floats])
    measured: Iterator[LeafStep] = map(LeafStep, floats, u, d, mirrored)
    empty = LeafStep(*[jnp.zeros((0,), jnp.float32)] * 4)
    return lax.stop_gradient([next(measured) if f else empty for f in is_float])


def summarize(
    steps: Sequence[LeafStep], groups: Sequence[int], n: int, slices: Sequence[LeafAxes] | None = None
) -> Summaries:
    """(|p|² of each leaf, the `StepSummary` of each of n groups), float32 scalars; `groups`: each leaf's index.

    With `slices`, the axes of each leaf that count weights, the angle of a group is the mean of its weights' angles.

    On a CPU each leaf takes one loop with float64 accumulators: as fast as with float32, where 3·10⁷ equal entries lose
    6 % of their norm, and nothing is written out. Elsewhere `jnp.sum` adds in a tree, in float32.
    """

    def summaries(sum_all: SumAll, dtype: DTypeLike, *leaves: LeafStep) -> Summaries:
        sums = [[jnp.zeros((), dtype)] * len(Sums._fields) for _ in range(n)]
        turned = [[jnp.zeros((), dtype)] * 2 for _ in range(n)]
        squares = []
        for leaf, group, axes in zip(leaves, groups, slices or [()] * len(leaves), strict=True):
            each = _weight_sums(leaf, sum_all, dtype, axes)
            leaf_sums = _leaf_sums(leaf, each)
            squares.append(leaf_sums.pp)
            sums[group] = [a + b for a, b in zip(sums[group], leaf_sums, strict=True)]
            turned[group] = [a + b for a, b in zip(turned[group], _angle_and_count(each), strict=True)]
        found = [_summary(Sums(*s)) for s in sums]
        if slices is not None:
            found = [
                x._replace(angle=angle / _one_for_zero(count)) for x, (angle, count) in zip(found, turned, strict=True)
            ]
        in_float32: Summaries = jax.tree.map(lambda x: x.astype(jnp.float32), (squares, found))
        return in_float32

    def on_cpu(*leaves: LeafStep) -> Summaries:
        with jax.enable_x64(True):
            return summaries(_sum_fused, jnp.float64, *leaves)

    real = [jnp.finfo(x.dtype).dtype for leaf in steps for x in leaf]  # of complex leaves, too
    elsewhere = functools.partial(summaries, _sum_each, dtypes.arithmetic(*real))
    summaries_here: Summaries = lax.platform_dependent(*steps, cpu=on_cpu, default=elsewhere)
    return summaries_here


def _derivative(
    f: Callable[[list[jax.Array]], list[jax.Array]], at: list[jax.Array]
) -> Callable[[list[jax.Array]], tuple[list[jax.Array], list[jax.Array]]]:
    """The function p ↦ f(p), ∂f(s·p)/∂s at s = 1 for lists of arrays such as `at`. It traces f once."""
    along = lambda p: jax.jvp(f, (p,), (p,))
    jaxpr, shape = jax.make_jaxpr(along, return_shape=True)(at)
    if any(equation.primitive.name == "custom_lin" for equation in _equations(jaxpr.jaxpr)):
        raise TypeError(
            "monitor_decay takes the derivative of the update along the parameters, and the optimizer calls a "
            "jax.custom_vjp function, which has none in this direction: define it with jax.custom_jvp, or leave that "
            "part outside, as optax.chain(part, wd_optax.monitor_decay(optimizer))"
        )
    return lambda p: jax.tree.unflatten(jax.tree.structure(shape), jax.extend.core.jaxpr_as_fun(jaxpr)(*p))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, including those of inner jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from _equations(inner)


def _flatten_updates(treedef: Any, updates: optax.Updates) -> list[jax.Array | None]:
    """One update per parameter; None where there is none."""
    try:
        flat: list[jax.Array | None] = treedef.flatten_up_to(updates)
    except ValueError as error:
        raise ValueError(
            f"monitor_decay: the updates, {jax.tree.structure(updates)}, are not a tree like the parameters, "
            f"{treedef}: a wrapper that changes the tree goes outside, as wrapper(wd_optax.monitor_decay(optimizer))"
        ) from error
    return flat


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.real(jnp.conj(a) * b)


def _weight_sums(leaf: LeafStep, sum_all: SumAll, dtype: DTypeLike, axes: LeafAxes) -> Sums:
    p, d, mirrored = (x.astype(dtypes.arithmetic(x.dtype)) for x in (leaf.p, leaf.d, leaf.mirrored))
    shrinks = _dot(d, d + REPLACED * p) < 0  # −REPLACED·p < d < 0 for p > 0: no decay grows or overwrites a weight
    odd = ~(_dot(d, mirrored) > 0)  # decay of −p has the opposite sign, or is 0 where it is cautious
    p, u, d = (x.astype(dtypes.arithmetic(x.dtype, dtype)) for x in (leaf.p, leaf.u, leaf.d))
    dd = _dot(d, d)
    contradiction = jnp.where(shrinks & odd, jnp.zeros_like(dd), dd)
    return Sums(*sum_all(axes, _dot(p, p), _dot(u, u), _dot(p, u), dd, _dot(u - d, u - d), contradiction))


def _leaf_sums(leaf: LeafStep, each: Sums) -> Sums:
    sums = Sums(*(jnp.sum(x) if x.ndim else x for x in each))
    noise = 4 * float(jnp.finfo(leaf.u.dtype).eps)
    return sums._replace(xx=jnp.where(sums.xx > noise**2 * sums.uu, sums.xx, jnp.zeros_like(sums.xx)))


def _sum_each(kept: LeafAxes, *terms: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.sum(x, axis=_others(x, kept)) for x in terms)


def _sum_fused(kept: LeafAxes, *terms: jax.Array) -> tuple[jax.Array, ...]:
    """One `lax.reduce` of all terms. With a sum for each, XLA's CPU compiler writes u and d to memory.

    (tests/test_bytes.py: test_the_monitor_reads_once_more_what_the_step_reads)
    """
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    zeros = tuple(jnp.zeros((), x.dtype) for x in terms)
    return tuple(lax.reduce(terms, zeros, add, _others(terms[0], kept)))


def _others(x: jax.Array, kept: LeafAxes) -> LeafAxes:
    return tuple(axis for axis in range(x.ndim) if axis not in kept)


def _angle(sums: Sums) -> jax.Array:
    """arctan2 of the update's parts across and along p, because arccos loses small angles; 0 where p is 0."""
    p = jnp.sqrt(sums.pp)
    along = sums.pu / _one_for_zero(p)
    across = jnp.sqrt(jnp.maximum(sums.uu - along**2, jnp.zeros_like(p)))
    return jnp.where(p > 0, jnp.arctan2(across, p + along), jnp.zeros_like(p))


def _angle_and_count(each: Sums) -> tuple[jax.Array, jax.Array]:
    """The sum of the angles of the weights that aren't 0, and how many these are."""
    return jnp.sum(_angle(each)), jnp.sum((each.pp > 0).astype(each.pp.dtype))


def _summary(sums: Sums) -> StepSummary:
    p, u, d, r = (jnp.sqrt(x) for x in (sums.pp, sums.uu, sums.dd, sums.rr))
    share = jnp.where(sums.xx > CONTRADICTED * sums.dd, jnp.full_like(d, jnp.nan), d / _one_for_zero(d + r))
    return StepSummary(p, u, share, _angle(sums))


def _one_for_zero(x: jax.Array) -> jax.Array:
    """A denominator that divides 0 by 1."""
    return jnp.where(x > 0, x, jnp.ones_like(x))
