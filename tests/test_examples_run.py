"""What the examples claim holds at few steps, and each prints, draws and ends as it says."""

import inspect
import re
from typing import Any

import jax
import numpy as np
import pytest
from example_loading import flagged, load
from pictures import count_pixels, read_picture
from test_example_data import write_mnist

pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]  # Optax's Adam

SHORT: dict[str, dict[str, Any]] = {
    "linear_regression": {"learning_rate": 0.1, "weight_decay": 0.1, "steps": 2000},
    "ema_momentum_rmsprop_adam": {"learning_rate": 0.02, "steps": 60},
    "learning_rate_schedules": {"learning_rate": 0.03, "tuned_at": 0.1, "weight_decay": 0.03, "steps": 400},
    "classifier_784": {"learning_rate": 0.01, "dropout": 0.5, "images": 64, "epochs": 60, "seeds": 2},
    "finetune_anchor": {"steps": 100, "epochs": 10, "learning_rate": 1e-3, "seeds": 2},
}
ENDS: dict[str, list[str]] = {  # per example, patterns that the last lines match, in order
    "linear_regression": [
        r"L1's proximal step makes it 0 in step 10\d;",
        "decay overshoots most, proximal least",
        r"follow the formula to \de-0[78], and reach ridge's solution to \de-0[67]; ",
        r"makes 3\d exact zeros, its gradient 0\.",
    ],
    "ema_momentum_rmsprop_adam": [
        r"Adam's first step is 1\.000·η; without bias correction 3\.162·η",
        r"take one path, to \de-06\.\n",
    ],
    "learning_rate_schedules": [
        r"The bound is .* = 3\.162, not 1",
        r"left a final loss of 1\.0 times the lowest, one that doesn't \(constant\) \d",
    ],
    "classifier_784": [
        r"differ by \S+ in training, by 0 in evaluation",
        r"With no dropout .* and λ = 1 leaves an accuracy of \d+%\.",
    ],
    "finetune_anchor": [
        r"20°, 20 images, anchor pre-trained, λ = \S+ against 0: test loss",
        r"At λ = 10 \(20°, 20 images\) the pre-trained anchor in place of zero changes the accuracy on upright ",
    ],
}


@pytest.fixture(scope="module", params=SHORT)
def shown(request: pytest.FixtureRequest) -> Any:
    """An example and what its short run gave; pytest runs the tests of one example after another."""
    example = load(request.param)
    with jax.numpy_dtype_promotion("standard"):
        return example, example.run(**SHORT[request.param])


def of(name: str) -> Any:
    """A test of one example."""
    return pytest.mark.parametrize("shown", [name], indirect=True)


def test_main_audits_first_and_ends_with_what_was_shown(shown, tmp_path, monkeypatch, capsys) -> None:
    name, results = shown[0].__name__, shown[1]
    with flagged(name, f"--out={tmp_path / 'made'}") as example:
        asked: dict[str, Any] = {}
        real = inspect.signature(example.run)
        monkeypatch.setattr(example, "run", lambda **options: asked.update(options) or results)
        monkeypatch.setattr(jax.config, "update", lambda *setting: None)  # devices are up already
        example.main([])
    real.bind(**asked)
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"path +type +role +removed +half-life", line) for line in lines[:2])
    picture = tmp_path / "made" / f"{name}.png"
    assert lines[-1].endswith(f"Picture: {picture}")
    tail = "\n".join(lines[len(lines) // 2 :])
    places = [re.search(pattern, tail) for pattern in ENDS[name]]
    assert all(places), tail
    assert [place.start() for place in places] == sorted(place.start() for place in places)

    assert 10_000 < picture.stat().st_size < 400_000
    for colour in ("#0072B2", "#D55E00"):  # the first two lines
        assert count_pixels(read_picture(picture), colour, within=16) > 100, colour


# --- linear_regression -----------------------------------------------------------------------------------------------


@of("linear_regression")
def test_linear_model_follows_the_hand_formula_in_every_form(shown) -> None:
    hand = dict(shown[1]["by hand"])
    formula = hand.pop("formula")
    for name, run in hand.items():
        np.testing.assert_allclose(run, formula, rtol=1e-5, err_msg=name)  # 50 steps of rounding in float32


@of("linear_regression")
def test_linear_model_loses_weight_and_no_bias(shown) -> None:
    x = np.array([[-1.0], [1.0]], np.float32)  # mean 0, variance 1: (w − 2)² + λ/2·w² is least at 2/(1 + λ/2)
    decayed, free = (shown[0].by_hand(x, 3 + 2 * x[:, 0], 0.1, λ, 100)["sgdw"] for λ in (0.1, 0.0))
    np.testing.assert_allclose([decayed[-1, 0], free[-1, 0]], [2 / 1.05, 2], rtol=1e-5)  # float32
    np.testing.assert_allclose(decayed[:, 1], free[:, 1], rtol=1e-6)


@of("linear_regression")
def test_ridge_reaches_the_closed_form(shown) -> None:
    r = shown[1]["ridge"]
    size = np.linalg.norm(r["closed form"])
    assert np.linalg.norm(r["ridge"] - r["closed form"]) < 1e-5 * size  # float32
    assert np.linalg.norm(r["none"] - r["closed form"]) > 0.1 * size


@of("linear_regression")
def test_l1_makes_zeros_by_its_proximal_step_alone(shown) -> None:
    r = shown[1]["sparse"]
    np.testing.assert_array_equal(r["proximal"] == 0, r["Lasso"] == 0)
    np.testing.assert_allclose(r["proximal"], r["Lasso"], atol=1e-5)  # scikit-learn's own solver, to its tolerance
    assert (r["proximal"] == 0).sum() >= 30
    assert (r["gradient"] != 0).all()


@of("linear_regression")
def test_forgetting_is_exponential_for_l2_and_ends_for_l1(shown) -> None:
    r = shown[1]["forgetting"]
    np.testing.assert_allclose(r["L2"], 0.99 ** np.arange(1, 121), rtol=1e-5)  # 120 roundings in float32
    assert r["L2"][99] == pytest.approx(0.366, abs=5e-5)
    assert r["L1"][98] > 0  # 1 − 99·0.01, and 0.01 isn't a float32
    assert (r["L1"][101:] == 0).all()


@of("linear_regression")
def test_decay_is_friction_under_momentum_and_not_without(shown) -> None:
    example, r = shown[0], shown[1]["friction"]
    μ, c = example.MOMENTUM, example.FRICTION
    found = [example.damping(r[name]) for name in ("none", "L2", "decay")]
    np.testing.assert_allclose(found, [μ**0.5, μ**0.5, (μ * (1 - c)) ** 0.5], rtol=1e-5)  # float32
    factors = [r[f"steep, {name}"][1] / r[f"steep, {name}"][0] for name in ("none", "decay", "proximal")]
    np.testing.assert_allclose(factors, [-0.5, -0.5 - c, -0.5 / (1 + c)], rtol=1e-5)


# --- ema_momentum_rmsprop_adam ---------------------------------------------------------------------------------------


@of("ema_momentum_rmsprop_adam")
def test_every_formula_is_the_optax_call_beside_it(shown) -> None:
    r = shown[1]
    assert len(r["formula"]) == 8
    for name, path in r["formula"].items():
        # float32 against float64; Adam's 1 − β₂ᵗ cancels, which costs it a digit. Measured 4e-6 at most.
        np.testing.assert_allclose(r["optax"][name], path, atol=2e-5, err_msg=name)


@of("ema_momentum_rmsprop_adam")
def test_variants_of_a_method_differ_as_printed(shown) -> None:
    example, r = shown
    gaps = [example.distance(r["formula"][a], r["formula"][b]) for a, b in example.VARIANTS]
    assert gaps[0] < 1e-15  # two notations of one average
    assert min(gaps[1], gaps[2], gaps[4]) > 0.1
    assert 1e-5 < gaps[3] < 1e-2  # where ε stands
    np.testing.assert_allclose(r["slower"], r["formula"][example.NAMES[0]], atol=1e-5)
    first = {name: np.abs(path[1] - path[0]).max() / r["η"] for name, path in r["optax"].items()}
    assert first["Adam"] == pytest.approx(1, rel=1e-5)
    assert first["Adam uncorrected"] == pytest.approx(0.1 / 0.001**0.5, rel=1e-4)


@of("ema_momentum_rmsprop_adam")
def test_chains_by_hand_are_the_named_optimizers_and_only_y_decays(shown) -> None:
    example, r = shown
    for name, (chain, named) in r["by hand"].items():
        assert example.distance(chain, named) < 1e-6, name  # float32: η·(u + λ·y), or η·u + (η·λ)·y
    adam = r["optax"]["Adam"]
    (l2, _), (adamw, _) = r["by hand"]["Adam with L2"], r["by hand"]["AdamW"]
    for path in (l2, adamw):
        np.testing.assert_allclose(path[:, 0], adam[:, 0], atol=1e-6)  # the mask excludes x
    # λ·y is a 200th of the gradient 20·y, so that L2 hardly changes Adam's direction; decay removes λ·η per step.
    assert abs(l2[:, 1] - adam[:, 1]).max() < 0.003 < abs(adamw[:, 1] - adam[:, 1]).max()


# --- learning_rate_schedules -----------------------------------------------------------------------------------------


@of("learning_rate_schedules")
def test_each_coupling_leaves_what_its_rates_say(shown) -> None:
    r = shown[1]
    assert list(r["schedules"]) == ["exponential", "cyclical", "warm-up + cosine", "warm restarts", "plateau"]
    for name, s in r["schedules"].items():
        left = {coupling: w[-1] for coupling, w in s["left"].items()}
        for coupling, c in s["removed"].items():
            peak = {
                "lr": 9e-4,
                "corrected": 9e-4,
                "schedule": 3e-3,
                "constant": 3e-3,
            }  # η_max is 0.3 of where λ was tuned
            assert c.max() == pytest.approx(peak[coupling], rel=1e-4), (name, coupling)
            np.testing.assert_allclose(s["left"][coupling], np.cumprod(1 - c), rtol=1e-4)  # 400 roundings in float32
        assert np.log(left["schedule"]) == pytest.approx(np.log(left["lr"]) / 0.3, rel=2e-3)
        assert left["constant"] == pytest.approx(0.997**400, rel=1e-4)
        assert left["constant"] < left["schedule"] < left["lr"] < left["corrected"], name


@of("learning_rate_schedules")
def test_exponential_and_warm_up_with_cosine_by_hand(shown) -> None:
    t, r = np.arange(400), shown[1]
    np.testing.assert_allclose(r["schedules"]["exponential"]["removed"]["lr"], 9e-4 * 0.01 ** (t / 400), rtol=1e-4)
    cosine = np.where(t < 40, t / 40, (1 + np.cos(np.pi * (t - 40) / 360)) / 2)
    removed = r["schedules"]["warm-up + cosine"]["removed"]
    np.testing.assert_allclose(removed["lr"], 9e-4 * cosine, atol=1e-8)
    np.testing.assert_allclose(removed["corrected"], 9e-4 * cosine**2, atol=1e-8)


@of("learning_rate_schedules")
def test_a_decay_that_outlives_the_learning_rate_ruins_the_model(shown) -> None:
    for coupling, r in shown[1]["plateau"].items():
        assert r["η"][0] == pytest.approx(0.03)
        assert r["η"][-1] == pytest.approx(0.0003, rel=1e-3)  # the plateau's floor
        grew = r["loss"][-1] / r["loss"].min()
        assert grew > 1.5 if coupling == "constant" else grew < 1.01, coupling


@of("learning_rate_schedules")
def test_adams_step_is_bounded_by_more_than_the_learning_rate(shown) -> None:
    steps, bound = shown[1]["adam"], (1 - 0.9) / (1 - 0.999) ** 0.5
    assert steps["rare"].max() == pytest.approx(bound, rel=0.01)  # √(1 − 0.999⁵⁰⁰⁰) is 0.997
    assert 1 < steps["digits"].max() < bound
    assert (steps["digits"] < 1).mean() > 0.8


# --- classifier_784 --------------------------------------------------------------------------------------------------


@of("classifier_784")
def test_classifier_underfits_at_large_lambda_and_does_not_notice_a_small_one(shown) -> None:
    r = shown[1]
    assert r["dropout"].values.tolist() == ["no dropout", "dropout"]
    for loss in r["training"].mean("seed").values:
        assert (np.diff(loss) > 0).all()  # λ by λ
        assert loss[1] < 1.01 * loss[0]  # 240 steps of ηλ = 1e-6
        assert loss[-1] > 3 * loss[0]
    assert (r["accuracy"].isel(weight_decay=0) > 0.6).all()  # chance is 0.1


@of("classifier_784")
def test_dropout_drops_in_training_and_nowhere_else(shown) -> None:
    r = shown[1]
    assert (r["passes in evaluation"] == 0).all()
    assert (r["passes"].sel(dropout="no dropout") == 0).all()
    assert (r["passes"].sel(dropout="dropout").isel(weight_decay=0) > 0.1).all()
    assert (r["training"].sel(dropout="no dropout") != r["training"].sel(dropout="dropout")).all()


def test_classifier_learns_from_the_files_of_mnist(tmp_path) -> None:
    write_mnist(tmp_path, train=400, test=100)
    options = SHORT["classifier_784"] | {"images": 400, "epochs": 6, "dropout": 0.1}
    r = load("classifier_784").run(**options, mnist_dir=str(tmp_path))
    assert (r["accuracy"].sel(dropout="dropout").isel(weight_decay=0) > 0.7).all()
    with pytest.raises(ValueError, match="images: only 400 training images are available, got 401"):
        load("classifier_784").run(**options | {"images": 401}, mnist_dir=str(tmp_path))


# --- finetune_anchor -------------------------------------------------------------------------------------------------


@of("finetune_anchor")
def test_anchors_keep_what_decay_to_zero_forgets(shown) -> None:
    r = shown[1]
    for metric in ("loss", "accuracy", "upright"):  # at λ = 0 no anchor matters
        zero, pretrained = r[metric].sel(weight_decay=0).transpose("anchor", ...).values
        np.testing.assert_array_equal(zero, pretrained)
    zero, pretrained = (r["upright"].sel(anchor=anchor, weight_decay=10) for anchor in ("zero", "pre-trained"))
    assert (pretrained - zero > 0.1).all()
    free = r.sel(anchor="zero", weight_decay=0)
    assert (pretrained >= free["upright"]).all()
    assert (free["accuracy"] > free["before"]).all()  # it learns the turned digits


@of("finetune_anchor")
def test_the_best_anchored_run_is_paired_over_seeds_and_decays(shown) -> None:
    example, r = shown
    losses = np.array([[1, 5, 3, 4, 5], [2, 6, 5, 6, 6.0]])  # (seed, λ), lowest at λ = 0
    dims = ("target", "anchor", "seed", "weight_decay")
    made = r.assign(loss=(dims, np.broadcast_to(losses, (2, 2, 2, 5))))
    line = "20°, 20 images, anchor zero, λ = 1 against 0: test loss +2.500 ± 6.353, no verdict from 2 seeds; accuracy "
    assert line in example.report(made)
