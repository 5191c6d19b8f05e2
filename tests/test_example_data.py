"""The data sets and pictures that the examples share."""

import gzip
import pathlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from example_loading import load

compare, data, intervals, plots = (load(name) for name in ("compare", "data", "intervals", "plots"))


def test_digits_are_split_by_seed_with_the_classes_even():
    x, x_test, y, y_test = data.digits(3)
    assert (x.shape, x_test.shape, y.shape, y_test.shape) == ((1347, 64), (450, 64), (1347,), (450,))
    assert (x.dtype, y.dtype, float(x.min()), float(x.max())) == (jnp.float32, jnp.int32, 0.0, 1.0)
    share = np.bincount(y, minlength=10) / len(y) - np.bincount(y_test, minlength=10) / len(y_test)
    assert abs(share).max() < 0.002  # one image of a class more or less is 1/450
    again, other = data.digits(3)[0], data.digits(4)[0]
    np.testing.assert_array_equal(x, again)
    assert not np.array_equal(x, other)


def test_digits_of_another_size_are_the_same_images_interpolated():
    small, large = data.digits(flat=False)[0], data.digits(size=28, flat=False)[0]
    assert (small.shape, large.shape) == ((1347, 8, 8, 1), (1347, 28, 28, 1))
    assert 0 <= float(large.min()) <= float(large.max()) <= 1
    # Each of the old pixels is 3.5 new ones wide: their mean brightness stays but for the border.
    np.testing.assert_allclose(large.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=0.02)
    np.testing.assert_array_equal(data.digits(size=28)[0].reshape(large.shape), large)


def test_digits_without_a_test_set_are_all_there_in_their_own_order():
    x, x_test, y, y_test = data.digits(test_size=0)
    assert (len(x), len(x_test), len(y_test)) == (1797, 0, 0)
    assert y[:10].tolist() == list(range(10))


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_mnist(folder: pathlib.Path, train: int = 40, test: int = 20):
    """Four files in MNIST's format, two of them gzipped, that hold enlarged digits; returns what they hold."""
    x, _, y, _ = data.digits(size=28, flat=False, test_size=0)
    images, labels = np.rint(np.asarray(x[..., 0]) * 255), np.asarray(y)
    rows = {"train": slice(train), "t10k": slice(train, train + test)}
    for part, r in rows.items():
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images[r]))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[r]), mtime=0))
    return [images[rows["train"]], images[rows["t10k"]], labels[rows["train"]], labels[rows["t10k"]]]


def test_mnist_reads_the_four_files_gzipped_or_not(tmp_path):
    written = write_mnist(tmp_path)
    for read, array in zip(data.mnist(str(tmp_path), flat=False), written, strict=True):
        wide = array[..., None] / 255 if array.ndim == 3 else array
        np.testing.assert_allclose(read, wide, rtol=1e-6)  # float32
    assert data.mnist(str(tmp_path))[0].shape == (40, 784)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("train-images-idx3-ubyte", None, "neither .*train-images-idx3-ubyte nor .*gz exists; MNIST is train-images"),
        ("train-images-idx3-ubyte", b"", "begins with nothing, but idx3 with 00000803"),
        ("train-images-idx3-ubyte", idx(np.zeros(3)), "begins with 00000801, but idx3 with 00000803"),
        ("train-images-idx3-ubyte", idx(np.zeros((2, 2, 2)))[:-1], r"7 bytes for the shape \(2, 2, 2\)"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(3)), mtime=0)[:-3], "not a complete gzip file"),
        ("t10k-labels-idx1-ubyte.gz", b"<html>not found</html>", "not a complete gzip file"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(3)), mtime=0), "20 test images but 3 labels"),
    ],
)
def test_mnist_names_the_file_that_is_wrong(tmp_path, file, content, words):
    write_mnist(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=words) as error:
        data.mnist(str(tmp_path))
    assert "labels" in words or file in str(error.value)


def test_text_is_python_source_and_what_follows_each_character():
    x, x_test, y, y_test = data.text("this", length=16, test_size=0.25)
    assert x.dtype == y.dtype == jnp.int32
    assert int(x.max()) < 128
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    whole = np.concatenate([np.c_[x, y[:, -1]].ravel(), np.c_[x_test, y_test[:, -1]].ravel()])
    source = pathlib.Path(__import__("importlib.util").util.find_spec("this").origin).read_bytes()
    assert bytes(whole.astype(np.uint8)) == source[: len(whole)]  # in order, and no window is in both
    assert len(source) - len(whole) < 17
    assert len(x_test) == -(-(len(x) + len(x_test)) // 4)
    assert len(data.text("this", 170, length=16, test_size=0)[0]) == 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.text("no_such_module", length=8), "name: 'no_such_module' is not a module with Python source"),
        (lambda: data.text("sys", length=8), "name: 'sys' is not a module with Python source"),
        (lambda: data.text("this", 8, length=8), "length: 8 \\+ 1 characters don't fit in a text of 8"),
        (lambda: data.batches(10, 11, epochs=1, seed=0), "batch_size: 11 is not between 1 and the number of rows, 10"),
    ],
)
def test_errors_name_the_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_batches_take_every_row_once_an_epoch_in_a_new_order():
    rows = data.batches(10, 3, epochs=4, seed=0)
    assert rows.shape == (4, 3, 3)
    for epoch in rows.reshape(4, 9):
        assert len(set(epoch.tolist())) == 9
        assert set(epoch.tolist()) <= set(range(10))
    assert len({tuple(epoch) for epoch in rows.reshape(4, 9).tolist()}) == 4
    assert not np.array_equal(rows, data.batches(10, 3, epochs=4, seed=1))


def test_intervals_hold_what_they_promise():
    # Of 4000 means of 4 normal numbers, 5 % of the intervals miss 0 (σ = 0.34 %); of two standard errors 14 % would.
    drawn = np.random.default_rng(0).normal(size=(4, 4000))
    missed = np.abs(drawn.mean(0)) > intervals.half_width(drawn)
    assert missed.mean() == pytest.approx(0.05, abs=0.0105)
    clear = [intervals.clear(gaps) for gaps in drawn.T]
    np.testing.assert_array_equal(clear, missed)
    assert intervals.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5)


def test_two_seeds_never_carry_a_verdict():
    assert not intervals.clear([1.0, 1.0 + 1e-9])
    assert intervals.change([1.0, 1.0]) == "+1.00 ± 0.00, no verdict from 2 seeds"
    assert intervals.verdict([1.0, 1.0, 1.0]) == "significant at 5 %"
    assert intervals.verdict([0.0, 0.0, 0.0]) == "not significant at 5 %"  # both runs were the same


def test_28_lines_differ():
    assert len({tuple(plots.line(i).values()) for i in range(28)}) == 28


def test_save_makes_the_folder_and_keeps_the_colours(tmp_path):
    from matplotlib import colors, image

    figure, panels = plots.figure(2, sharey=True)
    for i, colour in enumerate(plots.COLOURS.values()):
        panels[0].axhline(i, color=colour, linewidth=4)
    path = plots.save(figure, tmp_path / "made" / "here", "lines.png")
    assert path == tmp_path / "made" / "here" / "lines.png"
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int)
    assert pixels.shape == (518, 1296, 3)  # 144 dpi
    for colour in plots.COLOURS.values():
        rgb = np.round(np.multiply(colors.to_rgb(colour), 255)).astype(int)
        assert (pixels == rgb).all(axis=-1).sum() > 300, colour


def runs():
    """Losses of two λ, with dropout or without, 3 seeds and 2 points: 10·λ's index + the seed + the point."""
    losses = np.indices((2, 2, 3, 2))
    values = 10.0 * losses[0] + losses[2] + losses[3]
    coords = {"weight_decay": [0.0, 0.3], "kind": ["plain", "dropout"]}
    return xarray.Dataset({"loss": (("weight_decay", "kind", "seed", "point"), values)}, coords)


def test_a_table_has_a_line_for_each_kind_of_run():
    table = compare.table(compare.last(runs()), loss=".1f").splitlines()
    assert table[0].split() == ["λ", "loss"]
    assert [line.split() for line in table[1:]] == [
        [λ, kind, mean, "±", "2.5"] for λ, mean in (("0", "2.0"), ("0.3", "12.0")) for kind in ("plain", "dropout")
    ]


def test_a_change_is_from_the_first_of_the_axis_on_the_same_seeds():
    end = compare.last(runs())["loss"].sel(kind="plain")
    assert compare.change(end, "+.1f", weight_decay=0.3) == "+10.0 ± 0.0, significant at 5 %"
    assert [text for _, text, _ in compare.kinds(runs())] == [
        f"λ = {λ}, {kind}" for λ in ("0", "0.3") for kind in ("plain", "dropout")
    ]


def test_pictures_draw_bands_from_the_first_point_and_bars_beside_each_other():
    figure = compare.curves(runs().sel(kind="plain", drop=True), "epoch", loss="training loss")
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["λ = 0", "λ = 0.3"]
    np.testing.assert_array_equal(lines[1].get_xydata(), [[1, 11], [2, 12]])
    bars = compare.curves(compare.last(runs()), "λ", "weight_decay", loss="training loss").axes[0]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["0", "0.3"]
    starts = [
        line.get_xdata()[0] for line in bars.get_lines() if len(line.get_xdata()) == 2 and line.get_marker() == "o"
    ]
    assert starts == [0, 0.1]


def test_a_sweep_gives_numbers_by_label_traced_and_the_seed_as_a_key():
    draw = lambda hparams, key: {"sum": hparams["kind"] @ jnp.array([1.0, 10.0]), "drawn": jax.random.normal(key, (3,))}
    found = compare.sweep(draw, 2, kind={"one": (1.0, 0.0), "both": (1.0, 1.0)})
    assert found["kind"].values.tolist() == ["one", "both"]
    np.testing.assert_array_equal(found["sum"], [[1, 1], [11, 11]])
    assert found["drawn"].dims == ("kind", "seed", "point")
    np.testing.assert_array_equal(found["drawn"][0], found["drawn"][1])  # runs of a seed are paired
    assert (found["drawn"][0, 0] != found["drawn"][0, 1]).all()
