"""The benchmarks measure what they say: known trees, honest arithmetic from times to ratios. No clock is asserted."""

import contextlib
import functools
import gzip
import io
import itertools
import json
import pathlib
from typing import Any

import example_loading
import jax
import jax.numpy as jnp
import jax_steps  # example_loading puts the folder of benchmarks on the path
import numpy as np
import pytest
import serving
import trees
from pictures import count_pixels, read_picture

pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]


@pytest.fixture
def flagged() -> Any:
    return functools.partial(example_loading.flagged, folder=example_loading.BENCHMARKS)


@pytest.mark.parametrize(
    ("name", "parameters", "leaves"),
    [
        ("leaf", 64 * 2**20, 1),
        ("leaf256", 256 * 2**20, 1),
        ("gpt2", 124_439_808, 148),  # as Hugging Face counts them
        ("llama7b", 6_738_415_616, 291),  # likewise
        ("many", 2_000_000, 2000),
        ("mlp", 784 * 128 + 128 + 128 * 10 + 10, 4),
        ("resnet50", 25_557_032, 161),  # as torchvision does
        ("vit_b16", 86_567_656, 152),  # likewise
    ],
)
def test_trees_have_the_published_sizes(name: str, parameters: int, leaves: int) -> None:
    tree = trees.TREES[name]()
    assert (trees.size(tree), len(tree)) == (parameters, leaves)


def row(variant: str, seconds: list[float], **known: Any) -> dict[str, Any]:
    about = {"tree": "made", "optimizer": "adamw", "parameters": 1000, "leaves": 2, "floor": 28_000}
    return about | {"variant": variant, "seconds": seconds, **known}


MADE = [
    row("stream, jax", [4e-6] * 4, floor=8000),  # 2 GB/s
    row("wd_optax", [1.4e-5, 1.8e-5, 1.0e-5, 9.0e-5, 1.4e-5], bytes=40_000.0),
    row("optax", [2e-5] * 4, bytes=40_000.0),
    row("torch fused", [7e-5] * 4, threads=1),
    row("torch fused", [7e-6] * 4, threads=2),
]


def test_ratios_are_of_medians_and_torch_has_its_better_number_of_threads(flagged: Any) -> None:
    with flagged("step") as step:
        found = {row["variant"]: row for row in step.summarise(MADE)}
        lines = step.report(list(found.values())).splitlines()
    assert list(found) == ["stream, jax", "wd_optax", "optax", "torch fused"]
    assert found["torch fused"]["threads"] == 2
    ours = found["wd_optax"]
    numbers = [ours[k] for k in ("ms", "spread", "× first", "× optax", "× torch", "GB/s", "of limit")]
    np.testing.assert_allclose(numbers, [0.014, 4 / 14, 1, 0.7, 2, 2, 1])  # quartiles 1.4e-5 and 1.8e-5
    assert "× optax" not in found["stream, jax"]
    assert lines[3].split() == ["wd_optax", "0.014", "29%", "1.00", "0.70", "2.00", "40.0", "2.0", "100%"]


def test_a_variant_that_does_not_fit_is_reported_and_the_others_are_compared(flagged: Any) -> None:
    full = [*MADE, row("torch foreach", [], threads=1), row("wd_optax, monitor", [])]
    with flagged("step") as step:
        found = step.summarise(full)
        lines = step.report(found).splitlines()
    assert [r["variant"] for r in found if "failed" in r] == ["torch foreach", "wd_optax, monitor"]
    assert found[1]["× torch"] == 2
    assert lines[-1].split() == ["wd_optax,", "monitor", "out", "of", "memory"]


class Short:
    """A worker whose device is full."""

    def block(self, variant: int, *, error: str) -> float:
        raise RuntimeError(error)


@pytest.mark.parametrize("error", ["RESOURCE_EXHAUSTED: Out of memory while", "CUDA out of memory. Tried", "bug"])
def test_a_process_answers_null_where_memory_is_short_and_fails_otherwise(
    error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(["block", [3], {"error": error}]) + "\n"))
    with pytest.raises(RuntimeError, match="bug") if error == "bug" else contextlib.nullcontext():
        serving.serve_methods(Short())
    assert capsys.readouterr().out == ("" if error == "bug" else "null\n")


class Answers:
    """A worker without a process: what it was asked, and blocks of known times."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log, self.command = name, log, [name]

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        self.log.append((self.name, method))
        if method == "load":
            assert named == {"stream": 8, "without": ["monitor"], "text": None}
            return [{"variant": f"stream, {self.name}", "floor": 64}, {"variant": self.name, "floor": 420}]
        variant, steps = arguments
        return None if self.name == "big" and variant else 1e-3 * steps

    def close(self) -> None:
        self.log.append((self.name, "close"))


@pytest.mark.parametrize("turns", [0, 2])
def test_workers_run_beside_each_other_or_take_turns_with_the_device(flagged: Any, turns: int) -> None:
    log: list[Any] = []
    workers = [Answers("jax", log), Answers("big", log)]
    load = {"stream": 8, "without": ["monitor"], "text": None}
    with flagged("step", "--block=0.001") as step:
        rows = step.measure(workers, "tiny", "adamw", rounds=3, turns=turns, **load)
    assert [(r["variant"], len(r["seconds"])) for r in rows] == [
        ("stream, jax", 3 * (turns or 1)),
        ("jax", 3 * (turns or 1)),
        ("stream, big", 3 * (turns or 1)),
        ("big", 0),  # null: out of memory
    ]
    started = [name for name, method in log if method == "load"]
    assert started == (["jax", "big", "big", "jax"] if turns else ["jax", "big"])
    assert [name for name, method in log if method == "close"] == (started if turns else [])
    assert not turns or all(b[1] == "close" for b, a in itertools.pairwise(log) if a[1] == "load")  # the device is free


def test_main_measures_prints_and_writes_without_torch(
    flagged: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--trees=tiny", "--optimizers=adamw", "--rounds=3", "--torch_python=false", "--block=3e-3"]
    asked += ["--stream=1024", "--goals", "--without=monitor", f"--text={tmp_path}/text"]
    files = {"json": tmp_path / "made" / "step.json", "out": tmp_path / "made" / "step.png"}
    with flagged("step", *asked, *(f"--{k}={v}" for k, v in files.items())) as step:
        step.main([])
    printed = capsys.readouterr().out
    assert "without torch" in printed
    written = json.loads(files["json"].read_text())
    assert written["versions"]["jax"] == jax.__version__
    assert written["device"] == jax.devices()[0].device_kind
    names = ["stream, jax", "copy, jax", "wd_optax", "optax"]
    assert "tiny, wd_optax: at most 1.00 × the time of torch fused: not measured" in printed
    assert [goal["reached"] for goal in written["goals"]] == [False, None]
    assert {path.name for path in (tmp_path / "text").iterdir()} == {
        f"tiny-adamw-{name}.txt.gz" for name in ("wd_optax", "optax")
    }
    assert "ENTRY" in gzip.decompress((tmp_path / "text" / "tiny-adamw-optax.txt.gz").read_bytes()).decode()
    assert [row["variant"] for row in written["rows"]] == names
    assert all(len(row["seconds"]) == 3 and min(row["seconds"]) > 0 for row in written["rows"])
    assert all(name in printed for name in names)
    for colour in ("#0072B2", "#E69F00"):  # ours and Optax's bars
        assert count_pixels(read_picture(files["out"]), colour) > 20  # bars are short where one block was slow


def test_what_a_step_must_touch_is_counted_from_its_state() -> None:
    worker = jax_steps.JaxSteps("cpu")
    per_parameter = {}
    for optimizer, dtype in (("adamw", "float32"), ("sgdw", "float32"), ("adamw_bf16", "bfloat16")):
        for about in worker.load("mlp", optimizer, dtype, stream=8, without=["monitor", "nearest"], text=None):
            per_parameter[optimizer, about["variant"]] = about["floor"] / trees.size(trees.mlp())
            assert about["variant"].startswith(("stream", "copy")) or about["program"]["fusion"] > 0
    assert not any("monitor" in name or "nearest" in name for _, name in per_parameter)
    assert min(worker.block(i, 1) for i in range(len(worker.variants))) > 0
    for key, expected in {
        ("adamw", "wd_optax"): 28,
        ("adamw", "optax"): 28,
        ("sgdw", "wd_optax"): 20,
        ("adamw_bf16", "wd_optax, stochastic"): 14,
        ("adamw_bf16", "wd_optax, compensated"): 18,
        ("adamw_bf16", "wd_optax, master"): 30,
    }.items():
        assert expected <= per_parameter[key] < expected + 0.01, key  # counts, λ and η are some bytes more


@pytest.mark.parametrize("optimizer", [name for name in jax_steps.VARIANTS if not name.endswith("_bf16")])
def test_float32_variants_of_one_optimizer_compute_the_same(optimizer: str) -> None:
    params = {path: jnp.resize(trees.tile(), shape) for path, shape in trees.mlp((4, 3)).items()}
    ends = {}
    for name, make in jax_steps.VARIANTS[optimizer].items():
        tx, p = make(), params
        state = tx.init(p)
        for _ in range(2):
            updates, state = tx.update(params, state, p)
            p = jax.tree.map(jnp.add, p, updates)
        ends[name] = p
    for end in ends.values():  # rtol: the order of −η·(u + λp) differs, a few units of float32
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), end, ends["optax"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--trees=lstm", "--trees: 'lstm' is none of leaf, leaf256, gpt2"),
        ("--device=gpu", "--device=gpu: JAX finds no such device"),
    ],
)
def test_bad_arguments_say_what_there_is(flagged: Any, argument: str, message: str) -> None:
    with flagged("step", argument) as step, pytest.raises(step.app.UsageError, match=message):
        step.main([])


def test_startup_measures_both_and_reports_ratios(flagged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with flagged("startup") as startup:
        clear = []
        monkeypatch.setattr(startup.jax, "clear_caches", lambda: clear.append(1))  # of the other tests
        monkeypatch.setattr(startup, "import_seconds", lambda module, cache: np.array([0.1, 0.2]))
        found = startup.measure([2], rounds=1)
        made = {"import": {"wd_optax": [[0.3, 0.1], [0.5, 0.2], [0.9, 0.2]], "optax": [[0.4, 0.4]]}}
        made |= {"init": made["import"] | {"monitored": [[1.0, 0.6]]}}
        lines = startup.report(made).splitlines()
    assert len(clear) == 8
    assert list(found) == [*(f"{k}, 2 leaves" for k in ("init", "trace", "compile", "trace + compile")), "import"]
    for name in ("wd_optax", "optax", "masked", "monitored"):
        trace, compiled, both = (
            np.array(found[f"{k}, 2 leaves"][name]) for k in ("trace", "compile", "trace + compile")
        )
        np.testing.assert_allclose(trace + compiled, both)
        assert (both[:, 0] > 0).all()
    assert lines[1].split() == ["import", "500.00", "400.00", "1.25", "0.50"]
    assert [line.split() for line in lines[5:]] == [["init", "1000.00", "500.00", "2.00", "3.00"]]


def test_masks_of_all_forms_are_measured_on_the_tree_they_fit(flagged: Any) -> None:
    with flagged("masks") as masks:
        params = masks.tree(30)
        assert len(jax.tree.leaves(params)) == 30
        meant = {name: masks.wd.multipliers(mask, params) for name, mask in masks.forms(params).items()}
        assert meant["rules"] == meant["tree"] == meant["function"] == meant["weights"] != meant["None"]
        assert set(masks.measure(30, 1)) == set(meant)
        lines = masks.report({30: {"weights": 0.002, "tree": 0.003}}).splitlines()
    assert lines[0].split() == ["leaves", "weights", "tree"]
    assert lines[1].split() == ["30", "2", "(1.0)", "3", "(1.5)"]
