"""Weight decay for JAX: on exactly the right parameters, at the rate asked for, on any Optax optimizer."""

import importlib
import typing

from optax import scale_by_adam

from wd_optax import precision, prox, rules
from wd_optax.couplings import convert_weight_decay, decay_rate
from wd_optax.masking.masks import multipliers, optax_mask
from wd_optax.masking.slices import explain_slices
from wd_optax.optimizers import adam_l2, adamw, sgd_l2, sgdw
from wd_optax.partition import partition
from wd_optax.penalties import l1_penalty, l2_penalty, weight_norm
from wd_optax.rules.missed_decay import materialize
from wd_optax.transforms import add_decayed_weights, add_l2_to_loss, proximal, shrink
from wd_optax.version import __version__
from wd_optax.wrappers import coupled, decoupled, with_decay

if typing.TYPE_CHECKING:
    from wd_optax.auditing.audit import audit
    from wd_optax.auditing.explaining import explain
    from wd_optax.choosing.describe_decay import describe_decay
    from wd_optax.choosing.equilibrium import equilibrium
    from wd_optax.choosing.published import published
    from wd_optax.choosing.runs import Run
    from wd_optax.choosing.searching.search import search
    from wd_optax.choosing.sweeping.sweep import sweep
    from wd_optax.choosing.timescales import half_life, timescale, weight_decay_for
    from wd_optax.choosing.transfer import transfer
    from wd_optax.measure import measure_decay
    from wd_optax.migrate import migrate_state
    from wd_optax.monitor import monitor_decay, read_decay
    from wd_optax.porting.emulate import emulate
    from wd_optax.porting.from_torch import from_torch
    from wd_optax.porting.layers import LayerDecay
    from wd_optax.porting.to_torch import to_torch_groups
    from wd_optax.porting.torch_state import torch_state
    from wd_optax.porting.translate import translate
    from wd_optax.projection.hyperball import hyperball
    from wd_optax.projection.project import project

# Where the names are that a plain training step doesn't need: imported when first used, as they are most of the import.
_LAZY = {
    "LayerDecay": "porting.layers",
    "Run": "choosing.runs",
    "audit": "auditing.audit",
    "describe_decay": "choosing.describe_decay",
    "emulate": "porting.emulate",
    "equilibrium": "choosing.equilibrium",
    "explain": "auditing.explaining",
    "from_torch": "porting.from_torch",
    "half_life": "choosing.timescales",
    "hyperball": "projection.hyperball",
    "measure_decay": "measure",
    "migrate_state": "migrate",
    "monitor_decay": "monitor",
    "project": "projection.project",
    "published": "choosing.published",
    "read_decay": "monitor",
    "search": "choosing.searching.search",
    "sweep": "choosing.sweeping.sweep",
    "timescale": "choosing.timescales",
    "to_torch_groups": "porting.to_torch",
    "torch_state": "porting.torch_state",
    "transfer": "choosing.transfer",
    "translate": "porting.translate",
    "weight_decay_for": "choosing.timescales",
}

__all__ = [
    "LayerDecay",
    "Run",
    "__version__",
    "adam_l2",
    "adamw",
    "add_decayed_weights",
    "add_l2_to_loss",
    "audit",
    "convert_weight_decay",
    "coupled",
    "decay_rate",
    "decoupled",
    "describe_decay",
    "emulate",
    "equilibrium",
    "explain",
    "explain_slices",
    "from_torch",
    "half_life",
    "hyperball",
    "l1_penalty",
    "l2_penalty",
    "materialize",
    "measure_decay",
    "migrate_state",
    "monitor_decay",
    "multipliers",
    "optax_mask",
    "partition",
    "precision",
    "project",
    "prox",
    "proximal",
    "published",
    "read_decay",
    "rules",
    "scale_by_adam",
    "search",
    "sgd_l2",
    "sgdw",
    "shrink",
    "sweep",
    "timescale",
    "to_torch_groups",
    "torch_state",
    "transfer",
    "translate",
    "weight_decay_for",
    "weight_norm",
    "with_decay",
]

if not typing.TYPE_CHECKING:  # else any name would be accepted

    def __getattr__(name: str) -> object:
        """The public names that aren't imported yet (PEP 562)."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(importlib.import_module(f"wd_optax.{_LAZY[name]}"), name)
        return found

    def __dir__() -> list[str]:
        """All names, also those that aren't imported yet."""
        return sorted({*globals(), *_LAZY})
