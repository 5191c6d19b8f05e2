"""Finds problems in the measurements: a table of rules, each with a severity, the leaves it applies to, and a fix.

Each rule has a page of its name in `docs/what_goes_wrong`, and `tests/test_audit_fixes.py` applies its fix.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from wd_optax.auditing import fixes, verdicts
from wd_optax.auditing.fixes import Evidence, Leaves
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.report import AuditFinding, AuditRow
from wd_optax.masking import roles

SEVERITIES = ("error", "warning", "information")

Applies = Callable[[Evidence], Leaves | None]  # None: it doesn't apply; (): it applies to the optimizer as a whole
Text = Callable[[Evidence, Leaves], str]


class FindingRule(NamedTuple):
    """One thing that goes wrong."""

    severity: str
    name: str
    applies: Applies
    what: str | Text
    fix: Text


def _where(test: Callable[[AuditRow, Measurements], bool]) -> Applies:
    """Applies to the leaves that pass the test."""
    return lambda evidence: [i for i, pair in enumerate(evidence.pairs) if test(*pair)] or None


def _has_verdict(verdict: str) -> Applies:
    return _where(lambda row, m: row.verdict == verdict)


def _role_decays(role: str, stacked: bool | None = None) -> Applies:
    """Applies to leaves of a role that decay to zero, except those of a branch that the mask misses.

    Leaves whose decay is lost in rounding count as decaying.
    """

    def applies(evidence: Evidence) -> Leaves | None:
        missed = {*(_unmasked_branch(evidence) or ())}
        leaves = []
        for i, row in enumerate(evidence.rows):
            if row.role == role and stacked in (None, len(row.shape) >= 2) and _to_zero(row) and i not in missed:
                leaves.append(i)
        return leaves or None

    return applies


def _rates_differ(row: AuditRow, m: Measurements) -> bool:
    return m.decays and m.decay_lr > 0 and (m.step_lr / m.decay_lr < 0.5 or m.step_lr / m.decay_lr > 2)  # False for nan


def _shrinks(row: AuditRow) -> bool:
    return row.decays or row.verdict == verdicts.LOST


def _to_zero(row: AuditRow) -> bool:
    return _shrinks(row) and row.anchor in ("zero", "")


def _is_bias_or_norm(row: AuditRow) -> bool:
    return row.role not in roles.DECAYING_ROLES


def _mask_as_schedule(evidence: Evidence) -> Leaves | None:
    """`inject_hyperparams` keeps what it evaluates as schedules in `hyperparams_states`; here it is a mask."""
    return () if any("mask" in name for name in evidence.evaluated) else None


def _nothing_decays(evidence: Evidence) -> Leaves | None:
    return () if evidence.rows and all(row.verdict == verdicts.NO_DECAY for row in evidence.rows) else None


def _branch_without_decay(evidence: Evidence) -> Leaves | None:
    """Weights in a branch of an `optax.partition` without any decay, if another branch has some."""
    by_branch: dict[str | None, list[int]] = {}
    for i, (row, m) in enumerate(evidence.pairs):
        if not _is_bias_or_norm(row) and not m.frozen:
            by_branch.setdefault(m.branch, []).append(i)
    held = [m.decays or m.projected or m.constrained for m in evidence.measured]
    without = [leaves for leaves in by_branch.values() if not any(held[i] for i in leaves)]
    if len(by_branch) < 2 or len(without) == len(by_branch):
        return None
    return [i for leaves in without for i in leaves] or None


def _unmasked_branch(evidence: Evidence) -> Leaves | None:
    """Biases and norms that decay in a branch without a mask, if another branch has one.

    A branch has a mask if some of its biases or norms don't decay while its weights do, or if its state has one of
    `optax.masked`.
    """
    light = [(i, m) for i, (row, m) in enumerate(evidence.pairs) if _is_bias_or_norm(row)]
    excluded = {m.branch for _, m in light if m.branch and not m.decays and not m.frozen}
    weights = {m.branch for row, m in evidence.pairs if not _is_bias_or_norm(row) and m.decays}
    masked = (excluded & weights) | {
        label
        for label, state in evidence.inner_states.items()
        if _has_masked_state(getattr(state, "inner_state", state))
    }
    if not masked:
        return None
    return [i for i, m in light if m.decays and m.branch and m.branch not in masked] or None


def _has_masked_state(state: optax.OptState) -> bool:
    """Whether a transformation in the state is wrapped in `optax.masked`."""
    return any(map(_is_masked_state, jax.tree.leaves(state, is_leaf=_is_masked_state)))


def _is_masked_state(node: Any) -> bool:
    return type(node).__name__ == "MaskedState"


def _metric_missed(evidence: Evidence) -> Leaves | None:
    """A penalty other than L2, which is AdamProx there, after Adam without its metric."""
    if not evidence.nodes("nu"):
        return None
    return _where(lambda row, m: m.penalty not in ("", "l2") and not m.metric and row.decays)(evidence)


def _too_much(evidence: Evidence, leaves: Leaves) -> str:
    c = max(evidence.measured[i].removed for i in leaves)
    left = (
        f"and only {1 - c:.2g} of it is left, so that it is little more than the last update" if c < 1
        else "all of it, so that only the last update is left" if c == 1
        else f"and turns it into {1 - c:.3g} of itself, " + ("which flips its sign" if c <= 2 else "which grows")
    )  # fmt: skip
    return f"one step removes {c:.3g} of the weight, {left}"


def _lost(evidence: Evidence, leaves: Leaves) -> str:
    low = all(map(evidence.is_low, leaves))
    where = "parameters of 16 bits or fewer" if low else "the parameter's dtype"
    return f"one step's decay is below half a unit in the last place of {where}: rounding removes or distorts it"


# fmt: off
RULES: list[FindingRule] = [
    FindingRule("error", "grows", _has_verdict(verdicts.GROWING),
                "the decay has the wrong sign, as after the learning rate, and the weights grow at every step",
                fixes.around),
    FindingRule("error", "ascent", _where(lambda row, m: m.ascends and not m.raw_gradient),
                "the step goes up the gradient: its sign is flipped twice", fixes.one_sign),
    FindingRule("error", "raw gradient", _where(lambda row, m: m.ascends and m.raw_gradient),
                "the raw gradient is added to the parameter: optax.masked passes it through and does not freeze",
                fixes.freeze_last),
    FindingRule("error", "too much", _has_verdict(verdicts.TOO_MUCH), _too_much, fixes.rescale),
    FindingRule("error", "frozen leaf decays",
                _where(lambda row, m: m.decays and m.frozen and row.verdict != verdicts.UNKNOWN),
                "no gradient moves this leaf, but it decays", fixes.freeze_last),
    FindingRule("error", "not finite", _where(lambda row, m: m.overflows),
                "a step is NaN or infinite in the parameter's own dtype", fixes.finite),
    FindingRule("error", "decays twice", _has_verdict(verdicts.TWICE),
                "more than one stage decays, and the rates add up", fixes.once),
    FindingRule("error", "lost in rounding", _has_verdict(verdicts.LOST), _lost, fixes.round_well),
    FindingRule("error", "mask became a schedule", _mask_as_schedule,
                "inject_hyperparams evaluated the mask function as a schedule: it never saw the parameters",
                fixes.static_mask),
    FindingRule("warning", "normalised away", _has_verdict(verdicts.NORMALISED),
                "a trust ratio scales the decay with the step: it depends on the gradient and on the size of the "
                "weight; the table has the rate for a gradient as large as the weight", fixes.around),
    FindingRule("warning", "coupled", _has_verdict(verdicts.COUPLED),
                "the decay passes through the preconditioner, which divides it by the size of the gradients: weights "
                "with large gradients hardly decay", fixes.around),
    FindingRule("warning", "penalty without its metric", _metric_missed,
                "after Adam, whose own step is about as large as the learning rate, a proximal step with the threshold "
                "lr·λ sets nothing to zero: the loss plus λ·penalty is not what this minimises", fixes.in_metric),
    FindingRule("warning", "too little", _has_verdict(verdicts.TOO_LITTLE),
                "over the whole horizon less than 0.01 % is removed", fixes.rescale),
    FindingRule("warning", "not scaled by the learning rate", _has_verdict(verdicts.UNSCALED),
                "the decay does not change with the learning rate", fixes.follow_learning_rate),
    FindingRule("warning", "learning rates differ", _where(_rates_differ),
                "the decay uses another learning rate than the step", fixes.same_rate),
    FindingRule("warning", "not yet", _has_verdict(verdicts.LATER),
                "the optimizer is still searching for its step size, and the decay grows with it", fixes.later_state),
    FindingRule("warning", "nothing decays", _nothing_decays,
                "there is no decay, its mask selects nothing, or it is zero at this step", fixes.around),
    FindingRule("warning", "branch without decay", _branch_without_decay,
                "parameters are split between optimizers, and that of these weights has no decay", fixes.around),
    FindingRule("warning", "mask misses a branch", _unmasked_branch,
                "parameters are split between optimizers, and the mask does not reach that of these", fixes.around),
    FindingRule("warning", "stacked or attention bias decays", _role_decays("bias", stacked=True),
                "a bias of several dimensions is treated as a matrix; decay pulls this offset of the layer's output "
                "to zero, and published recipes exclude it", fixes.mask),
    FindingRule("warning", "bias decays", _role_decays("bias", stacked=False),
                "decay pulls this offset of the layer's output to zero, and published recipes exclude it", fixes.mask),
    FindingRule("warning", "stacked norm decays", _role_decays("norm", stacked=True),
                "the norms of stacked layers are treated as a matrix; decay pulls their scales to zero, and the layers "
                "pass on less and less", fixes.mask),
    FindingRule("warning", "norm scale decays", _role_decays("norm", stacked=False),
                "decay pulls the scale to zero, and the layer passes on less and less", fixes.mask),
    FindingRule("warning", "scalar or token decays", _role_decays("other"),
                "decay pulls a learned constant (a temperature, a class token) to zero", fixes.mask),
    FindingRule("information", "embedding decays",
                _where(lambda row, m: row.role == "embedding" and _to_zero(row) and m.without_gradient),
                "every row shrinks at every step, including those that no example of the batch uses", fixes.exclude),
    FindingRule("information", "varies within the leaf", _has_verdict(verdicts.VARIES),
                "entries of this leaf decay at different rates; the table has their mean", fixes.around),
    FindingRule("information", "decay before a projection", _where(lambda row, m: m.undone > 0),
                "the weight is put back on its sphere after the decay, which points along it: together they change the "
                "step by O(lr²) only", fixes.without_decay),
    FindingRule("information", "not carried over", _where(lambda row, m: not m.like_stand_in),
                "the optimizer treats this leaf differently from its stand-in: a mask or rule reads the size",
                fixes.mask),
    FindingRule("information", "unknown",
                _where(lambda row, m: row.verdict == verdicts.UNKNOWN and m.like_stand_in and not m.overflows),
                "the decay is random, or too small to measure, or its anchor moves, or it depends on the gradient in a "
                "way that no verdict describes", fixes.unknown),
]
# fmt: on


def find_problems(evidence: Evidence) -> tuple[AuditFinding, ...]:
    """All findings, worst first."""
    found = []
    for rule in RULES:
        leaves = rule.applies(evidence)
        if leaves is not None:
            paths = tuple(evidence.rows[i].path for i in leaves)
            what = rule.what if isinstance(rule.what, str) else rule.what(evidence, leaves)
            found.append(AuditFinding(rule.severity, rule.name, paths, what, rule.fix(evidence, leaves)))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
