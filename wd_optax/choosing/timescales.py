"""How long decay takes, in steps and epochs: from λ to half-life, timescale and the fraction remaining, and back.

Over a run a weight without gradient is multiplied by Π_t (1 − c_t), where c_t is the rate of `wd_optax.decay_rate`.
The mean rate c̄ of a schedule is the constant rate with the same product, (1 − c̄)^steps = Π_t (1 − c_t). Half-life and
timescale are those of c̄.

Reference: Wang & Aitchison 2024, arXiv 2405.13698: AdamW's weights are an exponential moving average of its updates
with a timescale of 1/(η·λ) steps. It is best between one epoch and the length of the run, and transfers across models.
"""

import math
from typing import NamedTuple

import numpy as np

from wd_optax import couplings, tables
from wd_optax.choosing.schedules import as_float, per_step
from wd_optax.couplings import Coupling
from wd_optax.hyperparams import Scalar, ScalarOrSchedule


def half_life(c: Scalar) -> float:
    """Steps until half of a weight is left: ln ½ / ln(1 − c), for c removed per step.

    Args:
      c: the fraction removed per step, in [0, 1).

    Returns:
      Steps, a float; infinity for c = 0.

    Raises:
      ValueError, TypeError: for a c that isn't a number in [0, 1).

    Example:
      >>> import wd_optax as wd
      >>> wd.half_life(0.5), round(wd.half_life(1e-4))
      (1.0, 6931)

    """
    c = as_float("c", c, below=1.0)
    return math.log(0.5) / math.log1p(-c) if c else math.inf


class Timescale(NamedTuple):
    """The effect of a λ over a run; `print` shows it in words."""

    removed_per_step: float  # c̄, the mean rate
    largest_removed_per_step: float  # max c_t
    half_life: float  # steps, of c̄
    timescale_steps: float  # 1/c̄
    timescale_epochs: float | None  # None without steps_per_epoch
    steps: int | None  # the length of the run
    remaining: float | None  # Π (1 − c_t) over the run; None without steps

    def __str__(self) -> str:
        return tables.align(self._lines())

    def _repr_html_(self) -> str:
        return tables.to_html(self._lines(), header=False)

    def _lines(self) -> list[tuple[str, str]]:
        epoch = self.timescale_steps / self.timescale_epochs if self.timescale_epochs else math.nan  # in steps

        def time(n: float) -> str:
            return f"{_number(n)} steps" + (f" = {_number(n / epoch)} epochs" if epoch > 0 else "")

        largest = self.largest_removed_per_step
        peak = f"; {time(1 / largest)} at the peak" if largest > self.removed_per_step * (1 + 1e-9) else ""
        left = f"{self.remaining:.4g} of a weight without gradient, after {time(self.steps)}" if self.steps else None
        lines = [
            ("removed per step", f"{self.removed_per_step:.3g}" + f" on average, {largest:.3g} at most" * bool(peak)),
            ("half-life", time(self.half_life)),
            ("EMA timescale", time(self.timescale_steps) + peak),
            ("remaining", left),
        ]
        return [(name, text) for name, text in lines if text]


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


def timescale(
    weight_decay: ScalarOrSchedule,
    *,
    learning_rate: ScalarOrSchedule,
    steps: int | None = None,
    steps_per_epoch: float | None = None,
    coupling: Coupling = "lr",
    peak_learning_rate: Scalar | None = None,
) -> Timescale:
    """The effect of λ over a run: c̄ = 1 − (Π_t (1 − c_t))^(1/steps), half-life ln ½/ln(1 − c̄), timescale 1/c̄ in steps.

    Args:
      weight_decay: λ, a number or a schedule.
      learning_rate: η_t, a number or a schedule, or the rates of all steps as an array of shape (steps,).
      steps: the length of the run; required for a schedule, and for `remaining`.
      steps_per_epoch: if given, the timescale is reported in epochs too.
      coupling: how λ acts, see `wd_optax.decay_rate`.
      peak_learning_rate: η_max; by default the largest learning rate within `steps`. Pass it if the run is longer.

    Returns:
      A `Timescale` of Python numbers.

    Raises:
      ValueError, TypeError: for a schedule without `steps`, a number out of range, or a c_t ≥ 1.

    Example: λ = 0.1 on a cosine schedule.
      >>> import optax, wd_optax as wd
      >>> cosine = optax.cosine_decay_schedule(1e-3, 10_000)
      >>> print(wd.timescale(0.1, learning_rate=cosine, steps=10_000, steps_per_epoch=500))
      removed per step  5e-05 on average, 0.0001 at most
      half-life         13,861 steps = 27.7 epochs
      EMA timescale     19,998 steps = 40 epochs; 10,000 steps = 20 epochs at the peak
      remaining         0.6065 of a weight without gradient, after 10,000 steps = 20 epochs

    """
    _check_length(steps, steps_per_epoch)
    etas = per_step("learning_rate", learning_rate, steps)
    c = _removed(coupling, etas, per_step("weight_decay", weight_decay, steps), peak_learning_rate)
    if c.max() >= 1:
        raise ValueError(f"weight_decay removes {c.max():.3g} of each weight in step {c.argmax()}: lower it, below 1")
    log_left = np.log1p(-c).sum().item()
    mean = abs(math.expm1(log_left / len(c)))
    tau, left = 1 / mean if mean else math.inf, math.exp(log_left) if steps else None
    return Timescale(mean, c.max().item(), half_life(mean), tau, steps_per_epoch and tau / steps_per_epoch, steps, left)


def weight_decay_for(
    *,
    half_life: float | None = None,
    timescale_steps: float | None = None,
    timescale_epochs: float | None = None,
    remaining: float | None = None,
    learning_rate: ScalarOrSchedule,
    steps: int | None = None,
    steps_per_epoch: float | None = None,
    coupling: Coupling = "lr",
    peak_learning_rate: Scalar | None = None,
) -> float:
    """The λ with a given effect over a run: the root of Σ_t ln(1 − λ·a_t) = ln target, a_t = c_t/λ.

    `timescale` of the result returns the target. Half-life and timescale are those of the mean rate of the run. To have
    half of a weight left at step h, pass `remaining=0.5, steps=h`.

    Args:
      half_life: in steps; or
      timescale_steps: the EMA timescale 1/c̄ in steps, above 1; or
      timescale_epochs: the same in epochs of `steps_per_epoch`; or
      remaining: the fraction of a weight that is left after `steps` steps without gradient, between 0 and 1.
      learning_rate: η_t, a number or a schedule.
      steps, steps_per_epoch, coupling, peak_learning_rate: as in `timescale`.

    Returns:
      λ, a float.

    Raises:
      ValueError, TypeError: unless exactly one target is given and some λ reaches it; otherwise as in `timescale`.

    Example: a timescale of three epochs, on a cosine schedule of 20 epochs.
      >>> import optax, wd_optax as wd
      >>> run = dict(learning_rate=optax.cosine_decay_schedule(1e-3, 10_000), steps=10_000, steps_per_epoch=500)
      >>> decay = wd.weight_decay_for(timescale_epochs=3, **run)
      >>> print(f"{decay:.4f} {wd.timescale(decay, **run).timescale_epochs:.9f}")
      1.3330 3.000000000

    """
    _check_length(steps, steps_per_epoch)
    name, target = _only_one(
        half_life=half_life, timescale_steps=timescale_steps, timescale_epochs=timescale_epochs, remaining=remaining
    )
    etas = per_step("learning_rate", learning_rate, steps)
    per_decay = _removed(coupling, etas, np.ones(len(etas)), peak_learning_rate)
    largest = per_decay.max()
    if not largest:
        raise ValueError(f"learning_rate is 0 in every step: with coupling={coupling!r} nothing decays; raise it")
    rate = _solve(per_decay / largest, _log_remaining(name, target, len(etas), steps, steps_per_epoch))
    if rate >= 1:
        raise ValueError(f"{name}={target!r} needs a rate of 1 per step: raise {name}, or the number of steps")
    return float(rate / largest)


def _removed(coupling: Coupling, etas: np.ndarray, decays: np.ndarray, peak: Scalar | None) -> np.ndarray:
    """c_t at every step."""
    ratio, _ = couplings.parse_coupling("coupling", coupling)
    peak = etas.max() if peak is None else as_float("peak_learning_rate", peak)
    if ratio and not peak:
        raise ValueError(f"peak_learning_rate=0.0: coupling={coupling!r} divides by it; pass the largest of the run")
    return np.asarray(couplings.removed(coupling, learning_rate=etas, weight_decay=decays, peak_learning_rate=peak))


def _check_length(steps: int | None, steps_per_epoch: float | None) -> None:
    if steps is not None and (not isinstance(steps, int | np.integer) or steps < 1):
        raise ValueError(f"steps={steps!r} must be a whole number of steps, at least 1")
    if steps_per_epoch is not None and not 0 < steps_per_epoch < math.inf:
        raise ValueError(f"steps_per_epoch={steps_per_epoch!r} must be above 0")


def _only_one(**targets: float | None) -> tuple[str, float]:
    given = {name: as_float(name, value) for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(targets)}; got {', '.join(given) or 'none'}")
    return given.popitem()


def _log_remaining(name: str, target: float, n: int, steps: int | None, steps_per_epoch: float | None) -> float:
    """The logarithm of the fraction left after n steps that a target means."""
    if name == "remaining":
        if steps is None or not 0 < target < 1:
            raise ValueError(f"remaining={target!r} is left after a run: pass steps, and a fraction between 0 and 1")
        return math.log(target)
    if name == "timescale_epochs":
        if steps_per_epoch is None:
            raise ValueError("timescale_epochs needs steps_per_epoch: pass it, or timescale_steps")
        target = target * steps_per_epoch
    if not (0 if name == "half_life" else 1) < target < math.inf:
        raise ValueError(f"{name} is {target!r} steps, which no rate below 1 has: pass more, and a finite number")
    return n * (math.log(0.5) / target if name == "half_life" else math.log1p(-1 / target))


def _solve(shape: np.ndarray, log_target: float) -> float:
    """Solves Σ ln(1 − x·shape_t) = log_target for x; shape_t is in [0, 1] and its maximum is 1."""
    # Bisect on z = −ln(1 − x). No term is below −z and one is −z, so log_target is in [−n·z, −z] at the root.
    low, high = -log_target / len(shape), -log_target
    with np.errstate(divide="ignore"):  # beyond z = 37 the largest rate is 1
        while low < (middle := (low + high) / 2) < high:
            if np.log1p(np.expm1(-middle) * shape).sum() > log_target:
                low = middle
            else:
                high = middle
    return -math.expm1(-high)
