"""The output folder of `tpu_run.py`: a lock, the flags of the run, and verified checkpoints."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tpu_model
from jax.experimental import multihost_utils

# Settings that determine checkpoints or batches and so can't change. All others may change between starts.
FIXED = ("precision", "layers", "width", "heads", "context", "batch_size", "seed", "text")


class State(NamedTuple):
    """The training state."""

    params: Any
    opt_state: Any


class Saved(NamedTuple):
    """Contents of the checkpoint of a step."""

    params: Any
    opt_state: Any
    digest: Any  # uint32 per leaf, see `digest`


def say(line: str) -> None:
    """Prints on one process."""
    if jax.process_index() == 0:
        print(line, flush=True)


def agreed(refusal: str) -> None:
    """Raises on every process if process 0 has a reason to stop; otherwise the others would wait forever."""
    if jax.process_count() > 1:
        stop = bool(multihost_utils.broadcast_one_to_all(np.array(bool(refusal))))
        refusal = refusal or ("process 0 stops the run: see its output" if stop else "")
    if refusal:
        raise ValueError(refusal)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Locks the folder while the block runs; the operating system releases the lock however the process ends."""
    with contextlib.ExitStack() as stack:
        refusal = ""
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / "lock", "a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                refusal = f"--out={folder} is in use by process {file.read()}: wait for it, or give another --out"
            else:
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
        agreed(refusal)
        yield


def settled(folder: pathlib.Path, settings: dict[str, Any]) -> str:
    """Refuses changes of fixed settings, saves the others, and reports the current settings and what changed.

    Changes are relative to the last start in this folder, recorded in `settings.json`.
    """
    refusal, line = _compared(folder, settings) if jax.process_index() == 0 else ("", "")
    agreed(refusal)
    return line


def _compared(folder: pathlib.Path, settings: dict[str, Any]) -> tuple[str, str]:
    path = folder / "settings.json"
    try:
        before = dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}
    except (ValueError, TypeError):
        return f"{path} is damaged: delete it to continue with the given flags", ""
    changed = {name: f"{name} ({before[name]} → {x})" for name, x in settings.items() if before.get(name, x) != x}
    if wrong := ", ".join(line for name, line in changed.items() if name in FIXED):
        return f"--out={folder} holds a run of another {wrong}: use its original flags, or another --out", ""
    part = path.with_suffix(".part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(before | settings, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    line = "in force: " + ", ".join(f"{name} {x}" for name, x in settings.items())
    return "", line + ("\nchanged from here on: " + ", ".join(changed.values()) if changed else "")


def digest(tree: Any) -> jax.Array:
    """Checksums of the leaves that depend on every bit: sums of hashes modulo 2³², the same on every mesh."""
    return jnp.stack([_checksum(x) for x in jax.tree.leaves(tree)])


@jax.jit  # traced once per shape
def _checksum(x: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    for axis in range(x.ndim):
        words = _mixed(words + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(0x9E3779B9))
    return _mixed(jnp.sum(_mixed(words), dtype=jnp.uint32) + jnp.uint32(x.size))


def _mixed(x: jax.Array) -> jax.Array:
    """Wellons' lowbias32: a bijection of 32-bit words in which each bit affects all."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def manager(folder: str | pathlib.Path, keep: int) -> ocp.CheckpointManager:
    """Writes checkpoints asynchronously, each under a temporary name until complete; retains the newest."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    path = pathlib.Path(folder).resolve() / "checkpoints"
    return ocp.CheckpointManager(path, options=options, item_handlers=ocp.StandardCheckpointHandler())


def save(checkpoints: ocp.CheckpointManager, step: int, state: State) -> None:
    """Copies the state and returns; the files are written in the background."""
    checkpoints.save(step, args=ocp.args.StandardSave(Saved(*state, jax.jit(digest)(state))))


def begin(checkpoints: ocp.CheckpointManager, like: State, tx: Any, seed: int) -> tuple[int, State]:
    """Restores the newest intact checkpoint, sharded for the current mesh, or initialises step 0.

    A checkpoint that can't be read or fails its checksum is renamed, with a message.
    """
    damaged: dict[int, str] = {}
    for step in sorted(checkpoints.all_steps(), reverse=True):
        state, why = _restored(checkpoints, step, like)
        if state:
            _rename_damaged(checkpoints, damaged, step)
            return step, state
        damaged[step] = why
    if damaged:
        which = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
        refusal = f"{checkpoints.directory} holds no intact checkpoint of this model ({which})"
        raise ValueError(f"{refusal}: use its original flags, or another --out")
    start = lambda: State(params := tpu_model.initial(like.params, seed), tx.init(params))
    return 0, jax.jit(start, out_shardings=jax.tree.map(lambda s: s.sharding, like))()


def _restored(checkpoints: ocp.CheckpointManager, step: int, like: State) -> tuple[State | None, str]:
    """Returns the saved state, or None and the reason, the same on every process."""
    everywhere = jax.NamedSharding(jax.tree.leaves(like)[0].sharding.mesh, jax.P())
    numbers = jax.ShapeDtypeStruct((len(jax.tree.leaves(like)),), jnp.uint32, sharding=everywhere)
    wanted, found, why = Saved(*like, numbers), None, ""
    shapes = lambda tree: sorted(x.shape for x in jax.tree.leaves(tree))
    try:
        if shapes(checkpoints.item_metadata(step)) != shapes(wanted):
            raise ValueError("its shapes are of another model or --precision")
        found = Saved(*checkpoints.restore(step, args=ocp.args.StandardRestore(wanted)))
    except Exception as error:  # a damaged file can raise anything
        why = f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"
    if not _on_all(found is not None) or found is None:
        return None, why or "another process could not read it"
    state = State(found.params, found.opt_state)
    if not np.array_equal(jax.jit(digest, out_shardings=everywhere)(state), found.digest):
        return None, "its checksum is wrong"
    return state, ""


def _on_all(true: bool) -> bool:
    return bool(np.all(multihost_utils.process_allgather(np.array(true)))) if jax.process_count() > 1 else true


def _rename_damaged(checkpoints: ocp.CheckpointManager, damaged: dict[int, str], step: int) -> None:
    for bad, why in damaged.items():
        source = pathlib.Path(checkpoints.directory) / str(bad)
        names = (source.parent.parent / f"damaged-{bad}{f'-{i}' if i else ''}" for i in range(10**6))
        target = next(name for name in names if not name.exists())
        if jax.process_index() == 0:
            source.rename(target)
        say(f"checkpoint {bad} is damaged ({why}) and was renamed to {target}: continuing from step {step}")
    if damaged:
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are renamed")
        checkpoints.reload()


def with_weight_decay(state: State, weight_decay: float) -> State:
    """Replaces λ, a leaf of the state and so of the checkpoint, by the current flag's value."""
    opt_state = state.opt_state
    old = optax.tree.get(opt_state, "weight_decay")
    put = lambda old: jax.device_put(np.asarray(weight_decay, old.dtype), old.sharding)
    return State(state.params, optax.tree.set(opt_state, weight_decay=put(old)))
