"""An optimizer's step as the TPU's compiler makes it, on a mesh of hundreds of chips that nobody needs to have.

Bytes are those that cross HBM, summed over the instructions of the compiled program: what a fusion reads from and
writes to HBM, and what is copied between HBM and on-chip memory (memory space 1 in layouts), once. `cost_analysis`
counts an array that is prefetched twice.
"""

import math
import os
import re
import time
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to query
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LAYERS, EXPERTS = re.compile("(^|/)layers/|_layers/"), re.compile("experts/")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = ((?:\(.*?\)|\S+)) ([\w-]+)\((.*)")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
VIEWS = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "copy-done", "slice-done", "async-done")
COLLECTIVE = re.compile(r" (?:all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(")


class Program(NamedTuple):
    """A compiled step, per chip."""

    chips: int
    parameters: int  # that a chip holds
    moved: float  # bytes of HBM per parameter and step
    held: float  # bytes of parameters and optimizer state per parameter
    state: int  # bytes of the optimizer's state
    temporary: float  # bytes per parameter
    not_aliased: float  # bytes of parameters and state that are not updated in place
    fusions: int
    collectives: int
    trace: float  # seconds, with lowering
    compile: float


def mesh_of(topology: str, tensor: int = 1) -> Mesh:
    """The devices of a slice, `tensor` of them side by side on the axis "model" and the rest on "data"."""
    devices: Any = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return Mesh(np.array(devices).reshape(-1, tensor), ("data", "model"))


def place(path: str, shape: tuple[int, ...], mesh: Mesh, *, stacked: bool) -> NamedSharding:
    """FSDP: rows over "data", columns over "model"; experts over "data", their rows over "model".

    Vectors are on every chip; an axis that the devices don't divide gives way to the other one.
    """
    layers = int(stacked and bool(LAYERS.search(path)))
    axes = [("data",), ("model",)]
    first = len(shape) - 2  # rows
    if layers and EXPERTS.search(path):
        first = layers
    names: list[Any] = [None] * len(shape)
    if first >= layers:
        for axis, name in zip(range(first, len(shape)), axes, strict=False):
            names[axis] = name
        if any(name and shape[i] % mesh.shape[name[0]] for i, name in enumerate(names)):
            names = [*[None] * (len(shape) - 1), ("data", "model")]
    return NamedSharding(mesh, PartitionSpec(*names))


def compile_step(
    optimizer: optax.GradientTransformation, tree: dict[str, tuple[int, ...]], dtype: Any, mesh: Mesh, stacked: bool
) -> Program:
    """Compiles a jitted, donated step of a tree of shapes."""
    params = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in tree.items()}
    carry = (params, jax.eval_shape(optimizer.init, params))

    def placed(keys: Any, x: Any) -> Any:
        path = next((key.key for key in reversed(keys) if getattr(key, "key", None) in tree), "")
        whole = NamedSharding(mesh, PartitionSpec())
        at = place(path, x.shape, mesh, stacked=stacked) if x.shape == tree.get(path) else whole
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)

    carry = jax.tree_util.tree_map_with_path(placed, carry)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    out = jax.tree.map(lambda x: x.sharding, carry)
    began = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1), out_shardings=out).lower(*carry, carry[0])
    traced = time.perf_counter()
    program: Any = lowered.compile()
    return _read(program, carry, mesh, traced - began, time.perf_counter() - traced)


def _read(program: Any, carry: tuple[Any, Any], mesh: Mesh, trace: float, compile_: float) -> Program:
    devices = len({tuple(device.coords) for device in mesh.devices.flat})  # a TPU7x chip has two devices
    per_chip = mesh.size // devices
    local = lambda tree: [(math.prod(x.sharding.shard_shape(x.shape)), x.dtype.itemsize) for x in jax.tree.leaves(tree)]
    (params, state), text, memory = map(local, carry), program.as_text(), program.memory_analysis()
    size, own = sum(n for n, _ in params), sum(n * width for n, width in params + state)
    entry = text[text.index("\nENTRY") :]
    return Program(
        chips=devices,
        parameters=size * per_chip,
        moved=hbm_bytes(text) / size,
        held=own / size,
        state=sum(n * width for n, width in state) * per_chip,
        temporary=memory.temp_size_in_bytes / size,
        not_aliased=max(0, own - memory.alias_size_in_bytes) / size,
        fusions=len(re.findall(r" fusion\(", entry)),
        collectives=len(COLLECTIVE.findall(text)),
        trace=trace,
        compile=compile_,
    )


def hbm_bytes(text: str) -> int:
    """Bytes that the entry of a compiled program reads from HBM and writes to it, without padding of tiles.

    Example: an array of 1 kB is prefetched, and a fusion adds it to another.
      >>> print(hbm_bytes('''
      ... ENTRY %main (a: f32[256], b: f32[256]) -> f32[256] {
      ...   %a = f32[256]{0} parameter(0)
      ...   %b = f32[256]{0} parameter(1)
      ...   %start = (f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%a)
      ...   %done = f32[256]{0:S(1)} copy-done(%start)
      ...   ROOT %sum = f32[256]{0} fusion(%done, %b), kind=kLoop, calls=%add
      ... }'''))
      3072
    """
    total, arrays = 0, dict[str, list[tuple[int, bool]]]()
    for line in text[text.index("\nENTRY") :].splitlines():
        found = INSTRUCTION.match(line)
        if not found:
            continue
        name, result, operation, rest = found.groups()
        arrays[name] = results = [_array(*array) for array in ARRAY.findall(result)]
        if operation == "get-tuple-element":
            arrays[name] = results
        if operation in VIEWS:
            continue
        operands = [arrays.get(one, []) for one in re.findall(r"%([\w.-]+)", rest.split("), ")[0])]
        if operation.endswith("-start"):  # the result is the destination, the source, and a flag
            size, into_hbm = results[0] if operation == "copy-start" else min(results[:2])
            from_hbm = any(in_hbm for operand in operands for _, in_hbm in operand)
            into_hbm = results[0][1] if operation == "copy-start" else not from_hbm
            total += size * (from_hbm + into_hbm)
            continue
        total += sum(size for one in (results, *operands) for size, in_hbm in one if in_hbm)
    return total


def _array(dtype: str, bits: str, dimensions: str, layout: str) -> tuple[int, bool]:
    """Bytes of an array, and whether it is in HBM."""
    size = math.prod(map(int, filter(None, dimensions.split(",")))) * int(bits or 8) // 8
    return size, not re.search(r"S\(\d", layout or "")
