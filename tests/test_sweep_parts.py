"""The parts of a sweep, one for each job of a job array: shares, their merge, and what is missing."""

import itertools
import pathlib
import shutil

import jax
import numpy as np
import pytest

import wd_optax as wd
from wd_optax.choosing.sweeping import grid, parts
from wd_optax.choosing.sweeping.execute import Executor

AXES = {"kind": ["a", "b", "c"], "x": [1.0, 2.0, 3.0]}
SCALE = {"a": 1.0, "b": 2.0, "c": 3.0}


def train(hparams, key):
    y = SCALE[hparams["kind"]] * hparams["x"] + jax.random.uniform(key)
    return {"y": y, "count": 7, "curve": hparams["x"] * np.arange(3, dtype=np.float32)}


def sweep(folder=None, **options):
    options = {"seeds": 2, "progress": False, "devices": jax.devices()[:1]} | options
    return wd.sweep(options.pop("train", train), options.pop("axes", AXES), directory=folder, **options)


@pytest.mark.parametrize(("values", "jobs"), [*itertools.product([1, 2, 5], [1, 2, 3, 6])])
def test_shares_are_even_and_hold_every_run_once(values, jobs):
    axes = {"kind": ["a", "b"], "x": [float(x) for x in range(values)], "size": {"s": 1, "l": 2}}
    groups = list(grid.make_grid(axes, seeds=3).static_groups())
    shares = [parts.share(groups, (i, jobs)) for i in range(jobs)]
    sizes = [sum(len(group.runs) for group in share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for k, group in enumerate(groups):
        for name in ("seeds", "runs"):
            together = np.concatenate([getattr(share[k], name) for share in shares])
            np.testing.assert_array_equal(together, getattr(group, name))
        np.testing.assert_array_equal(np.concatenate([share[k].traced["x"] for share in shares]), group.traced["x"])
    assert sum(len(group.runs) > 0 for share in shares for group in share) < len(groups) + jobs  # few programs


def test_parts_merge_to_the_numbers_of_one_sweep(tmp_path, monkeypatch):
    for i in (2, 0, 1):
        own = sweep(tmp_path, part=(i, 3)).data
        assert own.attrs["part"] == f"{i} of 3; the runs of the others are NaN"
        for name in ("y", "count"):
            assert int(np.isfinite(own[name].astype(float)).sum()) == 6
        assert own["curve"].notnull().sum() == 18
        assert not own["diverged"].any()
    monkeypatch.setattr(Executor, "launch", None)  # nothing is trained
    merged = sweep(tmp_path).data
    monkeypatch.undo()
    assert merged.drop_attrs().identical(sweep().data.drop_attrs())
    assert merged.attrs == {"strategy": "6 runs at a time (vmap) on each device, merged from 3 parts"}


def test_the_merge_says_what_is_missing_and_trains_nothing(tmp_path, monkeypatch):
    sweep(tmp_path, part=(1, 4))
    (tmp_path / "part-3-of-4").mkdir()  # of a job that was killed before its first runs
    monkeypatch.setattr(Executor, "launch", None)
    with pytest.raises(RuntimeError) as error:
        sweep(tmp_path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("is kept in parts, and 13 of 18 runs are missing:")
    assert lines[1:4] == [f"  part=({i}, 4): {n} of {n} runs" for i, n in ((0, 4), (2, 4), (3, 5))]
    assert lines[4] == "wait for those jobs, or repeat the call with each of these parts; what is finished is kept"


def test_a_merge_reads_beside_a_job_that_runs_and_changes_no_file(tmp_path):
    half, rest = tmp_path / "half", tmp_path / "all"
    for i in range(2):
        sweep(half, part=(i, 2), chunk=3)
    shutil.copytree(half, rest)
    (victim, *_) = sorted((rest / "part-1-of-2").glob("*.nc"))
    victim.write_bytes(victim.read_bytes()[:-1])
    leftover = rest / "part-1-of-2" / "runs-00000009.nc.part"
    leftover.write_text("half")
    lock = (rest / "part-1-of-2" / "lock").open("a")
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_EX)
    with lock, pytest.raises(RuntimeError, match=r"3 of 18 runs are missing:\n  part=\(1, 2\): 3 of 9 runs\n"):
        sweep(rest)
    assert victim.exists()
    assert leftover.exists()
    sweep(rest, part=(1, 2), chunk=3)
    assert sweep(rest).data.identical(sweep(half).data)
    assert not leftover.exists()


def test_parts_of_another_sweep_are_refused_by_name(tmp_path):
    sweep(tmp_path, part=(0, 2))
    with pytest.raises(ValueError, match=r"part-0-of-2' was made by another sweep:\n  axes.x: \[1.0, 2.0, 3.0\] there"):
        sweep(tmp_path, axes=AXES | {"x": [1.0, 2.0, 4.0]})


def test_a_finished_part_can_be_read_from_a_read_only_folder(tmp_path, monkeypatch):
    expected = sweep(tmp_path, part=(0, 2)).data
    real = pathlib.Path.open

    def read_only(path, mode="r", *args, **kwargs):
        if mode[0] != "r":
            raise PermissionError(13, "Permission denied")
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "open", read_only)
    assert sweep(tmp_path, part=(0, 2)).data.identical(expected)
    with pytest.raises(PermissionError, match="make it writable"):
        sweep(tmp_path, part=(1, 2))


@pytest.mark.parametrize("part", [0, (0,), (0, 0), (2, 2), (-1, 2), (0.0, 2), (True, 2), "01", {0, 2}])
def test_bad_parts(part, tmp_path):
    with pytest.raises(ValueError, match=r"part=.*: pass \(i, n\) for job i of n"):
        sweep(tmp_path, part=part)


def test_parts_need_a_folder_and_runs(tmp_path):
    with pytest.raises(ValueError, match=r"part=\(0, 2\) needs a directory that all 2 jobs can write"):
        sweep(part=(0, 2))
    with pytest.raises(ValueError, match=r"part=\(0, 19\): 18 runs can't be divided among 19 jobs; pass n ≤ 18"):
        sweep(tmp_path, part=(0, 19))
    assert sweep(tmp_path, part=(np.int64(0), np.int64(18))).data["y"].notnull().sum() == 1
