"""One call of an optimizer's `update`, with a loss for optimizers that ask for one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Update = Callable[[optax.Updates, optax.OptState, optax.Params], tuple[optax.Updates, optax.OptState]]


class UpdateCall:
    """`optimizer.update(gradients, state, params)`; line searches and Polyak steps get a loss that fits the gradient.

    The first call finds out whether a loss is needed; later calls go the same way.
    """

    def __init__(
        self, optimizer: optax.GradientTransformationExtraArgs, extra_args: dict[str, Any], compiled: bool
    ) -> None:
        def plain(gradients: optax.Updates, state: optax.OptState, params: optax.Params) -> Any:
            return optimizer.update(gradients, state, params, **extra_args)

        def with_loss(gradients: optax.Updates, state: optax.OptState, params: optax.Params) -> Any:
            def loss(x: optax.Params) -> Any:
                return 1.0 + optax.tree.vdot(gradients, optax.tree.sub(x, params)).real

            given = {"value": jnp.ones(()), "value_fn": loss, "grad": gradients}
            return optimizer.update(gradients, state, params, **(given | extra_args))

        self.compiled = compiled
        self._ways: tuple[Update, ...] = (jax.jit(plain), jax.jit(with_loss)) if compiled else (plain, with_loss)

    def __call__(self, gradients: optax.Updates, state: optax.OptState, params: optax.Params) -> Any:
        """Updates and the new state; raises what the call without a loss raises if both fail."""
        first: Exception | None = None
        if not self.compiled:  # states of `clock.advance` have NumPy's arrays
            state = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, state)
        for way in self._ways:
            try:
                result = way(gradients, state, params)
            except Exception as error:
                first = first or error
            else:
                self._ways = (way,)
                return result
        assert first is not None
        raise first
