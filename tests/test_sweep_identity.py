"""The identity of a sweep: a call that differs in anything that changes numbers is refused by name."""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray

import wd_optax as wd
from wd_optax.choosing.sweeping import chunk, fingerprint, identity
from wd_optax.choosing.sweeping.execute import Executor

ROOT = pathlib.Path(__file__).parents[1]


def product(hparams, key):
    """A number that shows which axis was which."""
    return {"y": 100 * hparams["learning_rate"] + hparams["weight_decay"] + 0 * jax.random.uniform(key)}


def sweep(folder, **options):
    call = {"train": product, "axes": {"learning_rate": [1.0, 2.0], "weight_decay": [3.0, 4.0]}, "seeds": 1} | options
    return wd.sweep(call.pop("train"), call.pop("axes"), directory=folder, progress=False, **call).data


def test_axes_in_another_order_on_the_same_directory_are_refused(tmp_path):
    sweep(tmp_path)
    with pytest.raises(ValueError, match=r"axes: \['learning_rate', 'weight_decay'\] there, \['weight_decay', 'lear"):
        sweep(tmp_path, axes={"weight_decay": [3.0, 4.0], "learning_rate": [1.0, 2.0]})
    assert sweep(tmp_path)["y"].sel(learning_rate=1, weight_decay=3).item() == 103


def test_static_axes_in_another_order_are_refused(tmp_path):
    kinds = {"a": {"p": 1.0, "q": 2.0}, "b": {"p": 3.0, "q": 4.0}}
    run = lambda *names: wd.sweep(
        lambda h, key: {"y": 10 * h["a"] + h["b"]}, {n: kinds[n] for n in names}, seeds=1, directory=tmp_path
    )
    before = run("a", "b").data
    with pytest.raises(ValueError, match=r"axes: \['a', 'b'\] there, \['b', 'a'\] here"):
        run("b", "a")
    assert run("a", "b").data.identical(before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_threefry_partitionable", False),
        ("jax_default_matmul_precision", "highest"),
        ("jax_default_prng_impl", "rbg"),
        ("jax_enable_x64", True),
        ("jax_random_seed_offset", 3),
    ],
)
def test_a_setting_that_changes_numbers_is_refused_by_name(name, value, tmp_path):
    sweep(tmp_path)
    old = jax.config.values[name]
    try:
        jax.config.update(name, value)
        with pytest.raises(ValueError, match=f"settings.{name}: {old} there, {value} here"):
            sweep(tmp_path)
    finally:
        jax.config.update(name, old)


def test_a_setting_in_a_with_block_counts_and_a_harmless_one_does_not(tmp_path):
    before = sweep(tmp_path)
    with jax.threefry_partitionable(False), pytest.raises(ValueError, match=r"settings\.jax_threefry_partitionable"):
        sweep(tmp_path)
    with jax.log_compiles(), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert sweep(tmp_path).identical(before)


@pytest.mark.parametrize("name", [*identity.FLAGS])
def test_flags_of_the_environment_count_and_numbers_of_devices_do_not(name, monkeypatch):
    plain = identity.settings()
    monkeypatch.setenv(name, f"{os.environ.get(name, '')} --xla_force_host_platform_device_count=3")
    assert identity.settings() == plain
    monkeypatch.setenv(name, "--xla_cpu_enable_fast_math=true")
    assert identity.settings() == plain | {name: "--xla_cpu_enable_fast_math=true"}


@pytest.mark.parametrize("package", ["jax", "jaxlib", "numpy"])
def test_other_versions_are_refused(package, tmp_path, monkeypatch):
    sweep(tmp_path)
    real = identity.importlib.metadata.version
    monkeypatch.setattr(identity.importlib.metadata, "version", lambda name: "0" if name == package else real(name))
    with pytest.raises(ValueError, match=f"versions.{package}: .* there, 0 here"):
        sweep(tmp_path)


def double(x):
    return np.asarray(2 * x)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("call", [jax.pure_callback, jax.experimental.io_callback])
def test_callbacks_are_refused_with_a_directory_and_run_without(call, nested, tmp_path):
    inner = lambda x: call(double, jax.ShapeDtypeStruct((), x.dtype), x, **kwargs)
    kwargs = {"vmap_method": "sequential"} if call is jax.pure_callback else {}
    step = lambda x: jax.lax.scan(lambda c, _: (inner(c), None), x, length=1)[0]
    train = lambda h, key: {"y": (step if nested else inner)(h["learning_rate"]) + h["weight_decay"]}
    with pytest.raises(TypeError, match=rf"train has {call.__name__} of double, .* pass directory=None"):
        sweep(tmp_path, train=train)
    assert not list(tmp_path.iterdir())
    assert sweep(None, train=train)["y"].sel(learning_rate=2, weight_decay=3).item() == 7


def test_debug_prints_are_no_callbacks(tmp_path):
    def train(hparams, key):
        jax.debug.print("{}", hparams["learning_rate"])
        jax.debug.callback(double, hparams["learning_rate"])
        return product(hparams, key)

    assert sweep(tmp_path, train=train)["y"].sel(learning_rate=1, weight_decay=3).item() == 103


def test_every_entry_of_a_long_array_counts():
    """NumPy's text of a long array omits its middle."""
    prints = []
    for middle in (0.0, 1.0):
        data = np.zeros(5000)
        data[2500] = middle
        prints.append(fingerprint.fingerprint(jax.make_jaxpr(jax.jit(lambda x, d=data: (x * d).sum()))(1.0), {}))
    assert prints[0] != prints[1]


@pytest.mark.parametrize("other", [np.nextafter(np.float32(0.1), np.float32(1)), -0.1, np.float32(0.1) * 2])
def test_literals_count_to_the_last_bit(other):
    trace = lambda k: fingerprint.fingerprint(jax.make_jaxpr(lambda x: x * jnp.float32(k))(1.0), {})
    assert trace(0.1) == trace(np.float32(0.1)) != trace(other)


def some_work(x):
    """An optimizer, inner functions, a custom derivative, random keys."""
    tx = optax.adamw(x)
    grad = jax.grad(lambda p: jax.nn.softmax(jax.jit(jnp.sin)(p)).sum())(jnp.ones(3))
    return tx.update(grad, tx.init(grad), grad)[0], jax.nn.relu(x), jax.random.normal(jax.random.key(0))


@pytest.mark.optax_promotes
def test_an_identity_is_the_same_in_another_process():
    """It depends neither on Python's hash seed nor on memory addresses."""
    code = (
        "import jax, test_sweep_identity as t\nprint(t.fingerprint.fingerprint(jax.make_jaxpr(t.some_work)(1.0), {}))\n"
    )
    environ = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    found = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert found.stdout == fingerprint.fingerprint(jax.make_jaxpr(some_work)(1.0), {}) + "\n"


def test_a_manifest_is_readable(tmp_path):
    sweep(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["identity"]["axes"] == [
        {"name": "learning_rate", "type": "float32", "values": [1.0, 2.0]},
        {"name": "weight_decay", "type": "float32", "values": [3.0, 4.0]},
    ]
    assert content["sweep"] == identity.digest(content["identity"])
    assert {"jax", "jaxlib", "numpy", "python", "wd_optax"} == set(content["identity"]["versions"])
    assert content["identity"]["versions"]["wd_optax"] == wd.__version__


def test_the_format_of_files_is_stable(tmp_path):
    """Sweeps that were stored before names in the code changed can be resumed."""
    sweep(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert [*content] == ["format", "sweep", "identity"]
    assert [*content["identity"]] == ["versions", "settings", "device", "axes", "seeds", "metrics", "train"]
    body = (tmp_path / "runs-00000000.nc").read_bytes()[: -chunk.SEAL_SIZE]
    with xarray.open_dataset(io.BytesIO(body), engine="scipy") as data:
        assert {*data.variables} == {"runs", "diverged", "metric_0"}
        assert data.attrs["program"] == "the grid"
        assert {*data.attrs} == {"sweep", "program", "width", "asked"}


def test_a_folder_without_a_finished_run_can_be_used(tmp_path, monkeypatch):
    """After a mistake that shows in the first launch, the corrected call can use the same folder."""
    monkeypatch.setattr(Executor, "launch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep(tmp_path)
    monkeypatch.undo()
    (tmp_path / "manifest.json").write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged, or not a sweep's"):
        sweep(tmp_path)
    (tmp_path / "manifest.json").unlink()
    first = sweep(tmp_path, seeds=2)
    for file in tmp_path.glob("*.nc"):
        file.unlink()
    assert sweep(tmp_path)["y"].sel(seed=0).values.tolist() == first["y"].sel(seed=0).values.tolist()
