"""Rounding inside everything that Optax, JAX, Flax and Orbax put around an optimizer."""

import functools
from typing import NamedTuple, get_args

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from catalogue import in_pairs, jitted, step
from flax import nnx
from helpers import assert_same_bits

import wd_optax as wd
from wd_optax.precision import rounding

pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]

ROUNDINGS = rounding.ROUNDINGS
assert tuple(ROUNDINGS) == get_args(rounding.Rounding)
each_rounding = pytest.mark.parametrize("rounding", ROUNDINGS)
as_users_compile = pytest.mark.quick_compile(False)


def normal(seed, shape, dtype=jnp.bfloat16):
    return jnp.array(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def mixed():
    """Leaves of every type: rounded, left alone, not trained, None."""
    return {
        "kernel": normal(0, (8, 16)),
        "half": {"kernel": normal(1, (4, 6), jnp.float16)},
        "single": {"kernel": normal(2, (4, 2), jnp.float32)},
        "steps": jnp.arange(3, dtype=jnp.int32),
        "frozen": None,
    }


def low_precision():
    return {"a": {"kernel": normal(0, (8, 16))}, "scale": normal(2, (16,))}


def like(tree, seed=9):
    return jax.tree.map(lambda p: normal(seed, p.shape, p.dtype), tree)


def adamw(rounding="stochastic", **options):
    return wd.adamw(1e-3, weight_decay=0.1, rounding=rounding, **options)


def trained(tx, p, g, steps=3, jit=True, state=None):
    one = jitted(tx) if jit else functools.partial(step, tx)
    state = tx.init(p) if state is None else state
    for _ in range(steps):
        p, state = one(g, state, p)
    return p, state


# --- one way to write it


@as_users_compile
@pytest.mark.parametrize(
    ("name", "weight_decay", "rounding"), in_pairs(["adamw", "sgdw", "with_decay"], [0.1, 0.0], ROUNDINGS)
)
def test_the_argument_is_the_chain(name, weight_decay, rounding):
    options = {"weight_decay": weight_decay, "mask": [("a/", 1.0), (".*", 0.0)]}
    options |= {"optimizer": optax.sgd(1e-2)} if name == "with_decay" else {}
    options |= {"momentum": 0.9} if name == "sgdw" else {}
    make = lambda **more: getattr(wd, name)(learning_rate=1e-2, **options, **more)
    long = optax.chain(wd.precision.in_float32(make()), wd.precision.round_updates(rounding, key=5))
    p, g = low_precision(), like(low_precision())
    assert_same_bits(trained(make(rounding=rounding, key=5), p, g)[0], trained(long, p, g)[0])


@pytest.mark.parametrize("b", ["mu_dtype", "nu_dtype"])
@each_rounding
def test_moments_have_the_type_that_was_asked_for(b, rounding):
    both = {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}
    tx = adamw(rounding, **{b: jnp.bfloat16})
    p = low_precision()
    state = jax.eval_shape(tx.update, like(p), jax.eval_shape(tx.init, p), p)[1]
    for field in ("mu", "nu"):
        dtypes = {x.dtype for x in jax.tree.leaves(optax.tree.get(state, field))}
        assert dtypes == {jnp.dtype(both[f"{field}_dtype"] if b.startswith(field) else jnp.float32)}


def test_stochastic_moments_are_right_in_the_mean():
    """Two roundings of 2⁻⁹ relative deviation at most in 3 steps; 4096 entries, 6σ: false alarm 2·10⁻⁹ each."""
    p, g = {"kernel": jnp.ones((64, 64), jnp.bfloat16)}, {"kernel": jnp.full((64, 64), 0.7, jnp.bfloat16)}
    in_float32 = trained(adamw(None), optax.tree.cast(p, jnp.float32), optax.tree.cast(g, jnp.float32))[1]
    low = trained(adamw("stochastic", mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16), p, g)[1]
    for field in ("mu", "nu"):
        exact = float(optax.tree.get(in_float32, field)["kernel"][0, 0])
        found = np.float64(optax.tree.get(low, field)["kernel"])
        assert abs(found.mean() / exact - 1) < 6 * np.sqrt(3) * 2.0**-8 / 64
        assert len(np.unique(found)) > 1


# --- what is left alone, and what is an error


@each_rounding
def test_mixed_trees(rounding):
    p = mixed()
    u = {**like(p), "steps": jnp.zeros(3, jnp.int32), "frozen": None}
    tx = wd.precision.round_updates(rounding)
    updates, state = tx.update(u, tx.init(p), p)
    assert updates["frozen"] is None
    assert updates["steps"] is u["steps"]
    assert updates["kernel"].dtype == updates["half"]["kernel"].dtype == jnp.float32
    if rounding == "compensated_all":
        assert_same_bits(updates["single"], u["single"])  # the first residual is zero
    else:
        assert updates["single"]["kernel"] is u["single"]["kernel"]
    chex.assert_trees_all_equal_shapes_and_dtypes(optax.apply_updates(p, updates), p)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, jax.eval_shape(tx.init, p))
    if ROUNDINGS[rounding].compensates:
        kept = {"kernel": p["kernel"], "half": p["half"], "single": {"kernel": jnp.zeros(())}, "steps": jnp.int32(0)}
        kept = kept | ({"single": p["single"]} if rounding == "compensated_all" else {}) | {"frozen": None}
        chex.assert_trees_all_equal_shapes_and_dtypes(state.residual, kept)
    else:
        assert state.residual == ()
    assert tx.update({**u, "kernel": None}, tx.init(p), p)[0]["kernel"] is None


@as_users_compile
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_compensation_keeps_decay_and_step(dtype):
    """1000 steps, far too small alone, of decay and of gradient: the sum arrives to a unit of the type."""
    unit = float(jnp.finfo(dtype).eps)
    c, u = unit / 64, unit / 50
    p = jnp.ones(16, dtype)
    tx = optax.chain(wd.precision.in_float32(wd.shrink(c, mask=None)), wd.precision.round_updates("compensated_all"))
    one = lambda carry, _: (step(tx, jnp.full_like(p, -u), carry[1], carry[0])[::1], None)
    end, _ = jax.lax.scan(one, (p, tx.init(p)), length=1000)[0]
    exact = (1 + u / c) * (1 - c) ** 1000 - u / c
    # A residual, under half a unit, is rounded at random: a deviation of at most half of unit²/2 in each step, 6σ.
    noise = 6 * np.sqrt(1000) * unit**2 / 4
    np.testing.assert_allclose(np.float64(end), exact, rtol=0, atol=unit + noise)
    assert abs(exact - 1) > 10 * unit


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_infinite_steps_leave_no_residual(dtype):
    p = jnp.array([1, 1, jnp.inf, 1, 3e38], dtype)
    u = jnp.array([jnp.inf, -jnp.inf, 1, 1e-4, 3e38], jnp.float32)
    tx = wd.precision.round_updates("compensated_all")
    updates, state = tx.update(u, tx.init(p), p)
    np.testing.assert_array_equal(
        np.float64(optax.apply_updates(p, updates))[[0, 1, 2, 4]], [np.inf, -np.inf, *[np.inf] * 2]
    )
    assert np.isfinite(np.float64(state.residual)).all()
    np.testing.assert_array_equal(np.float64(state.residual)[[0, 1, 4]], 0)


def test_errors():
    for make in (
        wd.precision.round_updates,
        lambda r: adamw(r),
        lambda r: wd.precision.low_precision_state(optax.adam(1e-3), rounding=r),
    ):
        with pytest.raises(ValueError, match=r"rounding='up': .*\"?'?nearest"):
            make("up")
    with pytest.raises(ValueError, match="compensated"):
        wd.precision.low_precision_state(optax.adam(1e-3), rounding="compensated")
    for tx in (wd.precision.round_updates("nearest"), wd.precision.with_master_weights(optax.sgd(1e-3))):
        with pytest.raises(ValueError, match="parameters"):
            tx.update(low_precision(), tx.init(low_precision()))
    with pytest.raises(ValueError, match=r"second_moment=.*no such field"):
        wd.precision.low_precision_state(optax.adam(1e-3), second_moment=jnp.bfloat16).init(low_precision())


# --- the same bits, wherever and however it runs


def test_bits_come_from_the_key_alone():
    p, g = low_precision(), like(low_precision())
    ends = [trained(adamw(key=key), p, g)[0] for key in (3, 3, 4, jax.random.key(3), jax.random.key(3))]
    assert_same_bits(ends[0], ends[1])
    assert_same_bits(ends[3], ends[4])
    for a, b in ((0, 2), (0, 3)):
        assert np.any(np.asarray(ends[a]["a"]["kernel"]) != np.asarray(ends[b]["a"]["kernel"]))
    assert_same_bits(trained(adamw(), p, g, jit=False)[0], trained(adamw(), p, g, jit=False)[0])


@as_users_compile
def test_a_leaf_has_its_bits_whatever_else_the_tree_has():
    p, g = low_precision(), like(low_precision())
    whole, _ = trained(adamw(mask=None), p, g)
    for part in ("a", "scale"):
        assert_same_bits(trained(adamw(mask=None), {part: p[part]}, {part: g[part]})[0], {part: whole[part]})
    hidden = optax.masked(adamw(mask=None), {"a": True, "scale": False})
    assert_same_bits(trained(hidden, p, g)[0]["a"], whole["a"])


def went_up(rounding_key=0, steps=8, names=("a", "b"), size=2**14):
    """±1: which way each entry went, halfway between two values; for every step and leaf."""
    tx = wd.precision.round_updates("stochastic", key=rounding_key)
    p = {name: jnp.ones(size, jnp.bfloat16) for name in names}
    state, found = tx.init(p), []
    for _ in range(steps):
        updates, state = tx.update(optax.tree.full_like(p, 2.0**-8, jnp.float32), state, p)
        found.append([np.sign(np.asarray(updates[name]) - 2.0**-8) for name in names])
    return np.array(found)


def test_leaves_steps_and_keys_are_independent():
    """All pairs of 2 keys × 8 steps × 2 leaves, 496 of them, 2¹⁴ fair coins each, 6σ: false alarm 10⁻⁶."""
    coins = np.concatenate([went_up(key).reshape(-1, 2**14) for key in (0, 1)])
    products = coins @ coins.T / np.sqrt(2**14)
    assert set(np.unique(coins)) == {-1.0, 1.0}
    assert np.abs(products[~np.eye(len(coins), dtype=bool)]).max() < 6
    assert np.abs(coins.mean(1)).max() * np.sqrt(2**14) < 6


# --- inside everything


@as_users_compile
@each_rounding
def test_jit_scan_and_donation(rounding):
    p, g, tx = low_precision(), like(low_precision()), adamw(rounding)
    chex.clear_trace_counter()
    one = jax.jit(chex.assert_max_traces(lambda g, s, p: step(tx, g, s, p), n=1), donate_argnums=(1, 2))
    end, state = jax.tree.map(jnp.copy, p), tx.init(p)
    for _ in range(4):
        end, state = one(g, state, end)
    assert one._cache_size() == 1
    scanned = jax.jit(lambda c: jax.lax.scan(lambda c, _: (step(tx, g, c[1], c[0]), None), c, length=4)[0])
    assert_same_bits(scanned((p, tx.init(p))), (end, state))


@as_users_compile
@each_rounding
def test_vmap_over_keys_and_rates_equals_a_loop(rounding):
    p, g = low_precision(), like(low_precision())

    def train(key, weight_decay):
        tx = wd.sgdw(2.0**-7, weight_decay=weight_decay, mask=None, rounding=rounding, key=key)
        return jax.lax.scan(lambda c, _: (step(tx, g, c[1], c[0]), None), (p, tx.init(p)), length=3)[0][0]

    keys, decays = jax.random.split(jax.random.key(0), 2), jnp.array([0.0, 0.5], jnp.float32)
    together = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))(keys, decays)
    alone = jax.jit(train)
    for i in range(2):
        for j in range(2):
            one = alone(keys[i], decays[j])
            assert_same_bits(jax.tree.map(lambda x, i=i, j=j: x[i, j], together), one)
    differ = np.any(np.float32(together["a"]["kernel"][0]) != np.float32(together["a"]["kernel"][1]))
    assert bool(differ) is (rounding == "stochastic")


@as_users_compile
def test_wrappers():
    p, g, tx = low_precision(), like(low_precision()), adamw("stochastic", mask=None)
    plain, _ = trained(tx, p, g, 2)
    # the mean of four equal gradients is that gradient, exactly
    many = optax.MultiSteps(tx, every_k_schedule=4).gradient_transformation()
    assert_same_bits(trained(many, p, g, 8)[0], plain)
    # apply_if_finite wants updates of the gradients' type, so these must be float32
    finite, g32 = optax.apply_if_finite(tx, max_consecutive_errors=3), optax.tree.cast(g, jnp.float32)
    start, state = trained(finite, p, optax.tree.full_like(g32, jnp.nan), 1)
    assert_same_bits(start, p)
    assert_same_bits(trained(finite, p, g32, 2, state=state)[0], plain)
    inside = {"a": True, "scale": False}
    masked, _ = trained(optax.masked(tx, inside), p, optax.tree.zeros_like(p), 2)
    assert_same_bits(masked["scale"], p["scale"])
    partitioned = optax.partition({"in": tx, "out": optax.set_to_zero()}, {"a": "in", "scale": "out"})
    assert_same_bits(trained(partitioned, p, g, 2)[0]["a"], plain["a"])


@each_rounding
def test_tree_map_params_and_eval_shape(rounding):
    p = low_precision()
    tx = adamw(rounding, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)
    marked = optax.tree.map_params(tx, lambda x: "p", tx.init(p), transform_non_params=lambda x: "other")
    found = jax.tree.leaves(marked)
    assert found.count("p") == 2 * (3 if ROUNDINGS[rounding].compensates else 2)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, p), tx.init(p))


def test_nnx_optimizer():
    model = nnx.Linear(16, 8, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, adamw(), wrt=nnx.Param)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    for _ in range(3):
        optimizer.update(model, grads)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert_same_bits(after, trained(adamw(), pure, optax.tree.ones_like(pure), jit=False)[0])


@each_rounding
def test_resume_is_bit_exact(rounding, tmp_path):
    p, g, tx = low_precision(), like(low_precision()), adamw(rounding, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16)
    half = trained(tx, p, g, 3)
    template = jax.tree.map(jnp.zeros_like, (p, tx.init(p)))
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "step", half)
        saver.wait_until_finished()
        by_orbax = saver.restore(tmp_path / "step", template)
    by_flax = flax.serialization.from_bytes(template, flax.serialization.to_bytes(half))
    for restored in (by_orbax, by_flax):
        end, state = jax.tree.map(jnp.asarray, restored)
        assert_same_bits(trained(tx, end, g, 3, state=state), trained(tx, p, g, 6))


# --- memory


@as_users_compile
@pytest.mark.parametrize(
    ("rounding", "moments", "per_parameter"),
    [
        ("stochastic", jnp.bfloat16, 4),
        ("stochastic", None, 8),
        ("compensated", jnp.bfloat16, 6),
        ("nearest", jnp.bfloat16, 4),
    ],
)
def test_bytes_per_parameter(rounding, moments, per_parameter):
    """bf16 p, g, m, v with stochastic rounding: 2 + 2 + 2 + 2; and no array of random bits."""
    n = 2**16
    p = {"kernel": jnp.ones((256, 256), jnp.bfloat16)}
    tx = adamw(rounding, mu_dtype=moments, nu_dtype=moments)
    state = tx.init(p)
    scalars = [x for x in jax.tree.leaves(state) if x.size == 1]
    assert all(x.nbytes == 4 for x in scalars)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == per_parameter * n + 4 * len(scalars)
    compiled = jax.jit(functools.partial(step, tx), donate_argnums=(1, 2)).lower(p, state, p).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < (2 + 2 + per_parameter) * n + 4096
    if rounding != "compensated":  # XLA on CPUs may copy what it donates (jax 0.12: all of it), and nothing else
        assert memory.temp_size_in_bytes < memory.alias_size_in_bytes + 4096
    assert "u32[256,256]" not in compiled.as_text().split("ENTRY")[1]


# --- keys, and the wrappers whose branches must agree


KEYS = {
    "int": 3,
    "NumPy": np.uint32(3),
    "key": jax.random.key(3),
    "legacy": jax.random.PRNGKey(3),
    "legacy, NumPy": np.asarray(jax.random.PRNGKey(3)),
    "rbg": jax.random.key(3, impl="rbg"),
}


@pytest.mark.parametrize("key", KEYS)
def test_updates_have_the_parameters_shapes_for_every_kind_of_key(key):
    p = low_precision() | {"scalar": jnp.bfloat16(1), "two": normal(3, (2,)), "empty": normal(4, (0, 3)), "number": 1.0}
    g = jax.tree.map(lambda x: jnp.ones_like(x, jnp.bfloat16), p)
    for tx in (adamw(key=KEYS[key], nu_dtype=jnp.bfloat16), wd.precision.round_updates("stochastic", key=KEYS[key])):
        state = jax.eval_shape(tx.init, p)
        updates, new = jax.eval_shape(tx.update, g, state, p)
        chex.assert_trees_all_equal_shapes(updates, jax.tree.map(jnp.asarray, p))
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        assert all(x.shape == () for x in optax.tree.get_all_with_path(state, "seed")[0][1:])


def test_a_key_that_is_none():
    for bad in (jax.random.split(jax.random.key(0), 2), 0.5, -1):
        with pytest.raises(ValueError, match=r"key is .*: pass an int in"):
            adamw(key=bad).init(low_precision())


@as_users_compile
@pytest.mark.parametrize(("rounding", "dtype"), [("stochastic", jnp.bfloat16), ("compensated", jnp.float16)])
def test_apply_if_finite_goes_inside_or_gets_float32_gradients(rounding, dtype):
    """The two orders of the docstring: a skipped step leaves every bit of parameters and moments as it was."""
    p = optax.tree.cast(low_precision(), dtype)
    g, bad = optax.tree.cast(like(low_precision()), dtype), jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), p)
    inside = optax.chain(
        wd.precision.in_float32(optax.apply_if_finite(adamw(None), 5)), wd.precision.round_updates(rounding)
    )
    outside = optax.apply_if_finite(adamw(rounding), 5)
    plain, _ = trained(adamw(rounding), p, g, steps=2)
    for tx, cast in ((inside, lambda g: g), (outside, lambda g: optax.tree.cast(g, jnp.float32))):
        once, state = trained(tx, p, cast(g), steps=1)
        skipped, after = trained(tx, once, cast(bad), steps=1, state=state)
        assert_same_bits(skipped, once)
        assert_same_bits(optax.tree.get(after, "mu"), optax.tree.get(state, "mu"))
        twice, _ = trained(tx, skipped, cast(g), steps=1, state=after)
        if tx is outside or rounding != "stochastic":  # inside, the rounding counts the skipped step
            assert_same_bits(twice, plain)
        else:
            chex.assert_trees_all_close(
                jax.tree.map(lambda x: x.astype(float), twice),
                jax.tree.map(lambda x: x.astype(float), plain),
                rtol=2**-7,
            )


# --- fields of the state by their name


class Variational(NamedTuple):
    """A layer whose parameters are called as Adam's moments."""

    mu: jax.Array
    nu: jax.Array


@pytest.mark.parametrize(
    "params", [Variational(jnp.ones(4), jnp.ones(4)), {"a": Variational(jnp.ones(4), jnp.ones(4))}]
)
@pytest.mark.parametrize("field", ["mu", "nu"])
def test_parameters_named_like_moments_keep_their_type(params, field):
    tx = wd.precision.low_precision_state(optax.scale_by_adam(), **{field: jnp.bfloat16})
    state = tx.init(params)
    _, new = tx.update(params, state, params)
    for s in (state.inner, new.inner):
        for name in ("mu", "nu"):
            expected = {jnp.dtype(jnp.bfloat16 if name == field else jnp.float32)}
            assert {x.dtype for x in jax.tree.leaves(getattr(s, name))} == expected
    assert {x.dtype for x in jax.tree.leaves(adamw(None, nu_dtype=jnp.bfloat16).init(params).inner.inner.nu)} == {
        jnp.dtype(jnp.bfloat16)
    }


@pytest.mark.parametrize(
    ("rounding", "nu_dtype"), [("stochastic", jnp.bfloat16), (None, jnp.bfloat16), ("nearest", jnp.float32)]
)
@pytest.mark.usefixtures("x64")
def test_the_second_moment_of_float64_parameters_has_the_type_that_was_asked_for(nu_dtype, rounding):
    p = {"kernel": jnp.ones((4, 4), jnp.float64)}
    g = {"kernel": jnp.full((4, 4), 0.3, jnp.float64)}
    tx = adamw(rounding, nu_dtype=nu_dtype)
    end, state = trained(tx, p, g)
    nu, mu = (optax.tree.get(state, name)["kernel"] for name in ("nu", "mu"))
    assert (nu.dtype, mu.dtype, end["kernel"].dtype) == (jnp.dtype(nu_dtype), jnp.float64, jnp.float64)
    exact = 0.09 * (1 - 0.999**3)
    np.testing.assert_allclose(np.asarray(nu, float), exact, rtol=float(3 * jnp.finfo(nu_dtype).eps))
    assert optax.tree.get(trained(adamw(rounding), p, g)[1], "nu")["kernel"].dtype == jnp.float64
