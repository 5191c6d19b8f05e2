"""Learning rates of groups: a number times a factor that follows the step, so that the peak stays known."""

import dataclasses
from typing import Any

from wd_optax.hyperparams import Schedule


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """η_t = base·factor(t), as torch's `LambdaLR`: a schedule whose peak is `base`."""

    base: Any  # η_max: a number, an array, or a schedule
    factor: Schedule

    def __call__(self, step: Any) -> Any:
        """η_t."""
        base = self.base(step) if callable(self.base) else self.base
        return base * self.factor(step)


def scheduled(learning_rate: Any, factor: Schedule | None) -> Any:
    """η times a factor of the step; η itself without one."""
    if factor is not None and not callable(factor):
        raise TypeError(f"schedule={factor!r}: expected a function step -> factor of the learning rate")
    return learning_rate if factor is None else Scheduled(learning_rate, factor)


def scaled(rate: Any, factor: float) -> Any:
    """`rate`, a number, an array, a schedule or a `Scheduled`, times a number; the peak stays known."""
    if isinstance(rate, Scheduled):
        return Scheduled(scaled(rate.base, factor), rate.factor)
    return (lambda step: rate(step) * factor) if callable(rate) else rate * factor


def peak(call: str, learning_rate: Any) -> Any:
    """η_max, for couplings that divide by it: the number that the framework's constructor got.

    Raises:
      ValueError: for a schedule, whose peak can't be known.
    """
    base = learning_rate
    while isinstance(base, Scheduled):
        base = base.base
    if callable(base):
        raise ValueError(
            f"{call}: its decay divides by the peak of the learning rate, and lr is a schedule, whose peak can't be "
            "known: pass lr=<the peak> and schedule=lambda step: <a factor between 0 and 1>"
        )
    return base
