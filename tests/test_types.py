"""A user's script under `mypy --strict` and pyright: right calls pass, and each wrong call is a type error.

One process per checker reads all calls, each on a line of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
START = """\
import jax
import jax.numpy as jnp
import optax
import wd_optax as wd

params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
cosine = optax.cosine_decay_schedule(0.1, 100)
"""
RIGHT = """\
tx: optax.GradientTransformationExtraArgs = wd.adamw(1e-3, weight_decay=0.1)
updates, state = tx.update(params, tx.init(params), params)
wd.adamw(jnp.asarray(1e-3), weight_decay=cosine, coupling="constant", mu_dtype=jnp.bfloat16)
wd.adamw(1e-3, weight_decay=0.1, rounding="stochastic", key=1)
wd.adamw(1e-3, weight_decay=0.1, rule=wd.rules.toward("init"))
wd.sgdw(cosine, weight_decay=0.1, momentum=0.9, coupling="schedule", peak_learning_rate=0.1)
wd.sgdw(0.1, weight_decay=0.1, mask=None)
wd.sgdw(0.1, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
wd.sgdw(0.1, weight_decay=0.1, mask={"kernel": True, "bias": False})
wd.sgdw(0.1, weight_decay=0.1, mask=[("bias", 0.0), (".*", 1.0)])
wd.adam_l2(1e-3, weight_decay=0.1)
wd.with_decay(optax.lion(1e-4), weight_decay=1.0, learning_rate=1e-4)
wd.decoupled(optax.scale_by_lion(), 1e-4, weight_decay=1.0)
optax.chain(optax.sgd(0.1), wd.proximal(0.01, penalty="l1"), wd.precision.round_updates("compensated"))
wd.adamw(1e-3, weight_decay=0.1, coupling=[("kernel", "corrected"), (".*", "lr")], slices=[("kernel", 1)])
wd.sgdw(0.1, weight_decay=0.1, penalty="l1", slices=[("kernel", (0, -1)), (".*", 0)])
wd.adamw(1e-3, weight_decay=0.1, penalty=wd.prox.group(axis=0), mask=[("kernel", 1.0)])
wd.adamw(1e-3, weight_decay=0.1, penalty=lambda step, r, k, metric, axes: jnp.maximum(step, -r))
wd.decoupled(optax.scale_by_adam(), 1e-3, weight_decay=0.1, penalty="huber", metric=wd.prox.adam_metric(b2=0.99))
wd.decoupled(optax.scale_by_adam(), 1e-3, weight_decay=0.1, penalty="l2", metric="euclidean")
table: str = str(wd.explain_slices([("kernel", 1)], params))
weight_decay: float = wd.weight_decay_for(learning_rate=1e-3, timescale_steps=1000)
run = wd.Run(batch=32, steps=100, schedule=cosine, learning_rate=1e-3, weight_decay=0.1)
transferred: float = wd.transfer(source=run, target=wd.Run(batch=64, steps=50), hold="timescale_run").weight_decay
"""
WRONG = """\
wd.adamw(1e-3)
wd.adamw(1e-3, 0.1)
wd.adamw(1e-3, weight_decay="0.1")
wd.adamw(1e-3, weight_decay=0.1, mask=3)
wd.adamw(1e-3, weight_decay=0.1, coupling="cosine")
wd.adamw(1e-3, weight_decay=0.1, rounding="up")
wd.adamw(1e-3, weight_decay=0.1, rule="init")
wd.with_decay("lion", weight_decay=1.0)
wd.decoupled(optax.scale_by_lion(), 1e-4, weight_decay=1.0, coupling="l2")
wd.proximal(0.01, penalty="l3")
wd.precision.round_updates("up")
wd.adamw(1e-3, weight_decay=0.1, coupling=[("kernel", "cosine")])
wd.adamw(1e-3, weight_decay=0.1, coupling={"kernel": "lr"})
wd.adamw(1e-3, weight_decay=0.1, slices="blocks")
wd.adamw(1e-3, weight_decay=0.1, slices=[("blocks", "1")])
wd.adamw(1e-3, weight_decay=0.1, penalty="l3")
wd.adamw(1e-3, weight_decay=0.1, penalty=wd.prox.group)
wd.adamw(1e-3, weight_decay=0.1, penalty="l1", metric="euclidean")
wd.decoupled(optax.scale_by_adam(), 1e-3, weight_decay=0.1, penalty="l1", metric="adam")
wd.prox.elastic("0.5")
wd.rules.cautious(3)
wd.weight_decay_for(learning_rate=1e-3, timescale_steps=1000, coupling="cosine")
wd.transfer(source=wd.Run(batch=1, steps=1), target=wd.Run(batch=1, steps=1), hold="tau")
wd.Run(batch=32)
"""


# No call above needs the types of the last line's packages, which take as long to read as all others.
MYPY = """\
[mypy]
strict = True
[mypy-optax.*]
follow_untyped_imports = True
[mypy-IPython.*,jax._src.pallas.*,jaxlib.mlir.*,jaxlib.mosaic.*,matplotlib.*,optuna.*,pandas.*,scipy.*,tqdm.*,xarray.*]
follow_imports = skip
ignore_missing_imports = True
"""


def mypy(script: Path) -> dict[int, str]:
    cache = ROOT / ".mypy_cache" / "user"  # of its own: Optax's types are read here, not when the package is checked
    settings = script.with_name("mypy.ini")
    settings.write_text(MYPY)
    options = [f"--config-file={settings}", f"--cache-dir={cache}", "--output=json"]
    command = [sys.executable, "-m", "mypy", *options, str(script)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT)})
    rows = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert found.returncode in (0, 1), found.stdout + found.stderr
    return {row["line"]: row["message"] for row in rows if Path(row["file"]).name == script.name}


def pyright(script: Path) -> dict[int, str]:
    settings = {"include": [script.name], "extraPaths": [str(ROOT)]}
    (script.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [
        sys.executable,
        "-m",
        "pyright",
        "--pythonpath",
        sys.executable,
        "--outputjson",
        "-p",
        str(script.parent),
    ]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stdout.startswith("{"), found.stdout + found.stderr
    rows = json.loads(found.stdout)["generalDiagnostics"]
    return {row["range"]["start"]["line"] + 1: row["message"] for row in rows if row["severity"] == "error"}


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_right_calls_pass_and_wrong_calls_are_type_errors(checker, tmp_path):
    script = tmp_path / "script_of_a_user.py"
    script.write_text(START + RIGHT + WRONG)
    errors = checker(script)
    lines = script.read_text().splitlines()
    refused = {lines[line - 1] for line in errors}
    assert refused - set(WRONG.splitlines()) == set(), errors
    assert set(WRONG.splitlines()) - refused == set()


@pytest.mark.optax_promotes
def test_right_calls_run():
    names: dict[str, object] = {}
    exec(START + RIGHT, names)
    assert names["weight_decay"] == pytest.approx(1.0)
