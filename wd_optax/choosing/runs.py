"""A training run as numbers: batch, steps, dataset, width, learning rate and weight decay."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from wd_optax import couplings
from wd_optax.choosing import timescales
from wd_optax.choosing.schedules import as_float, per_step
from wd_optax.couplings import Coupling
from wd_optax.hyperparams import ScalarOrSchedule

OptimizerFamily = Literal["adamw", "sgdw", "sgd_l2", "other"]
FAMILIES: tuple[str, ...] = ("adamw", "sgdw", "sgd_l2", "other")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A training run, to transfer a weight decay from or to: η_t = η·s_t/max s, c_t as in `wd_optax.decay_rate`.

    Fields that are None are unknown. In the target of `wd_optax.transfer` the schedule, coupling, optimizer and
    momentum are then those of the source, with the schedule stretched to the target's steps.

    Args:
      batch: examples per step, in any unit (images, tokens).
      steps: the length of the run.
      examples: the size of the dataset in the same unit.
      width: of the hidden layers, in any unit that is proportional to their fan-in.
      parameters: how many the model has.
      learning_rate: η, the peak of the schedule.
      weight_decay: λ.
      schedule: s_t, a function of the step or an array (steps,). Only its shape matters, so an Optax schedule of any
        peak will do; None is constant.
      coupling: how λ acts, see `wd_optax.decay_rate`; None is "lr".
      optimizer: "adamw", "sgdw", "sgd_l2" (λ in the gradient), or "other"; None is "adamw".
      momentum: μ of "sgdw" and "sgd_l2"; None is 0. "sgd_l2" accumulates its decay: c = ηλ/(1 − μ) to first order.

    Raises:
      ValueError, TypeError: for a number out of range, a schedule that is 0 throughout, an unknown word.

    Example: the timescale is that of `wd_optax.timescale`, step by step.
      >>> import optax, wd_optax as wd
      >>> cosine = optax.cosine_decay_schedule(1.0, 10_000)
      >>> run = wd.Run(
      ...     batch=256, steps=10_000, examples=50_000, learning_rate=1e-3, weight_decay=0.1, schedule=cosine
      ... )
      >>> print(f"{run.epochs:.1f} epochs, timescale {run.timescale().timescale_epochs:.1f}")
      51.2 epochs, timescale 102.4

    """

    batch: float
    steps: int
    examples: float | None = None
    width: float | None = None
    parameters: float | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: ScalarOrSchedule | None = None
    coupling: Coupling | None = None
    optimizer: OptimizerFamily | None = None
    momentum: float | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        if not isinstance(self.steps, int | np.integer) or isinstance(self.steps, bool) or self.steps < 1:
            raise ValueError(f"steps={self.steps!r} must be a whole number of steps, at least 1")
        for name in ("batch", "examples", "width", "parameters", "learning_rate", "weight_decay", "momentum"):
            value = getattr(self, name)
            if value is None and name != "batch":
                continue
            number = as_float(name, value, below=1.0 if name == "momentum" else math.inf)
            if not number and name not in ("weight_decay", "momentum"):
                raise ValueError(
                    f"{name}={value!r} must be above 0" + "; leave it out if it is unknown" * (name != "batch")
                )
            object.__setattr__(self, name, number)
        if self.coupling is not None:
            couplings.parse_coupling("coupling", self.coupling)
        if self.optimizer is not None and self.optimizer not in FAMILIES:
            raise ValueError(f"optimizer={self.optimizer!r}: use one of {', '.join(map(repr, FAMILIES))}")
        if self.optimizer == "sgd_l2" and self.coupling not in (None, "lr"):
            raise ValueError(
                f"coupling={self.coupling!r} with optimizer='sgd_l2': λ in the gradient is multiplied by η as that is, "
                "so leave coupling out; decoupled decay is 'sgdw'"
            )
        if self.schedule is not None:
            object.__setattr__(self, "schedule", _shape(self.schedule, self.steps))

    @property
    def epochs(self) -> float | None:
        """Passes over the dataset; None if its size is unknown."""
        return self.batch * self.steps / self.examples if self.examples else None

    def learning_rates(self) -> np.ndarray:
        """η_t at each step, shape=(steps,), dtype=float64.

        Raises:
          ValueError: without a learning rate.

        """
        if self.learning_rate is None:
            raise ValueError("this run has no learning_rate: pass learning_rate=... to wd.Run")
        shape = np.ones(self.steps) if self.schedule is None else np.asarray(self.schedule)
        return np.asarray(self.learning_rate * shape)

    def timescale(self) -> timescales.Timescale:
        """The `wd_optax.timescale` of the run.

        Raises:
          ValueError: without a learning rate or a weight decay.

        """
        etas = self.learning_rates()
        if self.weight_decay is None:
            raise ValueError("this run has no weight_decay: pass weight_decay=... to wd.Run")
        return timescales.timescale(
            self.weight_decay * self.amplification,
            learning_rate=etas,
            steps=self.steps,
            steps_per_epoch=self.examples / self.batch if self.examples else None,
            coupling=self.coupling or "lr",
            peak_learning_rate=self.learning_rate,
        )

    @property
    def amplification(self) -> float:
        """What momentum multiplies the decay by: 1/(1 − μ) under "sgd_l2", else 1."""
        return 1 / (1 - (self.momentum or 0.0)) if self.optimizer == "sgd_l2" else 1.0

    def replace(self, **fields: Any) -> "Run":
        """A copy with other fields."""
        return dataclasses.replace(self, **fields)


def _shape(schedule: ScalarOrSchedule, steps: int) -> np.ndarray:
    """s_t/max s at each step, read-only."""
    at = per_step("schedule", schedule, int(steps))
    if not at.max():
        raise ValueError("schedule is 0 in every step: pass the shape of the learning rate over the run")
    at = np.asarray(at / at.max())
    at.flags.writeable = False
    return at


def stretched(shape: np.ndarray, steps: int) -> np.ndarray:
    """A shape of another length, read off between its steps: s(t·n/steps), linear between the n values.

    Example:
      >>> import numpy as np
      >>> from wd_optax.choosing.runs import stretched
      >>> stretched(np.array([1.0, 0.5]), 4)
      array([1.  , 0.75, 0.5 , 0.5 ])

    """
    n = len(shape)
    return np.asarray(np.interp(np.arange(steps) * (n / steps), np.arange(n), shape))
