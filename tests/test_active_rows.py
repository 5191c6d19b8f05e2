"""Rows that a step doesn't use: they keep their updates bit for bit ("skip"), or catch up exactly ("lazy")."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import step
from flax import nnx
from helpers import assert_same_bits
from jax.sharding import NamedSharding, PartitionSpec

import wd_optax as wd
from wd_optax.rules import missed_decay
from wd_optax.rules.missed_decay import RowsState

ROWS, WIDTH, STEPS = 7, 3, 40
LAZY, SKIP = wd.rules.active_rows(policy="lazy"), wd.rules.active_rows()


def table(rows=ROWS, dtype=jnp.float32):
    return {"embed": jnp.array(np.random.default_rng(1).standard_normal((rows, WIDTH), np.float32), dtype)}


def used(steps=STEPS, rows=ROWS):
    """Which row each step uses: row 0 often, the last one never."""
    rare = np.random.default_rng(1).integers(0, rows - 1, steps, np.int32)
    return jnp.asarray(np.where(np.arange(steps) % 3 == 0, rare, 0))


def loss(p, row):
    """Its gradient depends on the row."""
    return jnp.sum(jnp.square(p["embed"][row] - 1)) / 2


def train(tx, p, rows, *, read=lambda p, state: p, gradients=None):
    """What is read at every step, in one loop; `read` gives what the loss sees."""

    gradients = gradients or jax.grad(loss)

    def one(carry, row):
        p, state = carry
        seen = read(p, state)
        updates, state = tx.update(gradients(seen, row), state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), read(p, state)

    (end, state), reads = jax.jit(lambda p: jax.lax.scan(one, (p, tx.init(p)), rows))(p)
    return reads, end, state


warmup = lambda peak: optax.warmup_cosine_decay_schedule(0.0, peak, 5, STEPS)
OPTIMIZERS = {
    "sgdw": lambda rule: wd.sgdw(0.1, weight_decay=0.5, rule=rule),
    "momentum": lambda rule: wd.sgdw(0.1, weight_decay=0.5, momentum=0.5, rule=rule),
    "adamw, schedule": lambda rule: wd.adamw(warmup(0.1), weight_decay=0.5, rule=rule),
    "multiplier": lambda rule: wd.sgdw(warmup(0.1), weight_decay=0.5, mask=[("embed", 0.3)], rule=rule),
    "with_decay": lambda rule: wd.with_decay(optax.sgd(0.1), learning_rate=0.1, weight_decay=0.5, rule=rule),
    "shrink": lambda rule: optax.chain(optax.sgd(0.1), wd.shrink(0.05, rule=rule)),
    "λ off, on, off": lambda rule: wd.sgdw(
        0.1, weight_decay=lambda t: jnp.where((t > 8) & (t < 25), 0.5, 0.0), rule=rule
    ),
}


# --- lazy: equal to dense decay at every read ------------------------------------------------------------------------


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lazy_is_dense_decay_at_every_read(name):
    """40 steps of a few roundings of 2⁻²⁴ of values up to 2."""
    p, rows = table(), used()
    lazy, stored, _ = train(OPTIMIZERS[name](LAZY), p, rows, read=wd.materialize)
    dense, end, _ = train(OPTIMIZERS[name](None), p, rows)
    np.testing.assert_allclose(lazy["embed"], dense["embed"], rtol=1e-6, atol=1e-6)
    assert_same_bits(stored["embed"][-1], p["embed"][-1])  # never used, never written
    assert float(jnp.abs(end["embed"][-1] - p["embed"][-1]).max()) > 0.1  # dense decay of it is no small matter


@pytest.mark.parametrize("skip", [False, True])
def test_the_oracle_in_float64(x64, skip):
    """Written out in NumPy: lazy reads dense decay's values; skip decays rows with a gradient."""
    p = optax.tree.cast(table(), jnp.float64)
    lr = lambda t: 0.1 / (1 + 0.1 * jnp.asarray(t, jnp.float64))
    rows = np.asarray(used())
    tx = wd.sgdw(lr, weight_decay=0.5, rule=SKIP if skip else LAZY)
    reads, _, _ = train(tx, p, jnp.asarray(rows), **({} if skip else {"read": wd.materialize}))
    want = np.array(p["embed"])
    for t, row in enumerate(rows):
        gradient = np.zeros_like(want)
        gradient[row] = want[row] - 1
        eta = 0.1 / (1 + 0.1 * t)
        decays = np.float64(np.any(gradient != 0, axis=1, keepdims=True)) if skip else 1.0
        want = want - eta * gradient - eta * 0.5 * want * decays
        np.testing.assert_allclose(reads["embed"][t], want, rtol=1e-10, atol=1e-12)


def test_a_loss_of_the_stored_rows_is_not_dense_decay():
    """What the docstring warns of: the first use of a rare row is at a value that has missed its decay."""
    p, rows = table(), jnp.array([0] * 20 + [3] * 2)
    stale, _, _ = train(OPTIMIZERS["sgdw"](LAZY), p, rows)
    lazy, _, _ = train(OPTIMIZERS["sgdw"](LAZY), p, rows, read=wd.materialize)
    dense, _, _ = train(OPTIMIZERS["sgdw"](None), p, rows)
    np.testing.assert_allclose(lazy["embed"][-1, 3], dense["embed"][-1, 3], rtol=1e-6)
    missed = 1 - 0.95**20
    # its gradient p − 1 was taken at p and not at M·p, and the step after that halved nothing of it: 0.1·(1 − M)·p
    first = stale["embed"][20, 3] - dense["embed"][20, 3]
    np.testing.assert_allclose(first, -0.1 * missed * p["embed"][3], rtol=1e-5, atol=1e-6)
    # where the gradient doesn't depend on the row it is exact all the same
    constant = lambda p, row: {"embed": jnp.zeros_like(p["embed"]).at[row].set(1.0)}
    ends = [train(OPTIMIZERS["sgdw"](rule), p, rows, gradients=constant)[1]["embed"][3] for rule in (LAZY, None)]
    np.testing.assert_allclose(*ends, rtol=1e-6)


def test_rows_that_are_touched_at_a_rate_of_zero_catch_up_there():
    """λ is switched off in the state; the row is used then, and the decay that it missed before comes first."""
    p, one = table(), lambda row: {"embed": jnp.zeros((ROWS, WIDTH)).at[row].set(1.0)}
    ends = {}
    for name, rule in (("lazy", LAZY), ("dense", None)):
        tx = wd.sgdw(0.1, weight_decay=0.5, rule=rule)
        step = jax.jit(lambda g, s, p, tx=tx: tx.update(g, s, p))
        q, state = p, tx.init(p)
        for _ in range(5):
            updates, state = step(one(0), state, q)
            q = optax.apply_updates(q, updates)
        state = optax.tree.set(state, weight_decay=jnp.zeros(()))
        for row in (3, 3, 0):
            updates, state = step(one(row), state, q)
            q = optax.apply_updates(q, updates)
        ends[name] = wd.materialize(q, state) if rule else q
    np.testing.assert_allclose(ends["lazy"]["embed"], ends["dense"]["embed"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("k", "steps"),
    [(1e-5, 100_000), (1e-8, 100_000), (0.5, 3), (1e-3, 60_000)],
    ids=["small", "below float32's ulp of 1", "large", "S of 60"],
)
def test_s_has_no_drift(k, steps):
    """A sum in float32 is off by 1e-3 in the first case, and from 1 on stays there in the second."""
    state = missed_decay.no_rows({"w": jnp.ones((2, 1))}, lambda p: (1,))
    total, rest = state.total["w"], state.rest["w"]
    one = lambda carry, _: (missed_decay.add_step(*carry, jnp.float32(k)), None)
    (total, rest), _ = jax.jit(lambda carry: jax.lax.scan(one, carry, length=steps))((total, rest))
    missed = missed_decay.missed(total, state.rows["w"], jnp.float32)
    want = -steps * np.log1p(-np.float64(np.float32(k)))
    # the float32 logarithm's own rounding, and one unit of S
    np.testing.assert_allclose(missed, np.full((2, 1), want), rtol=1.2e-7, atol=2**-25)


def test_s_wraps_around_and_rows_that_are_far_behind_stay_gone():
    """S passes 128 several times: a row that is never used stays at e⁻⁶⁴, one that is used each time loses nothing."""
    p = {"w": jnp.ones((3, 1))}
    tx = wd.shrink(0.9, mask=None, rule=LAZY)
    step = jax.jit(lambda s: tx.update({"w": jnp.array([[0.0], [0.9], [0.0]])}, s, p)[1])
    state = tx.init(p)
    for i in range(200):  # S = 460
        state = step(state)
        if i > 30:
            read = wd.materialize(p, state)["w"][:, 0]
            assert float(read[0]) < 2e-28
            assert float(read[1]) == 1
    assert int(state.rule.total["w"]) < 200 * 2.3 * 2**25  # it did wrap around


@pytest.mark.parametrize("policy", ["skip", "lazy"])
def test_rows_that_every_step_uses_decay_as_without_the_rule(policy):
    """To the last bit outside jit, where products and sums aren't fused."""
    p = table() | {"stack": jax.random.normal(jax.random.key(3), (2, 4, 3)), "kernel": jnp.ones((3, 2))}
    grads = jax.tree.map(jnp.ones_like, p)
    results = []
    for rule in (None, wd.rules.active_rows(policy=policy)):
        tx = wd.sgdw(0.1, weight_decay=0.5, rule=rule)
        results.append(tx.update(grads, tx.init(p), p)[0])
    assert_same_bits(*results)


def test_untouched_rows_come_back_bit_for_bit():
    """Also infinite ones, and a step of −0.0."""
    p = {"embed": jnp.array([[1.0, jnp.inf], [2.0, 3.0], [jnp.nan, 0.0]])}
    g = {"embed": jnp.array([[0.0, 0.0], [1.0, 0.0], [-0.0, 0.0]])}
    for rule in (SKIP, LAZY):
        tx = wd.sgdw(0.1, weight_decay=0.5, rule=rule)
        updates, _ = tx.update(g, tx.init(p), p)
        plain, _ = optax.sgd(0.1).update(g, optax.sgd(0.1).init(p), p)
        assert_same_bits(updates["embed"][::2], plain["embed"][::2])
        np.testing.assert_allclose(updates["embed"][1], [-0.2, -0.15], rtol=1e-6)


@pytest.mark.quick_compile(False)
@pytest.mark.parametrize("rule", [SKIP, LAZY], ids=["skip", "lazy"])
def test_zero_decay_is_bitwise_the_base_optimizer(rule):
    p, rows = table(), used()
    ends = [train(tx, p, rows)[1] for tx in (wd.sgdw(0.1, weight_decay=0.0, rule=rule), optax.sgd(0.1))]
    assert_same_bits(*ends)


# --- skip ------------------------------------------------------------------------------------------------------------


@pytest.mark.optax_promotes
def test_skip_goes_by_the_raw_gradient():
    """Adam's momentum moves a row whose gradient is zero, and it doesn't decay."""
    p = table()
    at = lambda row: {"embed": jnp.zeros((ROWS, WIDTH)).at[row].set(0.5)}
    tx, free = (wd.adamw(0.1, weight_decay=wd_, rule=SKIP) for wd_ in (0.5, 0.0))
    states = [t.update(at(0), t.init(p), p)[1] for t in (tx, free)]
    updates, plain = (t.update(at(1), s, p)[0]["embed"] for t, s in zip((tx, free), states, strict=True))
    assert float(jnp.abs(plain[0]).max()) > 0.01
    assert_same_bits(updates[0], plain[0])
    np.testing.assert_allclose(updates[1] - plain[1], -0.05 * p["embed"][1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd_l2", "add_l2_to_loss"])
def test_skip_of_l2_in_the_gradient(name):
    p = table()
    g = {"embed": jnp.zeros((ROWS, WIDTH)).at[2].set(1.0)}
    if name == "sgd_l2":
        tx = wd.sgd_l2(0.1, weight_decay=0.5, rule=SKIP)
    else:
        tx = optax.chain(wd.add_l2_to_loss(0.5, rule=SKIP), optax.sgd(0.1))
    updates, _ = tx.update(g, tx.init(p), p)
    want = np.zeros((ROWS, WIDTH))
    want[2] = -0.1 * (1 + 0.5 * np.asarray(p["embed"][2]))
    np.testing.assert_allclose(updates["embed"], want, rtol=1e-6)


def test_skip_composes_with_an_anchor_and_a_gate():
    p = table()
    g = {"embed": jnp.zeros((ROWS, WIDTH)).at[2].set(1.0)}
    rule = optax.chain(wd.rules.toward({"embed": jnp.ones((ROWS, WIDTH))}), SKIP, wd.rules.cautious())
    tx = wd.sgdw(0.1, weight_decay=0.5, rule=rule)
    updates, _ = tx.update(g, tx.init(p), p)
    away = np.asarray(p["embed"][2]) - 1
    np.testing.assert_allclose(updates["embed"][2], -0.1 - 0.05 * np.where(away > 0, away, 0), rtol=1e-5, atol=1e-7)
    assert float(jnp.abs(updates["embed"].at[2].set(0)).max()) == 0


# --- axes, leaves, masks, types --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "rows"), [(0, (2, 1, 1)), (1, (1, 4, 1)), (-1, (1, 1, 3)), ((0, 1), (2, 4, 1))])
@pytest.mark.parametrize("policy", ["skip", "lazy"])
def test_axes(policy, axis, rows):
    p = {"w": jnp.ones((2, 4, 3))}
    tx = wd.sgdw(1.0, weight_decay=0.5, rule=wd.rules.active_rows(axis, policy=policy))
    updates, state = tx.update({"w": jnp.zeros((2, 4, 3)).at[1, 2, 0].set(0.25)}, tx.init(p), p)
    inside = tuple(i for i, n in enumerate(rows) if n == 1)
    touched = np.zeros((2, 4, 3), bool)
    touched[1, 2, 0] = True
    touched = np.broadcast_to(touched.any(inside, keepdims=True), (2, 4, 3))
    np.testing.assert_array_equal(np.asarray(updates["w"]) != 0, touched)
    if policy == "lazy":
        assert state.rule.rows["w"].shape == rows
        assert [x.dtype for x in jax.tree.leaves(state.rule)] == [jnp.uint32, jnp.float32, jnp.uint32]
        read = wd.materialize(p, state)["w"]
        np.testing.assert_allclose(read, np.where(touched, 1.0, 0.5), rtol=1e-6)


def many():
    return {
        "embed": {"embedding": jnp.ones((4, 2)), "other": jnp.full((3, 2), 2.0)},
        "out": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "frozen": None,
    }


def test_one_table_by_optax_masked_and_by_partition():
    p, only = many(), wd.optax_mask(["embedding"])
    zeros = optax.tree.zeros_like(p)
    labels = jax.tree.map(lambda x: "lazy" if x else "dense", only(p))
    parts = {"lazy": LAZY, "dense": optax.identity()}
    for rule in (optax.masked(LAZY, only), optax.masked(LAZY, only(p)), optax.partition(parts, labels)):
        tx = wd.sgdw(1.0, weight_decay=0.5, rule=rule)
        updates, state = tx.update(zeros, tx.init(p), p)
        assert sum(x.size for x in jax.tree.leaves(state.rule)) == 4 + 2
        q = wd.materialize(optax.apply_updates(p, updates), state)
        chex.assert_trees_all_close(q["embed"], jax.tree.map(lambda x: x / 2, p["embed"]), rtol=1e-6)
        chex.assert_trees_all_close(q["out"], {"kernel": p["out"]["kernel"] / 2, "bias": p["out"]["bias"]})
        assert q["frozen"] is None


def test_leaves_without_rows_are_the_same_objects_and_without_a_gradient_stay():
    p = many()
    tx = wd.sgdw(1.0, weight_decay=0.5, rule=LAZY)
    grads = optax.tree.zeros_like(p)
    grads["embed"] = None  # dense decay leaves these alone, too
    updates, state = tx.update(grads, tx.init(p), p)
    q = wd.materialize(p, state)
    assert q["out"]["bias"] is p["out"]["bias"]
    assert updates["embed"] is None
    chex.assert_trees_all_equal(q["embed"], p["embed"])
    np.testing.assert_allclose(q["out"]["kernel"], 0.5 * p["out"]["kernel"], rtol=1e-6)


@pytest.mark.optax_promotes
@pytest.mark.parametrize("rounding", [None, "stochastic", "compensated"])
def test_bfloat16_rows(rounding):
    """Dense decay at c = 1e-4 rounds away in bfloat16. Rows that wait lose all of it when they are read."""
    p = {"embed": jnp.ones((2, 64), jnp.bfloat16)}
    tx = wd.sgdw(1e-3, weight_decay=0.1, rule=LAZY, rounding=rounding)
    grads = {"embed": jnp.zeros((2, 64), jnp.bfloat16)}

    def one(carry, _):
        p, state = carry
        updates, state = tx.update(grads, state, p)
        return (optax.apply_updates(p, updates), state), None

    (end, state), _ = jax.jit(lambda c: jax.lax.scan(one, c, length=5000))((p, tx.init(p)))
    assert_same_bits(end, p)
    read = wd.materialize(end, state)["embed"]
    assert read.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(read), np.exp(-0.5), rtol=2**-8)  # bfloat16's rounding
    grads["embed"] = grads["embed"].at[0].set(2**-6)
    (end, _), _ = jax.jit(lambda c: one(c, None))((end, state))
    np.testing.assert_allclose(np.float32(end["embed"][0]), np.exp(-0.5), rtol=2**-7)  # of the update, too


def test_complex_rows():
    p = {"w": jnp.array([[1 + 2j], [3 - 1j]], jnp.complex64)}
    tx = wd.sgdw(1.0, weight_decay=0.5, mask=None, rule=LAZY)
    updates, state = tx.update({"w": jnp.array([[1j], [0j]], jnp.complex64)}, tx.init(p), p)
    np.testing.assert_allclose(updates["w"], [[-0.5 - 2j], [0]], rtol=1e-6)
    np.testing.assert_allclose(wd.materialize(p, state)["w"][1], [1.5 - 0.5j], rtol=1e-6)


# --- state, loops, devices -------------------------------------------------------------------------------------------


def test_state_costs_4_bytes_per_row_and_casts_of_floats_do_it_no_harm():
    p = {"embed": jnp.ones((1000, 8))}
    tx = wd.sgdw(1.0, weight_decay=0.01, rule=LAZY)
    state = tx.init(p)
    assert sum(x.nbytes for x in jax.tree.leaves(state.rule)) == 4 * 1000 + 8
    for _ in range(3):
        _, state = tx.update(optax.tree.zeros_like(p), state, p)
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    chex.assert_trees_all_equal(wd.materialize(p, cast), wd.materialize(p, state))


def compiled(tx):
    p = {"embed": jnp.ones((1024, 256))}
    step = lambda p, s, g: (lambda u, s: (optax.apply_updates(p, u), s))(*tx.update(g, s, p))
    return jax.jit(step, donate_argnums=(0, 1)).lower(p, tx.init(p), p).compile()


@pytest.mark.quick_compile(False)
@pytest.mark.parametrize("policy", ["skip", "lazy"])
def test_bytes(policy):
    """The gradient is read once more, because a row is known to be used before it decays: 4 bytes per entry, and 2 for
    the array of bools that XLA makes of it on CPUs. Nothing else is copied."""
    plain, ours = (
        compiled(wd.sgdw(0.1, weight_decay=0.5, rule=r)) for r in (None, wd.rules.active_rows(policy=policy))
    )
    bytes_of = lambda x: x.cost_analysis()["bytes accessed"] / (1024 * 256)
    assert bytes_of(ours) - bytes_of(plain) == pytest.approx(4 + 2, abs=0.2)  # a few numbers per row of 256
    assert ours.memory_analysis().temp_size_in_bytes < 1.1 * 1024 * 256
    assert ours.memory_analysis().alias_size_in_bytes >= 4 * 1024 * 256 + (4 * 1024 if policy == "lazy" else 0)


@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec(None, "x")], ids=str)
def test_one_device_and_eight_agree(spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    p = {"embed": jax.random.normal(jax.random.key(0), (16, 8))}
    grads = {"embed": jnp.zeros((16, 8)).at[3, 5].set(1.0)}
    tx = wd.sgdw(0.1, weight_decay=0.5, rule=LAZY)

    def steps(p, state, g):
        for gradient in (optax.tree.zeros_like(g), g, optax.tree.zeros_like(g)):
            updates, state = tx.update(gradient, state, p)
            p = optax.apply_updates(p, updates)
        return p, state, wd.materialize(p, state)

    place = functools.partial(jax.device_put, device=NamedSharding(mesh, spec))
    sharded = place(p)
    state = tx.init(sharded)
    if spec == PartitionSpec("x"):
        assert state.rule.rows["embed"].sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
    one, eight = jax.jit(steps)(p, tx.init(p), grads), jax.jit(steps)(sharded, state, place(grads))
    chex.assert_trees_all_close(eight, one, rtol=1e-6)


def test_vmap_over_weight_decay_and_materialize():
    p, rows = table(), used(12)
    run = lambda lam: train(wd.sgdw(0.1, weight_decay=lam, rule=LAZY), p, rows, read=wd.materialize)
    lams = jnp.array([0.1, 0.9], jnp.float32)
    (reads, ends, states), alone = jax.jit(jax.vmap(run))(lams), jax.jit(run)
    for i, lam in enumerate(lams):
        np.testing.assert_allclose(reads["embed"][i], alone(lam)[0]["embed"], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(wd.materialize)(ends, states)["embed"], reads["embed"][:, -1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"jax\.vmap\(wd\.materialize\)"):
        wd.materialize(jax.tree.map(lambda x: x[0], ends), states)


@pytest.mark.optax_promotes
def test_materialize_finds_rows_at_any_depth():
    p = many()
    tx = optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(1.0), wd.monitor_decay(wd.adamw(1.0, weight_decay=0.5, rule=LAZY))), 1
    )
    state = {"opt": [tx.update(optax.tree.zeros_like(p), tx.init(p), p)[1]]}
    chex.assert_trees_all_close(wd.materialize(p, state)["out"]["kernel"], jnp.full((2, 3), 0.5), rtol=1e-6)


def test_wd_partition_keeps_rows_in_each_optimizer():
    p = many()
    make = lambda lam: wd.sgdw(1.0, weight_decay=lam, rule=LAZY)
    tx = wd.partition({"a": make(0.5), "b": make(0.25)}, lambda x: "a" if x.role == "embedding" else "b")
    _, state = tx.update(optax.tree.zeros_like(p), tx.init(p), p)
    q = wd.materialize(p, state)
    np.testing.assert_allclose(q["embed"]["embedding"], np.full((4, 2), 0.5), rtol=1e-6)
    np.testing.assert_allclose(q["out"]["kernel"], np.full((2, 3), 0.75), rtol=1e-6)


def test_materialize_under_nnx():
    model = nnx.Embed(5, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, wd.sgdw(1.0, weight_decay=0.5, rule=LAZY), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: m(jnp.array([1])).sum())(model))
        return wd.materialize(nnx.state(model, nnx.Param), optimizer.opt_state)

    before = np.asarray(model.embedding[...])
    read = step(model, optimizer)
    want = before / 2
    want[1] -= 1
    np.testing.assert_allclose(nnx.to_pure_dict(read)["embedding"], want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(model.embedding[...][0], before[0])
    nnx.update(model, wd.materialize(nnx.state(model, nnx.Param), optimizer.opt_state))
    np.testing.assert_allclose(model.embedding[...], want, rtol=1e-6, atol=1e-6)


def test_migrate_state_carries_rows_over():
    p = table()
    tx = wd.sgdw(0.1, weight_decay=0.5, rule=LAZY)
    _, state = tx.update(optax.tree.zeros_like(p), tx.init(p), p)
    moved = wd.migrate_state(state, wd.sgdw(0.2, weight_decay=0.1, momentum=None, rule=LAZY), p)
    chex.assert_trees_all_equal(moved.rule, state.rule)
    fresh = wd.migrate_state(wd.sgdw(0.1, weight_decay=0.5).init(p), tx, p)
    chex.assert_trees_all_equal(wd.materialize(p, fresh), p)


@pytest.mark.optax_promotes
def test_a_run_goes_on_from_a_checkpoint():
    """Saved as NumPy arrays, read into the structure of a fresh state."""
    p, rows = table(), used()
    tx = OPTIMIZERS["multiplier"](LAZY)
    _, whole, _ = train(tx, p, rows)
    _, half, state = train(tx, p, rows[:17])
    saved = [np.asarray(x) for x in jax.tree.leaves((half, state))]
    q, state = jax.tree.unflatten(jax.tree.structure((p, tx.init(p))), map(jnp.asarray, saved))
    one = jax.jit(lambda q, state, row: step(tx, jax.grad(loss)(q, row), state, q))
    for row in rows[17:]:
        q, state = one(q, state, row)
    chex.assert_trees_all_close(q, whole, rtol=1e-6)  # another program


def test_optax_maps_the_parameters_in_the_state():
    p = table()
    tx = wd.sgdw(0.1, weight_decay=0.5, rule=LAZY)
    mapped = optax.tree.map_params(tx, lambda x: x + 1, tx.init(p))
    assert isinstance(mapped.rule, RowsState)


# --- what is refused -------------------------------------------------------------------------------------------------

AFTER = r'active_rows\(policy="lazy"\) comes last in a chain'
BAD = {
    "a policy": (lambda: wd.rules.active_rows(policy="eager"), ValueError, "policy='eager': use \"skip\""),
    "an axis": (
        lambda: wd.rules.active_rows(axis="rows"),
        TypeError,
        "axis='rows': expected the axis that counts rows",
    ),
    "no axis": (lambda: wd.rules.active_rows(axis=()), TypeError, r"axis=\(\)"),
    "lazy after an anchor": (
        lambda: wd.sgdw(0.1, weight_decay=0.1, rule=optax.chain(wd.rules.toward("init"), LAZY)).init(table()),
        ValueError,
        r'active_rows\(policy="lazy"\) comes after another rule.*optax\.partition.*policy="skip"',
    ),
    "a gate after lazy": (
        lambda: wd.sgdw(0.1, weight_decay=0.1, rule=optax.chain(LAZY, wd.rules.cautious())).init(table()),
        ValueError,
        AFTER,
    ),
    "a clip after lazy": (
        lambda: wd.sgdw(0.1, weight_decay=0.1, rule=optax.chain(LAZY, optax.clip(0.1))).init(table()),
        ValueError,
        AFTER,
    ),
    "a product after lazy": (
        lambda: wd.sgdw(0.1, weight_decay=0.1, rule=optax.chain(LAZY, optax.scale(0.5))).init(table()),
        ValueError,
        AFTER,
    ),
    "lazy twice": (
        lambda: wd.sgdw(0.1, weight_decay=0.1, rule=optax.chain(LAZY, LAZY)).init(table()),
        ValueError,
        "comes after another rule",
    ),
    "an axis of numbers": (lambda: wd.rules.active_rows(axis=0.5), TypeError, "axis=0.5"),
    "skip without gradients": (
        lambda: wd.shrink(0.1, rule=SKIP).init(table()),
        ValueError,
        "goes by the raw gradients",
    ),
    "lazy before a step": (
        lambda: wd.sgd_l2(0.1, weight_decay=0.1, rule=LAZY).init(table()),
        ValueError,
        "needs the finished step, and here the decay comes before it",
    ),
    "proximal": (lambda: wd.proximal(0.1, rule=LAZY).init(table()), ValueError, "proximal takes no gate"),
    "a vector": (
        lambda: wd.sgdw(0.1, weight_decay=0.1, mask=None, rule=wd.rules.active_rows(1)).init({"b": jnp.ones(3)}),
        ValueError,
        r"active_rows: axis 1, and 'b' has shape \(3,\): give the rule the tables only",
    ),
    "no lazy rows": (
        lambda: wd.materialize(table(), wd.sgdw(0.1, weight_decay=0.1, rule=SKIP).init(table())),
        ValueError,
        r"the state has no rows that wait.*materialize\(params, state\)",
    ),
    "the wrong order": (
        lambda: wd.materialize(wd.sgdw(0.1, weight_decay=0.1, rule=LAZY).init(table()), table()),
        ValueError,
        "the state has no rows that wait",
    ),
    "a part of the parameters": (
        lambda: wd.materialize(table()["embed"], wd.sgdw(0.1, weight_decay=0.1, rule=LAZY).init(table())),
        ValueError,
        "the state has rows of 'embed', which params lacks",
    ),
    "two rules": (
        lambda: wd.materialize(
            table(), optax.chain(wd.shrink(0.1, rule=LAZY), wd.shrink(0.1, rule=LAZY)).init(table())
        ),
        ValueError,
        "two rules of the optimizer keep rows of 'embed'",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_refused(bad):
    make, error, text = BAD[bad]
    with pytest.raises(error, match=text):
        make()


def test_a_mask_that_is_known_at_init_and_traced_at_update():
    p = {"kernel": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    make = lambda m: wd.sgdw(0.1, weight_decay=0.5, mask={"kernel": 1.0, "b": m}, rule=LAZY)
    state = make(jnp.float32(0)).init(p)
    with pytest.raises(ValueError, match=r"decays and has no rows in the state.*traced at both"):
        jax.jit(lambda m: make(m).update(p, state, p))(jnp.float32(0))
