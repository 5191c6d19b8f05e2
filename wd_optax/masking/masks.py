"""A mask applied to parameters: as a table, as a tree of multipliers, and as a mask of Optax's."""

import collections
import html
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from wd_optax import tables
from wd_optax.masking import forms, paths, roles
from wd_optax.masking.forms import Mask as Mask
from wd_optax.masking.forms import is_zero


class MaskRow(NamedTuple):
    """The mask's decision for one parameter."""

    path: str
    shape: roles.Shape
    role: str
    multiplier: float | jax.Array  # a scalar array where the mask holds one
    reason: str
    unsure: bool = False  # the role decides here, and only the rank decided the role


_HEADER = ("path", "shape", "role", "multiplier", "because")
_MOST = 10  # unsure lines below the table


class MaskTable(NamedTuple):
    """The mask's decision for every parameter of a tree; prints as a table, also in notebooks."""

    rows: tuple[MaskRow, ...]

    def __str__(self) -> str:
        """The table, how much of the model decays, and the leaves to look at: those whose rank alone decided."""
        return "\n".join([tables.align([_HEADER, *map(_row_cells, self.rows)]), *self._notes()])

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        below = html.escape("\n".join(self._notes()))
        return f"{tables.to_html([_HEADER, *map(_row_cells, self.rows)])}<pre>{below}</pre>"

    def _notes(self) -> list[str]:
        decaying = [row for row in self.rows if not is_zero(row.multiplier)]
        size, total = (sum(math.prod(row.shape) for row in rows) for rows in (decaying, self.rows))
        totals = f"{len(decaying)} of {len(self.rows)} leaves decay, {size:,} of {total:,} parameters"
        alike = collections.Counter(
            (re.sub(r"\d+", "*", row.path), tables.show_shape(row.shape), row.role) for row in self.rows if row.unsure
        )
        if not alike or all(row.unsure for row in self.rows):
            return [totals]
        lines = [(f"{path} ({n}×)" if n > 1 else path, *rest) for (path, *rest), n in alike.items()]
        lines.sort(key=lambda line: line[2] not in roles.DECAYING_ROLES)
        more = [f"... and {len(lines) - _MOST} more: wd.explain(mask, params, unsure=True)"] * (len(lines) > _MOST)
        return [totals, "least sure of, by rank alone:", *tables.align(lines[:_MOST]).splitlines(), *more]


def _row_cells(row: MaskRow) -> tuple[str, ...]:
    multiplier = f"{row.multiplier:g}" if isinstance(row.multiplier, float) else "traced"
    return row.path, tables.show_shape(row.shape), row.role, multiplier, row.reason


def tabulate(mask: Mask, params: Any, caller: str = "explain") -> MaskTable:
    """`wd_optax.explain` of a mask and a tree of arrays."""
    _refuse_swapped(mask, params, caller)
    rows = []
    for p, decision in forms.decide(mask, params):
        multiplier, reason = decision.multiplier, decision.reason
        if not jnp.issubdtype(p.dtype, jnp.inexact):
            multiplier, reason = 0.0, p.reason
        rows.append(MaskRow(p.path, p.shape, p.role, multiplier, reason, decision.by_role and p.doubt != ""))
    return MaskTable(tuple(rows))


def _refuse_swapped(mask: Mask, params: Any, caller: str) -> None:
    """Raises where the arguments are swapped."""
    leaves = jax.tree.leaves(params)
    is_mask = not leaves or callable(params) or all(isinstance(leaf, str | bool | tuple) for leaf in leaves)
    is_mask |= forms.is_rules(params)
    if is_mask and any(jnp.ndim(leaf) for leaf in jax.tree.leaves(mask) if hasattr(leaf, "shape")):
        raise TypeError(f"{caller}: the mask comes first and the parameters second: wd.{caller}({params!r}, params)")


def multipliers(mask: Mask, params: Any) -> Any:
    """The multipliers m that a mask gives these parameters, as a tree.

    Args:
      mask: None, "weights", [(regex, m), ...], a tree, or a function of the parameters: see `wd_optax.masking`.
      params: a tree of arrays or of `jax.ShapeDtypeStruct`s.

    Returns:
      A tree with the structure of `params` and a float (a scalar array where the mask holds one) per leaf.

    Raises:
      ValueError, TypeError: for a mask that doesn't fit the parameters, naming rule or path.

    Example:
      >>> import jax.numpy as jnp, wd_optax as wd
      >>> params = {"embed": {"embedding": jnp.ones((9, 2))}, "out": {"kernel": jnp.ones((2, 9)), "bias": jnp.ones(9)}}
      >>> wd.multipliers([("embed", 0.1), (".*", "weights")], params)
      {'embed': {'embedding': 0.1}, 'out': {'bias': 0.0, 'kernel': 1.0}}
    """
    return jax.tree.unflatten(
        jax.tree.structure(params), [row.multiplier for row in tabulate(mask, params, "multipliers").rows]
    )


def largest_multiplier(mask: Mask, params: Any) -> tuple[float, str]:
    """The largest multiplier m that the mask gives a leaf, and that leaf's path; (0.0, "") where none decays.

    The step removes m·c of a weight, so an optimizer that knows c refuses m·c ≥ 1. Traced multipliers are not known
    and not counted.
    """
    # Fast path: one decaying leaf is enough. The whole table of 1000 leaves would cost 10 % of Optax's `init`.
    if mask is None or (isinstance(mask, str) and mask == "weights"):
        decaying = (p.path for p in roles.iterate(params) if mask is None or p.role in roles.DECAYING_ROLES)
        path = next(decaying, None)
        return (0.0, "") if path is None else (1.0, path)
    known = [(row.multiplier, row.path) for row in tabulate(mask, params).rows if isinstance(row.multiplier, float)]
    return max(known, default=(0.0, ""), key=lambda pair: pair[0])


def optax_mask(mask: Mask = "weights") -> Callable[[Any], Any]:
    """A mask as Optax's own transformations take it: a function of the parameters that returns a tree of bools.

    Optax reads the string "weights" and every number as true. Use this for `mask=` (`weight_decay_mask=` in some) of
    its optimizers, for `optax.masked` and `optax.freeze`; inside `optax.inject_hyperparams` name that argument in
    `static_args`.

    Args:
      mask: as in `wd_optax.multipliers`; every multiplier must be 0 or 1.

    Returns:
      params -> a tree with the structure of `params` and a bool per leaf.

    Raises:
      ValueError: from the function, for multipliers between 0 and 1, which Optax's masks can't express.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> wd.optax_mask("weights")(params)
      {'bias': False, 'kernel': True}
      >>> tx = optax.lion(1e-3, weight_decay=0.1, mask=wd.optax_mask("weights"))
    """

    def decays(params: Any) -> Any:
        table = tabulate(mask, params)
        for row in table.rows:
            if not isinstance(row.multiplier, float) or row.multiplier not in (0.0, 1.0):
                raise ValueError(
                    f"mask={mask!r} gives {row.path!r} the multiplier {row.multiplier}, and Optax's masks are bools: "
                    "use wd.with_decay(optimizer, learning_rate=..., weight_decay=..., mask=...), which multiplies"
                )
        return jax.tree.unflatten(jax.tree.structure(params), [row.multiplier == 1.0 for row in table.rows])

    return decays


def warn_if_nothing_decays(mask: Mask, params: Any, done: str = "decays") -> None:
    """Logs a warning with the table where no leaf of a whole tree (not cut by `masked`) decays, or is `done`."""
    decided = forms.decide(mask, params)
    if decided and all(is_zero(decision.multiplier) for _, decision in decided) and not paths.leaves(params)[1]:
        logging.warning("mask=%r: nothing %s.\n%s", mask, done, tabulate(mask, params))
