"""Writes tfa.npz. Needs tensorflow==2.15.* with tensorflow-addons==0.23.* on Python 3.11."""

import os
import warnings
from typing import Any

import numpy as np
from cases_tfa import TFA, TFA_SCHEDULED
from problem import GRADS, LR, P0, PEAK, WDS, Case, parts, save, whole

DOUBLE = ("momentum", "beta_1", "beta_2", "decay")  # Keras 2 keeps plain numbers as float32, tensors as they are


def run(case: Case, weight_decay: float, scheduled: bool = False) -> np.ndarray:
    warnings.filterwarnings("ignore")  # TensorFlow Addons announces its end of life at import
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    import tensorflow_addons as tfa

    make, step = getattr(tfa.optimizers, case.call.rpartition(".")[2]), tf.Variable(0, dtype=tf.int64)
    double = lambda x: tf.constant(x, tf.float64)
    betas = {} if "SGDW" in case.call else {"beta_1": 0.9, "beta_2": 0.999}
    arguments: dict[str, Any] = betas | dict(case.arguments)
    arguments = {key: double(x) if key in DOUBLE else x for key, x in arguments.items()}
    decay = (lambda: double(weight_decay * LR / PEAK)[step]) if scheduled else double(weight_decay)
    arguments["weight_decay_rate" if "LAMB" in case.call else "weight_decay"] = decay  # LAMB checks for a float
    p = {name: tf.Variable(x, name=name) for name, x in parts(case, P0).items()}
    optimizer, out = make(learning_rate=lambda: double(LR)[step], **arguments), []
    for t, g in enumerate(GRADS):
        step.assign(t)
        optimizer.apply_gradients([(tf.constant(x), p[name]) for name, x in parts(case, g).items()])
        out.append(whole({name: x.numpy() for name, x in p.items()}))
    return np.stack(out)


if __name__ == "__main__":
    runs = {key: np.stack([run(case, float(weight_decay)) for weight_decay in WDS]) for key, case in TFA.items()}
    runs |= {
        key: np.stack([run(case, float(weight_decay), scheduled=True) for weight_decay in WDS])
        for key, case in TFA_SCHEDULED.items()
    }
    save("tfa", ["tensorflow-addons", "tensorflow"], runs)
