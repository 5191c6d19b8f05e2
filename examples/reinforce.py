"""Takes ~15 s on a laptop CPU and prints whether decay helps or harms a policy gradient on CartPole.

REINFORCE: a Flax MLP balances Gymnasium's pole for as many of 500 steps as it can; after each batch of episodes it
makes those actions likelier that were followed by more reward than usual at that time. AdamW trains it at several λ,
0 among them. Every episode is new, so that there is nothing to over-fit: what decay does is to keep logits small, and
the policy random.

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
_SEEDS = flags.DEFINE_integer("seeds", 10, "Runs of each λ; a seed gives weights and actions.", lower_bound=2)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-2, "η.")
_WEIGHT_DECAY = flags.DEFINE_multi_float("weight_decay", [0.1, 3.0], "λ beside 0; may be repeated.")
_OUT = flags.DEFINE_string("out", "out", "Folder for reinforce.png; made if it isn't there.")

LONGEST = 500  # steps of an episode


class Policy(nn.Module):
    """Position, speed, angle, its speed (n, 4) → logits of pushing left and right (n, 2)."""

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
    """Actions (runs, episodes) drawn from every run's policy at x (runs, episodes, 4)."""
    return jax.random.categorical(jax.random.fold_in(key, t), logits(params, x))


def play(envs: Any, params: Any, keys: jax.Array, seed: int) -> tuple[np.ndarray, ...]:
    """An episode of each environment: observations (runs, episodes, 500, 4), actions, 1.0 while it ran, then 0.0."""
    shape = (len(keys), envs.num_envs // len(keys))
    x, actions = np.zeros((*shape, LONGEST, 4), np.float32), np.zeros((*shape, LONGEST), np.int32)
    running, alive = np.zeros((*shape, LONGEST), np.float32), np.ones(shape, bool)
    now, _ = envs.reset(seed=seed)
    for t in range(LONGEST):
        x[:, :, t], running[:, :, t] = now.reshape(*shape, 4), alive
        actions[:, :, t] = act(params, x[:, :, t], keys, t)
        now, _, ended, cut, _ = envs.step(actions[:, :, t].ravel())
        alive &= ~(ended | cut).reshape(shape)  # the episode that begins then isn't used
        if not alive.any():
            break
    return x, actions, running


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0, 0, 0))
def learn(learning_rate: float, λ: Any, params: Any, opt_state: Any, x: Any, actions: Any, running: Any) -> Any:
    """Every run's parameters after a step along Σ log π(a|x)·(return from there on less its mean at that time)."""
    returns = jnp.cumsum(running[:, ::-1], axis=1)[:, ::-1]  # a reward of 1 for each step
    advantage = returns - returns.mean(axis=0, keepdims=True)
    advantage = advantage * running / jnp.sqrt((advantage**2 * running).sum() / running.sum() + 1e-8)

    def loss(params: Any) -> jax.Array:
        surprise = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), actions)
        return (surprise * advantage).sum() / running.sum()

    p = jax.nn.softmax(logits(params, x))
    entropy = (-(p * jnp.log2(p)).sum(axis=-1) * running).sum() / running.sum()
    updates, opt_state = optimizer(learning_rate, λ).update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state, {"return": returns[:, 0].mean(), "entropy": entropy}


def run(
    *, updates: int, episodes: int, seeds: int, learning_rate: float, weight_decays: list[float]
) -> dict[float, dict[str, np.ndarray]]:
    """Per λ: mean steps balanced and entropy in bits (seeds, updates), ‖w‖ (seeds,). All runs play side by side."""
    λ, seed = jnp.repeat(jnp.array(weight_decays), seeds), jnp.tile(jnp.arange(seeds), len(weight_decays))
    keys = jax.vmap(jax.random.key)(seed)
    params = jax.vmap(lambda key: Policy().init(key, jnp.zeros((1, 4)))["params"])(keys)
    opt_state = jax.vmap(lambda p, λ: optimizer(learning_rate, λ).init(p))(params, λ)
    envs, curves = gymnasium.make_vec("CartPole-v1", num_envs=len(λ) * episodes), []
    for i in tqdm(range(updates), unit="update", disable=None):  # silent without a terminal
        played = play(envs, params, jax.vmap(jax.random.fold_in, (0, None))(keys, i), seed=i)
        params, opt_state, found = learn(learning_rate, λ, params, opt_state, *played)
        curves.append(found)
    envs.close()
    norm = jax.vmap(lambda p: jnp.sqrt(wd.l2_penalty(p, 1.0, "weights", half=False)))(params)
    arrays = {key: np.stack([c[key] for c in curves], axis=1) for key in curves[0]} | {"‖w‖": np.asarray(norm)}
    split = {key: np.split(a, len(weight_decays)) for key, a in arrays.items()}
    return {λ: {key: parts[i] for key, parts in split.items()} for i, λ in enumerate(weight_decays)}


def report(results: dict[float, dict[str, np.ndarray]]) -> str:
    """A line per λ, then what it changed; over the last tenth of the updates."""
    last = lambda a: a[:, -math.ceil(a.shape[1] / 10) :].mean(axis=1)
    late = {λ: {key: last(r[key]) for key in ("return", "entropy")} for λ, r in results.items()}
    lines = [f"{'λ':6}{'steps balanced':16}{'entropy, bits':16}‖w‖"]
    for λ, r in late.items():
        columns = [intervals.mean(a, ".3g") for a in (r["return"], r["entropy"], results[λ]["‖w‖"])]
        lines.append(f"{λ:<6g}{columns[0]:16}{columns[1]:16}{columns[2]}")
    lines.append("")
    for λ, r in list(late.items())[1:]:
        gap = r["return"] - late[0.0]["return"]
        sign = "helps" if gap.mean() > 0 else "harms"
        lines.append(
            f"λ = {λ:g} {sign if intervals.clear(gap) else 'neither helps nor harms'}: "
            f"{intervals.mean(gap, '+.1f')} steps against none, {intervals.verdict(gap)}."
        )
    return "\n".join(lines)


def plot(results: dict[float, dict[str, np.ndarray]], folder: str) -> Any:
    """Steps balanced and entropy over the updates, mean and 95 % interval."""
    figure, panels = plots.figure(2)
    about = {"return": "steps balanced, of 500 at most", "entropy": "entropy of the policy (bits)"}
    for axes, (key, label) in zip(panels, about.items(), strict=True):
        for i, (λ, r) in enumerate(results.items()):
            plots.band(axes, np.arange(1, r[key].shape[1] + 1), r[key], f"λ = {λ:g}", plots.line(i))
        axes.set(xlabel="update", ylabel=label, ylim=(0, None))
    panels[0].set_title("bands: 95 % intervals")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return plots.save(figure, folder, "reinforce.png")


def main(argv: list[str]) -> None:
    """Prints what decays, trains, then prints and plots what came of it."""
    del argv
    console.plain()
    η, rates = _LEARNING_RATE.value, [0.0, *_WEIGHT_DECAY.value]
    params = Policy().init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    print(wd.explain("weights", params), end="\n\n", flush=True)
    results = run(
        updates=_UPDATES.value, episodes=_EPISODES.value, seeds=_SEEDS.value, learning_rate=η, weight_decays=rates
    )
    print(report(results))
    print(f"{_SEEDS.value} seeds ({intervals.MEANING}), η = {η:g}. Curves: {plot(results, _OUT.value)}")


if __name__ == "__main__":
    app.run(main)
