"""The audit measures what each optimizer's decay does to each leaf."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pandas
import pytest
from catalogue import NAMES, optimizer, params
from helpers import shape

import wd_optax as wd
from wd_optax.auditing import harness, low_precision, measurements, probes, verdicts
from wd_optax.auditing.audit import audit
from wd_optax.auditing.report import AuditFinding, AuditReport, AuditRow

pytestmark = pytest.mark.slow

LR, WD = 0.01, 0.1
PATHS = ("attn/bias", "attn/kernel", "embed/embedding", "norms/scale")  # in JAX's order
KERNELS = {"attn": {"bias": False, "kernel": True}, "embed": True, "norms": False, "frozen": None}
LABELS = {"attn": {"bias": "rest", "kernel": "decays"}, "embed": "decays", "norms": "rest", "frozen": None}
by_rank = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
injected = lambda **options: optax.inject_hyperparams(optax.adamw)(LR, weight_decay=WD, **options)
WARM_UP = optax.warmup_cosine_decay_schedule(0.0, LR, 100, 1000)
PARTITION = optax.partition({"decays": optax.adamw(LR, weight_decay=WD), "rest": optax.adam(LR)}, LABELS)
L2 = optax.add_decayed_weights(WD)
flip = optax.scale_by_learning_rate


def weights(verdict):
    return ("no decay", verdict, verdict, "no decay")


def all_are(verdict):
    return (verdict,) * 4


OPTAX = {
    "adamw": (optax.adamw(LR, weight_decay=WD), all_are("decays")),
    "adamw with a mask": (optax.adamw(LR, weight_decay=WD, mask=KERNELS), weights("decays")),
    "adamw with warm-up": (optax.adamw(WARM_UP, weight_decay=WD), all_are("decays")),
    "adam": (optax.adam(LR), all_are("no decay")),
    "sgd": (optax.sgd(LR), all_are("no decay")),
    "sgd with momentum": (optax.sgd(LR, 0.9), all_are("no decay")),
    "lion": (optax.lion(LR, weight_decay=WD), all_are("decays")),
    "lamb": (optax.lamb(LR, weight_decay=WD), all_are("normalised away")),
    "lars": (optax.lars(LR, weight_decay=WD), all_are("normalised away")),
    "adafactor": (optax.adafactor(LR, weight_decay_rate=WD), all_are("not scaled by lr")),
    "novograd": (optax.novograd(LR, weight_decay=WD), all_are("in momentum")),
    # Muon takes matrices, and the mask; the rank-3 kernel goes to its Adam branch, which has no decay
    "muon": (
        optax.contrib.muon(LR, weight_decay=WD, weight_decay_mask=KERNELS),
        ("no decay", "no decay", "decays", "no decay"),
    ),
    "muon, no mask": (
        optax.contrib.muon(LR, weight_decay=WD, adam_weight_decay=WD),
        all_are("decays"),
    ),
    "schedule_free_adamw": (optax.contrib.schedule_free_adamw(LR, weight_decay=WD), all_are("decays")),
    "schedule_free_adamw with warm-up": (
        optax.contrib.schedule_free_adamw(LR, weight_decay=WD, warmup_steps=100),
        all_are("decays"),
    ),
    "prodigy": (optax.contrib.prodigy(weight_decay=WD, estim_lr0=LR), all_are("not yet")),
    "prodigy at its tiny first rate": (optax.contrib.prodigy(weight_decay=WD), all_are("not yet")),
    "decay before adam": (optax.chain(L2, optax.adam(LR)), all_are("coupled: λ cancels")),
    "decay before sgd": (optax.chain(L2, optax.sgd(LR)), all_are("decays")),
    "decay before momentum": (optax.chain(L2, optax.sgd(LR, 0.9)), all_are("in momentum")),
    "decay after adam": (optax.chain(optax.scale_by_adam(), L2, flip(LR)), all_are("decays")),
    "decay after the learning rate": (optax.chain(optax.adam(LR), L2), all_are("growing")),
    "and of the other sign": (
        optax.chain(optax.adam(LR), optax.add_decayed_weights(-WD)),
        all_are("not scaled by lr"),
    ),
    "decay and adamw": (optax.chain(L2, optax.adamw(LR)), all_are("decays twice")),
    "schedule_free and one decay": (
        optax.chain(optax.contrib.schedule_free(optax.sgd(LR), LR), wd.shrink(WD, None)),
        all_are("not scaled by lr"),
    ),
    "two in a row": (optax.chain(L2, L2, optax.sgd(LR)), all_are("decays twice")),
    "lion inside with_decay": (
        wd.with_decay(optax.lion(LR, weight_decay=WD), learning_rate=LR, weight_decay=WD),
        ("decays", "decays twice", "decays twice", "decays"),
    ),
    "inject_hyperparams": (injected(), all_are("decays")),
    "inject_hyperparams with a callable mask": (injected(mask=by_rank), all_are("no decay")),
    "freeze before": (
        optax.chain(optax.freeze(KERNELS), optax.adamw(LR, weight_decay=WD)),
        all_are("decays"),
    ),
    "freeze after": (
        optax.chain(optax.adamw(LR, weight_decay=WD), optax.freeze(KERNELS)),
        ("decays", "no decay", "no decay", "decays"),
    ),
    "partition": (PARTITION, weights("decays")),
    "MultiSteps": (optax.MultiSteps(optax.adamw(LR, weight_decay=WD), 4), all_are("decays")),
    "MultiSteps, twice": (optax.MultiSteps(optax.chain(L2, optax.adamw(LR)), 4), all_are("decays twice")),
    "too much": (optax.sgd(1.0), all_are("no decay")),
    "clipping after the decay": (
        optax.chain(L2, optax.clip_by_global_norm(1.0), optax.sgd(LR)),
        all_are("unknown"),
    ),
    "noise": (
        optax.chain(optax.add_noise(0.01, 0.5, key=3), optax.sgd(LR), wd.shrink(WD, None)),
        all_are("not scaled by lr"),
    ),
    "line search": (optax.chain(optax.sgd(LR), optax.scale_by_backtracking_linesearch(3)), all_are("no decay")),
    "polyak_sgd": (optax.polyak_sgd(), all_are("no decay")),
    "ours": (wd.adamw(LR, weight_decay=WD), weights("decays")),
    "cautious": (wd.adamw(LR, weight_decay=WD, rule=wd.rules.cautious()), weights("not proportional")),
    "anchor": (wd.adamw(LR, weight_decay=WD, rule=wd.rules.toward("init")), weights("decays")),
    "constant coupling": (wd.adamw(LR, weight_decay=WD, coupling="constant"), weights("not scaled by lr")),
    "corrected coupling": (wd.adamw(LR, weight_decay=WD, coupling="corrected"), weights("decays")),
    "momentum and L2": (wd.sgd_l2(LR, weight_decay=WD, momentum=0.9), weights("in momentum")),
    "L1": (optax.chain(optax.adam(LR), wd.proximal(LR, None, penalty="l1")), all_are("not proportional")),
}
OPTAX["too much"] = (optax.chain(optax.add_decayed_weights(2.0), optax.sgd(1.0)), all_are("too much"))
OURS = {
    "adam_l2": weights("coupled: λ cancels"),
    "add_decayed_weights": all_are("decays"),
    "shrink": weights("not scaled by lr"),
    "proximal": weights("not scaled by lr"),
}
CASES = OPTAX | {f"wd.{name}": (optimizer(name), OURS.get(name, weights("decays"))) for name in NAMES}


VARIANTS = {  # of cases beside them
    "MultiSteps, twice",
    "adamw with warm-up",
    "muon, no mask",
    "prodigy at its tiny first rate",
    "schedule_free_adamw with warm-up",
    "sgd with momentum",
}


@functools.cache
def report_of(name):
    """The audit of a case, which several tests read."""
    return audit(CASES[name][0], params())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive if name in VARIANTS else ()) for name in CASES]
)
def test_every_optimizer_gets_its_verdict_on_every_leaf(name):
    report, expected = report_of(name), CASES[name][1]
    assert {row.path: row.verdict for row in report.rows} == dict(zip(PATHS, expected, strict=True))


@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", ["adamw", "lamb", "decay and adamw", "schedule_free_adamw", "wd.sgdw"])
def test_verdicts_are_the_same_in_x64_and_with_promotion(name, x64):
    tx, expected = CASES[name]
    report = audit(tx, params(jnp.float64))
    assert tuple(row.verdict for row in report.rows) == expected


@pytest.mark.parametrize("name", ["adamw", "lars", "decay before adam", "muon", "cautious", "and of the other sign"])
def test_stand_ins_give_the_same_verdicts_and_say_so(name):
    tx, expected = CASES[name]
    report = audit(tx, jax.eval_shape(params))
    assert tuple(row.verdict for row in report.rows) == expected
    assert "stand-ins" in str(report)
    assert "stand-ins" not in str(report_of("sgd"))


REMOVES = {
    "adamw": LR * WD,
    "adafactor": WD,
    "novograd": LR * WD / (1 - 0.9),
    "decay before momentum": LR * WD / (1 - 0.9),
    "decay after the learning rate": -WD,
    "adamw with warm-up": float(WARM_UP(128)) * WD,
    "MultiSteps": LR * WD,
    "anchor": LR * WD,
    "too much": 2.0,
}


@pytest.mark.parametrize("name", REMOVES)
def test_the_rate_is_measured_to_many_digits(name):
    row = dict(zip(PATHS, report_of(name).rows, strict=True))["attn/kernel"]
    # Optax rounds hyperparameters in arrays and schedules to float32
    assert row.removed_per_step == pytest.approx(REMOVES[name], rel=1e-6)


def test_nesterov_momentum_sums_up_to_the_same_rate():
    tx = wd.sgd_l2(LR, weight_decay=WD, momentum=0.9, nesterov=True)
    assert audit(tx, params()).rows[1].removed_per_step == pytest.approx(LR * WD / (1 - 0.9), rel=1e-6)


def test_half_life_and_what_remains_follow_the_schedule():
    schedule = optax.linear_schedule(LR, 0.0, 1000)
    row = audit(optax.adamw(schedule, weight_decay=WD), params(), horizon=1000).rows[1]
    exact = math.prod(1 - float(schedule(t)) * WD for t in range(1000))
    assert row.remaining == pytest.approx(exact, rel=1e-3)  # 16 points of 1000
    constant = audit(optax.adamw(LR, weight_decay=WD), params(), horizon=1000).rows[1]
    assert constant.remaining == pytest.approx((1 - LR * WD) ** 1000, rel=1e-9)
    assert constant.half_life == pytest.approx(692.8, abs=0.1)
    assert math.isnan(audit(optax.adamw(LR), params()).rows[1].remaining)


def test_too_little_is_judged_over_the_horizon_and_too_much_is_not():
    verdict = lambda weight_decay, horizon: audit(wd.sgdw(LR, weight_decay=weight_decay), params(), horizon=horizon)
    assert verdict(1e-4, 100).rows[1].verdict == "too little"
    assert verdict(1e-4, 100_000).rows[1].verdict == "decays"
    assert verdict(WD, 100_000).rows[1].verdict == "decays"  # 100 timescales a run are ordinary


def test_step_sets_every_count_and_the_state_is_left_alone():
    tx = optax.adamw(WARM_UP, weight_decay=WD)
    p = params()
    state = tx.init(p)
    at = lambda step: audit(tx, p, opt_state=state, step=step).rows[1].removed_per_step
    assert at(50) == pytest.approx(LR / 2 * WD, rel=1e-6)
    assert at(0) == 0
    assert int(state[0].count) == 0


@pytest.mark.optax_promotes
def test_the_moments_of_a_trained_state_are_not_taken_for_decay():
    p = params()
    for tx, expected in (CASES[n] for n in ("adamw", "decay before adam", "momentum and L2", "cautious")):
        state, update = tx.init(p), jax.jit(tx.update)
        for seed in range(20):
            _, state = update(optax.tree.random_like(jax.random.key(seed), p), state, p)
        report = audit(tx, p, opt_state=state)
        assert tuple(row.verdict for row in report.rows) == expected
    with pytest.raises(ValueError, match="opt_state is not a state of this optimizer"):
        audit(optax.sgd(LR), p, opt_state=state)
    with pytest.raises(ValueError, match="opt_state has the real shapes"):
        audit(tx, p, opt_state=state, stand_ins=True)


@pytest.mark.optax_promotes
def test_a_state_in_the_middle_of_an_accumulation():
    tx = optax.MultiSteps(wd.sgdw(LR, weight_decay=WD), 4)
    p = params()
    _, state = tx.update(optax.tree.ones_like(p), tx.init(p), p)
    report = audit(tx, p, opt_state=state)
    assert report.rows[1].removed_per_step == pytest.approx(LR * WD, rel=1e-6)
    assert "4 calls of update make one step" in report.how


def test_the_learning_rate_decides_where_only_a_schedule_can():
    """A decay with its own schedule: the state records no learning rate, and no stage shows one."""
    verdict = lambda tx, **options: audit(tx, params(), step=500, **options).rows[1].verdict
    follows = optax.chain(optax.adam(WARM_UP), wd.shrink(wd.decay_rate(WD, learning_rate=WARM_UP)))
    constant = wd.with_decay(optax.adam(WARM_UP), learning_rate=LR, weight_decay=WD, coupling="constant")
    assert verdict(follows, learning_rate=WARM_UP) == "decays"
    assert verdict(constant) == "not scaled by lr"  # by the size of the step along the schedule
    assert verdict(constant, learning_rate=WARM_UP) == "not scaled by lr"


def test_a_random_decay_is_unknown():
    def update(updates, state, p):
        keep = lambda u, x: u - LR * jax.random.bernoulli(state, 0.5, x.shape).astype(x.dtype) * x
        return jax.tree.map(keep, updates, p), jax.random.split(state)[0]

    tx = optax.GradientTransformation(lambda p: jax.random.key(0), update)
    assert {row.verdict for row in audit(tx, params()).rows} == {"unknown"}


def test_decay_that_waits_for_a_gradient_decays_and_spares_unused_rows():
    def update(updates, state, p):
        return jax.tree.map(lambda u, x: jnp.where(u == 0, u, -LR * u - LR * WD * x), updates, p), state

    report = audit(optax.GradientTransformation(lambda p: (), update), params())
    assert [row.verdict for row in report.rows] == ["decays"] * 4
    assert report.rows[0].removed_per_step == pytest.approx(LR * WD)
    assert "embedding decays" not in {f.rule for f in report.findings}


def rules(report):
    return {f.rule: f for f in report.findings}


big = lambda dtype: {"kernel": jnp.ones((64, 64), dtype)}
SCANNED = {
    "blocks": {
        "norm": {"scale": jnp.ones((12, 4))},
        "mlp": {"kernel": jnp.ones((12, 4, 4)), "bias": jnp.ones((12, 4))},
    }
}


def test_a_sound_optimizer_has_no_finding_but_information():
    report = audit(wd.adamw(1e-2, weight_decay=0.1), SCANNED | params())
    assert [f.rule for f in report.findings] == ["embedding decays"]


def test_f12_the_positional_number_was_no_weight_decay():
    """`adamw(0.1, 0.1)` sets b1: the audit shows λ's default."""
    assert audit(optax.adamw(0.1, 0.1), params()).rows[1].removed_per_step == pytest.approx(0.1 * 1e-4)


def test_f23_the_mask_does_not_reach_the_adam_branch():
    """Matrices obey the mask, and vectors decay all the same."""
    p = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    tx = optax.contrib.muon(
        LR, weight_decay=WD, adam_weight_decay=WD, weight_decay_mask={"kernel": True, "bias": False}
    )
    assert rules(audit(tx, p))["mask misses a branch"].paths == ("bias",)
    fixed = wd.with_decay(optax.contrib.muon(LR), learning_rate=LR, weight_decay=WD)
    assert audit(fixed, p).findings == ()
    assert not {"mask misses a branch", "branch without decay"} & {*rules(report_of("partition"))}


@pytest.mark.parametrize(
    ("dtype", "c", "moves"),
    # half a unit in the last place of bfloat16 is between 2⁻⁹ and 2⁻⁸ of the value; at 1, exactly 2⁻⁹ on the way down
    [
        (jnp.bfloat16, 1e-4, 0.0),
        (jnp.bfloat16, 1e-3, 0.0),
        (jnp.bfloat16, 0.0021, 1.0),
        (jnp.float32, 1e-8, 0.0),
        (jnp.float32, 3e-8, 1.0),
    ],
)
def test_rounding_is_what_apply_updates_does(dtype, c, moves):
    p = jnp.ones(1000, dtype)
    after = optax.apply_updates(p, (-c * p.astype(jnp.float32)).astype(dtype))
    moved, kept = low_precision.survives(np.ones(1000), dtype, c)
    assert moved == moves == np.mean(np.asarray(after != p))
    assert kept == pytest.approx(float(1 - after[0].astype(jnp.float32)) / c)


def test_rounding_numbers_of_the_reference():
    """At lr 3e-4, λ 1e-4 float32 removes twice what it should, 0.998808 in place of 0.999400 after 20 000 steps."""
    verdict = lambda lr, weight_decay: audit(wd.sgdw(lr, weight_decay=weight_decay), {"w": jnp.ones((9, 9))}).rows[0]
    assert verdict(1e-4, 1e-4)[8:10] == ("lost in rounding", 0.0)
    assert verdict(3e-4, 1e-4)[8:10] == ("lost in rounding", 1.0)
    twice = (1 - 0.998808) / (1 - 0.999400)
    assert low_precision.survives(np.ones(9), jnp.float32, 3e-8)[1] == pytest.approx(twice, rel=1e-2)
    assert verdict(1e-3, 1e-3)[8:10] == ("decays", 1.0)


def test_rounding_goes_by_the_parameters_own_values():
    """Next to a power of two the last place is half as large on the way down."""
    full = lambda value: {"w": jnp.full((9, 9), value, jnp.bfloat16)}
    verdict = lambda value: audit(wd.sgdw(1e-2, weight_decay=0.3), full(value)).rows[0]
    assert (verdict(1.0).verdict, verdict(1.0078125).verdict) == ("decays", "lost in rounding")


@pytest.mark.parametrize("how", ["stochastic", "compensated", "master", "nearest"])
def test_rounding_that_is_fixed_is_not_reported(how):
    tx = wd.adamw(1e-3, weight_decay=0.1)
    tx = (
        wd.precision.with_master_weights(tx)
        if how == "master"
        else optax.chain(wd.precision.in_float32(tx), wd.precision.round_updates(how))
    )
    assert audit(tx, big(jnp.bfloat16)).rows[0].verdict == ("lost in rounding" if how == "nearest" else "decays")


def llama(layers=18):
    """70 billion parameters that nobody allocates."""
    layer = lambda: {
        "attn": {name: {"kernel": shape(16384, 16384)} for name in "qkvo"},
        "mlp": {name: {"kernel": shape(16384, 57344)} for name in ("up", "gate", "down")},
        "norm1": {"scale": shape(16384)},
        "norm2": {"scale": shape(16384)},
    }
    blocks = [layer() for _ in range(layers)]
    return {"embed": {"embedding": shape(128256, 16384)}, "layers": blocks, "out": {"kernel": shape(16384, 128256)}}


def test_seventy_billion_parameters_are_audited_on_stand_ins(monkeypatch):
    seen = []
    monkeypatch.setattr(harness, "sample", lambda x: seen.append(np.shape(x)) or probes.sample(x))
    report = audit(wd.adamw(3e-4, weight_decay=0.1), llama())
    assert max(size for shape in seen for size in shape) <= probes.LARGEST
    assert len(report.rows) == 164
    assert sum(row.size for row in report.rows) > 7e10
    report.check(decays=["kernel", "embedding"], spares=["scale"])
    lines = str(report).splitlines()
    assert lines[2].startswith("layers/*/attn/k/kernel x18")
    assert lines[-1].startswith("128 of 164 leaves decay")
    assert len(lines) < 20


def test_stand_ins_keep_ranks_types_and_which_sizes_are_equal():
    shapes = [(4096, 32, 128), (4096,), (2, 128), (), (3, 1)]
    small = probes.small_shapes(shapes)
    assert [len(s) for s in small] == [len(s) for s in shapes]
    assert small[0][0] == small[1][0] != small[0][1]
    assert small[3:] == [(), (3, 1)]
    many = probes.small_shapes([(size,) for size in range(1, 1000)])
    assert max(many) == (probes.LARGEST,)
    made = probes.build_probes(jax.eval_shape(lambda: {"w": jnp.ones((999, 7), jnp.bfloat16)}), True)
    assert (made.values[0].shape, made.small) == ((6, 5), True)


def test_the_printout_fits_100_columns_and_ends_with_totals():
    block = {"a_very_long_name_of_a_layer" * 3: {"attention_output": {"kernel": jnp.ones((2, 3, 4, 5))}}}
    long = {"block_1": block, "block_2": block}
    p = {"encoder": long, "scale": jnp.ones(7), "steps": jnp.zeros((), jnp.int32)}
    for tx in (wd.shrink(1e-9), CASES["decay after the learning rate"][0], optax.adamw(LR)):
        report = audit(tx, p, horizon=10**9)
        lines = str(report).splitlines()
        assert max(map(len, lines)) <= 100
        assert "leaves decay" in lines[-1]
        assert " x2 " in lines[1]
        assert "block_*" in report.to_markdown()


def test_leaves_that_differ_are_not_folded():
    p = {f"layer{i}": {"kernel": jnp.ones((3, 3 + (i == 2)))} for i in range(4)}
    mask = [("layer3", 0.5), (".*", 1.0)]
    text = str(audit(wd.sgdw(LR, weight_decay=WD, mask=mask), p))
    assert [line.split("  ")[0] for line in text.splitlines()[1:4]] == [
        "layer*/kernel x2",
        "layer2/kernel",
        "layer3/kernel",
    ]


def test_check_passes_and_raises_with_the_table():
    report = report_of("ours")
    report.check(decays=["kernel$", "embed"], spares=["bias", "scale"])
    with pytest.raises(AssertionError) as error:
        report.check(decays=["attn"], spares=["kernel"])
    text = str(error.value)
    assert "'attn/bias' should decay, but its verdict is 'no decay'" in text
    assert "'attn/kernel' should not decay, but its verdict is 'decays'" in text
    assert str(report) in text
    with pytest.raises(AssertionError, match="regex 'kernal' matches no parameter"):
        report.check(decays=["kernal"])
    with pytest.raises(TypeError, match="pass a list"):
        report.check(decays="kernel")
    with pytest.raises(AssertionError, match="'attn/kernel' should decay, but its verdict is 'growing'"):
        report_of("decay after the learning rate").check(decays=["kernel"])


def test_markdown_is_a_table_and_a_list():
    text = report_of("decay after the learning rate").to_markdown()
    lines = text.splitlines()
    assert lines[0] == "| path | type | role | removed | half-life | verdict |"
    assert lines[3] == "| attn/kernel | f32[3,2,4] | weight | -0.1 | never | growing |"
    assert any(line.startswith("- **error** grows at attn/bias") for line in lines)
    assert len({line.count("|") for line in lines[:6]}) == 1


def test_pandas_has_a_line_per_parameter_and_is_an_extra(monkeypatch):
    report = report_of("ours")
    table = report.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == list(AuditRow._fields)
    assert dict(zip(table.path, table.verdict, strict=True))["attn/kernel"] == "decays"
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"wd_optax\[pandas\]"):
        report.to_pandas()


def test_rows_describe_the_parameter():
    row = report_of("ours").rows[1]
    assert row[:5] == ("attn/kernel", (3, 2, 4), jnp.dtype("float32"), 24, "weight")
    assert row.removed_per_step == pytest.approx(LR * WD)
    assert row.changed_fraction == 1.0


def test_complex_integer_and_empty_leaves_pass():
    p = {"kernel": jnp.ones((3, 3), jnp.complex64), "steps": jnp.zeros((), jnp.int32), "empty": jnp.ones((0, 3))}
    rows = {row.path: row.verdict for row in audit(wd.sgdw(LR, weight_decay=WD), p).rows}
    assert rows == {"kernel": "decays", "steps": "no decay", "empty": "no decay"}
    assert audit(optax.sgd(LR), {}).rows == ()


def test_what_the_optimizer_raises_comes_through_and_extra_arguments_reach_it():
    def update(updates, state, p, *, temperature):
        return jax.tree.map(lambda u, x: -LR * u - temperature * x, updates, p), state

    tx = optax.GradientTransformationExtraArgs(lambda p: (), update)
    assert audit(tx, params(), extra_args={"temperature": 0.25}).rows[0].removed_per_step == pytest.approx(0.25)
    with pytest.raises(TypeError, match="temperature"):
        audit(tx, params())


@pytest.mark.parametrize(("name", "value"), [("step", -1), ("horizon", 0), ("horizon", 1.5)])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        audit(optax.sgd(LR), params(), **{name: value})
    with pytest.raises(ValueError, match="stand_ins=False"):
        audit(optax.sgd(LR), jax.eval_shape(params), stand_ins=False)


def test_every_verdict_of_the_table_is_reached():
    words = {value for name, value in vars(verdicts).items() if name.isupper() and isinstance(value, str)}
    reached = {verdict for _, expected in CASES.values() for verdict in expected}
    assert words - reached == {
        "too little",
        "varies within the leaf",
        "lost in rounding",
        "proximal",
        "projected",
        "constrained",
    }  # each has tests of its own
    assert verdicts.classify(measurements.Measurements()) == "no decay"
    assert issubclass(AuditFinding, tuple)
    assert issubclass(AuditReport, tuple)


def test_an_empty_leaf_beside_a_lossy_one():
    params = {"kernel": jnp.ones((8, 8), jnp.bfloat16), "empty": jnp.zeros((0, 3))}
    report = wd.audit(wd.precision.with_master_weights(wd.adamw(1e-3, weight_decay=0.1)), params)
    assert {row.path: row.verdict for row in report.rows}["kernel"] == "decays"


def test_master_weights_under_a_schedule_are_not_taken_for_lost():
    """The stand-ins' run sees the schedule too: after three steps of 1e-2 nothing is removed any more."""
    schedule = optax.piecewise_constant_schedule(1e-2, {3: 0.0})
    params = {"kernel": jnp.ones((8, 8), jnp.bfloat16)}
    report = wd.audit(wd.precision.with_master_weights(wd.adamw(schedule, weight_decay=0.1)), params, horizon=2)
    assert report.rows[0].verdict != "lost in rounding"


def test_two_decays_whose_lambdas_are_in_the_state_add_up():
    """Wrapped in each other, no stage shows them; with one λ at zero the other's rate is left."""
    params = {name: {"kernel": jnp.ones((3, 4))} for name in "abc"}
    wrap = lambda inner: wd.with_decay(wd.adamw(0.1, weight_decay=inner), learning_rate=0.1, weight_decay=0.1)
    groups = {"a": wd.adamw(0.1, weight_decay=0.3), "b": wrap(0.0), "c": wrap(0.5)}
    report = wd.audit(wd.partition(groups, lambda p: p.path[0]), params)
    assert [row.verdict for row in report.rows] == ["decays", "decays", "decays twice"]
