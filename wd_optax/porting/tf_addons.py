"""TensorFlow Addons' SGDW, AdamW and LAMB: p ← p − λ·p whatever η is; names and defaults are theirs."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from wd_optax.masking.masks import Mask
from wd_optax.porting.adam_directions import adam
from wd_optax.porting.calls import ETA_IN_MOMENTUM, Builder, Call, Staged, call
from wd_optax.porting.keras_base import clip_each_by_norm, excluding
from wd_optax.porting.keras_directions import momentum_step
from wd_optax.porting.live import descend, live_decoupled
from wd_optax.porting.rates import scheduled
from wd_optax.porting.trust_ratios import lamb_decay
from wd_optax.wrappers import decoupled

TF_ADDONS = "tensorflow-addons 0.23.0"
# **kwargs of every optimizer of Keras 2, which these extend
TFA_BASE: Mapping[str, Any] = {
    "exclude_from_weight_decay": None, "clipnorm": None, "clipvalue": None, "global_clipnorm": None, "decay": 0.0,
    "name": None,
}  # fmt: skip
WHATEVER_ETA = "λ isn't multiplied by η, nor scheduled with it: schedule weight_decay yourself"


def tf_call(name: str, **record: Any) -> Callable[[Builder], Call]:
    """`calls.call` for a function with an optimizer's own arguments: the rest are `TFA_BASE`."""

    def decorate(build: Builder) -> Call:
        own = inspect.signature(build)
        keyword = inspect.Parameter.KEYWORD_ONLY
        base = [inspect.Parameter(key, keyword, default=value) for key, value in TFA_BASE.items()]

        @functools.wraps(build)
        def whole(mask: Mask, **arguments: Any) -> optax.GradientTransformation | Staged:
            shared = {key: arguments.pop(key) for key in TFA_BASE}
            if decay := shared["decay"]:  # η/(1 + decay·t)
                factor = lambda step: 1 / (1 + decay * step)
                arguments["learning_rate"] = scheduled(arguments["learning_rate"], factor)
            names = shared["exclude_from_weight_decay"]
            if "exclude_from_layer_adaptation" in arguments:
                arguments["exclude_from_layer_adaptation"] = arguments["exclude_from_layer_adaptation"] or names
            optimizer = build(excluding(mask, names), **arguments)
            first = _tfa_clips(name, **{key: shared[key] for key in ("clipnorm", "clipvalue", "global_clipnorm")})
            return optimizer if first is None else Staged(first, optimizer)

        whole.__signature__ = own.replace(parameters=[*own.parameters.values(), *base])  # type: ignore[attr-defined]
        made: Call = call(name, version=TF_ADDONS, learning_rate="learning_rate", **record)(whole)
        return made

    return decorate


def _tfa_clips(
    name: str, *, clipnorm: float | None, clipvalue: float | None, global_clipnorm: float | None
) -> optax.GradientTransformation | None:
    """The clips of Keras 2 in its order: by value, by the norm of each, by the global norm."""
    if clipnorm is not None and global_clipnorm is not None:
        raise ValueError(f"{name}: clipnorm and global_clipnorm were both given: Keras takes one of them")
    stages = [] if clipvalue is None else [optax.clip(clipvalue)]
    stages += [] if clipnorm is None else [clip_each_by_norm(clipnorm)]
    stages += [] if global_clipnorm is None else [optax.clip_by_global_norm(global_clipnorm)]
    return optax.chain(*stages) if stages else None


@tf_call(
    "tfa.optimizers.SGDW", formula="p ← (1 − λ)·p − b, b ← μ·b + η_t·g", coupling="constant", eps="",
    goldens=(
        "tfa/sgdw", "tfa/sgdw_momentum", "tfa/sgdw_nesterov", "tfa/sgdw_decay", "tfa/sgdw_clips", "tfa/sgdw_excluded",
        "tfa/sgdw_global_clipnorm",
    ),
    proportional=False, note=WHATEVER_ETA, family="sgd", words={"momentum": "momentum", "nesterov": "nesterov"},
    traits=(ETA_IN_MOMENTUM,),
)  # fmt: skip
def _tfa_sgdw(
    mask: Mask, *, weight_decay: Any, learning_rate: Any = 0.001, momentum: float = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
    if not momentum:
        return decoupled(optax.identity(), learning_rate, weight_decay=weight_decay, mask=mask, coupling="constant")
    step = momentum_step(momentum, nesterov)
    return live_decoupled(step, learning_rate, weight_decay=weight_decay, mask=mask, coupling="constant")


@tf_call(
    "tfa.optimizers.AdamW", formula="p ← (1 − λ)·p − η_t·√(1 − β₂ᵗ)·m̂/(√v + ε)", coupling="constant", eps="√v + ε",
    goldens=("tfa/adamw", "tfa/adamw_amsgrad", "tfa/adamw_options"), family="adam",
    words={"beta_1": "b1", "beta_2": "b2", "epsilon": "eps", "amsgrad": "amsgrad"}, proportional=False,
    note=f"{WHATEVER_ETA}; ε is not corrected",
)  # fmt: skip
def _tfa_adamw(
    mask: Mask, *, weight_decay: Any, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999,
    epsilon: float = 1e-07, amsgrad: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    direction = adam(beta_1, beta_2, epsilon, amsgrad=amsgrad, eps_corrected=False)
    return decoupled(direction, learning_rate, weight_decay=weight_decay, mask=mask, coupling="constant")


@tf_call(
    "tfa.optimizers.LAMB", formula="p ← p − η_t·(‖p‖/‖u + λ·p‖)·(u + λ·p), u = m̂/(√v̂ + ε)", coupling="lr",
    eps="√v̂ + ε", goldens=("tfa/lamb", "tfa/lamb_excluded", "tfa/lamb_not_adapted"),
    note="the decay is inside the trust ratio; names in exclude_from_weight_decay aren't adapted either, unless "
    "exclude_from_layer_adaptation names others",
)  # fmt: skip
def _tfa_lamb(
    mask: Mask, *, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-6,
    weight_decay: Any = 0.0, exclude_from_layer_adaptation: Sequence[str] | None = None,
) -> optax.GradientTransformation:  # fmt: skip
    adapted = excluding(None, exclude_from_layer_adaptation, argument="exclude_from_layer_adaptation")
    decay = lamb_decay(weight_decay, mask, always_adapt=True, adapted=adapted)
    return descend(optax.chain(optax.scale_by_adam(beta_1, beta_2, epsilon), decay), learning_rate)


CALLS: tuple[Call, ...] = (_tfa_sgdw, _tfa_adamw, _tfa_lamb)
