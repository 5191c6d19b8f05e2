"""The code that fixes a finding, with the caller's numbers where they are known.

Each function returns an expression for a new optimizer, or keyword arguments for the caller's own. Names in it such
as `optimizer`, `learning_rate` and `factory` are the caller's; a comment after two spaces explains them.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing import verdicts
from wd_optax.auditing.ablations import LAMBDAS
from wd_optax.auditing.harness import Harness, is_scalar
from wd_optax.auditing.measurements import Measurements
from wd_optax.auditing.report import AuditRow
from wd_optax.choosing.published import shares_of_run

LONGEST = 60  # characters of a regex that lists paths
TIMESCALE = 1000  # the timescale of a fix without a horizon
MEANT = 0.01
Leaves = Sequence[int]  # positions in `Evidence.rows`


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What an audit measured, and the numbers of the caller that it knows."""

    harness: Harness
    rows: tuple[AuditRow, ...]
    measured: list[Measurements]  # per row
    given_lr: float | optax.Schedule | None = None
    horizon: int | None = None

    @property
    def pairs(self) -> list[tuple[AuditRow, Measurements]]:
        """Each leaf's row and measurements."""
        return list(zip(self.rows, self.measured, strict=True))

    def learning_rate(self) -> str:
        """η as the caller gave it to `audit`, or its name if it is a schedule or wasn't given."""
        known = isinstance(self.given_lr, int | float | np.number)
        return f"{self.given_lr:.6g}" if known else "learning_rate"

    def weight_decay(self, leaves: Leaves) -> float | None:
        """λ of these leaves, from the state or from the only decaying stage of a chain; None if unknown."""
        leaf = next((x for path, x in self._state if is_scalar(path, x, LAMBDAS[:2], jnp.inexact)), None)
        values = {float(leaf)} if leaf is not None else {rate for i in leaves for rate in self.measured[i].stage_rates}
        return values.pop() if len({f"{x:.5g}" for x in values}) == 1 else None

    @functools.cached_property
    def _state(self) -> list[Any]:
        return jax.tree_util.tree_flatten_with_path(self.harness.state)[0]

    @property
    def split(self) -> bool:
        """Whether parameters are split between optimizers."""
        return any(m.branch is not None for m in self.measured)

    def nodes(self, field: str) -> list[Any]:
        """The outermost nodes of the optimizer's state with this field."""
        nodes = jax.tree.leaves(self.harness.state, is_leaf=lambda node: hasattr(node, field))
        return [node for node in nodes if hasattr(node, field)]

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
        return bool(self.rows[leaf].dtype.itemsize < 4)


def around(evidence: Evidence, leaves: Leaves) -> str:
    """Decoupled decay around the optimizer without its own decay."""
    weight_decay = evidence.weight_decay(leaves)
    number = "weight_decay" if weight_decay is None else f"{weight_decay:.6g}"
    where = " in every branch" if evidence.split else ""
    return (
        f"wd.with_decay(optimizer, learning_rate={evidence.learning_rate()}, weight_decay={number})"
        f"  # optimizer: yours without its decay, weight_decay=0.0{where}"
    )


def in_metric(evidence: Evidence, leaves: Leaves) -> str:
    """The penalty in Adam's metric."""
    penalty = evidence.measured[leaves[0]].penalty
    word = "penalty" if penalty == "custom" else f'"{penalty}"'
    return (
        f"wd.adamw({evidence.learning_rate()}, weight_decay=weight_decay, penalty={word})"
        "  # weight_decay: λ of the penalty; with your b1, b2, eps"
    )


def without_decay(evidence: Evidence, leaves: Leaves) -> str:
    """No decay on weights that are projected; harmless where it stays."""
    return "weight_decay=0.0  # of what comes before the projection; or leave it: it is harmless here"


def once(evidence: Evidence, leaves: Leaves) -> str:
    """No decay in all stages but one; lists what each adds where a chain shows it."""
    found = sorted({f"{rate:.4g}" for i in leaves for rate in evidence.measured[i].stage_rates}, key=float)
    adds = f", which add {', '.join(found)} of the weight" if len(found) > 1 else ""
    return f"weight_decay=0.0  # in all but one of the stages and optimizers that decay{adds}"


def follow_learning_rate(evidence: Evidence, leaves: Leaves) -> str:
    """Decay that follows the learning rate.

    A λ of `MEANT` or more was probably meant to be multiplied by the learning rate, and is kept as it is. A smaller
    one keeps its rate where the learning rate peaks.
    """
    code, _, note = around(evidence, leaves).partition("  # ")
    if (evidence.weight_decay(leaves) or 0) >= MEANT:
        return f"{code}  # {note}"
    peak = evidence.learning_rate() if evidence.learning_rate() != "learning_rate" else "peak_learning_rate"
    return f'{code[:-1]}, coupling="schedule", peak_learning_rate={peak})  # {note}; the peak is the largest rate'


def mask(evidence: Evidence, leaves: Leaves) -> str:
    """A mask that Optax's optimizers and ours accept; where an optimizer is split, decay around all branches."""
    if evidence.split:
        return around(evidence, leaves)
    return 'mask=wd.optax_mask("weights")  # of the optimizer or stage that decays; some call it weight_decay_mask'


def exclude(evidence: Evidence, leaves: Leaves) -> str:
    """A mask of rules that excludes these parameters."""
    rules = f'[({_paths_regex(evidence, leaves) or repr("embed")}, 0), (".*", "weights")]'
    return f"mask=wd.optax_mask({rules})  # if rows that are rarely used should keep their size"


def freeze_last(evidence: Evidence, leaves: Leaves) -> str:
    """Zero updates for these parameters, as the last stage."""
    regex = _paths_regex(evidence, leaves)
    frozen = f"wd.optax_mask([({regex}, 1)])" if regex else "frozen"
    note = "freeze last" if regex else "freeze last; frozen: a tree of bools, True at these leaves"
    return f"optax.chain(optimizer, optax.freeze({frozen}))  # {note}"


def one_sign(evidence: Evidence, leaves: Leaves) -> str:
    """One learning rate, and any decay after it."""
    if any(evidence.measured[i].decays for i in leaves):
        return around(evidence, leaves).partition("  # ")[0] + "  # optimizer: with one learning rate and no decay"
    return "optimizer  # without the second scale_by_learning_rate, or the scale of -1"


def rescale(evidence: Evidence, leaves: Leaves) -> str:
    """Another λ: its timescale is the median of published runs as a share of the horizon, or `TIMESCALE` steps."""
    share = shares_of_run().median
    steps = share * evidence.horizon if evidence.horizon else TIMESCALE
    largest, smallest = (
        max(evidence.measured[i].removed for i in leaves),
        min(evidence.rows[i].removed_per_step for i in leaves),
    )
    factor = 1 / steps / (largest if largest >= verdicts.HALF else smallest)
    weight_decay = evidence.weight_decay(leaves)
    value = f"weight_decay * {factor:.3g}" if weight_decay is None else f"{weight_decay * factor:.3g}"
    return f"weight_decay={value}  # a timescale of {steps:,.0f} steps; wd.weight_decay_for gives λ for any other"


def round_well(evidence: Evidence, leaves: Leaves) -> str:
    """Rounding that keeps small steps: stochastic in 16 bits, compensated where float32 is too coarse."""
    low = [evidence.is_low(i) for i in leaves]
    inner = "wd.precision.in_float32(optimizer)" if any(low) else "optimizer"
    return f'optax.chain({inner}, wd.precision.round_updates("{"stochastic" if all(low) else "compensated_all"}"))'


def finite(evidence: Evidence, leaves: Leaves) -> str:
    """Hyperparameters in float32 if they are injected, otherwise arithmetic in float32."""
    if evidence.nodes("hyperparams_states"):
        return "optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)  # factory: what was injected"
    return "wd.precision.in_float32(optimizer)"


def later_state(evidence: Evidence, leaves: Leaves) -> str:
    """The same audit at a state from training."""
    return "wd.audit(optimizer, params, opt_state=opt_state)  # a state from training"


def unknown(evidence: Evidence, leaves: Leaves) -> str:
    """A later state if the step isn't finite, or if a rule was asked for; otherwise a decay that can be measured."""
    later = any(not evidence.measured[i].finite or evidence.measured[i].has_rule for i in leaves)
    return (later_state if later else around)(evidence, leaves)


def same_rate(evidence: Evidence, leaves: Leaves) -> str:
    """The learning rate of the steps of these leaves; several learning rates need one decay each."""
    decaying = [i for i, m in enumerate(evidence.measured) if m.decays]
    rates = {f"{evidence.measured[i].step_lr:.4g}" for i in decaying if evidence.measured[i].step_lr > 0}
    if len(rates) == 1 and {*decaying} <= {*leaves}:
        return f"learning_rate={rates.pop()}  # of with_decay: that of the optimizer's steps"
    return (
        "optax.partition({'a': a, 'b': b}, labels)"
        "  # a, b: a with_decay for each learning rate; labels: a tree of 'a' and 'b'"
    )


def static_mask(evidence: Evidence, leaves: Leaves) -> str:
    """`inject_hyperparams` with the mask as a static argument."""
    names = [name for name in evidence.evaluated if "mask" in name]
    return f"optax.inject_hyperparams(factory, static_args={names!r})  # factory: what was injected"


def _paths_regex(evidence: Evidence, leaves: Leaves) -> str | None:
    """A quoted regex that matches these paths and no others; None if it would be long."""
    paths = {evidence.rows[i].path for i in leaves}
    others = {row.path for row in evidence.rows} - paths
    for pattern in ({re.sub(r"\d+", r"\\d+", re.escape(path)) for path in paths}, {*map(re.escape, paths)}):
        regex = f"^({'|'.join(sorted(pattern))})$" if len(pattern) > 1 else f"^{next(iter(pattern), '')}$"
        if len(regex) <= LONGEST and not any(re.search(regex, path) for path in others):
            return repr(regex) if '"' in regex else f'r"{regex}"' if "\\" in regex else f'"{regex}"'
    return None
