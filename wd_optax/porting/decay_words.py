"""The decay of one call in another's arguments: the coupling, λ, and which parameters decay."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import optax

from wd_optax.choosing.timescales import weight_decay_for
from wd_optax.masking import forms
from wd_optax.porting.calls import Call
from wd_optax.porting.meaning import Meaning, rates_per_step

RATIO_TOLERANCE = 1e-6  # of λ's over a run: schedules may compute in float32
MEANS = {
    "lr": "η_t·λ", "schedule": "(η_t/η_max)·λ", "corrected": "(η_t²/η_max)·λ", "constant": "λ",
    "L2": "η_t·λ (in the gradient)",
}  # fmt: skip


class DecayPart(NamedTuple):
    """The part of a translation that is the decay."""

    arguments: Mapping[str, Any]
    moved: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


def translate_decay(meaning: Meaning, target: Call, eta_factor: float = 1.0) -> DecayPart:
    """The target's λ, and the arguments that choose its coupling.

    Args:
      meaning: of the source.
      target: the call to translate into.
      eta_factor: what the target's η is in units of the source's.
    """
    passes = eta_factor == 1 or meaning.coupling == "L2"  # L2 is inside what η multiplies
    if (meaning.coupling in target.couplings and passes) or not meaning.decay.any():
        chosen = meaning.coupling if meaning.coupling in target.couplings else next(iter(target.couplings))
        return _keep(meaning, target, chosen)
    per_eta = _accumulated(meaning)
    choices = [c for c in target.couplings if c != "L2"] if [*target.couplings] != ["L2"] else ["L2"]
    if per_eta is None and "L2" in (meaning.coupling, *choices):
        return _hopeless(meaning, target, choices[0])
    return _convert(meaning, target, choices, eta_factor, per_eta or 1.0)


def _keep(meaning: Meaning, target: Call, coupling: str) -> DecayPart:
    """The same coupling: λ as it is; η_max, too, where the target takes one."""
    arguments = {**target.couplings[coupling], target.weight_decay: meaning.weight_decay}
    named = next((name for name, word in target.words.items() if word == "peak"), None)
    if named and coupling in ("schedule", "corrected"):
        arguments[named] = meaning.peak
    chosen = [f"{k}={v!r} chooses this decay in {target.name}." for k, v in target.couplings[coupling].items()]
    return DecayPart(arguments, tuple(chosen) if chosen and coupling != next(iter(target.couplings)) else ())


def _accumulated(meaning: Meaning) -> float | None:
    """What L2 removes per step in units of η·λ: 1 in SGD, more where momentum accumulates it; None elsewhere."""
    if meaning.call.family != "sgd":
        return None
    momentum = meaning.words.get("momentum", 0)
    return (1 - meaning.words.get("dampening", 0)) / (1 - momentum) if momentum else 1.0


def _hopeless(meaning: Meaning, target: Call, coupling: str) -> DecayPart:
    """L2 in the gradient against decoupled decay, under an optimizer that rescales gradients."""
    here, there = (meaning.call.name, target.name) if meaning.coupling == "L2" else (target.name, meaning.call.name)
    arguments = {**target.couplings[coupling], target.weight_decay: meaning.weight_decay}
    why = (
        f"{here} adds λ·p to the gradient, which its moments rescale, and {there} takes it off the weight itself: no λ "
        f"makes them the same, and {target.weight_decay} is left as it was. Choose it anew, as with wd.sweep."
    )
    return DecayPart(arguments, differs=(why,))


def _convert(meaning: Meaning, target: Call, choices: list[str], eta_factor: float, per_eta: float) -> DecayPart:
    """A λ that removes the same at every step, else one that removes as much over the run."""
    rates = meaning.eta * meaning.decay * per_eta if meaning.coupling == "L2" else meaning.removed()
    assert rates is not None
    if rates.max() >= 1:
        raise ValueError(
            f"{meaning.call.weight_decay} removes {rates.max():.3g} of each weight in step {rates.argmax()}: it must "
            "be below 1, so lower it"
        )
    options = [(coupling, _per_decay(meaning, coupling, eta_factor, per_eta)) for coupling in choices]
    exact = [(coupling, each) for coupling, each in options if _is_constant(rates, each)]
    coupling, each = (exact or options)[0]
    ratio = rates[each > 0] / each[each > 0]
    decay = float(ratio[0]) if exact else _as_much(rates, each)
    moved, differs = [_moved(meaning, target, coupling, decay)], []
    if not exact:
        differs.append(_not_at_every_step(meaning, target, coupling, decay, rates, each))
    if per_eta != 1:
        differs.append(
            f"The momentum accumulates the decay where it is L2, and not where it is decoupled: λ is converted by "
            f"(1 − τ)/(1 − μ) = {per_eta:.4g}, which is what it amounts to after the first steps, while η is constant."
        )
    return DecayPart({**target.couplings[coupling], target.weight_decay: decay}, tuple(moved), tuple(differs))


def _per_decay(meaning: Meaning, coupling: str, eta_factor: float, per_eta: float) -> np.ndarray:
    """c_t/λ in the target."""
    eta = meaning.eta * eta_factor
    if coupling == "L2":
        return eta * per_eta
    return rates_per_step(coupling, eta, np.ones_like(eta), meaning.peak * eta_factor)


def _is_constant(rates: np.ndarray, each: np.ndarray) -> bool:
    """Whether one number times `each` is `rates`."""
    if rates[each == 0].any() or not each.any():
        return False
    ratio = rates[each > 0] / each[each > 0]
    return bool(np.ptp(ratio) <= RATIO_TOLERANCE * ratio.max())


def _as_much(rates: np.ndarray, each: np.ndarray) -> float:
    """The λ with the same Π (1 − c_t) over the run."""
    left = math.exp(np.log1p(-rates).sum())
    if not each.any():
        return 0.0
    if not 0 < left < 1:
        return float(rates.mean() / each.mean())
    return weight_decay_for(remaining=left, learning_rate=each, steps=len(each))


def gap(before: np.ndarray, after: np.ndarray) -> float:
    """The largest relative difference, during the run, between what both leave of a weight without gradient."""
    logs = np.cumsum(np.log1p(-after)) - np.cumsum(np.log1p(-before))
    return float(np.max(np.abs(np.expm1(logs))))


def _moved(meaning: Meaning, target: Call, coupling: str, decay: float) -> str:
    number = np.ptp(meaning.decay) == 0
    shown = f"{meaning.decay[0]:.6g}" if number else "a schedule"
    becomes = "stays" if number and decay == meaning.decay[0] else f"becomes {decay:.6g}"
    low, high = meaning.eta.min(), meaning.eta.max()
    eta = f"η_t is {high:.6g}" if low == high else f"η_t runs from {low:.6g} to {high:.6g}"
    return (
        f"{meaning.call.weight_decay}={shown} {becomes}: {meaning.call.name} removes {MEANS[meaning.coupling]} of a "
        f"weight per step, {target.name} {MEANS[coupling]}, and {eta}."
    )


def _not_at_every_step(
    meaning: Meaning, target: Call, coupling: str, decay: float, rates: np.ndarray, each: np.ndarray
) -> str:
    if not each.any():
        return f"{target.name} removes {MEANS[coupling]} of a weight per step, and η is 0: nothing, whatever λ is."
    left = math.exp(np.log1p(-rates).sum())
    apart = gap(rates, decay * each)
    return (
        f"No number λ of {target.name} ({MEANS[coupling]}) removes at every step what {meaning.call.name}'s "
        f"({MEANS[meaning.coupling]}) does: {decay:.6g} leaves as much over all {len(rates):,} steps, {left:.4g} of a "
        f"weight without gradient, and up to {100 * apart:.3g} % more or less on the way."
    )


def translate_mask(meaning: Meaning, target: Call, params: optax.Params | None) -> DecayPart:
    """Groups of the target for the parameters that only the source spares, and what groups can't say."""
    source = meaning.call
    if source.mask is target.mask or source.mask == target.mask:
        return DecayPart({})
    rule = f"{source.name} decays {source.mask_rule}, {target.name} {target.mask_rule}"
    if params is None:
        return DecayPart({}, differs=(f"{rule}: pass params, and the groups that make up for it are returned.",))
    pairs = zip(forms.decide(source.mask, params), forms.decide(target.mask, params), strict=True)
    wanted = {p.path: (mine.multiplier, theirs.multiplier) for (p, mine), (_, theirs) in pairs}
    lost = [path for path, (mine, theirs) in wanted.items() if mine != theirs and theirs != 1]
    spared = [path for path, (mine, theirs) in wanted.items() if mine == 0 and theirs == 1]
    part = [path for path, (mine, theirs) in wanted.items() if mine not in (0, 1) and theirs == 1]
    differs = [f"{path!r} decays otherwise: {rule}, and no group changes that." for path in [*lost, *part][:3]]
    if not spared:
        return DecayPart({}, differs=tuple(differs))
    regex = "|".join(f"^{re.escape(path)}$" for path in spared)
    group = {"params": regex, target.weight_decay: 0.0, "name": "no_decay"}
    moved = f"{rule}: {len(spared)} of {len(wanted)} parameters are a group with {target.weight_decay}=0."
    return DecayPart({"groups": [group]}, (moved,), tuple(differs))
