"""What decays where an update is traced: a rule or a penalty without arrays shows in no state."""

import contextvars
from contextlib import AbstractContextManager
from typing import NamedTuple

import optax

from wd_optax.contexts import holding
from wd_optax.prox.metrics import ProxMetric
from wd_optax.prox.steps import Prox


class Decay(NamedTuple):
    """One decay of ours, at work."""

    name: str  # "adamw", "proximal", ...
    rule: optax.GradientTransformation | None
    prox: Prox | None
    metric: ProxMetric | None


_watched: contextvars.ContextVar[list[Decay] | None] = contextvars.ContextVar("decays", default=None)


def watch_decays() -> AbstractContextManager[list[Decay]]:
    """A list of the decays that are evaluated, or traced, in this context, in whatever they are wrapped."""
    return holding(_watched, [])


def note(decay: Decay) -> None:
    """Adds a decay to the list of the context, if it has one."""
    if (watched := _watched.get()) is not None:
        watched.append(decay)
