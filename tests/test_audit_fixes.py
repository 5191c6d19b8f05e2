"""Every fix that the audit prints works: it removes its finding and adds none."""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

import wd_optax as wd
from wd_optax.auditing import findings
from wd_optax.auditing.report import AuditFinding, AuditReport

pytestmark = pytest.mark.slow

LR, WD = 0.01, 0.1
L2 = optax.add_decayed_weights
P = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
KERNEL = {"kernel": jnp.ones((9, 9))}
STACKED = {"norm": {"scale": jnp.ones((5, 4))}, "mlp": {"kernel": jnp.ones((5, 4, 4)), "bias": jnp.ones((5, 4))}}
IN_BF16 = {"kernel": jnp.ones((9, 9), jnp.bfloat16)}
WEIGHTS = {"kernel": True, "bias": False}
DEEP = {f"a_layer_with_a_long_name_{i}": dict(P) for i in range(3)}
by_rank = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)


def custom(scale=lambda g, p, count: -LR * g, weight_decay=0.0):
    """A custom transformation, whose stages can't be read."""
    step = lambda g, p, count: (scale(g, p, count) - weight_decay * p).astype(p.dtype)

    def update(grads, count, params):
        return jax.tree.map(lambda g, p: step(g, p, count), grads, params), count + 1

    return optax.GradientTransformation(lambda p: jnp.zeros((), jnp.int32), update)


SHAPES = {"large": (100_000, 20_000), "small": (10, 20)}


class Case(NamedTuple):
    make: Any  # keyword arguments -> the optimizer; or what the fix calls `factory`
    base: Any = None  # what the fix calls `optimizer`, if it isn't the optimizer itself
    params: Any = P
    options: dict[str, Any] = {}  # of the audit  # noqa: RUF012
    rebuild: Any = None  # what to do with a fixed factory
    state: int = 0  # steps of training after which the fix takes the state
    paths: tuple[str, ...] | None = None


def muon(**options):
    return optax.contrib.muon(LR, **options)


def injected(**options):
    return optax.inject_hyperparams(optax.adamw)(LR, weight_decay=1.0, **options)


OPTAX = lambda **options: optax.adamw(**{"learning_rate": LR, "weight_decay": WD} | options)
OURS = lambda **options: wd.adamw(**{"learning_rate": LR, "weight_decay": WD} | options)
ROLES = Case(
    OPTAX,
    params={
        **P,
        "attn": {"kernel": jnp.ones((4, 2, 3)), "bias": jnp.ones((2, 3))},
        "mlp": {"kernel": jnp.ones((5, 4, 4)), "bias": jnp.ones((5, 4))},
        "norms": {"scale": jnp.ones((5, 4))},
        "norm": {"scale": jnp.ones(4)},
        "temperature": jnp.ones(()),
        "embed": {"embedding": jnp.ones((5, 3))},
    },
)
CASES = {
    "grows": Case(lambda: optax.chain(optax.adam(LR), L2(WD)), optax.adam(LR), paths=("bias", "kernel")),
    "ascent": Case(lambda: optax.chain(optax.sgd(LR), optax.scale(-1.0)), optax.sgd(LR)),
    "ascent, with decay": Case(
        lambda: optax.chain(optax.adam(LR), L2(WD), optax.scale_by_learning_rate(LR)), optax.adam(LR)
    ),
    "raw gradient": Case(lambda: optax.masked(optax.sgd(LR), WEIGHTS), paths=("bias",)),
    "raw gradient, many": Case(
        lambda: optax.masked(optax.sgd(LR), dict.fromkeys(DEEP, WEIGHTS)), params=DEEP
    ),
    "raw gradient, some": Case(
        lambda: optax.masked(optax.sgd(LR), [WEIGHTS, WEIGHTS, True]), params=[dict(P) for _ in range(3)]
    ),
    "too much": Case(
        lambda weight_decay=2.0: optax.chain(L2(weight_decay), optax.sgd(1.0)), options={"learning_rate": 1.0}
    ),
    "too much, half": Case(lambda weight_decay=50.0: OPTAX(weight_decay=weight_decay), options={"horizon": 10_000}),
    "too much, unknown": Case(lambda weight_decay=1.0: custom(weight_decay=weight_decay)),
    "too much, one leaf": Case(
        lambda weight_decay=0.5: custom_masked(weight_decay), options={"learning_rate": 1.0}, paths=("kernel",)
    ),
    "frozen leaf decays": Case(lambda: optax.chain(optax.freeze(WEIGHTS), OPTAX()), paths=("kernel",)),
    "not finite": Case(
        injected, optax.adamw, IN_BF16, rebuild=lambda factory: factory(LR, weight_decay=1.0), paths=("kernel",)
    ),
    "not finite, float16": Case(
        lambda: optax.chain(*map(optax.scale, [1e4, 1e4, 1e-4, 1e-4]), OURS(weight_decay=1.0)),
        params={"kernel": jnp.ones((3, 3), jnp.float16)},
    ),
    "decays twice": Case(lambda weight_decay=WD: optax.chain(L2(weight_decay), optax.adamw(LR))),
    "decays twice, outside": Case(
        lambda weight_decay=WD: wd.with_decay(
            optax.lion(LR, weight_decay=weight_decay), learning_rate=LR, weight_decay=WD
        ),
        paths=("kernel",),
    ),
    "lost in rounding": Case(lambda: OURS(learning_rate=1e-3), params=IN_BF16),
    "lost in rounding, float32": Case(lambda: OURS(learning_rate=1e-6, weight_decay=0.01), params=KERNEL),
    "lost in rounding, both": Case(
        lambda: wd.sgdw(1e-3, weight_decay=0.1, mask=[("a", 1e-4), ("b", 1.0)]),
        params={"a": {"kernel": jnp.ones((9, 9))}, "b": {"kernel": jnp.ones((9, 9), jnp.bfloat16)}},
    ),
    "mask became a schedule": Case(
        lambda: injected(mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.adamw,
        rebuild=lambda factory: factory(LR, weight_decay=WD, mask=by_rank),
        paths=(),
    ),
    "normalised away": Case(lambda: optax.lamb(LR, weight_decay=WD), optax.lamb(LR, weight_decay=0.0)),
    "coupled": Case(lambda: optax.chain(L2(WD), optax.adam(LR)), optax.adam(LR)),
    "coupled, with a rate": Case(
        lambda: wd.adam_l2(LR, weight_decay=WD), optax.adam(LR), options={"learning_rate": LR}, paths=("kernel",)
    ),
    "penalty without its metric": Case(
        lambda: optax.chain(optax.adam(LR), wd.proximal(LR * WD, penalty="l1")), paths=("kernel",)
    ),
    "too little": Case(lambda weight_decay=1e-4: OURS(weight_decay=weight_decay), options={"horizon": 100}),
    "not scaled by the learning rate": Case(
        lambda: optax.adafactor(LR, weight_decay_rate=WD), optax.adafactor(LR)
    ),
    "not scaled by the learning rate, ours": Case(lambda: OURS(coupling="constant"), optax.adam(LR)),
    "not scaled by the learning rate, at a small rate": Case(
        lambda: OURS(weight_decay=1e-5, coupling="constant"), optax.adam(LR), options={"horizon": 1000}
    ),
    "not scaled by the learning rate, at a known rate": Case(
        lambda: OURS(weight_decay=1e-5, coupling="constant"), optax.adam(LR), options={"learning_rate": LR}
    ),
    "nothing decays": Case(lambda: optax.adam(LR), paths=()),
    "branch without decay": Case(
        lambda: muon(weight_decay=WD), muon(), {"a": {"kernel": jnp.ones((3, 4))}, "b": {"kernel": jnp.ones((2, 3, 4))}}
    ),
    "mask misses a branch": Case(
        lambda: muon(weight_decay=WD, adam_weight_decay=WD, weight_decay_mask=WEIGHTS), muon(), paths=("bias",)
    ),
    "bias decays": ROLES._replace(paths=("bias",)),
    "stacked or attention bias decays": ROLES._replace(paths=("attn/bias", "mlp/bias")),
    "stacked norm decays": ROLES._replace(paths=("norms/scale",)),
    "norm scale decays": ROLES._replace(paths=("norm/scale",)),
    "scalar or token decays": ROLES._replace(paths=("temperature",)),
    "embedding decays": ROLES._replace(paths=("embed/embedding",)),
    "bias decays, ours": Case(lambda mask=None: OURS(mask=mask)),
    "bias decays, in a branch": Case(lambda: muon(weight_decay=WD, adam_weight_decay=WD), muon()),
    "bias decays, in momentum": Case(
        lambda mask=None: optax.chain(L2(WD, mask), optax.sgd(LR, 0.9)), params={"bias": jnp.ones(3), **KERNEL}
    ),
    "stacked norm decays, by rank": Case(lambda mask=by_rank: OPTAX(mask=mask), params=STACKED),
    "embedding decays, many": Case(
        OPTAX, params={**P, "embed": {f"a_table_with_a_long_name_{'xyz'[i]}": jnp.ones((5, 3)) for i in range(3)}}
    ),
    "unknown, at first": Case(
        lambda: custom(lambda g, p, count: -LR * g / jnp.minimum(count, 1).astype(g.dtype) - 0.001 * p),
        params=KERNEL, state=3,
    ),
    "decay before a projection": Case(
        lambda weight_decay=WD: optax.chain(
            optax.adamw(LR, weight_decay=weight_decay, mask=WEIGHTS), wd.project("init")
        ),
        paths=("kernel",),
    ),
    "learning rates differ": Case(
        lambda learning_rate=0.1: wd.with_decay(optax.adam(1e-3), learning_rate=learning_rate, weight_decay=WD)
    ),
    "not yet": Case(lambda: optax.contrib.prodigy(weight_decay=WD), params=KERNEL, state=300),
    "varies within the leaf": Case(
        lambda: custom(lambda g, p, count: -LR * g - 0.001 * p * jnp.linspace(1, 2, p.size).reshape(p.shape)),
        optax.sgd(LR), KERNEL,
    ),
    "not carried over": Case(
        lambda mask=lambda p: jax.tree.map(lambda x: x.size > 10**9, p): OPTAX(mask=mask),
        params={name: {"kernel": jax.ShapeDtypeStruct(s, jnp.float32)} for name, s in SHAPES.items()},
    ),
    "unknown": Case(
        lambda: optax.chain(L2(WD), optax.clip_by_global_norm(1.0), optax.sgd(LR)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(LR)),
    ),
}  # fmt: skip


def custom_masked(weight_decay):
    """A multiplier of 4 on the kernel."""
    return wd.sgdw(1.0, weight_decay=weight_decay, mask=[("kernel", 1.5), (".*", 0.1)])


def fixed(case: Case, fix: str) -> AuditReport:
    """The audit of what the fix makes."""
    if re.match(r"\w+=", fix):
        return wd.audit(
            case.make(**eval(f"dict({fix}\n)", {"wd": wd, "weight_decay": default(case)})), case.params, **case.options
        )
    optimizer = case.make() if case.base is None else case.base
    names = {
        "wd": wd,
        "optax": optax,
        "jnp": jnp,
        "learning_rate": LR,
        "weight_decay": WD,
        "factory": optimizer,
        "peak_learning_rate": LR,
    }
    names |= {"optimizer": optimizer, "params": case.params, "frozen": jax.tree.map(lambda x: x.ndim < 2, case.params)}
    if case.state:
        state, update = optimizer.init(case.params), jax.jit(optimizer.update)
        for _ in range(case.state):  # Prodigy mixes int and float
            with jax.numpy_dtype_promotion("standard"):
                _, state = update(optax.tree.ones_like(case.params), state, case.params)
        names["opt_state"] = state
    result = eval(fix, names)
    if isinstance(result, AuditReport):
        return result
    return wd.audit(result if case.rebuild is None else case.rebuild(result), case.params, **case.options)


def default(case: Case) -> Any:
    return (case.make.__defaults__ or (None,))[0]


def audited(case: Case) -> AuditReport:
    return wd.audit(case.make(), case.params, **case.options)


@functools.cache
def roles_audited():
    return audited(ROLES)


@functools.cache
def roles_fixed(fix):
    return fixed(ROLES, fix)


def variant(name):
    """Other optimizers with the same finding take long together."""
    return pytest.param(name, marks=pytest.mark.exhaustive if "," in name else ())


@pytest.mark.parametrize("name", [variant(name) for name in CASES])
def test_the_printed_fix_removes_the_finding_and_adds_none(name):
    case, rule = CASES[name], name.partition(",")[0]
    shared = case.params is ROLES.params  # one audit for all roles
    report = roles_audited() if shared else audited(case)
    before = {f.rule: f for f in report.findings}
    assert rule in before
    assert case.paths in (None, before[rule].paths)
    fix = before[rule].fix
    after = {f.rule for f in (roles_fixed(fix) if shared else fixed(case, fix)).findings}
    assert after <= {*before} - {rule}, fix


def test_every_rule_has_a_case_and_a_page_that_explains_it():
    names = [rule.name for rule in findings.RULES]
    assert len(set(names)) == len(names)
    assert {name.partition(",")[0] for name in CASES} == set(names)
    root = Path(__file__).parents[1]
    pages = {f"docs/what_goes_wrong/{path.name}" for path in (root / "docs" / "what_goes_wrong").glob("*.md")}
    see = [AuditFinding(rule.severity, rule.name, (), "", "").see for rule in findings.RULES]
    assert sorted(see) == sorted(pages - {"docs/what_goes_wrong/index.md"})
    index = (root / "docs" / "what_goes_wrong" / "index.md").read_text()
    for page, rule in zip(see, findings.RULES, strict=True):
        assert re.search(f"^{rule.severity}: {rule.name}( at|:)", (root / page).read_text(), re.M), page
        assert Path(page).stem in index, page


def test_severities_come_in_order():
    report = wd.audit(optax.chain(L2(WD), optax.adamw(LR)), {**P, "embed": {"embedding": jnp.ones((5, 3))}})
    severities = [f.severity for f in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "information"].index)
    assert len(set(severities)) == 3


def test_a_fix_has_the_callers_numbers():
    fix = lambda tx, **options: wd.audit(tx, P, **options).findings[0].fix
    wrong = optax.chain(optax.adam(3e-4), L2(0.05))
    assert "learning_rate=learning_rate, weight_decay=0.05)" in fix(wrong)
    assert "learning_rate=0.0003, weight_decay=0.05)" in fix(wrong, learning_rate=3e-4)
    assert "learning_rate=learning_rate," in fix(wrong, learning_rate=optax.cosine_decay_schedule(3e-4, 10))
    two = {**P, "head": {"kernel": jnp.ones((4, 2))}}
    per_layer = optax.chain(
        optax.adam(LR),
        L2(0.1, {"kernel": True, "bias": False, "head": False}),
        L2(0.2, {**WEIGHTS, "kernel": False, "head": True}),
    )
    assert "weight_decay=weight_decay)" in wd.audit(per_layer, two).findings[0].fix

    twice = optax.chain(L2(0.1), optax.scale_by_adam(), L2(0.03), optax.scale_by_learning_rate(LR))
    found = {f.rule: f.fix for f in wd.audit(optax.chain(L2(0.1), optax.adamw(LR)), P).findings}
    assert found["decays twice"].startswith("weight_decay=0.0  # ")
    assert "which add 0.03, 0.1 of the weight" in {f.rule: f.fix for f in wd.audit(twice, P).findings}["decays twice"]


def test_a_regex_in_a_fix_matches_the_leaves_that_were_found_and_no_others():
    layers = [{"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)} for _ in range(4)]
    mask = [{"kernel": True, "bias": False}] * 3 + [True]
    found = wd.audit(optax.masked(OPTAX(), mask), layers).findings[0]
    assert found.paths == ("0/bias", "1/bias", "2/bias")
    regex = re.search(r'\(r?"(.*?)", 1\)', found.fix)[1]
    assert [bool(re.search(regex, f"{i}/bias")) for i in range(4)] == [True, True, True, False]
    every = wd.audit(optax.masked(OPTAX(), [WEIGHTS] * 4), layers).findings[0]
    assert r'r"^\d+/bias$"' in every.fix
