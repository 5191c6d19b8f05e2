"""No false verdict on chains composed at random: what the audit says is held against simulated runs."""

import logging

import pytest
from audit_chains import draw, params, truth

from wd_optax.auditing.audit import audit

QUICK = range(4)
MANY = range(500)
RATED = ("decays", "in momentum", "not scaled by lr", "growing", "decays twice")
pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]


def false_verdicts(seed: int) -> list[str]:
    """What the audit says of a case that a simulation contradicts."""
    case = draw(seed)
    logging.disable(logging.CRITICAL)  # masks that pick nothing are meant
    try:
        report, real = audit(case.build(case.decay), params(), horizon=120), truth(case)
    finally:
        logging.disable(logging.NOTSET)
    wrong = []
    for row, removed, touched in zip(report.rows, real.removed, real.touched, strict=True):
        said = row.verdict
        close = abs(row.removed_per_step - removed) <= 0.12 * abs(removed)  # buffers fill in a tenth of the run
        if (
            (said == "no decay" and touched)
            or (said not in ("no decay", "unknown") and not touched)
            or (said in RATED and not close)
            or (said == "growing" and removed > 0)
            or (said == "decays twice" and case.sources == 1)
            or (row.dependence and case.linear)
        ):
            says = f"{said} {row.dependence} {row.removed_per_step:.4g}"
            wrong.append(f"{case.words}: {row.path} {says}, simulated {removed:.4g}")
    moving = dict(zip([row.path for row in report.rows], real.moves, strict=True))
    for finding in report.findings:
        if finding.rule == "frozen leaf decays" and any(moving[path] for path in finding.paths):
            wrong.append(f"{case.words}: {finding.rule} {finding.paths}")
        if finding.rule in ("ascent", "raw gradient", "not finite") or (
            finding.rule == "nothing decays" and any(real.touched)
        ):
            wrong.append(f"{case.words}: {finding.rule} {finding.paths}")
    return wrong


@pytest.mark.parametrize("seed", QUICK)
def test_no_false_verdict(seed):
    assert false_verdicts(seed) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", MANY)
def test_no_false_verdict_of_five_hundred(seed):
    assert false_verdicts(seed) == []
