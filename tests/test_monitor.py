"""The monitor: the same optimizer to the bit, numbers against float64, the laws of a state, and the equilibrium."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import LEARNING_RATE, NAMES, WEIGHT_DECAY, grads, optimizer, params, step
from flax import nnx
from helpers import assert_same_bits
from jax.sharding import NamedSharding, PartitionSpec

import wd_optax as wd
from wd_optax.choosing.equilibrium import equilibrium
from wd_optax.monitor import ROLES, DecayMonitorState, monitor_decay, read_decay

C = LEARNING_RATE * WEIGHT_DECAY
STEPS = 3
OPTAX = {
    "optax.adamw": lambda: optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    "optax.sgd": lambda: optax.sgd(LEARNING_RATE, momentum=0.9),
    "optax.lion": lambda: optax.lion(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    "optax.lamb": lambda: optax.lamb(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    "optax.adafactor": lambda: optax.adafactor(LEARNING_RATE, weight_decay_rate=C),
}
ALL = NAMES + list(OPTAX)
build = lambda name: OPTAX[name]() if name in OPTAX else optimizer(name, mask="weights")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.quick_compile,
    pytest.mark.optax_promotes,
]  # Optax's Adam, lion, ...; `test_strict_promotion` is the exception

as_users_compile = pytest.mark.quick_compile(False)


def normal(seed, shape, dtype=jnp.float32):
    """By NumPy, because a program of JAX's draws takes longer to compile."""
    return jnp.array(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def run(tx, p, gradients, mode):
    """The updates for each of the gradients, and the last state."""
    if mode == "scan":
        one = lambda state, g: tx.update(g, state, p)[::-1]
        return jax.jit(lambda state, xs: jax.lax.scan(one, state, xs)[::-1])(tx.init(p), gradients)
    one = jax.jit(tx.update) if mode == "jit" else tx.update
    state, all_updates = tx.init(p), []
    for i in range(STEPS):
        updates, state = one(jax.tree.map(lambda g, i=i: jnp.asarray(g[i]), gradients), state, p)
        all_updates.append(updates)
    return all_updates, state


def both(name, mode, dtype):
    """The updates and last state of an optimizer, and of the same one monitored: one leaf decays, and one doesn't."""
    p = {"attn": params(dtype)["attn"], "frozen": None}
    gradients = jax.tree.map(lambda *g: np.stack(g), *(grads(p, seed) for seed in range(STEPS)))
    return *run(build(name), p, gradients, mode), *run(monitor_decay(build(name)), p, gradients, mode)


DERIVED = ("sgdw", "adam_l2", "optax.lamb")  # by how d is found: read off, one derivative, two


@pytest.mark.parametrize(
    ("name", "mode", "dtype"),
    [  # single operations have the same bits however they are compiled
        *(pytest.param(name, "jit", "bfloat16", marks=as_users_compile) for name in ALL),
        *((name, "eager", "float32") for name in DERIVED),
        *(pytest.param(n, "eager", "float32", marks=pytest.mark.exhaustive) for n in ALL if n not in DERIVED),
    ],
)
def test_the_optimizer_is_the_same_to_the_bit(name, mode, dtype):
    base, base_state, watched, state = both(name, mode, dtype)
    assert_same_bits(watched, base)
    assert_same_bits(state.inner, base_state)


@as_users_compile
@pytest.mark.parametrize(
    "name", ["adamw", "optax.lamb", "sgdw", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ALL)]
)
def test_in_a_scan_it_is_the_same_to_roundings(name):
    base, _, watched, _ = both(name, "scan", "float32")
    # a·g + b·m is contracted in one program or the other, and LAMB's norms are summed in another order
    chex.assert_trees_all_close(watched, base, rtol=1e-5, atol=1e-6)


@as_users_compile
def test_a_whole_run_in_one_program_differs_by_roundings_at_most():
    p, tx = params(), wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, momentum=0.9)
    loop = lambda tx: jax.lax.fori_loop(0, 10, lambda _, c: step(tx, grads(p), c[1], c[0]), (p, tx.init(p)))[0]
    # p + (a·g − c·p) is contracted in one program or the other: 10 roundings of 2⁻²⁴ of values that may cancel
    chex.assert_trees_all_close(loop(monitor_decay(tx)), loop(tx), rtol=1e-6, atol=1e-6)


def oracle(p, u, d):
    """Float64, straight from the definitions."""
    p, u, d = (np.concatenate([np.ravel(np.float64(x)) for x in parts]) for parts in (p, u, d))
    cosine = p @ (p + u) / np.linalg.norm(p) / np.linalg.norm(p + u)
    share = np.linalg.norm(d) / (np.linalg.norm(d) + np.linalg.norm(u - d))
    grown = np.linalg.norm(p + u) / np.linalg.norm(p)
    return {
        "size": p.size,
        "weight_norm": np.linalg.norm(p),
        "update_norm": np.linalg.norm(u),
        "decay_share": share,
        "angle": np.arccos(np.clip(cosine, -1, 1)),
        "removed": np.linalg.norm(d) / np.linalg.norm(p),
        "growth": grown - 1,
        "weight_rms": np.sqrt(np.mean(p**2)),
    }


DECOUPLED = [*(n for n in NAMES if n not in ("adam_l2", "proximal")), "optax.adamw", "optax.lion"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", DECOUPLED)
def test_the_numbers_are_their_definitions(name, dtype):
    p = params(dtype)
    p["more"] = {"kernel": jnp.full((3, 3), 0.5, dtype)}
    tx = monitor_decay(build(name))
    updates, state = tx.update(grads(p), tx.init(p), p)
    decays = lambda x: C * (1.0 if name in OPTAX else x)
    kernels = lambda tree: [tree["attn"]["kernel"], tree["more"]["kernel"]]
    biases = lambda tree: [tree["attn"]["bias"]]
    found = read_decay(state)
    for role, pick, m in (("weight", kernels, 1.0), ("bias", biases, 0.0)):
        d = [-decays(m) * np.float64(x) for x in pick(p)]
        for field, expected in oracle(pick(p), pick(updates), d).items():
            # float32 sums; in bfloat16 the updates' and the decay's rounding, 2⁻⁹, for the share and c
            tolerance = 5e-3 if dtype == jnp.bfloat16 and field in ("decay_share", "removed") else 1e-5
            np.testing.assert_allclose(getattr(found[role], field), expected, rtol=tolerance, err_msg=f"{role} {field}")
    assert found["other"] == (0.0,) * 7


def test_proximal_l2_and_cautious_decay_are_seen_exactly():
    p = {"kernel": jnp.array([[3.0, 4.0]])}
    g = {"kernel": jnp.array([[1.0, -1.0]])}
    tx = monitor_decay(optax.chain(optax.sgd(0.1), wd.proximal(0.25)))
    share = read_decay(tx.update(g, tx.init(p), p)[1])["weight"].decay_share
    d, s = 5.0 * 0.25 / 1.25, np.sqrt(0.02) / 1.25
    assert float(share) == pytest.approx(d / (d + s), rel=1e-6)
    tx = monitor_decay(wd.sgdw(0.1, weight_decay=0.5, rule=wd.rules.cautious()))  # only the first entry agrees
    share = read_decay(tx.update(g, tx.init(p), p)[1])["weight"].decay_share
    d, s = 3.0 * 0.05, np.sqrt(0.02)
    assert float(share) == pytest.approx(d / (d + s), rel=1e-6)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("adam_l2", "optax.lamb", "optax.sgd")])
def test_a_step_without_gradient_is_nothing_but_decay(name):
    p = params()
    tx = monitor_decay(build(name))
    info = read_decay(tx.update(optax.tree.zeros_like(p), tx.init(p), p)[1])
    assert float(info["weight"].decay_share) == pytest.approx(1.0, abs=1e-6)
    assert float(info["weight"].update_norm / info["weight"].weight_norm) == pytest.approx(
        C / (1 + C) if name == "proximal" else C, rel=1e-5
    )
    # u∥p: what is left is ‖u‖·√ε
    assert float(info["weight"].angle) < 1e-3 * C
    if name not in OPTAX:
        assert float(info["bias"].decay_share) == 0


def test_without_decay_the_share_is_zero_and_small_angles_are_resolved():
    p = {"kernel": jnp.full((100, 100), 1.0)}
    g = {"kernel": jnp.where(jnp.arange(100) % 2 == 0, 1.0, -1.0)[None, :] * jnp.ones((100, 1))}
    for angle in (1e-6, 1e-3, 0.5):
        tx = monitor_decay(optax.sgd(float(np.tan(angle))))
        info = read_decay(tx.update(g, tx.init(p), p)[1])["weight"]
        assert float(info.angle) == pytest.approx(angle, rel=1e-4)
        assert float(info.decay_share) == 0
    over = monitor_decay(optax.sgd(3.0))
    info = read_decay(over.update(p, over.init(p), p)[1])["weight"]  # p → −2p
    assert float(info.angle) == pytest.approx(np.pi)
    zero = {"bias": jnp.zeros(3)}
    info = read_decay(over.update({"bias": jnp.ones(3)}, over.init(zero), zero)[1])["bias"]
    assert float(info.angle) == 0


def test_complex_updates_keep_the_sign_of_zero():
    p = {"kernel": jnp.ones((2, 2), jnp.complex64)}
    g = {"kernel": jnp.array([[complex(-0.0, -0.0), complex(0.0, -0.0)], [complex(-0.0, 0.0), 1j]], jnp.complex64)}
    updates, _ = monitor_decay(optax.identity()).update(g, monitor_decay(optax.identity()).init(p), p)
    chex.assert_trees_all_equal(*(np.asarray(x["kernel"]).view(np.uint32) for x in (updates, g)))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "compensated"])
def test_around_a_rounding_the_decay_is_what_it_is_without(rounding):
    """A rounding has no derivative: taken as it is, the whole weight would count as decay, a share of one half."""
    p = {"kernel": normal(0, (64, 64), jnp.bfloat16)}
    g = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), p)
    tx = monitor_decay(wd.adamw(1e-2, weight_decay=0.1, rounding=rounding))
    info = read_decay(tx.update(g, tx.init(p), p)[1])["weight"]
    decay = float(
        info.decay_share * info.update_norm / (1 - info.decay_share)
    )  # ‖d‖, where nearly all of u is the gradient's
    assert decay == pytest.approx(1e-3 * float(info.weight_norm), rel=0.1)


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        for name in (n for n in NAMES if not n.startswith("adam")):
            for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
                tx = monitor_decay(build(name))
                _, state = jax.eval_shape(tx.update, grads(params()), tx.init(params(dtype)), params(dtype))
                assert {x.dtype for x in jax.tree.leaves(state.norms)} == {jnp.dtype("float32")}


def test_half_precision_norms_do_not_overflow():
    p = {"kernel": jnp.full((300, 300), 1000.0, jnp.float16), "turn_kernel": jnp.array([[3 + 4j]], jnp.complex64)}
    tx = monitor_decay(wd.sgdw(0.1, weight_decay=0.1))
    info = read_decay(tx.update(optax.tree.zeros_like(p), tx.init(p), p)[1])["weight"]
    assert float(info.weight_norm) == pytest.approx(np.sqrt(300**2 * 1e6 + 25), rel=1e-5)
    assert float(info.decay_share) == pytest.approx(1.0, abs=1e-6)
    p = {"turn_kernel": jnp.array([[3 + 4j]], jnp.complex64)}
    tx = monitor_decay(optax.sgd(1.0))  # turned by a small angle in the complex plane
    info = read_decay(tx.update({"turn_kernel": 1e-3j * p["turn_kernel"]}, tx.init(p), p)[1])["weight"]
    assert float(info.weight_norm) == pytest.approx(5.0)
    assert float(info.angle) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_state_is_one_tree_of_arrays(name):
    p = params()
    tx = monitor_decay(build(name))
    state = tx.init(p)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state.norms))
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, p), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(tx.update(grads(p), state, p)[1], state)
    other = monitor_decay(build(name)).init({"w": jnp.ones((2, 2), jnp.bfloat16)})
    chex.assert_trees_all_equal_shapes_and_dtypes(other.norms, state.norms)
    assert {role: float(info.size) for role, info in read_decay(state).items()} == {
        "weight": 24, "embedding": 15, "bias": 8, "norm": 12, "other": 0,
    }  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_step_two_does_not_recompile_and_buffers_can_be_donated(name):
    tx = monitor_decay(build(name))
    p = params()
    state = jax.jit(tx.init)(p)
    one = jax.jit(lambda g, s, p: step(tx, g, s, p), donate_argnums=(1, 2))
    for seed in range(3):
        p, state = one(grads(params(), seed), state, p)
    assert one._cache_size() == 1
    p, state = params(), tx.init(params())
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((p, state.norms))]
    assert len(set(buffers)) == len(buffers)


@pytest.mark.parametrize("name", ["adamw", "sgdw", "optax.adamw"])
def test_tree_map_params_finds_every_parameter_like_leaf(name):
    tx, p = build(name), params()
    mark = lambda tx: optax.tree.map_params(tx, lambda x: "p", tx.init(p), transform_non_params=lambda x: "other")
    assert mark(monitor_decay(tx)) == DecayMonitorState(mark(tx), "other")


def test_vmap_over_weight_decay_equals_a_loop():
    p = params()
    tx = monitor_decay(wd.adamw(1e-2, weight_decay=0.1))
    state = tx.init(p)
    measure = jax.jit(lambda decay: tx.update(grads(p), optax.tree.set(state, weight_decay=decay), p)[1])
    values = jnp.array([0.0, 0.1, 1.0])
    together = read_decay(jax.vmap(measure)(values))
    for i, value in enumerate(values):
        alone = read_decay(measure(value))
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-5, atol=1e-7)
    assert np.all(np.diff(together["weight"].decay_share) > 0)


@pytest.mark.parametrize("name", ["adamw", "sgdw", "optax.adamw"])
def test_sharded_over_eight_devices(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    p = {"dense": {"kernel": 1 + jnp.arange(64, dtype=jnp.float32).reshape(16, 4), "bias": jnp.arange(1.0, 9.0)}}
    g = jax.tree.map(jnp.cos, p)
    tx = monitor_decay(build(name))
    one = jax.jit(tx.update)
    alone = read_decay(one(g, tx.init(p), p)[1])
    sharded, g_sharded = jax.device_put((p, g), rows)
    updates, state = one(g_sharded, jax.jit(tx.init)(sharded), sharded)
    chex.assert_trees_all_close(read_decay(state), alone, rtol=1e-5)
    assert updates["dense"]["kernel"].sharding.is_equivalent_to(rows, 2)
    text = one.lower(g_sharded, jax.jit(tx.init)(sharded), sharded).compile().as_text()
    assert not re.search("all-to-all|collective-permute", text)
    gathered = re.findall(r"f(?:32|64)\[([\d,]*)\]\S* all-gather\(", text)
    assert set(gathered) <= {"8", "8,1"}  # on a CPU a number per device, for each of the sums


def test_found_in_any_wrapper_and_inside_jit():
    p, tx = params(), monitor_decay(wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    alone = read_decay(tx.update(grads(p), tx.init(p), p)[1])
    wrapped = {
        "chain": optax.chain(optax.scale(1.0), tx),
        "MultiSteps": optax.MultiSteps(tx, 1).gradient_transformation(),
        "apply_if_finite": optax.apply_if_finite(tx, 3),
        "partition": optax.partition({"a": tx, "b": optax.sgd(1.0)}, "a"),
        "inject_hyperparams": optax.inject_hyperparams(lambda lr: tx)(lr=0.1),
    }
    for wrapper in wrapped.values():
        update = lambda g, s, p, wrapper=wrapper: read_decay(wrapper.update(g, s, p)[1])
        chex.assert_trees_all_close(jax.jit(update)(grads(p), wrapper.init(p), p), alone, rtol=1e-5)
    both = optax.partition({"a": tx, "b": optax.sgd(1.0)}, {"embed": "b", "attn": "a", "norms": "b", "frozen": None})
    info = read_decay(both.update(grads(p), both.init(p), p)[1])
    assert [role for role in ROLES if info[role].size] == ["weight", "bias"]
    chex.assert_trees_all_close(info["weight"], alone["weight"], rtol=1e-5)


def test_around_wrappers_it_watches_the_whole():
    p = params()
    tx = monitor_decay(optax.MultiSteps(wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY), 2).gradient_transformation())
    update = jax.jit(tx.update)
    _, state = update(grads(p), tx.init(p), p)
    assert float(read_decay(state)["weight"].update_norm) == 0
    assert float(read_decay(state)["weight"].decay_share) == 0
    _, state = update(grads(p), state, p)
    alone = monitor_decay(wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    expected = read_decay(alone.update(grads(p), alone.init(p), p)[1])
    chex.assert_trees_all_close(read_decay(state), expected, rtol=1e-5)
    masked = monitor_decay(
        optax.masked(wd.shrink(0.1), {"embed": True, "attn": False, "norms": False, "frozen": False})
    )
    info = read_decay(masked.update(optax.tree.zeros_like(p), masked.init(p), p)[1])
    assert (float(info["embedding"].decay_share), float(info["weight"].decay_share)) == (1.0, 0.0)


def test_none_integer_and_extra_leaves_pass():
    p = {"kernel": jnp.ones((2, 2)), "steps": jnp.arange(3), "frozen": None, "lora_A": jnp.ones((2, 2))}
    g = {"kernel": jnp.ones((2, 2)), "steps": None, "frozen": None, "lora_A": None}
    seen = []
    inner = optax.GradientTransformationExtraArgs(
        lambda p: optax.EmptyState(),
        lambda u, s, p=None, *, value: (seen.append(value) or optax.tree.scale(-1.0, u), s),
    )
    tx = monitor_decay(inner)
    updates, state = tx.update(g, tx.init(p), p, value=7.0)
    assert set(seen) == {7.0}
    assert updates["steps"] is None
    info = read_decay(state)
    assert float(info["weight"].weight_norm) == pytest.approx(np.sqrt(8))
    assert float(info["weight"].update_norm) == pytest.approx(2.0)
    assert (float(info["other"].size), float(info["other"].weight_norm)) == (3, 0)


def test_under_nnx_optimizer():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    watched = nnx.Optimizer(model, monitor_decay(wd.sgdw(0.1, weight_decay=0.5)), wrt=nnx.Param)
    kernel = np.asarray(model.kernel[...])

    @nnx.jit
    def train(model, optimizer):
        optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))

    for n in range(2):
        train(model, watched)
        info = read_decay(watched.opt_state)["weight"]
        assert float(info.weight_norm) == pytest.approx(np.linalg.norm(kernel) * 0.95**n, rel=1e-5)
        assert float(info.decay_share) == pytest.approx(1.0, abs=1e-6)


def test_schedule_free_outside_watches_the_inner_steps():
    p = params()
    tx = optax.contrib.schedule_free(monitor_decay(wd.sgdw(0.1, weight_decay=0.5)), 0.1)
    _, state = tx.update(optax.tree.zeros_like(p), tx.init(p), p)
    assert float(read_decay(state)["weight"].decay_share) == pytest.approx(1.0, abs=1e-6)


def test_what_cannot_be_read_says_what_to_do():
    p, tx = params(), monitor_decay(wd.sgdw(0.1, weight_decay=0.1))
    with pytest.raises(ValueError, match=r"update needs them: tx.update\(grads, state, params\)"):
        tx.update(grads(p), tx.init(p))
    with pytest.raises(ValueError, match=r"has 0 monitors.*wrap the optimizer as wd_optax.monitor_decay\(optimizer\)"):
        read_decay(optax.adam(0.1).init(p))
    with pytest.raises(ValueError, match=r"has 2 monitors.*pass the part that holds one"):
        read_decay(optax.chain(tx, tx).init(p))


# --- sums -----------------------------------------------------------------------------------------------------------

ROW = 3 * 10**7


@as_users_compile
@pytest.mark.parametrize(("shape", "value"), [((ROW,), 0.1), ((1, ROW // 8), 0.3), ((512, 512), None), ((97, 3), None)])
def test_sums_are_right_for_every_shape(shape, value):
    """In float32, added one after another, 3·10⁷ equal entries read a norm 6.5 % off, and a decay that turns."""
    c = 1e-3
    x = jnp.full(shape, value) if value else normal(0, shape)
    tx = monitor_decay(wd.shrink(c))
    p = {"kernel": x}
    info = read_decay(jax.jit(lambda p: tx.update(p, tx.init(p), p)[1])(p))["weight"]  # u = g − c·p, g = p
    norm = np.sqrt(x.size) * np.float64(x.ravel()[0]) if value else np.linalg.norm(np.float64(x))
    np.testing.assert_allclose(info.weight_norm, norm, rtol=2.0**-23)
    np.testing.assert_allclose(info.update_norm, (1 - c) * norm, rtol=2.0**-22)  # u is rounded, too
    np.testing.assert_allclose(info.decay_share, c / (c + 1), rtol=1e-5)  # u − d: a rounding of 1 against c
    assert float(info.angle) <= 1e-4 * (1 - c)  # the documented bound: 1e-4·‖u‖/‖p‖; it is 0


@as_users_compile
def test_a_pure_decay_does_not_turn():
    c, p = 1e-2, {"kernel": normal(1, (512, 512))}
    tx = monitor_decay(wd.sgdw(1.0, weight_decay=c))
    info = read_decay(jax.jit(lambda p: tx.update(optax.tree.zeros_like(p), tx.init(p), p)[1])(p))["weight"]
    assert float(info.angle) <= 1e-6 * c  # float32 roundings of c·p turn it by c·2⁻²⁴


# --- steps that are no decay ------------------------------------------------------------------------------------------

NO_DECAY = {
    "adaptive_grad_clip": (lambda: optax.chain(optax.adaptive_grad_clip(1e-3), optax.sgd(0.1)), "random"),
    "adaptive_grad_clip, all alike": (lambda: optax.chain(optax.adaptive_grad_clip(1e-3), optax.sgd(0.1)), "ones"),
    "clip, then adamw": (lambda: optax.chain(optax.adaptive_grad_clip(1e-3), optax.sgd(0.1), wd.shrink(1e-4)), "ones"),
    "keep_params_nonnegative": (lambda: optax.chain(optax.sgd(2.0), optax.keep_params_nonnegative()), "positive"),
    "keep_params_nonnegative, decayed": (
        lambda: optax.chain(wd.sgdw(2.0, weight_decay=0.01), optax.keep_params_nonnegative()), "positive",
    ),
    "scale_by_trust_ratio": (lambda: optax.chain(optax.scale_by_trust_ratio(), optax.sgd(0.1)), "ones"),
    "lamb": (lambda: optax.lamb(0.1), "random"),
    "lars": (lambda: optax.lars(0.1), "random"),
    "fromage": (lambda: optax.fromage(0.1), "random"),
    "adafactor": (lambda: optax.adafactor(0.1), "ones"),
    "dowg": (lambda: optax.contrib.dowg(1.0), "random"),
    "dog": (lambda: optax.contrib.dog(1.0), "random"),
    "grows": (lambda: optax.chain(optax.adam(0.1), optax.add_decayed_weights(0.1)), "random"),
    "master weights inside": (
        lambda: optax.chain(wd.precision.with_master_weights(wd.sgdw(0.1, weight_decay=0.1)), optax.identity()),
        "bfloat16",
    ),
}  # fmt: skip


def setting(kind):
    """Parameters, and a gradient for each of three steps."""
    if kind == "ones":
        return {"kernel": jnp.ones((4, 4))}, [{"kernel": jnp.ones((4, 4))}] * 3
    draw = lambda seed: normal(seed, (16, 8), jnp.bfloat16 if kind == "bfloat16" else jnp.float32)
    p = jnp.abs(draw(0)) if kind == "positive" else draw(0)
    return {"kernel": p}, [{"kernel": draw(seed)} for seed in (1, 2, 3)]


@pytest.mark.parametrize("name", NO_DECAY)
def test_where_the_step_is_no_decay_the_share_is_nan(name):
    build, kind = NO_DECAY[name]
    p, gradients = setting(kind)
    tx = monitor_decay(build())
    one, state, shares = jax.jit(functools.partial(step, tx)), tx.init(p), []
    for g in gradients:
        p, state = one(g, state, p)
        shares.append(float(read_decay(state)["weight"].decay_share))
    assert np.isnan(shares[-1]), shares
    assert np.isfinite(float(read_decay(state)["weight"].angle))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"rule": wd.rules.cautious()}, {"mask": [("a", 1.0), ("b", 0.1)]}, {"rounding": "stochastic"}],
    ids=["plain", "cautious", "mask", "stochastic"],
)
def test_a_decay_next_to_a_clip_is_a_number(options, dtype):
    """Clipping the global norm, multipliers per leaf, caution and roundings don't make a decay less of one."""
    p = {"a": {"kernel": normal(0, (64, 32), dtype)}, "b": {"kernel": jnp.ones((3, 3), dtype)}}
    g = {"a": {"kernel": normal(1, (64, 32), dtype)}, "b": {"kernel": -jnp.ones((3, 3), dtype)}}
    tx = monitor_decay(optax.chain(optax.clip_by_global_norm(1.0), wd.adamw(1e-2, weight_decay=0.1, **options)))
    info = read_decay(jax.jit(tx.update)(g, tx.init(p), p)[1])["weight"]
    decay = info.decay_share * info.update_norm / (1 - info.decay_share)  # ‖d‖; the gradient's part is nearly all of u
    expected = 1e-3 * np.linalg.norm(np.float32(p["a"]["kernel"]))
    assert 0.6 * expected < float(decay) < 1.1 * expected  # cautious: about half of the entries, √½ of the norm


@jax.custom_vjp
def halved(x):
    return x / 2


halved.defvjp(lambda x: (x / 2, None), lambda _, g: (g / 2,))


def test_wrappers_that_cannot_be_watched_say_the_right_order():
    p, sgdw = {"kernel": jnp.ones((2, 2))}, wd.sgdw(0.1, weight_decay=0.5)
    lookahead = lambda tx: optax.lookahead(tx, 5, 0.5)
    pair = optax.LookaheadParams.init_synced(p)
    for around in (lookahead(sgdw), optax.chain(optax.clip(1.0), lookahead(sgdw))):
        with pytest.raises(ValueError, match=r"around optax.lookahead.*as optax.lookahead\(wd_optax.monitor_decay\("):
            monitor_decay(around).init(pair)
    right = lookahead(monitor_decay(sgdw))
    _, state = right.update(optax.tree.zeros_like(p), right.init(pair), pair)
    assert float(read_decay(state)["weight"].decay_share) == pytest.approx(1.0, abs=1e-6)

    with pytest.raises(
        ValueError, match=r"as optax.contrib.schedule_free\(wd_optax.monitor_decay\(optimizer\), learning_rate"
    ):
        monitor_decay(optax.contrib.schedule_free(sgdw, 0.1)).init(p)

    cut = optax.GradientTransformation(lambda p: optax.EmptyState(), lambda u, s, p=None: (u["kernel"], s))
    with pytest.raises(ValueError, match=r"are not a tree like the parameters.* goes outside"):
        monitor_decay(cut).update(p, monitor_decay(cut).init(p), p)

    shrunk = optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u - halved(p), u, p))
    for call in (lambda f: f, jax.jit):
        with pytest.raises(
            TypeError, match=r"a jax.custom_vjp function.*jax.custom_jvp.*chain\(part, wd_optax.monitor_decay"
        ):
            call(monitor_decay(shrunk).update)(p, monitor_decay(shrunk).init(p), p)
    tx = optax.chain(shrunk, monitor_decay(optax.sgd(0.1)))
    assert float(read_decay(tx.update(p, tx.init(p), p)[1])["weight"].decay_share) == 0


# --- flat -------------------------------------------------------------------------------------------------------------


def test_flat_is_a_dict_of_floats_for_any_logger():
    p, tx = params(), monitor_decay(wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    state = tx.update(grads(p), tx.init(p), p)[1]
    flat, read = read_decay(state, flat=True), read_decay(state)
    assert list(flat)[:8] == [
        "weight/size",
        "weight/weight_norm",
        "weight/update_norm",
        "weight/decay_share",
        "weight/angle",
        "weight/removed",
        "weight/growth",
        "weight/weight_rms",
    ]
    assert {type(x) for x in flat.values()} == {float}
    assert {key.split("/")[0] for key in flat} == {"weight", "embedding", "bias", "norm"}  # the model has no other
    for key, x in flat.items():
        role, name = key.split("/")
        assert x == float(getattr(read[role], name))
    traced = jax.jit(lambda s: read_decay(s, flat=True))(state)
    same = {key: float(x) for key, x in traced.items() if key in flat}
    assert same == pytest.approx(flat, rel=1e-6)  # derived from the same norms, by another program
    assert all(float(x) == 0 for key, x in traced.items() if key not in flat)


def test_flat_of_many_runs_says_how_to_read_one():
    p, tx = params(), monitor_decay(wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    update = jax.jit(lambda scale: tx.update(jax.tree.map(lambda g: scale * g, grads(p)), tx.init(p), p)[1])
    state = jax.vmap(update)(jnp.array([1.0, 2.0, 3.0]))
    for read in (lambda s: read_decay(s, flat=True), jax.jit(lambda s: read_decay(s, flat=True))):
        with pytest.raises(ValueError, match=r"batched, shape \(3,\).*jax.tree.map\(lambda x: x\[0\], opt_state\)"):
            read(state)
    one = read_decay(jax.tree.map(lambda x: x[1], state), flat=True)
    assert one["weight/angle"] == pytest.approx(float(read_decay(update(2.0))["weight"].angle), rel=1e-6)
    inside = jax.jit(jax.vmap(lambda scale: read_decay(update(scale), flat=True)))(jnp.array([2.0]))
    assert float(inside["weight/angle"][0]) == pytest.approx(one["weight/angle"], rel=1e-6)


# --- the equilibrium ------------------------------------------------------------------------------------------------

FAN_IN, COLUMNS, ETA = 200, 32, 1e-2
RANDOM = {
    "adamw": (wd.adamw(ETA, weight_decay=0.5), {"optimizer": "adamw"}),
    "adamw b1=0": (wd.adamw(ETA, weight_decay=0.5, b1=0.0), {"optimizer": "adamw", "b1": 0.0}),
    "adamw schedule": (
        wd.adamw(ETA, weight_decay=5e-3, coupling="schedule"), {"optimizer": "adamw", "coupling": "schedule"}
    ),
    "sgdw": (wd.sgdw(ETA, weight_decay=0.5), {"optimizer": "sgdw"}),
    "sgdw momentum": (wd.sgdw(ETA, weight_decay=0.5, momentum=0.9), {"optimizer": "sgdw", "momentum": 0.9}),
    "sgd_l2 momentum": (wd.sgd_l2(ETA, weight_decay=0.05, momentum=0.9), {"optimizer": "sgd_l2", "momentum": 0.9}),
}  # fmt: skip


@pytest.fixture(scope="module")
def gaussian():
    return np.random.default_rng(0).standard_normal((3000, FAN_IN, COLUMNS), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def simulate(tx, w, gradients):
    """Random gradients of weights whose columns are scale-invariant; (norm of the columns in RMS, angle) per step."""

    def one(carry, g):
        w, state = carry
        norm = jnp.linalg.norm(w, axis=0, keepdims=True)
        g = (g - w / norm * jnp.sum(g * w / norm, axis=0, keepdims=True)) / norm
        w, state = step(tx, {"kernel": g}, state, {"kernel": w})
        info = read_decay(state)["weight"]
        return (w["kernel"], state), (info.weight_norm / COLUMNS**0.5, info.angle)

    carry = (w, tx.init({"kernel": w}))
    return jax.lax.scan(one, carry, gradients)[1]


@as_users_compile  # it runs for longer than it compiles
@pytest.mark.parametrize("name", RANDOM)
def test_the_equilibrium_is_what_random_gradients_reach(name, gaussian):
    tx, options = RANDOM[name]
    weight_decay = 5e-3 if options.get("coupling") else 0.05 if name.startswith("sgd_l2") else 0.5
    found = equilibrium(ETA, weight_decay=weight_decay, size=FAN_IN, gradient_rms=1.0, **options)
    w = normal(1, (FAN_IN, COLUMNS)) * (1.5 * found.norm / FAN_IN**0.5)
    norm, angle = map(np.asarray, simulate(monitor_decay(tx), w, gaussian))
    last = slice(1000, None)  # 2000 steps are 20 times `steps` or more, over 32 columns; seen: 2.6 % and 0.1 % at most
    assert norm[last].mean() == pytest.approx(found.norm, rel=0.05)
    assert angle[last].mean() == pytest.approx(found.angle, rel=0.05)

    power = 2 if name.startswith("adamw") else 4
    away = norm**power - found.norm**power
    fallen = away[round(float(found.steps))] / away[0]
    assert fallen == pytest.approx(np.exp(-1), abs=0.1)


def test_formulas_agree_with_each_other():
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-12)
    options = {"weight_decay": 0.1, "size": 100, "gradient_rms": 0.3}
    plain = equilibrium(0.01, optimizer="sgd_l2", **options)
    close(tuple(plain), tuple(equilibrium(0.01, optimizer="sgdw", **options)))  # SGD + L2 = SGDW
    found = equilibrium(0.01, optimizer="sgd_l2", momentum=0.9, **options)
    close(found.norm**4, 0.01 * 100 * 0.3**2 / (2 * 0.1 * 0.1))  # Kosson et al.
    close(found.angle**2, 2 * 0.01 * 0.1 / 1.9)
    adam = equilibrium(0.01, weight_decay=0.1, size=100)
    close((adam.norm**2, adam.angle**2), (0.01 * 100 / 0.2, 2 * 0.01 * 0.1 * 0.1 / 1.9))
    assert equilibrium(0.01, weight_decay=0.1).norm is None
    assert equilibrium(0.01, weight_decay=0.1, optimizer="sgdw", size=5).norm is None


def test_arrays_of_learning_rates():
    etas = np.array([1e-3, 1e-2])
    for array in (etas, jnp.asarray(etas)):
        found = equilibrium(array, weight_decay=0.1, size=100)
        for i, eta in enumerate(etas):
            alone = equilibrium(float(eta), weight_decay=0.1, size=100)
            np.testing.assert_allclose([x[i] for x in found], alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (
            {"optimizer": "lamb"},
            ValueError,
            "optimizer='lamb' has no formula here: use one of 'adamw', 'sgdw', 'sgd_l2', 'lion'",
        ),
        ({"momentum": 0.9}, ValueError, "momentum=0.9: adamw's momentum is called b1"),
        ({"b1": 0.9, "optimizer": "sgdw"}, ValueError, "b1=0.9: sgdw's momentum is called momentum"),
        ({"b1": 1.0}, ValueError, "b1=1.0 must be below 1"),
        (
            {"learning_rate": lambda t: 0.1},
            TypeError,
            r"learning_rate is a schedule: pass its value .*learning_rate\(step\)",
        ),
        ({"weight_decay": 0.0}, ValueError, "must be above 0: without decay the norm grows"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay=-1.0 must be finite and not negative"),
        ({"weight_decay": 200.0}, ValueError, "removes 2 of each weight per step"),
        ({"optimizer": "sgd_l2", "coupling": "schedule"}, ValueError, "coupling='schedule': sgd_l2 adds λ"),
        ({"coupling": "linear"}, ValueError, "coupling='linear' is not a coupling"),
    ],
)
def test_bad_input_is_refused_with_its_fix(bad, error, says):
    arguments = {"learning_rate": 0.01, "weight_decay": 0.1} | bad
    with pytest.raises(error, match=says):
        equilibrium(arguments.pop("learning_rate"), **arguments)


# --- Slices ----------------------------------------------------------------------------------------------------------


def test_with_slices_the_angle_of_a_role_is_the_mean_over_its_weights():
    """In one vector a small weight that turns by 0.3 is hidden by a large one that turns by 0.01."""
    base, across = jnp.array([[[1.0, 0.0]]]), jnp.array([[[0.0, 1.0]]])
    sizes = jnp.array([100.0, 1.0, 0.0])[:, None, None]  # the last has no direction and isn't counted
    steps = jnp.array([100 * np.tan(0.01), np.tan(0.3), 0.5], jnp.float32)[:, None, None]
    p = {"blocks": {"kernel": sizes * base}, "head": {"kernel": 2 * across[0]}, "steps": jnp.arange(2)}
    u = {"blocks": {"kernel": steps * across}, "head": {"kernel": 2 * base[0]}, "steps": None}

    def info(slices):
        tx = monitor_decay(optax.identity(), slices=slices)
        return read_decay(tx.update(u, tx.init(p), p)[1])["weight"]

    one, sliced, leaves = info(None), info([("blocks", 1)]), info([("head", 0)])
    assert float(sliced.angle) == pytest.approx((0.01 + 0.3 + np.pi / 4) / 3, rel=1e-5)  # float32's tan
    stack = np.arctan(np.linalg.norm(steps) / np.linalg.norm(sizes))
    assert float(leaves.angle) == pytest.approx((stack + np.pi / 4) / 2, rel=1e-5)
    assert float(one.angle) < 0.05
    for other in (sliced, leaves):
        chex.assert_trees_all_close(other._replace(angle=0), one._replace(angle=0), rtol=1e-6)


def test_slices_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="slices rule 'nothing' matches no parameter"):
        monitor_decay(optax.identity(), slices=[("nothing", 1)]).init(params())
    with pytest.raises(TypeError, match="slices='blocks'"):
        monitor_decay(optax.identity(), slices="blocks")
