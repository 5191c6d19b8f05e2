"""Writes tests/goldens/<framework>.npz: what other frameworks compute, step by step, in float64.

    python tests/goldens/generate.py torch|timm|optimi|keras|tfa

Run it where that package is installed: torch==2.13.0, and timm and torch-optimi beside it; keras with jax;
tensorflow==2.15.* with tensorflow-addons==0.23.* on Python 3.11. The tests read only the files.

Each file holds p0 (4, 3), gradients (10, 4, 3), learning_rates (10,), weight_decay, version, and per case the
parameters after each step (10, 4, 3). Gradients are fixed in advance, so every case sees the same ones.
"""

import importlib.metadata
import importlib.util
import os
import sys
import types
import warnings
from pathlib import Path

import numpy as np

WD = 0.05
# Warm-up, a peak in the middle, decay; no two steps alike.
LR = np.array([0.01, 0.02, 0.035, 0.05, 0.045, 0.04, 0.03, 0.018, 0.012, 0.006])
PEAK = float(LR.max())

_rng = np.random.Generator(np.random.PCG64(20240611))
P0 = _rng.uniform(0.5, 2.0, (4, 3)) * _rng.choice([-1.0, 1.0], (4, 3))  # away from 0: the comparison is relative
GRADS = _rng.standard_normal((len(LR), 4, 3))


def run_torch(cls, kwargs) -> np.ndarray:
    """Built with the peak (timm takes its η_max from the constructor); then each step sets its own learning rate."""
    import torch

    p = torch.nn.Parameter(torch.tensor(P0))
    optimizer, out = cls([p], lr=PEAK, **kwargs), []
    for lr, g in zip(LR, GRADS, strict=True):
        optimizer.param_groups[0]["lr"] = float(lr)
        p.grad = torch.tensor(g)  # a fresh one: optimī's L2 writes into it
        optimizer.step()
        out.append(p.detach().numpy().copy())
    return np.stack(out)


def torch_cases():
    import torch
    from torch import optim

    torch.set_default_dtype(torch.float64)  # the step-size scalars some optimizers keep as tensors take this dtype
    cases = {
        "sgd": (optim.SGD, {}),
        "sgd_momentum": (optim.SGD, {"momentum": 0.9}),
        "sgd_dampening": (optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
        "sgd_nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
        "sgd_maximize": (optim.SGD, {"maximize": True}),
        "sgd_maximize_momentum": (optim.SGD, {"maximize": True, "momentum": 0.9, "dampening": 0.3}),
        "adam": (optim.Adam, {}),
        "adam_amsgrad": (optim.Adam, {"amsgrad": True}),
        "adam_decoupled": (optim.Adam, {"decoupled_weight_decay": True}),
        "adamw": (optim.AdamW, {}),
        "adamw_amsgrad": (optim.AdamW, {"amsgrad": True}),
        "rmsprop": (optim.RMSprop, {}),
        "rmsprop_momentum": (optim.RMSprop, {"momentum": 0.9}),
        "rmsprop_centered": (optim.RMSprop, {"momentum": 0.9, "centered": True}),
        "nadam": (optim.NAdam, {}),
        "nadam_decoupled": (optim.NAdam, {"decoupled_weight_decay": True}),
        "radam": (optim.RAdam, {}),
        "radam_decoupled": (optim.RAdam, {"decoupled_weight_decay": True}),
        "adagrad": (optim.Adagrad, {}),
        "adagrad_eps0": (optim.Adagrad, {"eps": 0.0}),
        "adadelta": (optim.Adadelta, {}),
        "adamax": (optim.Adamax, {}),
        "asgd": (optim.ASGD, {}),
        "muon": (optim.Muon, {}),
        "muon_match_rms": (optim.Muon, {"adjust_lr_fn": "match_rms_adamw"}),
    }
    return torch_family(cases)


def timm_cases():
    # timm/__init__.py imports every model and timm.data, and with them torchvision, which has no build for this CPU
    # torch. Bare packages with the right __path__ let the optimizers' own modules be imported without running it.
    spec = importlib.util.find_spec("timm")  # finds it without importing it
    assert spec is not None
    assert spec.submodule_search_locations
    for name, folder in (("timm", ""), ("timm.optim", "optim")):
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [os.path.join(spec.submodule_search_locations[0], folder)]
    from timm.optim.adamw import AdamWLegacy
    from timm.optim.adan import Adan
    from timm.optim.lamb import Lamb
    from timm.optim.lion import Lion
    from timm.optim.muon import Muon
    from timm.optim.nadamw import NAdamW
    from timm.optim.rmsprop_tf import RMSpropTF
    from timm.optim.sgdw import SGDW

    corrected = {"corrected_weight_decay": True}
    cases = {
        "sgdw": (SGDW, {}),
        "sgdw_momentum": (SGDW, {"momentum": 0.9, "dampening": 0.3}),
        "sgdw_nesterov": (SGDW, {"momentum": 0.9, "nesterov": True}),
        "sgdw_corrected": (SGDW, dict(momentum=0.9, **corrected)),
        "adamw": (AdamWLegacy, {}),
        "adamw_amsgrad": (AdamWLegacy, {"amsgrad": True}),
        "adamw_corrected": (AdamWLegacy, corrected),
        "nadamw": (NAdamW, {}),
        "nadamw_corrected": (NAdamW, corrected),
        "lion": (Lion, {}),
        "lion_corrected": (Lion, corrected),
        "rmsproptf": (RMSpropTF, {"momentum": 0.9}),
        "rmsproptf_decoupled": (RMSpropTF, {"momentum": 0.9, "decoupled_decay": True}),
        "rmsproptf_corrected": (RMSpropTF, dict(momentum=0.9, decoupled_decay=True, **corrected)),
        "lamb": (Lamb, {}),
        "lamb_decoupled": (Lamb, {"decoupled_decay": True}),
        "lamb_corrected": (Lamb, dict(decoupled_decay=True, **corrected)),
        "adan": (Adan, {}),
        "adan_no_prox": (Adan, {"no_prox": True}),
        "muon": (Muon, {}),
    }
    return torch_family(cases)


def optimi_cases():
    from optimi import SGD, Adam, AdamW

    warnings.filterwarnings("ignore", message="You are using weight_decay up to")  # ours is large on purpose
    decouple_lr = {"decouple_lr": True, "max_lr": PEAK}
    cases = {
        "sgd": (SGD, {}),
        "sgd_momentum": (SGD, {"momentum": 0.9}),
        "sgd_dampening": (SGD, {"momentum": 0.9, "dampening": True}),
        "sgd_decouple_wd": (SGD, {"momentum": 0.9, "decouple_wd": True}),
        "sgd_decouple_lr": (SGD, dict(momentum=0.9, **decouple_lr)),
        "adam": (Adam, {}),
        "adam_decouple_wd": (Adam, {"decouple_wd": True}),
        "adam_decouple_lr": (Adam, decouple_lr),
        "adamw": (AdamW, {}),
        "adamw_decouple_lr": (AdamW, decouple_lr),
    }
    return torch_family(cases)


def torch_family(cases):
    out = {key: run_torch(cls, {"weight_decay": WD, **kwargs}) for key, (cls, kwargs) in cases.items()}
    for key, (cls, kwargs) in cases.items():
        if key.startswith("muon"):  # rounds to bfloat16 inside: the run without decay is what a twin can start from
            out[f"undecayed/{key}"] = run_torch(cls, {"weight_decay": 0.0, **kwargs})
    return out


def keras_cases():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    import keras
    from keras import optimizers

    keras.config.set_floatx("float64")  # the optimizer's learning-rate variable too

    def trajectory(cls, kwargs):
        p, optimizer, out = keras.Variable(P0, dtype="float64"), cls(PEAK, weight_decay=WD, **kwargs), []
        for lr, g in zip(LR, GRADS, strict=True):
            optimizer.learning_rate = lr
            optimizer.apply([keras.ops.convert_to_tensor(g, dtype="float64")], [p])
            out.append(keras.ops.convert_to_numpy(p).copy())
        return np.stack(out)

    cases = {
        "sgd": (optimizers.SGD, {}),
        "sgd_momentum": (optimizers.SGD, {"momentum": 0.9}),
        "sgd_nesterov": (optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
        "adam": (optimizers.Adam, {}),
        "adam_amsgrad": (optimizers.Adam, {"amsgrad": True}),
        "adamw": (optimizers.AdamW, {}),
        "rmsprop": (optimizers.RMSprop, {}),
        "rmsprop_momentum": (optimizers.RMSprop, {"momentum": 0.9, "centered": True}),
        "lion": (optimizers.Lion, {}),
        "lamb": (optimizers.Lamb, {}),
    }
    return {key: trajectory(*case) for key, case in cases.items()}


def tfa_cases():
    warnings.filterwarnings("ignore")  # TensorFlow Addons announces its end of life at import
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    from tensorflow_addons.optimizers import LAMB, SGDW, AdamW

    step = tf.Variable(0, dtype=tf.int64)
    momentum = {"momentum": tf.constant(0.9, tf.float64)}  # Keras 2 keeps plain numbers as float32, tensors as they are
    betas = {"beta_1": tf.constant(0.9, tf.float64), "beta_2": tf.constant(0.999, tf.float64)}
    constant = {"weight_decay": tf.constant(WD, tf.float64)}
    scheduled = {"weight_decay": lambda: tf.constant(WD * LR / PEAK)[step]}  # the caller's own schedule for λ

    def trajectory(cls, kwargs):
        p, optimizer, out = tf.Variable(P0), cls(learning_rate=lambda: tf.constant(LR)[step], **kwargs), []
        for t, g in enumerate(GRADS):
            step.assign(t)
            optimizer.apply_gradients([(tf.constant(g), p)])
            out.append(p.numpy())
        return np.stack(out)

    cases = {
        "sgdw": (SGDW, constant),
        "sgdw_momentum": (SGDW, momentum | constant),
        "sgdw_nesterov": (SGDW, {"nesterov": True} | momentum | constant),
        "sgdw_scheduled": (SGDW, momentum | scheduled),
        "adamw": (AdamW, betas | constant),
        "adamw_scheduled": (AdamW, betas | scheduled),
        "lamb": (LAMB, betas | {"weight_decay_rate": tf.constant(WD, tf.float64)}),
    }
    return {key: trajectory(*case) for key, case in cases.items()}


FRAMEWORKS = {  # name: (its cases, the distributions that decide the numbers)
    "torch": (torch_cases, ["torch"]),
    "timm": (timm_cases, ["timm", "torch"]),
    "optimi": (optimi_cases, ["torch-optimi", "torch"]),
    "keras": (keras_cases, ["keras", "jax"]),
    "tfa": (tfa_cases, ["tensorflow-addons", "tensorflow"]),
}


def main(framework: str) -> None:
    cases, distributions = FRAMEWORKS[framework]
    trajectories = cases()
    for key, trajectory in trajectories.items():
        assert (trajectory.dtype, trajectory.shape) == (np.float64, GRADS.shape), key
    version = " ".join(f"{name}=={importlib.metadata.version(name)}" for name in distributions)
    path = Path(__file__).with_name(f"{framework}.npz")
    np.savez_compressed(
        path, p0=P0, gradients=GRADS, learning_rates=LR, weight_decay=WD, version=version, **trajectories
    )
    print(f"{path.name}: {version}, {len(trajectories)} trajectories, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
