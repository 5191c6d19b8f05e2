"""`examples/tpu_run.py`, killed at a random moment and started again: it ends with the same bits and loses nothing."""

import functools
import hashlib
import pathlib
import random
import shutil
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from .forks import Child, call

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from example_loading import load

tpu_run = load("tpu_run")
SIZE = tpu_run.Size(layers=1, width=8, heads=1, context=8, batch_size=2, accumulate=1)
STEPS, SAVE_EVERY = 12, 2
SETTINGS = {"steps": STEPS, "seed": 0, "weight_decay": 0.1, "log_every": STEPS, "save_every": SAVE_EVERY, "keep": 2}


def ended(folder: pathlib.Path) -> tuple[int, str]:
    """Runs to the end; returns the step from which the folder resumed it, and a hash of its last state."""
    mesh = tpu_run.tpu_model.make_mesh("1x1", jax.devices(), SIZE)
    params = tpu_run.tpu_model.parameters(SIZE, jnp.bfloat16, mesh)
    tx = tpu_run.optimizer("master", 1e-2, SETTINGS["weight_decay"], clip=1.0, seed=0)
    results = tpu_run.run(SIZE, params, tx, SETTINGS, str(folder))
    state = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(results["state"]))
    return results["start"], hashlib.sha256(state).hexdigest()


@functools.cache
def right() -> str:
    """The final hash of an undisturbed run."""
    with tempfile.TemporaryDirectory() as folder:
        return call(ended, pathlib.Path(folder))[1]


def saved(folder: pathlib.Path) -> list[int]:
    """The steps of complete checkpoints."""
    return sorted(int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit())


def trial(seed: int, folder: pathlib.Path) -> str:
    """kill -9 before the first checkpoint or after another, at a random time of training or writing; then resumed."""
    right()
    draw = random.Random(seed)
    first, pause = draw.randrange(0, STEPS, SAVE_EVERY), draw.uniform(0, 0.05)
    child = Child(ended, folder)
    while not child.done() and max([0, *saved(folder)]) < first:
        time.sleep(0.001)
    time.sleep(pause if first else draw.uniform(0, 2))
    child.kill()
    child.wait()
    newest = max([0, *saved(folder)])
    kind, found = Child(ended, folder).wait()
    if kind != "value":
        return f"ERROR: not resumed: {found}"
    start, hashed = found
    if hashed != right():
        return "ACCEPTED WRONG bits"
    return "resumed bit for bit" if start >= newest else f"LOST steps {start} to {newest}"


@functools.cache
def finished() -> pathlib.Path:
    """The folder of an undisturbed run."""
    folder = pathlib.Path(tempfile.mkdtemp())
    call(ended, folder)
    return folder


def damaged(seed: int, folder: pathlib.Path) -> str:
    """Damages or removes a file of the newest checkpoint; the run must end with the right bits."""
    draw = random.Random(seed)
    shutil.copytree(finished(), folder, dirs_exist_ok=True)
    path = draw.choice(sorted(p for p in (folder / "checkpoints" / str(STEPS)).rglob("*") if p.is_file()))
    content, kind = bytearray(path.read_bytes()), draw.choice(["flip", "cut", "zero", "garble", "remove"])
    at = draw.randrange(len(content) or 1)
    if kind == "flip" and content:
        content[at] ^= 1 << draw.randrange(8)
    if kind in ("cut", "zero"):
        content[at:] = bytes(len(content) - at) if kind == "zero" else b""
    if kind == "garble":
        content[at:] = draw.randbytes(len(content) - at)
    path.unlink() if kind == "remove" else path.write_bytes(bytes(content))
    found, value = Child(ended, folder).wait()
    if found != "value":
        return f"ERROR: not resumed: {value}"
    if value[1] != right():
        return "ACCEPTED WRONG bits"
    return "went on from the checkpoint before" if value[0] < STEPS else "the damage changed no number"
