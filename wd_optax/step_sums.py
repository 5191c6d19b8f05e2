"""Sums over the parameters, the updates and the decay of one step, accurate for any shape."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from wd_optax import dtypes
from wd_optax.leaf_sums import (
    Columns,
    SumAll,
    Sums,
    from_multiples,
    loop_sums,
    one_for_zero,
    part_along,
    sum_each,
    sum_fused,
)
from wd_optax.step_derivative import LeafStep

TOGETHER = 16  # small leaves of one shape in a loop: a fifth of the time that one loop each takes to compile
SMALL = 2**14  # entries; a loop over more reads few leaves, for the sake of the caches
MASKED = 2**20  # groups times leaves: above, sums over groups are scattered
CONTRADICTED = 0.01  # d is not a decay if more than this share of ‖d‖² is on entries that contradict one


class Norms(NamedTuple):
    """Norms over one group: float32 scalars, or one entry per layer or per group. `measure.DecayInfo` derives the rest.

    They are one array in a program, because XLA compiles a kernel for each array, be it of a few numbers.
    """

    size: jax.Array
    p: jax.Array
    d: jax.Array  # NaN where d is not a decay
    r: jax.Array  # u − d
    across: jax.Array  # the part of u across p
    along: jax.Array  # and along p, with its sign
    angle: jax.Array | None = None  # the mean over the weights by `slices`


class Loop(NamedTuple):
    """Leaves of one shape that are summed in one loop."""

    leaves: list[int]
    axes: tuple[int, ...]  # that count weights
    layers: str  # the group whose layers are measured one by one, along the first of these axes; or ""


Summary = dict[str, jax.Array]


def summarize(
    steps: Sequence[LeafStep | None],
    groups: Sequence[str],
    sizes: Mapping[str, int],
    layers: Mapping[str, int],
    slices: Sequence[tuple[int, ...]] | None = None,
) -> Summary:
    """The rows of `Norms`, float32.

    They are under "" those of all groups without layers, shape (6, groups), and by name those of each other group,
    shape (6, layers); with `slices` there are seven.

    On a CPU a loop has float64 accumulators: as fast as with float32, where 3·10⁷ equal entries lose 6 % of their
    norm, and nothing is written out. Elsewhere `jnp.sum` adds in a tree, in float32. Small leaves of one shape are
    stacked and share a loop.

    Args:
      steps: those of the leaves; None isn't measured.
      groups: the name of each leaf's group.
      sizes: the entries of each group.
      layers: how many layers each group has, the first axis of all its leaves; 0 where it is one vector.
      slices: the axes of each leaf that count weights: then the angle of a group is the mean of its weights' angles.
    """
    where = [i for i, step in enumerate(steps) if step is not None and step.p.size]
    measured = [step for step in steps if step is not None and step.p.size]
    of = [groups[i] for i in where]
    layered = [name if layers[name] else "" for name in of]
    loops = list(_loops(measured, layered, [slices[i] if slices else () for i in where], together=slices is None))
    rates, number = _unequal([step.rate for step in measured])
    stacked = stacked_sizes(sizes, layers)
    # Leaves of one group and rate are added before anything follows from their sums.
    flat = {name: i for i, name in enumerate(name for name, n in layers.items() if not n)}
    held = {(name, number[i]): None for i, name in enumerate(of) if name in flat}
    empty = flat.keys() - {name for name, _ in held}
    cells = sorted([*held, *((name, -1) for name in empty)], key=lambda cell: flat[cell[0]])
    cell_of = {cell: i for i, cell in enumerate(cells)}

    def summaries(sum_all: SumAll, dtype: DTypeLike, leaves: list[LeafStep], rates: list[jax.Array]) -> Summary:
        few = sum_all is sum_fused and all(leaf.d is None for leaf in leaves)
        options = sum_all, jnp.dtype(dtype), slices is not None, few

        def added(name: str, size: int) -> Columns:
            own = [loop for loop in loops if loop.layers == name]
            numbers = [[number[i] for i in loop.leaves] for loop in own]
            spread = [_per_cell(rates, x, dtype) for x in numbers]
            parts = [
                loop_sums([leaves[i] for i in loop.leaves], rate, loop.axes, bool(name), *options)
                for loop, rate in zip(own, spread, strict=True)
            ]
            if not parts:
                return tuple(jnp.zeros((size,), dtype) for _ in range(len(Sums._fields) + 2 * (slices is not None)))
            if name:
                each = tuple(map(jnp.stack, zip(*parts, strict=True)))
                rate = _per_cell(rates, [k for x in numbers for k in x], dtype)
                each = from_multiples(each, None if rate is None else rate[:, None]) if few else each
                return tuple(jnp.sum(x, axis=0) for x in each)
            where = [cell_of[of[i], number[i]] for loop in own for i in loop.leaves]
            each = _add_by(where, len(cells), tuple(lax.concatenate(x, 0) for x in zip(*parts, strict=True)), sum_all)
            each = from_multiples(each, _per_cell(rates, [k for _, k in cells], dtype)) if few else each
            return each if len(cells) == size else _add_by([flat[name] for name, _ in cells], size, each, sum_all)

        return {name: _group_norms(sizes, added(name, len(sizes))) for name, sizes in stacked.items()}

    def on_cpu(leaves: list[LeafStep], rates: list[jax.Array]) -> Summary:
        with jax.enable_x64(True):
            return summaries(sum_fused, jnp.float64, leaves, rates)

    real = [jnp.finfo(x.dtype).dtype for leaf in measured for x in (leaf.p, leaf.u)]  # of complex leaves, too
    elsewhere = functools.partial(summaries, sum_each, dtypes.arithmetic(*real, jnp.float32))
    without = [step._replace(rate=None) for step in measured]
    here: Summary = lax.platform_dependent(without, rates, cpu=on_cpu, default=elsewhere)
    return here


def stacked_sizes(sizes: Mapping[str, int], layers: Mapping[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    """The entries of all groups without layers under "", if there are any, and of each layer of each other group."""
    flat = [float(sizes[name]) for name, n in layers.items() if not n]
    stacked = {"": np.array(flat)} if flat else {}
    return stacked | {name: np.full((n,), sizes[name] / n) for name, n in layers.items() if n}


def _unequal(rates: Sequence[jax.Array | None]) -> tuple[list[jax.Array], list[int]]:
    """The different rates, and the index of each leaf's; −1 where it has none."""
    found = {id(rate): rate for rate in rates if rate is not None}
    index = {key: i for i, key in enumerate(found)}
    return list(found.values()), [index.get(id(rate), -1) for rate in rates]


def _per_cell(rates: Sequence[jax.Array], numbers: Sequence[int], dtype: DTypeLike) -> jax.Array | None:
    """The rate of each leaf, shape=(leaves,), or (1,) where they are equal; 0 or None where no leaf has one."""
    kinds = {*numbers}
    if kinds == {-1}:
        return None
    if len(kinds) == 1:
        return rates[numbers[0]].astype(dtype).reshape(1)
    if kinds == {-1, 0}:
        rate = lax.broadcast(rates[0].astype(dtype), (len(numbers),))
        return lax.select(jnp.asarray(np.array(numbers) < 0), lax.full_like(rate, 0), rate)
    every = jnp.stack([jnp.zeros((), dtype), *(rate.astype(dtype) for rate in rates)])
    return every[np.array(numbers) + 1]


def _loops(
    steps: Sequence[LeafStep], layered: Sequence[str], axes: Sequence[tuple[int, ...]], *, together: bool
) -> Iterator[Loop]:
    """The loops: small leaves of one shape and type share one, unless each leaf's angle counts."""
    alike: dict[object, list[int]] = {}
    for i, step in enumerate(steps):
        types = (None if x is None else x.dtype for x in step[:-1])
        alike.setdefault((step.p.shape, *types) if together else i, []).append(i)
    for found in alike.values():
        found.sort(key=lambda i: id(steps[i].rate))  # stable: loops of one rate share a kernel
        most = TOGETHER if steps[found[0]].p.size <= SMALL else 1
        each = -(-len(found) // -(-len(found) // most))  # as equal as can be, because equal loops share a kernel
        for start in range(0, len(found), each):
            yield Loop(found[start : start + each], axes[found[0]], layered[found[0]])


def _add_by(where: Sequence[int], cells: int, each: Columns, sum_all: SumAll) -> Columns:
    """Adds entries of one cell; `where` is the cell of each entry."""
    if cells * len(where) > MASKED:
        return tuple(jax.ops.segment_sum(x, np.array(where), cells) for x in each)
    chosen = jnp.asarray(np.array(where) == np.arange(cells)[:, None])
    every = (lax.broadcast(x, (cells,)) for x in each)
    return sum_all((0,), *(lax.select(chosen, x, lax.full_like(x, 0)) for x in every))


def _group_norms(size: np.ndarray[Any, Any], sums: Columns) -> jax.Array:
    """The rows of `Norms` from those of `Sums`, in one concatenation: one of another takes XLA longer to compile."""
    x = Sums(*sums[: len(Sums._fields)])
    along = part_along(x.pp, x.pu)
    across = lax.max(lax.sub(x.uu, lax.mul(along, along)), lax.full_like(x.pp, 0))
    contradicted = lax.gt(x.xx, lax.mul(x.dd, lax.full_like(x.dd, CONTRADICTED)))
    dd = lax.select(contradicted, lax.full_like(x.dd, np.nan), x.dd)
    rows = [jnp.asarray(size, x.pp.dtype), *map(lax.sqrt, (x.pp, dd, x.rr, across)), along]
    if len(sums) > len(Sums._fields):  # weights are slices
        rows.append(lax.div(sums[-2], one_for_zero(sums[-1])))
    found = lax.concatenate([lax.expand_dims(row, (0,)) for row in rows], 0)
    return lax.convert_element_type(found, np.float32)
