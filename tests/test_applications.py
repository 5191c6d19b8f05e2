"""The examples of the applications (images, language, a GAN, reinforcement learning) hold to their claims, in small."""

import pathlib
import re
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray
from example_loading import flagged, load
from flax import nnx
from pictures import count_pixels, read_picture

from wd_optax.masking import roles

# standard promotion for Optax's bias correction and Flax's attention mask
pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]

# Arguments of `run`, small, and the defaults that `main` must pass.
ARGUMENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cnn": (
        {"epochs": 9, "seeds": 2, "images": 64, "learning_rate": 1e-2, "weight_decay": 3.0, "widths": (4, 8)},
        {"epochs": 60, "seeds": 12, "images": 200, "learning_rate": 1e-2, "weight_decay": 3.0},
    ),
    "rnn": (
        {"epochs": 30, "seeds": 2, "learning_rate": 3e-2, "weight_decay": 1.0, "size": (32, 4000)},
        {"epochs": 40, "seeds": 4, "learning_rate": 3e-3, "weight_decay": 0.5},
    ),
    "transformer": (
        {"epochs": 25, "seeds": 2, "learning_rate": 2e-2, "weight_decay": [3.0], "size": (16, 2000)},
        {"epochs": 30, "seeds": 5, "learning_rate": 3e-3, "weight_decay": [0.03, 0.3, 3.0, 30.0]},
    ),
    "gan": (
        {"steps": 150, "seeds": 2, "learning_rate": 1e-3, "weight_decay": [3.0], "width": 16},
        {"steps": 4000, "seeds": 4, "learning_rate": 1e-3, "weight_decay": [1.0, 30.0]},
    ),
    "reinforce": (
        {"updates": 12, "episodes": 8, "seeds": 2, "learning_rate": 1e-2, "weight_decay": [3.0]},
        {"updates": 80, "episodes": 16, "seeds": 10, "learning_rate": 1e-2, "weight_decay": [0.1, 3.0]},
    ),
}


@pytest.fixture(scope="module", params=ARGUMENTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def example(name: str) -> Any:
    return load(name)


@pytest.fixture(scope="module")
def results(name: str, example: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return example.run(**ARGUMENTS[name][0])


def only(*names: str) -> Any:
    """The test is for these examples: their fixtures, made once, without the others'."""
    return pytest.mark.parametrize("name", names, indirect=True, scope="module")


def pair(results: Any) -> tuple[Any, Any]:
    """The runs without decay and the first that decay; arrays (seed, ...)."""
    axis = results["‖w‖"].dims[0]
    assert axis in ("kind", "weight_decay")
    return results.isel({axis: 0}), results.isel({axis: 1})


def norm(runs: Any) -> Any:
    """‖w‖ of each seed at the end."""
    return runs["‖w‖"].values.reshape(2, -1)[:, -1]


@pytest.mark.parametrize("name", ARGUMENTS, indirect=True, scope="module")
def test_decay_makes_weights_smaller_in_every_seed(name: str, results: Any) -> None:
    without, with_ = map(norm, pair(results))
    # Measured 0.37 to 0.77; seeds differ by 0.02.
    assert (with_ < 0.85 * without).all()


@pytest.mark.parametrize("name", ARGUMENTS, indirect=True, scope="module")
def test_seeds_are_different_runs(name: str, results: Any) -> None:
    first, second = norm(pair(results)[0])
    assert first != second


@pytest.mark.parametrize("name", ARGUMENTS, indirect=True, scope="module")
def test_main_says_what_decays_trains_as_asked_reports_and_draws(
    name: str,
    results: Any,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "made" / f"{name}.png"
    with flagged(name, f"--out={picture.parent}") as module:
        asked: dict[str, Any] = {}
        monkeypatch.setattr(module, "run", lambda **options: asked.update(options) or results)
        monkeypatch.setattr(jax.config, "update", lambda *setting: None)  # devices are up already
        module.main([])
        reported = module.report(results)
    assert asked == ARGUMENTS[name][1]
    printed = capsys.readouterr().out
    assert re.match(r"path +(type|shape) +role ", printed)
    assert re.search(r"^\d+ of \d+ leaves decay", printed, re.M)
    assert reported in printed
    assert printed.rstrip().endswith(str(picture))

    for colour in ("#0072B2", "#D55E00"):  # the lines without decay and with
        assert count_pixels(read_picture(picture), colour, within=16) > 50
    assert 10_000 < picture.stat().st_size < 400_000


@pytest.mark.parametrize("name", ["rnn", "transformer"], indirect=True, scope="module")
def test_language_models_overfit_and_decay_lowers_their_validation_loss(name: str, results: Any) -> None:
    without, with_ = ({key: r[key].values for key in ("training", "validation")} for r in pair(results))
    assert (without["training"][:, -1] < 0.5 * without["training"][:, 0]).all()
    # On so little text the validation loss rises again, by 0.56 to 0.77, and decay takes 0.80 to 0.99 off.
    assert (without["validation"][:, -1] > without["validation"].min(axis=1) + 0.1).all()
    assert (with_["validation"][:, -1] < without["validation"][:, -1] - 0.2).all()
    assert (with_["training"][:, -1] > without["training"][:, -1]).all()


@only("rnn")
def test_rnn_rule_spares_embedding_rows_that_nothing_trains(example: Any, results: Any) -> None:
    unseen, remaining = results["unseen"], results.attrs["remaining"]
    # Two norms of the same rows, in float32.
    np.testing.assert_allclose(unseen.sel(kind=["no decay", "weights decay"]), 1, rtol=1e-6)
    assert 0.01 < remaining < 0.5
    # 120 roundings of half an ulp (6e-8) at most each.
    np.testing.assert_allclose(unseen.sel(kind="and the embedding"), remaining, rtol=120 * 6e-8)


@only("rnn")
@pytest.mark.parametrize("embedding", [0.0, 1.0])
def test_rnn_zero_gradient_step_decays_what_the_rule_says(example: Any, embedding: float) -> None:
    left = after_zero_gradient(example.optimizer(0.1, 0.5, embedding), example.shapes(8)[1])
    for path, values in left.items():
        kept = 1 - 0.05 * (embedding if "embed" in path else float(path.endswith("kernel")))
        np.testing.assert_allclose(values, kept, rtol=1e-6, err_msg=path)  # one rounding or two in float32


@only("transformer")
def test_transformer_zero_gradient_step_decays_what_the_rules_say(example: Any) -> None:
    left, stacked = after_zero_gradient(example.optimizer(0.1, 0.5), example.shapes(8)[1]), 0
    for path, values in left.items():
        rate = {"positions": 0.0, "tokens": 0.5}.get(path.split("/")[0], float(path.endswith("kernel")))
        np.testing.assert_allclose(values, 1 - 0.05 * rate, rtol=1e-6, err_msg=path)
        stacked += path.startswith("blocks") and not rate and values.ndim > 1
    assert stacked == 10  # biases and scales of rank 2 and 3


@only("transformer")
def test_transformer_reports_the_test_loss_of_the_best_rate_on_validation(example: Any, results: Any) -> None:
    report = example.report(results)
    without, with_ = (results["test"].sel(weight_decay=k).isel(point=-1) for k in (0.0, 3.0))
    change = f"{(with_ - without).mean().item():+.3f}"
    assert f"λ = 3, the best on validation, changes the test loss by {change}" in report.splitlines()[-1]
    assert (results["validation"] != results["test"]).all()


@only("transformer")
def test_transformer_is_causal(example: Any) -> None:
    x = jax.random.randint(jax.random.key(0), (1, example.LENGTH), 0, example.CHARACTERS)
    graph, shapes = example.shapes(8)
    params = jax.tree.map(lambda p: np.sin(np.arange(p.size, dtype=np.float32)).reshape(p.shape), shapes)
    forward = jax.jit(lambda params, x: nnx.merge(graph, params)(x))
    logits = lambda x: forward(params, x)
    changed = np.flatnonzero(abs(logits(x) - logits(x.at[0, 20].set((x[0, 20] + 1) % 128)))[0].max(axis=-1) > 1e-6)
    assert changed[0] == 20


@pytest.fixture(scope="module")
def cnn_start(example: Any) -> tuple[Any, Any]:
    """A small model and its variables."""
    model = example.CNN((4, 8))
    return model, jax.jit(model.init, static_argnums=2)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), False)


@only("cnn")
def test_cnn_norms_keep_every_bit_in_a_step_of_decay(example: Any, cnn_start: Any) -> None:
    left = after_zero_gradient(example.optimizer(0.1, 0.25, 10), cnn_start[1]["params"])
    assert [path for path in left if "BatchNorm" in path] == [
        f"BatchNorm_{i}/{leaf}" for i in range(2) for leaf in ("bias", "scale")
    ]
    for path, values in left.items():
        if path.endswith("kernel"):
            np.testing.assert_allclose(values, 1 - 0.1 * 0.25, rtol=1e-6)  # the cosine begins at its peak
        else:
            np.testing.assert_array_equal(values, 1, err_msg=path)


@only("cnn")
def test_cnn_batchnorm_divides_the_size_of_kernels_out(example: Any, cnn_start: Any) -> None:
    model, variables = cnn_start
    x, y = jax.random.uniform(jax.random.key(1), (32, 8, 8, 1)), jnp.zeros(32, jnp.int32)
    loss = jax.jit(lambda params: example.loss_fn(model, params, variables["batch_stats"], x, y)[0])
    params = variables["params"]
    larger = {k: jax.tree.map(lambda p: 3 * p, v) if "Conv" in k else v for k, v in params.items()}
    # BatchNorm's ε, 1e-5 beside variances of about 0.05, is what is left of the size.
    np.testing.assert_allclose(loss(larger), loss(params), rtol=1e-3)
    assert abs(loss(jax.tree.map(lambda p: 3 * p, params)) - loss(params)) > 0.1


@only("cnn")
def test_cnn_shifts_images_by_a_pixel_and_zeros_come_in(example: Any) -> None:
    images = jax.random.uniform(jax.random.key(0), (200, 8, 8, 1), minval=0.1)
    np.testing.assert_array_equal(example.shifted(jax.random.key(1), images, 0), images)
    moved = np.asarray(example.shifted(jax.random.key(1), images, 1))
    padded, seen = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))), set()
    for before, after in zip(padded, moved, strict=True):
        ways = [(i, j) for i in range(3) for j in range(3) if (before[i : i + 8, j : j + 8] == after).all()]
        assert len(ways) == 1
        seen.update(ways)
    assert len(seen) == 9


@only("cnn")
def test_cnn_compares_each_run_at_the_epoch_of_its_lowest_validation_loss(example: Any, results: Any) -> None:
    losses, accuracy = np.ones((4, 2, 9)), np.zeros((4, 2, 9))
    for (kind, seed), epoch in zip(np.ndindex(4, 2), (2, 4, 6, 8, 1, 3, 5, 0), strict=True):
        losses[kind, seed, epoch], accuracy[kind, seed, epoch] = 0.5, 10 * kind + seed**2 * (kind == 1)
    dims = ("kind", "seed", "point")
    made = results.assign({"validation": (dims, losses), "accuracy, %": (dims, accuracy)})
    np.testing.assert_array_equal(example.gain(made, "decay", "neither"), [10, 11])
    np.testing.assert_array_equal(example.gain(made, "both", "augmentation"), [10, 10])
    row = next(line.split() for line in example.report(made).splitlines() if line.startswith("decay"))
    assert row[1:6] + row[7:8] == ["10.5", "±", "6.4", "0.500", "±", "8"]  # epochs 7 and 9; t = 12.7, 12.7·0.5


@only("cnn")
def test_cnn_learns_in_every_kind_of_run(results: Any) -> None:
    assert results["kind"].values.tolist() == ["neither", "decay", "augmentation", "both"]
    assert results["point"].values.tolist() == list(range(1, 10))
    assert (results["training"].isel(point=-1) < results["training"].isel(point=0)).all()
    assert (results["turned"] > 0).all()


@only("gan")
def test_gan_discriminator_decays_and_samples_come_nearer_to_digits(example: Any, results: Any) -> None:
    samples, distance = results["samples"].values, results["distance"]
    assert samples.shape == (2, 2, 36, 64)
    assert ((samples > 0) & (samples < 1)).all()
    assert (distance.isel(point=-1) < 0.7 * distance.isel(point=0)).all()  # measured 0.40 to 0.43
    assert np.isfinite(results["gap"]).all()
    assert results.attrs["floor"] < 0.1 * distance.min()


@only("gan")
def test_gan_distance_is_that_of_gaussians(example: Any) -> None:
    x = jax.random.normal(jax.random.key(0), (50, 4)) * jnp.array([[1.0, 2.0, 3.0, 0.0]])
    variance = jnp.trace(jnp.cov(x, rowvar=False))
    # In float32 the square roots of zero eigenvalues leave some 1e-3.
    np.testing.assert_allclose(example.frechet(x, x), 0, atol=1e-2)
    np.testing.assert_allclose(example.frechet(x, x + 2), 4 * 2**2, rtol=1e-3)
    centred = x - x.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(example.frechet(centred, 3 * centred), (3 - 1) ** 2 * variance, rtol=1e-3)


@only("reinforce")
def test_reinforce_learns_to_balance(results: Any) -> None:
    # Measured: from 17 and 23 steps to 56 and 72.
    steps, entropy = results["steps"], results["entropy"]
    assert (steps[0, :, -3:].mean("point") > 2 * steps[0, :, 0]).all()
    assert steps.shape == entropy.shape == (2, 2, 12)
    assert ((entropy > 0) & (entropy <= 1)).all()


@only("reinforce")
def test_reinforce_counts_the_steps_until_the_pole_fell(example: Any) -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.vmap(lambda key: example.Policy().init(key, jnp.zeros((1, 4)))["params"])(keys)
    envs = gymnasium.make_vec("CartPole-v1", num_envs=6)
    x, actions, running = example.play(envs, params, keys, seed=7)
    assert x.shape == (2, 3, 500, 4)
    lengths = running.sum(axis=-1)
    np.testing.assert_array_equal(running, np.arange(500)[None, None] < lengths[..., None])
    fell = np.zeros((2, 3))
    seen, _ = envs.reset(seed=7)
    for t in range(int(lengths.max())):
        now = (np.arange(2)[:, None], np.arange(3)[None], t)
        np.testing.assert_array_equal(seen.reshape(2, 3, 4)[fell == 0], x[now][fell == 0])
        seen, _, ended, _, _ = envs.step(actions[now].ravel())
        fell = np.where((fell == 0) & ended.reshape(2, 3), t + 1, fell)
    np.testing.assert_array_equal(fell, lengths)
    assert (actions[0][..., :5] != actions[1][..., :5]).any()  # seeds draw apart


@only("reinforce")
def test_reinforce_makes_actions_likelier_that_lasted_longer(example: Any) -> None:
    x = jnp.ones((1, 2, 500, 4))
    actions = jnp.zeros((1, 2, 500), jnp.int32).at[0, 1].set(1)
    running = (jnp.arange(500)[None, None] < jnp.array([10, 40])[None, :, None]).astype(jnp.float32)
    params = jax.tree.map(lambda p: p[None], example.Policy().init(jax.random.key(0), x[0, 0])["params"])
    rates = jnp.zeros(1)
    opt_state = jax.vmap(lambda p, λ: example.optimizer(0.01, λ).init(p))(params, rates)
    after, _, found = example.learn(0.01, rates, params, opt_state, x, actions, running)
    odds = lambda params: jnp.diff(example.logits(jax.tree.map(lambda p: p[0], params), x[0, 0, :1]))
    assert odds(after) > odds(params)
    assert found["steps"] == 25


@pytest.mark.parametrize(
    ("gap", "seeds", "verdict"),
    [
        (1.0, 3, "helps: +1.1 ± 0.2, significant at 5 %"),
        (-1.0, 3, "harms: -0.9 ± 0.2, significant at 5 %"),
        (0.0, 3, "neither helps nor harms: +0.1 ± 0.2, not significant at 5 %"),
        (1.0, 2, "neither helps nor harms: +1.1 ± 0.6, no verdict from 2 seeds"),
    ],
)
@only("reinforce")
def test_reinforce_says_what_the_numbers_carry(example: Any, gap: float, seeds: int, verdict: str) -> None:
    base, gaps = np.array([[100.0], [101.0], [99.0]])[:seeds], gap + np.array([[0.05], [0.15], [0.1]])[:seeds]
    if seeds == 3:  # a standard deviation of 0.05·√3, whose interval is 4.30·0.05
        gaps = gap + np.array([[0.1 - 0.05 * 1.5**0.5 * 2**0.5], [0.1 + 0.05 * 1.5**0.5 * 2**0.5], [0.1]])
    dims = ("weight_decay", "seed", "point")
    made = {"steps": (dims, np.stack([base, base + gaps])), "entropy": (dims, np.ones((2, seeds, 1)))}
    made["‖w‖"] = dims[:2], np.tile(np.arange(1.0 * seeds), (2, 1))
    assert example.report(xarray.Dataset(made, {"weight_decay": [0.0, 0.5]})).endswith(f"λ = 0.5 {verdict}.")


def after_zero_gradient(tx: Any, params: Any, opt_state: Any = None) -> dict[str, jax.Array]:
    """By path, what a step with zero gradients leaves of parameters of ones, biases and scales too."""
    ones = jax.tree.map(lambda p: jnp.ones(p.shape), params)
    state = tx.init(ones) if opt_state is None else opt_state
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, ones), state, ones)
    return dict(roles.flatten(optax.apply_updates(ones, updates))[0])
