"""How many kernels XLA makes of one step on an NVIDIA GPU, by its compiler alone.

It needs the extra cuda and no GPU: the compiler is told the properties of an H100. A small leaf costs a kernel's start
rather than its bytes, so that this is what counts for it.

    python benchmarks/gpu_programs.py --trees=leaf256,gpt2 --optimizers=adamw,adamw_bf16
"""

import os
import time
from typing import Any

import jax
import jax_steps
import optax
import trees
from absl import app, flags
from jax.experimental import topologies

_TREES = flags.DEFINE_list("trees", ["leaf256", "gpt2"], f"Of {', '.join(trees.TREES)}.")
_OPTIMIZERS = flags.DEFINE_list("optimizers", ["adamw", "adamw_bf16"], f"Of {', '.join(jax_steps.VARIANTS)}.")
_PLATFORM = flags.DEFINE_enum("platform", "cuda", ["cuda", "cpu"], "Whose compiler; cpu: for JAX's own device.")

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
}
platform_name: "CUDA" runtime_version { major: 13 } dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def device(platform: str) -> jax.Device:
    """A device to compile for."""
    jax.config.update("jax_platforms", "cpu")
    if platform == "cpu":
        return jax.devices()[0]
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"  # tuning needs a GPU
    try:
        return topologies.get_topology_desc("", "cuda", target_config=H100, topology="1x1x1").devices[0]
    except Exception as error:
        raise app.UsageError(f"JAX can't compile for CUDA here ({error}): pip install 'wd_optax[cuda]'") from error


def program(
    tx: optax.GradientTransformation, tree: str, dtype: str, target: jax.Device
) -> tuple[dict[str, int], float]:
    """How often each operation occurs in a step's program, see `jax_steps.digest`, and the seconds it compiled in."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    placed = jax.sharding.SingleDeviceSharding(target)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
    params = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in trees.TREES[tree]().items()}
    params, state = jax.tree.map(place, (params, jax.eval_shape(tx.init, params)))
    began = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    return jax_steps.digest(compiled.as_text() or ""), time.perf_counter() - began


def main(argv: list[str]) -> None:
    """Prints a line per tree and variant."""
    del argv
    target = device(_PLATFORM.value)
    for tree in _TREES.value:
        for optimizer in _OPTIMIZERS.value:
            dtype = "bfloat16" if optimizer.endswith("_bf16") else "float32"
            for name, make in jax_steps.VARIANTS[optimizer].items():
                counts, seconds = program(make(), tree, dtype, target)
                found = ", ".join(f"{n} {operation}" for operation, n in counts.items())
                leaves = len(trees.TREES[tree]())
                print(
                    f"{tree}, {leaves} leaves, {name} ({optimizer}): {found}; compiled in {seconds:.1f} s", flush=True
                )


if __name__ == "__main__":
    app.run(main)
