"""`from_torch`: the optimizer of a running PyTorch job, with its parameter groups."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from wd_optax.hyperparams import Schedule
from wd_optax.masking import roles
from wd_optax.porting.calls import Call, bind, find
from wd_optax.porting.emulate import CALLS
from wd_optax.porting.group_table import GroupRow, GroupTable
from wd_optax.porting.groups import NOT_TRAINED, Group, assemble
from wd_optax.porting.rates import scaled, scheduled
from wd_optax.porting.torch_job import NamedParameters, TorchParameter, read_job
from wd_optax.porting.torch_names import TorchNames, sources

SCHEDULERS = ("initial_lr", "max_lr", "min_lr", "lr_scale")  # what schedulers of torch and timm keep in a group
OF_NORMS = ("Lamb", "Lars", "LAMB", "StableAdamW", "create_optimizer_v2")  # a step has a norm of the whole tensor
OF_AXES = ("Adafactor", "AdafactorBigVision", "Muon")  # a step goes by rows and columns
# Options of a class that its call has by its name.
IMPLIED = {"torch.optim.AdamW": {"decoupled_weight_decay": True}}


def from_torch(
    optimizer: Any,
    named_parameters: NamedParameters,
    params: optax.Params,
    names: TorchNames | None = None,
    *,
    call: str | None = None,
    schedule: Schedule | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, GroupTable]:
    """The optimizer of a running PyTorch job: the same groups, each with its own η, λ, β and ε.

    Nothing of torch is imported: `param_groups`, names and shapes are read as they are.

    Args:
      optimizer: PyTorch's, or its `state_dict()`, which needs `call`.
      named_parameters: `model.named_parameters()`, also of a model in DDP or torch.compile. For a `state_dict()`
        without "param_names": names in the optimizer's order, one list per group if there are several.
      params: arrays or `jax.ShapeDtypeStruct`s.
      names: PyTorch's name -> path, where the rules don't find it: regex pairs, all substituted in turn, such as
        [("^blocks", "encoder/layers")], or a function, None for a name that it doesn't change. A list of new names
        is a tensor that is split, () one that has no place here. By rule `weight` is `kernel`, `scale` or `embedding`,
        `layers.3` is `layers_3` or `layers/3`, layers may be stacked, and one name may have more words in front.
      call: what the optimizer is, such as "torch.optim.AdamW", where its class doesn't say it.
      schedule: step -> fraction of a group's `initial_lr`, as the function of PyTorch's `LambdaLR`; needed where the
        groups have an `initial_lr`, since a scheduler moves their η.

    Returns:
      The optimizer: `wd_optax.emulate`'s for one group, one per group in `wd_optax.partition` for several; parameters
      in no group and those that require no gradient get zero updates. And a table: per leaf its group, η, λ and
      PyTorch's name.

    Raises:
      ValueError: for a parameter of PyTorch's or a leaf that has no partner or several, leaves whose parameters are in
        different groups, an unknown optimizer, and a scheduler without `schedule`.

    Example: the biases don't decay, as in PyTorch.
      >>> import types
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> weight, bias = jnp.ones((3, 2)), jnp.ones(3)  # for torch tensors
      >>> groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
      >>> job = types.SimpleNamespace(param_groups=[{**group, "lr": 0.01} for group in groups])
      >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> named_parameters = [("dense.weight", weight), ("dense.bias", bias)]
      >>> tx, table = wd.from_torch(job, named_parameters, params, call="torch.optim.AdamW")
      >>> print(table)
      path          shape  group   lr    weight_decay  because          from
      dense/bias    (3,)   group1  0.01  0             param_groups[1]  dense.bias
      dense/kernel  (2,3)  group0  0.01  0.1           param_groups[0]  dense.weight
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print(f"{updates['dense']['kernel'][0, 0]:.4f}", updates["dense"]["bias"][0] == 0)
      -0.0010 True
    """
    job = read_job(optimizer, named_parameters)
    found = find(call or _call_of(job.kind), CALLS)._replace(mask=None)  # the groups say what decays
    leaves = roles.parameters(params)
    made = [[job.parameters[i] for i in own] for own in sources(job.parameters, leaves, names)]
    _check_whole(found, job.groups, leaves, made)
    groups = [_call_group(i, options, found, schedule) for i, options in enumerate(job.groups)]
    index = [_group_index(leaf.path, own, groups) for leaf, own in zip(leaves, made, strict=True)]
    rows = [_group_row(leaf, k, groups, found, own) for leaf, k, own in zip(leaves, index, made, strict=True)]
    if index and all(k is None for k in index):
        raise ValueError("optimizer: none of its groups has a parameter that requires gradients: nothing trains")
    return assemble(found, groups, index, params), GroupTable(tuple(rows))


def _call_of(kind: str) -> str:
    """The call with the class's name, of the package that the class is from."""
    if not kind:
        raise ValueError('optimizer is a state_dict, which doesn\'t say its class: pass call="torch.optim.AdamW"')
    package, name = kind.partition(".")[0], kind.rpartition(".")[2]
    same = [call for call in CALLS if call.partition(".")[0] == package and call.rpartition(".")[2] == name]
    return same[0] if len(same) == 1 else kind


def _call_group(i: int, options: Mapping[str, Any], found: Call, schedule: Schedule | None) -> Group:
    """A group of PyTorch's as one of the call, with all arguments, and numbers for tensors."""
    values, known = {name: _number_of(value) for name, value in options.items()}, found.signature.parameters
    implied = IMPLIED.get(found.name, {})
    for name, value in values.items():
        if implied.get(name, value) != value:
            raise ValueError(
                f"optimizer: group {i} has {name}={value!r}, and {found.name} {name}={implied[name]!r}: pass the other "
                "call, such as call='torch.optim.Adam'"
            )
        if name not in (*known, *SCHEDULERS, *implied) and isinstance(value, int | float):
            raise ValueError(
                f"optimizer: group {i} has {name}={value!r}, which {found.name} doesn't know, so something else in the "
                f"job uses it: group.pop({name!r}) if it does nothing, else change lr or weight_decay by it"
            )
    arguments = bind(found, {name: value for name, value in values.items() if name in known})
    if schedule is None and "initial_lr" in values:
        raise ValueError(
            f"optimizer: group {i} has initial_lr={values['initial_lr']:g} and now lr={values['lr']:g}, so a scheduler "
            "moves it: pass schedule=step -> fraction of initial_lr, as the function of PyTorch's LambdaLR; "
            "lambda step: 1.0 where it stays"
        )
    if schedule is not None:
        peak = values.get("initial_lr", arguments[found.learning_rate])
        arguments[found.learning_rate] = scheduled(scaled(peak, values.get("lr_scale", 1.0)), schedule)
    return Group(f"group{i}", arguments, f"param_groups[{i}]")


def _number_of(value: Any) -> Any:
    """A tensor of one number as that number, also inside of tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(_number_of, value))
    return value.item() if hasattr(value, "item") and not isinstance(value, jax.Array) else value


def _group_index(path: str, own: Sequence[TorchParameter], groups: Sequence[Group]) -> int | None:
    """The group that a leaf's parameters are in; None where they don't train, or there is none."""
    if not own:
        return None
    first, a = own[0], own[0].group
    for p in own:
        b = p.group
        if a != b and (a is None or b is None or groups[a].arguments != groups[b].arguments):
            raise ValueError(
                f"params: {path!r} is {first.name!r} and {p.name!r} of PyTorch, which are in different groups, "
                f"{_say(a)} and {_say(b)}: keep them apart in params, or in one group"
            )
    return a


def _check_whole(
    found: Call, groups: Sequence[Mapping[str, Any]], leaves: Sequence[roles.Parameter],
    made: Sequence[Sequence[TorchParameter]],
) -> None:  # fmt: skip
    """Raises where a step depends on a whole tensor, by its norm or its axes, and a leaf is another one."""
    name = found.name.rpartition(".")[2]
    if name not in (*OF_NORMS, *OF_AXES) and not any(group.get("caution") for group in groups):
        return
    uses = collections.Counter(id(p) for own in made for p in own)
    for leaf, own in zip(leaves, made, strict=True):
        whole = len(own) == 1 and uses[id(own[0])] == 1
        if own and not (whole and (name not in OF_AXES or own[0].shape == leaf.shape)):
            shapes = ", ".join(f"{p.name!r} {p.shape}" for p in own)
            raise ValueError(
                f"params: {leaf.path!r} {leaf.shape} is made of {shapes} of PyTorch, and a step of {found.name} "
                f"depends on {'the order of axes' if whole else 'the whole tensor'}: keep PyTorch's layout in params"
            )


def _say(group: int | None) -> str:
    return "none that trains" if group is None else f"group {group}"


def _group_row(
    leaf: roles.Parameter, k: int | None, groups: Sequence[Group], found: Call, own: Sequence[TorchParameter]
) -> GroupRow:
    name = ", ".join(p.name for p in own)
    if k is None:
        why = "in no group, or requires no gradient" if own else f"{leaf.dtype} is not trained"
        return GroupRow(leaf.path, leaf.shape, NOT_TRAINED, 0.0, 0.0, why, name)
    group = groups[k]
    lr, decay = (group.arguments[x] for x in (found.learning_rate, found.weight_decay))
    return GroupRow(leaf.path, leaf.shape, group.name, lr, decay, group.because, name)
