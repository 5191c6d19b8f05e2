"""Another coupling for each parameter: [(regex, coupling), ...], such as AdamC's for weights before a normalisation."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from wd_optax import couplings
from wd_optax.couplings import Coupling
from wd_optax.hyperparams import Scalar, ScalarOrSchedule
from wd_optax.masking import forms, masks, roles
from wd_optax.masking.errors import refuse
from wd_optax.masking.matching import Regex, compile_regex, first_matches

CouplingRules = Sequence[tuple[Regex, Coupling]]


class Resolved(NamedTuple):
    """What `coupling=` says, with every number that is known checked."""

    peak: Scalar | None  # η_max where a coupling needs it
    largest: float | None  # the largest c_t of every leaf, where it is known; rules check m·c of each leaf themselves
    rate: Callable[[Mapping[str, jax.Array]], jax.Array]  # hyperparameters -> c_t
    leaf_rates: Callable[[optax.Params, Mapping[str, jax.Array]], Any] | None  # the same per leaf, for rules


def resolve(
    coupling: Coupling | CouplingRules,
    mask: masks.Mask,
    *,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    peak_learning_rate: Scalar | None,
    fraction: bool = True,
) -> Resolved:
    """`couplings.resolve_rates` of a coupling, or of every coupling in a list of rules.

    Where c_t is the threshold of a penalty, and no `fraction`, there is no largest one: any is stable.
    """
    numbers: Any = {
        "learning_rate": learning_rate, "weight_decay": weight_decay, "peak_learning_rate": peak_learning_rate,
        "below": 1.0 if fraction else math.inf,
    }  # fmt: skip
    if isinstance(coupling, str):
        peak, largest = couplings.resolve_rates(coupling, **numbers)
        return Resolved(peak, largest if fraction else None, lambda values: _fraction(coupling, values), None)
    rules = _rules(coupling)
    each = [couplings.resolve_rates(name, **numbers) for _, name in rules]
    known = {name: x.largest for (_, name), x in zip(rules, each, strict=True) if fraction and x.largest is not None}
    peak = next((x.peak for x in each if x.peak is not None), None)

    def leaf_rates(params: optax.Params, values: Mapping[str, jax.Array]) -> Any:
        names = _by_path(rules, mask, params, known)
        rates = {name: _fraction(name, values) for name in set(names)}
        return jax.tree.unflatten(jax.tree.structure(params), [rates[name] for name in names])

    return Resolved(peak, None, lambda values: values["weight_decay"], leaf_rates)


def _fraction(coupling: str, values: Mapping[str, jax.Array]) -> jax.Array:
    rate: jax.Array = couplings.removed(coupling, **values)
    return rate


def _rules(coupling: Any) -> list[tuple[Any, Coupling]]:
    is_list = isinstance(coupling, list | tuple) and len(coupling) > 0
    if is_list and len(coupling) == 2 and all(isinstance(x, str) for x in coupling):
        raise TypeError(f"coupling={coupling!r} is one rule: write [{tuple(coupling)!r}]")
    if not is_list or not all(isinstance(rule, list | tuple) and len(rule) == 2 for rule in coupling):
        names = ", ".join(map(repr, couplings.COUPLINGS))
        raise TypeError(
            f"coupling={coupling!r}: expected one of {names}, or rules, "
            '[("blocks/.*kernel", "corrected"), (".*", "lr")]'
        )
    for regex, name in coupling:
        if not isinstance(name, str) or name not in couplings.COUPLINGS:
            names = ", ".join(map(repr, couplings.COUPLINGS))
            raise ValueError(f"coupling rule {regex!r}: {name!r} is not a coupling: use one of {names}")
    return [(compile_regex("coupling", regex), name) for regex, name in coupling]


def _by_path(
    rules: list[tuple[Any, Coupling]], mask: masks.Mask, params: optax.Params, largest: Mapping[Coupling, float]
) -> list[Coupling]:
    """The coupling of each leaf, and any of one that never decays and that no rule matches."""
    found, hidden = roles.parameters_and_hidden(params)
    matches = first_matches("coupling", [pattern for pattern, _ in rules], found, hidden)
    multipliers = jax.tree.leaves(masks.multipliers(mask, params))
    names = [rules[0 if i is None else i][1] for i in matches]
    for p, i, name, m in zip(found, matches, names, multipliers, strict=True):
        if i is None and not forms.is_zero(m):
            refuse(f'coupling: no rule matches {p.path!r}, which decays: end with (".*", "lr")', [p])
        c = largest.get(name, 0.0)
        if isinstance(m, float) and m * c >= 1:
            refuse(
                f"mask: the multiplier {m:g} of {p.path!r} times c = {c:.3g} of coupling={name!r} removes {m * c:.3g} "
                f"of the weight per step; it must be below 1: pass a multiplier below {1 / c:.3g}, or lower the decay",
                [p],
            )
    return names
