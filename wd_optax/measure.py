"""Measure the decay of one step: norms, rotation and the share of decay, as a pure function."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax import step_sums, tables
from wd_optax.decay_groups import Grouping, Groups, assign_groups
from wd_optax.hyperparams import check_transformation
from wd_optax.leaf_sums import one_for_zero
from wd_optax.masking.errors import explaining
from wd_optax.masking.slices import Slices
from wd_optax.step_derivative import Program, leaf_steps
from wd_optax.step_sums import Norms


class DecayInfo(NamedTuple):
    """The decay of one step, of one group of parameters: float32 scalars, or one entry per layer, shape=(layers,).

    All are 0 for a group without parameters. On a CPU the sums are float64: norms are right to float32's last digit and
    the angle to 1e-4·‖u‖/‖p‖, for any shape up to 10⁸ entries. On GPUs and TPUs they are `jnp.sum`'s in float32
    (float64 of float64 parameters), and the angle is right to about 1e-3·‖u‖/‖p‖.
    """

    size: jax.Array  # C, the entries of the group
    weight_norm: jax.Array  # ‖p‖, before the step
    update_norm: jax.Array  # ‖u‖, as the optimizer returns it: before `apply_updates` rounds it to the parameters' type
    decay_share: jax.Array  # ‖d‖/(‖d‖ + ‖u − d‖): 0 no decay, 1 only decay, NaN not proportional; see `monitor_decay`
    angle: (
        jax.Array
    )  # ∠(p, p + u) in radians, the group as one vector, or the mean over slices; 0 where p is 0; see above
    removed: jax.Array  # c = ‖d‖/‖p‖, the fraction of the weights that decay removes in this step; NaN as decay_share
    growth: jax.Array  # ‖p + u‖/‖p‖ − 1, what the step changes ‖p‖ by: −c where there is only decay; 0 where p is 0

    @property
    def weight_rms(self) -> jax.Array:
        """‖p‖/√C, the root mean square of the weights."""
        return self.weight_norm / jnp.maximum(self.size, 1) ** 0.5


@jax.jit  # where JAX would compile each of 30 operations, and each again for groups of another number
def _derive(rows: jax.Array) -> DecayInfo:
    """The figures of a step from the rows of `Norms`."""
    x = Norms(*(rows[..., i, :] for i in range(rows.shape[-2])))
    p = one_for_zero(x.p)
    along, across = x.along / p, x.across / p
    # arctan2, because arccos loses small angles
    angle = jnp.where(x.p > 0, jnp.arctan2(across, 1 + along) if x.angle is None else x.angle, 0.0)
    change = jnp.maximum(2 * along + along**2 + across**2, -1.0)  # of ‖p‖², relative
    growth = jnp.where(x.p > 0, change / (1 + jnp.sqrt(1 + change)), 0.0)
    u = jnp.hypot(x.along, x.across)
    return DecayInfo(x.size, x.p, u, x.d / one_for_zero(x.d + x.r), angle, x.d / p, growth)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["places"])
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DecayTable(Mapping[str, DecayInfo]):
    """{group: DecayInfo}, in order, as few arrays: it goes through `jit` and prints as a table.

    With `vmap` around, every field has the leading axes that `vmap` adds.
    """

    arrays: tuple[jax.Array, ...]  # rows of `Norms`: (6 or 7, groups), and each group of layers: (6 or 7, layers)
    places: tuple[tuple[str, int, int | None], ...]  # group, its array, its column; None for all columns

    def __getitem__(self, group: str) -> DecayInfo:
        """The figures of a group."""
        if group not in self._where:
            raise KeyError(f"{group!r}: the groups are {', '.join(map(repr, self))}")
        array, column = self._where[group]
        return DecayInfo(*(x if column is None else x[..., column] for x in self._figures[array]))

    @functools.cached_property
    def _figures(self) -> list[DecayInfo]:
        return [*map(_derive, self.arrays)]

    @property
    def is_batched(self) -> bool:
        """Whether `vmap` has added axes."""
        return any(np.ndim(x) > 2 for x in self.arrays)

    @functools.cached_property
    def _where(self) -> dict[str, tuple[int, int | None]]:
        return {group: (array, column) for group, array, column in self.places}

    def columns(self) -> dict[str, jax.Array]:
        """The norms of each group, shape (6 or 7, 1 or layers)."""
        return {
            group: self.arrays[i] if column is None else self.arrays[i][..., column : column + 1]
            for group, i, column in self.places
        }

    def __iter__(self) -> Iterator[str]:
        """The names of the groups."""
        return (name for name, _, _ in self.places)

    def __len__(self) -> int:
        """How many groups there are."""
        return len(self.places)

    def __str__(self) -> str:
        """The table, aligned."""
        return tables.align(self._cells())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return tables.to_html(self._cells())

    def _cells(self) -> list[tuple[str, ...]]:
        """A line per group and layer; only the names where the figures aren't known, or are of several runs."""
        known = lambda x: isinstance(x, jax.Array | np.ndarray) and not isinstance(x, jax.core.Tracer) and x.ndim == 2
        if not all(map(known, self.arrays)):
            return [(group,) for group in ("group", *self)]
        return [HEADER, *((name, *_format(info)) for name, info in each_layer(self).items() if info.size > 0)]


HEADER = ("group", "size", "‖p‖", "rms", "‖u‖", "share", "angle", "removed", "growth")


def _format(info: DecayInfo) -> tuple[str, ...]:
    numbers = (info.weight_norm, info.weight_rms, info.update_norm, info.decay_share, info.angle, info.removed)
    return f"{int(info.size):,}", *(f"{float(x):.3g}" for x in numbers), f"{float(info.growth):+.1e}"


def each_layer(info: Mapping[str, DecayInfo]) -> dict[str, DecayInfo]:
    """The groups with those of stacked layers unstacked: {"blocks/0": ..., "blocks/1": ...}, each of scalars."""
    here: Any = lambda x: x if isinstance(x, jax.core.Tracer) else np.asarray(x)  # indexing arrays of JAX is slow
    found: dict[str, DecayInfo] = {}
    for name, x in info.items():
        x = DecayInfo(*map(here, x))
        if x.size.ndim:
            found |= {f"{name}/{i}": DecayInfo(*(field[i] for field in x)) for i in range(len(x.size))}
        else:
            found[name] = x
    return found


def measure_decay(
    optimizer: optax.GradientTransformation,
    grads: optax.Updates,
    opt_state: optax.OptState,
    params: optax.Params,
    *,
    groups: Groups = "roles",
    slices: Slices = None,
    **extra: Any,
) -> DecayTable:
    """The decay of the step that `optimizer` would take: ‖p‖, ‖u‖, decay share, angle, c and growth per group.

    These are the figures of `wd_optax.monitor_decay`, as a pure function: it changes neither parameters nor state. Jit
    it and call it in the steps that log, before the step, with the step's arguments. The training step is not touched.

    With `groups` other than "roles", a group whose leaves all have a first axis that counts weights by `slices`, each
    the same number, such as layers stacked by `scan`, has one figure per layer: arrays of shape (layers,).

    Args:
      optimizer: any complete Optax optimizer.
      grads, opt_state, params: what `optimizer.update` takes.
      groups: "roles": weight, embedding, bias, norm and other. "leaves": each leaf by its path. Or rules,
        [(name, regex), ...]: the first regex that is found in a leaf's path names its group. Several rules may name
        one group. Leaves that no rule matches form the group "rest"; a rule that decides nothing is an error.
      slices: which axes count weights, see `wd_optax.explain_slices`: then the angle of a group is the mean over its
        weights. Else the group is one vector, in which large weights hide how far small ones turn.
      **extra: what else `optimizer.update` takes, such as `value`.

    Returns:
      A `DecayTable`: a mapping {group: DecayInfo} that goes through `jit` and `vmap`, and prints as a table. By role it
      has all five; a role without parameters is all zeros. `wd_optax.read_decay(measured, flat=True)` makes it a dict
      of floats for a logger.

    Raises:
      ValueError, TypeError: for groups or slices that don't fit the parameters, and as `monitor_decay`.

    Example: the first of two layers has decayed to a tenth of the second.
      >>> import functools, jax, jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = optax.adamw(1e-2, weight_decay=0.1)
      >>> measure = jax.jit(
      ...     functools.partial(wd.measure_decay, tx, groups=[("blocks", "blocks")], slices=[("blocks", 1)])
      ... )
      >>> params = {"blocks": {"kernel": jnp.array([[0.3, 0.4], [3.0, 4.0]])}, "head": jnp.array([6.0, 8.0])}
      >>> measured = measure(jax.tree.map(jnp.sin, params), tx.init(params), params)
      >>> print(measured)
      group     size  ‖p‖  rms    ‖u‖     share   angle    removed  growth
      blocks/0  2     0.5  0.354  0.0146  0.0341  0.00412  0.001    -2.9e-02
      blocks/1  2     5    3.54   0.0143  0.261   0.0028   0.001    -6.0e-04
      rest      2     10   7.07   0.0184  0.414   0.0014   0.001    -1.2e-03
      >>> measured["blocks"].removed
      Array([0.001, 0.001], dtype=float32)

    Reference: Kosson, Messmer & Jaggi 2023, arXiv 2305.17212, for the angle as the effective learning rate.

    """
    check_transformation("optimizer", optimizer)
    refuse_wrong_order(opt_state)
    program = Program(optax.with_extra_args_support(optimizer), grads, opt_state, params, extra)
    with explaining("measure_decay", program.grads, program.params):
        updates, _ = program(program.grads, program.params)
    return measure_groups(program, updates, assign_groups(groups, slices, params))


def measure_groups(program: Program, updates: optax.Updates, grouping: Grouping) -> DecayTable:
    """`measure_decay` of known groups."""
    steps = leaf_steps(program, updates)
    found = step_sums.summarize(steps, grouping.of, grouping.sizes, grouping.layers, grouping.axes)
    return DecayTable(tuple(found[name] for name in grouping.stacks), grouping.places)


def empty_table(grouping: Grouping) -> DecayTable:
    """The table before the first step: zeros, except the sizes."""
    rows = len(Norms._fields) - (grouping.axes is None)
    arrays = []
    for sizes in step_sums.stacked_sizes(grouping.sizes, grouping.layers).values():
        arrays.append(jnp.zeros((rows, len(sizes)), jnp.float32).at[0].set(sizes))
    return DecayTable(tuple(arrays), grouping.places)


REBUILDS = {  # wrappers that compute the weights from others in their state: the type of that state; the right order
    optax.LookaheadState: "optax.lookahead(wd_optax.monitor_decay(optimizer), sync_period, slow_step_size)",
    optax.contrib.ScheduleFreeState: "optax.contrib.schedule_free(wd_optax.monitor_decay(optimizer), learning_rate)",
}


def refuse_wrong_order(state: optax.OptState) -> None:
    """Refuses, anywhere in the optimizer, wrappers whose steps don't show the decay."""
    rebuilds = lambda x: type(x) in REBUILDS
    for found in filter(rebuilds, jax.tree.leaves(state, is_leaf=rebuilds)):
        order = REBUILDS[type(found)]
        raise ValueError(
            f"measure_decay or monitor_decay is around {order.split('(')[0]}, which computes the weights from others "
            f"in its state: measure the optimizer inside, as {order}"
        )
