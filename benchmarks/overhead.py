"""What the monitor and each rounding cost: jitted, donated steps with and without them, side by side in one run.

Steps of all variants are interleaved, so that a slow spell of the machine hits them alike; medians and their ratio
count, absolute times don't. Bytes are the compiled program's own count, and the bandwidth is what an in-place
`p ← 0.999·p` reaches in the same run.

    python benchmarks/overhead.py                    # one leaf of 8 Mi parameters
    python benchmarks/overhead.py --mebi=64 --blocks=5
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import wd_optax as wd

_MEBI = flags.DEFINE_integer("mebi", 8, "Parameters, in 2²⁰.", lower_bound=1)
_BLOCKS = flags.DEFINE_integer("blocks", 9, "Timed blocks of five steps, of each variant.", lower_bound=3)

BLOCK = 5  # steps that are timed together


class Variant(NamedTuple):
    """An optimizer for parameters of a type, and the one that it is held against."""

    baseline: str
    dtype: Any
    make: Callable[[], Any]


def _rounded(rounding: str) -> Variant:
    momentum = lambda: wd.in_float32(wd.sgdw(1e-3, weight_decay=0.1, momentum=0.9))
    make = lambda: optax.chain(momentum(), wd.round_updates(rounding))
    return Variant("sgdw bf16, nearest", jnp.bfloat16, make)


PLAIN: dict[str, Callable[[], Any]] = {
    "adamw": lambda: wd.adamw(1e-3, weight_decay=0.1),
    "sgdw, momentum": lambda: wd.sgdw(1e-3, weight_decay=0.1, momentum=0.9),
    "adam_l2": lambda: wd.adam_l2(1e-3, weight_decay=0.1),
    "optax.adamw": lambda: optax.adamw(1e-3, weight_decay=0.1),
}
VARIANTS = {name: Variant(name, jnp.float32, make) for name, make in PLAIN.items()}
VARIANTS |= {
    f"{name} + monitor": Variant(name, jnp.float32, lambda make=make: wd.monitor(make()))  # type: ignore[misc]
    for name, make in PLAIN.items()
}
VARIANTS |= {f"sgdw bf16, {r}": _rounded(r) for r in ("nearest", "stochastic", "compensated")}


def compile_step(tx: Any, params: Any) -> Any:
    """The jitted step, params and state donated, compiled for these shapes."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile()


def timed(step: Callable[[Any], Any], carry: Any) -> tuple[float, Any]:
    """Seconds per step over one block, and what the last step returned."""
    began = time.perf_counter()
    for _ in range(BLOCK):
        carry = step(carry)
    jax.block_until_ready(carry)
    return (time.perf_counter() - began) / BLOCK, carry


def measure(mebi: int, blocks: int) -> dict[str, Any]:
    """Per variant the seconds per step of every block, and the bytes that a step moves; "stream" is the bandwidth."""
    steps: dict[str, Any] = {}
    carries: dict[str, Any] = {}
    moved = {"stream": 8.0 * mebi * 2**20}
    for name, variant in VARIANTS.items():
        params = {"kernel": jnp.ones((mebi * 1024, 1024), variant.dtype)}
        grads = {"kernel": jnp.full_like(params["kernel"], 1e-3)}
        tx = variant.make()
        compiled = compile_step(tx, params)
        steps[name] = lambda carry, compiled=compiled, grads=grads: compiled(*carry, grads)
        carries[name] = (params, tx.init(params))
        moved[name] = compiled.cost_analysis()["bytes accessed"]
    steps["stream"] = jax.jit(lambda p: p * 0.999, donate_argnums=0)
    carries["stream"] = jnp.ones((mebi * 1024, 1024), jnp.float32)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(blocks + 1):  # one to warm up
        for name, step in steps.items():
            spent, carries[name] = timed(step, carries[name])
            seconds[name].append(spent)
    return {name: {"seconds": s[1:], "bytes": moved[name]} for name, s in seconds.items()}


def report(results: dict[str, Any], mebi: int) -> str:
    """A line per variant: median, ratio to its baseline, bytes, share of the stream's bandwidth."""
    median = {name: statistics.median(r["seconds"]) for name, r in results.items()}
    peak = results["stream"]["bytes"] / median["stream"]
    lines = [f"in-place stream: {peak / 1e9:.1f} GB/s", f"{'':26}{'ms':>8}{'ratio':>8}{'B/param':>9}{'of stream':>11}"]
    for name, r in results.items():
        if name != "stream":
            ratio = median[name] / median[VARIANTS[name].baseline]
            share = r["bytes"] / median[name] / peak
            lines.append(
                f"{name:26}{1e3 * median[name]:8.1f}{ratio:8.2f}{r['bytes'] / (mebi * 2**20):9.1f}{share:11.0%}"
            )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {_MEBI.value} Mi parameters")
    print(report(measure(_MEBI.value, _BLOCKS.value), _MEBI.value))


if __name__ == "__main__":
    app.run(main)
