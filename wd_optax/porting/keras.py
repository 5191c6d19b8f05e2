"""The optimizers of Keras 3: decay is decoupled in all of them, SGD too; names and defaults are Keras'."""

from typing import Any

import optax

from wd_optax.masking.masks import Mask
from wd_optax.porting.adam_directions import adam
from wd_optax.porting.calls import ETA_IN_MOMENTUM, Call
from wd_optax.porting.keras_base import keras_call
from wd_optax.porting.keras_directions import adafactor_step, momentum_step
from wd_optax.porting.live import live_decoupled
from wd_optax.porting.rmsprop import rmsprop_step
from wd_optax.porting.trust_ratios import lamb_step
from wd_optax.wrappers import decoupled

HOLDS_ETA = "the momentum contains η: b ← μ·b + η_t·g"


@keras_call(
    "keras.optimizers.SGD", formula="p ← (1 − η_t·λ)·p − b, b ← μ·b + η_t·g", coupling="lr", eps="",
    goldens=(
        "keras/sgd", "keras/sgd_momentum", "keras/sgd_nesterov", "keras/sgd_clipnorm", "keras/sgd_clipvalue",
        "keras/sgd_global_clipnorm", "keras/sgd_excluded",
    ),
    note=HOLDS_ETA, family="sgd", words={"momentum": "momentum", "nesterov": "nesterov"}, traits=(ETA_IN_MOMENTUM,),
)  # fmt: skip
def _keras_sgd(
    mask: Mask, *, learning_rate: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, weight_decay: Any = None
) -> optax.GradientTransformation:
    if not momentum:
        return decoupled(optax.identity(), learning_rate, weight_decay=weight_decay, mask=mask)
    return live_decoupled(momentum_step(momentum, nesterov), learning_rate, weight_decay=weight_decay, mask=mask)


def _keras_adam_with(
    mask: Mask, learning_rate: Any, beta_1: float, beta_2: float, epsilon: float, amsgrad: bool, weight_decay: Any
) -> optax.GradientTransformation:
    direction = adam(beta_1, beta_2, epsilon, amsgrad=amsgrad, eps_corrected=False)
    return decoupled(direction, learning_rate, weight_decay=weight_decay, mask=mask)


KERAS_ADAM: dict[str, Any] = {
    "formula": "p ← (1 − η_t·λ)·p − η_t·√(1 − β₂ᵗ)·m̂/(√v + ε)", "coupling": "lr", "eps": "√v + ε",
    "family": "adam", "words": {"beta_1": "b1", "beta_2": "b2", "epsilon": "eps", "amsgrad": "amsgrad"},
    "note": "ε is not corrected: ε/√(1 − β₂ᵗ) in PyTorch's terms",
}  # fmt: skip


@keras_call("keras.optimizers.Adam", goldens=("keras/adam", "keras/adam_amsgrad", "keras/adam_options"), **KERAS_ADAM)
def _keras_adam(
    mask: Mask, *, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7,
    amsgrad: bool = False, weight_decay: Any = None,
) -> optax.GradientTransformation:  # fmt: skip
    return _keras_adam_with(mask, learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay)


@keras_call(
    "keras.optimizers.AdamW",
    goldens=("keras/adamw", "keras/adamw_amsgrad", "keras/adamw_global_clipnorm"),
    **KERAS_ADAM,
)
def _keras_adamw(
    mask: Mask, *, learning_rate: Any = 0.001, weight_decay: Any = 0.004, beta_1: float = 0.9, beta_2: float = 0.999,
    epsilon: float = 1e-7, amsgrad: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    return _keras_adam_with(mask, learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay)


@keras_call(
    "keras.optimizers.RMSprop", formula="p ← (1 − η_t·λ)·p − b, b ← μ·b + η_t·g/√(v + ε)", coupling="lr",
    eps="√(v + ε)", goldens=("keras/rmsprop", "keras/rmsprop_momentum", "keras/rmsprop_options"), note=HOLDS_ETA,
)  # fmt: skip
def _keras_rmsprop(
    mask: Mask, *, learning_rate: Any = 0.001, rho: float = 0.9, momentum: float = 0.0, epsilon: float = 1e-7,
    centered: bool = False, weight_decay: Any = None,
) -> optax.GradientTransformation:  # fmt: skip
    step = rmsprop_step(rho, epsilon, momentum=momentum, centered=centered)
    return live_decoupled(step, learning_rate, weight_decay=weight_decay, mask=mask)


@keras_call(
    "keras.optimizers.Lion", formula="p ← (1 − η_t·λ)·p − η_t·sign(β₁·m + (1 − β₁)·g)", coupling="lr", eps="",
    goldens=("keras/lion", "keras/lion_options"), family="lion", words={"beta_1": "b1", "beta_2": "b2"},
)  # fmt: skip
def _keras_lion(
    mask: Mask, *, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.99, weight_decay: Any = None
) -> optax.GradientTransformation:
    return decoupled(optax.scale_by_lion(beta_1, beta_2), learning_rate, weight_decay=weight_decay, mask=mask)


@keras_call(
    "keras.optimizers.Lamb", formula="p ← (1 − η_t·λ)·p, then p ← p − η_t·(‖p‖/‖u‖)·u, u = m̂/(√v̂ + ε)",
    coupling="lr", eps="√v̂ + ε", goldens=("keras/lamb", "keras/lamb_options"), proportional=False,
    note="the decay is outside of the trust ratio, which is of the decayed weights",
)  # fmt: skip
def _keras_lamb(
    mask: Mask, *, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7,
    weight_decay: Any = None,
) -> optax.GradientTransformation:  # fmt: skip
    step = lamb_step(optax.scale_by_adam(beta_1, beta_2, epsilon))
    return live_decoupled(step, learning_rate, weight_decay=weight_decay, mask=mask, decays_first=True)


@keras_call(
    "keras.optimizers.Adafactor",
    formula="p ← (1 − η_t·λ)·p, then p ← p − max(ε₂, RMS(p))·min(η_t, 1/√t)·u, u = clip(g/√v), v factored",
    coupling="lr", eps="√(v + ε₁)", goldens=("keras/adafactor", "keras/adafactor_vector", "keras/adafactor_options"),
    proportional=False,
    note="relative_step changes nothing: the step is min(η, 1/√t) either way",
)  # fmt: skip
def _keras_adafactor(
    mask: Mask, *, learning_rate: Any = 0.001, beta_2_decay: float = -0.8, epsilon_1: float = 1e-30,
    epsilon_2: float = 1e-3, clip_threshold: float = 1.0, relative_step: bool = True, weight_decay: Any = None,
) -> optax.GradientTransformation:  # fmt: skip
    del relative_step
    step = adafactor_step(
        beta_2_decay=beta_2_decay, epsilon_1=epsilon_1, epsilon_2=epsilon_2, clip_threshold=clip_threshold
    )
    return live_decoupled(step, learning_rate, weight_decay=weight_decay, mask=mask, decays_first=True)


CALLS: tuple[Call, ...] = (
    _keras_sgd,
    _keras_adam,
    _keras_adamw,
    _keras_rmsprop,
    _keras_lion,
    _keras_lamb,
    _keras_adafactor,
)
