"""Whether a penalty fits: tried at `init` on every leaf that decays, and its metric against the direction's state."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes, state_fields
from wd_optax.masking import forms, masks, paths
from wd_optax.masking.paths import is_masked
from wd_optax.masking.roles import Shape
from wd_optax.masking.slices import SliceAxes, Slices, slice_axes
from wd_optax.prox.inference import infer_adam_metric
from wd_optax.prox.metrics import Euclidean, ProxMetric
from wd_optax.prox.steps import Prox

# States of optax and optax.contrib whose step isn't the gradient's size, and the metric of the direction with Optax's
# defaults; "" where the metric has no short formula. Of Optax's adamax, which has Adam's state, D is `nu`.
ADAPTIVE: dict[str, str] = {
    "ScaleByAdamState": "wd.prox.adam_metric(b2=0.999, eps=1e-8)",
    "ScaleByBeliefState": "wd.prox.adam_metric(b2=0.999, eps=1e-16)",
    "ScaleByAmsgradState": 'wd.prox.rms_metric("nu_max", eps=1e-8)',
    "ScaleByRmsState": "wd.prox.rms_metric(eps_root=1e-8)",
    "ScaleByRmsWithCountState": "wd.prox.adam_metric(b2=0.9, eps=0.0, eps_root=1e-8)",
    "ScaleByRssState": 'wd.prox.rms_metric("sum_of_squares", eps_root=1e-7)',
} | dict.fromkeys(
    [
        "COCOBState", "DAdaptAdamWState", "FactoredState", "MadgradState", "MomoAdamState", "MuonState",
        "ProdigyState", "ScaleByAdaDeltaState", "ScaleByAdanState", "ScaleByAdemamixState",
        "ScaleByLionState", "ScaleByNovogradState", "ScaleByRStdDevState", "ScaleByRStdDevWithCountState",
        "ScaleByRpropState", "ScaleBySM3State", "ScaleBySimplifiedAdEMAMixState",
        "SophiaState",
    ],
    "",
)  # fmt: skip
SECOND_MOMENTS = {"exp_avg_sq", "grad_sum_sq", "nu", "nu_max", "sum_of_squares", "v_col", "v_row"}


def fitted(
    name: str,
    inner: optax.GradientTransformation,
    prox: Prox | None,
    *,
    metric: ProxMetric | Euclidean | None,
    mask: masks.Mask,
    slices: Slices,
) -> tuple[optax.GradientTransformationExtraArgs, ProxMetric | None]:
    """`inner`, whose `init` raises where the penalty doesn't fit the parameters, or the metric `inner`'s state.

    And the metric: what was given, or what was measured where `inner` is an Adam; None is 1.
    """
    inner = optax.with_extra_args_support(inner)
    if prox is None:
        return inner, None
    inferred = infer_adam_metric(inner) if metric is None else None
    known = metric if callable(metric) else inferred

    def init(params: Any) -> Any:
        state = inner.init(params)
        if metric is None:
            check_metric(name, inferred, state, params)
        scale = jax.eval_shape(lambda: known(state)) if known else jax.tree.map(lambda p: 1.0, params)
        _try(prox, scale, masks.multipliers(mask, params), slice_axes(slices, params), dtypes.as_arrays(params))
        return state

    return optax.GradientTransformationExtraArgs(init, inner.update), known


def _try(prox: Prox, scale: Any, multipliers: Any, axes: Any, params: Any) -> None:
    """Traces the proximal step of every leaf that decays, once for leaves alike."""
    structure: Any = jax.tree.structure(params)
    try:
        metrics = structure.flatten_up_to(scale)
    except ValueError as error:
        raise ValueError(f"metric: expected a tree like the parameters, got another: {error}") from None
    tried = set()
    each = zip(paths.flatten(params)[0], jax.tree.leaves(multipliers), metrics, strict=True)
    for (path, p), m, metric in each:
        shape = () if is_masked(metric) else jnp.shape(metric)
        kind = p.shape, dtypes.arithmetic(p.dtype), shape, axes.get(path, ())
        if forms.is_zero(m) or kind in tried:
            continue
        tried.add(kind)
        _try_one(prox, path, *kind)


def _try_one(prox: Prox, path: str, shape: Shape, dtype: Any, of_metric: Shape, axes: SliceAxes) -> None:
    if not _broadcasts(of_metric, shape):
        raise ValueError(f"metric: D at {path!r} has shape {of_metric}, expected () or the parameter's, {shape}")
    leaf, k, metric = (jax.ShapeDtypeStruct(s, dtype) for s in (shape, (), of_metric))
    try:
        got = jnp.shape(jax.eval_shape(lambda *x: prox(x[0], x[1], x[2], x[3], axes), leaf, leaf, k, metric))
    except Exception as error:
        error.add_note(f"The penalty was tried at init, as penalty(step, r, k, D, axes), on {path!r} of shape {shape}.")
        raise
    if got != shape:
        raise ValueError(f"penalty: its step at {path!r} has shape {got}, expected {shape}, the parameter's")


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False))


def check_metric(name: str, inferred: ProxMetric | None, inner_state: optax.OptState, params: Any) -> None:
    """Raises for a direction whose step isn't the gradient's size, unless it is one Adam whose metric is known."""
    found = [type(state).__name__ for state in _namedtuples(inner_state, set(ADAPTIVE))]
    one_adam = inferred is not None and found == ["ScaleByAdamState"]
    found += [f.holder for f in state_fields.fields(inner_state, params) if f.name in SECOND_MOMENTS]
    if not found or (one_adam and set(found) == {"ScaleByAdamState"}):
        return
    holder = min(found, key=lambda name: ADAPTIVE.get(name, ""))  # one without a formula, if there is one
    if fix := ADAPTIVE.get(holder):
        give = f"metric={fix}, with the b2 and eps of the direction"
    else:
        give = "metric=, a function from this state to what the direction divides the gradient by"
    raise ValueError(
        f"{name}: penalty= with a direction that rescales the gradient, whose state is a {holder}: a threshold of η·λ "
        f"never wins against its step, about η in size, so that nothing would be regularised. Give {give}; or "
        'metric="euclidean", for the proximal step of D = 1 all the same'
    )


def _namedtuples(inner_state: optax.OptState, names: set[str]) -> Iterator[Any]:
    is_one = lambda node: state_fields.is_namedtuple(node) and type(node).__name__ in names
    return filter(is_one, jax.tree.leaves(inner_state, is_leaf=is_one))
