"""Calls of an optimizer: `init` as one program, `update` with a loss for optimizers that ask for one, its addition."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

from wd_optax import init_checks
from wd_optax.auditing import compiling
from wd_optax.watching import Decay, watch_decays

Update = Callable[[optax.Updates, optax.OptState, optax.Params], tuple[optax.Updates, optax.OptState]]


def one_program(init: optax.TransformInitFn, entries: int) -> optax.TransformInitFn:
    """`init` as one compiled program, where operation by operation each schedule in it is ten of them.

    Leaves that aren't traced, such as Python's numbers, are returned as they are. An `init` that can't be traced is
    called as it is, and so is one that raises.
    """
    untraced: list[Any] = []  # the structure, and the leaves, with None for those that are traced

    def traced(params: optax.Params) -> list[jax.Array]:
        with init_checks.defer() as checks:
            leaves, treedef = jax.tree.flatten(init(params))
        untraced[:] = [treedef, [None if isinstance(x, jax.core.Tracer) else x for x in leaves]]
        return [*(x for x in leaves if isinstance(x, jax.core.Tracer)), *checks]

    program = compiling.jit(traced, entries)

    def call(params: optax.Params) -> optax.OptState:
        try:
            made = _if_only_filled(program.trace(params).jaxpr)
            values = iter(program(params) if made is None else made)
        except Exception:  # it needs values, or raises
            return init(params)
        treedef, others = untraced
        leaves = [next(values) if x is None else x for x in others]
        return treedef.unflatten(leaves) if all(values) else init(params)  # what is left are checks

    return call


def _if_only_filled(program: core.ClosedJaxpr) -> list[jax.Array] | None:
    """What a program returns that only fills arrays with numbers, as most do at init; None for any other."""
    filled = {x.outvars[0]: x.invars[0] for x in program.eqns if x.primitive.name == "broadcast_in_dim"}
    made = []
    for x in program.jaxpr.outvars:
        number = x if isinstance(x, core.Literal) else filled.get(x)
        if not isinstance(number, core.Literal) or x.aval.weak_type:
            return None
        made.append(jax.device_put(np.full(x.aval.shape, number.val, x.aval.dtype)))
    return made


def apply_updates(params: optax.Params, updates: optax.Updates) -> optax.Params:
    """`optax.apply_updates`, also for 8-bit parameters."""

    def one(p: jax.Array, u: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(u.dtype, jnp.float32) if u.dtype != p.dtype and p.dtype.itemsize == 1 else None
        return (jnp.asarray(p, dtype) + jnp.asarray(u, dtype)).astype(p.dtype)

    return jax.tree.map(one, params, updates)


class UpdateCall:
    """`optimizer.update(gradients, state, params)`; line searches and Polyak steps get a loss that fits the gradient.

    The first call finds out whether a loss is needed; later calls go the same way. It is compiled for a tree of
    `entries`; without them it runs operation by operation.
    """

    def __init__(
        self, optimizer: optax.GradientTransformationExtraArgs, extra_args: dict[str, Any], entries: int | None
    ) -> None:
        def plain(gradients: optax.Updates, state: optax.OptState, params: optax.Params) -> Any:
            return optimizer.update(gradients, state, params, **extra_args)

        def with_loss(gradients: optax.Updates, state: optax.OptState, params: optax.Params) -> Any:
            def loss(x: optax.Params) -> Any:
                return 1.0 + optax.tree.vdot(gradients, optax.tree.sub(x, params)).real

            given = {"value": jnp.ones(()), "value_fn": loss, "grad": gradients}
            return optimizer.update(gradients, state, params, **(given | extra_args))

        self.entries = entries
        self.decays: list[Decay] = []  # of ours, noted when the update was traced
        self._ways: Sequence[Update] = [plain, with_loss]
        self._programs: Sequence[Update] = (
            self._ways if entries is None else [compiling.jit(way, entries) for way in self._ways]
        )

    def __call__(self, gradients: optax.Updates, state: optax.OptState, params: optax.Params) -> Any:
        """Updates and the new state; raises what the call without a loss raises if both fail."""
        if self.entries is None:  # states of `clock.advance` have NumPy's arrays
            state = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, state)
        return self._first_that_works(self._programs, gradients, state, params)

    def traced(self, gradients: optax.Updates, state: optax.OptState, params: optax.Params) -> Any:
        """The same, as a part of another program."""
        return self._first_that_works(self._ways, gradients, state, params)

    def _first_that_works(self, ways: Sequence[Update], *args: Any) -> Any:
        first: Exception | None = None
        for i, way in enumerate(ways):
            try:
                with watch_decays() as decays:
                    result = way(*args)
            except Exception as error:
                first = first or error
            else:
                self.decays = decays or self.decays
                self._ways, self._programs = self._ways[i : i + 1], self._programs[i : i + 1]
                return result
        assert first is not None
        raise first
