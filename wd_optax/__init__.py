"""Weight decay for JAX: on exactly the right parameters, at the rate asked for, on any Optax optimizer."""

from optax import scale_by_adam

from wd_optax.auditing.audit import audit
from wd_optax.auditing.report import Finding, Report
from wd_optax.decay import add_decayed_weights, add_l2_to_loss, proximal, shrink
from wd_optax.equilibrium import Equilibrium, equilibrium
from wd_optax.explaining import explain
from wd_optax.low_precision_state import low_precision_state
from wd_optax.masks import multipliers, optax_mask
from wd_optax.master_weights import with_master_weights
from wd_optax.migrate import migrate_state
from wd_optax.monitor import Info, MonitorState, monitor, read_monitor
from wd_optax.optimizers import adam_l2, adamw, sgd_l2, sgdw
from wd_optax.partition import partition
from wd_optax.penalties import l1_penalty, l2_penalty
from wd_optax.precision import in_float32, round_updates
from wd_optax.published import PublishedRun, PublishedRuns, published
from wd_optax.pull import DecayState
from wd_optax.rates import convert_weight_decay, decay_rate
from wd_optax.sweeping.result import SweepResult
from wd_optax.sweeping.sweep import sweep
from wd_optax.timescales import Timescale, half_life, timescale, weight_decay_for
from wd_optax.wrap import coupled, decoupled, with_decay

__version__ = "0.1.0"

__all__ = [
    "DecayState",
    "Equilibrium",
    "Finding",
    "Info",
    "MonitorState",
    "PublishedRun",
    "PublishedRuns",
    "Report",
    "SweepResult",
    "Timescale",
    "adam_l2",
    "adamw",
    "add_decayed_weights",
    "add_l2_to_loss",
    "audit",
    "convert_weight_decay",
    "coupled",
    "decay_rate",
    "decoupled",
    "equilibrium",
    "explain",
    "half_life",
    "in_float32",
    "l1_penalty",
    "l2_penalty",
    "low_precision_state",
    "migrate_state",
    "monitor",
    "multipliers",
    "optax_mask",
    "partition",
    "proximal",
    "published",
    "read_monitor",
    "round_updates",
    "scale_by_adam",
    "sgd_l2",
    "sgdw",
    "shrink",
    "sweep",
    "timescale",
    "weight_decay_for",
    "with_decay",
    "with_master_weights",
]
