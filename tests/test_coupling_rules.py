"""A coupling for each parameter, [(regex, coupling), ...]: against decay written by hand, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import grads, run, step
from helpers import assert_same_bits

import wd_optax as wd
from wd_optax.couplings import COUPLINGS

pytestmark = pytest.mark.optax_promotes  # Optax's Adam

PEAK, DECAY, STEPS = 0.1, 0.3, 4
cosine = optax.cosine_decay_schedule(PEAK, STEPS)
PARAMS = {
    "blocks": {"kernel": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), "bias": jnp.ones(3)},
    "head": {"kernel": jnp.linspace(1.0, 2.0, 6).reshape(3, 2)},
    "embed": jnp.linspace(-2.0, 1.0, 4).reshape(2, 2),
    "none": None,
}
ADAMC = [("blocks/kernel", "corrected"), (".*", "lr")]


def adamw(coupling, learning_rate=cosine, **options):
    options = {"weight_decay": DECAY, "peak_learning_rate": PEAK} | options
    return wd.adamw(learning_rate, coupling=coupling, **options)


def by_hand(rates, steps=STEPS):
    """Adam, and −c_t·p for each leaf with its own c_t, from `rates`: path -> η -> c_t."""
    adam, p = optax.scale_by_adam(), PARAMS
    state, direction = adam.init(p), jax.jit(adam.update)
    for i in range(steps):
        u, state = direction(grads(p, i), state, p)
        eta = float(cosine(i))
        move = lambda path, p, u, eta=eta: p - eta * u - rates(jax.tree_util.keystr(path), eta) * p
        p = jax.tree.map_with_path(move, p, u)
    return p


def trained(tx, steps=STEPS):
    one, p, state = jax.jit(lambda g, s, p: step(tx, g, s, p)), PARAMS, tx.init(PARAMS)
    for i in range(steps):
        p, state = one(grads(PARAMS, i), state, p)
    return p


def test_adamc_is_corrected_before_normalisations_and_lr_elsewhere():
    def rates(path, eta):
        if "bias" in path:
            return 0.0
        return DECAY * eta**2 / PEAK if path == "['blocks']['kernel']" else DECAY * eta

    got = trained(adamw(ADAMC))
    chex.assert_trees_all_close(got, by_hand(rates), rtol=1e-5, atol=1e-6)  # 4 steps of a few roundings of 2⁻²⁴


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_one_rule_for_all_is_the_coupling(coupling):
    """To an ulp or two: c_t is computed the same way, and XLA may contract the products around it in another order."""
    pair = (trained(adamw(c)) for c in (coupling, [(".*", coupling)]))
    chex.assert_trees_all_close(*pair, rtol=3e-7)


def test_four_couplings_in_one_optimizer_and_multipliers():
    couplings = {"blocks/kernel": "corrected", "head": "schedule", "embed": "constant"}
    rules = [*couplings.items(), (".*", "lr")]
    got = trained(adamw(rules, mask=[("embed", 0.5), (".*", 1.0)]))
    rates = {
        "['blocks']['kernel']": lambda eta: DECAY * eta**2 / PEAK,
        "['blocks']['bias']": lambda eta: DECAY * eta,
        "['head']['kernel']": lambda eta: DECAY * eta / PEAK,
        "['embed']": lambda eta: 0.5 * DECAY,
    }
    chex.assert_trees_all_close(got, by_hand(lambda path, eta: rates[path](eta)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["eager", "scan"])
def test_the_same_eagerly_and_in_a_scan(mode):
    ends = [run(adamw(ADAMC), PARAMS, grads(PARAMS), STEPS, m)[0] for m in (mode, "jit")]
    chex.assert_trees_all_close(*ends, rtol=1e-6, atol=1e-6)


def test_live_hyperparameters_vmap_and_a_leaf_s_rate():
    tx, g = adamw(ADAMC, learning_rate=PEAK), grads(PARAMS)
    state = tx.init(PARAMS)
    assert set(state.hyperparams) == {"learning_rate", "weight_decay", "peak_learning_rate"}
    at = lambda eta, decay: tx.update(
        g, optax.tree.set(state, learning_rate=eta, weight_decay=decay), PARAMS
    )[0]  # fmt: skip
    etas = jnp.array([PEAK, PEAK / 2])
    decayed, base = (jax.jit(jax.vmap(at, (0, None)))(etas, jnp.float32(decay)) for decay in (DECAY, 0.0))
    removed = jax.tree.map(lambda a, b, p: ((b - a) / p[None]).reshape(2, -1).mean(1), decayed, base, PARAMS)
    # u of about 0.1 and −η·u − c·p subtracted: 2⁻²⁴ of 0.1 over the smallest p, 0.2
    np.testing.assert_allclose(removed["blocks"]["kernel"], [DECAY * PEAK, DECAY * PEAK / 4], rtol=1e-4)
    np.testing.assert_allclose(removed["head"]["kernel"], [DECAY * PEAK, DECAY * PEAK / 2], rtol=1e-4)
    np.testing.assert_array_equal(removed["blocks"]["bias"], 0)
    zero = tx.update(g, optax.tree.set(state, weight_decay=jnp.float32(0)), PARAMS)[0]
    base = wd.adamw(PEAK, weight_decay=0.0)
    assert_same_bits(zero, base.update(g, base.init(PARAMS), PARAMS)[0])


def test_inside_inject_hyperparams():
    fixed = {"b1", "b2", "eps", "eps_root", "coupling"}
    injected = optax.inject_hyperparams(wd.adamw, static_args=fixed)(
        cosine, weight_decay=DECAY, coupling=ADAMC, peak_learning_rate=PEAK
    )
    chex.assert_trees_all_close(trained(injected), trained(adamw(ADAMC)), rtol=1e-6)


def test_in_a_sweep_as_an_axis_too():
    def train(point, key):
        del key
        tx = adamw(point["coupling"], weight_decay=point["weight_decay"])
        p = run(tx, PARAMS, optax.tree.zeros_like(PARAMS), STEPS, "scan")[0]
        return {"kernel": p["blocks"]["kernel"].mean(), "embed": p["embed"].mean()}

    axes = {"coupling": {"AdamC": ADAMC, "lr": "lr"}, "weight_decay": [0.0, DECAY]}
    data = wd.sweep(train, axes, seeds=1, devices=jax.devices()[:1], progress=False).data
    etas = np.array([float(cosine(i)) for i in range(STEPS)])
    lr, corrected = np.prod(1 - DECAY * etas), np.prod(1 - DECAY * etas**2 / PEAK)
    for name, coupling, kept in [("kernel", "AdamC", corrected), ("embed", "AdamC", lr), ("kernel", "lr", lr)]:
        without, decayed = data[name].sel(coupling=coupling).values.squeeze()
        np.testing.assert_allclose(decayed / without, kept, rtol=1e-5)  # 4 roundings, and those of a mean


def test_states_of_one_coupling_and_of_rules_migrate():
    plain, ruled = adamw("lr"), adamw(ADAMC)
    p, state = run(plain, PARAMS, grads(PARAMS), 2)
    migrated = wd.migrate_state(state, ruled, p)
    chex.assert_trees_all_equal_structs(migrated, ruled.init(PARAMS))
    chex.assert_trees_all_equal(migrated.inner, state.inner)
    updates, _ = ruled.update(grads(PARAMS), migrated, p)
    chex.assert_tree_all_finite(updates)


def test_the_audit_and_explain_see_the_rate_of_each_leaf():
    tx = adamw([("blocks/kernel", "corrected"), ("embed", "constant"), (".*", "lr")], weight_decay=0.1)
    rows = {row.path: row for row in wd.audit(tx, PARAMS, step=2, learning_rate=cosine).rows}
    eta = float(cosine(2))
    for path, c in {"blocks/kernel": 0.1 * eta**2 / PEAK, "embed": 0.1, "head/kernel": 0.1 * eta}.items():
        assert rows[path].removed_per_step == pytest.approx(c, rel=1e-3), path
    assert rows["blocks/bias"].removed_per_step == 0
    assert "removes 0.1 per step" in next(row.reason for row in wd.explain(tx, PARAMS).rows if row.path == "embed")


def test_coverage():
    with pytest.raises(ValueError, match=r'no rule matches \'embed\', which decays: end with \(".\*", "lr"\)'):
        adamw([("kernel", "lr")]).init(PARAMS)
    adamw([("kernel", "lr"), ("embed", "lr")]).init(PARAMS)  # the bias doesn't decay
    adamw([("kernel", "lr")], mask=[("kernel", 1.0)]).init(PARAMS)
    hidden = optax.masked(adamw([("embed", "corrected"), ("kernel", "lr")]), {
        "blocks": True, "head": True, "embed": False, "none": None
    })  # fmt: skip
    hidden.init(PARAMS)  # a rule may be for what optax.masked hides
    adamw(ADAMC).init({})


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ([("conv", "corrected"), (".*", "lr")], "coupling rule 'conv' matches no parameter"),
        ([(".*", "lr"), ("kernel", "corrected")], "coupling rule 'kernel' decides nothing, because earlier rules take"),
    ],
)
def test_rules_that_decide_nothing_are_refused(rules, text):
    with pytest.raises(ValueError, match=text):
        adamw(rules).init(PARAMS)


BAD = {
    "none at all": ([], TypeError, r"coupling=\[\]: expected one of 'lr', 'schedule', .*or rules, \[\(\"blocks"),
    "None": (None, TypeError, "coupling=None: expected one of"),
    "a dict": ({".*": "lr"}, TypeError, "expected one of 'lr'"),
    "one rule": ((".*", "lr"), TypeError, r"is one rule: write \[\('\.\*', 'lr'\)\]"),
    "a regex alone": (["blocks", "lr", "x"], TypeError, "expected one of 'lr'"),
    "a word": ([(".*", "cosine")], ValueError, r"coupling rule '\.\*': 'cosine' is not a coupling: use one of 'lr'"),
    "a number": ([(".*", 3)], ValueError, r"coupling rule '\.\*': 3 is not a coupling"),
    "a bad regex": ([("(", "lr")], ValueError, r"coupling rule '\(' is not a regular expression"),
    "no regex": ([(3, "lr")], TypeError, "coupling: 3 is not a regular expression: expected a string"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_list_of_rules_is_refused_at_once(case):
    rules, error, text = BAD[case]
    with pytest.raises(error, match=text):
        adamw(rules)


def test_a_schedule_needs_its_peak_and_every_rate_is_below_1():
    with pytest.raises(ValueError, match="coupling='corrected' divides by the peak learning rate"):
        adamw(ADAMC, peak_learning_rate=None)
    adamw([(".*", "lr")], peak_learning_rate=None)
    with pytest.raises(ValueError, match=r"coupling='constant' removes 1\.5 of each weight per step"):
        adamw([("embed", "constant"), (".*", "lr")], weight_decay=1.5)


def test_a_multiplier_is_checked_with_the_rate_of_its_own_leaf():
    rules = [("embed", "constant"), (".*", "corrected")]  # c = 0.9, and 0.09
    adamw(rules, learning_rate=PEAK, weight_decay=0.9, mask=[("embed", 1.0), ("kernel", 5.0)]).init(PARAMS)
    with pytest.raises(ValueError, match=r"multiplier 5 of 'embed' times c = 0.9 of coupling='constant' removes 4.5"):
        adamw(rules, learning_rate=PEAK, weight_decay=0.9, mask=[("embed", 5.0), ("kernel", 1.0)]).init(PARAMS)
    with pytest.raises(ValueError, match=r"pass a multiplier below 11\.1"):
        adamw(rules, learning_rate=PEAK, weight_decay=0.9, mask=[("embed", 1.0), ("kernel", 20.0)]).init(PARAMS)
    adamw(rules, learning_rate=PEAK, weight_decay=0.9, mask=[(".*", 5.0)], penalty="l1").init(PARAMS)  # a threshold
