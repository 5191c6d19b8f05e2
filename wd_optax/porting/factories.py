"""Calls that make another call and its groups: `timm.optim.create_optimizer_v2`, the Trainer of Transformers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wd_optax.masking import roles
from wd_optax.porting.calls import Builder, Call, call
from wd_optax.porting.groups import Group

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
