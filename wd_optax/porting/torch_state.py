"""`torch_state`: the moments and the step count of a running PyTorch optimizer, for an optimizer here."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax import state_fields
from wd_optax.hyperparams import check_transformation
from wd_optax.migrate import COUNT_FIELDS, WRAPPERS
from wd_optax.porting.torch_convert import Convert
from wd_optax.porting.torch_job import NamedParameters, TorchParameter, read_job
from wd_optax.porting.torch_moments import Moments, slots_of
from wd_optax.state_fields import Field


def torch_state(
    optimizer: Any,
    convert: Convert,
    tx: optax.GradientTransformation,
    params: optax.Params,
    *,
    named_parameters: NamedParameters = None,
    weights: Mapping[str, Any] | None = None,
    step: int | None = None,
) -> optax.OptState:
    """The state of `tx` with the moments and the step count of a PyTorch optimizer: the run goes on as it would there.

    Args:
      optimizer: PyTorch's `optimizer.state_dict()`, or the optimizer itself.
      convert: the function that turns the model's `state_dict()` into `params`. The moments go through it, too: it may
        transpose, split, stack and reshape, but not scale, add, round or repeat, which is checked.
      tx: the optimizer here, as `wd_optax.from_torch` or `wd_optax.emulate` makes it.
      params: the converted weights.
      named_parameters: as for `wd_optax.from_torch`; not needed where the groups have "param_names".
      weights: the model's `state_dict()`, where `convert` reads buffers or tied weights by their other name. Then
        `params` is checked to be `convert(weights)`.
      step: the steps taken, for optimizers that don't count, as PyTorch's SGD.

    Returns:
      `tx.init(params)` with PyTorch's moments in the dtypes of `tx`, and every step count, the schedule's position,
      at PyTorch's. An optimizer that has taken no step gives `tx.init(params)`.

    Raises:
      ValueError: for a `convert` that doesn't only rearrange, parameters whose step counts differ or that took no step,
        a moment that `tx` has no place for or PyTorch doesn't have.

    Example: the moment of a weight that is stored transposed.
      >>> import numpy as np, jax.numpy as jnp, wd_optax as wd
      >>> moments = {"exp_avg": np.array([[1.0, 2.0]]), "exp_avg_sq": np.array([[1.0, 4.0]]), "step": 7}
      >>> group = {"params": [0], "param_names": ["dense.weight"]}
      >>> state_dict = {"state": {0: moments}, "param_groups": [group]}
      >>> convert = lambda state_dict: {"dense": {"kernel": state_dict["dense.weight"].T}}
      >>> params = {"dense": {"kernel": jnp.ones((2, 1))}}
      >>> tx = wd.adamw(1e-3, weight_decay=0.1)
      >>> state = wd.torch_state(state_dict, convert, tx, params)
      >>> print(state.step, state.inner.nu["dense"]["kernel"].ravel())
      7 [1. 4.]
    """
    check_transformation("tx", tx)
    parameters = read_job(optimizer, named_parameters).parameters
    fresh, is_moment = tx.init(params), _moment_test(params)
    has_moments = any(map(is_moment, state_fields.fields(fresh, params)))
    count = _count([p for p in parameters if p.group is not None], step, has_moments)
    moments = Moments(convert, params, parameters, weights) if any(map(slots_of, parameters)) else None

    def change(field: Field) -> Any:
        if field.name in COUNT_FIELDS and jnp.issubdtype(jnp.result_type(field.value), jnp.integer):
            return jnp.asarray(count, field.value.dtype)
        if moments is None or not is_moment(field):
            return field.value
        if field.holder == "SlotsState":
            return {name: moments.fill(field._replace(name=name, value=x)) for name, x in field.value.items()}
        return moments.fill(field)

    state = state_fields.map_fields(change, fresh, params)
    if moments is not None:
        moments.refuse_lost()
    return state


def _count(parameters: Sequence[TorchParameter], step: int | None, has_moments: bool) -> int:
    """The steps taken, on which all parameters must agree."""
    counts = collections.defaultdict(list)
    for p in parameters:
        if "step" in p.state:
            counts[int(p.state["step"])].append(p.name)
    if len(counts) > 1:
        shown = "; ".join(f"{n}: {', '.join(map(repr, names[:5]))}" for n, names in sorted(counts.items()))
        raise ValueError(
            f"optimizer: step counts differ, {shown}. Here one count is for all: parameters that started later, or got "
            "no gradient at times, need a tx of their own"
        )
    own = next(iter(counts), None)
    if own is not None and step not in (None, own):
        raise ValueError(f"step={step} differs from the count in the optimizer's state, {own}: leave step out")
    if own is None and step is None and (any(map(slots_of, parameters)) or not has_moments):
        raise ValueError(
            "step: this optimizer doesn't count its steps, as PyTorch's SGD: pass step=<the number of steps taken>, at "
            "which schedules go on"
        )
    return next(n for n in (own, step, 0) if n is not None)


def _moment_test(params: optax.Params) -> Callable[[Field], bool]:
    """Whether a field holds something for every parameter that isn't a wrapper's own."""
    like_params = state_fields.is_like(params)

    def is_moment(field: Field) -> bool:
        if field.name in COUNT_FIELDS or field.holder in WRAPPERS or "rule" in field.outer:
            return False
        return field.holder == "SlotsState" or (like_params(field.value) and len(jax.tree.leaves(field.value)) > 0)

    return is_moment
