"""What is wrong with a measured decay, each with the number of its footgun and the line that mends it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from wd_optax import roles
from wd_optax.auditing import verdicts
from wd_optax.auditing.bench import Bench
from wd_optax.auditing.facts import Facts
from wd_optax.auditing.report import Finding, Row

Test = Callable[[Row, Facts], bool]
SEVERITIES = ("error", "warning", "information")
_is = lambda *words: lambda row, f: row.verdict in words

# severity, rule, footgun, which leaves, what happens, the mend
LEAVES: list[tuple[str, str, str, Test, str, str]] = [
    (
        "error", "grows", "F13", _is(verdicts.GROWS),
        "the decay has the wrong sign, and weights grow every step",
        "optax.chain(optimizer, wd.shrink(c)): behind the learning rate only shrink subtracts",
    ),
    (
        "error", "ascent", "F14", lambda row, f: f.ascends and not f.raw,
        "the step goes up the gradient: the sign is flipped twice",
        "keep one scale_by_learning_rate: drop the one behind an optimizer that has its own",
    ),
    (
        "error", "raw gradient", "F4", lambda row, f: f.ascends and f.raw,
        "the raw gradient passes through and is added: masked() does not freeze what it leaves out",
        "optax.chain(optimizer, optax.freeze(frozen))",
    ),
    (
        "error", "removes everything", "F17", lambda row, f: row.verdict == verdicts.TOO_MUCH and f.removed >= 1,
        "one step removes the whole weight or flips its sign",
        "lower weight_decay until learning_rate * weight_decay is well below 1",
    ),
    (
        "error", "frozen leaf decays", "F11", lambda row, f: f.decays and f.frozen,
        "no gradient moves this leaf, and it still decays",
        "optax.chain(optimizer, optax.freeze(frozen)): freeze last",
    ),
    (
        "error", "not finite", "F18", lambda row, f: not f.finite,
        "a step is NaN or infinite in the parameter's own type",
        "optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32), or wd.adamw, whose hyperparameters are live",
    ),
    (
        "error", "decays twice", "F22", _is(verdicts.TWICE),
        "more than one stage decays",
        "keep one: pass weight_decay=0.0 to the optimizer that has a decay of its own",
    ),
    (
        "error", "lost in rounding", "F6", lambda row, f: row.verdict == verdicts.LOST and row.dtype.itemsize < 4,
        "rounding to 16 bits or less swallows the decay",
        'optax.chain(wd.in_float32(optimizer), wd.round_updates("stochastic")), or wd.with_master_weights(optimizer)',
    ),
    (
        "error", "lost in rounding", "F7", lambda row, f: row.verdict == verdicts.LOST and row.dtype.itemsize >= 4,
        "one step's decay is below half a unit in the last place, and rounding swallows or distorts it",
        'raise weight_decay, or optax.chain(optimizer, wd.round_updates("compensated_all"))',
    ),
    (
        "warning", "normalised away", "F8", _is(verdicts.NORMALISED),
        "a trust ratio normalises the decay with the step: the size of weight_decay cancels",
        "wd.with_decay(optax.lamb(lr, weight_decay=0.0), learning_rate=lr, weight_decay=wd)",
    ),
    (
        "warning", "coupled", "F15", _is(verdicts.COUPLED),
        "the decay passes through the preconditioner, where most of weight_decay cancels",
        "wd.adamw(lr, weight_decay=wd), or wd.with_decay(optimizer, learning_rate=lr, weight_decay=wd)",
    ),
    (
        "warning", "nothing left", "", lambda row, f: row.verdict == verdicts.TOO_MUCH and f.removed < 1,
        "less than 0.1 % of the weight is left at the horizon if no gradient renews it",
        "lower weight_decay",
    ),
    (
        "warning", "too little", "", _is(verdicts.TOO_LITTLE),
        "over the whole horizon less than 0.1 % is removed",
        "raise weight_decay, or drop it",
    ),
    (
        "warning", "not scaled by the learning rate", "F16", _is(verdicts.UNSCALED),
        "the decay is this large at any learning rate, in a warm-up and at the end, too",
        "wd.with_decay(optimizer, learning_rate=lr, weight_decay=wd)",
    ),
    (
        "information", "embedding", "F29", lambda row, f: row.role == "embedding" and f.decays and f.still,
        "an embedding decays, also the rows whose gradient is zero",
        'mask=[("embed", 0), (".*", "weights")] if rare rows should keep their size',
    ),
    (
        "information", "unknown", "", lambda row, f: row.verdict == verdicts.UNKNOWN and f.finite,
        "the decay is random, or too small to try, or depends on the gradient in a way that no verdict fits",
        "step= or opt_state= from training, where the optimizer may behave",
    ),
]  # fmt: skip

# which leaves, footgun: weights alone should decay
ROLES: list[tuple[str, Callable[[Row], bool], str]] = [
    ("stacked or attention bias", lambda row: row.role == "bias" and len(row.shape) >= 2, "F9"),
    ("bias", lambda row: row.role == "bias" and len(row.shape) < 2, ""),
    ("stacked norm", lambda row: row.role == "norm" and len(row.shape) >= 2, "F10"),
    ("norm scale", lambda row: row.role == "norm" and len(row.shape) < 2, ""),
    ("scalar or token", lambda row: row.role == "other", ""),
]


def find(bench: Bench, rows: tuple[Row, ...], facts: list[Facts]) -> tuple[Finding, ...]:
    """All findings, worst first."""
    pairs = list(zip(rows, facts, strict=True))
    found = []
    for severity, rule, footgun, test, what, mend in LEAVES:
        paths = tuple(row.path for row, f in pairs if test(row, f))
        if paths:
            found.append(Finding(severity, rule, footgun, paths, what, mend))
    missed = _missed_branch(bench, pairs)
    found += [*_mask_as_schedule(bench), *missed, *_nothing(pairs)]
    told = {path for f in missed for path in f.paths}
    for name, is_role, footgun in ROLES:
        paths = tuple(row.path for row, f in pairs if f.decays and is_role(row) and row.path not in told)
        if paths:
            what = "only weights should decay; here it changes what the layer computes and regularises nothing"
            found.append(Finding("warning", f"{name} decays", footgun, paths, what, 'mask="weights"'))
    return tuple(sorted(found, key=lambda f: SEVERITIES.index(f.severity)))


def _mask_as_schedule(bench: Bench) -> list[Finding]:
    """F1: `inject_hyperparams` keeps what it evaluates as schedules in `hyperparams_states`, and here is a mask."""
    holds = lambda node: isinstance(getattr(node, "hyperparams_states", None), dict)
    nodes = jax.tree.leaves(bench.state, is_leaf=holds)
    names = sorted({name for node in nodes if holds(node) for name in node.hyperparams_states if "mask" in name})
    what = "inject_hyperparams evaluated {}=function as a schedule: it never saw the parameters"
    mend = "optax.inject_hyperparams(factory, static_args={!r})"
    return [Finding("error", "mask became a schedule", "F1", (), what.format(n), mend.format(n)) for n in names]


def _nothing(pairs: Sequence[tuple[Row, Facts]]) -> list[Finding]:
    """F3: nothing decays at all."""
    if not pairs or any(f.decays or not f.finite for _, f in pairs):
        return []
    what = "no parameter decays: there is no decay, its mask picks nothing, or it is zero at this step"
    return [Finding("warning", "nothing decays", "F3", (), what, 'wd.with_decay(..., mask="weights"), or step=')]


def _missed_branch(bench: Bench, pairs: Sequence[tuple[Row, Facts]]) -> list[Finding]:
    """F23: parameters are split between optimizers, and only some of those have the decay, or the mask."""
    label = _branches(bench)
    weights = {label.get(r.path): [] for r, f in pairs}  # type: ignore[var-annotated]
    for row, f in pairs:
        if row.role in roles.DECAYING_ROLES and not f.frozen:
            weights[label.get(row.path)].append((row.path, f.decays))
    if len(weights) < 2 or not any(decays for found in weights.values() for _, decays in found):
        return []
    spared = [path for found in weights.values() if not any(d for _, d in found) for path, _ in found]
    clean = {b for b in weights if not any(f.decays for r, f in pairs if label.get(r.path) == b and _light(r))}
    light = [r.path for r, f in pairs if clean and _light(r) and f.decays]
    found = []
    for paths, what in (
        (spared, "weights are split between optimizers, and this branch has no decay"),
        (light, "parameters are split between optimizers, and the mask does not reach this branch: it decays"),
    ):
        if paths:
            mend = 'wd.with_decay(optimizer, learning_rate=lr, weight_decay=wd): its mask="weights" sees every leaf'
            found.append(Finding("warning", "mask misses a branch", "F23", tuple(paths), what, mend))
    return found


def _light(row: Row) -> bool:
    return row.role not in roles.DECAYING_ROLES


def _branches(bench: Bench) -> dict[str, str]:
    """Path -> label, read off the state of `optax.partition`: a branch keeps moments of its own leaves only."""
    holds = lambda node: isinstance(getattr(node, "inner_states", None), dict)
    label = {}
    for node in filter(holds, jax.tree.leaves(bench.state, is_leaf=holds)):
        for name, inner in node.inner_states.items():
            ends = [path for path, leaf in roles.flatten(inner)[0] if jnp.shape(leaf)]
            for p in bench.subject.found:
                if any(end == p.path or end.endswith("/" + p.path) for end in ends):
                    label[p.path] = str(name)
    return label
