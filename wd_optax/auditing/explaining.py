"""`explain`: which parameters decay under a mask or an optimizer."""

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.auditing import verdicts
from wd_optax.auditing.audit import audit
from wd_optax.auditing.report import AuditRow
from wd_optax.masking import masks
from wd_optax.masking.forms import Mask
from wd_optax.masking.masks import MaskRow, MaskTable

_MISSING = object()


def explain(mask: Mask | optax.GradientTransformation, params: Any = _MISSING, *, unsure: bool = False) -> MaskTable:
    """Per leaf: path, shape, role, multiplier, and the rule or reason that decided it.

    Args:
      mask: see `wd_optax.masking`; or an optimizer (also an `nnx.Optimizer`), which `wd.audit` measures: the multiplier
        is then the leaf's rate divided by the largest one. If it is left out, "weights".
      params: a tree of arrays or of `jax.ShapeDtypeStruct`s, or an object that holds one: an Equinox or NNX module, a
        Keras model or its list of variables, a Flax `TrainState`.
      unsure: list only the leaves whose rank alone decided. Otherwise the table ends with the first ten of them.

    Returns:
      A `MaskTable` with `.rows`, in JAX's order; `print` shows it as a table.

    Raises:
      ValueError, TypeError: for a mask that doesn't fit the parameters, naming rule or path; for swapped arguments.

    Example:
      >>> import jax.numpy as jnp, wd_optax as wd
      >>> params = {"attn": {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}}}
      >>> print(wd.explain("weights", params))
      path               shape    role    multiplier  because
      attn/query/bias    (2,4)    bias    0           named 'bias'
      attn/query/kernel  (8,2,4)  weight  1           named 'kernel'
      1 of 2 leaves decay, 64 of 72 parameters

    """
    if params is _MISSING:
        mask, params = "weights", mask
    params = _parameters_in(params)
    if _is_optimizer(params):
        raise TypeError("the optimizer comes first and the parameters second: wd.explain(optimizer, params)")
    explanation = _measured(mask, params) if _is_optimizer(mask) else masks.tabulate(mask, params)
    return MaskTable(tuple(row for row in explanation.rows if row.unsure)) if unsure else explanation


def _is_optimizer(x: Any) -> bool:
    return isinstance(getattr(x, "tx", x), optax.GradientTransformation)


def _measured(optimizer: Any, params: optax.Params) -> MaskTable:
    """The measured decay of each leaf, relative to the largest."""
    report = audit(getattr(optimizer, "tx", optimizer), params)
    largest = max((abs(row.removed_per_step) for row in report.rows if math.isfinite(row.removed_per_step)), default=0)
    rows = []
    for row in report.rows:
        rate = 0.0 if row.verdict == verdicts.PROJECTED else row.removed_per_step  # it doesn't shrink
        multiplier = float(f"{rate / largest:.3g}") if largest else rate
        because = ", ".join(filter(None, (row.summary, _rate(row))))
        rows.append(MaskRow(row.path, row.shape, row.role, multiplier + 0.0, because))
    return MaskTable(tuple(rows))


def _rate(row: AuditRow) -> str:
    """What a step removes, of the weight or of its distance from what it decays toward; "" if it isn't one number."""
    distance = " of the distance" if row.anchor not in ("zero", "") else ""
    return "" if math.isnan(row.removed_per_step) else f"removes {row.removed_per_step:.3g}{distance} per step"


def _parameters_in(params: Any) -> optax.Params:
    """The tree of parameters that a model, a train state or a list of variables holds."""
    if hasattr(params, "opt_state") and hasattr(params, "params"):  # Flax's TrainState
        return params.params
    if hasattr(params, "trainable_variables"):  # a Keras model
        return params.trainable_variables
    nnx, equinox = sys.modules.get("flax.nnx"), sys.modules.get("equinox")
    if nnx and isinstance(params, nnx.Module):
        return nnx.state(params, nnx.Param)
    leaves = jax.tree.leaves(params)
    if not any(hasattr(leaf, "shape") for leaf in leaves):
        return params
    is_model = equinox and isinstance(params, equinox.Module)
    if is_model or any(not hasattr(leaf, "shape") and not isinstance(leaf, int | float | complex) for leaf in leaves):
        return jax.tree.map(_floating_point_or_none, params)  # as eqx.filter does
    return params


def _floating_point_or_none(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.inexact) else None
