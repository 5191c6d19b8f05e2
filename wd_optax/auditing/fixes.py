"""The code that fixes a finding, with the caller's numbers where they are known.

Each function returns an expression for a new optimizer, or keyword arguments for the caller's own. `optimizer`,
`learning_rate`, `weight_decay`, `factory` and so on in it are the caller's; a comment after two spaces says which.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wd_optax.auditing import verdicts
from wd_optax.auditing.ablations import LAMBDAS
from wd_optax.auditing.harness import Harness, is_scalar
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.report import AuditRow
from wd_optax.choosing.published import shares_of_run

LONGEST = 60  # characters of a regex that lists paths
STEPS = 1000  # the timescale of a fix where no horizon is given
MEANT = 0.01
Leaves = Sequence[int]  # positions in `Measured.rows`


class Measured:
    """What an audit measured, and what it knows of the caller's numbers."""

    def __init__(
        self,
        bench: Harness,
        rows: tuple[AuditRow, ...],
        facts: list[Measurements],
        learning_rate: Any = None,
        horizon: int | None = None,
    ) -> None:
        self.bench, self.rows, self.facts = bench, rows, facts
        self.given, self.horizon = learning_rate, horizon

    @property
    def pairs(self) -> list[tuple[AuditRow, Measurements]]:
        """Each leaf's row and facts."""
        return list(zip(self.rows, self.facts, strict=True))

    def learning_rate(self) -> str:
        """η as the caller gave it to `audit`; a schedule has no number."""
        known = isinstance(self.given, int | float | np.number)
        return f"{self.given:.6g}" if known else "learning_rate"

    def weight_decay(self, leaves: Leaves) -> float | None:
        """λ of these leaves: that of the state, else that of the one decaying stage of a chain; None if unknown."""
        leaf = next((x for path, x in self._state if is_scalar(path, x, LAMBDAS[:2], jnp.inexact)), None)
        values = {float(leaf)} if leaf is not None else {λ for i in leaves for λ in self.facts[i].lambdas}
        return values.pop() if len({f"{λ:.5g}" for λ in values}) == 1 else None

    @functools.cached_property
    def _state(self) -> list[Any]:
        return jax.tree_util.tree_flatten_with_path(self.bench.state)[0]

    @property
    def split(self) -> bool:
        """Whether parameters are split between optimizers."""
        return any(f.branch is not None for f in self.facts)

    def nodes(self, field: str) -> list[Any]:
        """The outermost nodes of the optimizer's state that have this field."""
        holds = lambda node: hasattr(node, field)
        return [*filter(holds, jax.tree.leaves(self.bench.state, is_leaf=holds))]

    @functools.cached_property
    def inner_states(self) -> dict[str, Any]:
        """Label -> state of each branch of every `optax.partition`."""
        nodes = self.nodes("inner_states")
        return {str(label): inner for node in nodes for label, inner in node.inner_states.items()}

    @property
    def evaluated(self) -> list[str]:
        """The arguments that `inject_hyperparams` evaluates as schedules."""
        return sorted({name for node in self.nodes("hyperparams_states") for name in node.hyperparams_states})

    def is_low(self, leaf: int) -> bool:
        """Whether the parameter has 16 bits or fewer."""
        return self.rows[leaf].dtype.itemsize < 4


def around(measured: Measured, leaves: Leaves) -> str:
    """Decoupled decay around the optimizer, which must not decay by itself."""
    λ = measured.weight_decay(leaves)
    number = "weight_decay" if λ is None else f"{λ:.6g}"
    where = " in every branch" if measured.split else ""
    return (
        f"wd.with_decay(optimizer, learning_rate={measured.learning_rate()}, weight_decay={number})"
        f"  # optimizer: yours without decay, weight_decay=0.0{where}"
    )


def once(measured: Measured, leaves: Leaves) -> str:
    """No decay in all but one of the stages, whose fractions are listed where a chain shows them."""
    found = sorted({f"{λ:.4g}" for i in leaves for λ in measured.facts[i].lambdas}, key=float)
    adds = f", which add {', '.join(found)} of the weight" if len(found) > 1 else ""
    return f"weight_decay=0.0  # in all but one of the stages and optimizers that decay{adds}"


def follow(measured: Measured, leaves: Leaves) -> str:
    """Decay that follows the learning rate, at the same rate where it peaks.

    A λ of `MEANT` or more was meant to be multiplied by the learning rate, and is kept.
    """
    code, _, note = around(measured, leaves).partition("  # ")
    if (measured.weight_decay(leaves) or 0) >= MEANT:
        return f"{code}  # {note}"
    peak = measured.learning_rate() if measured.learning_rate() != "learning_rate" else "peak_learning_rate"
    return f'{code[:-1]}, coupling="schedule", peak_learning_rate={peak})  # {note}; the peak is the largest rate'


def mask(measured: Measured, leaves: Leaves) -> str:
    """A mask that Optax's optimizers and ours understand; a split optimizer has one mask per branch or none."""
    if measured.split:
        return around(measured, leaves)
    return 'mask=wd.optax_mask("weights")  # of the optimizer or stage that decays; some call it weight_decay_mask'


def spare(measured: Measured, leaves: Leaves) -> str:
    """A mask of rules that leaves these parameters out."""
    rules = f'[({_regex(measured, leaves) or repr("embed")}, 0), (".*", "weights")]'
    return f"mask=wd.optax_mask({rules})  # if rows that are rarely used should keep their size"


def freeze_last(measured: Measured, leaves: Leaves) -> str:
    """Zero updates of these parameters, after everything else."""
    regex = _regex(measured, leaves)
    frozen = f"wd.optax_mask([({regex}, 1)])" if regex else "frozen"
    note = "freeze last" if regex else "freeze last; frozen: a tree of bools, True at these leaves"
    return f"optax.chain(optimizer, optax.freeze({frozen}))  # {note}"


def one_sign(measured: Measured, leaves: Leaves) -> str:
    """One learning rate, and the decay after it, where there is one."""
    if any(measured.facts[i].decays for i in leaves):
        return around(measured, leaves).partition("  # ")[0] + "  # optimizer: with one learning rate and no decay"
    return "optimizer  # without the second scale_by_learning_rate, or the scale of -1"


def rescale(measured: Measured, leaves: Leaves) -> str:
    """Another λ: the timescale of half the published runs, as a share of the horizon, or `STEPS` steps."""
    share = shares_of_run().median
    steps = share * measured.horizon if measured.horizon else STEPS
    largest, smallest = (
        max(measured.facts[i].removed for i in leaves),
        min(measured.rows[i].removed_per_step for i in leaves),
    )
    factor = 1 / steps / (largest if largest >= verdicts.HALF else smallest)
    λ = measured.weight_decay(leaves)
    value = f"weight_decay * {factor:.3g}" if λ is None else f"{λ * factor:.3g}"
    return f"weight_decay={value}  # a timescale of {steps:,.0f} steps; wd.weight_decay_for gives λ for any other"


def round_well(measured: Measured, leaves: Leaves) -> str:
    """Rounding that keeps small steps: random up and down, or with a residual where float32 is too coarse."""
    low = [measured.is_low(i) for i in leaves]
    inner = "wd.precision.in_float32(optimizer)" if any(low) else "optimizer"
    return f'optax.chain({inner}, wd.precision.round_updates("{"stochastic" if all(low) else "compensated_all"}"))'


def finite(measured: Measured, leaves: Leaves) -> str:
    """Hyperparameters in float32, or arithmetic in float32, by what may have made the NaN."""
    if measured.nodes("hyperparams_states"):
        return "optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)  # factory: what was injected"
    return "wd.precision.in_float32(optimizer)"


def later_state(measured: Measured, leaves: Leaves) -> str:
    """The same audit of a state from training."""
    return "wd.audit(optimizer, params, opt_state=opt_state)  # a state from training"


def unknown(measured: Measured, leaves: Leaves) -> str:
    """A later state where the step isn't finite; else a decay that can be measured."""
    return (later_state if any(not measured.facts[i].finite for i in leaves) else around)(measured, leaves)


def same_rate(measured: Measured, leaves: Leaves) -> str:
    """The learning rate by which these leaves step; several need a decay each."""
    decaying = [i for i, f in enumerate(measured.facts) if f.decays]
    rates = {f"{measured.facts[i].steps_by:.4g}" for i in decaying if measured.facts[i].steps_by > 0}
    if len(rates) == 1 and {*decaying} <= {*leaves}:
        return f"learning_rate={rates.pop()}  # of with_decay: that of the optimizer's own steps"
    return (
        "optax.partition({'a': a, 'b': b}, labels)"
        "  # a, b: each a with_decay with the learning rate of its part, as by labels: a tree of 'a' and 'b'"
    )


def static_mask(measured: Measured, leaves: Leaves) -> str:
    """The mask function kept out of what `inject_hyperparams` evaluates."""
    names = [name for name in measured.evaluated if "mask" in name]
    return f"optax.inject_hyperparams(factory, static_args={names!r})  # factory: what was injected"


def _regex(measured: Measured, leaves: Leaves) -> str | None:
    """A regex, quoted, that matches these paths and no others; None where it would be long."""
    paths = {measured.rows[i].path for i in leaves}
    others = {row.path for row in measured.rows} - paths
    for pattern in ({re.sub(r"\d+", r"\\d+", re.escape(path)) for path in paths}, {*map(re.escape, paths)}):
        regex = f"^({'|'.join(sorted(pattern))})$" if len(pattern) > 1 else f"^{next(iter(pattern), '')}$"
        if len(regex) <= LONGEST and not any(re.search(regex, path) for path in others):
            return repr(regex) if '"' in regex else f'r"{regex}"' if "\\" in regex else f'"{regex}"'
    return None
