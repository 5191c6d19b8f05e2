"""Llama-3 70B's step on 512 chips, as the TPU's own compiler makes it: `make test-tpu`, without a TPU."""

import pathlib
import sys
from typing import Any

import jax.numpy as jnp
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import scale_tpu
import trees

import wd_optax as wd

pytestmark = [pytest.mark.tpu, pytest.mark.optax_promotes]

BF16 = jnp.bfloat16
HALF: dict[str, Any] = {"rounding": "stochastic", "mu_dtype": BF16, "nu_dtype": BF16}
PODS = ("v5p:8x8x8", "tpu7x:8x8x8")


def compiled(topology: str, tensor: int, tree: trees.Tree, dtype: Any = BF16, **options: Any) -> scale_tpu.Program:
    tx = wd.adamw(1.5e-4, weight_decay=0.1, **options)
    return scale_tpu.compile_step(tx, tree, dtype, scale_tpu.mesh_of(topology, tensor), stacked=True)


@pytest.mark.parametrize("topology", PODS)
def test_seventy_billion_parameters_move_14_bytes_each_on_512_chips(topology: str) -> None:
    tree = trees.llama3(80, 8192, 28_672, stacked=True)
    found = compiled(topology, 8, tree, **HALF)
    assert found.chips == 512
    assert found.moved == pytest.approx(14.0, abs=0.01)  # and numbers of each leaf
    assert found.held == pytest.approx(6.0, abs=0.001)  # and the step's count
    assert found.collectives == 0
    assert found.not_aliased < 0.001
    assert found.temporary < 0.05  # some MB of scratch per chip: what is moved shows that no leaf is copied


@pytest.mark.parametrize("topology", ["v5p:2x2x1", "tpu7x:2x2x1"])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("shape", [(8, 4096, 1024), (2**15, 1024)])
def test_no_sharding_and_no_stack_of_layers_splits_the_step(topology: str, tensor: int, shape: tuple[int, ...]) -> None:
    """Stochastic bits are counted along every sharded axis; more operations than now make two loops: 18 bytes."""
    found = compiled(topology, tensor, {"layers/up/kernel" if len(shape) == 3 else "up/kernel": shape}, **HALF)
    assert found.moved == pytest.approx(14.0, abs=0.1)  # and an index per row
    assert found.collectives == 0


def test_a_norm_of_each_layer_is_one_sum_over_chips() -> None:
    tree = trees.llama3(4, 1024, 2048, stacked=True)
    rule = {"rule": wd.rules.toward_norm("init"), "slices": [("layers/", 1)]}
    assert compiled("v5p:4x4x4", 8, tree, jnp.float32).collectives == 0
    assert compiled("v5p:4x4x4", 8, tree, jnp.float32, **rule).collectives >= 1
