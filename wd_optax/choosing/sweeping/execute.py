"""One compiled program over a mesh of devices, each of which trains a block of runs in parallel."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wd_optax.choosing.sweeping.fingerprint import is_key
from wd_optax.choosing.sweeping.grid import Program
from wd_optax.choosing.sweeping.trace import TracedRun

AXIS = "runs"


class Executor:
    """Runs blocks of one program on a mesh; every process of a multi-host job makes the same calls."""

    def __init__(self, traced: TracedRun, program: Program, devices: list[Any]):
        self.program, self.traced, self.devices = program, traced, devices
        mesh = Mesh(np.array(devices), (AXIS,))
        self.compiled: dict[int, Any] = {}
        self.split, self.same = (NamedSharding(mesh, PartitionSpec(*name)) for name in ([AXIS], []))
        self.keys = {i: c for i, c in enumerate(traced.consts) if is_key(c)}  # these stay constants of the program
        self.consts = [_put(np.asarray(c), self.same) for i, c in enumerate(traced.consts) if i not in self.keys]

        def block(consts: list[jax.Array], hparams: dict[str, jax.Array], seeds: jax.Array) -> dict[str, jax.Array]:
            arrays = iter(consts)
            full = [self.keys[i] if i in self.keys else next(arrays) for i in range(len(traced.consts))]
            return jax.vmap(lambda h, seed: traced.call(full, h, seed))(hparams, seeds)

        specs = (self.same.spec, self.split.spec, self.split.spec)
        # No check: a scan that starts from a constant and then varies over the mesh is all right here.
        self.function = jax.jit(
            jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=self.split.spec, check_vma=False)
        )

    def compile(self, width: int) -> Any:
        """The program for blocks of this width."""
        return self.function.lower(*self._arguments(self.positions([0], width))).compile()

    def at(self, width: int) -> Any:
        """The program for this width, compiled once."""
        if width not in self.compiled:
            self.compiled = {width: self.compile(width)}  # one that didn't fit memory is dropped
        return self.compiled[width]

    def positions(self, blocks: list[int], width: int) -> np.ndarray:
        """Which of the program's runs a launch trains, shape=(devices × width,): blocks of fixed runs.

        A block is always made of the same runs in the same places, whatever was done before and on however many
        devices: the last run fills the last block, the last block fills the launch.
        """
        filled = np.array(blocks + blocks[-1:] * (self.split.mesh.size - len(blocks)))
        return np.minimum(filled[:, None] * width + np.arange(width), len(self.program.runs) - 1).reshape(-1)

    def launch(self, blocks: list[int], width: int) -> dict[str, jax.Array]:
        """Metrics, shape=(devices × width, ...), of a block per device, when they are there."""
        out: dict[str, jax.Array] = jax.block_until_ready(
            self.at(width)(*self._arguments(self.positions(blocks, width)))
        )
        return out

    def collect(self, out: dict[str, jax.Array], blocks: list[int], width: int, done: np.ndarray) -> Any:
        """Positions in the grid of the runs that weren't done, shape=(runs,), and their metrics, shape=(runs, ...)."""
        where = self.positions(blocks, width)
        _, first = np.unique(where, return_index=True)
        new = first[~done[self.program.runs[where[first]]]]
        return self.program.runs[where[new]], {name: gather(x)[new] for name, x in out.items()}

    def _arguments(self, where: np.ndarray) -> Any:
        hparams = {name: _put(values[where], self.split) for name, values in self.program.traced.items()}
        return self.consts, hparams, _put(self.program.seeds[where], self.split)


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def gather(array: jax.Array) -> np.ndarray:
    """The whole array on every process."""
    return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))
