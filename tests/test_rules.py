"""Rules: every transform and optimizer × the catalogue against NumPy; what a rule sees, keeps and may not do."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import (
    LEARNING_RATE,
    MASKS,
    NAMES,
    RATE,
    RULES,
    WEIGHT_DECAY,
    applies,
    build,
    grads,
    half,
    in_pairs,
    optimizer,
    params,
    run,
    run_each,
    step,
    toward_average,
    without_decay,
)
from helpers import assert_same_bits

import wd_optax as wd
from wd_optax.rules.toward import AnchorState

STEPS = 3


def flat(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


# r(p) from (p, p at init, the step without decay, the gradient, the inner state's floats, the averages so far)
ORACLES = {
    "none": lambda p, p0, s, g, inner, a: p,
    "identity": lambda p, p0, s, g, inner, a: p,
    "init": lambda p, p0, s, g, inner, a: p - p0,
    "tree": lambda p, p0, s, g, inner, a: p - 0.5 * p0,
    "cautious": lambda p, p0, s, g, inner, a: np.where(p * s <= 0, p, 0),
    "init, cautious": lambda p, p0, s, g, inner, a: np.where((p - p0) * s <= 0, p - p0, 0),
    "clip": lambda p, p0, s, g, inner, a: np.clip(p, -0.5, 0.5),
    "average": lambda p, p0, s, g, inner, a: p - a,
    "gradient": lambda p, p0, s, g, inner, a: np.where(g > 0, p, 0),
    "inner state": lambda p, p0, s, g, inner, a: p / (1 + inner),
    "norm": lambda p, p0, s, g, inner, a: p * (1 - 0.5 * np.linalg.norm(p0) / np.linalg.norm(p)),
    "elastic": lambda p, p0, s, g, inner, a: 0.25 * np.sign(p) + 0.75 * p,
    "group": lambda p, p0, s, g, inner, a: p / np.linalg.norm(p),
    "moving average": lambda p, p0, s, g, inner, a: p - a,
}


@functools.cache
def steps_without_decay(base):
    """Its updates, the gradients, and the sum of squares of its state, at each step."""
    start, found = params(), []
    state = base.init(start)
    for i in range(STEPS):
        gradients = grads(start, i)
        updates, state = base.update(gradients, state, start)
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        found.append((flat(updates), flat(gradients), sum(np.sum(np.square(np.float64(x))) for x in floats)))
    return found


def expected(name, rule, mask):
    """The parameters after `STEPS` steps, in float64, for optimizers whose step without decay doesn't depend on p."""
    multipliers = MASKS[mask][1]
    p = p0 = averages = flat(params())
    for updates, gradients, inner in steps_without_decay(without_decay(name)):
        averages = [0.5 * a + 0.5 * x for a, x in zip(averages, p, strict=True)]
        seen = zip(p, p0, updates, gradients, averages, multipliers, strict=True)
        p = [after_one(name, x, s, RATE * m, ORACLES[rule](x, x0, s, g, inner, a)) for x, x0, s, g, a, m in seen]
    return p


def after_one(name, p, s, c, r):
    return p + (s - c * r) / (1 + c) if name == "proximal" else p + s - c * r


@functools.cache
def ends_by_rule(name):
    """The parameters after `STEPS` steps with each rule, in one compiled loop: it holds states to their structures."""
    p = params()
    txs = {r: optimizer(name, mask=MASKS["rules"][0], rule=make(p)) for r, make in RULES.items() if applies(name, r)}
    stacked = jax.tree.map(lambda *g: np.stack(g), *(grads(p, i) for i in range(STEPS)))
    starts = {rule: (p, tx.init(p)) for rule, tx in txs.items()}
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(starts))
    every = lambda carry, g: ({rule: step(txs[rule], g, state, q) for rule, (q, state) in carry.items()}, None)
    ends, _ = jax.jit(lambda carry, g: jax.lax.scan(every, carry, g))(starts, stacked)
    return {rule: flat(end) for rule, (end, _) in ends.items()}


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    ("name", "rule"),
    [(n, r) for n in NAMES for r in RULES if n != "adam_l2" and applies(n, r)],
)
def test_decay_goes_along_the_rule(name, rule):
    for got, want in zip(ends_by_rule(name)[rule], expected(name, rule, "rules"), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)  # 3 steps of a few roundings of 2⁻²⁴, |p| ≤ 4


@pytest.mark.optax_promotes
@pytest.mark.parametrize("rule", RULES)
def test_adam_l2_adds_the_rule_to_the_gradient(rule):
    p = params()
    tx = wd.adam_l2(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=None, rule=RULES[rule](p))
    adam, state = optax.adam(LEARNING_RATE), tx.init(p)
    inner = adam.init(p)
    update = jax.jit(tx.update)
    averages, q = flat(p), p
    for i in range(STEPS):
        g = grads(p, i)
        floats = [np.sum(np.square(np.float64(x))) for x in jax.tree.leaves((inner[0].mu, inner[0].nu))]
        averages = [0.5 * a + 0.5 * x for a, x in zip(averages, flat(q), strict=True)]
        seen = zip(flat(q), flat(p), flat(g), averages, strict=True)
        r = [ORACLES[rule](x, x0, -gx, gx, sum(floats), a) for x, x0, gx, a in seen]
        r = jax.tree.unflatten(jax.tree.structure(p), [jnp.asarray(x, jnp.float32) for x in r])
        theirs, inner = adam.update(jax.tree.map(lambda g, r: g + WEIGHT_DECAY * r, g, r), inner, q)
        ours, state = update(g, state, q)
        chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-6)  # Adam amplifies a rounding where g ≈ 0
        q = optax.apply_updates(q, theirs)


# --- The axes that rules replaced ------------------------------------------------------------------------------------


def written_out(direction, anchor, is_cautious):
    """Decay as it was before there were rules, written out: one sum per entry, and a gate around it."""

    def update(g, state, p):
        inner, start, lr, weight_decay = state  # λ and η are read from the state, or XLA folds them
        u, inner = direction.update(g, inner, p)
        down = jax.tree.map(jnp.negative, u)
        steps = jax.tree.map(lambda d: lr * d, down)

        def decay(s, p, d, a):
            toward = p - a if anchor else p
            k = -(weight_decay * lr)
            use = k != 0
            if is_cautious:
                use &= jnp.sign(d) * jnp.sign(toward) <= 0
            return jnp.where(use, s + k * toward, s)

        return jax.tree.map(decay, steps, p, down, start), (inner, start, lr, weight_decay)

    def init(p):
        rates = jnp.float32(LEARNING_RATE), jnp.float32(WEIGHT_DECAY)
        return direction.init(p), anchor(p) if anchor else jax.tree.map(jnp.copy, p), *rates

    return optax.GradientTransformation(init, update)


@pytest.mark.quick_compile(False)
@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    ("direction", "anchor", "is_cautious"), in_pairs(["sgd", "adam"], [None, "init", "tree"], [False, True])
)
def test_rules_are_bit_for_bit_what_anchor_and_cautious_were(direction, anchor, is_cautious):
    """Under jit, in vectorised loops, in float32."""
    p = grads({"kernel": jnp.zeros((64, 65))}, 9)
    make = {"sgd": (wd.sgdw, optax.identity()), "adam": (wd.adamw, optax.scale_by_adam())}[direction]
    rules = [] if anchor is None else [wd.rules.toward("init" if anchor == "init" else half(p))]
    rules += [wd.rules.cautious()] * is_cautious
    ours = make[0](LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=optax.chain(*rules) if rules else None)
    start = {None: None, "init": lambda p: jax.tree.map(jnp.copy, p), "tree": half}[anchor]
    theirs = written_out(make[1], start, is_cautious)
    ends = []
    for tx in (ours, theirs):
        one, q, state = jax.jit(lambda g, s, q, tx=tx: step(tx, g, s, q)), p, tx.init(p)
        for i in range(4):
            q, state = one(grads(p, i), state, q)
        ends.append(q)
    assert_same_bits(*ends)


# By the code before there were rules, at commit 9db7002: the loop of the test below with its `anchor=` and `cautious=`,
# from the parameters and the four gradients that the file holds.
GOLDENS = np.load(Path(__file__).parent / "goldens" / "anchor_cautious.npz")


@pytest.mark.optax_promotes
@pytest.mark.parametrize("case", sorted({key.rpartition("|")[0] for key in GOLDENS if not key.startswith("input|")}))
def test_rules_reproduce_the_numbers_of_anchor_and_cautious(case):
    """Four steps under jit, within a few units in the last place."""
    name, anchor, is_cautious = case.split("|")
    read = lambda which: jax.tree.map_with_path(
        lambda path, _: jnp.asarray(GOLDENS[f"input|{which}|{jax.tree_util.keystr(path)}"]), params()
    )
    p = read("params")
    tree = jax.tree.map(lambda x: 0.5 * x + 0.1, p)
    rules = {"none": [], "init": [wd.rules.toward("init")], "tree": [wd.rules.toward(tree)]}[anchor]
    rules += [wd.rules.cautious()] * (is_cautious == "True")
    tx = optimizer(name, mask=MASKS["rules"][0], rule=optax.chain(*rules) if rules else None)
    one, q, state = jax.jit(lambda g, s, q: step(tx, g, s, q)), p, tx.init(p)
    for i in range(4):
        q, state = one(read(i), state, q)
    for path, leaf in jax.tree.flatten_with_path(q)[0]:
        np.testing.assert_allclose(leaf, GOLDENS[f"{case}|{jax.tree_util.keystr(path)}"], rtol=1e-6, atol=1e-7)


# --- What a rule sees ------------------------------------------------------------------------------------------------


def spy(seen):
    def update(p, state, params=None, *, step):
        seen.append((p, step))
        return p, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@pytest.mark.optax_promotes
def test_what_a_rule_sees():
    p, g, seen = params(), grads(params()), []
    lr = lambda t: 0.5 / (1 + jnp.asarray(t, jnp.float32))
    tx = wd.adamw(lr, weight_decay=0.2, mask="weights", coupling="schedule", peak_learning_rate=0.5, rule=spy(seen))
    state = tx.update(g, tx.init(p), p)[1]
    seen.clear()
    _, new = tx.update(g, state, p)
    ((decaying, found),) = seen
    assert decaying["norms"]["scale"] == decaying["attn"]["bias"] == optax.MaskedNode()
    assert decaying["frozen"] is None
    chex.assert_trees_all_equal(decaying["attn"]["kernel"], p["attn"]["kernel"])
    chex.assert_trees_all_equal(found.gradients, g)
    chex.assert_trees_all_equal(found.inner_state, new.inner)
    assert int(found.count) == 1
    assert {k: float(v) for k, v in found.hyperparams.items()} == pytest.approx(
        {"learning_rate": 0.25, "weight_decay": 0.2, "peak_learning_rate": 0.5}
    )
    assert float(found.rate) == pytest.approx(0.1)  # λ·η_t/η_max
    base, _ = optax.adam(lr).update(g, (new.inner, optax.ScaleByScheduleState(jnp.asarray(1))), p)
    chex.assert_trees_all_equal_structs(found.updates, base)
    chex.assert_trees_all_close(jax.tree.map(lambda d: 0.25 * d, found.descent), found.updates, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("add_l2_to_loss", (True, True, False)), ("add_decayed_weights", (False, True, False)),
        ("shrink", (False, False, True)), ("proximal", (False, False, True)), ("with_decay", (True, False, True)),
        ("decoupled", (True, True, True)), ("coupled", (True, True, False)),
    ],
)  # fmt: skip
def test_what_is_known_where(name, known):
    p, g, seen = params(), grads(params()), []
    tx = build(name, mask="weights", rule=spy(seen))
    tx.update(g, tx.init(p), p)
    for _, found in seen:  # at init, and at the step
        assert tuple(x is not None for x in (found.gradients, found.descent, found.updates)) == known
    sees_c = ("shrink", "proximal", "with_decay", "decoupled")
    assert float(seen[-1][1].rate) == pytest.approx(RATE if name in sees_c else WEIGHT_DECAY)
    if not known[0]:
        with pytest.raises(ValueError, match="a tree of the rule's Step is None"):
            build(name, mask="weights", rule=RULES["gradient"](p)).init(p)


def test_leaves_without_a_gradient_have_zeros_in_the_step_and_do_not_decay():
    p, g, seen = params(), grads(params()), []
    g["embed"]["embedding"] = None
    tx = wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=optax.chain(wd.rules.cautious(), spy(seen)))
    updates, _ = tx.update(g, tx.init(p), p)
    assert updates["embed"]["embedding"] is None
    chex.assert_trees_all_equal(seen[-1][1].descent["embed"]["embedding"], jnp.zeros((5, 3)))


# --- What a rule keeps -----------------------------------------------------------------------------------------------


def test_an_anchor_is_kept_for_the_leaves_that_can_decay_in_their_types():
    p = params(jnp.bfloat16)
    state = wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=wd.rules.toward("init")).init(p)
    assert isinstance(state.rule, AnchorState)
    assert [x.dtype for x in jax.tree.leaves(state.rule)] == [jnp.bfloat16] * 2
    assert state.rule.anchor["attn"]["bias"] == optax.MaskedNode()
    assert optax.tree.get(state, "anchor")["embed"]["embedding"].shape == (5, 3)


@pytest.mark.parametrize("rule", ["identity", "cautious", "clip", "gradient", "inner state"])
def test_a_rule_without_arrays_leaves_the_state_as_it_is_without_a_rule(rule):
    p, g = params(), grads(params())
    make = lambda rule: wd.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=rule)
    with jax.numpy_dtype_promotion("standard"):
        state, plain = (make(rule).update(g, make(rule).init(p), p)[1] for rule in (RULES[rule](p), None))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, plain)


def test_a_state_takes_the_types_that_the_rule_returns_and_keeps_them():
    """A moving average of bfloat16 parameters is float32, for decay computes in float32."""
    p = params(jnp.bfloat16)
    tx = wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=None, rule=toward_average(0.9))
    state = tx.init(p)
    assert {x.dtype for x in jax.tree.leaves(state.rule)} == {jnp.dtype("float32")}
    new = tx.update(optax.tree.cast(grads(p), jnp.float32), state, p)[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_rules_compose_with_optax_s_wrappers():
    p, g = params(), grads(params())
    mask = {"embed": True, "attn": False, "norms": False, "frozen": None}
    labels = {"embed": "init", "attn": "cautious", "norms": "cautious", "frozen": None}
    parts = {"init": wd.rules.toward("init"), "cautious": wd.rules.cautious()}
    rules = {
        **parts,
        "none": None,
        "masked": optax.masked(wd.rules.toward("init"), mask),
        "partition": optax.partition(parts, labels),
        "injected": optax.inject_hyperparams(optax.clip)(max_delta=0.5),
        "clip": optax.clip(0.5),
    }
    txs = [wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=None, rule=rule) for rule in rules.values()]
    ends = dict(zip(rules, run_each(txs, p, g, STEPS), strict=True))
    chex.assert_trees_all_close(ends["injected"], ends["clip"], rtol=1e-6)
    chosen = lambda a, b: {
        "embed": ends[a]["embed"],
        "attn": ends[b]["attn"],
        "norms": ends[b]["norms"],
        "frozen": None,
    }
    chex.assert_trees_all_close(ends["masked"], chosen("init", "none"), rtol=1e-6)
    chex.assert_trees_all_close(ends["partition"], chosen("init", "cautious"), rtol=1e-6)
    assert float(jnp.abs(ends["init"]["embed"]["embedding"] - ends["none"]["embed"]["embedding"]).max()) > 1e-2


@pytest.mark.parametrize("mode", ["scan", "jit"])
def test_a_rule_s_own_hyperparameters_are_swept_with_vmap(mode):
    p, g = params(), grads(params())
    deltas = jnp.array([0.1, 0.5], jnp.float32)
    clipped = lambda delta: optax.stateless(lambda p, _: jax.tree.map(lambda x: jnp.clip(x, -delta, delta), p))
    train = lambda delta: run(wd.sgdw(0.1, weight_decay=0.5, rule=clipped(delta)), p, g, STEPS, mode)[0]
    together = jax.vmap(train)(deltas)
    for i, delta in enumerate(deltas):
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), train(delta), rtol=1e-6)


# --- What a rule may not do ------------------------------------------------------------------------------------------

stateless = lambda f: optax.stateless(lambda p, _: jax.tree.map(f, p))
BAD = {
    "several": ((wd.rules.toward("init"), wd.rules.cautious()), TypeError, r"optax\.chain\(\*rules\)"),
    "a gate around a gate": (
        optax.masked(
            optax.chain(wd.rules.cautious(), wd.rules.toward("init")), lambda p: jax.tree.map(lambda _: True, p)
        ),
        ValueError,
        "the anchor goes first",
    ),
    "another state": (
        optax.GradientTransformation(lambda p: jnp.zeros(()), lambda p, s, params=None: (p, s + jnp.ones(3))),
        ValueError,
        r"rule: update turns its state \(\) into \(3,\)",
    ),
    "the gate first": (optax.chain(wd.rules.cautious(), wd.rules.toward("init")), ValueError, "the anchor goes first"),
    "a word": ("init", TypeError, r"rule='init': a rule is an Optax transformation, as wd\.rules\.toward\('init'\)"),
    "not called": (
        wd.rules.cautious,
        TypeError,
        r"rule must be an Optax transformation.*call it, as cautious\(\.\.\.\)",
    ),
    "a function": (lambda p: p, TypeError, "rule must be an Optax transformation"),
    "a shape": (stateless(lambda p: p[:1]), ValueError, r"rule returned shape \(1, 2, 4\) at 'attn/kernel'"),
    "a scalar": (stateless(jnp.sum), ValueError, r"rule returned shape \(\) at 'attn/kernel', expected \(3, 2, 4\)"),
    "a structure": (
        optax.stateless(lambda p, _: p["attn"]),
        ValueError,
        "expected a tree like the parameters that decay",
    ),
    "0/0": (stateless(lambda p: p / jnp.linalg.norm(p)), ValueError, r"'embed/embedding' is infinite or NaN where the"),
}


@pytest.mark.parametrize("name", ["add_l2_to_loss", "shrink", "adamw"])
@pytest.mark.parametrize("bad", BAD)
def test_bad_rules(bad, name):
    rule, error, text = BAD[bad]
    p = params()
    p["embed"]["embedding"] = jnp.zeros_like(p["embed"]["embedding"])
    with pytest.raises(error, match=text):
        build(name, mask="weights", rule=rule).init(p)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_proximal_takes_no_gate(penalty):
    with pytest.raises(ValueError, match=r"proximal takes no gate.*use wd\.shrink"):
        wd.proximal(0.1, penalty=penalty, rule=optax.chain(wd.rules.toward("init"), wd.rules.cautious())).init(params())


def test_an_error_of_a_rule_says_where_it_was_tried():
    def update(p, state, params=None, *, step):
        return jax.tree.map(jnp.multiply, p, step.gradients), state

    rule = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    with pytest.raises(ValueError) as caught:
        wd.sgdw(0.1, weight_decay=0.1, rule=rule).init(params())  # the bias is masked out of p, not of the gradients
    assert "wd.rules.tree_map" in caught.value.__notes__[-1]


def test_gates_and_anchors_of_different_leaves_are_in_any_order():
    p, g = params(), grads(params())
    only = lambda name: {key: key == name for key in p} | {"frozen": None}
    rule = optax.chain(
        optax.masked(wd.rules.cautious(), only("attn")), optax.masked(wd.rules.toward("init"), only("embed"))
    )
    make = lambda rule: wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, mask=None, rule=rule)
    rules = rule, wd.rules.cautious(), wd.rules.toward("init")
    both, gated, anchored = run_each([*map(make, rules)], p, g, STEPS)
    chex.assert_trees_all_close(both["attn"], gated["attn"], rtol=1e-6)
    chex.assert_trees_all_close(both["embed"], anchored["embed"], rtol=1e-6)


@pytest.mark.optax_promotes
def test_a_rule_that_divides_by_what_a_count_gives_is_tried_after_a_step():
    def update(p, state, params=None, *, step):
        unbiased = 1 - 0.9 ** optax.tree.get(step.inner_state, "count")
        return jax.tree.map(lambda p: p / unbiased, p), state

    rule = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    wd.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=rule).init(params())
    with pytest.raises(ValueError, match="infinite or NaN"):  # here the first step has a count of 0, too
        wd.adam_l2(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=rule).init(params())


def test_low_precision_parameters_are_float32_for_a_rule_at_init_too():
    p = params(jnp.bfloat16)
    make = lambda rule: wd.sgdw(0.1, weight_decay=0.5, rule=rule)
    state = make(optax.inject_hyperparams(optax.clip)(max_delta=0.3)).init(p)
    assert state.rule.hyperparams["max_delta"].dtype == jnp.float32
    labels = lambda tree: jax.tree.map(lambda x: "low" if x.dtype == jnp.bfloat16 else "float32", tree)
    tx = make(optax.partition({"low": optax.set_to_zero(), "float32": optax.identity()}, labels))
    updates, _ = tx.update(optax.tree.zeros_like(p), tx.init(p), p)
    assert float(jnp.abs(updates["attn"]["kernel"]).max()) > 0


def test_a_gradient_that_is_none_for_a_whole_subtree():
    p, g = params(), grads(params())
    g["embed"] = None
    for rule in (None, optax.clip(0.5), wd.rules.toward("init"), wd.rules.cautious()):
        tx = wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=rule)
        assert tx.update(g, tx.init(p), p)[0]["embed"] is None


def test_a_mask_that_is_known_at_init_and_traced_at_update():
    p = {"kernel": jnp.ones((2, 2)), "b": jnp.ones(2)}
    make = lambda m: wd.sgdw(0.1, weight_decay=0.5, mask={"kernel": 1.0, "b": m}, rule=wd.rules.toward("init"))
    state = make(jnp.float32(0)).init(p)
    with pytest.raises(ValueError, match=r"anchor: 'b' decays and has no anchor.*traced at both"):
        jax.jit(lambda m: make(m).update(p, state, p))(jnp.float32(0))


def test_an_anchor_is_placed_like_its_parameter():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    p = {"kernel": jax.device_put(jnp.ones((16, 2)), rows)}
    state = wd.sgdw(0.1, weight_decay=0.5, rule=wd.rules.toward({"kernel": np.zeros((16, 2))})).init(p)
    assert state.rule.anchor["kernel"].sharding.is_equivalent_to(rows, 2)


def test_infinite_parameters_are_not_the_rule_s_fault():
    p = params()
    p["attn"]["kernel"] = p["attn"]["kernel"].at[0, 0, 0].set(jnp.inf)
    wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=wd.rules.toward("init")).init(p)  # inf − inf


def test_a_state_of_an_optimizer_without_the_rule_is_refused_where_it_keeps_arrays():
    p = params()
    state = wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY).init(p)
    tx = wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=wd.rules.toward("init"))
    with pytest.raises(ValueError, match=r"nothing for this rule.*wd\.migrate_state\(opt_state, optimizer, params\)"):
        tx.update(grads(p), state, p)
    state = wd.migrate_state(state, tx, p)
    chex.assert_trees_all_equal(state.rule.anchor["attn"]["kernel"], p["attn"]["kernel"])


def test_bad_anchors():
    p = params()
    with pytest.raises(ValueError, match=r'anchor=\'start\': use "init"'):
        wd.rules.toward("start")
    with pytest.raises(ValueError, match="decay to zero needs no rule"):
        wd.rules.toward(None)
    wrong = half(p) | {"attn": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 4))}}
    tx = wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=wd.rules.toward(wrong))
    with pytest.raises(ValueError, match=r"anchor at 'attn/kernel': expected shape \(3, 2, 4\).*got shape \(2, 2\)"):
        tx.init(p)
    tx = wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, rule=wd.rules.toward(half(p) | {"head": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"anchor: 'head' belongs to no parameter: the nearest are 'embed/embedding'"):
        tx.init(p)


# Each transform with a rule that has a memory, and the gated ones where the decay stands in another place.
ZERO_DECAY = {(n, "average") for n in NAMES} | {("proximal", "init")}
ZERO_DECAY |= {(n, "init, cautious") for n in ("add_decayed_weights", "adamw", "shrink")}


@pytest.mark.quick_compile(False)
@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        pytest.param(n, r, marks=[] if (n, r) in ZERO_DECAY else pytest.mark.exhaustive)
        for n in NAMES
        for r in ("init", "init, cautious", "average")
        if n != "adam_l2" and applies(n, r)
    ],
)
def test_zero_decay_is_bitwise_the_base_optimizer_with_any_rule(name, rule):
    p = params()
    tx = optimizer(name, mask=None, weight_decay=0.0, rate=0.0, rule=RULES[rule](p))
    assert_same_bits(*(run(t, p, grads(p), STEPS)[0] for t in (tx, without_decay(name))))


@pytest.mark.parametrize("rule", ["init", "tree", "cautious", "average", "gradient", "inner state"])
def test_one_program_for_all_steps_and_multi_steps_decay_once(rule):
    p, g = params(), grads(params())
    tx = wd.sgdw(LEARNING_RATE, weight_decay=WEIGHT_DECAY, momentum=0.9, rule=RULES[rule](p))
    chex.clear_trace_counter()
    one = jax.jit(chex.assert_max_traces(lambda g, s, p: step(tx, g, s, p), n=1))
    q, state = p, tx.init(p)
    for _ in range(2):
        q, state = one(g, state, q)
    with jax.numpy_dtype_promotion("standard"):
        accumulated, _ = run(optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation(), p, g, 4)
    chex.assert_trees_all_close(accumulated, q, rtol=1e-5, atol=1e-6)
