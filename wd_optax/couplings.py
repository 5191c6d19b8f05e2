"""How fast weights decay: the coupling between the learning rate η and the weight decay λ.

Libraries and papers differ on whether λ is multiplied by the learning rate; here each answer has a name.
c_t is the fraction of a weight removed in step t:

    coupling      c_t                 used by
    "lr"          η_t·λ               PyTorch, Optax, Keras, timm
    "schedule"    (η_t/η_max)·λ       the AdamW paper, AXLearn, optimī decouple_lr, Composer, big_vision
    "corrected"   (η_t²/η_max)·λ      AdamC (for normalised layers)
    "constant"    λ                   Hanson & Pratt, TF-Addons, Optax's adafactor

References: Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2 ("schedule");
Defazio 2025, arXiv 2506.02285 ("corrected"); Hanson & Pratt 1988 ("constant").
"""

from typing import Any, Literal, NamedTuple

from wd_optax.hyperparams import Scalar, ScalarOrSchedule, Schedule, check_number, is_concrete, is_static

Coupling = Literal["lr", "schedule", "corrected", "constant"]


class Exponents(NamedTuple):
    """c_t = λ·(η_t/η_max)^ratio·η_t^power."""

    ratio: int
    power: int


COUPLINGS: dict[str, Exponents] = {
    "lr": Exponents(0, 1),
    "schedule": Exponents(1, 0),
    "corrected": Exponents(1, 1),
    "constant": Exponents(0, 0),
}


def parse_coupling(name: str, coupling: str) -> Exponents:
    """The exponents of a coupling, or a ValueError that lists the couplings."""
    if coupling not in tuple(COUPLINGS):
        raise ValueError(f"{name}={coupling!r} is not a coupling: use one of {', '.join(map(repr, COUPLINGS))}")
    return COUPLINGS[coupling]


def removed(coupling: str, *, learning_rate: Any, weight_decay: Any, peak_learning_rate: Any = None) -> Any:
    """c_t for values (not schedules) of η_t, λ and η_max: numbers, or arrays of any kind."""
    ratio, power = COUPLINGS[coupling]
    if ratio:
        weight_decay = weight_decay * (learning_rate / peak_learning_rate)
    return weight_decay * learning_rate if power else weight_decay


def resolve_peak(coupling: str, learning_rate: ScalarOrSchedule, peak_learning_rate: Scalar | None) -> Scalar | None:
    """η_max where the coupling needs it, else None.

    A constant learning rate is its own peak. The peak of a schedule, or of an array whose value
    may change from step to step (under `optax.inject_hyperparams`), can't be known here.
    """
    ratio, _ = parse_coupling("coupling", coupling)
    if not ratio:
        return None
    if peak_learning_rate is not None:
        peak = peak_learning_rate
    elif is_static(learning_rate):
        peak = learning_rate
    else:
        kind = "a schedule" if callable(learning_rate) else "an array"
        raise ValueError(
            f"coupling={coupling!r} divides by the peak learning rate, and learning_rate is {kind}, "
            "whose peak can't be known here: pass peak_learning_rate, the largest value that "
            "learning_rate takes in the run (for an array that stays constant: the array itself)"
        )
    check_number("peak_learning_rate", peak)
    if is_concrete(peak) and float(peak) == 0:
        raise ValueError(
            f"peak_learning_rate={peak!r}: coupling={coupling!r} divides by it; pass the largest "
            "learning rate of the run"
        )
    return peak


class Rates(NamedTuple):
    """What is known of c_t before the first step."""

    peak: Scalar | None  # η_max where the coupling needs it
    largest: float | None  # the largest c_t, where it is known now


def resolve_rates(
    coupling: str,
    *,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    peak_learning_rate: Scalar | None = None,
    below: float = 1.0,
) -> Rates:
    """The peak and the largest c_t, after checks of every number and array that is known now, and of c_t < below."""
    check_number("learning_rate", learning_rate)
    check_number("weight_decay", weight_decay)
    peak = resolve_peak(coupling, learning_rate, peak_learning_rate)
    eta = peak if callable(learning_rate) else learning_rate
    needed: dict[str, ScalarOrSchedule | None] = {"weight_decay": weight_decay}
    if any(COUPLINGS[coupling]):
        needed |= {"learning_rate": eta} | ({} if peak is None else {"peak_learning_rate": peak})
    known = {name: float(x) for name, x in needed.items() if x is not None and not callable(x) and is_concrete(x)}
    if len(known) < len(needed):
        return Rates(peak, None)
    c: float = removed(coupling, **{"learning_rate": None} | known)
    if c >= below:
        given = "" if eta is None else f"learning_rate={eta!r} and "
        raise ValueError(
            f"weight_decay={weight_decay!r} with {given}coupling={coupling!r} removes "
            f"{c:.3g} of each weight per step; it must be below {below:g}: lower weight_decay"
        )
    return Rates(peak, c)


def decay_rate(
    weight_decay: ScalarOrSchedule,
    *,
    learning_rate: ScalarOrSchedule,
    coupling: Coupling = "lr",
    peak_learning_rate: Scalar | None = None,
) -> Schedule:
    """The fraction of a weight removed at each step, c_t = λ·(η_t/η_max)^r·η_t^k.

    Args:
      weight_decay: λ, a number ≥ 0, an array or a schedule.
      learning_rate: η_t, likewise.
      coupling: "lr" (c = η_t·λ), "schedule" ((η_t/η_max)·λ), "corrected" ((η_t²/η_max)·λ) or "constant" (λ).
      peak_learning_rate: η_max, needed by "schedule" and "corrected" where `learning_rate` isn't a plain number.

    Returns:
      A function step -> c_t, a scalar, unit: fraction per step. It is a valid rate for `wd_optax.shrink`.

    Raises:
      ValueError: for an unknown coupling, a negative or non-finite number, an unknown peak, c ≥ 1. A threshold of
        `wd_optax.proximal` is no fraction and may be 1 or more: there pass η·λ itself, or lambda t: η(t)·λ.

    Example:
      >>> import wd_optax as wd
      >>> wd.decay_rate(0.1, learning_rate=1e-3)(0)
      0.0001
      >>> wd.decay_rate(0.1, learning_rate=lambda t: 1e-3 / (1 + t), coupling="schedule", peak_learning_rate=1e-3)(1)
      0.05
    """
    peak = resolve_rates(
        coupling, learning_rate=learning_rate, weight_decay=weight_decay, peak_learning_rate=peak_learning_rate
    ).peak

    def at(value: ScalarOrSchedule, step: Any) -> Any:
        return value(step) if callable(value) else value

    def rate(step: Any) -> Any:
        return removed(
            coupling,
            learning_rate=at(learning_rate, step),
            weight_decay=at(weight_decay, step),
            peak_learning_rate=peak,
        )

    return rate


def convert_weight_decay(
    weight_decay: Scalar,
    *,
    learning_rate: ScalarOrSchedule,
    from_coupling: Coupling,
    to_coupling: Coupling,
    peak_learning_rate: Scalar | None = None,
) -> Scalar:
    """The λ' that removes what λ removes under another coupling: λ' = λ·η^(r+k−r'−k')·η_max^(r'−r).

    A coupling is c_t = λ·(η_t/η_max)^r·η_t^k, see `decay_rate`. For a schedule the result is exact at every step if
    r + k = r' + k', as from "lr" to "schedule"; otherwise no constant λ' exists, and this raises. For a number it is
    exact at that η; where the run's η is another one in between, convert to a coupling with the same r + k.

    Args:
      weight_decay: λ under `from_coupling`.
      learning_rate: η: a schedule, or the number at which both are to remove the same.
      from_coupling: where λ comes from: "lr", "schedule", "corrected" or "constant".
      to_coupling: where λ' goes.
      peak_learning_rate: η_max; by default η where that is a number.

    Returns:
      λ', a scalar, to be used with `to_coupling` and the same peak.

    Raises:
      ValueError: where no exact conversion exists, η_max is unknown, or η is 0 where it divides.

    Example: optimī's decoupled 1e-5 at learning rate 1e-3 is PyTorch's 0.01; a constant 0.1 per step is λ = 100 at
    η = 1e-3, whatever the peak is.
      >>> import wd_optax as wd
      >>> round(wd.convert_weight_decay(1e-5, learning_rate=1e-3, from_coupling="schedule", to_coupling="lr"), 10)
      0.01
      >>> wd.convert_weight_decay(
      ...     0.1, learning_rate=1e-3, from_coupling="constant", to_coupling="lr", peak_learning_rate=1e-2
      ... )
      100.0
    """
    check_number("learning_rate", learning_rate)
    check_number("weight_decay", weight_decay)
    old, new = parse_coupling("from_coupling", from_coupling), parse_coupling("to_coupling", to_coupling)
    if from_coupling == to_coupling:
        return weight_decay
    power = sum(old) - sum(new)  # of η
    if callable(learning_rate) and power:
        raise ValueError(
            f"no weight_decay under to_coupling={to_coupling!r} equals {weight_decay!r} under "
            f"from_coupling={from_coupling!r} at every step of a scheduled learning_rate: keep that coupling, "
            "or pass the schedule decay_rate(...) to wd_optax.shrink"
        )
    given = learning_rate if peak_learning_rate is None and not callable(learning_rate) else peak_learning_rate
    peak: Any = resolve_peak("schedule", learning_rate, given)
    if power and not callable(learning_rate):
        if is_concrete(learning_rate) and float(learning_rate) == 0:
            raise ValueError(f"learning_rate={learning_rate!r}: pass the learning rate at which both remove the same")
        weight_decay = weight_decay * learning_rate**power
    converted: Scalar = weight_decay * peak ** (new.ratio - old.ratio)
    return converted
