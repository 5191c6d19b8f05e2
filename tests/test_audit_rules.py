"""The audit names what a decay rule does: toward what leaves decay, and whether the step gates or changes the decay."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import wd_optax as wd
from wd_optax.auditing.audit import audit

LR, WD = 0.01, 0.1
P = {"bias": jnp.ones(6), "kernel": jnp.linspace(0.5, 2.0, 24).reshape(4, 6)}
TREES = {name: jax.tree.map(lambda x, factor=factor: factor * x, P) for name, factor in (("half", 0.5), ("far", 3.0))}
pytestmark = pytest.mark.optax_promotes


def custom(direction):
    """A rule without a state, from a function of one leaf and its gradient."""

    def update(updates, state, params=None, *, step):
        return wd.rules.tree_map(direction, updates, step.gradients), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def moving_average():
    """Toward an exponential moving average of the parameters."""

    def update(updates, state, params=None):
        new = wd.rules.tree_map(lambda a, p: 0.9 * a + 0.1 * p, state, updates)
        return wd.rules.tree_map(lambda p, a: p - a, updates, state), new

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.array, params), update)


toward, cautious = wd.rules.toward, wd.rules.cautious
gates = lambda r, g: jnp.where(jnp.abs(g) < 1.2, r, jnp.zeros_like(r))
# rule -> verdict, anchor, dependence of the kernel
CASES = {
    "none": (None, "decays", "zero", ""),
    "identity": (optax.identity(), "decays", "zero", ""),
    "toward init": (toward("init"), "decays", "init", ""),
    "toward a tree": (toward(TREES["far"]), "decays", "tree", ""),
    "cautious": (cautious(), "not proportional", "zero", "gated"),
    "toward init, cautious": (optax.chain(toward("init"), cautious()), "not proportional", "init", "gated"),
    "toward half, cautious": (optax.chain(toward(TREES["half"]), cautious()), "not proportional", "tree", "gated"),
    "Huber": (optax.clip(0.7), "not proportional", "zero", ""),
    "gate of its own": (custom(gates), "not proportional", "zero", "gated"),
    "more under a gradient": (custom(lambda r, g: r * (1 + jnp.tanh(g * g))), "unknown", "zero", "depends on the step"),
    "only under a gradient": (custom(lambda r, g: r * jnp.tanh(g * g)), "unknown", "zero", "depends on the step"),
    "moving": (moving_average(), "decays", "moving", ""),
}


PENALTIES = {
    "sgdw, l2": (wd.sgdw(LR, weight_decay=WD, penalty="l2"), "decays", ""),
    "sgdw, l1": (wd.sgdw(LR, weight_decay=WD, penalty="l1"), "not proportional", ""),
    "adamw, l2": (wd.adamw(LR, weight_decay=WD, penalty="l2"), "proximal", ""),
    "adamw, l1": (wd.adamw(LR, weight_decay=WD, penalty="l1"), "proximal", ""),
    "sgdw, huber": (wd.sgdw(LR, weight_decay=WD, penalty="huber"), "proximal", ""),
    "sgdw, group": (wd.sgdw(LR, weight_decay=WD, penalty="group"), "proximal", ""),
    "adamw, group": (wd.adamw(LR, weight_decay=WD, penalty="group"), "proximal", ""),
    "adam, proximal l2": (optax.chain(optax.adam(LR), wd.proximal(1e-3)), "not scaled by lr", ""),
    "adam, proximal l1": (
        optax.chain(optax.adam(LR), wd.proximal(1e-3, penalty="l1")), "not proportional", "penalty without its metric"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_is_no_coupling(name):
    """Its decay depends on the gradient of each entry, and λ doesn't cancel."""
    optimizer, verdict, finding = PENALTIES[name]
    report = audit(optimizer, P)
    assert [row.verdict for row in report.rows] == ["no decay", verdict]
    assert {f.rule for f in report.findings} - {"not scaled by the learning rate"} == ({finding} if finding else set())


@functools.cache
def audited(name):
    return audit(wd.adamw(LR, weight_decay=WD, rule=CASES[name][0]), P)


@pytest.mark.parametrize("name", CASES)
def test_the_effect_of_a_rule_is_measured(name):
    _, *expected = CASES[name]
    bias, kernel = audited(name).rows
    assert [kernel.verdict, kernel.anchor, kernel.dependence] == expected
    assert [bias.verdict, bias.anchor, bias.dependence] == ["no decay", "", ""]


def test_a_moving_anchor_has_no_half_life_in_float64_either(x64):
    p = {"kernel": jnp.linspace(0.5, 2.0, 24, dtype=jnp.float64).reshape(4, 6)}
    (row,) = audit(wd.adamw(LR, weight_decay=WD, rule=moving_average()), p, horizon=100).rows
    assert (row.verdict, row.anchor, row.half_life) == ("decays", "moving", pytest.approx(float("nan"), nan_ok=True))


@pytest.mark.parametrize(
    ("optimizer", "verdict", "dependence"),
    [
        (optax.adamw(LR, weight_decay=WD), "decays", ""),
        (wd.adam_l2(LR, weight_decay=WD, rule=toward("init")), "coupled: λ cancels", ""),
        (wd.with_decay(optax.lion(LR, weight_decay=0.0), learning_rate=LR, weight_decay=WD, rule=cautious()),
         "not proportional", "gated"),
        (optax.chain(optax.sgd(LR), wd.shrink(1e-3, rule=cautious())), "not proportional", "gated"),
        (optax.chain(optax.add_decayed_weights(WD), optax.clip_by_global_norm(1.0), optax.sgd(LR)),
         "unknown", "depends on the step"),
    ],
    ids=["adamw", "adam_l2 toward init", "lion, cautious", "shrink, cautious", "clip after decay"],
)  # fmt: skip
def test_other_optimizers_and_places(optimizer, verdict, dependence):
    kernel = audit(optimizer, P).rows[1]
    assert (kernel.verdict, kernel.dependence) == (verdict, dependence)


def test_the_effect_is_printed():
    assert "not proportional to init, gated" in str(audited("toward init, cautious"))
    assert "decays to a moving anchor" in str(audited("moving"))


def test_a_schedule_of_lambda_leaves_no_false_claim():
    """λ can't be changed there, so a gate that looks at the gradient's size is not distinguished from other rules."""
    schedule = optax.linear_schedule(WD, WD / 2, 100)
    kernel = audit(wd.adamw(LR, weight_decay=schedule, rule=custom(gates)), P).rows[1]
    assert (kernel.verdict, kernel.dependence) == ("unknown", "depends on the step")


def test_what_init_refuses_the_audit_refuses():
    rule = optax.stateless(lambda updates, params: jax.tree.map(lambda p: p * jnp.nan, updates))
    with pytest.raises(ValueError, match="is infinite or NaN where the"):
        wd.audit(wd.adamw(0.1, weight_decay=0.1, rule=rule), {"kernel": jnp.ones((4, 4))})
