"""Whether measured decay is in equilibrium with the gradients, how far it is from there, or whether it does nothing."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax

from wd_optax import tables
from wd_optax.choosing.equilibrium import Equilibrium, equilibrium
from wd_optax.hyperparams import check_scalar
from wd_optax.measure import DecayInfo, DecayTable, each_layer

TOLERANCE = 0.1  # of the norm: one step's angle fluctuates with its gradient
INERT = 0.01  # decay that removes less of the weights in all steps that are left doesn't matter
SURE = 3.0  # standard deviations of one step's growth, for random gradients
POWERS = {"adamw": 2, "lion": 2, "sgdw": 4, "sgd_l2": 4}  # the power of ‖w‖ whose distance falls exponentially


class BalanceState(NamedTuple):
    """Where one group is; see `wd_optax.describe_decay` for the rule."""

    state: Literal["in equilibrium", "still shrinking", "growing", "decay inert", "unknown"]
    steps: float | None  # until ‖p‖ is 1.1 of its equilibrium; None where it doesn't shrink, or v̂ lags too far
    ratio: float | None  # ρ = ‖p‖ over its equilibrium
    angle: float  # measured, radians per step
    expected_angle: float | None  # in equilibrium
    reason: str

    def __str__(self) -> str:
        """The state, such as "still shrinking (1,200 steps to go)"."""
        known = self.steps is not None and math.isfinite(self.steps)
        return f"{self.state} ({self.steps:,.0f} steps to go)" if known else self.state


class BalanceTable(dict[str, BalanceState]):
    """{group: BalanceState}, of stacked layers {"blocks/0": ...}; prints as a table, also in notebooks."""

    def __str__(self) -> str:
        """The table, aligned."""
        return tables.align(self._cells())

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        return tables.to_html(self._cells())

    def _cells(self) -> list[tuple[str, ...]]:
        header = ("group", "state", "‖p‖ / equilibrium", "angle", "expected", "because")
        shown = (
            (name, x, [_three_digits(x.ratio), _three_digits(x.angle), _three_digits(x.expected_angle)])
            for name, x in self.items()
        )
        return [header, *((name, str(x), *numbers, x.reason) for name, x, numbers in shown)]


def _three_digits(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}"


def describe_decay(
    measured: Mapping[str, DecayInfo],
    *,
    optimizer: Literal["adamw", "sgdw", "sgd_l2", "lion"] = "adamw",
    b1: float | None = None,
    b2: float | None = None,
    momentum: float | None = None,
    steps: int | None = None,
) -> BalanceTable:
    """Per group: "in equilibrium", "still shrinking (n steps to go)", "growing", "decay inert" or "unknown".

    The rule, from one step's figures. `wd_optax.equilibrium` gives the angle θ* per step at which decay that removes c,
    as measured, balances random gradients; it needs neither η nor the gradients' size. An update's length doesn't
    depend on ‖p‖ under Adam and Lion, and goes as 1/‖p‖ under SGD, whose gradients do. So the measured angle θ gives

        ρ = ‖p‖/‖p‖* = θ*/θ  (adamw, lion),  √(θ*/θ)  (sgdw, sgd_l2)

    - ρ within 10 % of 1: in equilibrium. Below: growing.
    - above: still shrinking. ρᵏ − 1 falls as exp(−n/s), k = 2 and 4, s = `equilibrium(...).steps`: 1/(2c) and 1/(4c);
      n = s·ln((ρᵏ − 1)/(1.1ᵏ − 1)) steps are left until it is within 10 %.
    - c = 0, or c·steps < 1 % where `steps` is given: decay inert.
    - unknown: where the share is NaN, p or u is 0, or c ≥ 1; and where ‖p‖ changes in this step against the angle's
      verdict by more than 3·θ/√C, three standard deviations for a random direction: gradients that agree from step to
      step turn the weights faster than random ones, and weights that aren't scale-invariant have no such equilibrium.

    AdamW's √v̂ lags: it divides by gradients of 1/(1 − β₂) steps ago, which were smaller if ‖p‖ was larger. So shrinking
    weights have x = ρ² − 1 = (1 + a)·((θ*/θ)² − 1), with a = 2c/(1 − β₂), and are there in
    n = s·((1 + a)·ln(x/0.21) − a·ln((1 + x)/1.21)) steps. With a > 1 there is no n, and ρ is nearer to 1 than it should
    be; so it is while weights grow. Growing has no n: moments still hold what shorter weights left there.

    Measure after max(1/(1 − β₁), 1/(1 − β₂)) steps, when moments are full: after 1000 steps of AdamW and 100 of Lion by
    default, 1/(1 − μ) of SGD; and not during warmup, when c itself moves. Then, for random gradients on scale-invariant
    weights, n is right to n/4 + s/2 steps, of which noise in one step's angle is the larger part. One group should hold
    weights of one kind; `groups="leaves"` and `slices` show each.

    Args:
      measured: what `wd_optax.measure_decay` or `wd_optax.read_decay` returned, or an average of several; not traced.
      optimizer, b1, b2, momentum: as in `wd_optax.equilibrium`: momentum changes θ*. AdamW's β₂, by default 0.999, too.
      steps: how many steps of training are left.

    Returns:
      {group: BalanceState}, without empty groups; `print` shows it as a table.

    Raises:
      ValueError, TypeError: for an unknown optimizer, momentum out of range, and traced or batched figures.

    Example: a weight that is longer than in equilibrium, under a gradient orthogonal to it.
      >>> import jax, jax.numpy as jnp, wd_optax as wd
      >>> p = {"kernel": jnp.full((10, 10), 3.0)}
      >>> g = {"kernel": jnp.where(jnp.arange(100).reshape(10, 10) % 2 == 0, 1.0, -1.0)}
      >>> tx = wd.sgdw(0.1, weight_decay=0.05)
      >>> state = wd.describe_decay(wd.measure_decay(tx, g, tx.init(p), p), optimizer="sgdw")["weight"]
      >>> print(state, f"{state.ratio:.2f}")
      still shrinking (142 steps to go) 1.73

    Reference: Kosson, Messmer & Jaggi 2023, arXiv 2305.17212.

    """
    memory = 0.0  # of v̂, in steps
    if optimizer == "adamw":
        check_scalar("b2", b2 := 0.999 if b2 is None else b2, below=1.0)
        memory, b2 = 1 / (1 - b2), None
    balance = functools.partial(equilibrium, 1.0, optimizer=optimizer, b1=b1, b2=b2, momentum=momentum)
    balance(weight_decay=0.1)  # raises where the arguments don't fit
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(measured))
    if traced or (isinstance(measured, DecayTable) and measured.is_batched):
        raise ValueError(
            "measured is traced, or of several runs: describe one run, outside jit; of runs under vmap "
            "wd_optax.describe_decay(jax.tree.map(lambda x: x[0], measured))"
        )
    groups = each_layer(measured)
    power = POWERS[optimizer]
    judge = functools.partial(_judge, balance=balance, power=power, memory=memory, left=steps)
    return BalanceTable((name, judge(x)) for name, x in groups.items() if x.size > 0)


def _judge(
    x: DecayInfo, *, balance: Callable[..., Equilibrium], power: int, memory: float, left: int | None
) -> BalanceState:
    c, theta, growth = float(x.removed), float(x.angle), float(x.growth)
    if reason := _no_answer(x):
        return BalanceState("unknown", None, None, theta, None, reason)
    if c == 0:
        return BalanceState("decay inert", None, None, theta, None, "nothing decays")
    if left is not None and c * left < INERT:
        return BalanceState("decay inert", None, None, theta, None, f"removes {c * left:.1g} in {left:,} steps")
    found = balance(weight_decay=c)
    expected = float(found.angle)
    lag = 2 * c * memory
    ratio = (expected / theta) ** (2 / power) if theta > 0 else math.inf
    if ratio > 1 and lag <= 1:
        ratio = (1 + (1 + lag) * (ratio**power - 1)) ** (1 / power)
    if abs(ratio - 1) <= TOLERANCE:
        return BalanceState("in equilibrium", None, ratio, theta, expected, "turns as random gradients turn it")
    above = ratio > 1
    reason = f"turns {'less' if above else 'more'} than in equilibrium"
    if (growth if above else -growth) > SURE * theta / math.sqrt(float(x.size)):
        reason += f", but ‖p‖ changes by {growth:+.1e}"
        return BalanceState("unknown", None, ratio, theta, expected, reason)
    if not above:
        return BalanceState("growing", None, ratio, theta, expected, reason)
    steps = None
    if lag <= 1:
        start, end = ratio**power, (1 + TOLERANCE) ** power
        to_go = (1 + lag) * math.log((start - 1) / (end - 1)) - lag * math.log(start / end)
        steps = float(found.steps) * to_go if math.isfinite(start) else math.inf
    return BalanceState("still shrinking", steps, ratio, theta, expected, reason)


def _no_answer(x: DecayInfo) -> str:
    """Why nothing can be said, or ""."""
    if x.weight_norm == 0:
        return "the weights are 0"
    if x.update_norm == 0:
        return "this step moves nothing"
    if not math.isfinite(x.removed) or not math.isfinite(x.angle):
        return "the step has a part that isn't a decay but follows the weights"
    return "removes the whole weight" if x.removed >= 1 else ""
