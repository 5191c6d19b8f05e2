"""The sweep of the trials. It has only products and sums, so its bits are the same at any width.

(XLA's exp, among others, may differ in the last bit between a full vector and the remainder at the end of an array.)
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

import wd_optax as wd

AXES = {
    "learning_rate": [0.01, 0.1, 1.0, 30.0],  # it diverges at the last
    "optimizer": {"SGDW": wd.sgdw, "SGD+L2": wd.sgd_l2},
    "weight_decay": [0.0, 0.1, 0.3],
}
SEEDS = 2
CHUNK = 4
RUNS, LAUNCHES = 48, 12


def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
    """Ten steps on one weight."""
    tx = hparams["optimizer"](hparams["learning_rate"], weight_decay=hparams["weight_decay"], momentum=0.9, mask=None)
    w = jax.random.uniform(key)

    def step(carry: Any, _: None) -> Any:
        w, state = carry
        updates, state = tx.update((w - 2) ** 3, state, w)
        return (optax.apply_updates(w, updates), state), (w - 2) ** 2

    (w, _), curve = jax.lax.scan(step, (w, tx.init(w)), length=10)
    return {"loss": curve[-1], "curve": curve, "count": (curve < 2).sum(dtype=jnp.int32)}


def small(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
    """A trivial run, for faults that need no training."""
    return {"y": hparams["x"] + jax.random.uniform(key), "curve": hparams["x"] * jnp.arange(3.0)}


SMALL = {"train": small, "axes": {"x": [1.0, 2.0, 3.0, 4.0]}, "seeds": 2, "chunk": 2}  # in four files


def sweep(folder: Any = None, **options: Any) -> Any:
    """The dataset."""
    given = {"train": train, "axes": AXES, "seeds": SEEDS, "chunk": CHUNK, "progress": False} | options
    return wd.sweep(given.pop("train"), given.pop("axes"), directory=folder, **given).data


def bits(data: Any) -> dict[str, Any]:
    """Names, dimensions, types and bytes of all variables of a dataset, without its attrs."""
    return {name: (x.dims, str(x.dtype), x.values.tobytes()) for name, x in data.variables.items()}


def numbers(folder: Any = None, **options: Any) -> dict[str, Any]:
    """The sweep's bits."""
    return bits(sweep(folder, **options))


def chunks(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    """Finished files with their content, and their inode, which shows whether a file was rewritten."""
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in sorted(folder.glob("runs-*.nc"))}
