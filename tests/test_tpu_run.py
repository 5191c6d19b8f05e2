"""The TPU run on eight host devices: it trains sharded, survives kill -9, and reads compiled programs right."""

import functools
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick_compile
from absl import flags
from example_loading import flagged, load
from helpers import assert_same_bits
from jax.sharding import PartitionSpec as P
from tensorboardX.proto import event_pb2

import wd_optax as wd

# The bits that must agree are those of one program, run twice; its collectives are there before LLVM and its emitters.
pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]
tpu_run = load("tpu_run")
tpu_model, tpu_compile, tpu_folder = tpu_run.tpu_model, tpu_run.tpu_compile, tpu_run.tpu_folder
SCRIPT = pathlib.Path(tpu_run.__file__)
SIZE = tpu_model.Size(layers=2, width=16, heads=2, context=16, batch_size=16, accumulate=2)
STEPS, LOG_EVERY, SAVE_EVERY, KEEP = 32, 10, 4, 3
NUMBERS = {"learning_rate": 0.01, "weight_decay": 0.1, "clip": 1.0, "seed": 0}


@functools.cache
def parts(axes: str, precision: str = "master", size: Any = SIZE) -> Any:
    """Shapes of the parameters on a mesh and the optimizer, as `main` makes them."""
    mesh = tpu_model.make_mesh(axes, jax.devices(), size)
    params = tpu_model.parameters(size, jnp.float32 if precision == "float32" else jnp.bfloat16, mesh)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.01, STEPS // 10, STEPS)
    return params, tpu_run.optimizer(precision, schedule, 0.1, clip=1.0, seed=0)


@functools.cache
def step_of(axes: str, precision: str = "master", size: Any = SIZE) -> Any:
    """The compiled training step of these parts."""
    params, tx = parts(axes, precision, size)
    return tpu_run.lower(functools.partial(tpu_run.train_step, tx), *tpu_run.shapes(params, size, tx)).compile()


def run(axes: str, out: pathlib.Path, precision: str = "master", **changed: Any) -> Any:
    """A start of the training; those of one mesh share a compiled step."""
    settings = {"steps": STEPS, "log_every": LOG_EVERY, "save_every": SAVE_EVERY, "keep": KEEP, "precision": precision}
    compiled = types.SimpleNamespace(compile=lambda: step_of(axes, precision))
    with pytest.MonkeyPatch.context() as patch:
        step_of(axes, precision)
        patch.setattr(tpu_run, "lower", lambda *_: compiled)
        return tpu_run.run(SIZE, *parts(axes, precision), settings | NUMBERS | changed, str(out))


def command(out: pathlib.Path, axes: str, *more: str) -> list[str]:
    numbers = [f"--{name}={value}" for name, value in (SIZE._asdict() | NUMBERS).items()]
    every = [f"--steps={STEPS}", f"--log_every={LOG_EVERY}", f"--save_every={SAVE_EVERY}", f"--keep={KEEP}"]
    return [sys.executable, str(SCRIPT), f"--mesh={axes}", f"--out={out}", *numbers, *every, *more]


def environment(**more: str) -> dict[str, str]:
    xla = {"XLA_FLAGS": os.environ["XLA_FLAGS"] + quick_compile.flags()}
    return {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "PYTHONIOENCODING": "utf-8", **xla, **more}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on 4 × 2 devices that nobody stops, and its folder."""
    out = tmp_path_factory.mktemp("whole")
    with jax.numpy_dtype_promotion("standard"):
        return run("4x2", out), out


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of the same run in a process of its own, killed after its first line of log."""
    out = tmp_path_factory.mktemp("killed") / "out"
    process = subprocess.Popen(
        command(out, "4x2"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    said = []
    with process:
        for line in process.stdout:
            said.append(line)
            if line.startswith(f"step {LOG_EVERY}:"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL, "".join(said)
    return out


@pytest.fixture
def left(killed: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of that folder."""
    return shutil.copytree(killed, tmp_path / "out")


def test_it_learns(whole: Any) -> None:
    figures = whole[0]["figures"]
    assert list(figures) == [10, 20, 30, 32]
    assert figures[10]["loss"] < np.log(128) + 0.1  # a uniform guess is 4.85
    assert figures[32]["loss"] < figures[10]["loss"] - 0.3


def test_parameters_and_optimizer_state_are_sharded(whole: Any) -> None:
    state = whole[0]["state"]
    mirrors = {"params": state.params, "master": optax.tree.get(state.opt_state, "master")}
    mirrors |= {name: optax.tree.get(state.opt_state, name) for name in ("mu", "nu")}
    for name, tree in mirrors.items():
        for path, x in jax.tree.leaves_with_path(tree):
            shard = x.addressable_shards[0].data.size / x.size
            last = path[-1].key
            expected = 1 if last == "scale" else 1 / 8 if path[0].key == "blocks" else 1 / 4
            assert shard == expected, (name, path)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(mirrors["master"])} == {jnp.dtype(jnp.float32)}


def test_the_newest_checkpoints_are_kept(whole: Any) -> None:
    results, out = whole
    assert results["kept"] == [24, 28, 32]
    assert sorted(p.name for p in (out / "checkpoints").iterdir() if p.is_dir()) == ["24", "28", "32"]


def scalars(folder: pathlib.Path) -> dict[tuple[str, int], float]:
    """What TensorBoard reads: records of length, crc, event, crc."""
    found = {}
    for path in folder.glob("events.out.tfevents.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            at += 16 + length
    return found


def test_tensorboard_reads_every_figure(whole: Any) -> None:
    results, out = whole
    expected = {(name, step): x for step, f in results["figures"].items() for name, x in f.items() if name != "mfu"}
    found = scalars(out)
    assert set(found) == set(expected)
    for key, x in expected.items():
        assert found[key] == pytest.approx(x, rel=1e-6), key  # stored as float32
    for name in ("loss", "weight_norm", "decay_share", "angle", "tokens_per_second"):
        assert (name, LOG_EVERY) in found


def test_a_finished_run_says_so(whole: Any) -> None:
    results, out = whole
    again = run("4x2", out)
    assert again["start"] == STEPS
    assert_same_bits(again["state"], results["state"])
    said = tpu_run.report(again, "x")
    assert said == "The run in x is already finished at step 32: use another --out, or more --steps."


def test_after_kill_9_the_same_mesh_ends_with_the_same_bits(whole: Any, left: pathlib.Path) -> None:
    on = run("4x2", left)
    assert 4 <= on["start"] < STEPS
    assert_same_bits(on["state"], whole[0]["state"])
    assert on["figures"][STEPS]["loss"] == whole[0]["figures"][STEPS]["loss"]


def restored(axes: str, out: pathlib.Path) -> Any:
    params, tx = parts(axes)
    with tpu_folder.manager(out, KEEP) as checkpoints:
        return tpu_folder.begin(checkpoints, tpu_run.shapes(params, SIZE, tx)[0], tx, seed=0)


def apart(state: Any, other: Any) -> float:
    """‖w − w'‖/‖w'‖ of the master weights.

    bfloat16 gradients, summed in another order, differ by 2⁻⁹ of their size; Adam makes that a part of a step where a
    gradient is near zero. Measured: 0.4 % after 56 steps, and 5e-4 in the loss; a stream of batches that begins
    anew puts the loss 0.2 off.
    """
    w, v = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(optax.tree.get(s.opt_state, "master"))])
        for s in (state, other)
    )
    return float(np.linalg.norm(w - v) / np.linalg.norm(v))


def test_after_kill_9_four_devices_go_on_from_the_same_bits(whole: Any, left: pathlib.Path) -> None:
    (step, eight), (step_4, four) = restored("4x2", left), restored("2x2", left)
    assert step == step_4
    assert_same_bits(four, eight)
    assert {len(x.devices()) for x in jax.tree.leaves(four)} == {4}
    kernel = four.params["blocks"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    on = run("2x2", left)
    assert on["start"] == step
    assert on["figures"][STEPS]["loss"] == pytest.approx(whole[0]["figures"][STEPS]["loss"], abs=0.01)
    assert 0 < apart(on["state"], whole[0]["state"]) < 0.02


def test_a_half_written_checkpoint_is_passed_over(left: pathlib.Path) -> None:
    step, state = restored("4x2", left)
    half = shutil.copytree(left / "checkpoints" / str(step), left / "checkpoints" / f"{step + 40}.orbax-checkpoint-tmp")
    next(half.rglob("manifest.ocdbt")).unlink()
    again, same = restored("4x2", left)
    assert again == step
    assert_same_bits(same, state)


# --- the flags of a start against those of the last ------------------------------------------------------------------


def test_another_weight_decay_takes_effect(left: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, state = restored("4x2", left)
    assert float(optax.tree.get(state.opt_state, "weight_decay")) == pytest.approx(0.1)
    stop = before + 2
    again = run("4x2", left, steps=stop, log_every=1, weight_decay=0.4)
    assert again["start"] == before
    assert float(optax.tree.get(again["state"].opt_state, "weight_decay")) == pytest.approx(0.4)
    first = again["figures"][before + 1]
    assert "changed from here on: " in (said := capsys.readouterr().out)
    assert "weight_decay (0.1 → 0.4)" in said
    assert "in force: " in said
    assert "weight_decay 0.4" in said
    last, saved = restored("4x2", left)
    assert last == stop
    assert float(optax.tree.get(saved.opt_state, "weight_decay")) == pytest.approx(0.4)
    # d = c·‖p‖, so share/(1 − share) is 4 times that of λ = 0.1 in the same step, up to u's other part: all of it here
    params, tx = parts("4x2")
    _, (ids, _) = tpu_run.shapes(params, SIZE, tx)
    x, _, y, _ = zip(*(tpu_run.data.text(name, length=SIZE.context) for name in tpu_run.MODULES), strict=True)
    batch = tpu_run.batch_at(before, (np.concatenate(x), np.concatenate(y)), ids, seed=0)
    _, seen = step_of("4x2")(state, batch)
    odds = lambda share: float(share) / (1 - float(share))
    assert odds(first["decay_share"]) == pytest.approx(4 * odds(seen["decay_share"]), rel=1e-3)


FOREIGN = {"seed": 1, "precision": "stochastic", "batch_size": 32, "context": 32, "layers": 3, "width": 32, "heads": 4}
FREE = {
    "steps": 80,
    "learning_rate": 0.02,
    "weight_decay": 0.2,
    "clip": 2.0,
    "log_every": 5,
    "save_every": 8,
    "keep": 9,
}
FREE |= {"mesh": "8x1", "accumulate": 4, "jax": "0.0"}


@pytest.mark.parametrize("name", [*FOREIGN, *FREE])
def test_every_setting_is_compared_with_the_last_start(name: str, tmp_path: pathlib.Path) -> None:
    settings = {"steps": STEPS, "log_every": 10, "save_every": 4, "keep": 3, "precision": "master", "mesh": "4x2"}
    settings |= NUMBERS | SIZE._asdict() | {"text": "da10", "jax": "0.10.2"}
    assert "changed" not in tpu_folder.settled(tmp_path, settings)
    value = (FOREIGN | FREE)[name]
    line = f"{name} ({settings[name]} → {value})"
    if name in FOREIGN:
        with pytest.raises(ValueError, match=re.escape(f"holds a run of another {line}: use its original flags, or")):
            tpu_folder.settled(tmp_path, settings | {name: value})
        assert "changed" not in tpu_folder.settled(tmp_path, settings)
    else:
        assert tpu_folder.settled(tmp_path, settings | {name: value}).endswith(f"changed from here on: {line}")
        assert "changed" not in tpu_folder.settled(tmp_path, settings | {name: value})


def test_all_flags_are_known_to_be_fixed_or_free() -> None:
    with flagged("tpu_run") as module:
        own = {flag.name for flag in flags.FLAGS.flags_by_module_dict()["tpu_run"]}
    assert own - {"distributed", "compile_only", "topology", "out"} == set(module.SETTINGS) | set(SIZE._fields) | {
        "mesh"
    }
    assert set(FOREIGN) | {"text"} == set(tpu_folder.FIXED)
    assert set(FREE) - {"jax"} == own - {"distributed", "compile_only", "topology", "out"} - set(FOREIGN)


def test_damaged_settings_say_what_to_do(left: pathlib.Path) -> None:
    for content in ("{", "[1]", ""):
        (left / "settings.json").write_text(content)
        with pytest.raises(ValueError, match=r"settings.json is damaged: delete it to continue with the given flags"):
            run("4x2", left)
    (left / "settings.json").unlink()
    assert "changed" not in tpu_folder.settled(left, {"seed": 0})


def test_a_second_run_on_the_same_folder_is_refused(left: pathlib.Path) -> None:
    with (
        tpu_folder.locked(left),
        pytest.raises(ValueError, match=rf"is in use by process {os.getpid()}: wait for it, or"),
    ):
        run("4x2", left)
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder + "time.sleep(60)", str(left / "lock")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline()
        with pytest.raises(ValueError, match="is in use by process"):
            tpu_folder.locked(left).__enter__()
        other.kill()
    with tpu_folder.locked(left):  # the kill released it
        assert (left / "lock").exists()


# --- damaged checkpoints ----------------------------------------------------------------------------------------------


# Orbax leaves coroutines behind where it can't read a file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    whole: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(whole[1], tmp_path / "out")
    for path in (out / "checkpoints" / "32").rglob("*"):  # a bit of one file alone may be one that nobody reads
        if path.is_file() and (content := bytearray(path.read_bytes())):
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    for path in (out / "checkpoints" / "28").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    on = run("4x2", out)
    said = capsys.readouterr().out
    assert re.search(r"checkpoint 32 is damaged \(.*\) and was renamed to .*damaged-32: continuing from step 24", said)
    assert re.search(r"checkpoint 28 is damaged \(.*\) and was renamed to .*damaged-28: continuing from step 24", said)
    assert on["start"] == 24
    assert_same_bits(on["state"], whole[0]["state"])
    assert (out / "damaged-32").is_dir()
    assert on["kept"] == [24, 28, 32]


def test_without_any_whole_checkpoint_nothing_is_touched(left: pathlib.Path) -> None:
    for path in (left / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:7])
    kept = lambda: {path: path.read_bytes() for path in left.glob("checkpoints/*[0-9]/**/*") if path.is_file()}
    before = kept()
    assert before
    with pytest.raises(ValueError, match=r"holds no intact checkpoint of this model.*another --out"):
        restored("4x2", left)
    assert kept() == before


def test_a_digest_changes_with_every_bit_and_with_no_mesh() -> None:
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    tree = {"a": jnp.asarray(x), "b": jnp.ones((3,), jnp.bfloat16), "c": jnp.int32(7)}
    right = np.asarray(tpu_folder.digest(tree))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    cut = tree | {"a": jax.device_put(x, jax.NamedSharding(mesh, P("data", "model")))}
    np.testing.assert_array_equal(jax.jit(tpu_folder.digest)(cut), right)
    words = x.view(np.uint32)
    changed = {"bit": words ^ (np.arange(64) == 9).reshape(8, 8), "transposed": words.T, "rolled": np.roll(words, 1)}
    changed |= {"swapped": words[[1, 0, *range(2, 8)]], "zeros": 0 * words, "bit 31": words ^ (1 << 31)}
    digest = jax.jit(tpu_folder.digest)
    for name, other in changed.items():
        found = digest(tree | {"a": jnp.asarray(np.ascontiguousarray(other.astype(np.uint32)).view(np.float32))})
        assert found[0] != right[0], name
        np.testing.assert_array_equal(found[1:], right[1:])


def test_a_line_of_log_has_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"loss": 2.5, "gradient_norm": 0.5, "learning_rate": 1e-3, "weight_norm": 7.0, "angle": 2e-3}
    figures |= {"decay_share": 0.03, "steps_per_second": 4.0, "tokens_per_second": 4096.0}
    scalars = []
    writer = types.SimpleNamespace(add_scalar=lambda *scalar: scalars.append(scalar), flush=lambda: None)
    for mfu in (0.417, math.nan):
        tpu_run.record(writer, 20, figures | {"mfu": mfu})
    start = "step 20: loss 2.5000, ‖g‖ 0.5, η 0.001; weights: ‖w‖ 7.00, turn 0.002 rad, decay is 3.0% of the step; "
    start += "4.00 steps/s, 4,096 tokens/s, "
    assert capsys.readouterr().out.splitlines() == [start + "MFU 41.7%", start + "MFU unknown for this chip"]
    assert [s for s in scalars if s[0] == "mfu"] == [("mfu", 0.417, 20)]


def test_utilisation_counts_the_products_and_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    params, _ = parts("4x2")
    assert math.isnan(tpu_run.speed(SIZE, params, 2.0)["mfu"])
    monkeypatch.setitem(tpu_run.PEAK, "cpu", 1e9)
    per_layer = 3 * 16 * 16 + 16 * 16 + 2 * 4 * 16 * 16
    flops = 6 * (2 * per_layer + 16 * 128) + 12 * 2 * 16 * 16
    tokens = 2.0 * 16 * 16
    expected = {"steps_per_second": 2.0, "tokens_per_second": tokens, "mfu": tokens * flops / 8e9}
    assert tpu_run.speed(SIZE, params, 2.0) == pytest.approx(expected)


def test_batches_depend_on_the_step_and_not_on_the_mesh() -> None:
    text = (np.arange(1600).reshape(100, 16), np.arange(1600).reshape(100, 16) + 1)
    (eight, _), (four, _) = (tpu_run.shapes(*(parts(axes)[0], SIZE, parts(axes)[1]))[1] for axes in ("4x2", "2x2"))
    x, y = tpu_run.batch_at(7, text, eight, seed=0)
    assert x.shape == (2, 8, 16)
    np.testing.assert_array_equal(y, x + 1)
    np.testing.assert_array_equal(x, tpu_run.batch_at(7, text, four, seed=0)[0])
    for step, seed in ((8, 0), (7, 1)):
        assert not np.array_equal(x, tpu_run.batch_at(step, text, eight, seed=seed)[0])


@functools.cache
def one_step(accumulate: int, precision: str) -> Any:
    """The state after two steps on one device, of the same 8 examples, and what was seen in the second."""
    size = SIZE._replace(layers=1, batch_size=8, accumulate=accumulate)
    params, tx = parts("1x1", precision, size)
    like, batch_like = tpu_run.shapes(params, size, tx)
    ids = np.random.default_rng(0).integers(128, size=(8, 17), dtype=np.int32)
    batch = ids[:, :-1].reshape(batch_like[0].shape), ids[:, 1:].reshape(batch_like[0].shape)
    start = lambda: tpu_run.State(drawn := tpu_model.initial(params, 0), tx.init(drawn))
    state = jax.jit(start, out_shardings=jax.tree.map(lambda s: s.sharding, like))()
    for _ in range(2):  # the first at the schedule's η = 0
        state, seen = step_of("1x1", precision, size)(state, batch)
    return state, seen


def test_microbatches_give_the_step_of_the_whole_batch() -> None:
    (state, seen), (whole, expected) = one_step(2, "float32"), one_step(1, "float32")
    for name in ("loss", "gradient_norm", "weight_norm", "update_norm"):
        np.testing.assert_allclose(seen[name], expected[name], rtol=1e-5)  # sums in another order, in float32
    assert optax.tree.get(state.opt_state, "learning_rate") == optax.tree.get(whole.opt_state, "learning_rate") > 0
    mu, mu_whole = (optax.tree.get(s.opt_state, "mu") for s in (state, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mu, mu_whole)


def test_stochastic_rounding_keeps_no_float32_copy() -> None:
    (state, seen), (_, expected) = one_step(1, "stochastic"), one_step(1, "float32")
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    numbers = sum(x.size for x in jax.tree.leaves(state.params))
    expected_bytes = (2 + 4 + 4) * numbers + 4 * 45  # p, m and v; the monitor's table
    assert sum(x.nbytes for x in jax.tree.leaves(state)) == pytest.approx(expected_bytes, abs=50)  # and the counters
    # Parameters differ by rounding alone, at most 2⁻⁸, and so does what the monitor sees.
    for name in ("loss", "decay_share", "angle", "update_norm"):
        np.testing.assert_allclose(seen[name], expected[name], rtol=2.0**-8)


def test_the_monitor_stands_inside_the_rounding_for_a_reason() -> None:
    params = {"kernel": jnp.full((8, 8), 0.3, jnp.bfloat16)}
    grads = {"kernel": jnp.ones((8, 8), jnp.float32)}
    share = {}
    adamw = wd.adamw(1e-2, weight_decay=0.1)
    for name, tx in {
        "inside": wd.precision.with_master_weights(wd.monitor_decay(adamw)),
        "outside": wd.monitor_decay(wd.precision.with_master_weights(adamw)),
        "float32": wd.monitor_decay(adamw),
    }.items():
        start = optax.tree.cast(params, jnp.float32) if name == "float32" else params
        step = jax.jit(lambda p, tx=tx: wd.read_decay(tx.update(grads, tx.init(p), p)[1])["weight"].decay_share)
        share[name] = float(step(start))
    assert share["inside"] == pytest.approx(share["float32"], rel=1e-3)
    assert math.isnan(share["outside"])


@pytest.mark.parametrize(
    ("axes", "changed", "message"),
    [
        ("4", {}, r"--mesh=4: write DATAxMODEL, two numbers of devices such as --mesh=4x2"),
        ("0x8", {}, r"--mesh=0x8: write"),
        ("8x2", {}, r"--mesh=8x2: 8 devices are available: try --mesh=8x1"),
        ("8x1", {"batch_size": 24}, r"--batch_size=24 isn't divisible by 16, as --mesh=8x1 requires: try 32"),
        ("2x4", {}, r"--heads=2 isn't divisible by 4, as --mesh=2x4 requires: try 4"),
        ("4x2", {"width": 18}, r"--width=18 isn't divisible by 4, as --mesh=4x2 requires: try 20"),
        ("1x1", {"heads": 3}, r"--width=16 isn't divisible by 3, as --mesh=1x1 requires: try 18"),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_would(axes: str, changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tpu_model.make_mesh(axes, jax.devices(), SIZE._replace(**changed))


@pytest.mark.parametrize("flag", ["--steps=0", "--precision=float16", "--keep=0", "--clip=-1"])
def test_bad_flags_are_refused(flag: str) -> None:
    with flagged("tpu_run"), pytest.raises(flags.IllegalFlagValueError, match=flag.split("=")[0][2:]):
        flags.FLAGS(["tpu_run", flag])


def test_another_model_does_not_take_the_checkpoint(left: pathlib.Path) -> None:
    for params, tx in (parts("4x2", size=SIZE._replace(width=32)), parts("4x2", "stochastic")):
        like, _ = tpu_run.shapes(params, SIZE, tx)
        with (
            tpu_folder.manager(left, KEEP) as checkpoints,
            pytest.raises(ValueError, match=r"shapes are of another model or --precision.* another --out"),
        ):
            tpu_folder.begin(checkpoints, like, tx, seed=0)


def test_the_step_on_cpu_has_no_collective_in_its_optimizer() -> None:
    found = tpu_compile.collectives(step_of("4x2").as_text(), tpu_run.PARTS)
    assert {part for part, _ in found} == {"model", "clip", "monitor"}
    assert found["model", "all-gather"].times >= 2 * 2 * 4  # microbatches, layers, kernels
    assert found["clip", "all-reduce"].size < 1000


@pytest.mark.quick_compile(False)
def test_collectives_are_counted_as_often_as_their_loop_runs() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    def summed(a: jax.Array) -> jax.Array:
        def body(total: jax.Array, _: Any) -> Any:
            with jax.named_scope("inner"):
                return jax.lax.psum(jnp.sin(total + a), "x"), None

        total, _ = jax.lax.scan(body, a, length=3)
        with jax.named_scope("outer"):
            return jax.lax.all_gather(total, "x")

    rows = jax.ShapeDtypeStruct((8, 5), jnp.float32, sharding=jax.NamedSharding(mesh, P("x")))
    text = jax.jit(summed).lower(rows).compile().as_text()
    found = tpu_compile.collectives(text, ("inner", "outer"))
    assert found == {("inner", "all-reduce"): (3, 3 * 5 * 4), ("outer", "all-gather"): (1, 8 * 5 * 4)}


LIBTPU = """HloModule jit_step
%cond (p: s32[]) -> pred[] {
  %bound = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[]{:T(512)} compare(%p, %bound), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%piece.1 (a: bf16[8,2]) -> bf16[8,16] {
  %all-gather.1 = bf16[8,16]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=7, frontend_attributes={chain_id="1"}
}

%piece.2 (a: bf16[8,2]) -> bf16[8,16] {
  %all-gather.2 = bf16[8,16]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=7, frontend_attributes={chain_id="1"}
}

%all-reduce-scatter.3 (input: f32[16,8]) -> f32[16,2] {
  %all-reduce.5 = f32[16,8]{1,0:T(8,128)} all-reduce(%input), channel_id=8, to_apply=%add
}

%body (p: s32[]) -> s32[] {
  %one = bf16[8,16] fusion(%x), kind=kCustom, calls=%piece.1, metadata={op_name="jit(step)/while/body/dot"}
  %two = bf16[8,16] fusion(%x), kind=kCustom, calls=%piece.2, metadata={op_name="jit(step)/while/body/dot"}
  %start = (bf16[4,2]{1,0}, bf16[4,2]{1,0}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=9
  %done = bf16[4,2]{1,0} collective-permute-done(%start)
}

ENTRY %main (p: s32[]) -> s32[] {
  %w = s32[] while(%p), condition=%cond, body=%body, metadata={op_name="jit(step)/while"}
  %s = f32[16,2] fusion(%g), kind=kCustom, calls=%all-reduce-scatter.3, metadata={op_name="jit(step)/model/dot"}
  %n = (f32[]{:T(128)}, pred[3]) all-reduce(%b, %c), channel_id=10, metadata={op_name="jit(step)/monitor/clip/sum"}
}
"""


def test_what_libtpu_writes_is_read() -> None:
    # A gather in two pieces is one; a start returns its operand, too; a reduce-scatter is a fusion of this name.
    assert tpu_compile.collectives(LIBTPU, ("clip", "monitor")) == {
        ("clip", "all-reduce"): (1, 4 + 3),
        ("model", "all-gather"): (4, 4 * 8 * 16 * 2),
        ("model", "collective-permute"): (4, 4 * 4 * 2 * 2),
        ("model", "reduce-scatter"): (1, 16 * 2 * 4),
    }


def test_a_program_that_cannot_be_printed_is_compiled_again_without_what_hinders() -> None:
    class Program:
        def __init__(self, text: str | None) -> None:
            self.text = text

        def as_text(self) -> str:
            if self.text is None:
                raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")
            return self.text

    options: list[Any] = []
    lowered = types.SimpleNamespace(compile=lambda compiler_options: options.append(compiler_options) or Program("two"))
    assert tpu_compile.text_of(lowered, Program("one")) == ("one", "")
    text, how = tpu_compile.text_of(lowered, Program(None))
    assert text == "two"
    assert "SparseCores" in how
    assert all(value == "false" for value in options[0].values())
    memory = types.SimpleNamespace(
        **{f"{name}_size_in_bytes": 0 for name in ("argument", "temp", "generated_code", "alias")}
    )
    assert how in tpu_compile.report(memory, {}, {}, how)


def test_compiling_for_tpus_says_what_it_needs() -> None:
    code = "import tpu_compile; tpu_compile.devices('v5e:2x4')"
    libtpu = "import sys; sys.modules['libtpu'] = None; "  # also where it is installed
    done = subprocess.run(
        [sys.executable, "-c", libtpu + code], cwd=SCRIPT.parent, capture_output=True, text=True, env=environment()
    )
    assert "ValueError: --topology=v5e:2x4: JAX TPU support not installed" in done.stderr
    assert done.stderr.rstrip().endswith("pip install libtpu")


def test_two_processes_go_on_with_one_model(whole: Any, tmp_path: pathlib.Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # JAX finds out about Open MPI's launcher by these, as it does about TPU slices and Slurm by others.
    common = {"OMPI_MCA_orte_hnp_uri": "0.0;tcp://127.0.0.1:0", "OMPI_COMM_WORLD_SIZE": "2"}
    common |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
    common |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2" + quick_compile.flags()}
    out = shutil.copytree(whole[1], tmp_path / "out")
    shutil.rmtree(out / "checkpoints" / "32")
    processes = [
        subprocess.Popen(
            command(out, "4x1", "--distributed"),
            env=environment(
                **common,
                OMPI_COMM_WORLD_RANK=str(i),
                OMPI_COMM_WORLD_LOCAL_RANK=str(i),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        for i in range(2)
    ]
    first, second = (process.communicate(timeout=200)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], first + second
    assert "step 32: loss" not in second
    loss = re.findall(r"^step 32: loss ([\d.]+)", first, re.M)
    assert float(loss[0]) == pytest.approx(whole[0]["figures"][STEPS]["loss"], abs=0.01)
    step, state = restored("4x2", out)
    assert step == STEPS
    assert apart(state, whole[0]["state"]) < 0.02
