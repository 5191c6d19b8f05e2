"""Penalties by their proximal steps: what decay minimises, exactly, in the metric of the optimizer.

    p ← argmin_x ½·(x − (p + step))ᵀ·D·(x − (p + step)) + c·m·penalty(x − a)

D is the metric, by which the direction divides the gradient: 1 for SGD, √v̂ + ε for Adam. With c = η·λ the fixed points
are the minima of loss + λ·m·penalty(x − a), whatever D is; with D = 1 after Adam they aren't (ProxGen, Yun, Lozano &
Yang 2021, arXiv 2007.07484). The anchor a is 0 unless a rule says otherwise. With y = p + step and k = c·m, for a = 0:

    "l2"       ½·|x|²                                       D·y/(D + k), which never crosses 0
    "l1"       |x|                                          soft threshold at k/D: exact zeros
    "elastic"  l1_ratio·|x| + (1 − l1_ratio)·½·|x|²         `elastic(0.5)`
    "huber"    ½·|x|² up to δ, then δ·|x| − ½·δ²            `huber(1.0)`
    "group"    ‖x‖ of each weight, or of each row, ...      `group()`: zeros of whole groups

Any function `(step, r, k, D, axes) -> step` is a penalty, too. It gets one leaf: the step before it, r = p − a, k = c·m
as a scalar, D as a scalar or an array, and the axes of `slices=`; arrays in float32 or wider, of one type. It returns
the minimiser less p, such as −r for x = 0:

    def l0(step, r, k, metric, axes):  # |x|⁰ counts the entries that aren't 0: a hard threshold
        return jnp.where(metric * (r + step) ** 2 <= 2 * k, -r, step)

    wd.adamw(1e-3, weight_decay=1e-2, penalty=l0)
"""

from wd_optax.prox.metrics import adam_metric, rms_metric
from wd_optax.prox.steps import elastic, group, huber

__all__ = ["adam_metric", "elastic", "group", "huber", "rms_metric"]
