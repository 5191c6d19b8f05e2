"""The training loop and the small networks that the claims share.

Weights and batches are drawn by NumPy: XLA takes 2 s to compile one initialisation with `jax.random`.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import data
import jax
import jax.numpy as jnp
import numpy as np
import optax


class Taken(NamedTuple):
    """A step: what `train` can watch."""

    before: Any  # parameters
    given: Any  # what the step was given
    gradients: Any
    after: Any  # parameters
    state: Any  # of the optimizer, after the step


Gradient = Callable[[Any, Any], Any]  # (params, what a step is given) -> gradients


def train(
    optimizer: optax.GradientTransformation,
    params: Any,
    gradient: Gradient,
    given: Any,
    watch: Callable[[Taken], Any] = lambda step: None,
    steps: int | None = None,
) -> tuple[Any, Any]:
    """Takes one step for each slice of `given` in a scan.

    Args:
      optimizer: an Optax optimizer.
      params: the first parameters.
      gradient: (params, slice of `given`) -> gradients.
      given: a tree of arrays with a leading axis of steps, such as keys or batches; None with `steps`.
      watch: what to keep of each step.
      steps: how many, where nothing is given.

    Returns:
      The last parameters, and what was watched, with a leading axis of steps.
    """

    def step(carry: Any, slice_: Any) -> Any:
        params, state = carry
        gradients = gradient(params, slice_)
        updates, state = optimizer.update(gradients, state, params)
        new = optax.apply_updates(params, updates)
        return (new, state), watch(Taken(params, slice_, gradients, new, state))

    (params, _), watched = jax.lax.scan(step, (params, optimizer.init(params)), given, length=steps)
    return params, watched


def layers(seeds: int, *widths: int) -> Any:
    """Kernels with variance 1/fan-in and zero biases, each with a leading axis of seeds."""
    made: dict[str, dict[str, jax.Array]] = {}
    for i, (fan_in, width) in enumerate(itertools.pairwise(widths)):
        kernels = [np.random.default_rng([seed, i]).normal(size=(fan_in, width)) for seed in range(seeds)]
        made[f"layer_{i}"] = {
            "kernel": jnp.asarray(np.stack(kernels) / fan_in**0.5, float),
            "bias": jnp.zeros((seeds, width)),
        }
    return made


def batches(seeds: int, steps: int, batch: int, rows: int) -> jax.Array:
    """Indices of rows drawn with replacement, shape=(seeds, steps, batch)."""
    drawn = [np.random.default_rng([seed, 1000]).integers(rows, size=(steps, batch)) for seed in range(seeds)]
    return jnp.asarray(np.stack(drawn))


def relabelled(rows: jax.Array, y: jax.Array, share: float) -> jax.Array:
    """Labels of the rows, a share of them drawn anew each time: gradient noise that no network can fit."""
    random = np.random.default_rng(2000)
    drawn = random.integers(10, size=rows.shape, dtype=np.int32)
    return jnp.where(random.random(rows.shape) < share, drawn, y[rows])


def noisy_digits(share: float = 1 / 3, size: int | None = None) -> data.Split:
    """Scikit-learn's digits with a share of random training labels, so that a network overfits; test labels are true.

    Args:
      share: of the labels.
      size: how many training images; None is all 1347.

    Returns:
      x_train, x_test, y_train, y_test.
    """
    x, x_test, y, y_test = data.digits()
    random = np.random.default_rng(0)
    y = jnp.where(random.random(len(y)) < share, random.integers(10, size=len(y), dtype=np.int32), y)
    return x[:size], x_test, y[:size], y_test


def standardise(x: jax.Array) -> jax.Array:
    """Every unit with mean 0 and variance 1 over the batch: what comes before is scale-invariant, unit by unit."""
    x = x - x.mean(axis=0, keepdims=True)
    return x / jnp.sqrt((x**2).mean(axis=0, keepdims=True) + 1e-12)


def forward(
    params: Any, x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jax.nn.tanh, *, normalised: bool = False
) -> jax.Array:
    """(n, inputs) -> (n, outputs); with `normalised`, hidden units are standardised before the activation."""
    *hidden, last = params.values()
    for layer in hidden:
        x = x @ layer["kernel"] + layer["bias"][None]
        x = activation(standardise(x) if normalised else x)
    return x @ last["kernel"] + last["bias"][None]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Its mean over the batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def distance(a: Any, b: Any) -> jax.Array:
    """‖a − b‖/‖b‖ over all leaves."""
    return optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(b)
