"""The moments of a PyTorch optimizer as trees like the JAX parameters, through the function that converts weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.masking import roles
from wd_optax.porting.torch_convert import Convert, convert_leaves, like, origins, to_numpy
from wd_optax.porting.torch_job import TorchParameter, clean_names
from wd_optax.state_fields import Field

# What a field of a state here is in PyTorch's, by the state's type; of several, the one that is there.
SLOTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "ScaleByAdamState": {"mu": ("exp_avg",), "nu": ("exp_avg_sq",)},
    "MomentumState": {"trace": ("momentum_buffer",)},
    "TraceState": {"trace": ("momentum_buffer",)},
    "ScaleByRmsState": {"nu": ("square_avg",)},
    "ScaleByRStdDevState": {"mu": ("grad_avg",), "nu": ("square_avg",)},
    "ScaleByAdaDeltaState": {"e_g": ("square_avg",), "e_x": ("acc_delta",)},
    "SlotsState": {  # of wd.emulate's own directions
        "mu": ("exp_avg", "momentum_buffer", "mu"), "nu": ("exp_avg_sq",), "nu_max": ("max_exp_avg_sq",),
        "sum_of_squares": ("sum",), "mu_product": ("mu_product",), "eta": ("eta",), "ax": ("ax",),
    },
}  # fmt: skip
WHY = {"ScaleByAmsgradState": " (Optax takes the largest v̂, PyTorch the largest v)"}


def slots_of(p: TorchParameter) -> set[str]:
    """What PyTorch keeps for a parameter, besides its count."""
    return {slot for slot, value in p.state.items() if value is not None} - {"step"}


class Moments:
    """PyTorch's moments as trees like `params`."""

    def __init__(
        self, convert: Convert, params: optax.Params, parameters: Sequence[TorchParameter],
        weights: Mapping[str, Any] | None,
    ):  # fmt: skip
        known = {slot for fields in SLOTS.values() for slots in fields.values() for slot in slots}
        for p in parameters:
            if unknown := slots_of(p) - known:
                raise ValueError(
                    f"optimizer: it keeps {sorted(unknown)[0]!r} for {p.name!r}, which has no counterpart here; known "
                    f"are {', '.join(sorted(known))}. Start with tx.init(params), or finish the run in PyTorch"
                )
        self.convert, self.params, self.parameters = convert, params, parameters
        self.tensors = _examples(parameters) if weights is None else _arrays(weights)
        self.by_key = _by_key(self.tensors, parameters, check=weights is not None)
        first = {id(p): key for key, p in reversed(self.by_key.items())}
        tied = {key: first[id(p)] for key, p in self.by_key.items() if first[id(p)] != key}
        self.origins = origins(convert, self.tensors, params, tied)
        if weights is not None:
            _check_params(convert, self.tensors, params)
        self.used: set[str] = set()
        self.converted: dict[str, dict[str, Any]] = {}

    def fill(self, new: Field) -> Any:
        """The field with PyTorch's values."""
        there = set().union(*map(slots_of, self.parameters))
        slot = next((slot for slot in SLOTS.get(new.holder, {}).get(new.name, ()) if slot in there), None)
        if slot is None:
            raise ValueError(
                f"tx has {new.name!r} in a {new.holder}, and PyTorch's state has {', '.join(sorted(there))}, none of "
                f"which is the same{WHY.get(new.holder, '')}: pass the tx of wd.from_torch, or wd.emulate's"
            )
        self.used.add(slot)
        wanted = roles.flatten(new.value)[0]
        for path, _ in wanted:
            self._check_stepped(path, slot)
        if all(jnp.shape(leaf) == () for _, leaf in wanted) and not self._has_shape(slot):
            values = {path: self.by_key[self.origins[path][0]].state[slot] for path, _ in wanted}
        else:
            values = self._converted(slot)
        made = [jnp.array(values[path], leaf.dtype) for path, leaf in wanted]
        return jax.tree.unflatten(jax.tree.structure(new.value), made)

    def _has_shape(self, slot: str) -> bool:
        return any(getattr(p.state.get(slot), "shape", ()) for p in self.parameters)

    def _converted(self, slot: str) -> dict[str, Any]:
        """The slot of all parameters, by path."""
        if slot not in self.converted:
            given = {key: self._moment(key, slot) for key in self.tensors}
            leaves = convert_leaves(self.convert, given, self.params)
            self.converted[slot] = dict(zip(self.origins, leaves, strict=True))
        return self.converted[slot]

    def _moment(self, key: str, slot: str) -> Any:
        value = self.by_key[key].state.get(slot) if key in self.by_key else None
        return like(self.tensors[key], 0.0) if value is None else value

    def _check_stepped(self, path: str, slot: str) -> None:
        """Raises where a leaf isn't made of parameters that have the slot."""
        for key in self.origins[path] or [""]:
            if key in self.by_key and slot in slots_of(self.by_key[key]):
                continue
            what = f"is {key!r} of PyTorch, " if key else "is no tensor of PyTorch's: convert makes zeros of it, "
            why = "which took no step" if key in self.by_key else "which its optimizer doesn't have" if key else "so"
            raise ValueError(
                f"params: {path!r} {what}{why}, so there is no {slot} for it, and tx trains it: pass the tx of "
                "wd.from_torch, which leaves alone what PyTorch does, or take it out of the optimizer's groups"
            )

    def refuse_lost(self) -> None:
        """Raises for a slot that has no place in tx."""
        for p in self.parameters:
            if p.group is not None and (lost := slots_of(p) - self.used):
                raise ValueError(
                    f"optimizer: {sorted(lost)[0]!r} of {p.name!r} has no place in tx, and would be lost: pass the tx "
                    "of wd.from_torch, or wd.emulate's with the same arguments"
                )


def _examples(parameters: Sequence[TorchParameter]) -> dict[str, Any]:
    """An array of each parameter's shape and type, by all its names."""
    found: dict[str, Any] = {}
    for p in parameters:
        same = [x for x in p.state.values() if p.shape and tuple(getattr(x, "shape", ())) == p.shape]
        if p.shape is not None:
            found |= dict.fromkeys(p.names, same[0] if same else np.zeros(p.shape, np.float32))
    return found


def _arrays(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {key: x for key, x in weights.items() if hasattr(x, "shape")}


def _by_key(tensors: Mapping[str, Any], parameters: Sequence[TorchParameter], check: bool) -> dict[str, TorchParameter]:
    """The parameter that each tensor is; tied tensors, which have equal values, are one."""
    clean, by_name = clean_names(tensors), {name: p for p in parameters for name in p.names}
    found = {key: by_name[clean[key]] for key in tensors if clean[key] in by_name}
    lost = [p.name for p in parameters if not any(p is q for q in found.values())]
    if check and lost:
        raise ValueError(
            f"weights has no {lost[0]!r}, which is in the optimizer: pass the same model's state_dict(); it has "
            f"{', '.join(map(repr, list(tensors)[:5]))}, ..."
        )
    for key in [key for key in tensors if check and key not in found]:
        own = to_numpy(tensors[key])
        for other in [other for other in found if tuple(tensors[other].shape) == own.shape]:
            if _varies(own) and np.array_equal(own, to_numpy(tensors[other])):
                found[key] = found[other]
                break
    return {key: found[key] for key in tensors if key in found}


def _varies(x: np.ndarray[Any, Any]) -> bool:
    """Whether equal values mean something: two biases may both be zero."""
    return x.size > 0 and bool((x != x.flat[0]).any())


def _check_params(convert: Convert, weights: Mapping[str, Any], params: optax.Params) -> None:
    """Raises unless `params` are these weights."""
    made = convert_leaves(convert, weights, params)
    for p, x, leaf in zip(roles.parameters(params), made, jax.tree.leaves(params), strict=True):
        if not np.array_equal(np.asarray(x).astype(p.dtype), np.asarray(leaf), equal_nan=True):
            raise ValueError(
                f"params: {p.path!r} isn't what convert makes of weights: pass both as they are at the optimizer's "
                "step, params=convert(model.state_dict())"
            )
