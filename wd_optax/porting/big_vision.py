"""big_vision's optimizer from its config: p ← p − f_t·(η·u + λ·p), f_t the schedule's factor; names are the config's.

The decay follows the schedule and not lr: it removes (η_t/η_max)·λ per step. Reference: `big_vision/optax.py` and
`create_learning_rate_schedule` of google-research/big_vision, commit 11eea57.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.hyperparams import Schedule
from wd_optax.masking import roles
from wd_optax.masking.masks import Mask
from wd_optax.porting.calls import Call, Staged, call, refuse
from wd_optax.porting.clipping import of_trained
from wd_optax.porting.factories import Decided, multiplied, ruled
from wd_optax.porting.rates import peak, scheduled
from wd_optax.wrappers import decoupled

CONFIG = "big_vision.optax.make"
Multipliers = Sequence[tuple[str, float]]
KERNELS_ONLY: Multipliers = ((".*/kernel$", 1.0),)
DECAY_TYPES = ("linear", "polynomial", "cosine", "rsqrt", "stair")
OPTIONS = ("decay_type", "power", "end", "linear_end", "timescale", "shift", "steps", "mults")


def scale_by_adafactor(
    min_dim_size_to_factor: int = 32, decay_rate: float = 0.8, decay_offset: int = 0, beta2_cap: float = 0.999,
    clipping_threshold: float | None = None, momentum: float | None = 0.9, dtype_momentum: Any = jnp.bfloat16,
    eps: float = 1e-30,
) -> optax.GradientTransformation:  # fmt: skip
    """Adafactor's direction with β₂ = min(cap, 1 − t^−d) and momentum, as big_vision has it.

    Reference: Zhai et al. 2021, arXiv 2106.04560, section 3.4.
    """

    def beta2(step: Any, exponent: float) -> jax.Array:
        return jnp.minimum(beta2_cap, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)

    rms = optax.scale_by_factored_rms(
        decay_rate=decay_rate, step_offset=decay_offset, min_dim_size_to_factor=min_dim_size_to_factor, epsilon=eps,
        decay_rate_fn=beta2,
    )  # fmt: skip
    stages = [rms] + ([optax.clip_by_block_rms(clipping_threshold)] if clipping_threshold else [])
    last = [optax.ema(momentum, debias=False, accumulator_dtype=dtype_momentum)] if momentum else []
    return optax.chain(*stages, *last)


def momentum_hp(momentum: float = 0.9, dtype: Any = jnp.bfloat16, nesterov: bool = False) -> Any:
    """Momentum that is stored in bfloat16."""
    return optax.trace(decay=momentum, accumulator_dtype=dtype, nesterov=nesterov)


OWN_STAGES = {
    "big_vision.scale_by_adafactor": scale_by_adafactor, "big_vision.momentum_hp": momentum_hp,
    "big_vision.sgd": optax.identity,
}  # fmt: skip


def _duration(name: str, config: Mapping[str, Any], total: int | None, batch: int | None, data: int | None) -> Any:
    """Steps of "warmup" or "cooldown", given as steps, epochs, examples or a percentage."""

    def whole(x: float) -> int:
        return max(1, round(x)) if x else 0

    if f"{name}_steps" in config:
        return config[f"{name}_steps"]
    if batch and f"{name}_examples" in config:
        return whole(config[f"{name}_examples"] / batch)
    if batch and data and f"{name}_epochs" in config:
        return whole(config[f"{name}_epochs"] * data / batch)
    if total and f"{name}_percent" in config:
        return whole(config[f"{name}_percent"] * total)
    return 0


def factors(config: Mapping[str, Any], total: int | None, batch: int | None, data: int | None) -> Schedule:
    """big_vision's schedule: step -> factor of η and λ, computed in float32 as there.

    Args:
      config: `config.schedule`: decay_type, warmup_steps, cooldown_steps, ...
      total: steps of the run.
      batch, data: for durations in epochs or examples.
    """
    kind = config.get("decay_type", "stair")
    durations = {f"{x}_{unit}" for x in ("warmup", "cooldown") for unit in ("steps", "epochs", "examples", "percent")}
    unknown = [key for key in config if key not in OPTIONS and key not in durations]
    if unknown or kind not in DECAY_TYPES:
        what = f"schedule_config={{{unknown[0]!r}: ...}}" if unknown else f"decay_type={kind!r}"
        raise refuse(CONFIG, what, "it is not ported", "schedule=step -> factor")
    warmup, cooldown = (_duration(name, config, total, batch, data) for name in ("warmup", "cooldown"))
    if total is None and (cooldown or kind in ("linear", "polynomial", "cosine")):
        raise ValueError(f"{CONFIG}: total_steps=None: decay_type={kind!r} and cooldowns need the steps of the run")

    def factor(step: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        value = _after_warmup(kind, config, t, warmup, jnp.clip((t - warmup) / ((total or 0) - warmup or 1), 0, 1))
        value = value * jnp.minimum(1.0, t / warmup) if warmup else value
        value = value * jnp.minimum(1.0, ((total or 0) - t) / cooldown) if cooldown else value
        return jnp.asarray(jnp.asarray(value, jnp.float32), float)  # in JAX's default type, in which it multiplies η

    return factor


def _after_warmup(kind: str, config: Mapping[str, Any], t: jax.Array, warmup: int, progress: jax.Array) -> Any:
    if kind in ("linear", "polynomial"):
        end = config.get("end", config.get("linear_end", 0))
        return end + (1.0 - end) * (1.0 - progress) ** config.get("power", 1)
    if kind == "cosine":
        return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    if kind == "rsqrt":
        scale, shift = config.get("timescale", 10_000), config.get("shift", 0)
        return 1 / jnp.sqrt(1 + (jnp.maximum(t - warmup, 0) + shift) / scale)
    steps, mults = config.get("steps", []), [1.0, *config.get("mults", [])]
    return jnp.asarray(mults, jnp.float32)[jnp.searchsorted(jnp.asarray(steps, jnp.float32), t + 1)]


def _first_multiplier(name: str, table: Multipliers, path: str, missing: float) -> tuple[float, str]:
    """The first regex that is the whole path decides."""
    for regex, value in table:
        if re.fullmatch(regex, path):
            return value, f"{name} {regex!r}: {value:g}"
    return missing, f"no regex of {name} is its path: {missing:g}"


def _by_multipliers(params: Any, arguments: Mapping[str, Any]) -> Decided:
    each = []
    for p in roles.parameters(params):
        decay, why = _first_multiplier("wd_mults", arguments["wd_mults"], p.path, 0.0)
        rate, also = (
            _first_multiplier("lr_mults", arguments["lr_mults"], p.path, 1.0) if arguments["lr_mults"] else (1.0, "")
        )
        each.append((rate, decay, f"{why}; {also}" if also else why))
    return multiplied(each, _big_vision, {**arguments, "wd": arguments["wd"] or 0.0})


@call(
    CONFIG, version="big_vision 11eea57", formula="p ← p − f_t·(η·u + λ·p), f_t = η_t/η", coupling="schedule",
    eps="√v̂ + ε", goldens=(), mask_rule="paths that are .*/kernel", weight_decay="wd",
    note="config.schedule is schedule_config here; lr_mults scale η and not the decay",
)  # fmt: skip
def _big_vision(
    mask: Mask, *, lr: Any, wd: Any = None, optax_name: str = "scale_by_adam", optax: Mapping[str, Any] | None = None,
    grad_clip_norm: float | None = None, wd_mults: Multipliers = KERNELS_ONLY, lr_mults: Multipliers | None = None,
    schedule_config: Mapping[str, Any] | None = None, total_steps: int | None = None, batch_size: int | None = None,
    data_size: int | None = None,
) -> Any:  # fmt: skip
    del wd_mults, lr_mults  # in the groups
    if not isinstance(schedule_config or {}, Mapping):
        raise refuse(CONFIG, "a list of schedules", "frozen parameters and schedules by name aren't ported",
                     "wd.partition of one call per schedule, and optax.set_to_zero() for None")  # fmt: skip
    eta = scheduled(lr, factors(schedule_config or {}, total_steps, batch_size, data_size))
    return _with_decay_of_schedule(_stage_named(optax_name, optax or {}), mask, eta, wd or 0.0, grad_clip_norm)


def _stage_named(name: str, arguments: Mapping[str, Any]) -> Any:
    try:
        make = OWN_STAGES[name] if name in OWN_STAGES else operator.attrgetter(name)(optax)
    except AttributeError:
        raise refuse(CONFIG, f"optax_name={name!r}", "Optax has none of this name",
                     f"one of Optax's scale_by_..., or of {', '.join(OWN_STAGES)}") from None  # fmt: skip
    return make(**arguments)


def _with_decay_of_schedule(direction: Any, mask: Mask, eta: Any, decay: Any, clip: float | None) -> Any:
    tx = decoupled(
        direction, eta, weight_decay=decay, mask=mask, coupling="schedule", peak_learning_rate=peak(CONFIG, eta)
    )
    return Staged(of_trained(optax.clip_by_global_norm(clip)), tx) if clip else tx


CALLS: tuple[Call, ...] = (ruled(_big_vision, _by_multipliers),)
