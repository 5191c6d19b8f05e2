"""Damaged, foreign and read-only folders of sweeps, and a short run of the table of faults."""

import errno
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import wd_optax as wd
from wd_optax.choosing.sweeping import store

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]


def train(hparams, key):
    return {"y": hparams["x"] + jax.random.uniform(key), "curve": hparams["x"] * np.arange(3, dtype=np.float32)}


def sweep(folder, values=(1.0, 2.0, 3.0, 4.0), **options):
    options = {"seeds": 2, "chunk": 2, "devices": jax.devices()[:1], "progress": False} | options
    return wd.sweep(train, {"x": list(values)}, directory=folder, **options).data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders of two sweeps of the same shape, to be copied, and the numbers of the first."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, sweep(folder / "mine"), sweep(folder / "other", (5.0, 6.0, 7.0, 8.0))


@pytest.fixture
def mine(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished[0] / "mine", tmp_path / "mine"))


def changed(content, at):
    garbled = bytearray(content)
    garbled[at] ^= 1
    return bytes(garbled)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: changed(content, 100), "its checksum is wrong: bits of it have changed"),
        (lambda content: changed(content, -1), "its checksum is wrong"),
        (lambda content: content[:-40] + bytes(40), "its checksum is wrong"),
        (lambda content: content[:-200] + bytes(200), "it is truncated, or not a file of a sweep"),
        (lambda content: content[:50], "it is truncated"),
        (lambda content: b"", "it is truncated"),
        (lambda content: content + b"\n", "it is truncated"),
        ("other", "it belongs to another sweep"),
        ("copy", "it is a copy of another file"),
    ],
)
def test_a_bad_file_is_named_kept_aside_and_its_runs_trained_again(damage, message, mine, finished, caplog):
    file, expected = mine / "runs-00000004.nc", finished[1]
    if damage == "other":
        content = (finished[0] / "other" / file.name).read_bytes()
    elif damage == "copy":
        content = (mine / "runs-00000002.nc").read_bytes()
    else:
        content = damage(file.read_bytes())
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="absl"):
        found = sweep(mine)
    assert found.identical(expected)
    (line,) = [message for message in caplog.messages if str(file) in message]
    assert re.search(f"{message}.*; its runs are trained again, and it is kept as runs-00000004.nc.bad", line)
    assert (mine / "runs-00000004.nc.bad").read_bytes() == content
    caplog.clear()
    assert sweep(mine).identical(expected)
    assert not caplog.messages
    file.write_bytes(b"again")
    assert sweep(mine).identical(expected)
    assert (mine / "runs-00000004.nc.bad1").read_bytes() == b"again"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: changed(content, len(content) // 2),
        lambda content: content[:-1],
        lambda content: content + b"\n",
        lambda content: b"",
        lambda content: b"[]",
        lambda content: b"\xff\xfe",
        lambda content: b'{"format": 2}',
    ],
)
def test_a_bad_manifest_is_an_error_whose_line_works(damage, mine, finished):
    file = mine / "manifest.json"
    file.write_bytes(damage(file.read_bytes()))
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    with pytest.raises(
        ValueError, match=r"manifest.json is damaged, or not a sweep's; nothing .* was changed"
    ) as error:
        sweep(mine)
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    times = {path: path.stat().st_mtime_ns for path in mine.glob("*.nc")}
    exec(re.search(r"pathlib\.Path.*", str(error.value))[0])
    assert sweep(mine).identical(finished[1])
    assert {path: path.stat().st_mtime_ns for path in mine.glob("*.nc")} == times
    assert file.exists()


def test_a_lost_manifest_of_another_sweep_is_refused(mine):
    (mine / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has \.nc files and no manifest.json, and none .* it belongs to another"):
        sweep(mine, (1.0, 2.0, 3.0, 5.0))
    assert len(list(mine.glob("runs-*.nc"))) == 4


def test_a_lost_manifest_is_restored_although_a_file_is_bad(mine, finished):
    (mine / "manifest.json").unlink()
    (mine / "runs-00000004.nc").write_bytes(b"bad")
    assert sweep(mine).identical(finished[1])
    assert (mine / "runs-00000004.nc.bad").read_bytes() == b"bad"


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"versions": {}, "axes": {}, "seeds": [0], "train": {}, "widths": {}}')
    with pytest.raises(ValueError, match="made by an earlier version of wd_optax, whose files have no checksums"):
        sweep(tmp_path)


def test_files_of_others_are_left_alone(tmp_path, finished):
    """*.part files used to be deleted before the manifest was checked."""
    others = ["film.mp4.part", "runs-1.nc.part", "my-manifest.json.part", "notes.txt", "runs-00000000.nc.part.txt"]
    for name in others:
        (tmp_path / name).write_text(name)
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "runs-00000000.nc.part").write_text("half")
    with pytest.raises(ValueError, match="is damaged, or not a sweep's"):
        sweep(tmp_path)
    assert (tmp_path / "runs-00000000.nc.part").exists()  # kept until the folder is known to be this sweep's
    (tmp_path / "manifest.json").unlink()
    assert sweep(tmp_path).identical(finished[1])
    assert not (tmp_path / "runs-00000000.nc.part").exists()
    assert [(tmp_path / name).read_text() for name in others] == others


def read_only(folder, monkeypatch):
    """Imitates a read-only mount, because root may write in spite of file modes."""
    real, made = pathlib.Path.open, pathlib.Path.mkdir

    def refuse(path, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    open_ = lambda path, mode="r", *a, **k: real(path, mode, *a, **k) if "r" in mode else refuse(path)
    monkeypatch.setattr(pathlib.Path, "open", open_)
    monkeypatch.setattr(pathlib.Path, "mkdir", lambda path, **k: made(path, **k) if path.exists() else refuse(path))
    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(pathlib.Path, name, refuse)


@pytest.mark.parametrize("partial", [False, True])
def test_a_read_only_folder_with_a_finished_sweep_is_read(partial, mine, finished, monkeypatch, caplog):
    if partial:
        (mine / "runs-00000004.nc").write_bytes(b"bad")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    read_only(mine, monkeypatch)
    if partial:  # its runs couldn't be saved, so they aren't trained
        with pytest.raises(OSError, match=r"Read-only file system: directory=.*make it writable"):
            sweep(mine)
        assert "runs-00000004.nc: it is truncated" in caplog.text
    else:
        assert sweep(mine).identical(finished[1])
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


def test_a_relative_folder_is_resolved_at_the_call(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)

    def wanders(hparams, key):
        os.chdir(tmp_path / "here")
        return {"y": hparams["x"]}

    wd.sweep(wanders, {"x": [1.0]}, directory="kept", progress=False)
    assert list((tmp_path / "kept").glob("*.nc"))


def test_a_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sweep("~/kept")
    assert list((tmp_path / "kept").glob("*.nc"))


@pytest.mark.parametrize("directory", ["", 3, b"kept", True])
def test_a_bad_directory_is_named(directory):
    with pytest.raises(TypeError, match=f"directory={directory!r}: pass a folder's name, or None"):
        sweep(directory)


def test_the_folder_is_synced_after_each_rename(tmp_path, monkeypatch):
    steps, sync, replace = [], os.fsync, pathlib.Path.replace
    kind = lambda descriptor: "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
    monkeypatch.setattr(os, "fsync", lambda d: steps.append(kind(d)) or sync(d))
    monkeypatch.setattr(pathlib.Path, "replace", lambda *args: steps.append("rename") or replace(*args))
    sweep(tmp_path)
    assert steps == ["file", "rename", "folder"] * 5  # the manifest and four launches


def test_a_file_system_that_cannot_sync_folders_will_do(tmp_path, monkeypatch, finished):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(store.os, "fsync", fsync)
    assert sweep(tmp_path).identical(finished[1])


def test_a_few_trials_of_every_fault(tmp_path):
    """The rows of docs/reliability.md: no wrong number is accepted, and no finished run is lost."""
    command = [sys.executable, "-m", "tests.faults", "--quick", "--docs", str(tmp_path / "page.md")]
    environ = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    names = lambda text: re.findall(r"^\| ([^|]*) \| \d+ \|", text, re.MULTILINE)
    assert names((tmp_path / "page.md").read_text()) == names((ROOT / "docs/reliability.md").read_text())
    assert "lost finished runs: **0**" in (tmp_path / "page.md").read_text()
