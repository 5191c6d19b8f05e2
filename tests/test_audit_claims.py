"""The audit of optimizers whose single step misleads: buffers that fill, cycles, schedules, projections."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from catalogue import params as four

import wd_optax as wd
from wd_optax.auditing.audit import audit

LR, WD = 0.01, 0.1
matrices = lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
params = lambda: {"bias": jnp.ones(6), "kernel": jnp.ones((4, 6))}
WARM_UP = optax.linear_schedule(0.0, LR, 100)
COSINE = optax.cosine_decay_schedule(LR, 1000)
pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]


def stage(update):
    """A transformation without a state."""
    return optax.GradientTransformation(lambda p: optax.EmptyState(), lambda u, s, p: (jax.tree.map(update, u, p), s))


def palm():
    """Adam whose decay goes by lr²."""
    rate = lambda count: LR / jnp.sqrt(jnp.maximum(count, 10_000) / 10_000.0)
    update = lambda u, s, p: (
        jax.tree.map(lambda u, x: u - rate(s.count) ** 2 * x, u, p),
        optax.ScaleByScheduleState(s.count + 1),
    )
    decay = optax.GradientTransformation(lambda p: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update)
    return optax.chain(optax.adam(rate), decay)


L2 = optax.add_decayed_weights(WD)
# optimizer, horizon, verdicts of bias and kernel, removed of the kernel (None: not known)
CASES = {
    "clip and adam": (
        optax.chain(optax.add_decayed_weights(WD, matrices), optax.clip_by_global_norm(1.0), optax.adam(LR)),
        None, ("no decay", "coupled: λ cancels"), None,
    ),
    "clip and momentum": (
        optax.chain(optax.add_decayed_weights(WD, matrices), optax.clip_by_global_norm(1.0), optax.sgd(LR, 0.9)),
        None, ("no decay", "unknown"), None,
    ),
    "constant coupling in a warm-up from 0": (
        wd.adamw(WARM_UP, weight_decay=1e-3, coupling="constant"), None, ("no decay", "not scaled by lr"), 1e-3,
    ),
    "adafactor in a warm-up from 0": (
        optax.adafactor(WARM_UP, weight_decay_rate=1e-3), None, ("not scaled by lr", "not scaled by lr"), 1e-3,
    ),
    "MultiSteps of 100": (
        optax.MultiSteps(optax.adamw(LR, weight_decay=WD), 100), None, ("decays", "decays"), LR * WD,
    ),
    "ema without its bias": (
        optax.chain(L2, optax.ema(0.9, debias=True), optax.scale(-LR)), None, ("in momentum",) * 2, LR * WD,
    ),
    "anchor over a horizon": (
        wd.adamw(LR, weight_decay=WD, rule=wd.rules.toward("init")), 1000, ("no decay", "decays"), LR * WD,
    ),
    "sam": (
        optax.contrib.sam(optax.adamw(LR, weight_decay=WD), optax.sgd(0.05)), None, ("decays", "decays"), LR * WD,
    ),
    "prodigy inside": (
        wd.with_decay(optax.contrib.prodigy(1.0), learning_rate=LR, weight_decay=WD),
        None, ("no decay", "decays"), LR * WD,
    ),
    "prodigy's first state": (optax.contrib.prodigy(1.0, weight_decay=WD), None, ("not yet", "not yet"), None),
    "mechanize's first state": (
        optax.contrib.mechanize(optax.adamw(LR, weight_decay=WD)), None, ("not yet", "not yet"), None,
    ),
    "not negative": (
        optax.chain(optax.adamw(LR, weight_decay=WD), optax.keep_params_nonnegative()), None, ("decays",) * 2, LR * WD,
    ),
    "yogi inside": (
        wd.with_decay(optax.yogi(LR), learning_rate=LR, weight_decay=WD), None, ("no decay", "decays"), LR * WD,
    ),
    "noise": (
        optax.chain(optax.add_noise(0.01, 0.5, key=3), optax.adamw(LR, weight_decay=WD, mask=matrices)),
        None, ("no decay", "decays"), LR * WD,
    ),
    "nan without a gradient": (optax.contrib.dadapt_adamw(1.0, weight_decay=WD), None, ("unknown", "unknown"), None),
    "function of no module": (
        stage(lambda u, x: -LR * u - LR * WD * x)._replace(), None, ("decays", "decays"), LR * WD,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_what_the_measurement_carries(name):
    optimizer, horizon, expected, removed = CASES[name]
    if name == "function of no module":
        optimizer.update.__module__ = None
    report = audit(optimizer, params(), horizon=horizon)
    assert tuple(row.verdict for row in report.rows) == expected
    if removed is not None:
        assert report.rows[1].removed_per_step == pytest.approx(removed, rel=1e-5)
    rules = {f.rule for f in report.findings if f.severity == "error"}
    assert rules == set(), report
    for finding in report.findings:
        verdicts = [row.verdict for row in report.rows if row.path in finding.paths]
        assert "unknown" not in verdicts or finding.severity == "information"
    assert "nothing decays" not in {f.rule for f in report.findings}


def test_coupled_decay_has_no_number():
    row = audit(optax.chain(L2, optax.adam(LR)), params()).rows[1]
    assert math.isnan(row.removed_per_step)
    assert math.isnan(row.half_life)


def test_check_fails_where_nothing_is_known():
    report = audit(optax.contrib.dadapt_adamw(1.0, weight_decay=WD), params())
    assert all(math.isnan(row.half_life) for row in report.rows)
    with pytest.raises(AssertionError, match="should decay, but its verdict is 'unknown'"):
        report.check(decays=["kernel"])


@pytest.mark.parametrize("horizon", [None, 1000])
def test_a_decay_that_begins_late_is_found(horizon):
    late = wd.adamw(LR, weight_decay=lambda t: jnp.where(t < 500, 0.0, WD))
    row = audit(late, params(), horizon=horizon).rows[1]
    assert row.verdict == "decays"
    assert row.largest_removed_per_step == pytest.approx(LR * WD, rel=1e-6)
    if horizon:
        assert row.remaining == pytest.approx((1 - LR * WD) ** 500, rel=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "horizon", "coupling"),
    [
        (wd.adamw(COSINE, weight_decay=WD), 1000, "lr"),
        (wd.adamw(COSINE, weight_decay=1e-3, coupling="schedule", peak_learning_rate=LR), 1000, "lr/peak"),
        (wd.adamw(COSINE, weight_decay=WD, coupling="corrected", peak_learning_rate=LR), 1000, "lr²/peak"),
        (wd.adamw(COSINE, weight_decay=1e-3, coupling="constant"), 1000, "constant"),
        (palm(), 1_000_000, "lr²"),
        (optax.adamw(COSINE, weight_decay=WD), None, "lr"),
        (optax.adamw(LR, weight_decay=WD), None, ""),
    ],
)
def test_the_coupling_is_measured_along_the_run(optimizer, horizon, coupling):
    row = audit(optimizer, params(), horizon=horizon).rows[1]
    assert row.coupling == coupling
    assert (row.verdict == "not scaled by lr") == (coupling == "constant")


@pytest.mark.parametrize("schedule", [COSINE, optax.warmup_cosine_decay_schedule(0.0, LR, 100, 1000)])
def test_rates_over_a_horizon_are_those_of_timescale(schedule):
    report = audit(wd.adamw(schedule, weight_decay=WD), params(), horizon=np.int64(1000))
    row, exact = report.rows[1], wd.timescale(WD, learning_rate=schedule, steps=1000)
    assert row.half_life == pytest.approx(exact.half_life, rel=1e-4)
    assert row.removed_per_step == pytest.approx(exact.removed_per_step, rel=1e-4)
    assert row.remaining == pytest.approx(exact.remaining, rel=1e-4)
    assert row.largest_removed_per_step == pytest.approx(exact.largest_removed_per_step, rel=1e-4)
    most = int(np.argmax([float(schedule(t)) for t in range(1000)]))
    assert f"measured at step {most}," in report.how.replace("step 101", "step 100")


def rules(optimizer, tree, **options):
    return {f.rule: f.paths for f in audit(optimizer, tree, **options).findings}


def test_with_decay_that_goes_by_another_learning_rate_is_reported():
    lion = lambda rate: wd.with_decay(optax.lion(1e-3, weight_decay=0.0), learning_rate=rate, weight_decay=WD)
    assert rules(lion(1e-1), params())["learning rates differ"] == ("kernel",)
    assert "learning rates differ" not in rules(lion(1e-3), params())
    constant = wd.with_decay(optax.adam(COSINE), learning_rate=LR, weight_decay=WD)
    for horizon in (None, 1000):
        assert "not scaled by the learning rate" in rules(constant, params(), horizon=horizon)
    muon = lambda **rate: optax.contrib.muon(2e-2, **rate)
    wrong = wd.with_decay(muon(adam_learning_rate=3e-4), learning_rate=2e-2, weight_decay=WD)
    assert rules(wrong, four())["learning rates differ"] == ("attn/kernel",)
    assert "learning rates differ" not in rules(wd.with_decay(muon(), learning_rate=2e-2, weight_decay=WD), four())


@pytest.mark.parametrize("weight_decay", [0.1, 0.01])
def test_a_trust_ratio_decays_in_proportion_under_a_gradient(weight_decay):
    row = audit(optax.lamb(LR, weight_decay=weight_decay), params()).rows[1]
    assert row.removed_per_step == pytest.approx(LR * weight_decay, rel=0.1)


def test_the_anchor_is_in_the_row():
    rule = lambda anchor: None if anchor is None else wd.rules.toward(anchor)
    anchored = lambda anchor: audit(wd.adamw(LR, weight_decay=WD, rule=rule(anchor)), params()).rows
    twice = jax.tree.map(lambda x: 2 * x, params())
    assert [anchored(a)[1].anchor for a in (None, "init", twice)] == ["zero", "init", "tree"]
    assert anchored("init")[0].anchor == ""


def test_decay_that_varies_within_a_leaf():
    rates = lambda x: 1e-3 * jnp.linspace(1, 20, x.shape[-1])
    report = audit(optax.chain(optax.sgd(LR), stage(lambda u, x: u - rates(x) * x)), params())
    assert {row.verdict for row in report.rows} == {"varies within the leaf"}
    assert "varies within the leaf" in {f.rule for f in report.findings}
    report.check(decays=["kernel"])


def test_a_branch_without_a_mask_has_none_to_miss():
    labels = {"bias": "one", "kernel": "other"}
    optimizer = optax.partition({name: optax.adamw(LR, weight_decay=WD) for name in ("one", "other")}, labels)
    assert "mask misses a branch" not in rules(optimizer, params())


def test_random_keys_and_eight_bits_pass():
    keyed = params() | {"key": jax.random.key(0)}
    assert [row.verdict for row in audit(wd.adamw(LR, weight_decay=WD), keyed).rows] == ["no decay", "decays"]
    eight_bits = {"kernel": jnp.ones((8, 8), jnp.float8_e4m3fn)}
    rows = audit(wd.adamw(LR, weight_decay=WD, rounding="stochastic"), eight_bits).rows
    assert rows[0].verdict in ("decays", "unknown")


@pytest.mark.parametrize(
    ("remembers", "removed"), [(optax.trace(0.9), LR), (optax.ema(0.9, debias=True), LR * WD)], ids=["trace", "ema"]
)
@pytest.mark.parametrize("schedule", [optax.linear_schedule(LR, 0.0, 100), optax.cosine_decay_schedule(LR, 100)])
def test_what_momentum_holds_is_not_mixed_up_with_a_schedule(remembers, removed, schedule):
    l2 = optax.chain(L2, remembers, optax.scale_by_learning_rate(schedule))
    (row,) = audit(l2, {"kernel": jnp.ones((4, 4))}).rows
    assert row.verdict == "in momentum"
    assert row.removed_per_step == pytest.approx(removed, rel=1e-3)


def test_a_decay_that_is_coupled_from_the_fifth_step_on_is_found():
    verdicts = {row.verdict for row in audit(optax.chain(L2, optax.radam(LR)), params()).rows}
    assert verdicts == {"coupled: λ cancels"}


@pytest.mark.parametrize(
    "inner",
    [
        lambda: optax.chain(
            optax.masked(optax.adamw(LR, weight_decay=0.1), wd.optax_mask("weights")),
            optax.masked(optax.adam(LR), lambda p: jax.tree.map(lambda m: not m, wd.optax_mask("weights")(p))),
        ),
        lambda: optax.apply_if_finite(optax.adamw(LR, weight_decay=0.1, mask=wd.optax_mask("weights")), 4),
        lambda: optax.partition(
            {"decays": optax.adamw(LR, weight_decay=0.1), "rest": optax.adam(LR)},
            lambda p: jax.tree.map(lambda m: "decays" if m else "rest", wd.optax_mask("weights")(p)),
        ),
    ],
    ids=["masked", "apply_if_finite", "partition"],
)
def test_an_optimizer_in_a_wrapper_in_a_chain_has_its_learning_rate(inner):
    report = audit(optax.chain(optax.clip_by_global_norm(1.0), inner()), four())
    assert {f.severity for f in report.findings} <= {"information"}
    report.check(decays=["kernel"], spares=["bias", "scale"])
    assert {row.verdict for row in report.rows} == {"decays", "no decay"}
