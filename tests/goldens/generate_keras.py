"""Writes keras.npz. Needs keras and jax."""

import os

import numpy as np
from cases_keras import KERAS
from problem import GRADS, LR, P0, PEAK, WDS, Case, parts, save, whole

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_ENABLE_X64", "1")


def double_means() -> None:
    """Keras' JAX backend takes means in float32 whatever the type, which Adafactor would show: 2e-8 a step."""
    from keras import ops

    def mean(x, axis=None, keepdims=False):
        total = ops.sum(x, axis=axis, keepdims=keepdims)
        return total / (ops.size(x) / ops.size(total))

    ops.mean = mean
    import keras.src.ops as inner

    inner.mean = mean


def run(case: Case, weight_decay: float) -> np.ndarray:
    import keras

    keras.config.set_floatx("float64")  # the optimizer's learning-rate variable too
    make, arguments = getattr(keras.optimizers, case.call.rpartition(".")[2]), dict(case.arguments)
    excluded = arguments.pop("exclude_from_weight_decay", None)
    p = {name: keras.Variable(x, dtype="float64", name=name) for name, x in parts(case, P0).items()}
    optimizer, out = make(PEAK, weight_decay=weight_decay, **arguments), []
    if excluded:
        optimizer.exclude_from_weight_decay(var_names=excluded)
    for lr, g in zip(LR, GRADS, strict=True):
        optimizer.learning_rate = lr
        each = [keras.ops.convert_to_tensor(x, dtype="float64") for x in parts(case, g).values()]
        optimizer.apply(each, list(p.values()))
        out.append(whole({name: keras.ops.convert_to_numpy(x).copy() for name, x in p.items()}))
    return np.stack(out)


if __name__ == "__main__":
    double_means()
    runs = {key: np.stack([run(case, float(weight_decay)) for weight_decay in WDS]) for key, case in KERAS.items()}
    save("keras", ["keras", "jax"], runs)
