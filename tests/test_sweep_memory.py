"""Memory: limits of control groups, halving the width, and widths that only finished runs fix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wd_optax as wd
from wd_optax.choosing.sweeping import batching, memory
from wd_optax.choosing.sweeping.execute import Executor

MB = 10**6
MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    9000000 kB\n"}
STAT = "anon 1\ninactive_file 1000000\n"
TOTAL = "cache 1\ntotal_inactive_file 1000000\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 9_000_000 * 1024),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "5"}, None),
        # Version 2, nested: limits of the group, of its parent, of the root in a container.
        ({"proc/self/cgroup": "0::/a/b\n", "a/b/memory.max": "50000000", "a/b/memory.current": "10000000"}, 40 * MB),
        ({"proc/self/cgroup": "0::/a/b\n", "a/memory.max": "50000000", "a/memory.current": "20000000"}, 30 * MB),
        ({"proc/self/cgroup": "0::/a/b\n", "memory.max": "50000000", "memory.current": "30000000"}, 20 * MB),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "a/memory.max": "50000000",
                "a/memory.current": "10000000",
                "memory.max": "90000000",
                "memory.current": "80000000",
                "memory.stat": STAT,
            },
            11 * MB,
        ),
        # Version 1: limits of the group, of its parent, of the root; an infinite limit; other controllers.
        (
            {
                "proc/self/cgroup": "9:cpu,memory:/a/b\n",
                "memory/a/b/memory.limit_in_bytes": "50000000",
                "memory/a/b/memory.usage_in_bytes": "10000000",
                "memory/a/b/memory.stat": TOTAL,
            },
            41 * MB,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/x\n1:cpu:/docker/x\n0::/\n",
                "memory/memory.limit_in_bytes": "50000000",
                "memory/memory.usage_in_bytes": "49000000",
            },
            1 * MB,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n",
                "memory/x/memory.limit_in_bytes": str(2**63 - 4096),
                "memory/x/memory.usage_in_bytes": "5",
            },
            None,
        ),
        ({"proc/self/cgroup": "1:cpu:/x\n", "cpu/x/memory.limit_in_bytes": "5"}, None),
    ],
)
def test_limits_of_control_groups_are_read(files, expected, tmp_path):
    for name, content in (MEMINFO | files).items():
        path = tmp_path / (name if name.split("/")[0] in ("proc", "sys") else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert min(memory.available(tmp_path)) == (expected or 9_000_000 * 1024)


def test_a_machine_that_says_nothing_has_no_limit(tmp_path):
    assert memory.available(tmp_path) == []


def train(hparams, key):
    return {"y": jnp.sin(hparams["x"]) + jax.random.uniform(key)}


def sweep(folder=None, train=train, **options):
    options = {"seeds": 2, "devices": jax.devices()[:1]} | options
    return wd.sweep(train, {"x": np.linspace(0, 1, 16)}, directory=folder, progress=False, **options).data


@pytest.fixture
def limit(monkeypatch):
    """`limit(n)`: launches above width n run out of memory as in XLA. Returns the widths of successful launches."""
    real, widths = Executor.launch, []

    def limited(most, error=RuntimeError):
        def launch(self, blocks, width):
            if width > most:
                raise error("RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes.")
            widths.append(width)
            return real(self, blocks, width)

        monkeypatch.setattr(Executor, "launch", launch)
        return widths

    return limited


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, jax.errors.JaxRuntimeError])
@pytest.mark.parametrize("chunk", [None, 32])
def test_the_width_is_halved_and_logged_if_memory_runs_out(chunk, error, limit, caplog, tmp_path):
    expected = sweep()
    widths = limit(5, error)
    with caplog.at_level("WARNING", logger="absl"):
        found = sweep(tmp_path, chunk=chunk)
    assert widths == [4] * 8
    assert "32 runs in parallel need more memory than there is; going on with 16" in caplog.text
    assert "8 runs in parallel need more memory than there is; going on with 4" in caplog.text
    np.testing.assert_array_equal(found["y"], expected["y"])
    assert found.attrs["chunk"] == 4
    assert sweep(tmp_path, chunk=chunk).identical(found)  # the same call reads it back


def test_memory_that_runs_out_half_way_costs_no_finished_run(limit, tmp_path):
    expected = sweep()
    real, calls = Executor.launch, []

    def launch(self, blocks, width):
        calls.append(width)
        if len(calls) > 2 and width > 3:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(self, blocks, width)

    Executor.launch = launch
    try:
        found = sweep(tmp_path, chunk=7)
    finally:
        Executor.launch = real
    np.testing.assert_array_equal(found["y"], expected["y"])
    done = {path.name for path in tmp_path.glob("*.nc")}
    assert calls[:3] == [7, 7, 7]
    assert set(calls[3:]) == {4, 2}
    assert {"runs-00000000.nc", "runs-00000007.nc", "runs-00000014.nc"} <= done
    again = sweep(tmp_path, chunk=7)
    assert again.identical(found)
    assert again.attrs["strategy"].startswith("2 to 7 runs")


def test_one_run_that_does_not_fit_says_so(limit):
    limit(0)
    with pytest.raises(
        MemoryError, match=r"one run needs more memory than there is: RESOURCE_EXHAUSTED.*smaller model"
    ):
        sweep()


def test_another_error_of_a_launch_is_left_alone(monkeypatch):
    monkeypatch.setattr(Executor, "launch", lambda *_: (_ for _ in ()).throw(RuntimeError("INTERNAL: mine")))
    with pytest.raises(RuntimeError, match="INTERNAL: mine"):
        sweep()


def test_memory_that_runs_out_in_the_compiler_halves_the_width(monkeypatch):
    real = Executor.compile

    def compile_(self, width):
        if width > 8:
            raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")
        return real(self, width)

    monkeypatch.setattr(Executor, "compile", compile_)
    assert sweep().attrs["chunk"] == 8
    assert sweep(chunk=32).attrs["chunk"] == 8


def test_a_killed_first_chunk_fixes_no_width(monkeypatch, tmp_path):
    """After the first launch was killed for memory, any other chunk may be used."""
    monkeypatch.setattr(Executor, "launch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, chunk=32)
    monkeypatch.undo()
    assert sweep(tmp_path, chunk=4).attrs["chunk"] == 4
    with pytest.raises(ValueError, match=r"chunk: 4 at a time .* there, 8 here; chunk=None takes what is there"):
        sweep(tmp_path, chunk=8)


def test_memory_is_checked_again_on_resume(monkeypatch, tmp_path):
    """The width of finished runs is halved if it doesn't fit any more; finished runs are kept."""
    expected = sweep(tmp_path, chunk=8)
    for file in sorted(tmp_path.glob("*.nc"))[2:]:
        file.unlink()
    monkeypatch.setattr(batching, "working_set", lambda program: 1000)
    monkeypatch.setattr(memory, "free", lambda local: 10.0)
    found = sweep(tmp_path)
    assert found.attrs["strategy"].startswith("1 to 8 runs")
    np.testing.assert_array_equal(found["y"], expected["y"])


@pytest.mark.parametrize("text", ["INTERNAL: no", "Resource exhausted"])
def test_what_counts_as_exhausted(text):
    assert memory.exhausted(MemoryError())
    assert memory.exhausted(RuntimeError("RESOURCE_EXHAUSTED: x"))
    assert not memory.exhausted(RuntimeError(text))
    assert not memory.exhausted(ValueError("RESOURCE_EXHAUSTED"))
