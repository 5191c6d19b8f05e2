"""Successive halving of a batch of trials: the survivors' states stay on the devices, one program per rung width."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wd_optax.choosing.searching.batches import Outcome
from wd_optax.choosing.searching.space import MAKE_STATIC, Space, first_point, group_points
from wd_optax.choosing.sweeping import memory, metrics, trace, values
from wd_optax.choosing.sweeping.devices import without_deadlock
from wd_optax.choosing.sweeping.execute import AXIS
from wd_optax.choosing.sweeping.grid import StaticGroup

Tree = Any
Report = Callable[[int, Outcome, str], None]  # (point, outcome, whether it is "running", "pruned" or "finished")


def check_rungs(rungs: Any) -> tuple[int, ...]:
    """The numbers of steps at which trials are compared, rising.

    Raises:
      ValueError: for anything else.

    """
    several = isinstance(rungs, (list, tuple)) or values.ndim(rungs) == 1
    found = list(map(values.to_python, rungs)) if several else []
    if not found or not all(map(values.is_whole, found)) or found != sorted({*found}) or found[0] < 1:
        raise ValueError(f"rungs={rungs!r}: pass rising numbers of steps at which to compare, such as (10, 30, 90)")
    return tuple(map(int, found))


class Halving:
    """Trains batches in rungs: after rᵢ steps the best rᵢ/rᵢ₊₁ of the trials go on, so that rungs cost about the same.

    Reference: Jamieson & Talwalkar 2016, arXiv 1502.07943.
    """

    def __init__(
        self,
        init: Callable[..., Tree],
        step: Callable[..., tuple[Tree, dict[str, Any]]],
        rungs: Sequence[int],
        space: Space,
        seeds: Sequence[int],
        devices: list[jax.Device],
    ):
        self.init, self.step, self.rungs = init, step, rungs
        self.space, self.seeds = space, seeds
        first = group_points(space, [first_point(space)], seeds)[0]
        self.traced = trace.trace_run(self._one_step, first, MAKE_STATIC)
        self.devices = without_deadlock(devices, self.traced.jaxpr)
        mesh = Mesh(np.array(self.devices), (AXIS,))
        self.mesh, self.split = mesh, NamedSharding(mesh, PartitionSpec(AXIS))
        self.same = NamedSharding(mesh, PartitionSpec())
        self.programs: dict[tuple[str, int], Callable[..., Any]] = {}
        self.metrics = metrics.common_metrics([first], [self.traced])

    def _one_step(self, hparams: dict[str, Any], key: jax.Array) -> dict[str, Any]:
        state = self.init(hparams, key)
        out = self.step(hparams, state)
        if not isinstance(out, tuple) or len(out) != 2 or not isinstance(out[1], dict):
            raise TypeError(f"step must return (state, {{metric: value}}), got {out!r}")
        before, after = (jax.tree.map(lambda x: jax.typeof(x).str_short(), tree) for tree in (state, out[0]))
        if before != after:
            raise TypeError(f"step must return a state of the types that init returns, {before}; got {after}")
        found: dict[str, Any] = out[1]
        return found

    def train(
        self, points: Sequence[Mapping[str, Any]], most: int, value: Callable[[Outcome], float], report: Report
    ) -> None:
        """Trains a batch; calls `report` for each point at each rung, and compares by `value`, the less the better.

        Raises:
          MemoryError: if the states of the batch don't fit the devices.

        """
        alive = list(range(len(points)))
        states: dict[str, tuple[Tree, list[int]]] = {}
        for i, steps in enumerate(self.rungs):
            try:
                states, outcomes = self._advance(i, points, alive, most, states)
            except Exception as error:
                if not memory.exhausted(error):
                    raise
                runs = len(alive) * len(self.seeds)
                raise MemoryError(
                    f"{runs} runs and their states don't fit the devices: pass a smaller batch"
                ) from error
            bad = [k for k in alive if outcomes[k].diverged.any()]
            ranked = sorted((k for k in alive if k not in bad), key=lambda k: value(outcomes[k]))
            last = i + 1 == len(self.rungs)
            going = 0 if last else math.ceil(len(alive) * steps / self.rungs[i + 1])
            for k in alive:
                left = "finished" if last or k in bad else "pruned"
                report(k, outcomes[k], "running" if k in ranked[:going] else left)
            alive = sorted(ranked[:going])
            if not alive:
                return

    def _advance(
        self, i: int, points: Sequence[Any], alive: list[int], most: int, states: dict[str, tuple[Tree, list[int]]]
    ) -> tuple[dict[str, tuple[Tree, list[int]]], dict[int, Outcome]]:
        """Trains the points that are alive from one rung to the next: states by static group, outcomes by point."""
        after: dict[str, tuple[Tree, list[int]]] = {}
        outcomes: dict[int, Outcome] = {}
        for group in group_points(self.space, [points[k] for k in alive], self.seeds):
            mine = [alive[k] for k in (group.runs[:: len(self.seeds)] // len(self.seeds)).tolist()]
            filled = np.minimum(np.arange(self._width(len(mine), most)), len(group.runs) - 1)
            hparams = {name: jax.device_put(x[filled], self.split) for name, x in group.traced.items()}
            if i == 0:
                start = jax.device_put(group.seeds[filled], self.split)
            else:
                before, order = states[str(group)]
                where = {k: row for row, k in enumerate(order)}
                rows = np.array([where[k] for k in mine])[:, None] * len(self.seeds) + np.arange(len(self.seeds))
                start = (before, jax.device_put(rows.reshape(-1)[filled], self.same))
            state, found = self._program(group, i)(hparams, start)
            after[str(group)] = state, mine
            rows_of = {name: np.asarray(x)[: len(group.runs)] for name, x in found.items()}
            outcomes |= dict(zip(mine, self._outcomes(rows_of, self.rungs[i]), strict=True))
        return after, outcomes

    def _outcomes(self, found: dict[str, np.ndarray], steps: int) -> list[Outcome]:
        count = len(next(iter(found.values())))
        diverged, clean = metrics.MetricTable(self.metrics, count).clean(found)
        trials = np.arange(count).reshape(-1, len(self.seeds))
        return [Outcome({name: x[rows] for name, x in clean.items()}, diverged[rows], steps) for rows in trials]

    def _width(self, count: int, most: int) -> int:
        """Runs in a launch: those of the smallest rung of a full batch that holds so many trials."""
        sizes = sorted(max(math.ceil(most * self.rungs[0] / steps), 1) for steps in self.rungs)
        trials = next((size for size in sizes if size >= count), count)
        return -(-trials * len(self.seeds) // len(self.devices)) * len(self.devices)

    def _program(self, group: StaticGroup, i: int) -> Callable[..., Any]:
        """The program from rung i − 1 to rung i; jit compiles it once for each width."""
        name = str(group), i
        if name not in self.programs:
            self.programs[name] = self._make_program(group, i)
        return self.programs[name]

    def _make_program(self, group: StaticGroup, i: int) -> Callable[..., Any]:
        length = self.rungs[i] - (self.rungs[i - 1] if i else 0)

        def run(hparams: dict[str, Any], start: Any) -> Any:
            given = {**group.static, **hparams}
            state = self.init(given, trace.key_of(start)) if i == 0 else start
            shapes = jax.eval_shape(lambda s: self.step(given, s)[1], state)
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            advance = lambda _, carry: self._arrays(*self.step(given, carry[0]))
            return jax.lax.fori_loop(0, length, advance, (state, nothing))

        hparams = {name: x[0] for name, x in group.traced.items()}
        example = self._example(group, hparams, i)
        consts, call = _lift(run, hparams, example)
        split, same = PartitionSpec(AXIS), PartitionSpec()
        consts = jax.device_put(consts, self.same)
        batch = jax.shard_map(
            jax.vmap(call, in_axes=(None, 0, 0)),
            mesh=self.mesh,
            in_specs=(same, split, split),
            out_specs=split,
            check_vma=False,
        )

        @jax.jit
        def program(consts: list[Any], hparams: dict[str, Any], start: Any) -> Any:
            if i > 0:
                state, rows = start
                start = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x[rows], self.split), state)
            return batch(consts, hparams, start)

        return functools.partial(program, consts)

    def _example(self, group: StaticGroup, hparams: dict[str, Any], i: int) -> Any:
        """The type of what a program starts from: a seed, or a state."""
        if i == 0:
            return group.seeds[0]
        return jax.eval_shape(
            lambda h, seed: self.init({**group.static, **h}, trace.key_of(seed)), hparams, group.seeds[0]
        )

    @staticmethod
    def _arrays(state: Tree, found: dict[str, Any]) -> tuple[Tree, dict[str, jax.Array]]:
        return state, jax.tree.map(jnp.asarray, found)


def _lift(function: Callable[..., Any], *example: Any) -> tuple[list[Any], Callable[..., Any]]:
    """The arrays that a function closes over, and the function of them and its arguments."""
    from jax.extend import core  # it loads Pallas

    closed, shape = jax.make_jaxpr(function, return_shape=True)(*example)
    structure = jax.tree.structure(shape)

    def call(consts: list[Any], *args: Any) -> Any:
        flat = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(structure, flat)

    return closed.consts, call
