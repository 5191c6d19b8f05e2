"""What all optimizers of Keras share: clips, exclusions from the decay, and options of the training loop."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.masking import masks, paths, roles
from wd_optax.masking.masks import Mask
from wd_optax.porting.calls import Builder, Call, Staged, call, refuse

KERAS = "keras 3.15.1"
KERAS_BASE: Mapping[str, Any] = {  # of every Keras optimizer; and the method that excludes names
    "clipnorm": None, "clipvalue": None, "global_clipnorm": None, "use_ema": False, "ema_momentum": 0.99,
    "ema_overwrite_frequency": None, "loss_scale_factor": None, "gradient_accumulation_steps": None, "name": None,
    "exclude_from_weight_decay": (),
}  # fmt: skip
REFUSED = {
    "use_ema": (
        "the averaged weights replace the model's at the end of fit",
        "optax.ema of the parameters in your training loop, or wd.rules.toward_average",
    ),
    "loss_scale_factor": (
        "the trainer multiplies the loss by it and the optimizer divides the gradients again, which changes no number",
        "the call without it",
    ),
    "gradient_accumulation_steps": (
        "Keras counts every micro-step in Adam's corrections and in schedules",
        "optax.MultiSteps(wd.emulate(...), k), which counts updates",
    ),
}


def keras_call(name: str, **record: Any) -> Callable[[Builder], Call]:
    """`calls.call` for a function with an optimizer's own arguments: the rest are `KERAS_BASE`."""

    def decorate(build: Builder) -> Call:
        own = inspect.signature(build)
        keyword = inspect.Parameter.KEYWORD_ONLY
        base = [inspect.Parameter(key, keyword, default=value) for key, value in KERAS_BASE.items()]

        @functools.wraps(build)
        def whole(mask: Mask, **arguments: Any) -> optax.GradientTransformation | Staged:
            shared = {key: arguments.pop(key) for key in KERAS_BASE}
            for key, (why, nearest) in REFUSED.items():
                if shared[key]:
                    raise refuse(name, f"{key}={shared[key]!r}", why, nearest)
            if arguments["weight_decay"] is None:
                arguments["weight_decay"] = 0.0
            optimizer = build(excluding(mask, shared["exclude_from_weight_decay"], last=True), **arguments)
            first = one_clip(name, **{key: shared[key] for key in ("clipnorm", "clipvalue", "global_clipnorm")})
            return optimizer if first is None else Staged(first, optimizer)

        whole.__signature__ = own.replace(parameters=[*own.parameters.values(), *base])  # type: ignore[attr-defined]
        made: Call = call(name, version=KERAS, learning_rate="learning_rate", **record)(whole)
        return made

    return decorate


def one_clip(
    name: str, *, clipnorm: float | None, clipvalue: float | None, global_clipnorm: float | None
) -> optax.GradientTransformation | None:
    """The one clip of Keras 3; 0 clips nothing, as there."""
    given = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    several = [key for key, value in given.items() if value is not None]
    if len(several) > 1:
        raise ValueError(
            f"{name}: {several[0]} and {several[1]} were both given: Keras takes one of {', '.join(given)}"
        )
    if clipnorm:
        return clip_each_by_norm(clipnorm)
    if global_clipnorm:
        return optax.clip_by_global_norm(global_clipnorm)
    return optax.clip(clipvalue) if clipvalue else None


def clip_each_by_norm(largest: float) -> optax.GradientTransformation:
    """g ← g·c/max(‖g‖, c), for each parameter alone."""

    def clip(g: jax.Array) -> jax.Array:
        return g * (largest / jnp.maximum(jnp.linalg.norm(g.ravel()), largest))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def excluding(
    mask: Mask, names: Sequence[str] | None, *, last: bool = False, argument: str = "exclude_from_weight_decay"
) -> Mask:
    """`mask` without the parameters that one of the regular expressions is found in.

    Args:
      mask: which parameters decay otherwise.
      names: searched for in the path.
      last: searched for in the last part of the path, which is Keras 3's `variable.name`.
      argument: whose names they are.
    """
    if not names:
        return mask
    patterns = [re.compile(name) for name in names]

    def decide(params: Any) -> Any:
        whole = jax.tree.leaves(masks.multipliers(mask, params))
        where = [p.path.rpartition("/")[2] if last else p.path for p in roles.parameters(params)]
        spared = [any(pattern.search(path) for pattern in patterns) for path in where]
        unused = [x.pattern for x in patterns if not any(x.search(path) for path in where)]
        if unused and not paths.leaves(params)[1]:  # not in a tree cut by groups
            known = ", ".join(sorted(set(where)))
            raise ValueError(f"{argument}: {unused[0]!r} is found in no name: they are {known}")
        each = [0.0 if spare else m for spare, m in zip(spared, whole, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(params), each)

    return decide
