"""The stages of `optax.chain`, read from the closure of its `update`: Optax has no public way to list them.

This is the only module that depends on Optax's internals. `tests/test_chain_closures.py` fails with the version of
Optax if they change; the audit then treats every chain as one stage.
"""

import inspect
from typing import NamedTuple

import optax


class Stage(NamedTuple):
    """One transformation of a chain."""

    update: optax.TransformUpdateFn
    state: optax.OptState


def stages_of(update: optax.TransformUpdateFn, state: optax.OptState) -> list[Stage]:
    """The stages of an optimizer, nested chains and `MultiSteps` opened; one stage for anything else."""
    owner = getattr(update, "__self__", None)
    if isinstance(owner, optax.MultiSteps):
        return stages_of(owner.inner_opt.update, state.inner_opt_state)
    if not inspect.isfunction(update) or not (update.__module__ or "").startswith("optax"):
        return [Stage(update, state)]
    closure = inspect.getclosurevars(update).nonlocals
    functions, wrapped = closure.get("update_fns"), closure.get("tx")
    if update.__qualname__.startswith("chain.") and functions is not None and len(functions) == len(state):
        return [stage for pair in zip(functions, state, strict=True) for stage in stages_of(*pair)]
    if update.__qualname__.startswith("with_extra_args_support.") and wrapped is not None:
        return stages_of(wrapped.update, state)
    return [Stage(update, state)]
