"""The learning rate and weight decay that published rules give a run, from another run whose λ is known."""

import math

import numpy as np

from wd_optax import couplings
from wd_optax.choosing import timescales
from wd_optax.choosing.runs import FAMILIES, OptimizerFamily, Run, stretched
from wd_optax.choosing.transfer_rules import (
    DECAY_RULES,
    LEARNING_RATE_RULES,
    DecayRule,
    HoldName,
    LearningRateRuleName,
)
from wd_optax.choosing.transfer_table import Transfer, Transferred


def transfer(
    *,
    source: Run,
    target: Run,
    weight_decay: float | None = None,
    learning_rate: float | None = None,
    optimizer: OptimizerFamily | None = None,
    hold: HoldName | None = None,
    learning_rate_rule: LearningRateRuleName | None = None,
) -> Transfer:
    """The (η, λ) of a run by every published rule, from a run whose η and λ are known: strength·factor is held.

    The rules hold ηλ (the angle per step), the norm, the fraction retained per epoch or over the run, the AdamW paper's
    normalised λ, a power of tokens per parameter, or a width rule of muP. They disagree, so none is the default: print
    the result, sweep `grid()`, and read the exponent off your own model with `result.optimum(...)`. Sums over schedules
    are exact, as in `wd_optax.timescale`.

    Args:
      source: the run where η and λ are known.
      target: the run to train. Its own `learning_rate`, if given, is used for every rule; its schedule, coupling,
        optimizer and momentum are the source's unless given.
      weight_decay: λ of the source; by default `source.weight_decay`.
      learning_rate: η of the source, its peak; by default `source.learning_rate`.
      optimizer: of both runs, "adamw", "sgdw", "sgd_l2" or "other"; by default the source's.
      hold: the rule to pick: "angle", "norm", "timescale_epochs", "timescale_run", "tokens_per_parameter",
        "normalised", "mup_angle", "mup_sqrt_width" or "same_decay". It determines `.run`, `.learning_rate`,
        `.weight_decay` of the result.
      learning_rate_rule: how η follows where neither the target nor the rule says: "batch_linear" (SGD), "batch_sqrt"
        (Adam) or "mup"; by default η is the source's.

    Returns:
      A `Transfer`.

    Raises:
      ValueError, TypeError: for an unknown rule, an unknown η or λ, a rule whose needs (`width`, `examples`,
        `parameters`) are missing or that needs another optimizer, optimizers that differ, a λ of 0.

    References:
      Wang & Aitchison 2024, arXiv 2405.13698; Bergsma et al. 2025, arXiv 2505.13738; Fan et al. 2025, arXiv 2510.15262;
      Loshchilov & Hutter 2019, arXiv 1711.05101; Kosson et al. 2023, arXiv 2305.17212; Goyal et al. 2017,
      arXiv 1706.02677; Malladi et al. 2022, arXiv 2205.10287; Yang et al. 2022, arXiv 2203.03466.

    Example: four times the batch for as many epochs. λ = 0.1 was right; is it now 0.4, 0.2 or 0.1?
      >>> import wd_optax as wd
      >>> small = wd.Run(batch=256, steps=10_000, examples=50_000, learning_rate=1e-3, weight_decay=0.1)
      >>> found = wd.transfer(source=small, target=wd.Run(batch=1024, steps=2_500, examples=50_000))
      >>> print(*(f"{row.rule.name} {row.weight_decay:.3g}" for row in found.rows), sep=", ")
      angle 0.1, norm 0.1, timescale_epochs 0.4, timescale_run 0.4, normalised 0.2

    """
    if hold is not None and hold not in tuple(DECAY_RULES):
        raise ValueError(f"hold={hold!r} is not a rule: use one of {', '.join(map(repr, DECAY_RULES))}")
    source = _complete_source(source, weight_decay, learning_rate, optimizer)
    target = _complete_target(target, source, optimizer)
    if learning_rate_rule is not None:
        _check_eta_rule(learning_rate_rule, source, target)
    rows, skipped = _decay_rows(source, target, learning_rate_rule)
    if hold in skipped:
        raise ValueError(f"hold={hold!r}: {skipped[hold]}")
    etas = {}
    for name, rule in LEARNING_RATE_RULES.items():
        if reason := _unfit(rule.needs, rule.optimizers, source, target):
            skipped[name] = reason
        else:
            etas[name] = _target_eta(name, source, target.replace(learning_rate=None))
    return Transfer(source, target, tuple(rows), etas, skipped, hold)


def _decay_rows(source: Run, target: Run, default: str | None) -> tuple[list[Transferred], dict[str, str]]:
    """What each rule for λ gives, and why some give nothing; `default` is the rule for η of those without their own."""
    rows, skipped, scale = [], {}, source.timescale()
    for name, rule in DECAY_RULES.items():
        if reason := _unfit(rule.needs, rule.optimizers, source, target):
            skipped[name] = reason
            continue
        eta = _target_eta(rule.learning_rate or default, source, target)
        if row := _apply(rule, source, scale, target.replace(learning_rate=eta)):
            rows.append(row)
        else:
            skipped[name] = "needs a rate of 1 per step or more: the target has too few steps for it"
    if not rows:
        raise ValueError(f"no rule has a λ for the target; {next(iter(skipped))} {next(iter(skipped.values()))}")
    return rows, skipped


def _complete_source(
    source: Run, weight_decay: float | None, learning_rate: float | None, optimizer: OptimizerFamily | None
) -> Run:
    """The source with η, λ, and every default written out."""
    if not isinstance(source, Run):
        fix = "....run()" if hasattr(source, "run") else "wd.Run(batch=..., steps=...)"
        raise TypeError(f"source must be a wd.Run, got {type(source).__name__}: pass source={fix}")
    given = {"weight_decay": weight_decay, "learning_rate": learning_rate}
    source = source.replace(**{name: value for name, value in given.items() if value is not None})
    for name in given:
        if getattr(source, name) is None:
            raise ValueError(f"{name} of the source is unknown: pass {name}=..., or source=wd.Run(..., {name}=...)")
    if not source.weight_decay:
        raise ValueError(
            "weight_decay=0 has no strength to hold, and every rule would give 0: pass the λ that was used"
        )
    return source.replace(
        coupling=source.coupling or "lr",
        optimizer=_family(source, optimizer) or "adamw",
        momentum=source.momentum or 0.0,
    )


def _complete_target(target: Run, source: Run, optimizer: OptimizerFamily | None) -> Run:
    """The target with what it takes from the source."""
    if not isinstance(target, Run):
        raise TypeError(
            f"target must be a wd.Run, got {type(target).__name__}: pass target=wd.Run(batch=..., steps=...)"
        )
    if target.weight_decay is not None:
        raise ValueError(
            f"target has weight_decay={target.weight_decay:g}, which is what transfer looks for: leave it out, "
            "target.replace(weight_decay=None)"
        )
    family = _family(target, optimizer) or source.optimizer
    if family != source.optimizer:
        raise ValueError(
            f"source has optimizer={source.optimizer!r} and target {family!r}: no rule carries λ from one optimizer "
            "to another; pass the same"
        )
    shape = target.schedule
    if shape is None and source.schedule is not None:
        shape = stretched(np.asarray(source.schedule), target.steps)
    momentum = source.momentum if target.momentum is None else target.momentum
    return target.replace(
        schedule=shape, coupling=target.coupling or source.coupling, optimizer=family, momentum=momentum
    )


def _family(run: Run, optimizer: str | None) -> str | None:
    if optimizer is not None and optimizer not in FAMILIES:
        raise ValueError(f"optimizer={optimizer!r}: use one of {', '.join(map(repr, FAMILIES))}")
    if optimizer is not None and run.optimizer not in (None, optimizer):
        raise ValueError(f"optimizer={optimizer!r}, but a run says optimizer={run.optimizer!r}: drop one of them")
    return optimizer or run.optimizer


def _unfit(needs: tuple[str, ...], optimizers: tuple[str, ...] | None, source: Run, target: Run) -> str:
    """Why a rule can't be used for two runs, with the fix; empty if it can."""
    if optimizers is not None and source.optimizer not in optimizers:
        return f"is for {' and '.join(optimizers)}, not {source.optimizer}"
    missing = [f"{side}.{name}" for name in needs for side, run in _sides(source, target) if not getattr(run, name)]
    return f"needs {' and '.join(missing)}: pass wd.Run(..., {needs[0]}=...)" if missing else ""


def _sides(source: Run, target: Run) -> tuple[tuple[str, Run], tuple[str, Run]]:
    return ("source", source), ("target", target)


def _check_eta_rule(name: str, source: Run, target: Run) -> None:
    if name not in LEARNING_RATE_RULES:
        names = ", ".join(map(repr, LEARNING_RATE_RULES))
        raise ValueError(f"learning_rate_rule={name!r} is not a rule: use one of {names}")
    if target.learning_rate is not None:
        raise ValueError(
            f"learning_rate_rule={name!r}, but target has learning_rate={target.learning_rate:g}: drop one"
        )
    rule = LEARNING_RATE_RULES[name]
    if reason := _unfit(rule.needs, rule.optimizers, source, target):
        raise ValueError(f"learning_rate_rule={name!r} {reason}")


def _target_eta(name: str | None, source: Run, target: Run) -> float:
    """The target's η: its own, or by a rule, or the source's."""
    if target.learning_rate is not None:
        return target.learning_rate
    eta = source.learning_rate or math.nan
    return eta * LEARNING_RATE_RULES[name].ratio(source, target) if name else eta


def _apply(rule: DecayRule, source: Run, scale: timescales.Timescale, target: Run) -> Transferred | None:
    """The λ with which the target has the source's strength·factor; None if its rate isn't below 1."""
    ratio = rule.factor(source) / rule.factor(target)
    etas, eta, coupling = target.learning_rates(), target.learning_rate or math.nan, target.coupling or "lr"
    if rule.strength == "peak":
        peak = scale.largest_removed_per_step * ratio
        if peak >= 1:
            return None
        at_one = couplings.removed(coupling, learning_rate=etas, weight_decay=1.0, peak_learning_rate=eta)
        decay = float(peak / np.max(at_one))
    else:  # The half-life in steps is steps·ln 2/Σ, so that of the target follows from the ratio of the sums.
        half_life = scale.half_life * target.steps / (source.steps * ratio)
        try:
            decay = timescales.weight_decay_for(
                half_life=half_life,
                learning_rate=etas,
                steps=target.steps,
                coupling=coupling,
                peak_learning_rate=eta,
            )
        except ValueError:  # its only one here
            return None
    run = target.replace(weight_decay=decay / target.amplification)
    return Transferred(rule, eta, decay / target.amplification, run)
