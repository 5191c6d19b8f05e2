"""What a call with its groups, layers and schedule comes to: the arguments of every parameter, and why."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from wd_optax.hyperparams import Schedule
from wd_optax.masking import forms, roles
from wd_optax.porting import layers
from wd_optax.porting.calls import Call, bind
from wd_optax.porting.group_table import GroupRow, GroupTable
from wd_optax.porting.groups import NOT_TRAINED, Group, assemble, by_regex
from wd_optax.porting.layers import Layer, LayerDecay
from wd_optax.porting.rates import scaled, scheduled


class Plan(NamedTuple):
    """A call on a tree of parameters."""

    call: Call
    params: Any
    groups: Sequence[Group]  # with all arguments of the call
    group_of: Sequence[int]  # per parameter its group
    slices: Mapping[str, Sequence[float]]  # of stacked layers, by path: the factor of η per slice
    reasons: Sequence[str] = ()  # per parameter, why it is in its group, where a rule of the call decided

    def build(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer."""
        optimizer = assemble(self.call, self.groups, self.group_of, self.params)
        return layers.with_slice_factors(optimizer, self.slices) if self.slices else optimizer

    def tabulate(self) -> GroupTable:
        """One row per parameter."""
        decided = forms.decide(self.call.mask, self.params)
        reasons = self.reasons or [""] * len(decided)
        each = zip(decided, self.group_of, reasons, strict=True)
        return GroupTable(tuple(self._row(*pair, i, reason) for pair, i, reason in each))

    def _row(self, p: roles.Parameter, decision: forms.Decision, i: int, reason: str) -> GroupRow:
        if not jnp.issubdtype(p.dtype, jnp.inexact):
            return GroupRow(p.path, p.shape, NOT_TRAINED, 0.0, 0.0, p.reason)
        group = self.groups[i]
        rate, decay = (group.arguments[name] for name in (self.call.learning_rate, self.call.weight_decay))
        if p.path in self.slices:
            rate = tuple(scaled(rate, factor) for factor in self.slices[p.path])
        if isinstance(decision.multiplier, float) and decision.multiplier != 1.0:
            decay = scaled(decay, decision.multiplier)
        why = decision.reason if self.call.mask is not None else ""
        return GroupRow(p.path, p.shape, group.name, rate, decay, _joined(reason, group.because, why))


def make_plan(
    call: Call, params: optax.Params, groups: Sequence[Mapping[str, Any]] | None,
    layer_decay: float | LayerDecay | None, schedule: Schedule | None, arguments: Mapping[str, Any],
) -> Plan:  # fmt: skip
    """The groups of a call, each with all its arguments.

    Raises:
      TypeError: for an argument that the framework's call doesn't have.
      ValueError: for groups or layers that don't fit the parameters.
    """
    if params is None:
        raise TypeError("params=None: pass the parameters that the optimizer is for, arrays or jax.ShapeDtypeStructs")
    decided = None
    if call.delegates:
        made_by: Any = call.build(params, **bind(call, arguments))
        call, arguments, decided = made_by
    arguments = {**arguments, **call.derived(bind(call, arguments))}
    if groups is None and decided is not None:
        made, index = decided.complete(arguments), decided.group_of
    else:
        made, index = by_regex(groups, arguments, params)
        decided = None
    whole = []
    for group in made:
        bound = bind(call, group.arguments)
        bound[call.learning_rate] = scheduled(bound[call.learning_rate], schedule)
        because = group.because or (f"{call.name}: all parameters" if decided is None else "")
        whole.append(group._replace(arguments=bound, because=because))
    plan = Plan(call, params, whole, index, {}, () if decided is None else decided.reasons)
    if layer_decay is None:
        return plan
    decay = layer_decay if isinstance(layer_decay, LayerDecay) else LayerDecay(lr=layer_decay)
    return _with_layers(plan, decay)


def _with_layers(plan: Plan, decay: LayerDecay) -> Plan:
    """A group for each layer of each group, and factors per slice for stacked layers."""
    found = roles.parameters(plan.params)
    numbered = layers.number_layers(found, decay)
    _check_stacks(plan.call, decay, numbered, found)
    made: dict[tuple[int, int], Group] = {}
    for i, layer in zip(plan.group_of, numbered, strict=True):
        where = (i, layer.last + layer.slices if layer.slices else layer.number)
        made.setdefault(where, _of_layer(plan.call, plan.groups[i], layer, decay))
    order = {where: n for n, where in enumerate(made)}
    keys = [(i, x.last + x.slices if x.slices else x.number) for i, x in zip(plan.group_of, numbered, strict=True)]
    slices = {
        p.path: [decay.lr ** (layer.above - k) for k in range(layer.slices)]
        for p, layer in zip(found, numbered, strict=True)
        if layer.slices
    }
    return plan._replace(groups=list(made.values()), group_of=[order[key] for key in keys], slices=slices)


def _of_layer(call: Call, group: Group, layer: Layer, decay: LayerDecay) -> Group:
    if layer.slices:
        because = f"{layer}: slice i has lr·{decay.lr:g}^({layer.above} − i)"
        return group._replace(name=f"{group.name}.layers", because=_joined(group.because, because))
    own = dict(group.arguments)
    for name, factor in ((call.learning_rate, decay.lr), (call.weight_decay, decay.weight_decay)):
        own[name] = scaled(own[name], factor**layer.above)
    shown = [f"lr·{decay.lr:g}^{layer.above}"] * (decay.lr != 1)
    shown += [f"{call.weight_decay}·{decay.weight_decay:g}^{layer.above}"] * (decay.weight_decay != 1)
    because = _joined(group.because, f"{layer}: {', '.join(shown)}") if shown else group.because
    return Group(f"{group.name}.layer{layer.number}", own, because)


def _joined(*reasons: str) -> str:
    return "; ".join(reason for reason in reasons if reason)


def _check_stacks(call: Call, decay: LayerDecay, numbered: list[Layer], found: list[roles.Parameter]) -> None:
    stacked = [p.path for p, layer in zip(found, numbered, strict=True) if layer.slices]
    if stacked and not call.proportional:
        raise ValueError(
            f"layer_decay: {stacked[0]!r} holds several layers, and a step of {call.name} is not proportional to η, so "
            "its slices can't have factors of their own: unstack the layers"
        )
    if stacked and decay.weight_decay != 1:
        raise ValueError(
            f"layer_decay.weight_decay={decay.weight_decay!r}: {stacked[0]!r} holds several layers, whose slices can't "
            "have a λ each: unstack the layers, or give lr alone"
        )
