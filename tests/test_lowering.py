"""Every transform lowers for CPU, CUDA and TPU at once, on a machine that has none of the latter."""

import jax
import jax.numpy as jnp
import optax
import pytest
from catalogue import NAMES, grads, optimizer, params, step, takes

import wd_optax as wd

pytestmark = pytest.mark.optax_promotes  # Optax's Adam
PLATFORMS = ("cpu", "cuda", "tpu")
ROUNDINGS = ("nearest", "stochastic", "compensated", "compensated_all")
WRAPPED = {
    "monitor": lambda: wd.monitor_decay(wd.adamw(0.1, weight_decay=0.1)),
    "in_float32": lambda: wd.precision.in_float32(optax.adamw(0.1)),
    "with_master_weights": lambda: wd.precision.with_master_weights(optax.adamw(0.1)),
    "low_precision_state": lambda: wd.precision.low_precision_state(optax.adamw(0.1), mu=jnp.bfloat16, nu=jnp.bfloat16),
    "scale_by_adam": lambda: wd.scale_by_adam(),
}
CASES = {name: lambda name=name: optimizer(name) for name in NAMES} | WRAPPED
CASES |= {
    f"{name}, {rounding}": lambda name=name, rounding=rounding: optimizer(name, rounding=rounding)
    for name in NAMES
    if takes(name, "rounding")
    for rounding in ROUNDINGS
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_lowers_for_every_platform(case, dtype):
    p, tx = params(dtype), CASES[case]()
    state = jax.eval_shape(tx.init, p)
    exported = jax.export.export(jax.jit(lambda g, s, p: step(tx, g, s, p)), platforms=PLATFORMS)(grads(p), state, p)
    assert exported.platforms == PLATFORMS
    assert len(exported.out_avals) == len(jax.tree.leaves((p, state)))
    assert "custom_call" not in exported.mlir_module()  # nothing that one platform alone would know
