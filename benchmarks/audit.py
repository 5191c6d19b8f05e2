"""Cost of `wd.audit` on large trees of shapes: wall and CPU seconds, and the peak memory of the process.

Each case runs in its own process, so that peaks are separate and nothing is compiled beforehand.

    python benchmarks/audit.py                      # about a minute on a laptop CPU
    python benchmarks/audit.py --cases=70b          # cases whose name contains it
    python benchmarks/audit.py --leaves=4000        # size of the trees with many leaves
"""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import wd_optax as wd

_CASES = flags.DEFINE_string("cases", "", "Substring of the names of the cases to run; all by default.")
_LEAVES = flags.DEFINE_integer("leaves", 20_000, "Size of the trees with many leaves.", lower_bound=10)
_LAYERS = flags.DEFINE_integer("layers", 80, "Layers of the 70B model.", lower_bound=1)
STEPS = 500_000


class Cost(NamedTuple):
    """Cost of one audit."""

    leaves: int
    parameters: int
    wall: float
    cpu: float
    megabytes: float
    decaying: int  # decaying leaves according to the report


def llama_70b(layers: int) -> Any:
    """Llama-2 70B, one subtree per layer, in bfloat16."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    width, hidden, kv, words = 8192, 28672, 1024, 32000
    q, k = shape(width, width), shape(width, kv)
    block = lambda: {
        "attention": {"wq": q, "wk": k, "wv": k, "wo": q},
        "feed_forward": {"w1": shape(width, hidden), "w2": shape(hidden, width), "w3": shape(width, hidden)},
        "attention_norm": {"scale": shape(width)},
        "ffn_norm": {"scale": shape(width)},
    }  # fmt: skip
    ends = {"embed": {"embedding": shape(words, width)}, "norm": {"scale": shape(width)}}
    return {"layers": {str(i): block() for i in range(layers)}, **ends, "lm_head": {"kernel": shape(width, words)}}


def many_leaves(leaves: int) -> Any:
    """Blocks of two kernels, two biases and a norm's scale, of several sizes."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)

    def block(n: int) -> Any:
        pair = lambda a, b: {"kernel": shape(a, b), "bias": shape(b)}
        return {"in": pair(n, 4 * n), "out": pair(4 * n, n), "norm": {"scale": shape(n)}}

    return {f"layer_{i}": block(64 * (1 + i % 4)) for i in range(leaves // 5)}


def by_path(params: Any) -> Any:
    """A path-based mask, as many Optax users write it."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def cases(leaves: int, layers: int) -> dict[str, Callable[[], tuple[Any, Any, dict[str, Any]]]]:
    """Name -> the optimizer, the parameters and the audit's options."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.5e-4, 2000, STEPS)
    stochastic = lambda: wd.adamw(schedule, weight_decay=0.1, rounding="stochastic")
    ours, theirs = lambda: wd.adamw(1e-3, weight_decay=0.1), lambda: optax.adamw(1e-3, weight_decay=0.1, mask=by_path)
    return {
        "70b, horizon": lambda: (stochastic(), llama_70b(layers), {"horizon": STEPS}),
        "70b": lambda: (stochastic(), llama_70b(layers), {}),
        'many, "weights"': lambda: (ours(), many_leaves(leaves), {}),
        "many, path mask": lambda: (theirs(), many_leaves(leaves), {}),
    }


def measure(name: str, leaves: int, layers: int) -> Cost:
    """Runs one case in this process."""
    optimizer, params, options = cases(leaves, layers)[name]()
    wall, cpu = time.perf_counter(), time.process_time()
    report = wd.audit(optimizer, params, **options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params)]
    return Cost(len(sizes), sum(sizes), wall, cpu, peak, sum(row.decays for row in report.rows))


def table(found: dict[str, Cost]) -> str:
    """Formats one line per case."""
    lines = [f"{'tree':<18}{'leaves':>8}{'parameters':>12}{'decaying':>10}{'seconds':>9}{'CPU s':>8}{'MB':>7}"]
    lines += [
        f"{name:<18}{x.leaves:>8}{x.parameters:>12.3g}{x.decaying:>10}{x.wall:>9.1f}{x.cpu:>8.1f}{x.megabytes:>7.0f}"
        for name, x in found.items()
    ]
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Measures each case in a fresh process, and prints."""
    found = {}
    for name in cases(_LEAVES.value, _LAYERS.value):
        if _CASES.value in name:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[name] = pool.apply(measure, (name, _LEAVES.value, _LAYERS.value))
    print(table(found))


if __name__ == "__main__":
    app.run(main)
