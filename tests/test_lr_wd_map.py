"""The map of the AdamW paper: its networks, its optimizers, one point trained alone, and what it says of given maps."""

import functools
import pathlib
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray
from example_loading import flagged, load

import wd_optax as wd
from wd_optax.choosing.sweeping.result import SweepResult

pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]  # Optax's bias correction


@pytest.fixture(scope="module")
def example() -> Any:
    return load("lr_wd_map")


class Map(SweepResult):
    """A result whose separability, a bootstrap, is computed once."""

    __hash__ = object.__hash__
    separability = functools.cache(SweepResult.separability)


def made(example: Any, shape: Any) -> SweepResult:
    """A map of errors: shape(name, log10 of the factors of η and of λ)."""
    factors = np.logspace(-1.5, 1.5, 12), np.logspace(-2, 2, 12)
    η, λ = np.meshgrid(*map(np.log10, factors), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 0.01, (*η.shape, 3))
    errors = np.stack([5 + shape(name, η, λ)[..., None] + noise for name in example.OPTIMIZERS])
    names = ("optimizer", "learning_rate", "weight_decay", "seed")
    coords = dict(zip(names, (list(example.OPTIMIZERS), *factors, range(3)), strict=True))
    found = {"error": (names, errors), "diverged": (names, np.zeros(errors.shape, bool))}
    return Map(xarray.Dataset(found, coords, {"strategy": "made up"}))


@pytest.fixture(scope="module")
def claimed(example: Any) -> SweepResult:
    """L2 good along η·λ = const, decoupled decay round its best factors, 1 and 10."""
    ridge = lambda η, λ: (η + λ) ** 2 + 0.1 * η**2
    return made(example, lambda name, η, λ: ridge(η, λ) if "L2" in name else η**2 + (λ - 1) ** 2)


def test_dense_of_patches_is_a_convolution(example: Any) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    conv = nn.Conv(5, (3, 3), strides=2)
    params = conv.init(jax.random.key(1), x)["params"]
    flat = {"kernel": params["kernel"].reshape(-1, 5), "bias": params["bias"]}
    found = nn.Dense(5).apply({"params": flat}, example.patches(x))
    # Sums of 27 products in another order.
    np.testing.assert_allclose(found, conv.apply({"params": params}, x), atol=1e-5)


@pytest.mark.parametrize(("name", "matters"), [("mlp", True), ("cnn", False)])
def test_only_the_mlp_feels_the_size_of_its_first_kernel(example: Any, name: str, matters: bool) -> None:
    model, x = example.MODELS[name], example.data.digits(flat=False)[0][:16]
    params, apply = jax.jit(model.init)(jax.random.key(0), x)["params"], jax.jit(model.apply)
    larger = params | {"Dense_0": {**params["Dense_0"], "kernel": 3 * params["Dense_0"]["kernel"]}}
    before, after = (apply({"params": p}, x) for p in (params, larger))
    # GroupNorm's ε of 1e-6 is all that the size changes.
    assert (float(abs(after - before).max()) > 0.1) == matters
    assert matters or float(abs(after - before).max()) < 1e-3


@pytest.mark.parametrize("name", ["SGDW, lr", "SGDW, schedule", "AdamW, lr", "AdamW, schedule"])
def test_decay_is_multiplied_by_the_schedule_and_only_lr_by_the_learning_rate(example: Any, name: str) -> None:
    unit, params = example.OPTIMIZERS[name], {"kernel": jnp.ones((2, 2))}
    tx = example.make_optimizer({"optimizer": name, "learning_rate": 3.0, "weight_decay": 2.0}, 4)
    state, removed = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update(optax.tree.zeros_like(params), state, params)
        removed.append(-float(updates["kernel"][0, 0]))
    cosine = (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    η = 3 * unit.learning_rate if "lr" in name else 1
    np.testing.assert_allclose(removed, η * 2 * unit.weight_decay * cosine, rtol=1e-5)  # float32's cosine near its end


def test_l2_is_in_the_gradient(example: Any) -> None:
    params = {"kernel": jnp.ones((2, 2))}
    for name in ("SGD+L2", "Adam+L2"):
        unit = example.OPTIMIZERS[name]
        tx = example.make_optimizer({"optimizer": name, "learning_rate": 3.0, "weight_decay": 2.0}, 4)
        updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
        # Adam's first step is η whatever λ is; float32's 1 − β₂ is 1e-5 off.
        expected = 3 * unit.learning_rate * (1 if "Adam" in name else 2 * unit.weight_decay)
        np.testing.assert_allclose(updates["kernel"], -expected, rtol=1e-4)


def test_a_point_of_the_sweep_is_the_network_trained_alone(
    example: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    name = "AdamW, schedule"
    monkeypatch.setattr(example, "OPTIMIZERS", {name: example.OPTIMIZERS[name]})
    settings = {"points": 3, "seeds": 2, "epochs": 4, "directory": str(tmp_path)}
    result = example.run(model=["mlp"], **settings)["mlp"]
    assert dict(result.data.sizes) == {"optimizer": 1, "learning_rate": 3, "weight_decay": 3, "seed": 2}
    assert (tmp_path / "mlp").is_dir()
    xarray.testing.assert_identical(example.run(model=["mlp"], **settings)["mlp"].data, result.data)

    x, x_test, y, y_test = example.data.digits(flat=False, test_size=0.5)
    batches = example.data.batches(300, 50, epochs=4, seed=0).reshape(-1, 50)
    which, start = jax.random.split(jax.random.key(1))
    seen = jax.random.permutation(which, len(x))[:300]
    params = example.MLP().init(start, x[:1])["params"]
    tx = wd.adamw(
        optax.cosine_decay_schedule(5e-3, 24), weight_decay=5e-3, coupling="schedule", peak_learning_rate=5e-3
    )

    @jax.jit
    def step(params: Any, state: Any, rows: jax.Array) -> Any:
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(
            example.MLP().apply({"params": p}, x[seen[rows]]), y[seen[rows]]
        )
        updates, state = tx.update(jax.grad(lambda p: loss(p).mean())(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for rows in batches:
        params, state = step(params, state, rows)
    wrong = float((example.MLP().apply({"params": params}, x_test).argmax(axis=-1) != y_test).mean(dtype=jnp.float32))
    found = result.data["error"].sel(optimizer=name, seed=1).isel(learning_rate=1, weight_decay=1).item()
    # 24 steps part by rounding: at most two of 899 images on the edge may be read otherwise. λ matters more:
    assert found == pytest.approx(100 * wrong, abs=0.25)
    assert 5 < found < 40
    assert np.ptp(result.data["error"].isel(optimizer=0, seed=1, learning_rate=1).values) > 1


def test_the_report_says_that_the_claim_shows_where_it_does(example: Any, claimed: SweepResult) -> None:
    text = example.report({"cnn": claimed})
    for family in ("SGD", "Adam"):
        line = next(line for line in text.splitlines() if line.startswith(f"cnn, {family}: "))
        assert line.endswith(": the claim holds."), line
    found = example.separability(claimed)
    assert found["Adam+L2"][0] < -0.9  # the ridge
    assert abs(found["AdamW, schedule"][0]) < 0.1  # the circle, on a grid


def test_the_report_says_that_the_claim_does_not_show_where_it_does_not(example: Any) -> None:
    reverse = made(example, lambda name, η, λ: η**2 + λ**2 - 1.9 * η * λ * ("schedule" in name))
    lines = example.report({"mlp": reverse}).splitlines()
    assert sum(line.endswith(": the claim does not hold.") for line in lines) == 2
    both = "on the mlp with SGD the claim does not hold; on the mlp with Adam the claim does not hold."
    assert lines[-1] == f"Whether η and λ separate under the paper's decay: {both}"


def test_overlapping_intervals_are_said_to_overlap(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: [-0.1, -0.2, 0.2] for name in example.OPTIMIZERS} | {"Adam+L2": [-0.4, -0.6, -0.15]}
    monkeypatch.setattr(example, "separability", lambda result: found)
    result = lambda seeds: types.SimpleNamespace(data=types.SimpleNamespace(sizes={"seed": seeds}))
    assert example.claim(result(3), "Adam") == "as claimed, but the intervals overlap"
    assert example.claim(result(2), "Adam") == "no verdict from 2 seeds"


def test_the_table_gives_rates_and_not_factors(example: Any, claimed: SweepResult) -> None:
    row = next(line for line in example.table(claimed).splitlines() if line.startswith("AdamW, lr"))
    η, λ, alone = map(float, row.split()[-3:])
    # The best factors, 1 and 10, to half a cell of the grid: 10^0.14 and 10^0.19.
    assert η / 5e-3 == pytest.approx(1, rel=0.4)
    assert λ / 0.5 == pytest.approx(10, rel=0.6)
    assert alone == pytest.approx(5, abs=0.1)  # λ = 10 is best at every η


def test_main_audits_first_and_draws_every_optimizer_last(
    example: Any, claimed: SweepResult, tmp_path: pathlib.Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flagged("lr_wd_map", f"--out={tmp_path}", "--model=mlp", "--points=3") as module:
        asked: dict[str, Any] = {}
        monkeypatch.setattr(module, "run", lambda **settings: asked.update(settings) or {"mlp": claimed})
        monkeypatch.setattr(jax.config, "update", lambda *setting: None)  # devices are up already
        module.main([])
    lines = capsys.readouterr().out.splitlines()
    assert asked == {"model": ["mlp"], "points": 3, "seeds": 5, "epochs": 100, "directory": None}
    assert lines[0] == "mlp under AdamW, schedule, where both multiples are 1:"
    # λ = 0.005 times the mean of the cosine over the run, which is 1/2.
    (row,) = [line.split() for line in lines if line.startswith("Dense_0/kernel")]
    assert float(row[3]) == pytest.approx(0.0025, rel=0.02)
    assert lines[-1].endswith(f"Picture: {tmp_path / 'lr_wd_map_mlp.png'}")
    assert (tmp_path / "lr_wd_map_mlp.png").stat().st_size > 5000


def test_each_panel_names_its_optimizer_and_units(example: Any, claimed: SweepResult) -> None:
    drawn = example.plot({"cnn": claimed})["lr_wd_map_cnn"]
    *panels, _ = drawn.axes
    assert [axes.get_title().partition(": ρ")[0] for axes in panels] == list(example.OPTIMIZERS)
    drawn.draw_without_rendering()
    for axes, unit in zip(panels, example.OPTIMIZERS.values(), strict=True):
        η, λ = axes.child_axes
        assert (axes.get_xlabel(), η.get_xlabel(), λ.get_ylabel()) == ("", "learning rate η", "weight decay λ")
        np.testing.assert_allclose(η.get_xlim(), np.multiply(axes.get_xlim(), unit.learning_rate))
        np.testing.assert_allclose(λ.get_ylim(), np.multiply(axes.get_ylim(), unit.weight_decay))
    assert panels[0].get_ylim() == panels[5].get_ylim()
