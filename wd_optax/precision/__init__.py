"""In which bits: decay that survives parameters and optimizer state of 8 or 16 bits."""

from wd_optax.precision.master_weights import with_master_weights
from wd_optax.precision.rounding import round_updates
from wd_optax.precision.state import low_precision_state
from wd_optax.precision.upcasting import in_float32

__all__ = ["in_float32", "low_precision_state", "round_updates", "with_master_weights"]
