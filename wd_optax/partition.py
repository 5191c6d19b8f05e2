"""One optimizer per kind of parameter, each with its own learning rate and decay: Muon and AdamW in one call."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from wd_optax import dtypes
from wd_optax.hyperparams import check_transformation
from wd_optax.masking import roles
from wd_optax.masking.errors import explaining

Label = Callable[[roles.Parameter], str]


def partition(
    optimizers: Mapping[str, optax.GradientTransformation], label: Label
) -> optax.GradientTransformationExtraArgs:
    """Updates each parameter with the optimizer that `label` names for it; each decays at its own η·λ.

    This is `optax.partition` with labels computed from a parameter's path, shape and role. Each optimizer keeps its own
    mask: biases and norm scales don't decay in any of them by default.

    Args:
      optimizers: name -> optimizer, such as `wd_optax.decoupled(...)` or `wd_optax.adamw(...)`.
      label: a `roles.Parameter` (path, shape, dtype, role, reason) -> a name in `optimizers`. Roles are
        "weight", "embedding", "bias", "norm" and "other".

    Returns:
      A transformation with Optax's `PartitionState`: the state of each optimizer is `state.inner_states[name]`.

    Raises:
      ValueError: at `init` for a label that isn't in `optimizers`, and for an optimizer that gets no parameter; at
        `update` without parameters.

    Example: Muon on matrices, AdamW on the rest. Muon's decay is 2e-2·0.1 per step, AdamW's 3e-4·0.1. An optimizer at
    learning rate 1, with the sign flipped, is a direction.
      >>> import jax.numpy as jnp, optax, optax.contrib, wd_optax as wd
      >>> muon = optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0))
      >>> tx = wd.partition(
      ...     {
      ...         "muon": wd.decoupled(muon, 2e-2, weight_decay=0.1),
      ...         "adamw": wd.adamw(3e-4, weight_decay=0.1),
      ...     },
      ...     lambda p: "muon" if p.role == "weight" and len(p.shape) == 2 and "head" not in p.path else "adamw",
      ... )
      >>> params = {"mlp": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "head": {"kernel": jnp.ones((2, 2))}}
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> for path in ("mlp", "head"):
      ...     print(f"{updates[path]['kernel'][0, 0]:.6f}")
      -0.002000
      -0.000030
      >>> bool((updates["mlp"]["bias"] == 0).all())
      True

    Reference: Jordan et al. 2024, "Muon", github.com/KellerJordan/Muon, for the choice of parameters.
    """
    if not isinstance(optimizers, Mapping) or not callable(label):
        raise TypeError(
            "partition takes a dict of optimizers and a function, partition({name: optimizer}, lambda p: name); got "
            f"a {type(optimizers).__name__} and a {type(label).__name__}"
        )
    optimizers = dict(optimizers)
    for name, optimizer in optimizers.items():
        check_transformation(f"optimizers[{name!r}]", optimizer)

    def labels(params: optax.Params) -> Any:
        found = roles.parameters(params)
        names = [label(p) for p in found]
        for p, name in zip(found, names, strict=True):
            if name not in optimizers:
                raise ValueError(
                    f"label: {p.path!r} (role {p.role}, shape {p.shape}) is labelled {name!r}: return one of "
                    f"{', '.join(map(repr, optimizers))}"
                )
        unused = [name for name in optimizers if name not in names]
        if unused and found and not roles.flatten(params)[1]:  # not in a tree cut by another partition
            raise ValueError(
                f"optimizers: {unused[0]!r} gets no parameter: let label return {unused[0]!r} for one, or drop it. The "
                f"parameters are {', '.join(f'{p.path!r} (role {p.role}, shape {p.shape})' for p in found[:10])}"
            )
        return jax.tree.unflatten(jax.tree.structure(params), names)

    def init(params: optax.Params) -> optax.OptState:
        return optax.partition(optimizers, labels(params)).init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("partition labels the parameters, so update needs them: tx.update(grads, state, params)")
        with explaining("partition", updates, dtypes.as_arrays(params)):
            updates, state = optax.partition(optimizers, labels(params)).update(updates, state, params, **extra)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)
