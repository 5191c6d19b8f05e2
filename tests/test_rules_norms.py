"""Rules with norms, and gradients of penalties: float64 oracles, slices, shards, bytes, and what users do to them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import jitted, step
from helpers import assert_same_bits
from jax.sharding import NamedSharding, PartitionSpec
from test_bytes import traffic

import wd_optax as wd

LR, WD, STEPS = 0.05, 2.0, 24
C = LR * WD  # 10 % per step
SLICES = [("stack", 1), ("heads", (1,))]
rules = wd.rules


def tree(dtype=jnp.float32):
    """Two matrices in a stack, two heads that aren't leading, and a matrix."""
    normal = lambda seed, *shape: jnp.array(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)
    return {"stack": normal(0, 2, 3, 4), "heads": 0.1 * normal(1, 3, 2, 4), "kernel": normal(2, 4, 4)}


def gradient(p, t, outward=0.5):
    """Varying gradients that push outward: each step makes the weights about `outward`·η longer."""
    random = np.random.default_rng(t)  # NumPy's, because eager random numbers of JAX take longer than the tests

    def pushed(x):
        g = 0.1 * random.standard_normal(x.shape) - outward * np.asarray(x, complex if jnp.iscomplexobj(x) else float)
        return jnp.asarray(g, x.dtype)

    return jax.tree.map(pushed, p)


def weights(name, leaf):
    """The weights that a leaf holds, apart."""
    return {"stack": lambda x: list(x), "heads": lambda x: [x[:, i] for i in range(x.shape[1])]}.get(
        name, lambda x: [x]
    )(leaf)


# --- Oracles: one weight, in NumPy, from the formulas -----------------------------------------------------------------


def norm_oracle(radius, ratio=1.0):
    def start(p0):
        size = ratio * np.linalg.norm(p0) if radius == "init" else radius
        return lambda p, s, t: p * (1 - size / np.linalg.norm(p))

    return start


def constrained_oracle(kappa, mu, *, ratio=1.0, steps=0, beta=0.9, per_entry=False):
    """Also says what the multiplier is, for the tests of the bound."""

    def start(p0):
        bound = {"init": ratio * 0.5 * np.sum(p0**2)}.get(kappa, np.inf if isinstance(kappa, str) else kappa)
        memory = {"bound": bound, "lagrange": 0.0, "smoothed": 0.0, "slope": 0.0}

        def direction(p, s, t):
            m, q = memory, p + s
            size = 0.5 * np.sum(q**2)
            if np.isfinite(m["bound"]):
                grown = m["lagrange"] + mu / (q.size if per_entry else 1) * (size - m["bound"])
                m["lagrange"] = min(max(grown, 0.0), max(1 - np.sqrt(m["bound"] / size) / 2, 0) / C)
            smoothed = beta * m["smoothed"] + (1 - beta) * size
            slope = smoothed - m["smoothed"]
            warm = kappa == "warm" and t + 1 >= steps
            bends = kappa == "inflection" and t + 1 > 3 * steps and slope < m["slope"]
            if np.isinf(m["bound"]) and (warm or bends):
                m["bound"] = ratio * size
            m.update(smoothed=smoothed, slope=slope)
            return m["lagrange"] * q

        return direction

    return start


stateless = lambda f: lambda p0: lambda p, s, t: f(p)
# rule -> (the rule, its oracle per weight)
CASES = {
    "norm init": (rules.toward_norm("init", ratio=0.7), norm_oracle("init", 0.7)),
    "norm 2": (rules.toward_norm(4.0, ratio=0.5), norm_oracle(2.0)),
    "CPR init": (rules.constrained("init", update_rate=0.02), constrained_oracle("init", 0.02)),
    "CPR ratio, per entry": (
        rules.constrained("init", ratio=0.8, update_rate=0.5, per_entry=True),
        constrained_oracle("init", 0.5, ratio=0.8, per_entry=True),
    ),
    "CPR number": (rules.constrained(0.2, ratio=2.0, update_rate=3.0), constrained_oracle(0.4, 3.0)),
    "CPR warm": (rules.constrained("warm", steps=6, ratio=0.9), constrained_oracle("warm", 1.0, ratio=0.9, steps=6)),
    "CPR inflection": (
        rules.constrained("inflection", steps=3, smoothing=0.5),
        constrained_oracle("inflection", 1.0, steps=3, beta=0.5),
    ),
    "l1": (rules.l1(), stateless(np.sign)),
    "elastic": (rules.elastic(0.3), stateless(lambda p: 0.3 * np.sign(p) + 0.7 * p)),
    "group": (rules.group(), stateless(lambda p: p / np.linalg.norm(p))),
    "group rows": (rules.group(axis=0), None),  # its own test: rows of a stack aren't its layers'
}
NORMS = ["norm init", "CPR init", "CPR inflection", "group", "group rows"]


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1]])
def test_a_float64_oracle_per_weight(name, x64):
    """24 steps of SGD with varying gradients, in one compiled loop; float64 rounds 1e-16, 24 times."""
    rule, oracle = CASES[name]
    p = tree(jnp.float64)
    tx = wd.sgdw(LR, weight_decay=WD, mask=None, rule=rule, slices=SLICES)
    gradients = jax.tree.map(lambda *g: jnp.stack(g), *[gradient(p, t) for t in range(STEPS)])
    one = lambda carry, g: (step(tx, g, carry[1], carry[0]), None)
    (end, _), _ = jax.jit(lambda carry: jax.lax.scan(one, carry, gradients))((p, tx.init(p)))
    for leaf in p:
        for i, want in enumerate(weights(leaf, np.asarray(p[leaf]))):
            r = oracle(want)
            for t in range(STEPS):
                s = -LR * weights(leaf, np.asarray(gradients[leaf][t]))[i]
                want = want + s - C * r(want, s, t)
            np.testing.assert_allclose(weights(leaf, np.asarray(end[leaf]))[i], want, rtol=0, atol=1e-10)


def test_groups_of_rows_in_float64(x64):
    p = tree(jnp.float64)
    tx = wd.sgdw(LR, weight_decay=WD, mask=None, rule=rules.group(axis=-1), slices=SLICES)
    want, state = jax.tree.map(np.asarray, p), tx.init(p)
    one = jax.jit(lambda g, s, p: step(tx, g, s, p))
    for t in range(STEPS):
        g = gradient(tree(jnp.float64), t)
        p, state = one(g, state, p)
        for leaf, keep in (("stack", (0, 2)), ("heads", (1, 2)), ("kernel", (1,))):
            others = tuple(i for i in range(want[leaf].ndim) if i not in keep)
            r = want[leaf] / np.sqrt(np.sum(want[leaf] ** 2, axis=others, keepdims=True))
            want[leaf] = want[leaf] - LR * np.asarray(g[leaf]) - C * r
    chex.assert_trees_all_close(p, want, rtol=0, atol=1e-10)


# --- Slices and shards ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_a_stack_is_its_separate_weights(name):
    """Both in one tree, to 1e-5 of a step: float32 rounds a norm to 1e-7, and a step is 5 % of the weights."""
    stack, heads, rule = tree()["stack"], tree()["heads"], CASES[name][0]
    p = {"stack": stack, "heads": heads}
    p |= {f"layer{i}": x for i, x in enumerate(stack)} | {f"head{i}": heads[:, i] for i in range(2)}
    if name == "group rows":  # axis 0 of a stack isn't axis 0 of its layers: count from the end
        rule, p = rules.group(axis=-2), {key: x for key, x in p.items() if "head" not in key}
    slices = [rule for rule in SLICES if rule[0] in p]
    joined = lambda g: (
        g
        | {f"layer{i}": x for i, x in enumerate(g["stack"])}
        | ({f"head{i}": g["heads"][:, i] for i in range(2)} if "heads" in g else {})
    )
    tx = wd.sgdw(LR, weight_decay=WD, mask=None, rule=rule, slices=slices)
    gradients = [joined(gradient(p, t)) for t in range(STEPS)]
    one = lambda carry, g: (step(tx, g, carry[1], carry[0]), None)
    loop = jax.jit(lambda carry, g: jax.lax.scan(one, carry, g))
    (end, _), _ = loop((p, tx.init(p)), jax.tree.map(lambda *g: jnp.stack(g), *gradients))
    for i in range(2):
        np.testing.assert_allclose(end["stack"][i], end[f"layer{i}"], rtol=0, atol=1e-5 * C)
        if "heads" in p:
            np.testing.assert_allclose(end["heads"][:, i], end[f"head{i}"], rtol=0, atol=1e-5 * C)


@pytest.mark.parametrize("name", ["norm init", "CPR init", "group rows"])
def test_one_device_is_eight(name):
    """FSDP (rows), tensor (columns) and layers over devices, to 1e-5 of a step: float32 adds partial sums."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    normal = lambda seed, *shape: jnp.array(np.random.default_rng(seed).standard_normal(shape, np.float32))
    p = {"rows": normal(0, 16, 8), "columns": normal(1, 8, 16), "stack": normal(2, 8, 4, 4)}
    specs = {"rows": PartitionSpec("x"), "columns": PartitionSpec(None, "x"), "stack": PartitionSpec("x")}
    placed = {key: jax.device_put(x, NamedSharding(mesh, specs[key])) for key, x in p.items()}
    tx = wd.sgdw(LR, weight_decay=WD, mask=None, rule=CASES[name][0], slices=[("stack", 1)])

    def train(p):
        one = lambda carry, _: (step(tx, jax.tree.map(lambda x: jnp.cos(x) - 0.5 * x, carry[0]), *carry[::-1]), None)
        return jax.lax.scan(one, (p, tx.init(p)), length=6)[0][0]

    alone, sharded = jax.jit(train)(p), jax.jit(train)(placed)
    assert len(sharded["rows"].sharding.device_set) == 8
    chex.assert_trees_all_close(sharded, alone, rtol=0, atol=1e-5 * C * 4)  # |p| ≤ 4


# --- The laws of each rule --------------------------------------------------------------------------------------------


def test_norms_reach_r_at_the_rate_of_decay(x64):
    """‖p‖ − R = (1 − c)ᵗ·(‖p₀‖ − R), from above and below, to 1e-12: float64 rounds 1e-16."""
    p = tree(jnp.float64)
    tx = wd.sgdw(LR, weight_decay=WD, mask=None, rule=rules.toward_norm(2.0), slices=SLICES)
    state, sizes = tx.init(p), []
    for _ in range(STEPS):
        sizes.append([np.linalg.norm(w) for leaf in sorted(p) for w in weights(leaf, np.asarray(p[leaf]))])
        p, state = jitted(tx)(optax.tree.zeros_like(p), state, p)
    assert min(sizes[0]) < 2 < max(sizes[0])
    want = 2 + (np.array(sizes[0]) - 2) * (1 - C) ** np.arange(STEPS)[:, None]
    np.testing.assert_allclose(sizes, want, rtol=0, atol=1e-12)


def test_a_weight_of_norm_zero_stays_and_tiny_ones_are_finite():
    p = {"zero": jnp.zeros((2, 2)), "tiny": jnp.full((2, 2), 1e-18), "scalar": jnp.float32(3.0), "none": None}
    p["empty"] = jnp.zeros((0, 3))
    for rule in (rules.toward_norm(1.0), rules.group(), rules.constrained(1e-3)):
        tx = wd.sgdw(LR, weight_decay=WD, mask=None, rule=rule)
        updates, _ = jax.jit(tx.update)(optax.tree.zeros_like(p), tx.init(p), p)
        chex.assert_tree_all_finite(updates)
        assert float(jnp.abs(updates["zero"]).max()) == 0
    grown = wd.sgdw(LR, weight_decay=WD, mask=None, rule=rules.toward_norm(1.0))
    updates, _ = grown.update(optax.tree.zeros_like(p), grown.init(p), p)
    assert float(jnp.linalg.norm(updates["tiny"])) == pytest.approx(C)  # 10 % of the way to 1
    assert float(updates["scalar"]) == pytest.approx(-0.1 * (3 - 1))


def test_the_bound_holds_and_the_norm_swings_at_the_documented_rate(x64):
    """Steps that make p 1 % longer: λ settles where c·λ is what they add, around the bound."""
    p, kappa = {"kernel": jnp.full((4, 4), 0.5)}, 2.0
    mu = 0.01 / (2 * kappa * C)  # √(2κ·c·μ) = 0.1 radians per step: 63 steps per turn
    tx = wd.sgdw(LR, weight_decay=WD, rule=rules.constrained(kappa, update_rate=mu))

    def one(carry, _):
        p, state = carry
        p, state = step(tx, jax.tree.map(lambda x: -0.01 / LR * x, p), state, p)
        size = jnp.sum(p["kernel"] ** 2) / 2
        return (p, state), (size, optax.tree.get(state, "lagrange")["kernel"][0, 0])

    _, (sizes, lagrange) = jax.jit(lambda carry: jax.lax.scan(one, carry, length=400))((p, tx.init(p)))
    above = np.asarray(sizes) > kappa
    ups = np.flatnonzero(above[1:] & ~above[:-1])
    assert np.mean(np.diff(ups)) == pytest.approx(2 * np.pi / 0.1, rel=0.05)  # small swings: the next order is 1 %
    assert np.mean(sizes[-252:]) == pytest.approx(kappa, rel=0.02)  # over four turns
    assert C * float(np.mean(lagrange[-252:])) == pytest.approx(1 - 1 / 1.01, rel=0.02)


def test_a_bound_far_below_the_norm_neither_flips_nor_kills_the_weights():
    """The authors' code changes the sign of p here; without the cut of λ, p would shrink to 1e-7 of its bound."""
    p = {"kernel": jnp.full((10, 10), 10.0)}
    tx = wd.sgdw(LR, weight_decay=WD, rule=rules.constrained(0.5, update_rate=1.0))
    state, sizes = tx.init(p), []
    for _ in range(60):
        before = p
        p, state = jitted(tx)(jax.tree.map(lambda x: -0.1 * x, p), state, p)
        removed = C * float(optax.tree.get(state, "lagrange")["kernel"][0, 0])
        assert 0 <= removed < 1
        assert bool(jnp.all(p["kernel"] * before["kernel"] > 0))
        sizes.append(float(jnp.linalg.norm(p["kernel"])))
    assert min(sizes) > 0.499  # half of √(2κ) = 1, less a rounding
    assert sizes[-1] < 1.2


def authors(p, gradients, lr, mu, method, parameter, delay=3, smoothing=0.5):
    """Their update of one weight, by formula: R = Σp², μ per entry, −2λp after the step; κ as their methods set it."""
    bound = {"dependent": parameter * np.sum(p**2)}.get(method)
    lagrange = average = previous = slope = 0.0
    for step_number, g in enumerate(gradients, 1):
        p = p - lr * g
        size = np.sum(p**2)
        if method == "inflection_point" and bound is None:
            average = smoothing * average + (1 - smoothing) * size
            if step_number > delay:
                now = average - previous
                bound = size if step_number > 3 * delay and slope > now else None
                previous, slope = average, now if step_number > 2 * delay else slope
        elif method == "warm_start" and step_number <= parameter:
            bound = size if step_number == parameter else None
        else:
            lagrange = max(0.0, lagrange + mu / p.size * (size - bound))
            p = p - 2 * lagrange * p
    return p


@pytest.mark.parametrize(
    ("method", "kappa", "options"),
    [
        ("dependent", "init", {"ratio": 1.1}),
        ("warm_start", "warm", {"steps": 5}),
        ("inflection_point", "inflection", {"steps": 3, "smoothing": 0.5}),
    ],
)
def test_update_rate_4_over_c_per_entry_is_the_authors_update(method, kappa, options, x64):
    p = {"kernel": tree(jnp.float64)["kernel"]}
    gradients = [gradient(p, t) for t in range(40)]
    rule = rules.constrained(kappa, update_rate=4 * 0.02 / C, per_entry=True, **options)
    tx = wd.sgdw(LR, weight_decay=WD, rule=rule)
    one = lambda carry, g: (step(tx, g, carry[1], carry[0]), None)
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients)
    (end, state), _ = jax.jit(lambda carry: jax.lax.scan(one, carry, stacked))((p, tx.init(p)))
    parameter = options.get("ratio", options.get("steps"))
    want = authors(np.asarray(p["kernel"]), np.asarray(stacked["kernel"]), LR, 0.02, method, parameter)
    assert float(optax.tree.get(state, "lagrange")["kernel"][0, 0]) > 0
    np.testing.assert_allclose(end["kernel"], want, rtol=0, atol=1e-10)


def test_a_bound_on_the_distance_from_a_start_is_a_chain():
    """constrained(κ) after toward: ½‖p − p₀‖² ≤ κ. "init" there would be of p₀, and is refused."""
    p = tree()
    chain = lambda rule: wd.sgdw(LR, weight_decay=WD, mask=None, rule=optax.chain(rules.toward("init"), rule))
    tx = chain(rules.constrained(0.02, update_rate=50.0))

    def one(carry, _):
        q, state = step(tx, jax.tree.map(lambda x: jnp.full_like(x, 0.1), p), carry[1], carry[0])
        return (q, state), jax.tree.map(lambda q, p: jnp.sum((q - p) ** 2) / 2, q, p)

    _, sizes = jax.jit(lambda carry: jax.lax.scan(one, carry, length=400))((p, tx.init(p)))
    for leaf, x in p.items():  # ‖q − p₀‖ settles at √(2κ), and q is one step of η·0.1 per entry ahead
        distance = np.sqrt(2 * 0.02) - LR * 0.1 * np.sqrt(x.size)
        assert float(jnp.mean(sizes[leaf][-200:])) == pytest.approx(distance**2 / 2, rel=0.01)
    for rule in (rules.constrained("init"), rules.toward_norm("init")):
        with pytest.raises(ValueError, match=r"comes after another rule.*it goes first, or takes a number"):
            chain(rule).init(p)


# --- Types, states, programs, memory ----------------------------------------------------------------------------------


def mixed():
    """A tree as users have it: bfloat16, a scalar, None, and a leaf without a gradient's worth of entries."""
    p = tree() | {"low": tree(jnp.bfloat16)["kernel"], "frozen": None, "temperature": jnp.float32(2.0)}
    return p | {"complex": jax.lax.complex(tree()["kernel"], tree()["kernel"])}


@pytest.mark.parametrize("name", ["norm init", "norm 2", "CPR warm", "CPR inflection", "elastic", "group"])
def test_states_are_stable_arrays_that_resume_donated_in_one_program(name):
    tx = wd.sgdw(LR, weight_decay=WD, mask=None, rule=CASES[name][0], slices=SLICES)
    chex.clear_trace_counter()
    one = jax.jit(chex.assert_max_traces(lambda g, s, p: step(tx, g, s, p), n=1), donate_argnums=(1, 2))
    p, start = mixed(), mixed()
    state = first = tx.init(p)
    shapes = jax.eval_shape(lambda: first)
    assert all(isinstance(x, jax.Array) and x.dtype.itemsize >= 4 for x in jax.tree.leaves(first))
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, jax.eval_shape(tx.init, start))
    gradients = [gradient(start, t) for t in range(6)]
    for g in gradients[:3]:
        p, state = one(g, state, p)
    saved = jax.tree.map(np.array, (p, state))  # a checkpoint: NumPy arrays, and nothing else
    for g in gradients[3:]:
        p, state = one(g, state, p)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, shapes)
    again, state = jax.tree.map(jnp.array, saved)
    for g in gradients[3:]:
        again, state = one(g, state, again)
    assert_same_bits(p, again)
    chex.assert_tree_all_finite(p)
    assert float(jnp.abs(p["low"].astype(jnp.float32) - start["low"].astype(jnp.float32)).max()) > 1e-3


@pytest.mark.parametrize("name", ["norm init", "CPR init", "CPR inflection", "group"])
def test_low_precision_norms_are_float32(name):
    """A bfloat16 leaf of 4096 ones: added up in bfloat16, its squared norm would be 256."""
    p = {"kernel": jnp.ones((64, 64), jnp.bfloat16)}
    tx = wd.sgdw(LR, weight_decay=WD, rule=CASES[name][0])
    state = tx.init(p)
    updates, state = tx.update({"kernel": jnp.zeros((64, 64), jnp.float32)}, state, p)
    wanted = {"norm init": 0.1 * 0.3, "CPR init": 0.0, "CPR inflection": 0.0, "group": 0.1 / 64}[name]
    np.testing.assert_allclose(updates["kernel"], -wanted, rtol=1e-6)
    assert {x.dtype for x in jax.tree.leaves(state.rule)} <= {jnp.dtype("float32")}


SWEPT = {
    "ratio of a norm": lambda x: rules.toward_norm(ratio=x),
    "norm": lambda x: rules.toward_norm(x),
    "kappa": lambda x: rules.constrained(x),
    "update_rate": lambda x: rules.constrained("init", update_rate=x, ratio=0.5),
    "l1_ratio": lambda x: rules.elastic(x),
}


@pytest.mark.parametrize("name", SWEPT)
def test_arguments_are_swept_with_vmap(name):
    p, values = {"kernel": tree()["kernel"]}, jnp.array([0.25, 0.75], jnp.float32)

    def train(value):
        tx = wd.sgdw(LR, weight_decay=WD, rule=SWEPT[name](value))
        one = lambda carry, _: (step(tx, jax.tree.map(lambda x: -0.5 * x, p), carry[1], carry[0]), None)
        return jax.lax.scan(one, (p, tx.init(p)), length=4)[0][0]["kernel"]

    together = jax.jit(jax.vmap(train))(values)
    alone = jax.jit(train)  # the batched program may contract a·b + c differently: 4 steps of a few roundings
    np.testing.assert_allclose(together[0], alone(values[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together[1], alone(values[1]), rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(together[0] - together[1]).max()) > 1e-3


@pytest.mark.parametrize(
    ("rule", "options"), [(rules.toward_norm, {"norm": 2.0}), (rules.constrained, {"kappa": 1.0}), (rules.elastic, {})]
)
def test_inside_inject_hyperparams(rule, options):
    """Where every default number becomes an array."""
    p = {"kernel": tree()["kernel"]}
    ends = []
    for r in (rule(**options), optax.inject_hyperparams(rule)(**options)):
        tx, q = wd.sgdw(LR, weight_decay=WD, rule=r), p
        state = tx.init(p)
        for t in range(2):
            q, state = step(tx, gradient(p, t), state, q)
        ends.append(q)
    chex.assert_trees_all_close(*ends, rtol=1e-6)


@pytest.mark.parametrize(("kappa", "options", "share"), [("warm", {"steps": 9}, 0), (7.5, {"update_rate": 0.1}, 1)])
def test_the_monitor_reads_the_decay_by_lambda(kappa, options, share):
    """Finite before a bound is known, when κ is infinite, and beside a weight of norm 0."""
    p = {"a": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.zeros((4, 4))}}
    tx = wd.monitor_decay(wd.sgdw(LR, weight_decay=WD, rule=rules.constrained(kappa, **options)))
    g = jax.tree.map(lambda x: 1e-4 * x, p)
    read = wd.read_decay(jax.jit(tx.update)(g, tx.init(p), p)[1], flat=True)
    np.testing.assert_allclose(read["weight/decay_share"], share, atol=2e-3)  # a step of 5e-6, a decay of 5e-3
    assert read["weight/update_norm"] == pytest.approx(4 * (LR * 1e-4 + share * C * 0.1 * 0.5), rel=1e-3)


def test_kappa_and_lagrange_are_found_per_slice():
    p = tree()
    state = wd.sgdw(LR, weight_decay=WD, mask=None, rule=rules.constrained(), slices=SLICES).init(p)
    shapes = {"stack": (2, 1, 1), "heads": (1, 2, 1), "kernel": (1, 1)}
    for field in ("lagrange", "kappa"):
        assert jax.tree.map(jnp.shape, optax.tree.get(state, field)) == shapes
    np.testing.assert_allclose(
        optax.tree.get(state, "kappa")["stack"].ravel(), jnp.sum(p["stack"] ** 2, (1, 2)) / 2, rtol=1e-6
    )


@functools.cache
def traffic_of(optimizer, rule=None):
    return traffic(getattr(wd, optimizer)(LR, weight_decay=WD, mask=None, rule=rule))


OLDER = 8 * (jax.__version_info__ < (0, 10))  # XLA wrote a norm's input and read it again


@pytest.mark.quick_compile(False)
@pytest.mark.optax_promotes
@pytest.mark.parametrize("optimizer", ["sgdw", "adamw"])
@pytest.mark.parametrize(
    ("rule", "reads"),
    [
        (rules.l1(), 0),  # elementwise: fused into the step
        (rules.elastic(0.3), 0),
        (rules.cautious(strict=True), 0),
        (rules.toward_average(0.9), 16),  # 8 and, as a CPU's loop writes one array, p and the average once more
        (rules.toward_norm(1.0), 4 + OLDER),  # a norm reads the leaf once more
        (rules.toward_norm("init"), 4 + OLDER),
        (rules.group(), 4 + OLDER),
    ],
)
def test_bytes_per_parameter(optimizer, rule, reads):
    on, off = traffic_of(optimizer, rule), traffic_of(optimizer)
    assert on.bytes - off.bytes == pytest.approx(reads, abs=0.05)
    assert on.copies == 0
    assert on.not_aliased == 0


@pytest.mark.quick_compile(False)
@pytest.mark.optax_promotes
@pytest.mark.parametrize(("optimizer", "most"), [("sgdw", 20 + OLDER), ("adamw", 28 + OLDER)])
def test_constrained_norms_of_p_plus_step_write_it_once(optimizer, most):
    """The sum is over q = p + step, which XLA's CPU compiler writes to memory and reads for the sum and the decay."""
    on, off = traffic_of(optimizer, rules.constrained("warm", steps=3)), traffic_of(optimizer)
    assert 4 < on.bytes - off.bytes < most + 0.05
    assert on.copies == 0
    assert on.not_aliased == 0


# --- Wrong arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: rules.toward_norm("start"), ValueError, r"norm='start': use \"init\""),
        (lambda: rules.toward_norm(-1.0), ValueError, "norm=-1.0 must be finite and not negative"),
        (lambda: rules.toward_norm(ratio=lambda t: 1.0), TypeError, "ratio.*takes no schedule"),
        (lambda: rules.toward_norm(jnp.ones(3)), ValueError, r"norm has shape \(3,\)"),
        (lambda: rules.constrained("dependent"), ValueError, 'use "init", "warm", "inflection" or a number'),
        (lambda: rules.constrained("warm"), ValueError, "steps=None.*at least 1, as steps=200"),
        (lambda: rules.constrained("inflection", steps=0), ValueError, "steps=0"),
        (lambda: rules.constrained(1.0, steps=10), ValueError, "steps=10 has no effect with kappa=1.0"),
        (lambda: rules.constrained(update_rate=-1.0), ValueError, "update_rate=-1.0 must be finite"),
        (lambda: rules.constrained(smoothing=1.0), ValueError, "smoothing=1.0 must be below 1"),
        (lambda: rules.elastic(1.5), ValueError, r"pass l1_ratio in \[0, 1\]"),
        (lambda: rules.group("rows"), TypeError, "expected an int or a tuple of ints"),
        (lambda: rules.group((0, 1.5)), TypeError, "expected an int or a tuple of ints"),
    ],
)
def test_wrong_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_an_axis_that_a_leaf_does_not_have():
    tx = wd.sgdw(LR, weight_decay=WD, mask=None, rule=rules.group(axis=1))
    with pytest.raises(ValueError, match=r"axis=\(1,\) is out of range for 'bias' of shape \(3,\)"):
        tx.init({"bias": jnp.ones(3), "kernel": jnp.ones((2, 2))})
