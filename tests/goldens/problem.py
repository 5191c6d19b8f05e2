"""The problem that every framework's optimizer runs on, and the files that the runs are kept in.

    python tests/goldens/generate_torch.py

Run a generator where that framework is installed, its docstring says which versions. The tests read only the files.

Each file holds p0 (4, 3), gradients (10, 4, 3), learning_rates (10,), weight_decays (3,), version, and per case the
parameters after each step, (3, 10, 4, 3): one run per λ. Gradients are fixed in advance, so all cases see the same.
"""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WDS = np.array([0.0, 0.05, 0.3])
# Warm-up, a peak in the middle, decay; no two steps alike.
LR = np.array([0.01, 0.02, 0.035, 0.05, 0.045, 0.04, 0.03, 0.018, 0.012, 0.006])
PEAK = float(LR.max())

_rng = np.random.Generator(np.random.PCG64(20240611))
P0 = _rng.uniform(0.5, 2.0, (4, 3)) * _rng.choice([-1.0, 1.0], (4, 3))  # away from 0: the comparison is relative
GRADS = _rng.standard_normal((len(LR), 4, 3))


class Case(NamedTuple):
    """A call as its framework writes it, which `wd.emulate` takes as it is."""

    call: str  # "torch.optim.SGD"
    arguments: Mapping[str, Any] = {}  # without lr and weight_decay
    form: str = "matrix"  # p0 as one (4, 3) parameter; else see `parts`; "groups": `halves`, with `groups`


def halves(x: np.ndarray) -> dict[str, np.ndarray]:
    """Two parameters of different rank, (2, 3) and (6,), from the last two axes of x."""
    return {"kernel": x[..., :2, :], "bias": x[..., 2:, :].reshape(*x.shape[:-2], 6)}


def parts(case: Case, x: np.ndarray) -> dict[str, np.ndarray]:
    """The parameters of a case, or their gradients, from the last two axes of x.

    "vector": (12,). "halves", "groups": `halves`. "model": a kernel, a bias and a `pos_embed`, which timm spares.
    """
    if case.form in ("halves", "groups"):
        return halves(x)
    if case.form == "complex":  # (2, 3), the last rows imaginary
        return {"p": x[..., :2, :] + 1j * x[..., 2:, :]}
    if case.form == "model":
        flat = x.reshape(*x.shape[:-2], 12)
        shapes = {"pos_embed": (1, 2, 2), "kernel": (2, 3), "bias": (2,)}
        each = dict(zip(shapes, (flat[..., :4], flat[..., 4:10], flat[..., 10:]), strict=True))
        return {name: part.reshape(*x.shape[:-2], *shapes[name]) for name, part in each.items()}
    return {"p": x.reshape(*x.shape[:-2], 12) if case.form == "vector" else x}


def whole(each: Mapping[str, np.ndarray]) -> np.ndarray:
    """The (4, 3) array that `parts` were made of."""
    real = [y for x in each.values() for y in ([x.real, x.imag] if np.iscomplexobj(x) else [x])]
    return np.concatenate([x.ravel() for x in real]).reshape(4, 3)


def groups(weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for `halves`: the bias has half the η and a third of the λ."""
    return [{"params": "bias", "lr": PEAK / 2, "weight_decay": weight_decay / 3}]


def save(framework: str, distributions: list[str], trajectories: Mapping[str, np.ndarray]) -> None:
    """Writes <framework>.npz: what was computed, step by step, in float64, and by which versions."""
    for key, trajectory in trajectories.items():
        assert (trajectory.dtype, trajectory.shape) == (np.float64, (len(WDS), *GRADS.shape)), key
    version = " ".join(f"{name}=={importlib.metadata.version(name)}" for name in distributions)
    path = Path(__file__).with_name(f"{framework}.npz")
    np.savez_compressed(
        path, p0=P0, gradients=GRADS, learning_rates=LR, weight_decays=WDS, version=version, **trajectories
    )
    print(f"{path.name}: {version}, {len(trajectories)} cases, {path.stat().st_size} bytes")
