"""Which parameters decay, and by how much of the rate: a mask is data, resolved from parameters.

A mask gives every leaf a multiplier m: 0 never decays, 1 decays, 0.1 decays a tenth. It is one of

    None                   every leaf: 1
    "weights"              weights and embeddings: 1; biases, norms, scalars, tokens: 0 (by role, see `roles`)
    [(regex, m), ...]      the first rule whose regex is found in the path decides (`re.search`), unmatched leaves: 0;
                           m is a number or "weights", and a rule that decides nothing is an error
    tree                   bools or numbers, for the same paths or for their prefixes, in any container
    callable               params -> one of the above (prefer rules: they can be printed and checked)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from wd_optax import mask_forms, roles, tables
from wd_optax.mask_forms import Mask, is_zero


class Row(NamedTuple):
    """What a mask says of one parameter."""

    path: str
    shape: tuple[int, ...]
    role: str
    multiplier: Any  # float, or a scalar array where the mask holds one
    reason: str


class Explanation(NamedTuple):
    """What a mask means for a tree of parameters; prints as a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        """The table, and how much of the model decays."""
        lines = [("path", "shape", "role", "multiplier", "because")]
        for row in self.rows:
            multiplier = f"{row.multiplier:g}" if isinstance(row.multiplier, float) else "traced"
            lines.append((row.path, tables.show_shape(row.shape), row.role, multiplier, row.reason))
        decaying = [row for row in self.rows if not is_zero(row.multiplier)]
        size, total = (sum(math.prod(row.shape) for row in rows) for rows in (decaying, self.rows))
        totals = f"{len(decaying)} of {len(self.rows)} leaves decay, {size:,} of {total:,} parameters"
        return f"{tables.align(lines)}\n{totals}"


def explain(mask: Mask, params: Any) -> Explanation:
    """Per leaf: path, shape, role, multiplier, and the rule or reason that decided.

    Args:
      mask: see the module's table.
      params: a tree of arrays or of `jax.ShapeDtypeStruct`s.

    Returns:
      An `Explanation` with `.rows`, in JAX's order; `print` shows it as a table.

    Raises:
      ValueError, TypeError: for a mask that doesn't fit the parameters, naming rule or path.

    Example:
      >>> import jax.numpy as jnp, wd_optax as wd
      >>> params = {"attn": {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}}}
      >>> print(wd.explain("weights", params))
      path               shape    role    multiplier  because
      attn/query/bias    (2,4)    bias    0           named 'bias'
      attn/query/kernel  (8,2,4)  weight  1           named 'kernel'
      1 of 2 leaves decay, 64 of 72 parameters
    """
    found = roles.parameters(params)
    rows = []
    for p, (multiplier, reason) in zip(found, mask_forms.decide(mask, params, found), strict=True):
        if not jnp.issubdtype(p.dtype, jnp.inexact):
            multiplier, reason = 0.0, p.reason
        rows.append(Row(p.path, p.shape, p.role, multiplier, reason))
    return Explanation(tuple(rows))


def multipliers(mask: Mask, params: Any) -> Any:
    """The tree of numbers that a mask means for these parameters: m of every leaf.

    Args:
      mask: see the module's table.
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
    return jax.tree.unflatten(jax.tree.structure(params), [row.multiplier for row in explain(mask, params).rows])


def optax_mask(mask: Mask = "weights") -> Callable[[Any], Any]:
    """A mask as Optax's own transformations take it: a function of the parameters that returns a tree of bools.

    Optax reads the string "weights" and every number as true. Use this for `mask=` (`weight_decay_mask=` in some) of
    its optimizers, for `optax.masked` and `optax.freeze`; inside `optax.inject_hyperparams` name that argument in
    `static_args`.

    Args:
      mask: see the module's table; every multiplier must be 0 or 1.

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
        table = explain(mask, params)
        for row in table.rows:
            if not isinstance(row.multiplier, float) or row.multiplier not in (0.0, 1.0):
                raise ValueError(
                    f"mask={mask!r} gives {row.path!r} the multiplier {row.multiplier}, and Optax's masks are bools: "
                    "use wd.with_decay(optimizer, learning_rate=..., weight_decay=..., mask=...), which multiplies"
                )
        return jax.tree.unflatten(jax.tree.structure(params), [row.multiplier == 1.0 for row in table.rows])

    return decays


def warn_if_nothing_decays(mask: Mask, params: Any) -> None:
    """Logs a warning with the table where no leaf of a whole tree (not cut by `masked`) decays."""
    by_role = isinstance(mask, str) and mask == "weights"
    if by_role and any(p.role in roles.DECAYING_ROLES for p in roles.iterate(params)):
        return  # the usual case: stops at the first, where the table of 1000 leaves costs a tenth of Optax's init
    table = explain(mask, params)
    if table.rows and all(is_zero(row.multiplier) for row in table.rows) and not roles.flatten(params)[1]:
        logging.warning("mask=%r: nothing decays.\n%s", mask, table)
