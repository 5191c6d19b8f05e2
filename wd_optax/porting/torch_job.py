"""What a PyTorch optimizer holds, read without torch: its groups, the names of their parameters, and their state."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# What DDP, torch.compile, FSDP and activation checkpointing put into names.
WRAPPER_NAMES = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
DDP = "module."
SAME_SHAPE = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "ax")  # slots like the parameter

NamedParameters = Any  # model.named_parameters(), a dict of them, names in order, or a list of one of these per group


class TorchParameter(NamedTuple):
    """One tensor of the model."""

    names: tuple[str, ...]  # without those of wrappers; more than one where it is tied
    shape: tuple[int, ...] | None  # None where only its name is known
    group: int | None  # None where it doesn't train: it is in no group, or requires no gradient
    state: Mapping[str, Any]  # of the optimizer, by slot; {} before its first step

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


class TorchJob(NamedTuple):
    """An optimizer and the parameters it knows."""

    kind: str  # of the optimizer, with its module: "torch.optim.adamw.AdamW"; "" of a state_dict
    groups: tuple[Mapping[str, Any], ...]  # the options of each of its `param_groups`
    parameters: tuple[TorchParameter, ...]  # those in its groups, in its order, and then the others


def read_job(optimizer: Any, named_parameters: NamedParameters) -> TorchJob:
    """The groups of an optimizer, or of its `state_dict()`, with names.

    Args:
      optimizer: has `param_groups` and `state`; or the dict of these two, where parameters are numbers.
      named_parameters: `model.named_parameters()`. For a state_dict without "param_names", the names in the
        optimizer's order: as they are for one group, else a list of them per group. None: the groups' "param_names".

    Raises:
      TypeError: for an optimizer without groups.
      ValueError: where names and parameters don't fit together, or a parameter is in two groups.
    """
    groups, states, kind = _unpack(optimizer)
    given = _Named(named_parameters)
    clean = clean_names([name for group in groups for name in group.get("param_names", ())])
    found, seen = [], set()
    for i, group in enumerate(groups):
        for key, names, tensor in _names_of_group(i, group, clean, given, len(groups)):
            if (names if tensor is None else id(tensor)) in seen:
                raise ValueError(
                    f"optimizer: {names[0]!r} is in two groups, the second is group {i}: remove it from one"
                )
            seen.add(names if tensor is None else id(tensor))
            found.append(_torch_parameter(i, names, tensor, states(key)))
    known = {name for p in found for name in p.names}
    found += [_torch_parameter(None, names, x, {}) for names, x in given.tensors() if not known.intersection(names)]
    options = tuple({k: v for k, v in group.items() if k not in ("params", "param_names")} for group in groups)
    return TorchJob(kind, options, tuple(found))


def _unpack(optimizer: Any) -> tuple[Sequence[Mapping[str, Any]], Any, str]:
    """The groups, the state by parameter as a function, and the class."""
    if isinstance(optimizer, Mapping):
        if "param_groups" not in optimizer:
            keys = ", ".join(map(repr, list(optimizer)[:5]))
            raise TypeError(
                f"optimizer: got a dict with {keys}, expected that of optimizer.state_dict(), with 'state' and "
                "'param_groups'; in a checkpoint it is often checkpoint['optimizer']"
            )
        state = optimizer.get("state", {})
        return optimizer["param_groups"], lambda i: state.get(i, state.get(str(i), {})), ""
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"optimizer: got a {type(optimizer).__name__}, expected a PyTorch optimizer or its state_dict()"
        )
    own = optimizer
    while type(own).__module__.partition(".")[0] == "accelerate" and hasattr(own, "optimizer"):
        own = own.optimizer
    state = getattr(optimizer, "state", {})
    return (
        optimizer.param_groups,
        lambda p: state.get(p, {}) if state else {},
        f"{type(own).__module__}.{type(own).__qualname__}",
    )


class _Named:
    """`named_parameters` in any of its forms."""

    def __init__(self, given: NamedParameters):
        if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
            raise TypeError(f"named_parameters: got {given!r}, expected model.named_parameters()")
        entries = list(given.items()) if isinstance(given, Mapping) else list(given or ())
        self.given = given is not None
        self.nested = [_named_entries(x) for x in entries] if entries and not any(map(_is_entry, entries)) else None
        flat = _named_entries(entries) if self.nested is None else [x for part in self.nested for x in part]
        clean = clean_names([name for name, _ in flat])
        self.flat = [(clean[name], x) for name, x in flat]
        self.nested = self.nested and [[(clean[name], x) for name, x in part] for part in self.nested]

    def tensors(self) -> list[tuple[tuple[str, ...], Any]]:
        """Each tensor with all its names."""
        names: dict[int, list[str]] = {}
        for i, (name, x) in enumerate(self.flat):
            names.setdefault(-1 - i if x is None else id(x), []).append(name)
        found = {-1 - i if x is None else id(x): x for i, (_, x) in enumerate(self.flat)}
        return [(tuple(same), found[key]) for key, same in names.items()]


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, str) or (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str))


def _named_entries(given: Any) -> list[tuple[str, Any]]:
    """Names and tensors, None where there is only the name."""
    listed = list(given.items()) if isinstance(given, Mapping) else list(given)
    for entry in listed:
        if not _is_entry(entry):
            raise TypeError(f"named_parameters: {entry!r} is neither a name nor (name, parameter), as the others are")
    return [(entry, None) if isinstance(entry, str) else entry for entry in listed]


def _names_of_group(
    i: int, group: Mapping[str, Any], clean: Mapping[str, str], given: _Named, groups: int
) -> list[tuple[Any, tuple[str, ...], Any]]:
    """(key of its state, names, tensor or None) of every parameter of group i."""
    keys = list(group["params"])
    if not keys:
        return []
    by_tensor = {id(x): (names, x) for names, x in given.tensors() if x is not None}
    if all(id(key) in by_tensor for key in keys):
        return [(key, *by_tensor[id(key)]) for key in keys]
    live = hasattr(keys[0], "shape")
    if "param_names" in group:
        by_name = {name: (names, x) for names, x in given.tensors() for name in names}
        pairs = [by_name.get(clean[name], ((clean[name],), None)) for name in group["param_names"]]
        return [(k, names, k if live else x) for k, (names, x) in zip(keys, pairs, strict=True)]
    if live:
        lost = next(key for key in keys if id(key) not in by_tensor)
        raise ValueError(
            f"named_parameters has no name for a parameter of group {i}, of shape {tuple(lost.shape)}: pass those of "
            "the model that the optimizer was built for, named_parameters=model.named_parameters()"
        )
    return _in_order(i, keys, given, groups)


def _in_order(i: int, keys: list[Any], given: _Named, groups: int) -> list[tuple[Any, tuple[str, ...], Any]]:
    """The same for numbered parameters: names in the order of the groups."""
    if not given.given:
        raise ValueError(
            "optimizer is a state_dict without names: pass named_parameters, in the optimizer's order, such as "
            "named_parameters=[name for name, p in model.named_parameters()] for model.parameters()"
        )
    if given.nested is None and groups > 1:
        raise ValueError(
            f"optimizer is a state_dict of {groups} groups without names, whose numbers follow the groups and not the "
            "model: pass one list of names per group, such as named_parameters=[[n for n, p in named if p.ndim >= 2], "
            "[n for n, p in named if p.ndim < 2]], or the optimizer itself"
        )
    parts = [given.flat] if given.nested is None else given.nested
    if len(parts) != groups:
        raise ValueError(
            f"named_parameters has {len(parts)} lists, and the optimizer has {groups} groups: pass one each"
        )
    names = parts[i]
    if len(names) != len(keys):
        raise ValueError(
            f"group {i} of the optimizer has {len(keys)} parameters, and named_parameters {len(names)} for it: pass "
            "those that the optimizer was given, such as only the ones that require gradients, tied ones once"
        )
    return [(key, (name,), x) for key, (name, x) in zip(keys, names, strict=True)]


def _torch_parameter(
    group: int | None, names: tuple[str, ...], tensor: Any, state: Mapping[str, Any]
) -> TorchParameter:  # fmt: skip
    shape = None if tensor is None else tuple(tensor.shape)
    for slot in [slot for slot in SAME_SHAPE if getattr(state.get(slot), "shape", ())]:
        own = tuple(state[slot].shape)
        if shape not in (None, own):
            raise ValueError(
                f"named_parameters: {names[0]!r} has shape {shape}, but its {slot} in the optimizer's state has "
                f"{own}: the names are in another order than the optimizer's parameters"
            )
        shape = own
    return TorchParameter(names, shape, group if getattr(tensor, "requires_grad", True) else None, state)


def read_names(named_parameters: NamedParameters) -> list[tuple[tuple[str, ...], tuple[int, ...] | None]]:
    """The names and the shape, None if unknown, of each parameter of a model."""
    found = _Named(named_parameters).tensors()
    return [(names, None if x is None else tuple(x.shape)) for names, x in found]


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without what wrappers of the model put in: `module.` of DDP, `_orig_mod.` of torch.compile."""
    clean = {name: WRAPPER_NAMES.sub("", name) for name in names}
    while clean and all(name.startswith(DDP) for name in clean.values()):
        clean = {name: short.removeprefix(DDP) for name, short in clean.items()}
    return clean
