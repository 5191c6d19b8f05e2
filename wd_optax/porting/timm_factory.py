"""`timm.optim.create_optimizer_v2`: an optimizer by its short name, and groups by timm's rule."""

import fnmatch
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from wd_optax.masking import roles
from wd_optax.porting import timm, timm_layerwise, timm_muon, torch_optim
from wd_optax.porting.calls import Call, refuse
from wd_optax.porting.factories import Made, factory, is_vector_in_torch, spare

_KNOWN = {known.name: known for m in (torch_optim, timm, timm_layerwise, timm_muon) for known in m.CALLS}
# what the models' no_weight_decay() name, and what Flax models call the same
VIT = ("pos_embed", "cls_token", "reg_token", "dist_token")
ALSO = {"pos_embed": ("pos_embedding",), "cls_token": ("cls",)}


class Short(NamedTuple):
    """What timm's registry has for a short name."""

    call: str
    defaults: Mapping[str, Any] = {}
    momentum: bool = False  # whether it gets create_optimizer_v2's momentum
    eps: bool = True  # whether eps is passed on; it is dropped otherwise
    betas: bool = True


def _sgd(call: str, **defaults: Any) -> Short:
    return Short(call, defaults, momentum=True, eps=False, betas=False)


def _momentum(call: str, **defaults: Any) -> Short:
    return Short(call, defaults, momentum=True, betas=False)


def _torch(name: str, **defaults: Any) -> Short:
    return Short(f"torch.optim.{name}", defaults)


def _timm(name: str, **defaults: Any) -> Short:
    return Short(f"timm.optim.{name}", defaults)


_CORRECTED: dict[str, Any] = {"corrected_weight_decay": True}
_DECOUPLED: dict[str, Any] = {"decoupled_decay": True}
_PLAIN: dict[str, Short] = {
    "sgd": _sgd("torch.optim.SGD", nesterov=True),
    "momentum": _sgd("torch.optim.SGD", nesterov=False),
    "nesterov": _sgd("torch.optim.SGD", nesterov=True),
    "sgdw": _sgd("timm.optim.SGDW", nesterov=True),
    "nesterovw": _sgd("timm.optim.SGDW", nesterov=True),
    "sgdc": _sgd("timm.optim.SGDW", nesterov=True, **_CORRECTED),
    "adam": _torch("Adam"),
    "adamw": _torch("AdamW"),
    "adamwlegacy": _timm("AdamWLegacy"),
    "adamc": _timm("AdamWLegacy", **_CORRECTED),
    "nadam": _torch("NAdam"),
    "nadamw": _timm("NAdamW"),
    "nadamc": _timm("NAdamW", **_CORRECTED),
    "radam": _torch("RAdam"),
    "radamw": _torch("RAdam", decoupled_weight_decay=True),
    "adamax": _torch("Adamax"),
    "adadelta": _torch("Adadelta")._replace(betas=False),
    "adagrad": _torch("Adagrad", eps=1e-8)._replace(betas=False),
    "adabelief": _timm("AdaBelief", rectify=False),
    "radabelief": _timm("AdaBelief", rectify=True),
    "adan": _timm("Adan", no_prox=False),
    "adanw": _timm("Adan", no_prox=True),
    "lion": _timm("Lion")._replace(eps=False),
    "lionc": _timm("Lion", **_CORRECTED)._replace(eps=False),
    "lamb": _timm("Lamb"),
    "lambc": _timm("Lamb", trust_clip=True),
    "lambw": _timm("Lamb", **_DECOUPLED),
    "lambcw": _timm("Lamb", trust_clip=True, **_DECOUPLED),
    "lambcd": _timm("Lamb", **_DECOUPLED, **_CORRECTED),
    "lars": _momentum("timm.optim.Lars"),
    "larc": _momentum("timm.optim.Lars", trust_clip=True),
    "nlars": _momentum("timm.optim.Lars", nesterov=True),
    "nlarc": _momentum("timm.optim.Lars", nesterov=True, trust_clip=True),
    "rmsprop": _momentum("torch.optim.RMSprop", alpha=0.9),
    "rmsproptf": _momentum("timm.optim.RMSpropTF", alpha=0.9),
    "rmsproptfw": _momentum("timm.optim.RMSpropTF", alpha=0.9, **_DECOUPLED),
    "rmsproptfc": _momentum("timm.optim.RMSpropTF", alpha=0.9, **_DECOUPLED, **_CORRECTED),
    "adafactorbv": _momentum("timm.optim.AdafactorBigVision"),
    "adafactorbvc": _momentum("timm.optim.AdafactorBigVision", **_CORRECTED),
    "muon": _timm("Muon")._replace(momentum=True),
    "nmuon": _timm("Muon", nesterov=True)._replace(momentum=True),
}
_CAUTIOUS = (
    "adafactorbv", "adafactorbvc", "adamc", "adan", "adanw", "lamb", "lambw", "lion", "lionc", "nadamc", "nadamw",
    "rmsproptf", "sgdc", "sgdw",
)  # fmt: skip
SHORT: dict[str, Short] = (
    _PLAIN
    | {f"c{name}": _PLAIN[name]._replace(defaults={**_PLAIN[name].defaults, "caution": True}) for name in _CAUTIOUS}
    | {"cadamw": _timm("AdamWLegacy", caution=True)}
)
NAME = "timm.optim.create_optimizer_v2"


@factory(
    NAME, version=timm.TIMM, formula="the optimizer that opt names", coupling="lr", eps="",
    mask_rule="not rank ≤ 1, biases, and names of no_weight_decay()",
    goldens=(
        "timm/create_sgd", "timm/create_adamw", "timm/create_lamb", "timm/create_lionc", "timm/create_all",
        "timm/create_rmsproptfw", "timm/create_cadamw",
    ),
    note="momentum=0.9 where the optimizer has one; timm's own schedulers scale lr by the layer's factor",
)  # fmt: skip
def _timm_create_optimizer(
    params: Any, *, opt: str = "sgd", lr: Any = None, weight_decay: Any = 0.0, momentum: float = 0.9,
    foreach: bool | None = None, filter_bias_and_bn: bool = True, fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False, layer_decay_min_scale: float = 0.0,
    layer_decay_no_opt_scale: float | None = None, param_group_fn: Any = None,
    no_weight_decay: Collection[str] = VIT, **kwargs: Any,
) -> Made:  # fmt: skip
    """`no_weight_decay` is the model's method in timm: by default that of its ViT."""
    _refuse(
        opt, fallback_list, fallback_no_weight_decay, layer_decay_min_scale, layer_decay_no_opt_scale, param_group_fn
    )
    short = SHORT[opt.lower()]
    arguments = {"weight_decay": weight_decay, **kwargs} | ({} if lr is None else {"lr": lr})
    arguments = {**short.defaults, **({"momentum": momentum} if short.momentum else {}), **arguments}
    for name, takes in (("eps", short.eps), ("betas", short.betas)):
        if not takes:
            arguments.pop(name, None)

    def spares(p: roles.Parameter) -> str:
        if isinstance(weight_decay, int | float) and not weight_decay:
            return "weight_decay=0"
        named = next((name for name in no_weight_decay if _is_named(p.path, name)), None)
        if named is not None:
            return f"no_weight_decay() names {named!r}"
        return is_vector_in_torch(p) if filter_bias_and_bn else ""

    return Made(_KNOWN[short.call], arguments, spare(params, spares))


def _is_named(path: str, name: str) -> bool:
    """Whether timm's pattern is the path, or its last part."""
    names = (name, *ALSO.get(name, ()))
    return any(fnmatch.fnmatch(x, y) for x in (path.replace("/", "."), path.rpartition("/")[2]) for y in names)


def _refuse(
    opt: str, fallback_list: Collection[str], fallback_no_weight_decay: bool, min_scale: float,
    no_opt_scale: float | None, param_group_fn: Any,
) -> None:  # fmt: skip
    if opt.lower() not in SHORT:
        raise refuse(NAME, f"opt={opt!r}", "it is not ported", f"one of {', '.join(sorted(SHORT))}")
    if fallback_list or fallback_no_weight_decay:
        raise refuse(
            NAME, "a fallback list", "groups decide it here",
            'groups=[{"params": regex, "use_fallback": True}] of timm.optim.Muon',
        )  # fmt: skip
    if min_scale or no_opt_scale:
        raise refuse(
            NAME, "layer_decay_min_scale, or layer_decay_no_opt_scale", "layers' factors aren't clamped here",
            "layer_decay alone, or groups with an lr each",
        )  # fmt: skip
    if param_group_fn is not None:
        raise refuse(NAME, "param_group_fn", "it takes a PyTorch model", "groups=[...] with regular expressions")


CALLS: tuple[Call, ...] = (_timm_create_optimizer,)
