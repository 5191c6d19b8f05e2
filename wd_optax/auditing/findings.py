"""What is wrong with a measured decay: a table of rules, each with its severity, the leaves it holds for, and a fix.

Each rule has a section of its name in `docs/what_goes_wrong.md`, and `tests/test_audit_fixes.py` applies its fix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from wd_optax.auditing import fixes, verdicts
from wd_optax.auditing.fixes import Leaves, Measured
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.report import AuditFinding, AuditRow
from wd_optax.masking import roles

SEVERITIES = ("error", "warning", "information")


class Rule(NamedTuple):
    """One thing that goes wrong."""

    severity: str
    name: str
    leaves: Callable[[Measured], Leaves | None]  # None: doesn't hold; (): holds for the optimizer as a whole
    what: str | Callable[[Measured, Leaves], str]
    fix: Callable[[Measured, Leaves], str]


def _where(test: Callable[[AuditRow, Measurements], bool]) -> Callable[[Measured], Leaves | None]:
    """The leaves that pass, where there are any."""
    return lambda measured: [i for i, pair in enumerate(measured.pairs) if test(*pair)] or None


def _is(word: str) -> Callable[[Measured], Leaves | None]:
    return _where(lambda row, f: row.verdict == word)


def _role(role: str, stacked: bool | None = None) -> Callable[[Measured], Leaves | None]:
    """Leaves of this role that decay, or would if rounding let them, less those of a branch that the mask misses."""

    def leaves(measured: Measured) -> Leaves | None:
        missed = {*(_unmasked_branch(measured) or ())}
        is_one = lambda row: row.role == role and stacked in (None, len(row.shape) >= 2)
        return [i for i, row in enumerate(measured.rows) if _shrinks(row) and is_one(row) and i not in missed] or None

    return leaves


def _rates_differ(row: AuditRow, f: Measurements) -> bool:
    return f.decays and f.asked > 0 and (f.steps_by / f.asked < 0.5 or f.steps_by / f.asked > 2)  # not where one is nan


def _shrinks(row: AuditRow) -> bool:
    return row.decays or row.verdict == verdicts.LOST


_embedding = _where(lambda row, f: row.role == "embedding" and _shrinks(row) and f.still)


def _light(row: AuditRow) -> bool:
    return row.role not in roles.DECAYING_ROLES


def _mask_as_schedule(measured: Measured) -> Leaves | None:
    """`inject_hyperparams` keeps what it evaluates as schedules in `hyperparams_states`, and here is a mask."""
    return () if any("mask" in name for name in measured.evaluated) else None


def _nothing(measured: Measured) -> Leaves | None:
    return () if measured.rows and all(row.verdict == verdicts.SPARED for row in measured.rows) else None


def _branch_without_decay(measured: Measured) -> Leaves | None:
    """Weights whose whole branch of an `optax.partition` has no decay, where another branch has."""
    by_branch: dict[str | None, list[int]] = {}
    for i, (row, f) in enumerate(measured.pairs):
        if not _light(row) and not f.frozen:
            by_branch.setdefault(f.branch, []).append(i)
    decaying = [any(measured.facts[i].decays for i in branch) for branch in by_branch.values()]
    if len(by_branch) < 2 or not any(decaying):
        return None
    return [
        i for branch, decays in zip(by_branch.values(), decaying, strict=True) if not decays for i in branch
    ] or None


def _unmasked_branch(measured: Measured) -> Leaves | None:
    """Biases and norms that decay in a branch without a mask, where another branch has one."""
    light = [(i, f) for i, (row, f) in enumerate(measured.pairs) if _light(row)]
    obeyed = {f.branch for _, f in light if f.branch and not f.decays and not f.frozen}
    weights = {f.branch for row, f in measured.pairs if not _light(row) and f.decays}
    # A mask shows as leaves that are spared beside weights that decay, or as a state of `optax.masked` in the branch.
    masked = (obeyed & weights) | {
        label for label, state in measured.inner_states.items() if _masks(getattr(state, "inner_state", state))
    }
    if not masked:
        return None
    return [i for i, f in light if f.decays and f.branch and f.branch not in masked] or None


def _masks(state: Any) -> bool:
    """Whether a transformation in it is wrapped in `optax.masked`."""
    is_masked = lambda node: type(node).__name__ == "MaskedState"
    return any(map(is_masked, jax.tree.leaves(state, is_leaf=is_masked)))


def _too_much(measured: Measured, leaves: Leaves) -> str:
    c = max(measured.facts[i].removed for i in leaves)
    left = (
        f"and only {1 - c:.2g} of it is left, so that it is little more than the last update" if c < 1
        else "all of it, so that only the last update is left" if c == 1
        else f"and turns it into {1 - c:.3g} of itself, " + ("which flips its sign" if c <= 2 else "which grows")
    )  # fmt: skip
    return f"one step removes {c:.3g} of the weight, {left}"


def _lost(measured: Measured, leaves: Leaves) -> str:
    low = all(map(measured.is_low, leaves))
    where = "parameters of 16 bits or fewer" if low else "the parameter's type"
    return f"one step's decay is below half a unit in the last place of {where}: rounding removes or distorts it"


# fmt: off
RULES: list[Rule] = [
    Rule("error", "grows", _is(verdicts.GROWS),
         "the decay has the wrong sign, as after the learning rate, and the weights grow in every step", fixes.around),
    Rule("error", "ascent", _where(lambda row, f: f.ascends and not f.raw),
         "the step goes up the gradient: its sign is flipped twice", fixes.one_sign),
    Rule("error", "raw gradient", _where(lambda row, f: f.ascends and f.raw),
         "the raw gradient is added to the parameter: optax.masked does not freeze what it leaves out",
         fixes.freeze_last),
    Rule("error", "too much", _is(verdicts.TOO_MUCH), _too_much, fixes.rescale),
    Rule("error", "frozen leaf decays",
         _where(lambda row, f: f.decays and f.frozen and row.verdict != verdicts.UNKNOWN),
         "no gradient moves this leaf, and it still decays", fixes.freeze_last),
    Rule("error", "not finite", _where(lambda row, f: f.overflows),
         "a step is NaN or infinite in the parameter's own type", fixes.finite),
    Rule("error", "decays twice", _is(verdicts.TWICE), "more than one stage decays, and the rates add up", fixes.once),
    Rule("error", "lost in rounding", _is(verdicts.LOST), _lost, fixes.round_well),
    Rule("error", "mask became a schedule", _mask_as_schedule,
         "inject_hyperparams evaluated the mask function as a schedule: it never saw the parameters",
         fixes.static_mask),
    Rule("warning", "normalised away", _is(verdicts.NORMALISED),
         "a trust ratio scales the decay with the step: it depends on the gradient and on the size of the weight; the "
         "table has the rate at a gradient as large as the weight", fixes.around),
    Rule("warning", "coupled", _is(verdicts.COUPLED),
         "the decay passes through the preconditioner, which divides it by the size of the gradients: weights with "
         "large gradients hardly decay", fixes.around),
    Rule("warning", "too little", _is(verdicts.TOO_LITTLE),
         "over the whole horizon less than 0.01 % is removed", fixes.rescale),
    Rule("warning", "not scaled by the learning rate", _is(verdicts.UNSCALED),
         "the decay stays as it is while the learning rate changes", fixes.follow),
    Rule("warning", "learning rates differ", _where(_rates_differ),
         "the decay goes by another learning rate than the step", fixes.same_rate),
    Rule("warning", "not yet", _is(verdicts.LATER),
         "the optimizer still looks for its step size, and the decay grows with it", fixes.later_state),
    Rule("warning", "nothing decays", _nothing,
         "there is no decay, its mask picks nothing, or it is zero at this step", fixes.around),
    Rule("warning", "branch without decay", _branch_without_decay,
         "parameters are split between optimizers, and the one of these weights has no decay", fixes.around),
    Rule("warning", "mask misses a branch", _unmasked_branch,
         "parameters are split between optimizers, and the mask does not reach the one of these", fixes.around),
    Rule("warning", "stacked or attention bias decays", _role("bias", stacked=True),
         "a bias of several dimensions is taken for a matrix; decay pulls this offset of the layer's output to zero, "
         "and published recipes leave it out", fixes.mask),
    Rule("warning", "bias decays", _role("bias", stacked=False),
         "decay pulls this offset of the layer's output to zero, and published recipes leave it out", fixes.mask),
    Rule("warning", "stacked norm decays", _role("norm", stacked=True),
         "the norms of stacked layers are taken for a matrix; decay pulls their scales to zero, and the layers pass on "
         "less and less", fixes.mask),
    Rule("warning", "norm scale decays", _role("norm", stacked=False),
         "decay pulls the scale to zero, and the layer passes on less and less", fixes.mask),
    Rule("warning", "scalar or token decays", _role("other"),
         "decay pulls a learned constant (a temperature, a class token) to zero", fixes.mask),
    Rule("information", "embedding decays", _embedding,
         "every row shrinks in every step, also those that no example of the batch uses", fixes.spare),
    Rule("information", "varies within the leaf", _is(verdicts.VARIES),
         "entries of this leaf decay at different rates; the table has their mean", fixes.around),
    Rule("information", "not carried over", _where(lambda row, f: not f.carried),
         "the optimizer treats this leaf otherwise than its stand-in: a mask or rule reads the size", fixes.mask),
    Rule("information", "unknown",
         _where(lambda row, f: row.verdict == verdicts.UNKNOWN and f.carried and not f.overflows),
         "the decay is random, or too small to measure, or depends on the gradient in a way that no verdict fits",
         fixes.unknown),
]
# fmt: on


def find(measured: Measured) -> tuple[AuditFinding, ...]:
    """All findings, worst first."""
    found = []
    for severity, name, holds, what, fix in RULES:
        leaves = holds(measured)
        if leaves is not None:
            paths = tuple(measured.rows[i].path for i in leaves)
            text = what if isinstance(what, str) else what(measured, leaves)
            found.append(AuditFinding(severity, name, paths, text, fix(measured, leaves)))
    return tuple(sorted(found, key=lambda f: SEVERITIES.index(f.severity)))
