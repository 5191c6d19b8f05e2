"""Cost of a mask per trace, by form and number of leaves: the time of `wd.multipliers`, which `update` calls.

A mask in Optax's form (tree or function) must not cost more than a few times "weights", at any size.

    python benchmarks/masks.py                      # takes ~20 seconds on a laptop CPU
    python benchmarks/masks.py --leaves=300,1200
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

import wd_optax as wd

_LEAVES = flags.DEFINE_list("leaves", ["1500", "6000"], "Sizes of the trees.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each; the shortest is reported.", lower_bound=1)


def tree(leaves: int) -> Any:
    """Blocks of a kernel, a bias and a norm's scale, three levels deep."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    block = lambda: {"attn": {"kernel": shape(4, 4), "bias": shape(4)}, "norm": {"scale": shape(4)}}
    return {f"layer_{i}": block() for i in range(leaves // 3)}


def by_rank(params: Any) -> Any:
    """A rank-based mask, as many Optax users write it."""
    return jax.tree.map(lambda leaf: len(leaf.shape) > 1, params)


def forms(params: Any) -> dict[str, Any]:
    """One mask of each form, all equivalent but for None."""
    return {"weights": "weights", "None": None, "rules": ["kernel"], "tree": by_rank(params), "function": by_rank}


def measure(leaves: int, rounds: int) -> dict[str, float]:
    """Seconds per call of `wd.multipliers`, by form."""
    params = tree(leaves)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, mask in forms(params).items():
            began = time.process_time()
            wd.multipliers(mask, params)
            seconds.setdefault(name, []).append(time.process_time() - began)
    return {name: min(times) for name, times in seconds.items()}


def report(found: dict[int, dict[str, float]]) -> str:
    """Formats milliseconds, and the ratio to "weights" in brackets."""
    cell = lambda times, name: f"{1e3 * times[name]:.0f} ({times[name] / times['weights']:.1f})"
    names = list(next(iter(found.values())))
    lines = ["leaves  " + "  ".join(f"{name:>12}" for name in names)]
    lines += [f"{leaves:>6}  " + "  ".join(f"{cell(t, name):>12}" for name in names) for leaves, t in found.items()]
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Measures and prints."""
    print(report({int(leaves): measure(int(leaves), _ROUNDS.value) for leaves in _LEAVES.value}))


if __name__ == "__main__":
    app.run(main)
