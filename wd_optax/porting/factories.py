"""Calls that make another call and its groups: `timm.optim.create_optimizer_v2`, the Trainer of Transformers."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from wd_optax.masking import roles
from wd_optax.porting.calls import Builder, Call, call
from wd_optax.porting.groups import Group
from wd_optax.porting.rates import scaled

# a parameter -> why it doesn't decay; "" where it does
Spares = Callable[[roles.Parameter], str]


class Decided(NamedTuple):
    """Groups by a rule of the framework's."""

    groups: tuple[Group, ...]  # with what sets them apart
    group_of: list[int]  # per parameter its group
    reasons: list[str]  # per parameter

    def complete(self, arguments: Mapping[str, Any]) -> list[Group]:
        """The groups with all arguments of the call."""
        return [group._replace(arguments={**arguments, **group.arguments}) for group in self.groups]


class Made(NamedTuple):
    """A call that another one makes."""

    call: Call
    arguments: Mapping[str, Any]
    decided: Decided | None  # None: one group


def factory(name: str, **record: Any) -> Callable[[Callable[..., Made]], Call]:
    """Decorates a function (params, *, the framework's arguments) -> `Made`; the fields are those of `Call`."""

    def decorate(make: Builder) -> Call:
        made: Call = call(name, delegates=True, **record)(make)
        return made

    return decorate


def ruled(inner: Call, decide: Callable[[Any, Mapping[str, Any]], Decided]) -> Call:
    """`inner` with groups by a rule of the framework's, from the parameters and the call's arguments."""

    def make(params: Any, **arguments: Any) -> Made:
        return Made(inner, arguments, decide(params, arguments))

    first = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = inner.signature.parameters.values()
    make.__signature__ = inspect.Signature([first, *given])  # type: ignore[attr-defined]
    return inner._replace(build=make, delegates=True)


def multiplied(each: Sequence[tuple[float, float, str]], call: Call, arguments: Any) -> Decided:
    """Groups with the same factors of η and λ.

    Args:
      each: per parameter the factor of η, that of λ, and why.
      call: whose names for η and λ they are.
      arguments: of the call.
    """
    kinds = sorted({(lr, decay) for lr, decay, _ in each}, reverse=True) or [(1.0, 1.0)]  # also for an empty tree
    rate, weight_decay = (arguments[name] for name in (call.learning_rate, call.weight_decay))
    groups = tuple(
        Group(
            f"lr·{lr:g}, decay·{decay:g}",
            {call.learning_rate: scaled(rate, lr), call.weight_decay: scaled(weight_decay, decay)},
            "",
        )
        for lr, decay in kinds
    )
    return Decided(groups, [kinds.index((lr, decay)) for lr, decay, _ in each], [why for *_, why in each])


def spare(params: Any, spares: Spares, weight_decay: str = "weight_decay") -> Decided:
    """Two groups, without and with decay."""
    reasons = [spares(p) for p in roles.parameters(params)]
    groups = Group("no_decay", {weight_decay: 0.0}, ""), Group("decay", {}, "")
    return Decided(
        groups, [0 if reason else 1 for reason in reasons], [reason or "no rule spares it" for reason in reasons]
    )


def is_vector_in_torch(p: roles.Parameter) -> str:
    """Why PyTorch's counterpart has rank 0 or 1, or "".

    A bias or a norm's scale may have more axes here: those of heads, or of layers that are stacked.
    """
    if len(p.shape) <= 1:
        return f"rank {len(p.shape)}"
    return f"a {p.role}, of rank 1 in PyTorch" if p.role in ("bias", "norm") else ""
