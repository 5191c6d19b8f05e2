"""What the audit says about every rule, projection and penalty of the family, and that it condemns none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd
from wd_optax import rules

LR, WD = 0.01, 0.1
P = {"bias": jnp.ones(6), "kernel": jnp.linspace(0.5, 2.0, 24).reshape(4, 6)}
LORA = {"lora_a": jnp.linspace(0.5, 2.0, 12).reshape(6, 2), "lora_b": jnp.linspace(1.0, 2.0, 8).reshape(2, 4)}
FAR = jax.tree.map(lambda x: 3 * x, P)
OPTIMIZERS = {"sgdw": wd.sgdw, "adamw": wd.adamw}
pytestmark = pytest.mark.optax_promotes

# rule -> verdict, anchor, dependence of the kernel, and what a step removes (None: it isn't one number)
RULES = {
    "toward a partial tree": (lambda: rules.toward({"kernel": FAR["kernel"]}), "decays", "tree", "", LR * WD),
    "toward a tree of others": (lambda: rules.toward({"bias": FAR["bias"]}), "decays", "zero", "", LR * WD),
    "toward_average": (lambda: rules.toward_average(0.9), "decays", "moving", "", LR * WD * 0.9),
    "toward_norm, init": (lambda: rules.toward_norm("init"), "decays", "norm", "", LR * WD),
    "toward_norm, above": (lambda: rules.toward_norm(30.0), "decays", "norm", "", LR * WD),
    "toward_norm, below": (lambda: rules.toward_norm("init", ratio=0.5), "decays", "norm", "", LR * WD),
    "toward_norm, cautious": (
        lambda: optax.chain(rules.toward_norm(3.0), rules.cautious()), "not proportional", "norm", "gated", LR * WD
    ),
    "constrained": (lambda: rules.constrained("init"), "constrained", "norm", "", None),
    "constrained, number": (lambda: rules.constrained(1.0), "constrained", "norm", "", None),
    "constrained, warm": (lambda: rules.constrained("warm", steps=10), "constrained", "norm", "later", None),
    "constrained, inflection": (
        lambda: rules.constrained("inflection", steps=10), "constrained", "norm", "later", None
    ),
    "cautious, strict": (lambda: rules.cautious(strict=True), "not proportional", "zero", "gated", LR * WD / 2),
    "active_rows, skip": (lambda: rules.active_rows(), "decays", "zero", "only with a gradient", LR * WD),
    "active_rows, lazy": (
        lambda: rules.active_rows(policy="lazy"), "decays", "zero", "catches up with a gradient", LR * WD
    ),
    "l1": (lambda: rules.l1(), "not proportional", "zero", "", 0.0007155),
    "elastic": (lambda: rules.elastic(0.5), "not proportional", "zero", "", 0.0008577),
    "group": (lambda: rules.group(), "not proportional", "zero", "", LR * WD / 6.61),
}  # fmt: skip
VARIANTS = {"toward_norm, above", "constrained, inflection", "elastic", "toward a tree of others"}  # of others here
WITH_ADAM = {"toward_norm, init", "constrained", "active_rows, lazy"}  # whose numbers depend on the inner optimizer


def cases():
    """Each rule with SGD; the other combinations take long together."""
    for name in RULES:
        for optimizer in OPTIMIZERS:
            slow = name in VARIANTS or (optimizer == "adamw" and name not in WITH_ADAM)
            yield pytest.param(name, optimizer, marks=pytest.mark.exhaustive if slow else ())


@functools.cache
def audited(name, optimizer):
    return wd.audit(OPTIMIZERS[optimizer](LR, weight_decay=WD, rule=RULES[name][0]()), P)


@pytest.mark.parametrize(("name", "optimizer"), [*cases()])
def test_every_rule(name, optimizer):
    _, verdict, anchor, dependence, removed = RULES[name]
    report = audited(name, optimizer)
    bias, kernel = report.rows
    assert (kernel.verdict, kernel.anchor, kernel.dependence) == (verdict, anchor, dependence)
    # measured in float64; the numbers in the table have 3 digits
    expected = pytest.approx(np.nan if removed is None else removed, rel=2e-3, nan_ok=True)
    assert kernel.removed_per_step == expected
    assert bias.verdict == "no decay"
    assert report.findings == ()
    report.check(decays=["kernel"], spares=["bias"])


def test_half_lives_are_of_the_distance_and_none_is_given_for_an_anchor_that_moves():
    half_life = lambda name: audited(name, "sgdw").rows[1].half_life
    exact = np.log(0.5) / np.log1p(-LR * WD)
    assert half_life("toward_norm, init") == pytest.approx(exact, rel=1e-6)  # λ is rounded to float32
    assert np.isnan(half_life("toward_average"))
    assert np.isnan(half_life("constrained"))


BOX = functools.partial(optax.projections.projection_box, lower=-1.0, upper=1.0)
BALL = functools.partial(optax.projections.projection_l2_ball, scale=1.0)
UNDONE = "decay before a projection"
# optimizer -> verdict, anchor of the kernel, findings
PROJECTIONS = {
    "hyperball": (lambda: wd.hyperball(optax.scale_by_adam(), LR), "projected", "norm", set()),
    "init": (lambda: optax.chain(optax.sgd(LR), wd.project("init")), "projected", "norm", set()),
    "init, adam": (lambda: optax.chain(optax.adam(LR), wd.project("init")), "projected", "norm", set()),
    "number": (lambda: optax.chain(optax.adam(LR), wd.project(3.0)), "projected", "norm", set()),
    "decay before": (
        lambda: optax.chain(wd.adamw(LR, weight_decay=WD), wd.project("init")), "projected", "norm", {UNDONE}
    ),
    "L2 before": (  # its decay passes Adam, and doesn't point along the weight
        lambda: optax.chain(optax.add_decayed_weights(WD, wd.optax_mask("weights")), optax.adam(LR), wd.project(3.0)),
        "projected", "norm", set(),
    ),
    "box": (lambda: optax.chain(optax.sgd(LR), wd.project(BOX)), "projected", "", set()),
    "ball": (lambda: optax.chain(optax.sgd(LR), wd.project(BALL)), "projected", "", set()),
    "one side": (
        lambda: optax.chain(optax.sgd(LR), wd.project(optax.projections.projection_non_negative)),
        "projected", "", set(),
    ),
    "far box": (
        lambda: optax.chain(wd.sgdw(LR, weight_decay=WD), wd.project(lambda p: jnp.clip(p, -100, 100))),
        "decays", "zero", set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROJECTIONS)
def test_every_projection(name):
    make, verdict, anchor, findings = PROJECTIONS[name]
    report = wd.audit(make(), P)
    bias, kernel = report.rows
    assert (kernel.verdict, kernel.anchor, bias.verdict) == (verdict, anchor, "no decay")
    assert {f.rule for f in report.findings} == findings
    assert kernel.decays == (verdict == "decays")
    assert np.isnan(kernel.removed_per_step) == (verdict == "projected")
    report.check(decays=["kernel"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_factors_of_low_rank(optimizer):
    rule = rules.low_rank([("lora_a", "lora_b", 1.0)])
    report = wd.audit(OPTIMIZERS[optimizer](LR, weight_decay=WD, rule=rule), LORA)
    assert [(row.verdict, row.anchor) for row in report.rows] == [("not proportional", "zero")] * 2
    assert report.findings == ()


def test_the_rate_over_a_run_to_a_norm_follows_the_schedule():
    schedule = optax.linear_schedule(LR, 0.0, 100)
    rule = rules.toward_norm("init")
    report = wd.audit(wd.sgdw(schedule, weight_decay=WD, rule=rule), P, horizon=100)
    left = np.prod([1 - float(schedule(t)) * WD for t in range(100)])
    assert report.rows[1].remaining == pytest.approx(left, rel=1e-4)  # 17 points of 100, of a linear rate
    assert report.rows[1].coupling == "lr"


def test_anchors_are_not_said_to_pull_to_zero():
    """Biases and norms that decay to where they start, or to a norm, are as their user wants them."""
    params = {"bias": jnp.ones(6), "embed": {"embedding": jnp.ones((4, 3))}, "norm": {"scale": jnp.ones(6)}}
    for rule in (rules.toward("init"), rules.constrained("init")):
        assert wd.audit(wd.sgdw(LR, weight_decay=WD, mask=None, rule=rule), params).findings == ()
    report = wd.audit(optax.chain(optax.sgd(LR), wd.project("init", mask=None)), params)
    assert report.findings == ()


def test_a_branch_on_a_sphere_is_not_without_decay():
    labels = {"bias": "rest", "kernel": "sphere"}
    branches = {"sphere": wd.hyperball(optax.identity(), LR), "rest": wd.adamw(LR, weight_decay=WD, mask=None)}
    report = wd.audit(optax.partition(branches, labels), P)
    assert [row.verdict for row in report.rows] == ["decays", "projected"]
    assert {f.rule for f in report.findings} == {"bias decays"}


def test_tables_say_it_in_words():
    said = lambda tx: next(row.reason for row in wd.explain(tx, P).rows if row.path == "kernel")
    rule = rules.toward_norm("init")
    assert said(wd.sgdw(LR, weight_decay=WD, rule=rule)) == "decays to a norm, removes 0.001 of the distance per step"
    assert said(wd.hyperball(optax.identity(), LR)) == "projected"
    assert "constrained, later" in str(audited("constrained, warm", "sgdw"))
    assert "EMA timescale" not in str(audited("toward_average", "sgdw"))


@pytest.mark.parametrize("kind", ["tree", "norm"])
def test_shapes_are_enough(kind):
    big = {"bias": jnp.ones(300), "kernel": jnp.full((64, 300), 2.0)}
    rule = rules.toward(jax.tree.map(lambda x: 3 * x, big)) if kind == "tree" else rules.toward_norm(3.0)
    report = wd.audit(wd.sgdw(LR, weight_decay=WD, rule=rule), jax.eval_shape(lambda: big))
    kernel = report.rows[1]
    assert (kernel.verdict, kernel.anchor, report.findings) == ("decays", kind, ())


def test_an_anchor_of_another_shape_is_refused_on_stand_ins_too():
    rule = rules.toward({"kernel": jnp.ones((64, 299))})
    with pytest.raises(ValueError, match="anchor at 'kernel'"):
        wd.audit(wd.sgdw(LR, weight_decay=WD, rule=rule), {"kernel": jax.ShapeDtypeStruct((64, 300), jnp.float32)})


@pytest.mark.parametrize("rule", [rules.toward_norm("init"), rules.toward("init")], ids=["norm", "init"])
def test_rounding_is_measured_away_from_the_anchor(rule):
    params = {"kernel": P["kernel"].astype(jnp.bfloat16)}
    verdict = lambda **options: wd.audit(wd.sgdw(LR, weight_decay=WD, rule=rule, **options), params).rows[0].verdict
    assert verdict() == "lost in rounding"
    assert verdict(rounding="stochastic") == "decays"


def test_slices_are_norms_of_their_own():
    stacked = {"blocks": jnp.stack([P["kernel"], 5 * P["kernel"]])}
    tx = wd.sgdw(LR, weight_decay=WD, rule=rules.toward_norm(3.0), slices=[("blocks", 1)])
    (row,) = wd.audit(tx, stacked).rows
    assert (row.verdict, row.anchor) == ("decays", "norm")
    assert row.removed_per_step == pytest.approx(LR * WD, rel=1e-6)  # λ is rounded to float32
