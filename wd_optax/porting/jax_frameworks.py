"""AdamW of AXLearn and MaxText, which are Optax's with other names; names and defaults are theirs.

References: `axlearn/common/optimizers.py`, apple/axlearn commit 064ecb6; `MaxText/optimizers.py` and `base.yml`,
AI-Hypercomputer/maxtext commit 093e263.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import optax

from wd_optax.masking import roles
from wd_optax.masking.masks import Mask
from wd_optax.porting.calls import Call, call, refuse
from wd_optax.porting.factories import Decided, multiplied, ruled
from wd_optax.porting.rates import peak, scheduled
from wd_optax.wrappers import decoupled

AXLEARN, MAXTEXT = "axlearn 064ecb6", "maxtext 093e263"
Scales = Sequence[tuple[str, float]] | None
AXLEARN_ADAMW = "p ← (1 − η_t·λ)·p − η_t·m̂/(√v̂ + ε)"
AXLEARN_NOTE = "weight_decay_per_param_scale: the (regex, scale) pairs of per_param_scale_by_path"


def _per_param_scales(inner: Call) -> Any:
    """Groups by `weight_decay_per_param_scale`: the first regex that is the whole path decides, otherwise 1."""

    def decide(params: Any, arguments: Mapping[str, Any]) -> Decided:
        pairs = arguments["weight_decay_per_param_scale"] or ()
        if callable(pairs):
            raise refuse(inner.name, "weight_decay_per_param_scale=<a function>", "it takes AXLearn's parameters",
                         "the (regex, scale) pairs of per_param_scale_by_path")  # fmt: skip
        each = []
        for p in roles.parameters(params):
            found = next(((regex, scale) for regex, scale in pairs if re.fullmatch(regex, p.path)), None)
            why = "no regex is its path: 1" if found is None else f"{found[0]!r}: {found[1]:g}"
            each.append((1.0, 1.0 if found is None else float(found[1]), why if pairs else f"{inner.name}: all"))
        return multiplied(each, inner, arguments)

    return decide


def _refuse_transformation(name: str, given: Any) -> None:
    if given is not None:
        raise refuse(name, "adam_update_transformation", "its transformations are AXLearn's own",
                     "wd.decoupled(optax.chain(optax.scale_by_adam(...), <yours>), ...)")  # fmt: skip


@call(
    "axlearn.adamw_optimizer", version=AXLEARN, formula=AXLEARN_ADAMW, coupling="lr", eps="√v̂ + ε", goldens=(),
    learning_rate="learning_rate", family="adam", words={"b1": "b1", "b2": "b2", "eps": "eps"}, note=AXLEARN_NOTE,
)  # fmt: skip
def _axlearn_adamw(
    mask: Mask, *, learning_rate: Any, b1: float, b2: float, eps: float, weight_decay: Any = 0,
    weight_decay_per_param_scale: Scales = None, mu_dtype: Any = None, adam_update_transformation: Any = None,
) -> optax.GradientTransformation:  # fmt: skip
    del weight_decay_per_param_scale  # in the groups
    _refuse_transformation("axlearn.adamw_optimizer", adam_update_transformation)
    direction = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return decoupled(direction, learning_rate, weight_decay=weight_decay, mask=mask)


@call(
    "axlearn.adamw_decoupled_optimizer", version=AXLEARN, formula="p ← p − f_t·(η·m̂/(√v̂ + ε) + λ·p)",
    coupling="schedule", eps="√v̂ + ε", goldens=(), learning_rate="learning_rate",
    note=f"algorithm 2 of the AdamW paper: f_t is update_schedule; {AXLEARN_NOTE}",
)  # fmt: skip
def _axlearn_decoupled(
    mask: Mask, *, learning_rate: Any, b1: float, b2: float, eps: float, update_schedule: Any, weight_decay: Any = 0,
    weight_decay_per_param_scale: Scales = None, mu_dtype: Any = None, adam_update_transformation: Any = None,
) -> optax.GradientTransformation:  # fmt: skip
    del weight_decay_per_param_scale  # in the groups
    _refuse_transformation("axlearn.adamw_decoupled_optimizer", adam_update_transformation)
    factor = update_schedule if callable(update_schedule) else lambda step: update_schedule
    eta = scheduled(learning_rate, factor)
    direction = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return decoupled(
        direction, eta, weight_decay=weight_decay, mask=mask, coupling="schedule",
        peak_learning_rate=peak("axlearn.adamw_decoupled_optimizer", eta),
    )  # fmt: skip


@call(
    "maxtext.get_optimizer", version=MAXTEXT, formula="p ← (1 − η_t·λ)·p − η_t·m̂/(√(v̂ + ε_root) + ε)", coupling="lr",
    eps="√v̂ + ε", goldens=(), learning_rate="learning_rate", weight_decay="adam_weight_decay", family="adam",
    words={"adam_b1": "b1", "adam_b2": "b2", "adam_eps": "eps"},
    note="opt_type='adam_pax' is the same step, whose corrections MaxText computes in float32",
)  # fmt: skip
def _maxtext(
    mask: Mask, *, learning_rate: Any = 3e-5, opt_type: str = "adamw", adam_b1: float = 0.9, adam_b2: float = 0.95,
    adam_eps: float = 1e-8, adam_eps_root: float = 0.0, adam_weight_decay: Any = 0.1,
) -> optax.GradientTransformation:  # fmt: skip
    if opt_type not in ("adamw", "adam_pax"):
        raise refuse("maxtext.get_optimizer", f"opt_type={opt_type!r}", "it is not ported", "'adamw' or 'adam_pax'")
    direction = optax.scale_by_adam(adam_b1, adam_b2, adam_eps, adam_eps_root)
    return decoupled(direction, learning_rate, weight_decay=adam_weight_decay, mask=mask)


CALLS: tuple[Call, ...] = (*(ruled(x, _per_param_scales(x)) for x in (_axlearn_adamw, _axlearn_decoupled)), _maxtext)
