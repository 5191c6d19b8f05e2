"""Takes ~15 s on a laptop CPU and prints whether decay helps or harms a policy gradient on CartPole.

REINFORCE: a Flax MLP balances Gymnasium's pole for at most 500 steps. After each batch of episodes, actions that were
followed by more reward than the average at that time become more likely. AdamW trains it at several λ, 0 among them.
Every episode is new, so there is nothing to over-fit: decay keeps the logits small and the policy random.

    python examples/reinforce.py                         # a table, and learning curves in out/reinforce.png
    python examples/reinforce.py --weight_decay=0.1      # 0 and this λ; --help lists the knobs
"""

import functools
import math
from typing import Any

import compare
import flax.linen as nn
import gymnasium
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray
from absl import app
from tqdm import tqdm

import wd_optax as wd


def optimizer(learning_rate: float, weight_decay: Any) -> optax.GradientTransformation:
    """AdamW."""
    return wd.adamw(learning_rate, weight_decay=weight_decay)  # S9: reinforcement learning


SETTING = compare.Setting(
    "reinforce",
    seeds=10,
    updates=(80, "Updates of each policy."),
    episodes=(16, "Episodes per update."),
    learning_rate=(1e-2, "η."),
    weight_decay=([0.1, 3.0], "λ, in addition to 0; may be repeated."),
)
LONGEST = 500  # steps of an episode


class Policy(nn.Module):
    """Position, velocity, angle, angular velocity (n, 4) → logits of pushing left and right (n, 2)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """One hidden layer."""
        x = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(2)(x)


def logits(params: Any, x: jax.Array) -> Any:
    """(n, 4) → (n, 2)."""
    return Policy().apply({"params": params}, x)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
def act(params: Any, x: jax.Array, key: jax.Array, t: int) -> jax.Array:
    """Samples actions (runs, episodes) from every run's policy at x (runs, episodes, 4)."""
    return jax.random.categorical(jax.random.fold_in(key, t), logits(params, x))


def play(envs: Any, params: Any, keys: jax.Array, seed: int) -> tuple[np.ndarray, ...]:
    """Plays an episode per environment: observations (runs, episodes, 500, 4), actions, and 1.0 while it runs."""
    shape = (len(keys), envs.num_envs // len(keys))
    x, actions = np.zeros((*shape, LONGEST, 4), np.float32), np.zeros((*shape, LONGEST), np.int32)
    running, alive = np.zeros((*shape, LONGEST), np.float32), np.ones(shape, bool)
    now, _ = envs.reset(seed=seed)
    for t in range(LONGEST):
        x[:, :, t], running[:, :, t] = now.reshape(*shape, 4), alive
        actions[:, :, t] = act(params, x[:, :, t], keys, t)
        now, _, ended, cut, _ = envs.step(actions[:, :, t].ravel())
        alive &= ~(ended | cut).reshape(shape)  # the episode that starts next is ignored
        if not alive.any():
            break
    return x, actions, running


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0, 0, 0))
def learn(
    learning_rate: float, weight_decay: Any, params: Any, opt_state: Any, x: Any, actions: Any, running: Any
) -> Any:
    """One step of every run along Σ log π(a|x)·advantage, the return-to-go minus its mean over episodes."""
    returns = jnp.cumsum(running[:, ::-1], axis=1)[:, ::-1]  # a reward of 1 for each step
    advantage = returns - returns.mean(axis=0, keepdims=True)
    advantage = advantage * running / jnp.sqrt((advantage**2 * running).sum() / running.sum() + 1e-8)

    def loss(params: Any) -> jax.Array:
        surprise = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), actions)
        return (surprise * advantage).sum() / running.sum()

    p = jax.nn.softmax(logits(params, x))
    entropy = (-(p * jnp.log2(p)).sum(axis=-1) * running).sum() / running.sum()
    updates, opt_state = optimizer(learning_rate, weight_decay).update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state, {"steps": returns[:, 0].mean(), "entropy": entropy}


def run(*, updates: int, episodes: int, seeds: int, learning_rate: float, weight_decay: list[float]) -> Any:
    """Steps balanced and entropy over the updates, and ‖w‖. Gymnasium steps on the host: all runs are one batch."""
    if episodes < 2:
        raise ValueError(f"episodes: at least 2, because returns are compared with their mean, got {episodes}")
    rates = [0.0, *weight_decay]
    each, keys = jnp.repeat(jnp.array(rates), seeds), jax.vmap(jax.random.key)(jnp.tile(jnp.arange(seeds), len(rates)))
    params = jax.vmap(lambda key: Policy().init(key, jnp.zeros((1, 4)))["params"])(keys)
    opt_state = jax.vmap(lambda p, rate: optimizer(learning_rate, rate).init(p))(params, each)
    envs, curves = gymnasium.make_vec("CartPole-v1", num_envs=len(each) * episodes), []
    for i in tqdm(range(updates), unit="update", disable=None):  # silent without a terminal
        played = play(envs, params, jax.vmap(jax.random.fold_in, (0, None))(keys, i), seed=i)
        params, opt_state, found = learn(learning_rate, each, params, opt_state, *played)
        curves.append(found)
    envs.close()
    dims, shape = ("weight_decay", "seed", "point"), (len(rates), seeds, updates)
    found = {key: (dims, np.stack([c[key] for c in curves], axis=1).reshape(shape)) for key in curves[0]}
    found["‖w‖"] = dims[:2], np.reshape(jax.vmap(wd.weight_norm)(params), shape[:2])
    return xarray.Dataset(found, {"weight_decay": rates})


def report(results: Any) -> str:
    """A line per λ, then its difference from λ = 0, over the last tenth of the updates."""
    late = results.isel(point=slice(-math.ceil(results.sizes["point"] / 10), None)).mean("point")
    verdicts = []
    for rate in late["weight_decay"].values[1:]:
        gap = (late["steps"].sel(weight_decay=rate) - late["steps"].isel(weight_decay=0)).values
        effect = ("helps" if gap.mean() > 0 else "harms") if intervals.clear(gap) else "neither helps nor harms"
        change = compare.change(late["steps"], "+.1f", weight_decay=rate)
        verdicts.append(f"λ = {rate:g} {effect}: {change}")
    return f"""Means over the last tenth of the updates; a policy that pushes at random has an entropy of 1 bit.
{compare.table(late, **{"steps": ".3g", "entropy": ".3g", "‖w‖": ".3g"})}

Steps balanced compared with λ = 0: {"; ".join(verdicts)}."""


def plot(results: Any) -> Any:
    """Steps balanced and entropy over the updates."""
    figure = compare.curves(
        results, "update", steps="steps balanced, of 500 at most", entropy="entropy of the policy, bits"
    )
    for panel in figure.axes:
        panel.set_ylim(0, None)
    return figure


def main(_: list[str]) -> None:
    """Prints which parameters decay, trains, then prints and plots the results."""
    start = lambda: Policy().init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    SETTING.show(lambda: wd.explain("weights", jax.eval_shape(start)), run, report, plot)


if __name__ == "__main__":
    app.run(main)
