"""A call of another framework: a function with the framework's own signature that builds the same optimizer here.

    @call("torch.optim.AdamW", version=..., formula=..., coupling="lr", eps="√v̂ + ε", goldens=("torch/adamw",))
    def _torch_adamw(mask: Mask, *, lr: Any = 1e-3, betas=(0.9, 0.999), ...): ...

The function's keyword-only arguments are the framework's, with its defaults. η may arrive as a number, an array, a
schedule or a `rates.Scheduled`, whose peak is known; λ as a number, an array or a schedule.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from wd_optax.masking.masks import Mask

# (mask, **the framework's arguments) -> the optimizer, or the optimizer and what comes before it for all groups at once
Builder = Callable[..., "optax.GradientTransformation | Staged"]

ETA_IN_MOMENTUM = "the momentum holds η"  # b ← μ·b + η_t·g


class Staged(NamedTuple):
    """An optimizer whose first stage sees the gradients of all groups, such as a clip by their global norm."""

    first: optax.GradientTransformation
    optimizer: optax.GradientTransformation


class Call(NamedTuple):
    """An optimizer of another framework, by its call."""

    name: str  # as it is written: "torch.optim.AdamW"
    version: str  # the distribution whose defaults and numbers these are: "torch 2.13.0"
    formula: str  # one step, in Unicode
    # "lr", "schedule", "corrected", "constant", or "L2" for decay in the gradient. Where arguments decide it, each
    # coupling with its arguments, the default first: {"L2": {}, "lr": {"decoupled_weight_decay": True}}
    coupling: str | Mapping[str, Mapping[str, Any]]
    eps: str  # where ε is added: "√v̂ + ε", "√v + ε" (before the correction), "√(v̂ + ε)", ...; "" without one
    goldens: tuple[str, ...]  # recorded runs of the framework that hold it: "torch/adamw"
    build: Builder  # its keyword arguments and their defaults are the framework's
    mask: Mask = None  # which parameters decay by default; None: all, as in torch
    mask_rule: str = "all parameters"  # the same in words
    learning_rate: str = "lr"  # the framework's name for η
    weight_decay: str = "weight_decay"  # and for λ
    family: str = ""  # "adam", "sgd", ...: calls of one family are the same direction, up to `words` and ε's place
    words: Mapping[str, str | tuple[str, ...]] = {}  # its arguments in the family's words: {"betas": ("b1", "b2")}
    proportional: bool = True  # whether the whole step, decay included, is proportional to η
    accuracy: str = "1e-12"  # how close the goldens are, in float64
    note: str = ""  # what to know about it
    # arguments -> those that the constructor computes for all groups, such as the peak of the call's own η
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda arguments: {}
    delegates: bool = False  # `build` takes the parameters and returns another call, see `wd_optax.porting.factories`
    traits: tuple[str, ...] = ()  # what sets it apart in its family and no argument changes: ETA_IN_MOMENTUM

    @property
    def signature(self) -> inspect.Signature:
        """The framework's arguments and defaults."""
        whole = inspect.signature(self.build)
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        return whole.replace(parameters=[p for p in whole.parameters.values() if p.kind in kinds])

    @property
    def couplings(self) -> Mapping[str, Mapping[str, Any]]:
        """The arguments that choose each coupling."""
        return {self.coupling: {}} if isinstance(self.coupling, str) else self.coupling

    def coupling_of(self, arguments: Mapping[str, Any]) -> str:
        """The coupling of these arguments: the last whose own arguments they have."""
        chosen = [c for c, own in self.couplings.items() if all(arguments.get(k) == v for k, v in own.items())]
        return chosen[-1]


def call(name: str, **record: Any) -> Callable[[Builder], Call]:
    """Decorates the function that builds `name`: the arguments are the other fields of `Call`."""
    return lambda build: Call(name=name, build=build, **record)


def find(name: str, calls: Mapping[str, Call]) -> Call:
    """The call of this name, "torch.optim.AdamW", or short, "torch.AdamW"; else an error with the nearest ones."""
    if not isinstance(name, str):
        raise TypeError(
            f'call: got a {type(name).__name__}, expected a name such as "torch.optim.AdamW", and params=...'
        )
    if name in calls:
        return calls[name]
    ends = {known: (known.split(".")[0].lower(), known.split(".")[-1].lower()) for known in calls}
    given = (str(name).split(".")[0].lower(), str(name).split(".")[-1].lower())
    same = [known for known, end in ends.items() if end == given]
    if len(same) == 1 and "." in name:
        return calls[same[0]]
    near = [known for known, end in ends.items() if end[1] == given[1]]
    near = near or difflib.get_close_matches(str(name), calls, n=3, cutoff=0.3)
    last = {end[1]: known for known, end in ends.items()}
    near = near or [last[x] for x in difflib.get_close_matches(given[1], last, n=3, cutoff=0.3)]
    raise ValueError(
        f"call: {name!r} is not known: the nearest are {', '.join(map(repr, near)) or 'none'}; "
        "print(wd.emulate.table()) lists all"
    )


def bind(found: Call, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the call, the framework's defaults included.

    Raises:
      TypeError: for an argument that the framework's call doesn't have, or lacks.
    """
    signature = found.signature
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = [name for name in arguments if name not in signature.parameters and not takes_any]
    if unknown:
        near = "".join(
            f" (did you mean {x!r}?)" for x in difflib.get_close_matches(unknown[0], signature.parameters, n=1)
        )
        shown = ", ".join(map(_as_written, signature.parameters.values()))
        raise TypeError(
            f"{found.name} of {found.version} has no argument {unknown[0]!r}{near}: its arguments are {shown}"
        )
    try:
        bound = signature.bind(**arguments)
    except TypeError as error:
        shown = ", ".join(map(_as_written, signature.parameters.values()))
        raise TypeError(f"{found.name} of {found.version}: {error}; its arguments are {shown}") from None
    bound.apply_defaults()
    return dict(bound.kwargs)


def refuse(found: str, argument: str, why: str, nearest: str) -> ValueError:
    """The error for what has no exact twin here: the reason, and the nearest that has."""
    return ValueError(f"{found}: {argument} has no exact twin here, because {why}; the nearest is {nearest}")


def _as_written(parameter: inspect.Parameter) -> str:
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
