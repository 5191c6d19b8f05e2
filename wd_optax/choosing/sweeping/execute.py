"""The compiled program of a static group, on a mesh of devices that each train one batch of runs."""

import copy
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wd_optax.choosing.sweeping.grid import StaticGroup
from wd_optax.choosing.sweeping.trace import TracedRun
from wd_optax.dtypes import is_random_key

AXIS = "runs"


class Executor:
    """Trains batches of one static group; every process of a multi-host job makes the same calls.

    The group's runs are cut into batches of `width` consecutive runs, and a launch trains one batch on each device. A
    batch always holds the same runs in the same places, whatever was finished before and on any number of devices,
    because the last bits of a run may depend on its batch. So the last batch is padded with the last run, and a launch
    that has fewer batches than devices with its last batch.
    """

    def __init__(self, traced: TracedRun, group: StaticGroup, devices: Sequence[jax.Device]):
        self.group, self.traced, self.devices = group, traced, devices
        mesh = Mesh(np.array(devices), (AXIS,))
        split, same = PartitionSpec(AXIS), PartitionSpec()
        self.compiled: dict[int, jax.stages.Compiled] = {}
        self.split, self.same = NamedSharding(mesh, split), NamedSharding(mesh, same)
        # Random keys stay constants of the program; all other arrays are its arguments.
        self.keys = {i: c for i, c in enumerate(traced.consts) if is_random_key(c)}
        with jax.enable_x64(True):  # else a monitor's float64 constants are rounded, and their types don't fit
            self.consts = [_put(np.asarray(c), self.same) for i, c in enumerate(traced.consts) if i not in self.keys]

        def batch(consts: list[jax.Array], hparams: dict[str, jax.Array], seeds: jax.Array) -> dict[str, jax.Array]:
            arrays = iter(consts)
            full = [self.keys[i] if i in self.keys else next(arrays) for i in range(len(traced.consts))]
            return jax.vmap(lambda h, seed: traced.call(full, h, seed))(hparams, seeds)

        # check_vma=False, because it rejects scans whose carry is a constant at first and varies over the mesh later.
        self.function = jax.jit(
            jax.shard_map(batch, mesh=mesh, in_specs=(same, split, split), out_specs=split, check_vma=False)
        )

    def compile(self, width: int) -> jax.stages.Compiled:
        """Compiles the program for a width."""
        return self.function.lower(*self._arguments(self.positions([0], width))).compile()

    def compiled_at(self, width: int) -> jax.stages.Compiled:
        """The program for a width, compiled once. Programs for other widths are dropped."""
        if width not in self.compiled:
            self.compiled.clear()
            self.compiled[width] = self.compile(width)
        return self.compiled[width]

    def on(self, group: StaticGroup) -> "Executor":
        """The same program for other runs."""
        other = copy.copy(self)
        other.group = group
        return other

    def positions(self, batches: list[int], width: int) -> np.ndarray:
        """Positions in the group of the runs that a launch trains, shape=(devices × width,)."""
        filled = np.array(batches + batches[-1:] * (len(self.devices) - len(batches)))
        return np.minimum(filled[:, None] * width + np.arange(width), len(self.group.runs) - 1).reshape(-1)

    def launch(self, batches: list[int], width: int) -> dict[str, jax.Array]:
        """Trains a batch on each device and waits for {metric: array of shape=(devices × width, ...)}."""
        out: dict[str, jax.Array] = self.compiled_at(width)(*self._arguments(self.positions(batches, width)))
        for array in out.values():
            array.block_until_ready()
        return out

    def collect(
        self, out: dict[str, jax.Array], batches: list[int], width: int, done: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The runs of a launch that weren't done: positions in the grid, shape=(runs,), and their metrics."""
        where = self.positions(batches, width)
        _, first = np.unique(where, return_index=True)
        new = first[~done[self.group.runs[where[first]]]]
        return self.group.runs[where[new]], {name: _gather(x)[new] for name, x in out.items()}

    def _arguments(self, where: np.ndarray) -> tuple[list[jax.Array], dict[str, jax.Array], jax.Array]:
        hparams = {name: _put(values[where], self.split) for name, values in self.group.traced.items()}
        return self.consts, hparams, _put(self.group.seeds[where], self.split)


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _gather(array: jax.Array) -> np.ndarray:
    """The whole array, on every process."""
    whole: Any = array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(whole)
