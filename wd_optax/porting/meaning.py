"""What a call means, whatever its framework calls it: a direction in the words of its family, and a decay."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from wd_optax import couplings
from wd_optax.choosing.schedules import per_step
from wd_optax.hyperparams import Schedule
from wd_optax.porting.calls import Call, bind
from wd_optax.porting.rates import scheduled

# The value of a word with which a call does what calls without the word do.
NEUTRAL: Mapping[str, Any] = {
    "amsgrad": False, "maximize": False, "momentum": 0, "dampening": 0, "nesterov": False, "centered": False,
    "lr_decay": 0, "initial": 0,
}  # fmt: skip


class Meaning(NamedTuple):
    """A call with its arguments."""

    call: Call
    arguments: Mapping[str, Any]  # all of them
    words: Mapping[str, Any]  # the direction's, in the family's words; "peak" for η_max
    coupling: str
    learning_rate: Any  # without the schedule
    weight_decay: Any
    eta: np.ndarray  # per step
    decay: np.ndarray  # λ per step

    @property
    def peak(self) -> float:
        """η_max, which couplings divide by."""
        known = self.words.get("peak")
        if known is None:
            known = self.eta.max() if callable(self.learning_rate) else self.learning_rate
        return float(known)

    def removed(self) -> np.ndarray | None:
        """c_t, the fraction of a weight that the decay removes per step; None for L2 that momentum or Adam changes."""
        if self.coupling != "L2":
            return rates_per_step(self.coupling, self.eta, self.decay, self.peak)
        plain = self.call.family == "sgd" and not self.words.get("momentum")
        return self.eta * self.decay if plain else None


def rates_per_step(coupling: str, eta: np.ndarray, decay: np.ndarray, peak: float) -> np.ndarray:
    """c_t per step, for a decoupled coupling."""
    ratio = couplings.parse_coupling("coupling", coupling).ratio
    if ratio and not peak:
        raise ValueError(f"the learning rate is 0, and coupling={coupling!r} divides by its peak: pass one above 0")
    rates = couplings.removed(coupling, learning_rate=eta, weight_decay=decay, peak_learning_rate=peak)
    return np.broadcast_to(np.asarray(rates, np.float64), eta.shape)


def read(call: Call, arguments: Mapping[str, Any], schedule: Schedule | None, steps: int | None) -> Meaning:
    """What the call means.

    Raises:
      TypeError: for an argument that the call doesn't have.
      ValueError: for a schedule without the number of steps.
    """
    bound = bind(call, arguments)
    bound |= call.derived(bound)
    words: dict[str, Any] = {}
    for name, word in call.words.items():
        pairs = [(word, bound[name])] if isinstance(word, str) else zip(word, bound[name], strict=True)
        words |= dict(pairs)
    lr, decay = bound[call.learning_rate], bound[call.weight_decay]
    decay = 0.0 if decay is None else decay  # Keras' way to say none
    with jax.enable_x64(True):
        eta = per_step(call.learning_rate, scheduled(lr, schedule), steps)
        rates = per_step(call.weight_decay, decay, steps)
    return Meaning(call, bound, words, call.coupling_of(bound), lr, decay, eta, rates)
