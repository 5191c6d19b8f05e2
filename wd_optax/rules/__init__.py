"""Toward what, and when: a rule is an Optax transformation from the parameters to the direction of decay.

Every decay is p ← p + step − c_t·m·r(p), with r(p) = rule.update(p, rule_state, p, step=Step(...))[0] and r(p) = p
without a rule. What Optax has is a rule as it is: `optax.clip(delta)` is Huber decay, `optax.chain` composes rules,
`optax.masked` and `optax.partition` give leaves different ones.
"""

from wd_optax.rules.active_rows import active_rows
from wd_optax.rules.cautious import cautious
from wd_optax.rules.constrained import constrained
from wd_optax.rules.low_rank import low_rank
from wd_optax.rules.norms import slice_norms
from wd_optax.rules.penalties import elastic, group, l1
from wd_optax.rules.step import Step, tree_map
from wd_optax.rules.toward import toward
from wd_optax.rules.toward_average import toward_average
from wd_optax.rules.toward_norm import toward_norm

__all__ = [
    "Step",
    "active_rows",
    "cautious",
    "constrained",
    "elastic",
    "group",
    "l1",
    "low_rank",
    "slice_norms",
    "toward",
    "toward_average",
    "toward_norm",
    "tree_map",
]
