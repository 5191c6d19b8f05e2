"""`benchmarks/scale.py`: published sizes, memory that can't hold a model, one leaf per kind, bytes on a TPU."""

import functools
import itertools
import multiprocessing
import re
from typing import Any

import example_loading
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scale_tpu  # example_loading puts the folder of benchmarks on the path
import trees
from helpers import nested, shape

import wd_optax as wd
from wd_optax.auditing import kinds
from wd_optax.auditing.audit import audit
from wd_optax.masking import roles

pytestmark = [pytest.mark.slow, pytest.mark.quick_compile, pytest.mark.optax_promotes]
flagged = functools.partial(example_loading.flagged, "scale", folder=example_loading.BENCHMARKS)
COUNTED = [
    (trees.llama3(32, 4096, 14_336), 8_030_261_248, 291),  # as Hugging Face counts them
    (trees.llama3(80, 8192, 28_672), 70_553_706_496, 723),  # likewise
    (trees.llama3(80, 8192, 28_672, stacked=True), 70_553_706_496, 12),
    (trees.deepseek_v3(), 671_026_419_200, 32),  # without the second head
    (trees.blocks(20_000), 986_880_000, 20_000),
]


@pytest.mark.parametrize(("tree", "parameters", "leaves"), COUNTED)
def test_trees_have_the_published_sizes(tree: trees.Tree, parameters: int, leaves: int) -> None:
    assert (trees.size(tree), len(tree)) == (parameters, leaves)


def test_experts_decay_and_their_router_s_bias_and_norms_do_not() -> None:
    rows = {row.path: row for row in wd.explain("weights", nested({k: shape(*v) for k, v in MOE.items()})).rows}
    spared = {path for path, row in rows.items() if row.multiplier == 0}
    assert spared == {path for path in rows if re.search("scale$|bias$", path)}
    assert rows["moe_layers/experts/up/kernel"].role == "weight"
    assert rows["moe_layers/router/bias"].role == "bias"
    slices = wd.explain_slices(
        [("moe_layers/experts/", 2), ("_layers/", 1)], nested({k: shape(*v) for k, v in MOE.items()})
    )
    weights = {row.path: (row.weights, row.each) for row in slices.rows}
    assert weights["moe_layers/experts/up/kernel"] == (58 * 256, (7168, 2048))
    assert weights["dense_layers/mlp/up/kernel"] == (3, (7168, 18_432))


MOE = trees.deepseek_v3()
LLAMA = nested({path: shape(*sizes, dtype=jnp.bfloat16) for path, sizes in trees.llama3(8, 64, 128).items()})
WEIGHTS = ("kernel|embedding", 1.0)


def adamw(**options: Any) -> Any:
    return wd.adamw(1e-3, weight_decay=0.1, rounding="stochastic", **options)


def multipliers(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: 0.0 if len(x.shape) == 1 else 0.5 if path[1].key == "3" else 1.0, params
    )


def frozen(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[1].key == "3", params)


RULES = [("layers/3/.*kernel", 0.5), WEIGHTS]
MAKE = {
    "rules": (lambda: adamw(mask=RULES), 3),
    "tree": (lambda: adamw(mask=multipliers(LLAMA)), 3),
    "function": (lambda: adamw(mask=multipliers), 3),
    "slices": (lambda: adamw(rule=wd.rules.toward_norm("init"), slices=[("layers/3/.*kernel", (1,))]), 8),
    "after clipping": (lambda: optax.chain(optax.clip_by_global_norm(1.0), adamw(mask=multipliers)), 3),
    "gradients": (lambda: optax.chain(optax.adam(1e-3), optax.masked(optax.set_to_zero(), frozen)), 4),
    "partition": (
        lambda: optax.partition({True: optax.sgd(0.1), False: optax.adamw(0.1)}, frozen(LLAMA)),
        4,  # of two ranks
    ),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_layer_that_is_treated_differently_is_a_kind_of_its_own(name: str) -> None:
    """By programs alone: a sample of leaves isn't looked at here."""
    make, most = MAKE[name]
    parameters = roles.parameters(LLAMA)
    kinds_of = kinds.group(make(), LLAMA, parameters).kind_of
    third = {k for k, p in zip(kinds_of, parameters, strict=True) if re.match("layers/3/.*kernel", p.path)}
    others = {k for k, p in zip(kinds_of, parameters, strict=True) if not p.path.startswith("layers/3/")}
    assert third.isdisjoint(others)
    assert len({*kinds_of}) <= most


def test_rules_and_trees_for_one_layer_are_audited_on_few_leaves() -> None:
    report = audit(wd.sgdw(1e-3, weight_decay=0.1, mask=RULES), LLAMA)
    assert "3 kinds of 75 leaves" in report.how
    for row in report.rows:
        expected = 0 if row.path.endswith("scale") else 5e-5 if row.path.startswith("layers/3/") else 1e-4
        assert row.removed_per_step == pytest.approx(expected, rel=1e-6), row.path


def test_rules_for_each_layer_make_as_many_kinds() -> None:
    rules = [*((f"layers/{i}/.*kernel", 1 - i / 16) for i in range(8)), WEIGHTS]
    found = kinds.group(adamw(mask=rules), LLAMA, roles.parameters(LLAMA))
    assert len(found.chosen) == 9  # and one of scales; what isn't in a layer decays as layer 0


def test_numbers_in_the_state_that_differ_by_leaf_make_kinds() -> None:
    """Values of a state aren't in the program."""
    tree = nested({path: shape(*sizes) for path, sizes in trees.llama3(6, 64, 128).items()})
    rates = jax.tree_util.tree_map_with_path(lambda path, _: jnp.float32(0.01 if "wq" in str(path) else 0.02), tree)
    decay = lambda u, s, p: (jax.tree.map(lambda u, m, p: u - m * p, u, s, p), s)
    report = audit(optax.chain(optax.sgd(0.1), optax.GradientTransformation(lambda p: rates, decay)), tree)
    for row in report.rows:
        assert row.removed_per_step == pytest.approx(0.01 if "wq" in row.path else 0.02, rel=1e-5), row.path


def allocate(sizes: list[int]) -> list[bool]:
    """Whether arrays of so many bytes can be made beside the audit's limit, by NumPy and by JAX."""
    with flagged() as scale:
        scale.limit_memory()
    made = []
    for size, make in itertools.product(sizes, (np.zeros, jnp.zeros)):
        try:
            made.append(bool(jax.block_until_ready(make(size, "uint8")).size))
        except (MemoryError, jax.errors.JaxRuntimeError):
            made.append(False)
    return made


def test_audits_run_where_no_array_of_a_model_s_size_can_be_made() -> None:
    with flagged() as scale:
        smallest = trees.size(scale.llama_8b())
        assert 2 * smallest > 7 * scale.HEADROOM
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(allocate, ([2**20, 2 * smallest],)) == [True, True, False, False]


def test_tables_have_a_line_per_case() -> None:
    with flagged() as scale:
        cost = scale.Cost(2.0, 1.0, 500.0, 8)
        pool = type("Pool", (), {"__enter__": lambda s: s, "__exit__": lambda *_: None})
        pool.apply = lambda s, f, args: {"explain": cost, "audit": cost, "wd_optax": 1.0, "optax": 2.0}  # no processes
        context = type("Context", (), {"Pool": staticmethod(lambda _: pool())})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scale.multiprocessing, "get_context", lambda _: context)
            lines = "\n".join(scale.step_table(3, 100, lambda name: name == "70b")).splitlines()
        assert lines[-1] == "| 70b | 1.00 | 2.00 |"
        found = scale._cost(lambda: wd.explain("weights", scale.shapes(scale.llama_70b(3), jnp.bfloat16)))
        assert found.decaying == 3 * 7 + 2
        assert scale.trace_seconds({"kernel": (4, 4)}, jnp.float32).keys() == {"wd_optax", "optax"}


def test_bytes_of_a_program_are_those_that_cross_hbm() -> None:
    assert scale_tpu.hbm_bytes(PROGRAM) == 1024 + 512 + 1024 + 512 + 1024  # a; b, first; end; first


PROGRAM = """
ENTRY %main (a: f32[256], b: bf16[256]) -> (f32[256], bf16[256]) {
  %a = f32[256]{0:T(256)} parameter(0)
  %b = bf16[256]{0:T(256)(2,1)} parameter(1)
  %start = (f32[256]{0:T(256)S(1)}, f32[256]{0:T(256)}, u32[]{:S(2)}) copy-start(%a)
  %done = f32[256]{0:T(256)S(1)} copy-done(%start)
  %both = (f32[256]{0:T(256)}, bf16[256]{0:T(256)(2,1)S(1)}) fusion(%done, %b), kind=kLoop, calls=%f
  %first = f32[256]{0:T(256)} get-tuple-element(%both), index=0
  %second = bf16[256]{0:T(256)(2,1)S(1)} get-tuple-element(%both), index=1
  %out = (bf16[256]{0:T(256)(2,1)}, bf16[256]{0:T(256)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%second)
  %end = bf16[256]{0:T(256)(2,1)} copy-done(%out)
  %twice = f32[256]{0:T(256)S(1)} fusion(%first), kind=kLoop, calls=%g
  ROOT %result = (f32[256]{0:T(256)}, bf16[256]{0:T(256)(2,1)}) tuple(%first, %end)
}"""
