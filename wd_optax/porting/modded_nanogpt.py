"""modded-nanogpt's Adam with cautious decay, whose rate is η²·λ; names and defaults are its training script's.

Reference: https://github.com/KellerJordan/modded-nanogpt, `train_gpt.py` at 0016a3c: `NorMuonAndAdam._adam_update`, and
`adam_defaults` of its `TrainingManager`.
"""

from typing import Any

import optax

from wd_optax.masking.masks import Mask
from wd_optax.porting.adam_directions import adam
from wd_optax.porting.calls import Call, call, refuse
from wd_optax.rules import cautious
from wd_optax.wrappers import decoupled

NAME = "modded_nanogpt.NorMuonAndAdam"


@call(
    NAME, version="modded-nanogpt 0016a3c", eps="√v + ε", coupling="corrected", goldens=(), proportional=False,
    formula="p ← p − η_t²·λ·p·[u·p > 0] − η_t·u, u = √(1 − β₂ᵗ)·m̂/(√v + ε)",
    note="the corrected decay with η_max = 1, cautious and strict; its lr_mul and wd_mul multiply a group's lr and "
    "weight_decay; the script steps it on odd steps only",
)  # fmt: skip
def _nor_muon_and_adam(
    mask: Mask, *, adam_betas: tuple[float, float], optim: str = "adam", lr: Any = 0.008, eps: float = 1e-10,
    weight_decay: Any = 0.005,
) -> optax.GradientTransformation:  # fmt: skip
    if optim != "adam":
        why = "its matrices are orthogonalized in bfloat16 by GPU kernels and carry their lost bits beside them"
        nearest = (
            "its decay on another Muon: wd.decoupled(optax.contrib.scale_by_muon(), ..., coupling='corrected', "
            "peak_learning_rate=1.0, rule=wd.rules.cautious()), whose mask is u·p ≥ 0"
        )
        raise refuse(NAME, f"optim={optim!r}", why, nearest)
    return decoupled(
        adam(*adam_betas, eps, eps_corrected=False), lr, weight_decay=weight_decay, mask=mask, coupling="corrected",
        peak_learning_rate=1.0, rule=cautious(strict=True),
    )  # fmt: skip


CALLS: tuple[Call, ...] = (_nor_muon_and_adam,)
