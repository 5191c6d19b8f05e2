"""`timm.optim.create_optimizer_v2`: an optimizer by its short name, and groups by timm's rule."""

import fnmatch
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from wd_optax.masking import roles
from wd_optax.porting import timm, timm_layerwise, timm_muon, torch_optim
from wd_optax.porting.calls import Call, refuse
from wd_optax.porting.factories import Made, factory, is_vector_in_torch, spare

_MAKES = {made.name: made for m in (torch_optim, timm, timm_layerwise, timm_muon) for made in m.CALLS}
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


def _of_sgd(call: str, **defaults: Any) -> Short:
    return Short(call, defaults, momentum=True, eps=False, betas=False)


def _takes_momentum(call: str, **defaults: Any) -> Short:
    return Short(call, defaults, momentum=True, betas=False)


def _of_torch(name: str, **defaults: Any) -> Short:
    return Short(f"torch.optim.{name}", defaults)


def _of_timm(name: str, **defaults: Any) -> Short:
    return Short(f"timm.optim.{name}", defaults)


_CORRECTED: dict[str, Any] = {"corrected_weight_decay": True}
_DECOUPLED: dict[str, Any] = {"decoupled_decay": True}
_WITHOUT_CAUTION: dict[str, Short] = {
    "sgd": _of_sgd("torch.optim.SGD", nesterov=True),
    "momentum": _of_sgd("torch.optim.SGD", nesterov=False),
    "nesterov": _of_sgd("torch.optim.SGD", nesterov=True),
    "sgdw": _of_sgd("timm.optim.SGDW", nesterov=True),
    "nesterovw": _of_sgd("timm.optim.SGDW", nesterov=True),
    "sgdc": _of_sgd("timm.optim.SGDW", nesterov=True, **_CORRECTED),
    "adam": _of_torch("Adam"),
    "adamw": _of_torch("AdamW"),
    "adamwlegacy": _of_timm("AdamWLegacy"),
    "adamc": _of_timm("AdamWLegacy", **_CORRECTED),
    "nadam": _of_torch("NAdam"),
    "nadamw": _of_timm("NAdamW"),
    "nadamc": _of_timm("NAdamW", **_CORRECTED),
    "radam": _of_torch("RAdam"),
    "radamw": _of_torch("RAdam", decoupled_weight_decay=True),
    "adamax": _of_torch("Adamax"),
    "adadelta": _of_torch("Adadelta")._replace(betas=False),
    "adagrad": _of_torch("Adagrad", eps=1e-8)._replace(betas=False),
    "adabelief": _of_timm("AdaBelief", rectify=False),
    "radabelief": _of_timm("AdaBelief", rectify=True),
    "adan": _of_timm("Adan", no_prox=False),
    "adanw": _of_timm("Adan", no_prox=True),
    "lion": _of_timm("Lion")._replace(eps=False),
    "lionc": _of_timm("Lion", **_CORRECTED)._replace(eps=False),
    "lamb": _of_timm("Lamb"),
    "lambc": _of_timm("Lamb", trust_clip=True),
    "lambw": _of_timm("Lamb", **_DECOUPLED),
    "lambcw": _of_timm("Lamb", trust_clip=True, **_DECOUPLED),
    "lambcd": _of_timm("Lamb", **_DECOUPLED, **_CORRECTED),
    "lars": _takes_momentum("timm.optim.Lars"),
    "larc": _takes_momentum("timm.optim.Lars", trust_clip=True),
    "nlars": _takes_momentum("timm.optim.Lars", nesterov=True),
    "nlarc": _takes_momentum("timm.optim.Lars", nesterov=True, trust_clip=True),
    "rmsprop": _takes_momentum("torch.optim.RMSprop", alpha=0.9),
    "rmsproptf": _takes_momentum("timm.optim.RMSpropTF", alpha=0.9),
    "rmsproptfw": _takes_momentum("timm.optim.RMSpropTF", alpha=0.9, **_DECOUPLED),
    "rmsproptfc": _takes_momentum("timm.optim.RMSpropTF", alpha=0.9, **_DECOUPLED, **_CORRECTED),
    "adafactorbv": _takes_momentum("timm.optim.AdafactorBigVision"),
    "adafactorbvc": _takes_momentum("timm.optim.AdafactorBigVision", **_CORRECTED),
    "muon": _of_timm("Muon")._replace(momentum=True),
    "nmuon": _of_timm("Muon", nesterov=True)._replace(momentum=True),
}
_CAUTIOUS = (
    "adafactorbv", "adafactorbvc", "adamc", "adan", "adanw", "lamb", "lambw", "lion", "lionc", "nadamc", "nadamw",
    "rmsproptf", "sgdc", "sgdw",
)  # fmt: skip
SHORT_NAMES: dict[str, Short] = (
    _WITHOUT_CAUTION
    | {
        f"c{name}": _WITHOUT_CAUTION[name]._replace(defaults={**_WITHOUT_CAUTION[name].defaults, "caution": True})
        for name in _CAUTIOUS
    }
    | {"cadamw": _of_timm("AdamWLegacy", caution=True)}
)
CREATE = "timm.optim.create_optimizer_v2"


@factory(
    CREATE, version=timm.TIMM, formula="the optimizer that opt names", coupling="lr", eps="",
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
    _refuse_create(
        opt, fallback_list, fallback_no_weight_decay, layer_decay_min_scale, layer_decay_no_opt_scale, param_group_fn
    )
    short = SHORT_NAMES[opt.lower()]
    arguments = {"weight_decay": weight_decay, **kwargs} | ({} if lr is None else {"lr": lr})
    arguments = {**short.defaults, **({"momentum": momentum} if short.momentum else {}), **arguments}
    for name, takes in (("eps", short.eps), ("betas", short.betas)):
        if not takes:
            arguments.pop(name, None)

    def spares(p: roles.Parameter) -> str:
        if isinstance(weight_decay, int | float) and not weight_decay:
            return "weight_decay=0"
        named = next((name for name in no_weight_decay if _is_spared(p.path, name)), None)
        if named is not None:
            return f"no_weight_decay() names {named!r}"
        return is_vector_in_torch(p) if filter_bias_and_bn else ""

    return Made(_MAKES[short.call], arguments, spare(params, spares))


def _is_spared(path: str, name: str) -> bool:
    """Whether timm's pattern is the path, or its last part."""
    names = (name, *ALSO.get(name, ()))
    return any(fnmatch.fnmatch(x, y) for x in (path.replace("/", "."), path.rpartition("/")[2]) for y in names)


def _refuse_create(
    opt: str, fallback_list: Collection[str], fallback_no_weight_decay: bool, min_scale: float,
    no_opt_scale: float | None, param_group_fn: Any,
) -> None:  # fmt: skip
    if opt.lower() not in SHORT_NAMES:
        raise refuse(CREATE, f"opt={opt!r}", "it is not ported", f"one of {', '.join(sorted(SHORT_NAMES))}")
    if fallback_list or fallback_no_weight_decay:
        raise refuse(
            CREATE, "a fallback list", "groups decide it here",
            'groups=[{"params": regex, "use_fallback": True}] of timm.optim.Muon',
        )  # fmt: skip
    if min_scale or no_opt_scale:
        raise refuse(
            CREATE, "layer_decay_min_scale, or layer_decay_no_opt_scale", "layers' factors aren't clamped here",
            "layer_decay alone, or groups with an lr each",
        )  # fmt: skip
    if param_group_fn is not None:
        raise refuse(CREATE, "param_group_fn", "it takes a PyTorch model", "groups=[...] with regular expressions")


CALLS: tuple[Call, ...] = (_timm_create_optimizer,)
