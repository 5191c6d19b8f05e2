"""The best point, the map and the separability of sweeps with known answers."""

import sys

import matplotlib.colors
import numpy as np
import pytest
import xarray

from wd_optax.choosing.sweeping.result import SweepResult

RATES, DECAYS = np.logspace(-4, 0, 13), np.logspace(-5, -1, 12)
LOG_RATE, LOG_DECAY = np.meshgrid(np.log(RATES), np.log(DECAYS), indexing="ij")


def result(values, **axes):
    """A sweep's result with these values over axes and seeds; NaN is a diverged run."""
    axes = axes or {"learning_rate": RATES, "weight_decay": DECAYS}
    values = np.asarray(values)
    values = values if values.ndim > len(axes) else values[..., None]
    dims = [*axes, "seed"]
    data = {
        "score": (dims, values),
        "diverged": (dims, np.isnan(values)),
        "curve": ([*dims, "curve_0"], values[..., None]),
    }
    return SweepResult(xarray.Dataset(data, {**axes, "seed": range(values.shape[-1])}))


def basin(rho, width=0.15):
    """A basin of correlation rho with elliptic level sets in the middle of the map, rounded so that ties are exact."""
    x, y = ((c - c.mean()) / (c.max() - c.min()) / width for c in (LOG_RATE, LOG_DECAY))
    return -np.round((x**2 - 2 * rho * x * y + y**2) / (1 - rho**2), 9)


def test_best_is_the_best_mean_with_its_error_and_neighbours():
    found = result([[1, 3], [4, 6], [4.0, 5], [2, np.nan], [9, np.nan]], x=[1.0, 2.0, 3.0, 4.0, 5.0]).best(
        "score", "max"
    )
    assert found.hyperparams == {"x": 2.0}
    assert (found.mean, found.standard_error, found.diverged) == (5, 1, 2)
    assert [(p.hyperparams["x"], p.mean, p.standard_error) for p in found.neighbours] == [(3.0, 4.5, 0.5)]
    assert str(found).splitlines() == ["x  mean ± standard error", "2  5 ± 1", "3  4.5 ± 0.5"]


def test_least_is_best_for_a_loss_and_one_seed_has_no_error():
    found = result([[3], [1], [2.0]], optimizer=["a", "b", "c"]).best("score", mode="min")
    assert found.hyperparams == {"optimizer": "b"}
    assert found.mean == 1
    assert np.isnan(found.standard_error)
    assert found.neighbours == ()


@pytest.mark.parametrize("method", ["best", "heatmap", "separability"])
@pytest.mark.parametrize(
    ("metric", "mode", "message"),
    [
        ("scor", "max", "no metric 'scor'; train returned"),
        ("score", "most", "mode='most'"),
        ("curve", "max", "is a curve"),
    ],
)
def test_bad_metrics_are_named(method, metric, mode, message):
    with pytest.raises((KeyError, ValueError), match=message):
        getattr(result(basin(0)), method)(metric, mode=mode)


def test_nothing_is_best_where_every_point_diverged():
    nothing = result(np.full((13, 12, 2), np.nan))
    for method in (nothing.best, nothing.heatmap):
        with pytest.raises(ValueError, match="every point has a diverged run"):
            method("score", mode="max")
    assert np.isnan(nothing.separability("score", "max")["correlation"])


def test_a_saved_dataset_with_names_is_a_result_again(tmp_path):
    axes = {"optimizer": ["SGD", "Adam"], "learning_rate": RATES, "weight_decay": DECAYS}
    first = result(np.stack([basin(0.5), basin(0.5) - 1])[..., None] + np.arange(2), **axes)
    first.data.to_netcdf(tmp_path / "sweep.nc", engine="scipy")
    assert SweepResult(xarray.load_dataset(tmp_path / "sweep.nc")).best("score", "max") == first.best("score", "max")


def test_a_saved_dataset_is_a_result_again(tmp_path):
    first = result(basin(0.5)[..., None] + np.arange(2))
    first.data.to_netcdf(tmp_path / "sweep.nc", engine="scipy")
    assert SweepResult(xarray.load_dataset(tmp_path / "sweep.nc")).best("score", "max") == first.best("score", "max")


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_heatmap_marks_the_best_and_its_region_on_one_scale(tmp_path):
    values = np.stack([basin(0.0), basin(-0.9) - 5])[..., None] + np.array([-0.5, 0.5])
    values[0, -1, -1, 0] = np.nan
    path = tmp_path / "map.png"
    axes = {"optimizer": ["SGD", "Adam"], "learning_rate": RATES, "weight_decay": DECAYS}
    figure = result(values, **axes).heatmap("score", mode="max", path=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    left, right = panels(figure)
    meshes = [panel.collections[0] for panel in (left, right)]
    assert len({(mesh.norm.vmin, mesh.norm.vmax) for mesh in meshes}) == 1
    assert meshes[0].norm.vmax == pytest.approx(basin(0.0).max())
    assert meshes[0].get_array().mask.sum() == 1  # diverged points have no colour, so the hatching shows
    assert left.patch.get_hatch()
    for panel, surface in ((left, basin(0.0)), (right, basin(-0.9) - 5)):
        assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
        dots, star = panel.collections[1:]
        best = np.unravel_index(surface.argmax(), surface.shape)
        np.testing.assert_allclose(star.get_offsets(), [[RATES[best[0]], DECAYS[best[1]]]])
        assert len(dots.get_offsets()) == (surface >= surface.max() - 0.5).sum()
    assert (left.get_title(), right.get_title()) == ("optimizer = SGD", "optimizer = Adam")


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (6, (2, 3))])
def test_heatmap_lays_out_its_panels_evenly(count, shape):
    axes = {"optimizer": [str(i) for i in range(count)], "learning_rate": RATES, "weight_decay": DECAYS}
    shown = panels(result(np.stack([basin(0.0)] * count)[..., None], **axes).heatmap("score", mode="max"))
    assert len(shown) == count
    grid = shown[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == shape


def test_heatmap_sorts_its_axes():
    shuffled = result([[[1.0], [2], [3]], [[4], [5], [6]]], x=[1.0, 0.0], y=[100.0, 1.0, 10.0]).heatmap(
        "score", mode="min"
    )
    (panel,) = panels(shuffled)
    mesh = panel.collections[0]
    assert (panel.get_xscale(), panel.get_yscale()) == ("linear", "log")
    np.testing.assert_array_equal(mesh.get_array(), [[5, 2], [6, 3], [4, 1]])
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], [-0.5, 0.5, 1.5])
    np.testing.assert_allclose(mesh.get_coordinates()[:, 0, 1], 10 ** np.array([-0.5, 0.5, 1.5, 2.5]))
    worst, best = (mesh.cmap(mesh.norm(value)) for value in (6, 1))
    lightness = lambda colour: matplotlib.colors.rgb_to_hsv(colour[:3])[2]
    assert lightness(best) > lightness(worst)


def test_heatmap_and_separability_need_two_axes_of_numbers():
    one = result([[1.0], [2.0]], x=[1.0, 2.0])
    for method in (one.heatmap, one.separability):
        with pytest.raises(ValueError, match="a map needs two axes that hold numbers"):
            method("score", mode="max")
    with pytest.raises(ValueError, match="a map needs two axes"):
        result(basin(0)).heatmap("score", mode="max", x="optimizer")


def test_heatmap_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "wd_optax\[sweep\]"'):
        result(basin(0)).heatmap("score", mode="max")


@pytest.mark.parametrize("rho", [-0.95, -0.6, 0.0, 0.3, 0.9])
def test_separability_of_a_basin_is_its_correlation(rho):
    """The good region holds about 30 cells: its second moments are the ellipse's within a few per cent."""
    found = result(basin(rho)).separability("score", "max")["correlation"].item()
    assert found == pytest.approx(rho, abs=0.06)
    transformed = result(np.exp(basin(rho) / 10)).separability("score", "max")["correlation"].item()
    assert transformed == result(-basin(rho)).separability("score", "min")["correlation"].item() == found


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (-((LOG_RATE + LOG_DECAY + 11.5) ** 2), (-1, -0.95)),  # η·λ = const: L2 in the paper
        (-((LOG_RATE - LOG_DECAY - 2.3) ** 2), (0.95, 1)),  # η/λ = const
        (-((LOG_RATE + 4) ** 2), (-1e-9, 1e-9)),  # any λ is good: decoupled in the paper
        (-((LOG_RATE + 4) ** 2) - (LOG_DECAY + 9) ** 2, (-0.02, 0.02)),  # a basin along the axes, at the map's edge
        (-np.maximum(LOG_RATE + LOG_DECAY + 14, 0), (-0.7, -0.3)),  # η·λ < const: a corner is missing
        (-abs(LOG_DECAY + 5), (-1e-9, 1e-9)),
    ],
)
def test_separability_of_ridges_strips_and_corners(score, expected):
    low, high = expected
    assert low <= result(score).separability("score", "max")["correlation"] <= high


def test_separability_has_an_interval_over_seeds_for_each_static_value():
    noise = np.random.default_rng(0).normal(size=(2, 13, 12, 8))
    values = np.stack([basin(0.0), basin(-0.9)])[..., None] + 4 * noise
    axes = {"optimizer": ["AdamW", "Adam+L2"], "learning_rate": RATES, "weight_decay": DECAYS}
    found = result(values, **axes).separability("score", "max")
    for name, rho in (("AdamW", 0.0), ("Adam+L2", -0.9)):
        one = found.sel(optimizer=name)
        assert one["low"] <= one["correlation"] <= one["high"]
        assert one["low"] - 0.1 <= rho <= one["high"] + 0.1
        assert 0.01 < one["high"] - one["low"] < 0.6
    assert found["high"][1] < found["low"][0]
    again = result(values, **axes).separability("score", "max")
    assert again.identical(found)  # the resamples are fixed


def test_the_interval_is_as_wide_as_the_estimate_varies():
    """± 1.96 standard deviations of 40 sweeps, known to a third, because single cells enter or leave the region."""
    noises = (np.random.default_rng(i).normal(size=(13, 12, 8)) for i in range(40))
    sweeps = [result(basin(-0.6)[..., None] + noise) for noise in noises]
    found = [sweep.separability("score", "max", resamples=200) for sweep in sweeps]
    width = np.mean([x["high"] - x["low"] for x in found])
    estimates = [x["correlation"].item() for x in found]
    assert width == pytest.approx(2 * 1.96 * np.std(estimates, ddof=1), rel=0.34)
    assert np.mean(estimates) == pytest.approx(-0.6, abs=0.06)


def test_separability_without_noise_or_seeds():
    same = np.repeat(basin(-0.6)[..., None], 3, axis=-1)
    found = result(same).separability("score", "max")
    assert found["low"] == found["correlation"] == found["high"]
    assert np.isnan(result(basin(-0.6)).separability("score", "max")["low"])
    assert np.isnan(result(LOG_RATE + LOG_DECAY).separability("score", "max", share=0.001)["correlation"])


def test_diverged_points_are_never_good():
    values = basin(0.0).copy()
    values[LOG_RATE + LOG_DECAY > -11.5] = np.nan  # the half of the map with large η·λ
    found = result(values).separability("score", "max", share=0.1)
    assert found["correlation"] < -0.2


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_bad_share(share):
    with pytest.raises(ValueError, match=f"share={share}"):
        result(basin(0)).separability("score", "max", share=share)


ZEROED = {"learning_rate": RATES, "weight_decay": np.r_[0.0, DECAYS]}


def with_zero(rho, best=-50.0):
    """The basin and a row of λ = 0."""
    return np.concatenate([np.full((13, 1), best), basin(rho)], axis=1)


@pytest.mark.parametrize("best", [-50.0, 50.0])
@pytest.mark.parametrize("rho", [-0.95, 0.3])
def test_a_row_of_zeros_leaves_separability_as_it_is(rho, best):
    """The axis stays logarithmic, and 0 is left out."""
    found = result(with_zero(rho, best), **ZEROED).separability("score", "max")
    assert found["correlation"] == result(basin(rho)).separability("score", "max")["correlation"]
    assert found["correlation"].item() == pytest.approx(rho, abs=0.06)


def test_a_zero_on_an_axis_is_a_cell_of_its_own_on_a_logarithmic_scale():
    figure = result(with_zero(0.0, best=1.0), **ZEROED).heatmap("score", mode="max")
    (panel,) = panels(figure)
    figure.canvas.draw()
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    edges = panel.collections[0].get_coordinates()[:, 0, 1]
    np.testing.assert_allclose(np.diff(np.log(edges)), np.log(DECAYS[1] / DECAYS[0]))  # cells of one size
    ticks = dict(zip((text.get_text() for text in panel.get_yticklabels()), panel.get_yticks(), strict=True))
    assert edges[0] < ticks["0"] < edges[1]
    assert ticks["0.001"] == pytest.approx(1e-3)
    (star,) = panel.collections[-1].get_offsets()
    assert star[1] == ticks["0"]
    (gap,) = panel.lines
    np.testing.assert_allclose(gap.get_ydata(), edges[1])


def test_heatmap_labels_what_is_above_a_missing_panel_and_no_inner_one():
    axes = {"optimizer": [str(i) for i in range(5)], "learning_rate": RATES, "weight_decay": DECAYS}
    shown = panels(result(np.stack([basin(0.0)] * 5)[..., None], **axes).heatmap("score", mode="max"))
    assert [bool(panel.get_xlabel()) for panel in shown] == [False, False, True, True, True]
    assert [panel.xaxis.get_tick_params()["labelbottom"] for panel in shown] == [False, False, True, True, True]
    assert [bool(panel.get_ylabel()) for panel in shown] == [True, False, False, True, False]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_dollars_in_names_are_dollars_and_long_titles_are_wrapped(suffix, tmp_path):
    """matplotlib raised for an odd number of them, and set the text between two in italics."""
    name = "an optimizer with $a name and$ much to say about $x"
    axes = {"opti$mizer": [name], "$η$": RATES, "λ_$w": DECAYS}
    data = result(basin(0.0)[None, ..., None], **axes).data.rename(score="$s$core$")
    figure = SweepResult(data).heatmap("$s$core$", mode="max", path=tmp_path / f"map.{suffix}")
    (panel,) = panels(figure)
    assert panel.get_title().replace("\n", " ") == f"opti$mizer = {name}"
    assert max(map(len, panel.get_title().splitlines())) <= 36
    texts = [panel.title, panel.xaxis.label, panel.yaxis.label, figure.axes[-1].yaxis.label]
    assert not any(text.get_parse_math() for text in texts)
    width, _ = figure.get_size_inches() * figure.dpi
    figure.canvas.draw()
    box = panel.title.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= width


def test_an_axis_of_one_value_has_its_tick():
    (panel,) = panels(result([[[1.0], [2.0]]], x=[0.05], y=[0.03, 0.3]).heatmap("score", mode="max"))
    assert [text.get_text() for text in panel.get_xticklabels()] == ["0.05"]
    np.testing.assert_allclose(panel.get_xticks(), [0.05])


@pytest.mark.parametrize("method", ["best", "heatmap", "separability"])
def test_mode_is_required(method):
    """Its default was "max", which gives the worst λ of a loss."""
    with pytest.raises(TypeError, match=r"missing 1 required .*argument: 'mode'"):
        getattr(result(basin(0)), method)("score")


def test_a_notebook_shows_the_points_as_a_table():
    names = {"optimizer": ["<SGD>", "Adam"], "learning_rate": RATES}
    html = result(np.array([[[1.0, 2.0]] * 13, [[3.0, np.nan]] * 13]), **names)._repr_html_()
    assert html.startswith("<table><tr><th>optimizer</th><th>learning_rate</th><th>score</th></tr>")
    assert "<td>&lt;SGD&gt;</td><td>0.0001</td><td>1.5</td>" in html
    assert "<td>Adam</td><td>1</td><td>nan</td>" in html
    assert "26 points; means over 2 seeds; 13 runs diverged" in html
    many = result(basin(0.0))._repr_html_()
    assert many.count("<tr>") == 31
    assert "156 points, the first 30 of them here; means over 1 seeds" in many
