"""The direction of one call in another's arguments: the words of the family, ε's place, what one of them lacks."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from wd_optax.porting.calls import ETA_IN_MOMENTUM, Call
from wd_optax.porting.meaning import NEUTRAL, Meaning
from wd_optax.porting.rates import scaled


class DirectionPart(NamedTuple):
    """The part of a translation that isn't the decay."""

    learning_rate: Any
    arguments: Mapping[str, Any]
    moved: tuple[str, ...]
    differs: tuple[str, ...]
    eta_factor: float = 1.0  # what η was multiplied by


def check_families(source: Call, target: Call) -> None:
    """Raises for calls whose steps are different functions of the gradient."""
    if not source.family or source.family != target.family:
        kinds = (f"{x.name} is {x.family or 'of its own kind'}" for x in (source, target))
        raise ValueError(
            f"to: {' and '.join(kinds)}: their steps are different functions of the gradient, so no arguments make "
            "them the same. Translate into a call of the same kind: print(wd.emulate.table()) shows formulas"
        )


def translate_direction(meaning: Meaning, target: Call) -> DirectionPart:
    """The target's arguments for this direction."""
    words = {name: value for name, value in meaning.words.items() if name != "peak"}
    factor, undamped = _without_dampening(words, target)
    arguments, moved = _renamed(meaning, target, words)
    differs = [*undamped, *_lacking(meaning, target, words), *_untranslated(meaning, target)]
    differs += [*_eps_place(meaning, target), *_traits(meaning, target)]
    copied = {name: meaning.arguments[name] for name in _copied(meaning, target)}
    rate = meaning.learning_rate if factor == 1 else scaled(meaning.learning_rate, factor)
    return DirectionPart(rate, {**arguments, **copied}, tuple(moved), tuple(differs), factor)


def words_of(call: Call) -> dict[str, tuple[str, ...]]:
    """Per argument its words."""
    return {name: (word,) if isinstance(word, str) else word for name, word in call.words.items()}


def _renamed(meaning: Meaning, target: Call, words: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The target's arguments, and a sentence where names changed."""
    defaults = {name: p.default for name, p in target.signature.parameters.items()}
    arguments: dict[str, Any] = {}
    for name, parts in words_of(target).items():
        if parts == ("peak",) or (defaults[name] is inspect.Parameter.empty and not set(parts) <= set(words)):
            continue
        old = defaults[name] if len(parts) > 1 else (defaults[name],)
        new = tuple(words.get(word, NEUTRAL.get(word, value)) for word, value in zip(parts, old, strict=True))
        value = new if len(parts) > 1 else new[0]
        if value != defaults[name] or not any(part in NEUTRAL for part in parts):  # options that are off aren't shown
            arguments[name] = value
    return arguments, _renaming(meaning.call, target)


def _renaming(source: Call, target: Call) -> list[str]:
    """One sentence on the arguments whose names change."""
    pairs: dict[tuple[str, ...], tuple[str, ...]] = {
        (source.learning_rate,): (target.learning_rate,),
        (source.weight_decay,): (target.weight_decay,),
    }
    names = {word: name for name, parts in words_of(source).items() for word in parts}
    theirs = {word: name for name, parts in words_of(target).items() for word in parts}
    for parts in words_of(target).values():  # several that become one
        pairs[tuple(dict.fromkeys(names[word] for word in parts if word in names))] = (theirs[parts[0]],)
    for name, parts in words_of(source).items():  # one that becomes several
        if len(parts) > 1:
            pairs[(name,)] = tuple(dict.fromkeys(theirs[word] for word in parts if word in theirs))
    shown = [f"{', '.join(a)} → {', '.join(b)}" for a, b in pairs.items() if a and b and a != b]
    return [f"Names: {'; '.join(shown)}."] if shown else []


def _without_dampening(words: dict[str, Any], target: Call) -> tuple[float, list[str]]:
    """η·(1 − τ) for a target without dampening: all buffers but the first, which PyTorch doesn't damp."""
    has = any("dampening" in parts for parts in words_of(target).values())
    if has or not words.get("dampening") or not words.get("momentum"):
        return 1.0, []
    dampening = words.pop("dampening")
    return 1 - dampening, [
        f"dampening={dampening:g} becomes the factor {1 - dampening:g} of the learning rate; it isn't there in the "
        "first step, whose gradient therefore counts less here."
    ]


def _lacking(meaning: Meaning, target: Call, words: Mapping[str, Any]) -> list[str]:
    """What the source's words say and the target has no argument for."""
    known = {word for parts in words_of(target).values() for word in parts}
    names = {word: name for name, parts in words_of(meaning.call).items() for word in parts}
    return [
        f"{target.name} has no counterpart of {names[word]}={meaning.arguments[names[word]]!r}."
        for word, value in words.items()
        if word not in known and (word not in NEUTRAL or value != NEUTRAL[word])
    ]


def _own(call: Call) -> set[str]:
    """Arguments that say something else than the family's words: not η, λ or the choice of a coupling."""
    chosen = {name for own in call.couplings.values() for name in own}
    return set(call.signature.parameters) - set(call.words) - chosen - {call.learning_rate, call.weight_decay}


def _copied(meaning: Meaning, target: Call) -> list[str]:
    """Arguments outside of the words that both have, where they aren't at their default."""
    return [name for name in meaning.arguments if name in _own(meaning.call) & _own(target) and _is_set(meaning, name)]


def _is_set(meaning: Meaning, name: str) -> bool:
    default = meaning.call.signature.parameters[name].default
    return not np.array_equal(default, meaning.arguments[name])


def _untranslated(meaning: Meaning, target: Call) -> list[str]:
    return [
        f"{target.name} has no counterpart of {name}={meaning.arguments[name]!r}."
        for name in meaning.arguments
        if name in _own(meaning.call) - _own(target) and name not in KERNELS and _is_set(meaning, name)
    ]


# They choose kernels or how they run, and change no number.
KERNELS = {"foreach", "fused", "capturable", "differentiable", "triton", "gradient_release", "name"}


def _eps_place(meaning: Meaning, target: Call) -> list[str]:
    """ε before or after the correction of v: ε_t = ε/√(1 − β₂ᵗ)."""
    here, there = meaning.call.eps, target.eps
    if here == there or not meaning.words.get("eps"):
        return []
    return [
        f"ε is added in another place: {here} in {meaning.call.name}, {there} in {target.name}"
        + _eps_factor(meaning, here, there)
        + "."
    ]


def _eps_factor(meaning: Meaning, here: str, there: str) -> str:
    if {here, there} != {"√v̂ + ε", "√v + ε"} or "b2" not in meaning.words:
        return ""
    first, last = (1 / np.sqrt(1 - meaning.words["b2"] ** t) for t in (1, max(len(meaning.eta), 10)))
    uncorrected = "the former" if here == "√v + ε" else "the latter"
    steps = max(len(meaning.eta), 10)
    return f", so {uncorrected} acts like ε·{first:.3g} in step 1 and ε·{last:.3g} in step {steps:,}"


def _traits(meaning: Meaning, target: Call) -> list[str]:
    """η inside the momentum and outside of it are the same while η is constant."""
    inside = [ETA_IN_MOMENTUM in call.traits for call in (meaning.call, target)]
    if inside[0] == inside[1] or not meaning.words.get("momentum") or np.ptp(meaning.eta) == 0:
        return []
    names = (meaning.call.name, target.name) if inside[0] else (target.name, meaning.call.name)
    steps = 1 / (1 - meaning.words["momentum"])
    return [
        f"The momentum of {names[0]} holds η, where {names[1]} multiplies its momentum by η: after a change of η the "
        f"former follows within about 1/(1 − μ) = {steps:.3g} steps, the latter at once."
    ]
