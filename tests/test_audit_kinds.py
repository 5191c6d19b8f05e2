"""Large trees: one leaf of each kind is audited, on stand-ins that the optimizer treats as the real shapes."""

import resource
import time

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import shape

import wd_optax as wd
from wd_optax.auditing.audit import audit

LR, WD = 0.01, 0.1
LAYERS = {f"l{i}": {"bias": shape(512), "kernel": shape(512, 512)} for i in range(40)}
pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]
mask_of = lambda test: lambda p: jax.tree_util.tree_map_with_path(lambda path, x: test(path[0].key, x), p)


@pytest.mark.parametrize(
    ("test", "decays", "large"),
    [  # the larger the stand-ins that a mask needs, the longer they take
        (lambda key, x: x.size > 10_000, True, shape(40, 2000)),
        (lambda key, x: x.shape[0] >= 100, True, shape(300, 400)),
        (lambda key, x: x.size <= 10_000, False, shape(300, 400)),
    ],
    ids=["size", "rows", "small size"],
)
def test_masks_see_the_real_shapes(test, decays, large):
    tree = {"large": large, "small": shape(10, 20)}
    report = audit(optax.adamw(LR, weight_decay=WD, mask=mask_of(test)), tree)
    expected = ["decays", "no decay"] if decays else ["no decay", "decays"]
    assert [row.verdict for row in report.rows] == expected


def test_what_no_stand_in_can_show_is_unknown():
    tree = {"large": shape(100_000, 20_000), "small": shape(10, 20)}
    report = audit(optax.adamw(LR, weight_decay=WD, mask=mask_of(lambda key, x: x.size > 10**9)), tree)
    assert [row.verdict for row in report.rows] == ["unknown", "no decay"]
    assert {f.severity for f in report.findings} == {"information"}
    assert "not carried over" in {f.rule for f in report.findings}


def test_a_rate_that_depends_on_the_width_is_that_of_the_real_width():
    decay = lambda u, s, p: (jax.tree.map(lambda u, x: u - x / x.shape[0], u, p), s)
    optimizer = optax.chain(optax.sgd(LR), optax.GradientTransformation(lambda p: optax.EmptyState(), decay))
    row = audit(optimizer, {"kernel": shape(1000, 64)}).rows[0]
    assert row.removed_per_step == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "mask",
    [
        mask_of(lambda key, x: key != "l7" and len(x.shape) > 1),
        [("l7", 0.0), ("kernel", 1.0)],
        jax.tree_util.tree_map_with_path(lambda path, x: path[0].key != "l7" and len(x.shape) > 1, LAYERS),
    ],
    ids=["function", "rules", "tree"],
)
def test_a_layer_that_is_masked_by_name_is_found_in_the_sample_or_in_the_whole(mask):
    report = audit(wd.adamw(LR, weight_decay=WD, mask=mask), LAYERS)
    report.check(decays=["l8/kernel"], spares=["l7/kernel", "bias"])
    assert sum(row.verdict == "decays" for row in report.rows) == 39


def test_kinds_are_few_and_the_report_says_so():
    report = audit(wd.adamw(LR, weight_decay=WD), LAYERS)
    assert "2 kinds of 80 leaves" in report.how
    assert len(report.rows) == 80


def llama(layers):
    """70 billion parameters at 80 layers, unrolled."""
    leaf = lambda *size: shape(*size, dtype=jnp.bfloat16)
    kernel = lambda *size: {"kernel": leaf(*size)}
    layer = lambda: {
        "attn": {"q": kernel(8192, 8192), "k": kernel(8192, 1024), "v": kernel(8192, 1024), "o": kernel(8192, 8192)},
        "mlp": {"gate": kernel(8192, 28672), "up": kernel(8192, 28672), "down": kernel(28672, 8192)},
        "norm1": {"scale": leaf(8192)},
        "norm2": {"scale": leaf(8192)},
    }
    ends = {"embed": {"embedding": leaf(128256, 8192)}, "norm": {"scale": leaf(8192)}, "head": kernel(8192, 128256)}
    return ends | {"layers": [layer() for _ in range(layers)]}


@pytest.mark.parametrize("layers", [20, pytest.param(80, marks=pytest.mark.exhaustive)])
def test_seventy_billion_parameters_with_stochastic_rounding_and_a_warm_up(layers):
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-4, 2000, 500_000)
    steps = []
    begin = time.process_time()
    report = audit(wd.adamw(schedule, weight_decay=WD, rounding="stochastic"), llama(layers))
    steps.append(time.process_time() - begin)
    report.check(decays=["kernel", "embedding"], spares=["scale"])
    assert len(report.rows) == 9 * layers + 3
    assert {row.verdict for row in report.rows} == {"decays", "no decay"}
    assert steps[0] < 60  # CPU seconds; 80 layers take 6 to 13 on two shared cores
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20  # KiB, of this whole process


@pytest.mark.exhaustive
def test_twenty_thousand_leaves():
    tree = {f"layer_{i}": {"kernel": shape(64, 64), "bias": shape(64)} for i in range(10_000)}
    begin = time.process_time()
    report = audit(wd.adamw(LR, weight_decay=WD), tree)
    assert time.process_time() - begin < 60
    report.check(decays=["kernel"], spares=["bias"])
    assert len(report.rows) == 20_000
