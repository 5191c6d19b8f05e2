"""Memory and collectives of a training step on TPUs, without a TPU: libtpu compiles the step for a given slice.

`tpu_run.py --compile_only` prints them; `collectives` parses any program that JAX compiled.
"""

import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
OP = re.compile(rf"%([\w.-]+) = (.*?) ({'|'.join(KINDS)})(-start)?\(")
MIB = 2**20


class Sum(NamedTuple):
    """Total over the collectives of one kind in one part of the program."""

    times: int  # executions per run of the program
    size: int  # bytes of the results on one device


def devices(topology: str) -> Any:
    """The chips of a TPU slice, as compilation targets only."""
    jax.config.update("jax_platforms", "cpu")  # libtpu only compiles here, and must not look for chips
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")  # nor for a TPU host
    # A v4 chip runs as one device; libtpu's description lists its two cores separately by default.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except RuntimeError as error:
        fix = "write chip:shape, such as v5e:2x4 or v5p:8x8x8" if "INVALID" in str(error) else "pip install libtpu"
        raise ValueError(f"--topology={topology}: {str(error).splitlines()[0]}: {fix}") from None


def text_of(lowered: Any, compiled: Any) -> tuple[str, str]:
    """Returns the optimized program, and how the compilation differed ("" if it didn't).

    Collectives on a TPU7x's SparseCores are operations that jaxlib can't print (0.10.2: "async-update instruction
    should have 1 operands"): the program is then compiled again with collectives on the TensorCores.
    """
    try:
        return compiled.as_text(), ""
    except jax.errors.JaxRuntimeError:
        kinds = ("all_gather", "all_reduce", "reduce_scatter")
        options = {f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "false" for kind in kinds}
        return lowered.compile(compiler_options=options).as_text(), "counted with collectives off the SparseCores"


def bytes_of(shapes: str) -> list[int]:
    """Size in bytes of each array in an XLA type such as (f32[8,2], pred[])."""
    found = re.findall(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", shapes)
    return [math.prod(map(int, filter(None, dims.split(",")))) * int(bits or 8) // 8 for _, bits, dims in found]


def collectives(program: str, parts: tuple[str, ...] = ()) -> dict[tuple[str, str], Sum]:
    """{(part, kind): Sum} of an optimized program; the part is the last of `parts` in the operation's scope.

    An operation in a loop counts once per iteration; the pieces of one collective count once.
    """
    split = re.findall(r"^(ENTRY )?%([\w.-]+) \([^\n]*-> ([^\n]*) \{\n(.*?)^\}", program, re.M | re.S)
    types, bodies = ({name: found[i] for _, name, *found in split} for i in (0, 1))
    found: dict[str, tuple[str, str, int, int]] = {}

    def walk(name: str, times: int, scope: str) -> None:
        for line in bodies[name].splitlines():
            own = re.search(r'op_name="([^"]*)"', line)
            here = own[1] if own else scope
            if op := OP.search(line):
                scatters = name.startswith("all-reduce-scatter")  # libtpu's form of a reduce-scatter
                sizes = bytes_of(types[name] if scatters else op[2])
                chain = re.search(r"channel_id=\d+(?=.*chain_id=)", line)  # pieces of one collective
                part = max((part for part in parts if part in here), key=here.rfind, default="model")
                size = max(sizes) if op[4] else sum(sizes)  # a -start operation returns its operands too
                found[chain[0] if chain else op[1]] = part, "reduce-scatter" if scatters else op[3], times, size
            for role, callee in re.findall(r"(calls|to_apply|body)=%([\w.-]+)", line):
                walk(callee, times * (_trips(line, bodies) if role == "body" else 1), here)

    walk(next(name for entry, name, *_ in split if entry), 1, "")
    sums: dict[tuple[str, str], Sum] = {}
    for part, kind, times, size in found.values():
        before, so_far = sums.get((part, kind), (0, 0))
        sums[part, kind] = Sum(before + times, so_far + times * size)
    return dict(sorted(sums.items()))


def _trips(line: str, bodies: dict[str, str]) -> int:
    """Trip count of a `while`: XLA's annotation, or the constant that its condition compares the counter with."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    return int(re.findall(r"constant\((\d+)\)", bodies[re.findall(r"condition=%([\w.-]+)", line)[0]])[0])


def report(memory: Any, step: dict[tuple[str, str], Sum], alone: dict[tuple[str, str], Sum], how: str = "") -> str:
    """Formats memory, the collectives of a step and how they were counted, and those of the optimizer."""
    size = lambda name: getattr(memory, f"{name}_size_in_bytes") / MIB
    lines = [
        f"MiB per chip: {size('argument'):.1f} state and batch, {size('temp'):.1f} temporaries, "
        f"{size('generated_code'):.1f} program; {size('alias'):.1f} MiB of the state are updated in place",
        f"{'part':11}{'collective':20}{'per step':>9}{'MiB of results per chip':>25}",
    ]
    lines += [f"({how}, because jaxlib can't print the program otherwise)"] if how else []
    for (part, kind), (count, total) in step.items():
        lines.append(f"{part:11}{kind:20}{count:>9,}{total / MIB:>25,.3f}")
    has = lambda sums: ", ".join(kind for _, kind in sums) or "no collectives"
    inside = [key for key in step if key[0] == "optimizer"]
    lines.append(f"optimizer (decay, moments, rounding): {has(inside)} in the step; compiled alone: {has(alone)}")
    return "\n".join(lines)
