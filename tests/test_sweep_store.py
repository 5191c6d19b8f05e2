"""A sweep on disk: killed, resumed, refused, on a full disk; and on two processes with two devices each."""

import errno
import multiprocessing
import os
import pathlib
import resource
import signal
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sweep_worker
import xarray

import wd_optax as wd
from wd_optax.choosing.sweeping import identity, store
from wd_optax.choosing.sweeping.execute import Executor

pytestmark = pytest.mark.slow

CHUNK = 4
LAUNCHES = 8  # 32 runs in chunks of 4


# Forks a process that has imported what sweeps need, and has no JAX backend.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["wd_optax.choosing.sweeping.sweep", "jaxlib.mlir.dialects.mhlo", "scipy.io", "tqdm.auto", "xarray"]
)


def start(log, **options):
    process = FORKS.Process(target=sweep_worker.main, kwargs={"log": str(log), **options})
    process.start()
    return process


def status(process):
    """The status with which a process ended, and None if it has to be killed."""
    process.join(120)
    ended = process.exitcode
    process.kill()
    process.join(10)
    return ended


def bits(data):
    """Everything in a dataset, with the bits of its NaNs."""
    arrays = {name: (x.dims, str(x.dtype), x.values.tobytes()) for name, x in data.variables.items()}
    return arrays | data.attrs


@pytest.fixture(scope="module")
def whole():
    return sweep_worker.sweep(chunk=CHUNK)


@pytest.fixture
def launches(monkeypatch):
    """Counts launches."""
    found, real = [], Executor.launch
    monkeypatch.setattr(Executor, "launch", lambda *args: found.append(args) or real(*args))
    return found


@pytest.mark.parametrize(
    ("kill", "kept"), [(["fsync", 7], 2), (["fsync", 8], 3), (["replace", 5], 3), (["launch", 7], 6)]
)
def test_killed_sweep_resumes_to_the_same_bits(kill, kept, tmp_path, whole, launches):
    """The manifest is the first file that is written; each is synced, renamed, and its folder synced."""
    log, folder = tmp_path / "log", tmp_path / "new" / "folder"
    worker = start(log, directory=str(folder), chunk=CHUNK, kill=kill)
    assert status(worker) == -signal.SIGKILL, log.read_text()
    assert len(list(folder.glob("*.nc"))) == kept
    assert len(list(folder.glob("*.part"))) == (kill in (["fsync", 7], ["replace", 5]))
    (folder / "runs-99999999.nc.part").write_text("half")
    resumed = sweep_worker.sweep(chunk=CHUNK, directory=folder)
    assert bits(resumed) == bits(whole)
    assert len(launches) == LAUNCHES - kept
    assert not list(folder.glob("*.part"))
    assert bits(sweep_worker.sweep(directory=folder, devices=jax.devices()[:CHUNK])) == bits(whole)
    assert len(launches) == LAUNCHES - kept  # nothing was trained


def test_resumes_on_another_number_of_devices_with_the_same_bits(tmp_path, launches, monkeypatch):
    two, one = jax.devices()[:2], jax.devices()[:1]
    expected = sweep_worker.sweep(chunk=6, devices=two)
    launches.clear()
    monkeypatch.setattr(store.Store, "save", interrupt_after(2, store.Store.save))
    with pytest.raises(KeyboardInterrupt):
        sweep_worker.sweep(chunk=6, devices=two, directory=tmp_path)
    monkeypatch.undo()
    resumed = sweep_worker.sweep(devices=one, directory=tmp_path)
    assert resumed.attrs["chunk"] == 3
    assert resumed.drop_attrs().identical(expected.drop_attrs())


def interrupt_after(count, real):
    calls = iter(range(count))

    def save(*args):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*args)

    return save


def test_second_process_is_refused_and_a_dead_one_is_not(tmp_path, whole):
    other = store.Store(tmp_path, {"metrics": {}})
    with pytest.raises(RuntimeError, match="in use by another process"):
        sweep_worker.sweep(chunk=CHUNK, directory=tmp_path)
    other.lock.close()  # as the kernel does
    assert bits(sweep_worker.sweep(chunk=CHUNK, directory=tmp_path)) == bits(whole)


SHIFT = np.arange(3, dtype=np.float32)


def line(hparams, key):
    return {"y": (hparams["x"] * SHIFT).sum() + jax.random.uniform(key)}


def shifted(hparams, key):
    """The same program with another constant."""
    return {"y": (hparams["x"] * (SHIFT + 1)).sum() + jax.random.uniform(key)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": {"x": [1.0, 3.0]}}, r"axes.x: \[1.0, 2.0\] there, \[1.0, 3.0\] here"),
        ({"axes": {"x": [1.0, 2.0], "z": [1.0]}}, r"axes.z: nothing there, \[1.0\] here"),
        ({"seeds": [0, 7]}, r"seeds: \[0, 1\] there, \[0, 7\] here"),
        ({"train": lambda h, key: {"y": (h["x"] * SHIFT).sum() - jax.random.uniform(key)}}, "train.the grid: "),
        ({"train": shifted}, "train.the grid: "),
        ({"train": lambda h, key: line(h, key) | {"more": SHIFT}}, r"metrics.more: nothing there, \[\[3\]"),
        ({"chunk": 4}, "chunk: 1 at a time on each device there, 2 here"),
        ({"version": "0"}, "versions.wd_optax: .* there, 0 here"),
    ],
)
def test_another_sweep_is_refused_with_what_differs(change, message, tmp_path, monkeypatch):
    call = {"train": line, "axes": {"x": [1.0, 2.0]}, "seeds": 2, "chunk": 2}
    run = lambda o: wd.sweep(o.pop("train"), o.pop("axes"), devices=jax.devices()[:2], directory=tmp_path, **o)
    before = run(dict(call)).data
    if version := change.pop("version", None):
        monkeypatch.setattr(identity, "__version__", version)
    with pytest.raises(ValueError, match="made by another sweep") as error:
        run(call | change)
    assert error.match(message)
    monkeypatch.undo()
    assert run(dict(call)).data.identical(before)


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: lambda x: jax.lax.map(f, x[None])[0]], ids=["jit", "map"])
def test_other_data_inside_an_inner_function_is_refused(wrap, tmp_path):
    def sweep(data):
        inner = wrap(jax.jit(lambda x: (x * data).sum() + 1))
        return wd.sweep(lambda h, key: {"y": inner(h["x"])}, {"x": [1.0, 2.0]}, seeds=1, directory=tmp_path)

    first = sweep(np.arange(5.0, dtype=np.float32)).data
    np.testing.assert_array_equal(first["y"].values[:, 0], [11, 21])
    xarray.testing.assert_identical(sweep(np.arange(5.0, dtype=np.float32)).data, first)
    with pytest.raises(ValueError, match=r"another sweep:\n  train"):
        sweep(np.arange(5.0, dtype=np.float32) + 1)


def test_an_equal_function_is_the_same(tmp_path):
    wd.sweep(line, {"x": [1.0]}, directory=tmp_path)
    wd.sweep(lambda h, key: line(dict(h), key), {"x": [1.0]}, directory=tmp_path)


def test_chunks_without_a_manifest_are_refused(tmp_path):
    (tmp_path / "someones.nc").touch()
    with pytest.raises(ValueError, match=r"has \.nc files and no manifest"):
        wd.sweep(line, {"x": [1.0]}, directory=tmp_path)


def out_of_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["fsync", "write"])
def test_full_disk_loses_no_finished_chunk(function, tmp_path, whole, monkeypatch):
    """A disk that is full at an fsync, and a real limit on the size of files."""
    real, calls = os.fsync, iter(range(8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fsync(file):
        if next(calls, None) is None:
            out_of_space()
        return real(file)

    if function == "fsync":
        monkeypatch.setattr(os, "fsync", fsync)  # twice each: the manifest, three chunks, then no more
        kept, what = 3, "No space left on device"
    else:
        monkeypatch.setattr(store.Store, "save", limit_after(3, store.Store.save, hard))
        kept, what = 3, "File too large"
    try:
        with pytest.raises(OSError, match=f"{what}: directory=.*what was finished is kept: free some space"):
            sweep_worker.sweep(chunk=CHUNK, directory=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".json", *[".nc"] * kept]
    assert bits(sweep_worker.sweep(chunk=CHUNK, directory=tmp_path)) == bits(whole)


def limit_after(count, real, hard):
    calls = iter(range(count))

    def save(*args):
        if next(calls, None) is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
        return real(*args)

    return save


@pytest.mark.parametrize("when", ["at the start", "half way"])
def test_folder_that_cannot_be_written(when, tmp_path, monkeypatch):
    real, calls = pathlib.Path.open, iter(range(0 if when == "at the start" else 4))

    def read_only(path, mode="r", *args, **kwargs):
        if mode != "r" and tmp_path in path.parents and next(calls, None) is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "open", read_only)
    with pytest.raises(OSError, match=r"Read-only file system: directory=.* make it writable") as error:
        sweep_worker.sweep(chunk=CHUNK, directory=tmp_path)
    assert error.value.errno == errno.EROFS
    assert len(list(tmp_path.glob("*.nc"))) == (0 if when == "at the start" else 2)


def test_folder_without_permission(tmp_path, monkeypatch):
    """Root may write anywhere, so the folder is opened as the user nobody, but only there: imports need root."""
    tmp_path.chmod(0o500)
    me, real = os.geteuid(), store.Store._open

    def as_nobody(self):
        os.seteuid(65534 if me == 0 else me)
        try:
            real(self)
        finally:
            os.seteuid(me)

    monkeypatch.setattr(store.Store, "_open", as_nobody)
    with pytest.raises(PermissionError, match="make it writable"):
        wd.sweep(line, {"x": [1.0]}, directory=tmp_path / "new")


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "int32", "float16", "bfloat16", "float32"])
def test_every_type_of_metric_comes_back_from_disk(dtype, tmp_path):
    values = jnp.arange(3).astype(dtype)
    train = lambda hparams, key: {"λ / loss": values, "y": hparams["x"]}
    fresh = wd.sweep(train, {"x": [1.0, jnp.float32(2)]}, directory=tmp_path).data
    again = wd.sweep(train, {"x": [1.0, 2.0]}, directory=tmp_path).data
    assert bits(fresh) == bits(again)
    assert fresh["λ / loss"].dtype == (np.float64 if dtype in ("int32", "uint32") else np.float32)
    assert (fresh["λ / loss"].values == np.asarray(values, np.float64)).all()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def pair(tmp_path, directory, kill=None):
    """Two processes with two devices each; the second one may kill itself."""
    options = {"directory": str(directory), "chunk": CHUNK, "port": free_port()}
    own = [{"process": i, "out": str(tmp_path / f"{i}.nc")} for i in range(2)]
    own[1]["kill"] = kill
    return [start(tmp_path / f"log{i}", **options, **o) for i, o in enumerate(own)]


def test_two_processes_one_killed_then_resumed(tmp_path, whole):
    folder = tmp_path / "shared"
    first, second = pair(tmp_path, folder, kill=["launch", 4])
    try:
        assert status(second) == -signal.SIGKILL, (tmp_path / "log1").read_text()
        first.join(1)  # it waits for the dead one
    finally:
        first.kill()
        first.join(10)
    assert not (tmp_path / "0.nc").exists()
    kept = len(list(folder.glob("*.nc")))
    assert 2 <= kept <= 3
    ends = [status(process) for process in pair(tmp_path, folder)]
    assert ends == [0, 0], [(tmp_path / f"log{i}").read_text() for i in range(2)]
    for i in range(2):
        found = xarray.load_dataset(tmp_path / f"{i}.nc", engine="scipy")
        for name in whole.data_vars:
            np.testing.assert_array_equal(found[name].values, whole[name].values)
    assert len(list(folder.glob("*.nc"))) == LAUNCHES
