"""LoRA: `rules.low_rank` is the gradient of ½‖s·AB‖², and `shrink` at 1 − √(1 − c) makes AB shrink by exactly c."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same_bits
from jax.sharding import NamedSharding, PartitionSpec

import wd_optax as wd

PAIRS = [("(.*)/lora_a", r"\1/lora_b", 2.0)]
RATE = 0.01


def params(dtype=jnp.float32):
    key = iter(jax.random.split(jax.random.key(0), 8))
    normal = lambda *shape: jax.random.normal(next(key), shape, jnp.float32).astype(dtype)
    return {
        "blocks": {"lora_a": normal(3, 6, 2), "lora_b": normal(3, 2, 4)},
        "head": {"lora_a": normal(8, 2), "lora_b": normal(2, 5), "kernel": normal(8, 5)},
        "frozen": None,
    }


def decay(rule, p, rate=RATE):
    """k·r, from one step without a gradient."""
    tx = wd.shrink(rate, mask=None, rule=rule)
    return jax.tree.map(jnp.negative, tx.update(optax.tree.zeros_like(p), tx.init(p), p)[0])


def gradients(a, b, scale):
    """Of ½‖s·AB‖² with the product formed, in float64."""
    a, b = np.complex128(a), np.complex128(b)
    adjoint = lambda x: np.conj(np.swapaxes(x, -1, -2))
    product = a @ b
    return scale**2 * product @ adjoint(b), scale**2 * adjoint(a) @ product


@pytest.mark.parametrize("dtype", ["float64", pytest.param("complex128", marks=pytest.mark.exhaustive)])
def test_the_oracle(x64, dtype):
    p = optax.tree.cast(params(), jnp.float64)
    if dtype == "complex128":
        p = jax.tree.map(lambda x: jax.lax.complex(x, x[..., ::-1]), p)
    got = decay(wd.rules.low_rank(PAIRS), p)
    for layer in ("blocks", "head"):
        want = gradients(p[layer]["lora_a"], p[layer]["lora_b"], 2.0)
        for name, r in zip(("lora_a", "lora_b"), want, strict=True):
            np.testing.assert_allclose(got[layer][name], RATE * r, rtol=1e-10, atol=1e-12)  # float64 sums of 8 terms
    np.testing.assert_allclose(got["head"]["kernel"], RATE * p["head"]["kernel"], rtol=1e-10)


def test_it_is_the_gradient_that_jax_takes():
    p = params()["head"]
    penalty = lambda p: 2.0**2 * jnp.sum(jnp.square(p["lora_a"] @ p["lora_b"])) / 2
    got = decay(wd.rules.low_rank([("lora_a", "lora_b", 2.0)]), p)
    want = jax.grad(penalty)(p) | {"kernel": p["kernel"]}
    # two orders of float32 sums of 8 terms, up to 1
    chex.assert_trees_all_close(got, optax.tree.scale(RATE, want), rtol=1e-5, atol=1e-6)


@pytest.mark.quick_compile(False)
def test_the_product_is_never_formed():
    """m = n = 512, r = 4: no array of m·n, and operations that grow with (m + n)·r²."""
    p = {"lora_a": jnp.ones((512, 4)), "lora_b": jnp.ones((4, 512))}
    tx = wd.shrink(RATE, mask=None, rule=wd.rules.low_rank([("lora_a", "lora_b", 1.0)]))
    compiled = jax.jit(tx.update).lower(p, tx.init(p), p).compile()
    assert "[512,512]" not in compiled.as_text()
    assert compiled.cost_analysis()["flops"] < 2 * 2 * 2 * 1024 * 4**2  # two products for each factor, and the step


def test_exact_paths_stacks_and_separate_layers_agree():
    p = params()
    exact = [("blocks/lora_a", "blocks/lora_b", 2.0), ("head/lora_a", "head/lora_b", 2.0)]
    got = decay(wd.rules.low_rank(PAIRS), p)
    assert_same_bits(got, decay(wd.rules.low_rank(exact), p))
    assert_same_bits(got, decay(wd.rules.low_rank([(re.compile(a), b, s) for a, b, s in PAIRS]), p))
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i], p["blocks"])
        alone = decay(wd.rules.low_rank([("lora_a", "lora_b", 2.0)]), one)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], got["blocks"]), alone, rtol=1e-5, atol=1e-7)


def test_a_factor_of_two_pairs_gets_both_gradients():
    key = jax.random.split(jax.random.key(3), 3)
    p = {
        "a": jax.random.normal(key[0], (4, 2)),
        "q": jax.random.normal(key[1], (2, 3)),
        "v": jax.random.normal(key[2], (2, 5)),
    }
    both = decay(wd.rules.low_rank([("a", "q", 1.0), ("a", "v", 3.0)]), p)["a"]
    want = gradients(p["a"], p["q"], 1.0)[0] + gradients(p["a"], p["v"], 3.0)[0]
    np.testing.assert_allclose(both, RATE * want.real, rtol=1e-5, atol=1e-6)  # float32
    once = decay(wd.rules.low_rank([("a", "q", 1.0), ("a", "q", 3.0), ("a", "v", 3.0)]), p)
    chex.assert_trees_all_close(once["a"], both)  # the first of two entries for one pair counts


def test_peft_s_order():
    """There the weight is lora_B·lora_A."""
    p = {
        "q": {"lora_A": {"default": {"weight": jnp.ones((2, 6))}}, "lora_B": {"default": {"weight": jnp.ones((5, 2))}}}
    }
    got = decay(wd.rules.low_rank([("(.*)/lora_B/(.*)", r"\1/lora_A/\2", 0.5)]), p)
    want = gradients(np.ones((5, 2)), np.ones((2, 6)), 0.5)
    np.testing.assert_allclose(got["q"]["lora_B"]["default"]["weight"], RATE * want[0].real, rtol=1e-6)
    np.testing.assert_allclose(got["q"]["lora_A"]["default"]["weight"], RATE * want[1].real, rtol=1e-6)


def test_shrink_of_both_factors_shrinks_the_product_by_exactly_c():
    c, p = 0.19, params()
    tx = wd.shrink(1 - (1 - c) ** 0.5, mask=[("lora", 1.0), (".*", 0.0)])
    updates, _ = tx.update(optax.tree.zeros_like(p), tx.init(p), p)
    q = optax.apply_updates(p, updates)
    for layer in ("blocks", "head"):
        before, after = (np.float64(x[layer]["lora_a"]) @ np.float64(x[layer]["lora_b"]) for x in (p, q))
        np.testing.assert_allclose(after, (1 - c) * before, rtol=1e-5, atol=1e-6)  # roundings of float32 factors
    plain = wd.shrink(c, mask=[("lora", 1.0), (".*", 0.0)])
    q = optax.apply_updates(p, plain.update(optax.tree.zeros_like(p), plain.init(p), p)[0])
    after = np.float64(q["head"]["lora_a"]) @ np.float64(q["head"]["lora_b"])
    before = np.float64(p["head"]["lora_a"]) @ np.float64(p["head"]["lora_b"])
    np.testing.assert_allclose(after, (1 - c) ** 2 * before, rtol=1e-5, atol=1e-6)


def test_it_minimises_the_ridge_of_the_product():
    """½‖M − AB‖² + λ/2·‖AB‖² has the minimum AB = M/(1 + λ) for M of rank r; plain decay soft-thresholds by λ."""
    lam = 0.5
    u, v = (jnp.linalg.qr(jax.random.normal(jax.random.key(i), (5, 2)))[0] for i in (0, 1))
    target = u @ jnp.diag(jnp.array([3.0, 1.0])) @ v.T
    loss = lambda p: jnp.sum(jnp.square(target - p["a"] @ p["b"])) / 2
    start = {"a": u @ jnp.diag(jnp.array([1.5, 1.0])), "b": (v @ jnp.diag(jnp.array([1.5, 1.0]))).T}
    ends = []
    for rule in (wd.rules.low_rank([("a", "b", 1.0)]), None):
        tx = wd.sgdw(0.1, weight_decay=lam, mask=None, rule=rule)

        def step(carry, _, tx=tx):
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p), state, p)
            return (optax.apply_updates(p, updates), state), None

        (end, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=300)
        ends.append(np.linalg.svd(np.asarray(end["a"] @ end["b"]))[1][:2])
    np.testing.assert_allclose(ends[0], [2, 2 / 3], rtol=1e-5)  # converged to float32
    np.testing.assert_allclose(ends[1], [2.5, 0.5], rtol=1e-5)


def test_jit_scan_and_vmap_over_the_scale():
    p = params()
    one = lambda scale: decay(wd.rules.low_rank([("(.*)/lora_a", r"\1/lora_b", scale)]), p)
    scales = jnp.array([0.5, 2.0], jnp.float32)
    together = jax.jit(jax.vmap(one))(scales)
    for i, scale in enumerate(scales):
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), one(scale), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, "x")], ids=str)
def test_one_device_and_eight_agree(spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    p = {
        "lora_a": jax.random.normal(jax.random.key(0), (16, 8)),
        "lora_b": jax.random.normal(jax.random.key(1), (8, 24)),
    }
    rule = wd.rules.low_rank([("lora_a", "lora_b", 0.5)])
    sharded = jax.jit(lambda p: decay(rule, p))(jax.device_put(p, NamedSharding(mesh, spec)))
    chex.assert_trees_all_close(sharded, decay(rule, p), rtol=1e-5, atol=1e-6)  # another order of float32 sums


def test_bfloat16_factors_decay_in_float32():
    p = params(jnp.bfloat16)
    tx = wd.shrink(RATE, mask=None, rule=wd.rules.low_rank(PAIRS))
    zeros = optax.tree.zeros_like(p, dtype=jnp.float32)
    updates, _ = tx.update(zeros, tx.init(p), p)
    want = gradients(*(np.float32(p["head"][x]) for x in ("lora_a", "lora_b")), 2.0)
    np.testing.assert_allclose(-updates["head"]["lora_a"], RATE * want[0].real, rtol=1e-5, atol=1e-6)


def test_it_composes_with_a_gate_a_mask_and_a_partition():
    p = params()
    grads = jax.tree.map(jnp.ones_like, p)
    tx = wd.sgdw(0.1, weight_decay=0.1, mask=None, rule=optax.chain(wd.rules.low_rank(PAIRS), wd.rules.cautious()))
    updates, state = tx.update(grads, tx.init(p), p)
    assert jax.tree.leaves(state.rule) == []
    r = gradients(p["head"]["lora_a"], p["head"]["lora_b"], 2.0)[0].real
    np.testing.assert_allclose(updates["head"]["lora_a"], -0.1 - 0.01 * np.where(r > 0, r, 0), rtol=1e-5, atol=1e-6)
    rule = optax.masked(wd.rules.low_rank(PAIRS), {"blocks": True, "head": False, "frozen": None})
    got, alone = decay(rule, p), decay(wd.rules.low_rank(PAIRS), p)
    chex.assert_trees_all_close(got["blocks"], alone["blocks"])
    chex.assert_trees_all_close(got["head"], decay(None, p)["head"])
    assert decay(wd.rules.low_rank(PAIRS), p)["frozen"] is None


BAD = {
    "no list": ("lora_a", TypeError, r"expected \[\(path of A, path of B, scale\)"),
    "empty": ([], TypeError, "expected"),
    "one pair": (("a", "b", 1.0), TypeError, r"is one pair: write \[\('a', 'b', 1.0\)\]"),
    "no scale": ([("a", "b")], TypeError, r"\('a', 'b'\) is no pair"),
    "a scale": ([("a", "b", -1.0)], ValueError, "scale=-1.0 must be finite"),
    "a regex": ([("(a", "b", 1.0)], ValueError, "is not a regular expression"),
    "a path": (
        [("head/lora_A", "head/lora_b", 1.0)],
        ValueError,
        r"low_rank: 'head/lora_A' is the whole path of no parameter; the nearest are\s[^\n]*\s+head/lora_a",
    ),
    "a partner": (
        [("(.*)/lora_a", r"\1/lora_c", 1.0)],
        ValueError,
        r"the partner of 'blocks/lora_a', 'blocks/lora_c', is no parameter; the nearest are",
    ),
    "a group": ([("(.*)/lora_a", r"\2/lora_b", 1.0)], ValueError, r"doesn't fit the groups of '\(\.\*\)/lora_a'"),
    "the other order": (
        [("(.*)/lora_b", r"\1/lora_a", 1.0)],
        ValueError,
        r"'blocks/lora_b' and 'blocks/lora_a' don't multiply: expected .* got \(3, 2, 4\) and \(3, 6, 2\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_pairs(bad):
    pairs, error, text = BAD[bad]
    with pytest.raises(error, match=text):
        wd.shrink(RATE, mask=None, rule=wd.rules.low_rank(pairs)).init(params())


def test_factors_with_different_masks_and_another_rule_first():
    p, rule = params(), wd.rules.low_rank(PAIRS)
    tx = wd.shrink(RATE, mask=[("head/lora_b", 0.0), (".*", 1.0)], rule=rule)
    with pytest.raises(
        ValueError, match="'head/lora_a' decays and 'head/lora_b', the other factor, doesn't: give both"
    ):
        tx.init(p)
    with pytest.raises(ValueError, match=r"low_rank\(\.\.\.\) comes after another rule.*it goes first"):
        wd.shrink(RATE, mask=None, rule=optax.chain(wd.rules.toward("init"), rule)).init(p)
