"""Bytes and fusions as the TPU's own compiler makes them. `make test-tpu` runs this: it needs libtpu and no TPU."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import tpu_bytes

pytestmark = [pytest.mark.tpu, pytest.mark.optax_promotes]

# The compiler for this chip alone cuts a compensated step with moments in two, which reads p, g, r and moments again.
CUT = {
    ("tpu7x:2x2x1", "bf16 adamw, float32 moments, compensated"): 36,
    ("tpu7x:2x2x1", "bf16 adamw, bf16 moments, compensated"): 28,
}
every = pytest.mark.parametrize("topology", tpu_bytes.TOPOLOGIES)


@every
@pytest.mark.parametrize("name", tpu_bytes.CASES)
def test_a_step_moves_the_least_bytes_in_one_fusion(topology, name):
    found = tpu_bytes.compiled_for(topology, tpu_bytes.CASES[name])
    # and a few scalars
    assert found.bytes == pytest.approx(CUT.get((topology, name), tpu_bytes.CASES[name].least), abs=0.06)
    assert found.copies == 0
    cut = (topology, name) in CUT
    assert found.temporary < (4 if cut else 0) + 0.01  # p + u + r between the two
    if "monitor" not in name:
        assert found.fusions == 1 + cut


@every
@pytest.mark.parametrize("name", ["adamw", "bf16 adamw, bf16 moments, stochastic", "sgdw, momentum"])
def test_at_most_one_fusion_per_leaf(topology, name):
    found = tpu_bytes.compiled_for(topology, tpu_bytes.CASES[name], rows=2**13, leaves=3)
    assert 1 <= found.fusions <= 3  # the newer chips' compilers put two leaves into one
    assert found.copies == 0


@every
@pytest.mark.parametrize("name", ["adamw", "adamw, toward('init')", "bf16 adamw, bf16 moments, stochastic", "sgdw"])
def test_a_sharded_step_needs_no_other_chip(topology, name):
    found = tpu_bytes.compiled_for(topology, tpu_bytes.CASES[name], rows=2**18, sharded=True)
    assert found.collectives == 0
    assert (found.fusions, found.copies) == (1, 0)
    assert found.bytes == pytest.approx(tpu_bytes.CASES[name].least, abs=0.06)


@every
def test_a_sharded_monitor_needs_one_sum_over_chips(topology):
    found = tpu_bytes.compiled_for(topology, tpu_bytes.CASES["adamw + monitor"], rows=2**18, sharded=True)
    assert (found.collectives, found.copies) == (1, 0)
    assert found.bytes == pytest.approx(44, abs=0.06)
