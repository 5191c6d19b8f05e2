"""Sums over the parameters, the updates and the decay of one step, accurate for any shape."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from wd_optax import dtypes
from wd_optax.step_derivative import LeafStep

REPLACED = 1 - 2.0**-7  # a step that removes more than this of a weight overwrites it; bfloat16 rounds to 2⁻⁸
TOGETHER = 8  # small leaves of one shape in a loop: a fifth of the time that one loop each takes to compile
SMALL = 2**14  # entries; a loop over more reads few leaves, for the sake of the caches


class Norms(NamedTuple):
    """Norms over one group: float32 scalars, or one entry per layer or per group. `measure.DecayInfo` derives the rest.

    They are one array in a program, because XLA compiles a kernel for each array, be it of a few numbers.
    """

    size: jax.Array
    p: jax.Array
    u: jax.Array
    d: jax.Array
    r: jax.Array  # u − d
    x: jax.Array  # d where it contradicts a decay
    across: jax.Array  # the part of u across p
    along: jax.Array  # and along p, with its sign
    angle: jax.Array  # the mean over the weights by `slices`, or −1 without


class Sums(NamedTuple):
    """Sums over the entries of leaves or of a group: scalars, float64 on a CPU and at least float32 elsewhere.

    Of a leaf that holds several weights they are arrays at first, one entry for each; of stacked layers, too.
    """

    pp: jax.Array  # |p|²
    uu: jax.Array
    pu: jax.Array  # Re p̄·u
    dd: jax.Array
    rr: jax.Array  # |u − d|²
    xx: jax.Array  # |d|² where d contradicts a decay


class Loop(NamedTuple):
    """Leaves that are summed in one loop."""

    group: str
    leaves: list[int]
    axes: tuple[int, ...]  # that count weights
    layered: bool  # the first of them counts layers that are measured one by one


Summary = tuple[dict[str, jax.Array], jax.Array]
SumAll = Callable[..., tuple[jax.Array, ...]]  # axes to keep, arrays of one shape -> the sums of each


def summarize(
    steps: Sequence[LeafStep | None],
    groups: Sequence[str],
    sizes: Mapping[str, int],
    layers: Mapping[str, int],
    slices: Sequence[tuple[int, ...]] | None = None,
) -> Summary:
    """The rows of `Norms`, and −0.0 as a number that depends on all sums.

    The rows are float32: under "" those of all groups without layers, shape (9, groups), and by name those of each
    other group, shape (9, layers).

    On a CPU a loop has float64 accumulators: as fast as with float32, where 3·10⁷ equal entries lose 6 % of their
    norm, and nothing is written out. Elsewhere `jnp.sum` adds in a tree, in float32. Small leaves of one shape and
    group share a loop, which adds them entry by entry first.

    Args:
      steps: those of the leaves; None isn't measured.
      groups: the name of each leaf's group.
      sizes: the entries of each group.
      layers: how many layers each group has, the first axis of all its leaves; 0 where it is one vector.
      slices: the axes of each leaf that count weights: then the angle of a group is the mean of its weights' angles.
    """
    measured = [step for step in steps if step is not None]
    where = [i for i, step in enumerate(steps) if step is not None]
    axes = [slices[i] if slices else () for i in where]
    sliced = slices is not None
    loops = list(_loops(measured, [groups[i] for i in where], axes, layers, together=not sliced))

    stacked = stacked_sizes(sizes, layers)

    def summaries(sum_all: SumAll, dtype: DTypeLike, *leaves: LeafStep) -> Summary:
        parts: dict[str, list[jax.Array]] = {name: [] for name in layers}
        for loop in loops:
            each = tuple(leaves[i] for i in loop.leaves)
            parts[loop.group].append(_loop_sums(each, sum_all, jnp.dtype(dtype), loop.axes, loop.layered, sliced))
        none = [jnp.zeros((len(Sums._fields) + 2 * sliced,), dtype)]
        found = {name: _total(parts[name]) for name, n in layers.items() if n}
        if flat := [_total(parts[name] or none) for name, n in layers.items() if not n]:
            found[""] = jnp.stack(flat, axis=-1)
        return {name: _group_norms(stacked[name], x) for name, x in found.items()}, _zero_after(found.values())

    def on_cpu(*leaves: LeafStep) -> Summary:
        with jax.enable_x64(True):
            return summaries(_sum_fused, jnp.float64, *leaves)

    real = [jnp.finfo(x.dtype).dtype for leaf in measured for x in leaf[:3]]  # of complex leaves, too
    elsewhere = functools.partial(summaries, _sum_each, dtypes.arithmetic(*real, jnp.float32))
    here: Summary = lax.platform_dependent(*measured, cpu=on_cpu, default=elsewhere)
    return here


def stacked_sizes(sizes: Mapping[str, int], layers: Mapping[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    """The entries of all groups without layers under "", if there are any, and of each layer of each other group."""
    flat = [float(sizes[name]) for name, n in layers.items() if not n]
    stacked = {"": np.array(flat)} if flat else {}
    return stacked | {name: np.full((n,), sizes[name] / n) for name, n in layers.items() if n}


def _loops(
    steps: Sequence[LeafStep],
    groups: Sequence[str],
    axes: Sequence[tuple[int, ...]],
    layers: Mapping[str, int],
    *,
    together: bool,
) -> Iterator[Loop]:
    """The loops: leaves of one group, shape and type share one, unless each leaf's angle counts."""
    alike: dict[object, list[int]] = {}
    for i, (step, group) in enumerate(zip(steps, groups, strict=True)):
        if step.p.size:
            kind = (group, step.p.shape, *(x.dtype for x in step[:3]), step.mirrored is None)
            alike.setdefault(kind if together else i, []).append(i)
    for found in alike.values():
        first = found[0]
        most = TOGETHER if steps[first].p.size <= SMALL else 1
        each = -(-len(found) // -(-len(found) // most))  # as equal as can be, because equal loops share a kernel
        for start in range(0, len(found), each):
            yield Loop(groups[first], found[start : start + each], axes[first], bool(layers[groups[first]]))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _loop_sums(
    leaves: tuple[LeafStep, ...],
    sum_all: SumAll,
    dtype: DTypeLike,
    axes: tuple[int, ...],
    layered: bool,
    sliced: bool,
) -> jax.Array:
    """The `Sums` of leaves of one shape, stacked; jitted, so that equal loops are traced once.

    Where weights are slices, also the sum of the angles of the weights that aren't 0, and how many these are.
    """
    terms = [_terms(leaf, dtype) for leaf in leaves]
    added = functools.reduce(lambda a, b: tuple(map(lax.add, a, b)), terms)
    each = sum_all(axes, *added)
    if sliced:
        pp, uu, pu, *_ = each
        p, along = jnp.sqrt(pp), _part_along(pp, pu)
        across = jnp.sqrt(jnp.maximum(uu - along**2, jnp.zeros_like(p)))
        each += (jnp.where(p > 0, jnp.arctan2(across, p + along), jnp.zeros_like(p)), (p > 0).astype(p.dtype))
    return jnp.stack([jnp.sum(x, axis=tuple(range(int(layered), x.ndim))) for x in each])


def _total(parts: list[jax.Array]) -> jax.Array:
    """The sum of the loops' sums; stacked, because one fusion of thousands of scalar additions compiles for minutes."""
    return jnp.sum(jnp.stack(parts), axis=0) if len(parts) > 1 else parts[0]


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    is_complex = jnp.issubdtype(a.dtype, jnp.complexfloating)
    return lax.real(lax.mul(lax.conj(a), b)) if is_complex else lax.mul(a, b)


def _terms(leaf: LeafStep, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    """What is summed, entry by entry: the fields of `Sums`. `lax`, because it traces in a fifth of `jnp`'s time."""
    p, d = (lax.convert_element_type(x, dtypes.arithmetic(x.dtype)) for x in (leaf.p, leaf.d))
    bound = lax.add(d, lax.mul(p, lax.full_like(p, REPLACED)))
    zero = lax.full_like(lax.real(p) if jnp.iscomplexobj(p) else p, 0)
    odd = lax.lt(_dot(d, bound), zero)  # −REPLACED·p < d < 0 for p > 0: no decay grows or overwrites a weight
    if leaf.mirrored is not None:  # decay of −p has the opposite sign, or is 0 where it is cautious
        odd &= lax.le(_dot(d, lax.convert_element_type(leaf.mirrored, d.dtype)), zero)
    p, u, d = (lax.convert_element_type(x, dtypes.arithmetic(x.dtype, dtype)) for x in (leaf.p, leaf.u, leaf.d))
    rest = lax.sub(u, d)
    dd, uu = _dot(d, d), _dot(u, u)
    noise = 4 * float(jnp.finfo(leaf.u.dtype).eps)
    odd |= lax.le(dd, lax.mul(uu, lax.full_like(uu, noise**2)))
    return _dot(p, p), uu, _dot(p, u), dd, _dot(rest, rest), lax.select(odd, lax.full_like(dd, 0), dd)


def _sum_each(kept: tuple[int, ...], *terms: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.sum(x, axis=_others(x, kept)) for x in terms)


def _sum_fused(kept: tuple[int, ...], *terms: jax.Array) -> tuple[jax.Array, ...]:
    """One `lax.reduce` of all terms. With a sum for each, XLA's CPU compiler writes u and d to memory.

    (tests/test_bytes.py: test_the_monitor_reads_once_more_what_the_step_reads)
    """
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    zeros = tuple(jnp.zeros((), x.dtype) for x in terms)
    return tuple(lax.reduce(terms, zeros, add, _others(terms[0], kept)))


def _others(x: jax.Array, kept: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.ndim) if axis not in kept)


def _zero_after(sums: Iterable[jax.Array]) -> jax.Array:
    """−0.0, float32. No |p|² is below −1, but XLA can't prove it, so it computes the sums first.

    The comparison comes before the maximum: after it, XLA would evaluate both once for each leaf that depends on it.
    """
    squares = jnp.concatenate([x[0] for x in sums])
    return jnp.max(jnp.where(squares < -1, jnp.float32(1), jnp.float32(-0.0)))


def _part_along(pp: jax.Array, pu: jax.Array) -> jax.Array:
    """The part of u along p, with its sign."""
    return pu / jnp.sqrt(one_for_zero(pp))


def _group_norms(size: np.ndarray[Any, Any], sums: jax.Array) -> jax.Array:
    """The rows of `Norms` from those of `Sums`; the roots are one operation, which XLA fuses with all before it."""
    x = Sums(*sums[: len(Sums._fields)])
    one = jnp.ones_like(x.pp)
    along = x.pu * (x.pu / one_for_zero(x.pp))
    squares = [x.pp, x.uu, x.dd, x.rr, x.xx, jnp.maximum(x.uu - along, 0 * one), along]
    signs = [*[one] * (len(squares) - 1), jnp.where(x.pu < 0, -one, one)]
    roots = jnp.sqrt(jnp.stack(squares)) * jnp.stack(signs)
    turned = sums[len(Sums._fields) :]  # where weights are slices
    angle = turned[0] / one_for_zero(turned[1]) if len(turned) else -one
    return jnp.concatenate([jnp.asarray(size, one.dtype)[None], roots, angle[None]]).astype(jnp.float32)


def one_for_zero(x: jax.Array) -> jax.Array:
    """A denominator that divides 0 by 1."""
    return jnp.where(x == 0, jnp.ones_like(x), x)
