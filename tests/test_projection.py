"""`project` and `hyperball`: against NumPy, per slice, sharded, in low precision, and inside what is around them.

A step moves a weight by a few percent of its norm here, and float32 rounds p, p + step and R/‖p + step‖ to 6e-8 each:
"1e-5 of a step" is a bound on the difference over the largest entry of the step.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import run, step
from helpers import assert_same_bits
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_bytes import traffic

import wd_optax as wd

SLICES = [("blocks", 1)]
RADIUS, ETA = 2.0, 0.1
BALL = functools.partial(optax.projections.projection_l2_ball, scale=1.5)
BOX = functools.partial(optax.projections.projection_box, lower=-0.5, upper=0.5)
ONTO = {"init": "init", "number": RADIUS, "ball": BALL, "box": BOX}
each_onto = pytest.mark.parametrize("onto", ONTO)


def params(dtype=jnp.float32):
    normal = lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)
    scales = jnp.arange(1, 4, dtype=dtype)[:, None, None]  # norms of slices that a norm of the leaf would mix up
    return {
        "blocks": {"kernel": scales * normal(0, 3, 4, 2)},
        "head": {"kernel": normal(1, 4, 5), "bias": normal(2, 5)},
        "frozen": None,
    }


def gradients(p, seed=3):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape, np.float32), x.dtype), p)


def projected(onto, **options):
    return optax.chain(optax.sgd(ETA), wd.project(ONTO[onto], **options))


def hyperball(direction=None, eta=ETA, **options):
    return wd.hyperball(direction or optax.trace(0.9), eta, **options)


def norms(p):
    return np.sqrt(np.sum(np.square(np.float64(p["blocks"]["kernel"])), axis=(1, 2)))


def assert_within_a_step(ours, theirs, start, fraction=1e-5):
    for a, b, p in zip(*map(jax.tree.leaves, (ours, theirs, start)), strict=True):
        moved = np.abs(np.float64(b) - np.float64(p)).max()
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=0, atol=fraction * moved)


def weights(tree):
    """Every weight of a tree in NumPy, one per slice, by (path, slice)."""
    found = {("blocks", i): np.float64(x) for i, x in enumerate(tree["blocks"]["kernel"])}
    return found | {("head", 0): np.float64(tree["head"]["kernel"])}


# --- The formulas, in float64 ----------------------------------------------------------------------------------------


def on_sphere(q, radius):
    return radius * q / np.linalg.norm(q)


ORACLES = {
    "init": lambda q, r: on_sphere(q, r),
    "number": lambda q, r: on_sphere(q, RADIUS),
    "ball": lambda q, r: q * min(1, 1.5 / np.linalg.norm(q)),
    "box": lambda q, r: np.clip(q, -0.5, 0.5),
}


@each_onto
def test_project_is_the_formula(onto, x64):
    p = params(jnp.float64)
    end, _ = run(projected(onto, slices=SLICES), p, gradients(p), 3)
    g, expected = weights(gradients(p)), weights(p)
    radii = {key: np.linalg.norm(w) for key, w in expected.items()}
    for _ in range(3):
        expected = {key: ORACLES[onto](w - ETA * g[key], radii[key]) for key, w in expected.items()}
    for key, w in weights(end).items():
        np.testing.assert_allclose(w, expected[key], rtol=1e-10)
    bias = p["head"]["bias"] - 3 * ETA * gradients(p)["head"]["bias"]
    np.testing.assert_allclose(end["head"]["bias"], bias, rtol=1e-10)


def test_hyperball_is_the_formula_also_under_a_schedule(x64):
    p = params(jnp.float64)
    eta = lambda t: ETA / (1 + jnp.asarray(t, jnp.float64))
    end, state = run(hyperball(eta=eta, slices=SLICES), p, gradients(p), 3)
    g, expected, m = weights(gradients(p)), weights(p), 0.0
    radii = {key: np.linalg.norm(w) for key, w in expected.items()}
    for t in range(3):
        m = 1 + 0.9 * m  # momentum of a constant gradient: u = m·g
        for key, w in expected.items():
            chord = ETA / (1 + t) * on_sphere(m * g[key], radii[key])
            expected[key] = on_sphere(w - chord, radii[key])
    for key, w in weights(end).items():
        np.testing.assert_allclose(w, expected[key], rtol=1e-10)
    plain = sum(ETA / (1 + t) * (1 + 0.9 + 0.81 if t == 2 else 1 + 0.9 * t) for t in range(3))
    bias = p["head"]["bias"] - plain * gradients(p)["head"]["bias"]
    np.testing.assert_allclose(end["head"]["bias"], bias, rtol=1e-10)
    assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(ETA / 3)


def test_hyperball_does_not_see_the_size_of_the_direction():
    p, g = params(), gradients(params())
    small, plain, large = (run(hyperball(), p, optax.tree.scale(x, g), 2)[0]["blocks"] for x in (1e-6, 1.0, 1e6))
    for end in (small, large):
        assert_within_a_step(end, plain, p["blocks"])


def test_project_to_a_sphere_is_the_projection_of_optax():
    p, g = params(), gradients(params())
    sphere = functools.partial(optax.projections.projection_l2_sphere, scale=RADIUS)
    ends = [run(optax.chain(optax.sgd(ETA), wd.project(onto)), p, g, 2)[0] for onto in (RADIUS, sphere)]
    assert_within_a_step(*ends, p)


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", ["non_negative", "simplex", "l1_ball", "linf_ball", "hypercube"])
def test_any_projection_of_optax_on_each_weight(name):
    onto = getattr(optax.projections, f"projection_{name}")
    p, g = params(), gradients(params())
    end, _ = run(optax.chain(optax.sgd(ETA), wd.project(onto, slices=SLICES)), p, g, 1)
    for key, w in weights(end).items():
        expected = onto(jnp.asarray(weights(p)[key] - ETA * weights(g)[key], jnp.float32))
        np.testing.assert_allclose(w, expected, atol=1e-6)  # float32 of p + step, and of the difference


def test_a_function_sees_one_weight_where_slices_are_no_leading_axes():
    p = {"qkv": {"kernel": jnp.arange(2 * 3 * 4 * 2, dtype=jnp.float32).reshape(2, 3, 4, 2)}}
    seen = []
    onto = lambda x: (seen.append(x.shape), x / jnp.sum(x))[1]
    updates, _ = (tx := wd.project(onto, slices=[("qkv", (1, 3))])).update(optax.tree.zeros_like(p), tx.init(p), p)
    assert set(seen) == {(2, 4)}
    end = optax.apply_updates(p, updates)["qkv"]["kernel"]
    np.testing.assert_allclose(jnp.sum(end, axis=(0, 2)), jnp.ones((3, 2)), rtol=1e-5)


# --- Slices and shardings --------------------------------------------------------------------------------------------

OPTIMIZERS = {
    **{onto: functools.partial(projected, onto) for onto in ONTO},
    "hyperball": hyperball,
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_kind = pytest.mark.parametrize("name", ["init", "ball", "hyperball"])


@each_optimizer
def test_a_stack_gives_what_its_separate_leaves_give(name):
    stacked = params()["blocks"]["kernel"]
    apart = {str(i): {"kernel": x} for i, x in enumerate(stacked)}
    together = {"blocks": {"kernel": stacked}}
    end, _ = run(OPTIMIZERS[name](slices=SLICES), together, gradients(together), 2)
    g = {str(i): {"kernel": x} for i, x in enumerate(gradients(together)["blocks"]["kernel"])}
    separate, _ = run(OPTIMIZERS[name](), apart, g, 2)
    for i, one in separate.items():
        assert_within_a_step(end["blocks"]["kernel"][int(i)], one["kernel"], apart[i]["kernel"])
    if name != "box":  # one norm for the stack is another optimizer
        whole, _ = run(OPTIMIZERS[name](), together, gradients(together), 2)
        moved = jnp.abs(end["blocks"]["kernel"] - stacked).max()
        assert jnp.abs(whole["blocks"]["kernel"] - end["blocks"]["kernel"]).max() > 0.05 * moved


@pytest.mark.parametrize("spec", [P(None, "x"), P(None, None, "x"), P("x")], ids=["fsdp", "tensor", "stages"])
@pytest.mark.parametrize("name", ["init", "hyperball"])
def test_eight_devices_give_what_one_gives(name, spec):
    p = {"blocks": {"kernel": jax.random.normal(jax.random.key(0), (8, 16, 8))}}
    g = gradients(p)
    alone, _ = run(OPTIMIZERS[name](slices=SLICES), p, g, 2)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    placed, placed_g = jax.device_put((p, g), NamedSharding(mesh, spec))
    sharded, _ = run(OPTIMIZERS[name](slices=SLICES), placed, placed_g, 2)
    assert sharded["blocks"]["kernel"].sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
    assert_within_a_step(sharded, alone, p)


# --- Low precision ---------------------------------------------------------------------------------------------------


def recomputed():
    """The same projection onto the norm that the weight has at this step."""

    def update(updates, state, p):
        def leaf(u, p):
            q, p = (p + u).astype(jnp.float32), p.astype(jnp.float32)
            return q * (jnp.linalg.norm(p) / jnp.linalg.norm(q)) - p

        return jax.tree.map(leaf, updates, p), state

    return optax.GradientTransformation(optax.init_empty_state, update)


@pytest.mark.slow
@pytest.mark.optax_promotes
def test_a_stored_radius_does_not_drift_in_bfloat16_and_a_recomputed_one_does():
    """4,000 random steps of 0.5 % of the norm, rounded to nearest; 20,000 drift by 2 to 4 %.

    A rounding moves an entry by 1.6e-3 of itself (rms, 2⁻⁷·⁵/√12), and the norm of 4096 normal entries by
    1.6e-3·√3/64 = 4.4e-5, which is all that a stored radius leaves. With a recomputed one each rounding stays.
    """
    random = np.random.default_rng(0)
    p = {"kernel": random.standard_normal((64, 64), np.float32).astype(jnp.bfloat16)}
    draws = {"kernel": 0.005 * random.standard_normal((4000, 64, 64), np.float32)}

    def drift(projection):
        tx = optax.chain(wd.precision.in_float32(projection), wd.precision.round_updates("nearest"))
        one = lambda carry, g: (step(tx, g, *carry[::-1]), None)
        (end, _), _ = jax.jit(lambda *start: jax.lax.scan(one, *start))((p, tx.init(p)), draws)
        length = lambda p: np.linalg.norm(np.float64(p["kernel"]))
        return length(end) / length(p) - 1

    assert abs(drift(wd.project("init"))) < 5 * 4.4e-5
    assert drift(recomputed()) < -3e-3


@pytest.mark.optax_promotes
def test_hyperball_keeps_the_norm_of_bfloat16_weights_with_stochastic_rounding():
    """An entry is rounded by up to 2⁻⁸, at random: the norm of 800 entries is right to about 2⁻⁸/√800 = 1.4e-4."""
    p = {"blocks": {"kernel": jax.random.normal(jax.random.key(0), (2, 20, 40)).astype(jnp.bfloat16)}}
    tx = hyperball(optax.identity(), 1e-3, slices=SLICES, rounding="stochastic")
    end, state = run(tx, p, gradients(p), 200, "scan")
    assert end["blocks"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(norms(end), norms(p), rtol=5e-4)  # three and a half of these
    assert optax.tree.get(state, "radius")["blocks"]["kernel"].dtype == jnp.float32
    turned = jnp.sum(end["blocks"]["kernel"].astype(float) * p["blocks"]["kernel"], axis=(1, 2)) / norms(p) ** 2
    # 200 steps of 1e-3 toward −g, which is across p to 1/√800: the angle is at most 0.2
    assert (jnp.arccos(turned) > 0.15).all()
    nearest, _ = run(hyperball(optax.identity(), 1e-3, slices=SLICES, rounding="nearest"), p, gradients(p), 200, "scan")
    assert jnp.mean(nearest["blocks"]["kernel"] == p["blocks"]["kernel"]) > 0.5  # what stochastic rounding is for


@each_optimizer
def test_updates_have_the_types_of_the_gradients(name):
    for dtype, gradient_dtype in [
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.float32, jnp.bfloat16),
        (jnp.float16, jnp.float32),
    ]:
        p = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params())
        g = jax.tree.map(lambda x, dtype=gradient_dtype: x.astype(dtype), gradients(params()))
        tx = OPTIMIZERS[name](slices=SLICES)
        if name == "hyperball":
            tx = hyperball(optax.identity(), slices=SLICES)
        updates, _ = jax.eval_shape(tx.update, g, jax.eval_shape(tx.init, p), p)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, g)


# --- Nothing to project ----------------------------------------------------------------------------------------------


@pytest.mark.quick_compile(False)
def test_a_weight_without_a_direction_stays_bit_for_bit():
    p, tx = params(), hyperball(optax.identity(), slices=SLICES)
    g = gradients(p)
    g["blocks"]["kernel"] = np.float32([[[1]], [[0]], [[1]]]) * g["blocks"]["kernel"]
    p, end = jax.device_get((p, run(tx, p, g, 2)[0]))
    assert_same_bits(end["blocks"]["kernel"][1], p["blocks"]["kernel"][1])
    assert (end["blocks"]["kernel"][::2] != p["blocks"]["kernel"][::2]).all()
    assert_same_bits(run(hyperball(eta=0.0), p, g, 2)[0], p)


@pytest.mark.parametrize("onto", ["init", "number"])
def test_a_sum_of_zero_has_no_direction_and_leaves_the_weight(onto):
    p = params()
    updates, _ = (tx := wd.project(ONTO[onto], slices=SLICES)).update(optax.tree.scale(-1.0, p), tx.init(p), p)
    assert_same_bits(optax.apply_updates(p, updates)["blocks"], p["blocks"])


def test_hyperball_that_steps_onto_zero_leaves_the_weight():
    p = {"kernel": jnp.array([[3.0, 4.0]])}
    assert_same_bits(run(hyperball(optax.identity(), 1.0), p, p, 1)[0], p)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])  # the square of the last is infinite
@pytest.mark.parametrize("name", ["init", "hyperball"])
def test_what_is_not_finite_is_not_hidden(name, bad):
    p, g = params(), gradients(params())
    g["blocks"]["kernel"] = g["blocks"]["kernel"].at[1, 0, 0].set(bad)
    end, _ = run(OPTIMIZERS[name](slices=SLICES), p, g, 1)
    finite = np.isfinite(end["blocks"]["kernel"]).all(axis=(1, 2))
    assert list(finite) == [True, False, True]


# --- Masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.quick_compile(False)
@each_kind
def test_leaves_outside_the_mask_take_the_plain_step_bit_for_bit(name):
    p, g = params(), gradients(params())
    mask = {"blocks": True, "head": {"kernel": False, "bias": 0.0}}
    ours, _ = run(OPTIMIZERS[name](mask=mask), p, g, 2)
    base, _ = run(optax.sgd(ETA, momentum=0.9) if name == "hyperball" else optax.sgd(ETA), p, g, 2)
    assert_same_bits(ours["head"], base["head"])
    assert (ours["blocks"]["kernel"] != base["blocks"]["kernel"]).any()


@each_optimizer
def test_a_fraction_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=r"takes the multipliers 0 and 1, got 0\.5 for 'head/kernel'"):
        OPTIMIZERS[name](mask=[("head/kernel", 0.5), (".*", "weights")]).init(params())
    with pytest.raises(ValueError, match="takes the multipliers 0 and 1"):
        jax.jit(lambda m: OPTIMIZERS[name](mask=[("kernel", m)]).init(params()))(1.0)  # nobody knows what m is


@each_optimizer
def test_a_mask_that_selects_nothing_is_warned_about(name, caplog):
    OPTIMIZERS[name](mask=[("kernel", 0.0)]).init(params())
    assert "nothing is projected" in caplog.text


@each_kind
def test_masked_and_partition_hide_leaves(name):
    p, g = params(), gradients(params())
    labels = {"blocks": "a", "head": "b", "frozen": None}
    both = optax.partition({k: OPTIMIZERS[name](slices=SLICES if k == "a" else None) for k in "ab"}, labels)
    whole, _ = run(OPTIMIZERS[name](slices=SLICES), p, g, 2)
    chex.assert_trees_all_close(run(both, p, g, 2)[0], whole, rtol=1e-6)  # another program: a few roundings
    hidden = optax.masked(OPTIMIZERS[name](mask=[("kernel", 1.0)]), {"blocks": True, "head": False, "frozen": None})
    assert (run(hidden, p, g, 1)[0]["blocks"]["kernel"] != p["blocks"]["kernel"]).any()


@pytest.mark.optax_promotes
@each_kind
def test_leaves_without_a_gradient_and_trees_without_leaves(name):
    p = params()
    g = gradients(p) | {"blocks": {"kernel": None}}
    tx = OPTIMIZERS[name]() if name != "hyperball" else hyperball(optax.identity())
    updates, _ = tx.update(g, tx.init(p), p)
    assert updates["blocks"]["kernel"] is None
    assert tx.update({}, tx.init({}), {})[0] == {}
    empty = {"kernel": jnp.ones((0, 3)), "n": jnp.arange(2)}
    chex.assert_trees_all_equal(tx.update(empty, tx.init(empty), empty)[0]["kernel"], empty["kernel"])


# --- State and transformations ---------------------------------------------------------------------------------------


@each_optimizer
def test_the_state_is_arrays_and_keeps_its_tree(name):
    p, g = params(), gradients(params())
    tx = OPTIMIZERS[name](slices=SLICES)
    state = tx.init(p)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, p), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.update(g, state, p)[1], state)
    if name in ("init", "hyperball"):
        radius = optax.tree.get(state, "radius")
        np.testing.assert_allclose(radius["blocks"]["kernel"], norms(p)[:, None, None], rtol=1e-6)
        assert radius["head"]["kernel"].shape == (1, 1)
        assert radius["head"]["bias"] == optax.MaskedNode()
        marked = optax.tree.map_params(tx, lambda x: "params", state, transform_non_params=lambda x: "other")
        assert set(jax.tree.leaves(optax.tree.get(marked, "radius"))) == {"params"}


@each_kind
def test_scan_is_the_loop_and_the_second_step_does_not_compile(name):
    p, g = params(), gradients(params())
    tx = OPTIMIZERS[name](slices=SLICES)
    chex.assert_trees_all_close(run(tx, p, g, 3, "scan")[0], run(tx, p, g, 3, "eager")[0], rtol=1e-5, atol=1e-6)
    traces = []
    one = jax.jit(lambda g, s, p: (traces.append(0), step(tx, g, s, p))[1], donate_argnums=(1, 2))
    q, state = jax.tree.map(jnp.copy, p), tx.init(p)
    for _ in range(3):
        q, state = one(g, state, q)
    chex.assert_tree_all_finite(q)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("leaf", "make"), [("learning_rate", lambda x: hyperball(optax.identity(), x)), ("radius", wd.project)]
)
def test_eta_and_the_radius_are_live_leaves_and_are_swept(leaf, make):
    p, g = params(), gradients(params())
    tx, values = make(0.5), jnp.array([0.05, 0.2])
    assert float(optax.tree.get(tx.init(p), leaf)) == 0.5
    edited = lambda x: tx.update(g, optax.tree.set(tx.init(p), **{leaf: x}), p)[0]
    traced = lambda x: make(x).update(g, make(x).init(p), p)[0]
    alone, *swept, rebuilt = jax.device_get(
        jax.jit(lambda x: (edited(x[1]), jax.vmap(edited)(x), jax.vmap(traced)(x), traced(0.2)))(values)
    )
    for updates in (alone, *(jax.tree.map(lambda y: y[1], x) for x in swept)):
        chex.assert_trees_all_close(updates, rebuilt, rtol=1e-5, atol=1e-6)  # the batched program rounds otherwise


def test_inside_inject_hyperparams_also_with_a_schedule_of_radii():
    p, g = params(), gradients(params())
    tx = optax.inject_hyperparams(wd.project)(onto=lambda t: 1.0 + jnp.asarray(t, jnp.float32))
    for steps in (1, 2, 3):
        end = run(tx, p, g, steps)[0]["head"]["kernel"]
        assert float(jnp.linalg.norm(end)) == pytest.approx(steps, rel=1e-6)
    eta = lambda t: ETA / (1 + jnp.asarray(t, jnp.float32))
    injected = optax.inject_hyperparams(wd.hyperball, static_args=("direction", "mask"))(optax.identity(), eta)
    direct = hyperball(optax.identity(), eta)
    chex.assert_trees_all_close(run(injected, p, g, 3)[0], run(direct, p, g, 3)[0], rtol=1e-6)


@pytest.mark.optax_promotes
@each_kind
def test_multi_steps_and_apply_if_finite_go_outside(name):
    p, g = params(), gradients(params())
    tx = OPTIMIZERS[name](slices=SLICES)
    accumulated, _ = run(optax.MultiSteps(tx, 2).gradient_transformation(), p, g, 4)
    chex.assert_trees_all_close(accumulated, run(tx, p, g, 2)[0], rtol=1e-5)
    skipping = optax.apply_if_finite(tx, 5)
    after, _ = step(skipping, optax.tree.full_like(p, jnp.nan), skipping.init(p), p)
    assert_same_bits(after, p)


def test_a_direction_that_skips_updates_is_refused():
    with pytest.raises(ValueError, match=r"hyperball: .*MultiSteps inside, which skips updates, and the learning rate"):
        hyperball(optax.MultiSteps(optax.identity(), 2)).init(params())


def test_complex_weights_keep_their_norm():
    p = {"kernel": jnp.array([[3 + 4j, 1 - 1j]])}
    g = {"kernel": jnp.array([[1j, 1.0 + 0j]])}
    for tx in (projected("init"), hyperball(optax.identity())):
        end, _ = run(tx, p, g, 3)
        assert float(jnp.linalg.norm(end["kernel"])) == pytest.approx(27**0.5, rel=1e-6)
        assert jnp.abs(end["kernel"] - p["kernel"]).max() > 0.1


# --- Decay on a sphere -----------------------------------------------------------------------------------------------


def test_decay_beside_the_step_is_a_second_order_no_op_and_inside_the_direction_it_is_not(x64):
    """(1 − ηλ)·p − η·u has the direction of p − η·u/(1 − ηλ): η grows by η²·λ. Slopes over η by powers of 2."""
    p = {"kernel": jax.random.normal(jax.random.key(0), (6, 5))}
    g = gradients(p)
    radius = float(jnp.linalg.norm(p["kernel"]))
    unit = functools.partial(optax.projections.projection_l2_sphere, scale=radius)
    normalise = optax.stateless(lambda u, _: jax.tree.map(unit, u))
    decays = {
        "beside": lambda eta, lam: optax.chain(normalise, optax.sgd(eta), wd.shrink(eta * lam), wd.project("init")),
        "inside": lambda eta, lam: hyperball(wd.add_decayed_weights(lam), eta),
    }

    def slope(make):
        effects = []
        for eta in (1e-3, 2e-3):
            on, off = (run(make(eta, lam), p, g, 1, "eager")[0]["kernel"] for lam in (0.5, 0.0))
            effects.append(float(jnp.linalg.norm(on - off)))
        return np.log2(effects[1] / effects[0])

    assert slope(decays["beside"]) == pytest.approx(2.0, abs=0.005)  # the next order is η
    assert slope(decays["inside"]) == pytest.approx(1.0, abs=0.03)
    same = [run(tx, p, g, 1, "eager")[0]["kernel"] for tx in (decays["beside"](0.1, 0.0), hyperball(optax.identity()))]
    np.testing.assert_allclose(*same, rtol=1e-10)  # without decay, the chain is Hyperball


@pytest.mark.optax_promotes
def test_the_monitor_says_that_the_share_is_not_a_decay_and_measures_the_angle():
    p = {"kernel": np.array(params()["blocks"]["kernel"])}
    g = np.array(gradients(params())["blocks"]["kernel"])
    along = np.sum(g * p["kernel"], axis=(1, 2), keepdims=True) / np.sum(p["kernel"] ** 2, axis=(1, 2), keepdims=True)
    tx = wd.monitor_decay(hyperball(optax.identity(), mask=[("kernel", 1.0)], slices=[("kernel", 1)]))
    state = jax.jit(lambda p, g: tx.update(g, tx.init(p), p)[1])(p, {"kernel": g - along * p["kernel"]})
    info = wd.read_decay(state)["weight"]
    assert np.isnan(info.decay_share)
    assert float(info.angle) == pytest.approx(np.arctan(ETA), rel=1e-5)  # the step is across p


# --- Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.optax_promotes
def test_a_checkpoint_keeps_the_radius_and_one_of_adam_starts_at_the_weights():
    p = params()
    tx = hyperball(optax.scale_by_adam(), slices=SLICES)
    end, state = run(tx, p, gradients(p), 2)
    moved = optax.tree.scale(2.0, end)
    resumed = wd.migrate_state(state, tx, moved)
    chex.assert_trees_all_equal(resumed, state)
    adam = optax.adam(1e-3)
    fresh = wd.migrate_state(run(adam, p, gradients(p), 2)[1], tx, moved)
    assert int(optax.tree.get(fresh, "count")) == 2
    radius = optax.tree.get(fresh, "radius")["blocks"]["kernel"]
    np.testing.assert_allclose(np.ravel(radius), 2 * norms(p), rtol=1e-5)
    chain = optax.chain(wd.scale_by_adam(), optax.scale_by_learning_rate(ETA), wd.project("init", slices=SLICES))
    assert int(optax.tree.get(wd.migrate_state(state, chain, moved), "count")) == 2


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("onto", "error", "message"),
    [
        ("sphere", ValueError, r"onto='sphere': use \"init\", a radius, or a function"),
        (None, TypeError, "onto=None: use"),
        (True, TypeError, "onto=True: use"),
        (optax.identity(), TypeError, "use \"init\", a radius, or a function"),
        (0.0, ValueError, "would make every weight 0: pass a radius above 0"),
        (-1.0, ValueError, "onto=-1.0 must be finite and not negative"),
        (jnp.ones(2), ValueError, r"onto has shape \(2,\)"),
    ],
)  # fmt: skip
def test_a_bad_onto_is_an_error_at_once(onto, error, message):
    with pytest.raises(error, match=message):
        wd.project(onto)


def test_a_function_that_is_no_projection_of_one_weight_is_an_error_at_init():
    with pytest.raises(ValueError, match=r"onto made .* at 'blocks/kernel': it must return an array like it"):
        wd.project(jnp.sum).init(params())
    with pytest.raises(TypeError) as caught:
        wd.project(lambda tree: tree["blocks"]).init(params())
    assert any("onto was tried at init on 'blocks/kernel'" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("make", [functools.partial(wd.project, "init"), hyperball])
def test_a_weight_of_norm_zero_is_an_error_whose_fix_works(make):
    p = params()
    p["blocks"]["kernel"] = p["blocks"]["kernel"].at[1].set(0)
    with pytest.raises(ValueError, match="a weight in 'blocks/kernel' has norm 0 at init") as caught:
        make(slices=SLICES).init(p)
    make().init(p)  # as one weight it has a norm
    mask = eval(str(caught.value).partition("mask=")[2])
    make(slices=SLICES, mask=mask).init(p)


@each_optimizer
def test_f25_missing_parameters_are_named(name):
    tx, p = OPTIMIZERS[name](), params()
    with pytest.raises(ValueError, match="so update needs them"):
        tx.update(gradients(p), tx.init(p))


def test_the_state_of_another_optimizer_is_named():
    p = params()
    with pytest.raises(TypeError, match="project: the state has no radii"):
        wd.project("init").update(p, wd.project(RADIUS).init(p), p)
    with pytest.raises(TypeError, match="hyperball: state is a"):
        hyperball().update(p, optax.sgd(ETA).init(p), p)


# --- Memory traffic --------------------------------------------------------------------------------------------------


@pytest.mark.quick_compile(False)
@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    ("tx", "base", "most"),
    [
        # p and g once more, for ‖p + step‖; XLA writes p + step and reads it again before JAX 0.10 and from 0.12 on
        (projected("init"), optax.sgd(ETA), 8 if (0, 10) <= jax.__version_info__ < (0, 12) else 16),
        (hyperball(optax.identity()), optax.sgd(ETA), 12 + 16),  # g for ‖u‖, p and g for ‖p + chord‖
        (hyperball(optax.scale_by_adam()), optax.adam(ETA), 12 + 24),  # u is made of m and v again
    ],
    ids=["project", "hyperball", "hyperball of adam"],
)
def test_a_projection_reads_the_leaf_twice(tx, base, most):
    """Once for the norm, once for the step. XLA's sums on a CPU take no scaled array, so η·u is written and read."""
    on, off = traffic(tx), traffic(base)
    scalars = 0.01 if jax.__version_info__ >= (0, 10) else 0.02  # 5 kB, or 10, of 512 k entries
    assert on.bytes - off.bytes <= most + scalars
    assert on.copies == 0
    assert on.not_aliased == 0
