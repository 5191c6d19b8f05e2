"""Bytes moved per step on a TPU, counted by the TPU's compiler, which needs no TPU: `pip install wd_optax[tpu]`.

One leaf of 64 Mi parameters: with several leaves the compiler prefetches into on-chip memory, and `cost_analysis`
counts those bytes twice, although they cross HBM once.

    TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_bytes.py                       # the table of docs/performance.md
    TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_bytes.py --topologies=v5e:2x2
"""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to query

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import wd_optax as wd

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x4", "tpu7x:2x2x1")
_TOPOLOGIES = flags.DEFINE_multi_string("topologies", list(TOPOLOGIES), "Chips to compile for.")

BF16, F32 = jnp.bfloat16, jnp.float32
COLUMNS = 1024
HALF = {"mu_dtype": BF16, "nu_dtype": BF16}


class Case(NamedTuple):
    """An optimizer, the dtype of its parameters and gradients, and the minimal bytes per parameter."""

    dtype: Any
    least: float
    make: Callable[[], Any]


def _adamw(**options: Any) -> Callable[[], Any]:
    return lambda: wd.adamw(1e-3, weight_decay=0.1, **options)


def _sgdw(**options: Any) -> Callable[[], Any]:
    return lambda: wd.sgdw(1e-3, weight_decay=0.1, **options)


def _lion() -> Any:
    return wd.with_decay(optax.lion(1e-3, weight_decay=0.0), learning_rate=1e-3, weight_decay=0.1)


# In place: p is read and written, g read, each state array read and written; anchor and monitor read more.
CASES = {
    "optax.adamw": Case(F32, 28, lambda: optax.adamw(1e-3, weight_decay=0.1)),
    "adamw": Case(F32, 28, _adamw()),
    "adamw, coupling='schedule'": Case(F32, 28, _adamw(coupling="schedule")),
    "adamw, cautious": Case(F32, 28, _adamw(rule=wd.rules.cautious())),
    "adamw, toward('init')": Case(F32, 32, _adamw(rule=wd.rules.toward("init"))),
    "adamw + monitor": Case(F32, 44, lambda: wd.monitor_decay(_adamw()())),
    "adam_l2": Case(F32, 28, lambda: wd.adam_l2(1e-3, weight_decay=0.1)),
    "sgdw": Case(F32, 12, _sgdw()),
    "sgdw, momentum": Case(F32, 20, _sgdw(momentum=0.9)),
    "sgd_l2, momentum": Case(F32, 20, lambda: wd.sgd_l2(1e-3, weight_decay=0.1, momentum=0.9)),
    "with_decay(lion)": Case(F32, 20, _lion),
    "bf16 adamw, float32 moments, nearest": Case(BF16, 22, _adamw(rounding="nearest")),
    "bf16 adamw, float32 moments, stochastic": Case(BF16, 22, _adamw(rounding="stochastic")),
    "bf16 adamw, float32 moments, compensated": Case(BF16, 26, _adamw(rounding="compensated")),
    "bf16 adamw, bf16 moments, nearest": Case(BF16, 14, _adamw(rounding="nearest", **HALF)),
    "bf16 adamw, bf16 moments, stochastic": Case(BF16, 14, _adamw(rounding="stochastic", **HALF)),
    "bf16 adamw, bf16 moments, compensated": Case(BF16, 18, _adamw(rounding="compensated", **HALF)),
    "bf16 adamw, master weights": Case(BF16, 30, lambda: wd.precision.with_master_weights(_adamw()())),
    "bf16 sgdw, nearest": Case(BF16, 6, _sgdw(rounding="nearest")),
    "bf16 sgdw, stochastic": Case(BF16, 6, _sgdw(rounding="stochastic")),
    "bf16 sgdw, compensated": Case(BF16, 10, _sgdw(rounding="compensated")),
}


class Traffic(NamedTuple):
    """Memory traffic of the compiled step on one chip."""

    bytes: float  # per parameter
    fusions: int  # that write an array as large as the leaf
    copies: int  # of such arrays, within HBM
    collectives: int
    temporary: float  # bytes per parameter


def compiled_for(topology: str, case: Case, *, rows: int = 2**16, leaves: int = 1, sharded: bool = False) -> Traffic:
    """Compiles a jitted, donated step for one chip of the topology, or with rows sharded over all chips."""
    chips: Any = np.array(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    mesh = Mesh(chips if sharded else chips[:1], ("data",))
    params = {f"layer_{i}": {"kernel": jax.ShapeDtypeStruct((rows, COLUMNS), case.dtype)} for i in range(leaves)}
    tx = case.make()
    rows_of = lambda x: PartitionSpec("data") if x.ndim > 1 and x.shape[0] == rows else PartitionSpec()
    place = lambda x: NamedSharding(mesh, rows_of(x))
    carry = (params, jax.eval_shape(tx.init, params))
    carry = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), carry)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    out = jax.tree.map(lambda x: x.sharding, carry)
    program: Any = jax.jit(step, donate_argnums=(0, 1), out_shardings=out).lower(*carry, carry[0]).compile()
    text, size = program.as_text(), leaves * rows * COLUMNS / mesh.size
    entry, leaf = text[text.index("\nENTRY") :], rf"\[{rows // mesh.size},{COLUMNS}\]"
    return Traffic(
        bytes=program.cost_analysis()["bytes accessed"] / size,
        fusions=len(re.findall(rf"= \(?[^=]*{leaf}[^=]* fusion\(", entry)),
        copies=len(re.findall(rf"{leaf}\S* copy\(", text)),
        collectives=len(re.findall(r" (?:all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", text)),
        temporary=program.memory_analysis().temp_size_in_bytes / size,
    )


def main(argv: list[str]) -> None:
    """Prints the table in Markdown."""
    del argv
    print(f"jax {jax.__version__}: bytes per parameter and step, one leaf of {2**16 * COLUMNS // 2**20} Mi\n")
    print(f"| optimizer | least | {' | '.join(_TOPOLOGIES.value)} |\n|---|---|{'---|' * len(_TOPOLOGIES.value)}")
    for name, case in CASES.items():
        found = [compiled_for(topology, case) for topology in _TOPOLOGIES.value]
        extra = lambda t: "" if t.fusions == 1 and not t.copies else f" ({t.fusions} fusions, {t.copies} copies)"
        cells = " | ".join(f"{t.bytes:.1f}{extra(t)}" for t in found)
        print(f"| {name} | {case.least:g} | {cells} |", flush=True)


if __name__ == "__main__":
    app.run(main)
