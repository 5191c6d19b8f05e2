"""Tests that can hold only where JAX's default devices are eight CPU ones, and why; `make gpu-suite` leaves them out.

A key is a file, or file::function. `conftest.py` gives them the mark `cpu`.
"""

import pytest

BYTES = "counts bytes, loops or copies in the program of XLA's CPU compiler"
DEVICES = "needs several devices of the default platform"
MEMORY = "is about the memory or the cache of a CPU"
NO_ARRAY = "is about types, and computes nothing"

REASONS = {
    "test_active_rows.py::test_bytes": BYTES,
    "test_active_rows.py::test_one_device_and_eight_agree": DEVICES,
    "test_benchmarks.py": "starts its processes on a CPU",
    "test_bytes.py": BYTES,
    "test_gpu_benchmark.py": "is about machines without a GPU",
    "test_laws.py::test_sharded_over_eight_devices": DEVICES,
    "test_low_rank.py::test_one_device_and_eight_agree": DEVICES,
    "test_low_rank.py::test_the_product_is_never_formed": BYTES,
    "test_monitor.py::test_sharded_over_eight_devices": DEVICES,
    "test_precision_composes.py::test_bytes_per_parameter": BYTES,
    "test_precision_sharded.py": DEVICES,
    "test_projection.py::test_a_projection_reads_the_leaf_twice": BYTES,
    "test_projection.py::test_eight_devices_give_what_one_gives": DEVICES,
    "test_rules.py::test_an_anchor_is_placed_like_its_parameter": DEVICES,
    "test_rules_norms.py::test_bytes_per_parameter": BYTES,
    "test_rules_norms.py::test_constrained_norms_of_p_plus_step_write_it_once": BYTES,
    "test_rules_norms.py::test_one_device_is_eight": DEVICES,
    "test_rules_review.py::test_shardings_mapped_by_shape_fit_the_state": DEVICES,
    "test_search.py::test_each_trial_equals_train_alone_bit_for_bit": DEVICES,
    "test_search.py::test_halving_trains_the_survivors_on_from_their_states": DEVICES,
    "test_sweep.py::test_a_cpu_keeps_to_its_cache": MEMORY,
    "test_sweep.py::test_devices_change_no_bit_where_each_trains_the_same_batch": DEVICES,
    "test_sweep.py::test_elementwise_runs_equal_the_loops_bit_for_bit": DEVICES,
    "test_sweep_memory.py": MEMORY,
    "test_sweep_store.py": DEVICES,
    "test_tpu_run.py": DEVICES,
    "test_types.py": NO_ARRAY,
}


def mark(item: pytest.Item) -> None:
    """Gives a test of REASONS the mark `cpu`, with its reason."""
    file, function = item.path.name, getattr(item, "originalname", item.name)
    for key in (file, f"{file}::{function}"):
        if key in REASONS:
            item.add_marker(pytest.mark.cpu(REASONS[key]))
