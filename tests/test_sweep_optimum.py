"""The optimum of one axis along another: known exponents, coverage of intervals, SciPy's fits, and what can't tell."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy import optimize, stats

import wd_optax as wd
from wd_optax.choosing.sweeping.power_law import find_vertices, fit_line, student_quantile
from wd_optax.choosing.sweeping.result import SweepResult

QUANTILES = 1e-10  # relative: SciPy 1.13 has its own to 2·10⁻¹¹, newer ones to 10⁻¹³

WIDTHS, DECAYS = np.array([32.0, 64.0, 128.0, 256.0]), np.logspace(-3, 1, 13)
ASK = {"of": "weight_decay", "over": "width", "mode": "min"}


def result(loss, dims=("width", "weight_decay", "seed"), **coords):
    """A sweep's result with a given loss; not finite is diverged."""
    named = {"width": WIDTHS, "weight_decay": DECAYS} | coords
    named = {dim: named.get(dim, np.arange(n)) for dim, n in zip(dims, np.shape(loss), strict=True)}
    loss = np.asarray(loss, float)
    return SweepResult(xr.Dataset({"loss": (dims, loss), "diverged": (dims, ~np.isfinite(loss))}, named))


def basin(exponent, at=0.02, curvature=0.15):
    """A parabola in log λ at each width, shape=(widths, λs, 1)."""
    best = np.log(at) + exponent * np.log(WIDTHS / WIDTHS[0])
    return 1 + curvature * (np.log(DECAYS)[None] - best[:, None])[..., None] ** 2


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_known_exponent_is_found_exactly(exponent, seeds):
    loss = np.repeat(basin(exponent, at=0.2 if exponent < 0 else 0.02), seeds, axis=-1)
    found = result(loss).optimum("loss", **ASK)
    assert found.exponent == pytest.approx(exponent, abs=1e-10)  # float64
    best = (0.2 if exponent < 0 else 0.02) * 1024**exponent / 32**exponent
    assert found.predict(1024).value == pytest.approx(best, rel=1e-9)
    np.testing.assert_allclose([p.value for p in found.points], best * (WIDTHS / 1024) ** exponent, rtol=1e-9)
    assert [p.flag for p in found.points] == [""] * 4


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_intervals_contain_the_truth_as_often_as_they_say(seeds):
    rng = np.random.default_rng(seeds)
    exponents, predictions = [], []
    for _ in range(200):
        noise = 0.05 * rng.normal(size=(4, 13, seeds)) + rng.normal(size=seeds)  # a seed is good or bad everywhere
        found = result(basin(0.5) + noise).optimum("loss", **ASK, resamples=200)
        exponents.append(found.interval[0] <= 0.5 <= found.interval[1])
        ahead = found.predict(1024)
        predictions.append(ahead.low <= 0.02 * 32**0.5 <= ahead.high)
    assert 0.90 <= np.mean(exponents) <= 0.99
    assert 0.90 <= np.mean(predictions) <= 1.0  # half of the interval is Birge's, which only ever widens it


@pytest.mark.parametrize("points", [4, 5, 6])
def test_the_minimum_is_scipys(points):
    rng = np.random.default_rng(0)
    axis = np.log(DECAYS)
    shifted = axis - rng.uniform(-3, 0, (50, 1))
    losses = np.exp(shifted) - shifted + 0.05 * rng.normal(size=(50, 13))
    found = find_vertices(losses, axis, points=points)
    for loss, at, best in zip(losses, found.at, found.best, strict=True):
        assert best == loss.argmin()
        first = min(max(best - points // 2, 0), 13 - points)
        near = slice(first, first + points)
        fit = np.polynomial.Polynomial.fit(axis[near], loss[near], 3 if points >= 5 else 2)
        least = optimize.minimize_scalar(fit, bounds=(axis[near][0], axis[near][-1]), method="bounded")
        assert fit(at) <= least.fun + 1e-9  # its tolerance


def test_a_basin_that_is_steeper_above_is_no_bias():
    """exp(x) − x in x = log λ/λ*, between the grid's points: a parabola through five is 0.15 decades below."""
    best = np.log(0.02) + 0.5 * np.log(WIDTHS / WIDTHS[0])
    shifted = (np.log(DECAYS)[None] - best[:, None])[..., None]
    loss = np.exp(shifted) - shifted
    found = result(loss).optimum("loss", **ASK)
    decades = np.log10([p.value for p in found.points]) - best / np.log(10)
    assert abs(decades).max() < 0.05
    assert found.exponent == pytest.approx(0.5, abs=0.05)
    assert result(loss).optimum("loss", **ASK, points=4).points[0].value != found.points[0].value


def test_the_law_of_one_seed_is_scipys_regression():
    rng = np.random.default_rng(0)
    x, y = np.log(WIDTHS), 0.5 * np.log(WIDTHS) + 0.1 * rng.normal(size=4)
    line, theirs = fit_line(x, y, np.empty((0, 4)), seeds=1), stats.linregress(x, y)
    assert line.slope == pytest.approx(theirs.slope, rel=1e-12)
    assert line.covariance[1, 1] ** 0.5 == pytest.approx(theirs.stderr, rel=1e-12)
    middle, half = line.predict(0.0)
    assert middle == pytest.approx(theirs.intercept, rel=1e-12)
    assert half == pytest.approx(
        stats.t.ppf(0.975, 2) * theirs.intercept_stderr, rel=1e-9
    )  # SciPy 1.13 has its quantiles to 1e-10


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 101])
def test_students_quantile_is_scipys(freedom):
    assert student_quantile(freedom) == pytest.approx(
        stats.t.ppf(0.975, freedom), rel=1e-9
    )  # SciPy 1.13 has its own to 1e-10


def test_a_law_that_does_not_fit_has_a_wider_interval():
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.normal(size=(4, 13, 6))
    straight, bent = (
        1 + 0.15 * (np.log(DECAYS)[None] - np.log(best)[:, None])[..., None] ** 2 + noise
        for best in (0.02 * (WIDTHS / 32) ** 0.5, np.array([0.02, 0.1, 0.02, 0.1]))
    )
    widths = [np.ptp(result(loss).optimum("loss", **ASK).interval) for loss in (straight, bent)]
    assert widths[1] > 5 * widths[0]


def test_an_optimum_at_the_edge_is_left_out_and_said():
    loss = basin(0.5)
    loss[3] = 2 - np.log(DECAYS)[:, None]  # still falling at the largest λ
    found = result(loss).optimum("loss", **ASK)
    assert [p.flag for p in found.points] == ["", "", "", "at the grid's edge"]
    assert found.exponent == pytest.approx(0.5, abs=1e-9)
    assert "3 of 4 optima tell" in str(found)
    assert "at the grid's edge" in str(found).splitlines()[4]


def test_diverged_runs_are_left_out_and_counted():
    loss = np.repeat(basin(0.5), 2, axis=-1)
    loss[0, -3:, 1] = np.nan  # far from the optimum
    loss[1, 5:, :] = np.nan  # from the optimum on
    loss[2, :-2, 0] = np.nan
    found = result(loss).optimum("loss", **ASK)
    assert [p.diverged for p in found.points] == [3, 16, 11, 0]
    assert [p.flag for p in found.points] == ["", "beside diverged runs", "too few runs converged", ""]
    assert np.isnan(found.points[2].value)
    assert found.exponent == pytest.approx(0.5, abs=1e-9)
    assert len(found.plot().axes) == 2


def test_a_flat_basin_is_said():
    rng = np.random.default_rng(3)
    loss = basin(0.5, curvature=0.15) + 0.01 * rng.normal(size=(4, 13, 4))
    loss[1] = 1 + 1e-4 * (loss[1] - 1) + 0.05 * rng.normal(size=(13, 4))  # nothing but noise
    found = result(loss).optimum("loss", **ASK)
    assert [p.flag for p in found.points] == ["", "too flat to tell", "", ""]
    plain = result(loss[..., :1]).optimum("loss", **ASK)  # one seed can't tell that it is noise
    assert plain.points[1].flag == ""
    hill = result(-basin(0.5)[:, 4:9], weight_decay=DECAYS[4:9]).optimum("loss", **ASK)
    assert {p.flag for p in hill.points} == {"at the grid's edge"}
    assert hill.law is None
    assert np.isnan(hill.exponent)
    assert "No law: 0 of 4 optima tell (at the grid's edge)" in str(hill)
    with pytest.raises(ValueError, match="no law to predict from: 0 of 4 optima tell"):
        hill.predict(64)


def test_no_decay_at_all_may_be_best():
    decays = np.concatenate([[0.0], DECAYS])
    loss = np.concatenate([np.full((4, 1, 1), 3.0), basin(0.5)], axis=1)
    found = result(loss, weight_decay=decays).optimum("loss", **ASK)
    assert found.exponent == pytest.approx(0.5, abs=1e-9)
    loss[2, 0] = 0.5
    assert result(loss, weight_decay=decays).optimum("loss", **ASK).points[2].flag == "at the grid's edge"


def test_max_is_min_of_the_negative_and_the_order_does_not_matter():
    rng = np.random.default_rng(0)
    loss = basin(0.5) + 0.02 * rng.normal(size=(4, 13, 3))
    least = result(loss).optimum("loss", **ASK)
    most = result(-loss).optimum("loss", **ASK | {"mode": "max"})
    assert most.exponent == pytest.approx(least.exponent, rel=1e-12)
    turned = result(loss.transpose(2, 1, 0)[:, ::-1, ::-1], ("seed", "weight_decay", "width"),
                    weight_decay=DECAYS[::-1], width=WIDTHS[::-1])  # fmt: skip
    other = turned.optimum("loss", **ASK)
    assert other.exponent == pytest.approx(least.exponent, rel=1e-12)
    assert [p.at for p in other.points] == WIDTHS.tolist()


def test_other_axes_have_their_best_values():
    """λ* at the best η of each λ: the loss is least at η = 2, where λ* ∝ √width; at η = 1 it is constant."""
    tuned, other = basin(0.5), basin(0.0) + 5
    found = result(np.stack([other, tuned]), ("learning_rate", "width", "weight_decay", "seed")).optimum("loss", **ASK)
    assert found.exponent == pytest.approx(0.5, abs=1e-9)


def test_a_sweep_with_named_widths_and_its_picture(tmp_path):
    def train(hparams, key):
        width = jnp.float32(hparams["width"])  # static, as the width of a layer is
        return {"loss": jnp.log(hparams["weight_decay"] / 0.01 / width**0.5) ** 2}

    axes = {"width": {"16": 16, "64": 64, "256": 256}, "weight_decay": np.logspace(-3, 0, 9)}
    found = wd.sweep(train, axes, seeds=1, progress=False).optimum("loss", **ASK)
    assert found.exponent == pytest.approx(0.5, abs=1e-4)  # the losses are float32
    figure = found.plot(tmp_path / "optima.png")
    assert (tmp_path / "optima.png").stat().st_size > 10_000
    left, right = figure.axes
    assert [axes.get_xscale() for axes in (left, right)] == ["log", "log"]
    assert len(left.get_legend().get_texts()) == 3
    assert found._repr_html_().count("<tr>") == 5


def test_two_values_and_one_seed_have_no_interval():
    found = result(basin(0.5)[:2], width=WIDTHS[:2]).optimum("loss", **ASK)
    assert found.exponent == pytest.approx(0.5, abs=1e-9)
    assert np.isnan(found.interval).all()
    assert "no interval from one seed" in str(found)
    assert np.isnan(found.predict(512).low)
    found.plot()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"of": "decay"}, ValueError, "of='decay' is not an axis of the sweep: use one of 'width', 'weight_decay'"),
        ({"over": "seed"}, ValueError, "over='seed' is not an axis"),
        ({"over": "weight_decay"}, ValueError, "pass two axes"),
        ({"points": 2}, ValueError, "points=2: a fit needs"),
        ({"resamples": 1}, ValueError, "resamples=1 must be"),
        ({"mode": "least"}, ValueError, "mode='least'"),
    ],
)
def test_mistakes_are_explained(changes, error, message):
    with pytest.raises(error, match=message):
        result(basin(0.5)).optimum("loss", **ASK | changes)


def test_axes_without_logarithms_are_refused():
    with pytest.raises(ValueError, match="axis 'width' has 'small', 'large'"):
        result(basin(0.5)[:2], width=["small", "large"]).optimum("loss", **ASK)
    with pytest.raises(ValueError, match="axis 'width' has negative values"):
        result(basin(0.5), width=-WIDTHS).optimum("loss", **ASK)
    with pytest.raises(ValueError, match="axis 'width' has 0, which has no logarithm"):
        result(basin(0.5), width=[0, 1, 2, 3]).optimum("loss", **ASK)
    with pytest.raises(ValueError, match="axis 'weight_decay' has 2 positive values: a fit needs at least 3"):
        result(basin(0.5)[:, :3], weight_decay=[0, 1, 2]).optimum("loss", **ASK)
    with pytest.raises(ValueError, match="at=0: pass a positive value of width"):
        result(basin(0.5)).optimum("loss", **ASK).predict(0)
    with pytest.raises(TypeError, match="at must be a number"):
        result(basin(0.5)).optimum("loss", **ASK).predict("wide")


def test_a_constant_loss_is_flat_and_not_at_the_edge():
    for seeds in (1, 3):
        found = result(np.ones((4, 13, seeds))).optimum("loss", **ASK)
        assert {p.flag for p in found.points} == {"too flat to tell"}


def test_a_part_of_a_sweep_has_no_optimum():
    part = result(basin(0.5))
    part.data.attrs["part"] = "0 of 2; the runs of the others are NaN"
    with pytest.raises(ValueError, match=r"the runs of part 0 of 2; .*merge the parts"):
        part.optimum("loss", **ASK)
