"""A sweep in a process of its own, which can kill itself at a given call."""

import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wd_optax as wd
from wd_optax.choosing.sweeping.execute import Executor

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(12, 2)
AXES = {
    "learning_rate": np.logspace(-2, 1, 4),
    "optimizer": {"SGDW": wd.sgdw, "SGD+L2": wd.sgd_l2},
    "weight_decay": [0.0, 0.1],
}


def train(hparams, key):
    """Twenty steps of a linear model; it diverges at η = 10."""
    tx = hparams["optimizer"](hparams["learning_rate"], weight_decay=hparams["weight_decay"], momentum=0.9)
    w = {"kernel": jax.random.normal(key, (2,))}

    def step(carry, _):
        w, state = carry
        loss, grads = jax.value_and_grad(lambda w: jnp.exp(((X @ w["kernel"] - X[:, 0]) ** 2).mean()))(w)
        updates, state = tx.update(grads, state, w)
        return (optax.apply_updates(w, updates), state), loss

    (w, _), curve = jax.lax.scan(step, (w, tx.init(w)), length=20)
    return {"loss": curve[-1], "curve": curve, "positive": (w["kernel"] > 0).sum()}


def sweep(**options):
    return wd.sweep(train, AXES, seeds=2, progress=False, **options).data


def kill_at(module, name, count):
    """Kills this process when the function is called for the count-th time."""
    real, calls = getattr(module, name), iter(range(1, count))

    def function(*args, **kwargs):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(module, name, function)


def main(log, directory, chunk, out=None, kill=None, process=None, port=None):
    """Sweeps in a forked process; a port makes it one of two, with two devices each."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if port:
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        jax.config.update("jax_platforms", "cpu")
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    if kill:
        place, count = kill
        places = {"launch": (Executor, "launch"), "fsync": (os, "fsync"), "replace": (pathlib.Path, "replace")}
        kill_at(*places[place], count)
    data = sweep(directory=directory, chunk=chunk)
    if out:
        pathlib.Path(out).write_bytes(data.to_netcdf(engine="scipy"))
