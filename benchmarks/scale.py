"""Large models as shapes only: `explain`, `audit`, tracing, and the step as the TPU's compiler makes it for pods.

Nothing of a model's size is made: each measurement of `explain` and `audit` runs in a process of its own that may
allocate `HEADROOM` beyond what JAX takes at its start, so that one array of the size of a model would end it.

    python benchmarks/scale.py                                  # explain, audit and tracing: about three minutes
    python benchmarks/scale.py --only="70b, (rule|tree)"        # cases whose names match
    python benchmarks/scale.py --audits=false --pods=v5p:8x8x8  # compiled steps, with libtpu: about a minute each
"""

import multiprocessing
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import trees
from absl import app, flags

import wd_optax as wd

_ONLY = flags.DEFINE_string("only", "", "Regex of the names of the cases to run; all by default.")
_LAYERS = flags.DEFINE_integer("layers", 80, "Layers of the 70B model.", lower_bound=3)
_LEAVES = flags.DEFINE_integer("leaves", 20_000, "Leaves of the tree with the most.", lower_bound=10)
_AUDITS = flags.DEFINE_bool("audits", True, "Measure explain and audit.")
_STEPS = flags.DEFINE_bool("steps", True, "Measure tracing.")
_PODS = flags.DEFINE_list("pods", [], "Slices to compile for, such as v5p:8x8x8 (512 chips); needs libtpu.")

STEPS = 500_000
HEADROOM = 2**31  # bytes; the smallest of the models has 16 GB, and JAX compiles in a few hundred MB
BF16 = jnp.bfloat16
HALF: dict[str, Any] = {"rounding": "stochastic", "mu_dtype": BF16, "nu_dtype": BF16}


class Cost(NamedTuple):
    """Cost of one call."""

    wall: float
    cpu: float
    megabytes: float  # the process's peak
    decaying: int  # leaves, according to what was returned


class Audit(NamedTuple):
    """An optimizer and a tree of shapes."""

    make: Callable[[dict[str, Any]], optax.GradientTransformation]
    tree: Callable[[int, int], trees.Tree]  # (layers of the 70B model, leaves of the tree with the most)
    dtype: Any = BF16


class Step(NamedTuple):
    """A tree, an optimizer, and the least bytes that its step moves per parameter."""

    tree: Callable[[], trees.Tree]
    make: Callable[[], optax.GradientTransformation]
    least: float
    dtype: Any = BF16
    tensor: tuple[int, ...] = (1, 8)  # devices side by side: 1 is FSDP


def llama_8b(stacked: bool = False) -> trees.Tree:
    """Llama-3 8B."""
    return trees.llama3(32, 4096, 14_336, stacked=stacked)


def llama_70b(layers: int = 80, stacked: bool = False) -> trees.Tree:
    """Llama-3 70B."""
    return trees.llama3(layers, 8192, 28_672, stacked=stacked)


def shapes(tree: trees.Tree, dtype: Any) -> dict[str, Any]:
    """Nested dicts of shapes without values."""
    nested: dict[str, Any] = {}
    for path, shape in tree.items():
        *folders, name = path.split("/")
        at = nested
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = jax.ShapeDtypeStruct(shape, dtype)
    return nested


def _is_kernel(params: Any) -> Any:
    """A mask by path, as many users of Optax write it."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def adamw(**options: Any) -> Any:
    """AdamW with warm-up, stochastic rounding and a decay of 0.1."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.5e-4, 2000, STEPS)
    return wd.adamw(schedule, weight_decay=0.1, **({"rounding": "stochastic"} | options))


def per_layer(params: Any) -> list[tuple[str, float]]:
    """Rules that decay every layer less than the one before."""
    layers = len(params["layers"])
    return [*((f"layers/{i}/.*kernel", 1 - i / (2 * layers)) for i in range(layers)), ("kernel|embedding", 1.0)]


_one_layer, _most = [("layers/1/", 0.0), ("kernel|embedding", 1.0)], [("layer_7/", 0.0), ("kernel", 1.0)]
_norm = lambda: {"rule": wd.rules.toward_norm("init"), "slices": [("layers/1/.*kernel", (1,))]}
_70b = lambda layers, leaves: llama_70b(layers)
AUDITS: dict[str, Audit] = {
    "8b": Audit(lambda p: adamw(), lambda layers, leaves: llama_8b()),
    "70b": Audit(lambda p: adamw(), _70b),
    "70b, stacked": Audit(lambda p: adamw(), lambda layers, leaves: llama_70b(layers, stacked=True)),
    "70b, rule for one layer": Audit(lambda p: adamw(mask=_one_layer), _70b),
    "70b, rule for each layer": Audit(lambda p: adamw(mask=per_layer(p)), _70b),
    "70b, tree mask": Audit(lambda p: adamw(mask=_is_kernel(p)), _70b),
    "70b, slices of one layer": Audit(lambda p: adamw(**_norm()), _70b),
    "70b, Optax, tree mask": Audit(lambda p: optax.adamw(1e-3, weight_decay=0.1, mask=_is_kernel(p)), _70b),
    "671b": Audit(lambda p: adamw(), lambda layers, leaves: trees.deepseek_v3()),
    "most leaves": Audit(
        lambda p: wd.adamw(1e-3, weight_decay=0.1), lambda layers, leaves: trees.blocks(leaves), jnp.float32
    ),
    "most leaves, Optax, function": Audit(
        lambda p: optax.adamw(1e-3, weight_decay=0.1, mask=_is_kernel),
        lambda layers, leaves: trees.blocks(leaves),
        jnp.float32,
    ),
    "most leaves, rule for one layer": Audit(
        lambda p: wd.adamw(1e-3, weight_decay=0.1, mask=_most), lambda layers, leaves: trees.blocks(leaves), jnp.float32
    ),
}
_adamw = lambda **options: lambda: wd.adamw(1.5e-4, weight_decay=0.1, **options)
_norms = lambda: wd.adamw(1.5e-4, weight_decay=0.1, rule=wd.rules.toward_norm("init"), slices=[("layers/", 1)], **HALF)
_70b_stacked = lambda: llama_70b(stacked=True)
PODS: dict[str, Step] = {
    "70b, bf16, stochastic, bf16 moments": Step(_70b_stacked, _adamw(**HALF), 14),
    "70b, float32": Step(_70b_stacked, _adamw(), 28, jnp.float32, (8,)),
    "70b, bf16, toward_norm per layer": Step(_70b_stacked, _norms, 16, tensor=(8,)),  # a norm reads p once more
    "8b, bf16, stochastic, bf16 moments": Step(lambda: llama_8b(stacked=True), _adamw(**HALF), 14, tensor=(8,)),
    "671b, bf16, stochastic, bf16 moments": Step(trees.deepseek_v3, _adamw(**HALF), 14, tensor=(8,)),
}


def limit_memory(headroom: int = HEADROOM) -> None:
    """Lets this process allocate this much more address space, and no more. Linux only."""
    jnp.zeros(()).block_until_ready()  # JAX's threads and pools are there first
    used = re.search(r"VmSize:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    assert used
    resource.setrlimit(resource.RLIMIT_AS, (int(used[1]) * 1024 + headroom,) * 2)


def measure(name: str, layers: int, leaves: int) -> dict[str, Cost]:
    """Calls explain and audit in this process, which has little memory."""
    case = AUDITS[name]
    params = shapes(case.tree(layers, leaves), case.dtype)
    if sys.platform == "linux":
        limit_memory()
    calls: dict[str, Callable[[], Any]] = {
        "explain": lambda: wd.explain("weights", params),
        "audit": lambda: wd.audit(case.make(params), params),
    }
    return {what: _cost(call) for what, call in calls.items()}


def _cost(call: Callable[[], Any]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    rows = call().rows
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cost(wall, cpu, peak, sum(bool(getattr(row, "decays", getattr(row, "multiplier", 0))) for row in rows))


def trace_seconds(tree: trees.Tree, dtype: Any) -> dict[str, float]:
    """CPU seconds to trace one step, this library's and Optax's, on the same tree."""
    params, found = shapes(tree, dtype), {}
    optimizers = {"wd_optax": wd.adamw(1e-3, weight_decay=0.1), "optax": optax.adamw(1e-3, weight_decay=0.1)}
    for name, optimizer in optimizers.items():
        state = jax.eval_shape(optimizer.init, params)
        jax.clear_caches()
        began = time.process_time()
        jax.jit(optimizer.update).trace(params, state, params)
        found[name] = time.process_time() - began
    return found


def audit_table(layers: int, leaves: int, wanted: Callable[[str], bool]) -> Iterator[str]:
    """One line per case, each measured in a fresh process."""
    columns = ("tree", "leaves", "parameters", "explain, s", "audit, s", "of CPU", "MB", "decaying")
    yield f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    for name in filter(wanted, AUDITS):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            explained, audited = pool.apply(measure, (name, layers, leaves)).values()
        tree = AUDITS[name].tree(layers, leaves)
        yield (
            f"| {name} | {len(tree):,} | {trees.size(tree):.3g} | {explained.wall:.2f} | {audited.wall:.1f} | "
            f"{audited.cpu:.1f} | {audited.megabytes:.0f} | {audited.decaying:,} |"
        )


def step_table(layers: int, leaves: int, wanted: Callable[[str], bool]) -> Iterator[str]:
    """CPU seconds of tracing."""
    yield "| tree | wd_optax, s | optax, s |\n|---|---|---|"
    for name in filter(wanted, ("8b", "70b", "70b, stacked", "671b", "most leaves")):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            spent = pool.apply(trace_seconds, (AUDITS[name].tree(layers, leaves), AUDITS[name].dtype))
        yield f"| {name} | {spent['wd_optax']:.2f} | {spent['optax']:.2f} |"


def pod_table(pods: list[str], wanted: Callable[[str], bool]) -> Iterator[str]:
    """One line per compiled step."""
    import scale_tpu

    columns: tuple[str, ...] = (
        "step",
        "pod",
        "chips",
        "mesh",
        "moved",
        "least",
        "held",
        "state, MB per chip",
        "moved, MB per chip",
    )
    columns = (*columns, "fusions", "collectives", "trace, s", "compile, s")
    yield f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    for pod in pods:
        for name in filter(wanted, PODS):
            for tensor in PODS[name].tensor:
                step, mesh = PODS[name], scale_tpu.mesh_of(pod, tensor)
                found = scale_tpu.compile_step(step.make(), step.tree(), step.dtype, mesh, stacked=True)
                cells: tuple[Any, ...] = (name, pod, found.chips, "×".join(map(str, mesh.devices.shape)))
                cells += (f"{found.moved:.2f}", step.least, f"{found.held:.2f}", f"{found.state / 1e6:.0f}")
                cells += (f"{found.moved * found.parameters / 1e6:.0f}", found.fusions, found.collectives)
                yield f"| {' | '.join(map(str, cells))} | {found.trace:.0f} | {found.compile:.0f} |"


def main(_: list[str]) -> None:
    """Prints the tables in Markdown."""
    wanted = lambda name: bool(re.search(_ONLY.value, name))
    print(f"jax {jax.__version__}, optax {optax.__version__}")
    tables = [audit_table(_LAYERS.value, _LEAVES.value, wanted)] if _AUDITS.value else []
    tables += [step_table(_LAYERS.value, _LEAVES.value, wanted)] if _STEPS.value else []
    tables += [pod_table(_PODS.value, wanted)] if _PODS.value else []
    for table in tables:
        for line in table:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    app.run(main)
