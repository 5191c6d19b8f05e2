"""A sweep equals a loop over its points; it compiles once per static value; bad input is named."""

import decimal
import fractions
import functools
import os
import pathlib
import re
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest
import sweep_worker
import xarray

import wd_optax as wd
from wd_optax import optional
from wd_optax.choosing.sweeping import memory
from wd_optax.choosing.sweeping.devices import without_deadlock
from wd_optax.choosing.sweeping.result import SweepResult

RATES = {"learning_rate": [0.01, 0.1, 1.0], "weight_decay": [0.0, 0.01, 0.1]}
sweep = functools.partial(wd.sweep, progress=False)


def scanned(tx, params, grad, length):
    """The squared norm of the parameters after each step."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grad(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), optax.tree.norm(params, squared=True)

    return jax.lax.scan(step, (params, tx.init(params)), length=length)[1]


def elementwise(hparams, key):
    """A single weight: no sums over entries."""
    tx = wd.sgdw(hparams["learning_rate"], weight_decay=hparams["weight_decay"], momentum=0.9, mask=None)
    w = jax.random.normal(key)
    return {"curve": scanned(tx, w, lambda w: w - 1, 30), "start": w}


X = jax.random.normal(jax.random.key(1), (32, 16))


def mlp(hparams, key):
    """Matrix products, whose order of sums XLA chooses."""
    tx = wd.adamw(hparams["learning_rate"] / 100, weight_decay=hparams["weight_decay"])
    k1, k2 = jax.random.split(key)
    params = {"a": {"kernel": jax.random.normal(k1, (16, 32))}, "b": {"kernel": jax.random.normal(k2, (32, 1))}}
    loss = lambda p: ((jnp.tanh(X @ p["a"]["kernel"]) @ p["b"]["kernel"]) ** 2).mean()
    return {"curve": scanned(tx, params, jax.grad(loss), 10)}


def loop(train, axes, seeds):
    """Trains each point alone, in a program for one run."""
    one = jax.jit(train)
    points = [{"learning_rate": η, "weight_decay": λ} for η in axes["learning_rate"] for λ in axes["weight_decay"]]
    number = lambda point: {name: jnp.float32(x) for name, x in point.items()}
    curves = [one(number(point), jax.random.key(seed))["curve"] for point in points for seed in seeds]
    return np.reshape(curves, (3, 3, len(seeds), -1))


@pytest.mark.quick_compile(False)
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_elementwise_runs_equal_the_loops_bit_for_bit(chunk, devices):
    data = sweep(elementwise, RATES, seeds=[3, 5], chunk=chunk, devices=jax.devices()[:devices]).data
    assert data["curve"].dims == ("learning_rate", "weight_decay", "seed", "curve_0")
    np.testing.assert_array_equal(data["curve"], loop(elementwise, RATES, [3, 5]))
    assert (data["start"] == data["start"][0, 0]).all()  # runs of one seed are paired
    assert (data["start"][..., 0] != data["start"][..., 1]).all()


@pytest.mark.optax_promotes
def test_matrix_products_equal_the_loops_up_to_rounding():
    """XLA orders the sums of a batched product differently: float32's 2⁻²⁴ ≈ 6e-8 per operation over 10 steps."""
    data = sweep(mlp, RATES, seeds=2).data
    np.testing.assert_allclose(data["curve"], loop(mlp, RATES, [0, 1]), rtol=1e-5)


@pytest.mark.optax_promotes
def test_devices_change_no_bit_where_each_trains_the_same_batch():
    on = lambda n: sweep(mlp, RATES, seeds=4, chunk=3 * n, devices=jax.devices()[:n]).data
    assert on(1).drop_attrs().identical(on(8).drop_attrs())
    assert on(8).attrs == {
        "strategy": "3 runs at a time (vmap) on each of 8 devices (shard_map)",
        "chunk": 24,
        "devices": "8 × cpu",
    }


def test_one_trace_and_one_compilation_per_static_value_whatever_the_size(compiled):
    traces, backend = [], []

    def train(hparams, key):
        traces.append(hparams["kind"])
        return {"y": jnp.sin(hparams["x"]) if hparams["kind"] == "sin" else jnp.cos(hparams["x"])}

    jax.monitoring.register_event_duration_secs_listener(record := lambda name, *_, **k: backend.append((name, k)))
    try:
        for points in (3, 300):
            found = sweep(train, {"kind": ["sin", "cos"], "x": np.linspace(0, 1, points)}, seeds=2, chunk=64).data
            np.testing.assert_allclose(found["y"].sel(kind="cos", seed=1), np.cos(np.linspace(0, 1, points)), rtol=1e-6)
    finally:
        jax.monitoring.unregister_event_duration_listener(record)
    assert traces == ["sin", "cos"] * 2
    assert len(compiled) == 4
    blocks = [k for name, k in backend if name.endswith("backend_compile_duration") and "batch" in str(k)]
    assert len(blocks) == 4, {name for name, _ in backend}


def sorts(hparams, key):
    """Holds a large array."""
    big = jnp.full(hparams.get("size", 10_000), hparams["x"])
    return {"y": jax.lax.fori_loop(0, 3, lambda i, x: jnp.sort(jnp.sin(x)), big).sum()}


def test_compiles_again_only_where_memory_is_short(compiled, monkeypatch, caplog):
    """A run holds at least 4 · 10⁴ bytes. A width that doesn't fit is compiled again at one that does."""

    axes = {"x": np.linspace(1, 2, 64)}
    one = jax.devices()[:1]
    monkeypatch.setattr(memory, "cache", lambda devices: float("inf"))
    plenty = sweep(sorts, axes, seeds=1, devices=one).data
    assert compiled == [32]
    monkeypatch.setattr(memory, "free", lambda local: 6e5)
    little = sweep(sorts, axes, seeds=1, devices=one).data
    assert compiled[:2] == [32, 32]
    assert 2 <= compiled[-1] <= 6e5 / 4e4
    assert little.attrs["chunk"] == compiled[-1]
    np.testing.assert_allclose(little["y"], plenty["y"], rtol=1e-6)  # sums of 10⁴ numbers, blocked by width
    monkeypatch.setattr(memory, "free", lambda local: 1e3)
    with caplog.at_level("WARNING", logger="absl"):
        assert sweep(sorts, axes, seeds=1, devices=one).data.attrs["chunk"] == 1
    assert "one run needs" in caplog.text


def test_each_static_value_has_the_width_that_fits_it_and_keeps_it(monkeypatch, tmp_path):
    axes = {"size": {"small": 10, "large": 10_000}, "x": np.linspace(1, 2, 40)}
    monkeypatch.setattr(memory, "cache", lambda devices: float("inf"))
    run = lambda: sweep(sorts, axes, seeds=1, devices=jax.devices()[:1], directory=tmp_path)
    monkeypatch.setattr(memory, "free", lambda local: 6e5)
    first = run().data
    assert re.match("[0-9]+ to 20 runs at a time", first.attrs["strategy"])
    monkeypatch.setattr(memory, "free", lambda local: 1e9)  # a larger machine keeps the widths of the smaller one
    (tmp_path / sorted(path.name for path in tmp_path.glob("*.nc"))[-1]).unlink()
    assert run().data.identical(first)


def test_a_cpu_keeps_to_its_cache(monkeypatch):
    monkeypatch.setattr(memory, "cache", lambda devices: 2e5 / devices)
    data = sweep(sorts, {"x": np.linspace(1, 2, 32)}, seeds=1, devices=jax.devices()[:1]).data
    assert data.attrs["chunk"] <= 5  # each holds at least 4 · 10⁴ bytes


def test_divergence_is_nan_counted_and_never_wins():
    def train(hparams, key):
        curve = jnp.exp(hparams["x"] * jnp.arange(4.0))
        return {"accuracy": 1 - 1 / hparams["x"], "steps": 4, "curve": curve}

    result = sweep(train, {"x": [1.0, 2.0, 80.0]}, seeds=2)
    assert result.data["diverged"].values.tolist() == [[False] * 2, [False] * 2, [True] * 2]
    assert np.isnan(result.data["accuracy"].sel(x=80)).all()
    assert np.isnan(result.data["steps"].sel(x=80)).all()
    assert result.data["steps"].sel(x=1).values.tolist() == [4, 4]
    np.testing.assert_allclose(result.data["curve"].sel(x=80, seed=0), [1, np.exp(80), np.nan, np.nan], rtol=1e-5)
    best = result.best("accuracy", mode="max")
    assert (best.hyperparams, best.diverged) == ({"x": 2.0}, 2)


@pytest.mark.parametrize(
    ("curve", "diverged"),
    [
        ([3.0, 2, np.nan, np.nan], False),  # stopped early
        ([np.nan, 2, np.nan, 1], False),  # measured at every other step
        ([3.0, np.inf, np.nan, np.nan], True),
        ([3.0, -np.inf, 2, 1], True),
        ([np.nan] * 4, True),
    ],
)
def test_a_curve_may_be_padded_with_nan(curve, diverged, tmp_path):
    train = lambda h, key: {"curve": jnp.array(curve, jnp.float32), "y": h["x"]}
    for _ in range(2):  # the second time from disk
        data = sweep(train, {"x": [1.0]}, seeds=1, directory=tmp_path).data
        assert data["diverged"].item() == diverged
        assert np.isnan(data["y"].item()) == diverged
        np.testing.assert_array_equal(data["curve"].values.reshape(-1), np.where(np.isfinite(curve), curve, np.nan))


BIG = 2**53 + 1


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("diverges", [False, True])
def test_integers_of_64_bits_keep_them(dtype, diverges, x64, tmp_path):
    def train(hparams, key):
        big = jnp.array(BIG, dtype)
        bad = jnp.log(hparams["x"] - 1.5) if diverges else hparams["x"]
        return {"big": big, "small": big - jnp.array(BIG - 7, dtype), "curve": big[None], "y": bad}

    for _ in range(2):
        data = sweep(train, {"x": [1.0, 2.0]}, seeds=1, directory=tmp_path).data
        assert [int(x) for x in data["big"].values[diverges:, 0]] == [BIG] * (2 - diverges)
        assert [int(x) for x in data["curve"].values.reshape(-1)] == [BIG] * 2
        assert data["small"].dtype == np.float64  # the same type as without divergence
        assert data["small"].values[1].item() == 7
        assert np.isnan(float(data["big"].values[0, 0])) == np.isnan(data["small"].values[0, 0]) == diverges
        assert SweepResult(data).best("big", "max").hyperparams == {"x": 1.0 + diverges}


def test_a_real_optimizer_grid_survives_divergence():
    result = SweepResult(sweep_worker.sweep())
    assert 0 < result.data["diverged"].sum() < result.data["diverged"].size
    assert np.isfinite(result.best("loss", "min").mean)
    assert result.data["positive"].dtype == np.float64


def test_traced_and_static_values_reach_train_as_they_are():
    seen = []

    def train(hparams, key):
        seen.append({name: getattr(x, "dtype", x) for name, x in hparams.items()})
        return {"y": hparams["a"] + hparams["b"].astype(float)}

    axes = {"a": [1, 0.5], "b": range(2), "c": [None], "d": [True], "e": [jnp.sin], "f": {"32": 32}}
    data = sweep(train, axes, seeds=1).data
    assert seen == [{"a": jnp.float32, "b": jnp.int32, "c": None, "d": True, "e": jnp.sin, "f": 32}]
    assert data["y"].squeeze().values.tolist() == [[1, 2], [0.5, 1.5]]
    assert [data[name].values.tolist() for name in "abcdef"] == [[1, 0.5], [0, 1], ["None"], ["True"], ["sin"], ["32"]]
    assert list(data.sizes) == [*"abcdef", "seed"]


def test_arrays_that_train_closes_over_are_arguments_and_keys_are_kept():
    key = jax.random.key(7)
    big = np.arange(1000, dtype=np.float32)
    train = lambda hparams, k: {"y": (big * hparams["x"]).sum() + jax.random.normal(key)}
    data = sweep(train, {"x": [1.0, 2.0]}, seeds=1).data
    expected = np.array([[1], [2]]) * big.sum() + jax.random.normal(key)
    np.testing.assert_allclose(data["y"], expected, rtol=1e-6)


def test_numpy_numbers_count_as_numbers():
    data = sweep(one, {"x": np.linspace(0, 1, 3)}, seeds=np.array([3, 1]), chunk=np.int64(2)).data
    assert data["seed"].values.tolist() == [3, 1]


def test_a_seeds_key_is_the_same_with_and_without_vmap_whatever_the_default():
    with jax.default_prng_impl("rbg"):  # not exact under vmap
        data = sweep(lambda h, key: {"y": jax.random.normal(key) + 0 * h["x"]}, {"x": [1.0, 2.0]}, seeds=2).data
    expected = [jax.random.normal(jax.random.key(seed, impl="threefry2x32")) for seed in (0, 1)]
    np.testing.assert_array_equal(data["y"], [expected, expected])


def one(hparams, key):
    return {"y": hparams["x"]}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "axes={}: pass a dict"),
        ([("x", [1.0])], "pass a dict"),
        ({"x": []}, r"axes\['x'\] is empty"),
        ({"x": 1.0}, r"axes\['x'\]=1.0: pass a list"),
        ({"x": "adam"}, r"axes\['x'\]='adam': pass a list"),
        ({"x": np.ones((2, 2))}, r"(?s)axes\['x'\].*pass a list"),
        ({"x": [1.0, np.nan]}, r"axes\['x'\] has nan: pass finite"),
        ({"x": [1.0, np.inf]}, r"axes\['x'\] has inf: pass finite"),
        ({"x": [1, 2**31]}, r"axes\['x'\] has 2147483648: pass finite numbers that int32"),
        ({"x": [0.1, 0.1]}, "in float32 has .* twice"),
        ({"x": [0.1, 0.1 + 1e-12]}, "in float32 has .* twice"),
        ({"x": ["a", "a"]}, r"axes\['x'\] has 'a' twice"),
        ({"x": [None, "None"]}, r"axes\['x'\] has 'None' twice"),
        ({"x": {1: "a", "1": "b"}}, r"axes\['x'\] has '1' twice"),
        ({"x": [1e-50, 0.5]}, r"axes\['x'\] has 1e-50: pass finite numbers that float32"),
        ({"x": [1j, 2j]}, r"axes\['x'\].*has no name"),
        ({"x": [lambda: 1]}, r"axes\['x'\].*has no name; pass a dict of named values"),
        ({"x": [{"kernel": 1}]}, r"axes\['x'\].*has no name; pass a dict of named values"),
        ({"seed": [1.0]}, "'seed' can't be an axis' name"),
        ({1: [1.0]}, "1 can't be an axis' name"),
        ({"y": [1.0], "x": [1.0]}, "train returned 'y', a name that the dataset has already"),
    ],
)
def test_bad_axes(axes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(one, axes)


@pytest.mark.parametrize("seeds", [0, -1, [], [-1], [2**32], 1.5, True, "12", [0, 0], {0, 1}, [1.0], jnp.ones((1, 1))])
def test_bad_seeds(seeds):
    with pytest.raises(ValueError, match="seeds"):
        sweep(one, {"x": [1.0]}, seeds=seeds)


def test_duplicate_seeds_are_named_with_the_fix():
    with pytest.raises(ValueError, match=r"seeds has 3 twice, .*: seeds=\[3, 1\]$"):
        sweep(one, {"x": [1.0]}, seeds=[3, 1, 3])


@pytest.mark.parametrize(
    "seeds", [jnp.arange(3), np.arange(3), xarray.DataArray([0, 1, 2]), [jnp.int32(0), np.uint8(1), 2], jnp.int32(3)]
)
def test_seeds_of_any_library(seeds):
    assert sweep(one, {"x": [1.0]}, seeds=seeds).data["seed"].values.tolist() == [0, 1, 2]


class Tensor:
    """A vector of another library: it has a shape, entries of its own type, and NumPy can read it."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape = self.values.shape

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)

    def __iter__(self):
        return map(Tensor, self.values)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (jnp.array([0.5, 0.25]), [0.5, 0.25]),
        (xarray.DataArray([0.5, 0.25]), [0.5, 0.25]),
        (pandas.Series([0.5, 0.25]), [0.5, 0.25]),
        (Tensor([0.5, 0.25]), [0.5, 0.25]),
        ([Tensor(0.5), jnp.bfloat16(0.25)], [0.5, 0.25]),
        ([fractions.Fraction(1, 2), decimal.Decimal("0.25")], [0.5, 0.25]),
        ([1, 0.5], [1.0, 0.5]),
        (Tensor([3, 4]), [3, 4]),
    ],
)
def test_axes_of_any_library_are_traced(values, labels, tmp_path):
    data = sweep(one, {"x": values}, directory=tmp_path).data
    assert data["x"].values.tolist() == labels
    np.testing.assert_array_equal(data["y"], np.repeat(np.asarray(labels)[:, None], 3, axis=1))
    assert sweep(one, {"x": labels}, directory=tmp_path).data.identical(data)


@pytest.mark.parametrize("values", [np.array([True, False]), [np.bool_(True), False], jnp.array([True, False])])
def test_bools_of_any_library_are_static(values):
    seen = []
    data = sweep(lambda h, k: seen.append(h["nesterov"]) or {"y": h["x"]}, {"x": [1.0], "nesterov": values}).data
    assert seen == [True, False]
    assert data["nesterov"].values.tolist() == ["True", "False"]


@pytest.mark.parametrize("values", [{0.1, 0.2}, frozenset({"a", "b"})])
def test_sets_have_no_order_and_are_refused(values):
    with pytest.raises(TypeError, match=r"axes\['x'\] is a set, which has no order: axes\['x'\]=sorted"):
        sweep(one, {"x": values})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"train": None}, r"train=None: pass a function \(hparams, key\)"),
        ({"chunk": 0}, "chunk=0"),
        ({"chunk": 1.5}, "chunk=1.5"),
        ({"devices": []}, r"devices=\[\]: pass a list of distinct devices such as jax.devices\(\), or None"),
        ({"devices": jax.devices()[:1] * 2}, "devices=.* pass a list of distinct devices"),
        ({"devices": ["cpu"]}, "devices=.* pass a list of distinct devices"),
        ({"devices": jax.devices()[0]}, r"devices=.*: pass a list, such as jax.devices\(\)\[:1\]"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(**{"train": one, "axes": {"x": [1.0]}} | option)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda h, k: h["x"], "must return a dict of metrics"),
        (lambda h, k: {}, "must return a dict of metrics"),
        (lambda h, k: {1: h["x"]}, "must return a dict of metrics"),
        (lambda h, k: {"y": "text"}, "returned 'y': 'text', which isn't an array"),
        (lambda h, k: {"y": {"z": h["x"]}}, "returned 'y': .* which isn't an array"),
        (lambda h, k: {"y": None}, "returned 'y': None, which isn't an array"),
        (lambda h, k: {"y": jnp.zeros((2, 0))}, r"returned 'y' of shape \(2, 0\)"),
        (lambda h, k: {"y": jax.lax.complex(h["x"], h["x"])}, "returned 'y' of type complex64"),
        (lambda h, k: {"y": k}, "returned 'y' of type key<fry>"),
        (lambda h, k: {"diverged": h["x"]}, "returned 'diverged', a name"),
        (lambda h, k: {"y": jnp.ones(2), "y_0": h["x"]}, "returned 'y_0', a name"),
    ],
)
def test_bad_returns(train, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sweep(train, {"x": [1.0]})


@pytest.mark.parametrize("other", [{"y": jnp.ones(2)}, {"z": 1.0}, {"y": 1.0, "z": 1.0}])
def test_train_must_return_the_same_for_all_static_values(other):
    train = lambda hparams, key: {"y": hparams["x"]} if hparams["kind"] == "a" else other
    with pytest.raises(ValueError, match=r"train returned '[yz]' with .* for kind='a', with .* for kind='b'"):
        sweep(train, {"kind": ["a", "b"], "x": [1.0]})


@pytest.mark.parametrize(
    "use", [lambda x: jnp.ones(x), lambda x: 1.0 if x > 2 else 2.0, lambda x: np.asarray(x) + 1, lambda x: range(x)[-1]]
)
def test_a_hyperparameter_that_does_not_trace_is_named_with_its_fix(use):
    train = lambda hparams, key: {"y": jnp.float32(use(hparams["width"])).sum() * hparams["x"]}
    with pytest.raises(TypeError, match=r"train uses 'width' where .* axes\['width'\]={'2': 2, '4': 4}"):
        sweep(train, {"x": [1.0], "width": [2, 4]})
    assert sweep(train, {"x": [1.0], "width": {"2": 2, "4": 4}}).data.sizes["width"] == 2


def test_an_error_of_trains_own_is_left_alone():
    def train(hparams, key):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        sweep(train, {"x": [1.0]})


@pytest.mark.parametrize("module", ["xarray", "tqdm"])
def test_without_the_extra_the_error_names_it(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs {module}: pip install "wd_optax\[sweep\]"'):
        sweep(one, {"x": [1.0]})


def test_optional_modules_are_in_the_extra_that_errors_name():
    project = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())
    for module, extra in optional.EXTRAS.items():
        names = [re.match(r"[\w-]+", line)[0] for line in project["project"]["optional-dependencies"][extra]]
        assert module.partition(".")[0] in names


def test_bar_shows_points_and_divergence_on_a_terminal_only(monkeypatch, capsys):
    axes = {"x": [0.5, 80.0]}
    train = lambda hparams, key: {"y": jnp.exp(2 * hparams["x"])}
    wd.sweep(train, axes, seeds=1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    wd.sweep(train, axes, seeds=1)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "diverged=1" in shown


def test_a_monitored_optimizer_trains_in_a_sweep():
    def train(hparams, key):
        tx = wd.monitor_decay(wd.sgdw(0.1, weight_decay=hparams["weight_decay"]))
        params = {"kernel": jax.random.normal(key, (3, 2))}
        _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        return {"removed": wd.read_decay(state)["weight"].update_norm / wd.weight_norm(params)}

    # The monitor's float64 constants stay float64. Two roundings of float32.
    found = sweep(train, {"weight_decay": [0.5, 1.0]}, seeds=1).data["removed"]
    np.testing.assert_allclose(found[:, 0], [0.05, 0.1], rtol=3e-7)


def test_a_thread_is_left_for_lapack():
    """A batched eigh waits for threads of the pool that the devices' programs hold: on all of them it hung."""

    def train(hparams, key):
        root = jax.random.normal(key, (3, 3))
        step = lambda carry, _: (carry, jnp.linalg.eigh(root @ root.T + hparams["weight_decay"] * jnp.eye(3))[0].min())
        return {"least": jax.lax.scan(step, 0.0, length=2)[1][-1]}

    devices, key = jax.devices(), jax.random.key(0)
    program = jax.make_jaxpr(lambda x: train({"weight_decay": x}, key)["least"])(1.0).jaxpr
    assert len(without_deadlock(devices, program)) == max(len(os.sched_getaffinity(0)), len(devices)) - 1
    assert without_deadlock(devices[:2], program) == devices[:2]
    assert without_deadlock(devices, jax.make_jaxpr(jnp.sin)(1.0).jaxpr) == devices
    swept = wd.sweep(train, {"weight_decay": [0.0, 1.0]}, seeds=8, progress=False).data
    assert swept.attrs["devices"].startswith(f"{len(without_deadlock(devices, program))} × ")
    found = swept["least"]
    np.testing.assert_allclose(found[1] - found[0], 1.0, atol=1e-5)  # of a matrix of size 10, in float32
