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

import console
import flax.linen as nn
import gymnasium
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app, flags
from tqdm import tqdm

import wd_optax as wd

_UPDATES = flags.DEFINE_integer("updates", 80, "Updates of each policy.", lower_bound=1)
_EPISODES = flags.DEFINE_integer("episodes", 16, "Episodes per update.", lower_bound=2)
_SEEDS = flags.DEFINE_integer("seeds", 10, "Runs of each λ; the seed determines weights and actions.", lower_bound=2)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-2, "η.")
_WEIGHT_DECAY = flags.DEFINE_multi_float("weight_decay", [0.1, 3.0], "λ, in addition to 0; may be repeated.")
_OUT = flags.DEFINE_string("out", "out", "Folder for reinforce.png; created if missing.")

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


def optimizer(learning_rate: float, weight_decay: Any) -> optax.GradientTransformation:
    """AdamW."""
    return wd.adamw(learning_rate, weight_decay=weight_decay)  # S9: reinforcement learning


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
    return optax.apply_updates(params, updates), opt_state, {"return": returns[:, 0].mean(), "entropy": entropy}


def run(
    *, updates: int, episodes: int, seeds: int, learning_rate: float, weight_decays: list[float]
) -> dict[float, dict[str, np.ndarray]]:
    """Returns per λ mean steps balanced and entropy in bits (seeds, updates), ‖w‖ (seeds,). All runs are vmapped."""
    weight_decay, seed = jnp.repeat(jnp.array(weight_decays), seeds), jnp.tile(jnp.arange(seeds), len(weight_decays))
    keys = jax.vmap(jax.random.key)(seed)
    params = jax.vmap(lambda key: Policy().init(key, jnp.zeros((1, 4)))["params"])(keys)
    opt_state = jax.vmap(lambda p, weight_decay: optimizer(learning_rate, weight_decay).init(p))(params, weight_decay)
    envs, curves = gymnasium.make_vec("CartPole-v1", num_envs=len(weight_decay) * episodes), []
    for i in tqdm(range(updates), unit="update", disable=None):  # silent without a terminal
        played = play(envs, params, jax.vmap(jax.random.fold_in, (0, None))(keys, i), seed=i)
        params, opt_state, found = learn(learning_rate, weight_decay, params, opt_state, *played)
        curves.append(found)
    envs.close()
    norm = jax.vmap(wd.weight_norm)(params)
    arrays = {key: np.stack([c[key] for c in curves], axis=1) for key in curves[0]} | {"‖w‖": np.asarray(norm)}
    split = {key: np.split(a, len(weight_decays)) for key, a in arrays.items()}
    return {
        weight_decay: {key: parts[i] for key, parts in split.items()} for i, weight_decay in enumerate(weight_decays)
    }


def report(results: dict[float, dict[str, np.ndarray]]) -> str:
    """Formats a line per λ, then its differences from λ = 0, over the last tenth of the updates."""
    last = lambda a: a[:, -math.ceil(a.shape[1] / 10) :].mean(axis=1)
    late = {weight_decay: {key: last(r[key]) for key in ("return", "entropy")} for weight_decay, r in results.items()}
    lines = [f"{'λ':6}{'steps balanced':16}{'entropy, bits':16}‖w‖"]
    for weight_decay, r in late.items():
        columns = [intervals.mean(a, ".3g") for a in (r["return"], r["entropy"], results[weight_decay]["‖w‖"])]
        lines.append(f"{weight_decay:<6g}{columns[0]:16}{columns[1]:16}{columns[2]}")
    lines.append("")
    for weight_decay, r in list(late.items())[1:]:
        gap = r["return"] - late[0.0]["return"]
        sign = "helps" if gap.mean() > 0 else "harms"
        lines.append(
            f"λ = {weight_decay:g} {sign if intervals.clear(gap) else 'neither helps nor harms'}: "
            f"{intervals.mean(gap, '+.1f')} steps compared with λ = 0, {intervals.verdict(gap)}."
        )
    return "\n".join(lines)


def plot(results: dict[float, dict[str, np.ndarray]], folder: str) -> Any:
    """Plots steps balanced and entropy over the updates, mean and 95 % interval."""
    figure, panels = plots.figure(2)
    about = {"return": "steps balanced, of 500 at most", "entropy": "entropy of the policy (bits)"}
    for axes, (key, label) in zip(panels, about.items(), strict=True):
        for i, (weight_decay, r) in enumerate(results.items()):
            plots.band(axes, np.arange(1, r[key].shape[1] + 1), r[key], f"λ = {weight_decay:g}", plots.line(i))
        axes.set(xlabel="update", ylabel=label, ylim=(0, None))
    panels[0].set_title("bands: 95 % intervals")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return plots.save(figure, folder, "reinforce.png")


def main(argv: list[str]) -> None:
    """Prints which parameters decay, trains, then prints and plots the results."""
    del argv
    console.plain()
    learning_rate, rates = _LEARNING_RATE.value, [0.0, *_WEIGHT_DECAY.value]
    params = Policy().init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    print(wd.explain("weights", params), end="\n\n", flush=True)
    results = run(
        updates=_UPDATES.value,
        episodes=_EPISODES.value,
        seeds=_SEEDS.value,
        learning_rate=learning_rate,
        weight_decays=rates,
    )
    print(report(results))
    print(f"{_SEEDS.value} seeds ({intervals.MEANING}), η = {learning_rate:g}. Curves: {plot(results, _OUT.value)}")


if __name__ == "__main__":
    app.run(main)
