"""Constrained parameter regularization (CPR): weights decay as much as a bound on their norm asks for."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax.hyperparams import Scalar, check_scalar
from wd_optax.rules.checks import check_has_state, check_is_first
from wd_optax.rules.norms import check_per_slice, slice_norms
from wd_optax.rules.step import Step, tree_map

Kappa = Literal["init", "warm", "inflection"]


class InflectionState(NamedTuple):
    """What is known of the course of R = ½‖p‖², per slice."""

    smoothed: optax.Params  # the moving average of R
    slope: optax.Params  # its last difference


class ConstraintState(NamedTuple):
    """Per slice, in float32 or wider: a leaf's shape with 1 for the axes that `slices` doesn't name."""

    lagrange: optax.Params  # the multiplier λ
    kappa: optax.Params  # the bound on ½‖p‖²; inf until it is set
    inflection: InflectionState | tuple[()]


def constrained(
    kappa: Kappa | Scalar = "init",
    *,
    update_rate: Scalar = 1.0,
    per_entry: bool = False,
    ratio: Scalar = 1.0,
    steps: int | None = None,
    smoothing: float = 0.9,
) -> optax.GradientTransformationExtraArgs:
    """λ ← max(0, λ + μ·(½‖q‖² − κ)), r = λ·q with q = p + step: as much decay as keeps ½‖p‖² ≤ κ, per slice.

    A step removes c·λ, where c = η·weight_decay and so on, by the coupling. Where λ settles, ½‖q‖² = κ, so that
    ½‖p‖² is below: (1 − c·λ)²·κ. Where a transformation doesn't know the finished step (`add_l2_to_loss`, `coupled`,
    `add_decayed_weights`), q = p; where the learning rate comes later, the cut below takes weight_decay for c.

    Only c·μ matters: c·λ follows the rule with μ replaced by c·μ. For the paper's update, whose multiplier doesn't
    follow the learning rate, keep c constant and take c·μ for μ: `wd.shrink(0.1, rule=constrained(update_rate=10))`
    after an optimizer is μ = 1. Near its bound ‖p‖ swings by about √(2κ·c·μ) radians per step (over the entries with
    `per_entry`); keep that below 1: at c = 1e-4, μ = 1 fits weights of ‖p‖² up to some thousands.

    λ is cut so that no step takes ‖q‖ below half of its bound √(2κ): c·λ < 1, and where κ was far below ½‖p‖², a λ
    that has grown too large doesn't shrink the weights to nothing while it comes down.

    Differences from the authors' code (pytorch-cpr, AdamCPR):
      - It bounds Σp² and removes 2·λ·q: its κ is twice, its μ a quarter of ours: update_rate=4/c, per_entry=True.
      - There λ isn't cut: weights far above their bound change sign.
      - "inflection" compares every two steps, as there; the paper samples every `steps` steps.
      - One multiplier per slice, where a stack of layers there has one for all.

    Args:
      kappa: the bound on ½‖p‖² as a number; "init": ½‖p₀‖²; "warm": ½‖q‖² after `steps` steps; "inflection": ½‖q‖²
        where it stops growing faster, not before 3·steps. λ is 0 until then. It is kept in the state. A weight that
        starts at 0 has the bound 0 by "init", and stays there: leave it out by the mask, or use "warm".
      update_rate: μ. Tracers aren't checked.
      per_entry: divide μ by the number of entries of a slice, as the authors' code does.
      ratio: what κ is multiplied by.
      steps: how long to wait, for "warm" and "inflection"; the authors' code has 200 for the latter.
      smoothing: β of the moving average of ½‖q‖², for "inflection".

    Returns:
      A rule with a `ConstraintState`: find λ by `optax.tree.get(state, "lagrange")`, κ by "kappa". Its sum reads what
      the step is made of once more.

    Raises:
      ValueError: for another string, negative numbers, steps that are missing or not used; where "init" comes after
        another rule in a chain, because p₀ is of the parameters.

    Example: a gradient pushes outward, and the norm stays where it was.
      >>> import jax, jax.numpy as jnp, optax, wd_optax as wd
      >>> params, ends = {"kernel": jnp.array([[3.0, 4.0]])}, {}
      >>> for rule in (None, wd.rules.constrained("init")):
      ...     tx = optax.chain(optax.sgd(0.01), wd.shrink(1e-9 if rule is None else 0.1, rule=rule))
      ...     p, state = params, tx.init(params)
      ...     for _ in range(100):
      ...         updates, state = tx.update({"kernel": -params["kernel"]}, state, p)
      ...         p = optax.apply_updates(p, updates)
      ...     print(f"{jnp.linalg.norm(p['kernel']).item():.1f}")
      10.0
      5.0

    Reference: Franke et al. 2024, arXiv 2311.09058 (CPR).
    """
    _check(kappa, steps)
    for name, value in {"update_rate": update_rate, "ratio": ratio, "smoothing": smoothing}.items():
        check_scalar(name, value, below=1 if name == "smoothing" else math.inf)
    kind = kappa if isinstance(kappa, str) else "number"
    wait = steps or 0

    def init(params: optax.Params) -> ConstraintState:
        measures = _measures(params)
        zeros = [jax.tree.map(jnp.zeros_like, measures) for _ in range(3)]  # buffers of their own: they are donated
        course = InflectionState(*zeros[1:]) if kind == "inflection" else ()
        return ConstraintState(zeros[0], jax.tree.map(bound_at_init, measures), course)

    def bound_at_init(measure: jax.Array) -> jax.Array:
        bound = jnp.inf if kind in ("warm", "inflection") else measure if isinstance(kappa, str) else kappa
        return jnp.asarray(ratio, measure.dtype) * jnp.full_like(measure, bound)

    def multiplier(q: jax.Array, old: jax.Array, bound: jax.Array, measure: jax.Array, rate: Any) -> jax.Array:
        entries = q.size // measure.size if per_entry and q.size else 1
        grown = old + jnp.asarray(update_rate, measure.dtype) / entries * (measure - bound)
        grown = jnp.where(jnp.isfinite(bound), grown, old)
        return jnp.clip(grown, 0, _largest(measure, bound, jnp.asarray(rate).astype(measure.dtype)))

    def watch(state: ConstraintState, measures: optax.Params, taken: jax.Array) -> tuple[optax.Params, Any]:
        if kind not in ("warm", "inflection"):
            return state.kappa, ()
        ready, course = jax.tree.map(lambda r: taken >= wait, measures), state.inflection
        if isinstance(course, InflectionState):
            course, flattens = _follow(course, measures, smoothing)
            ready = jax.tree.map(lambda flat: (taken > 3 * wait) & flat, flattens)
        set_bound = lambda r, k, now: jnp.where(now & jnp.isinf(k), jnp.asarray(ratio, r.dtype) * r, k)
        return jax.tree.map(set_bound, measures, state.kappa, ready), course

    def update(
        updates: optax.Params, state: ConstraintState, params: Any = None, *, step: Step
    ) -> tuple[optax.Params, ConstraintState]:
        if kind == "init":
            fix = "it goes first, or takes a number, as in wd.rules.constrained(1.0)"
            check_is_first('constrained("init")', updates, params, fix)
        check_has_state("kappa", updates, state.kappa)
        check_per_slice("constrained", state.kappa, updates)
        q = updates
        if step.updates is not None:
            q = tree_map(lambda p, u: p + u.astype(p.dtype), updates, step.updates)
        measures = _measures(q)
        lagrange = tree_map(multiplier, q, state.lagrange, state.kappa, measures, step.rates)
        lagrange = jax.lax.stop_gradient(lagrange)  # so that the monitor's share of decay is c·λ
        r = tree_map(lambda q, k: k.astype(q.dtype) * q, q, lagrange)
        return r, ConstraintState(lagrange, *watch(state, measures, step.count + 1))

    return optax.GradientTransformationExtraArgs(init, update)


def _check(kappa: Any, steps: Any) -> None:
    """Raises for arguments that don't fit each other."""
    waits = isinstance(kappa, str) and kappa in ("warm", "inflection")
    if isinstance(kappa, str) and not waits and kappa != "init":
        raise ValueError(f'kappa={kappa!r}: use "init", "warm", "inflection" or a number, the bound on ½‖p‖²')
    if not isinstance(kappa, str):
        check_scalar("kappa", kappa)
    is_integer = hasattr(steps, "__index__") and not isinstance(steps, bool)
    if waits and not (is_integer and steps >= 1):
        raise ValueError(f"steps={steps!r}: kappa={kappa!r} needs how many steps to wait, at least 1, as steps=200")
    if not waits and steps is not None:
        raise ValueError(f'steps={steps!r} has no effect with kappa={kappa!r}: use kappa="warm" or "inflection"')


def _measures(tree: optax.Params) -> optax.Params:
    """½‖p‖² per slice."""
    return jax.tree.map(lambda n: n * n / 2, slice_norms(tree))


def _largest(measure: jax.Array, kappa: jax.Array, rate: jax.Array) -> jax.Array:
    """The λ with which ‖q‖ comes out as half of its bound; 0 where it is already below."""
    share = jnp.where(measure > 0, kappa / jnp.where(measure > 0, measure, 1), 1)
    largest = jnp.maximum(1 - jnp.sqrt(share) / 2, 0)
    return jnp.where(rate > 0, largest / jnp.where(rate > 0, rate, 1), jnp.inf)


def _follow(course: InflectionState, measures: optax.Params, smoothing: Any) -> tuple[InflectionState, optax.Params]:
    """The course after one more step, and whether it rises more slowly than before."""
    smooth = lambda old, r: jnp.asarray(smoothing, r.dtype) * old + (1 - jnp.asarray(smoothing, r.dtype)) * r
    smoothed = jax.tree.map(smooth, course.smoothed, measures)
    slope = jax.tree.map(jnp.subtract, smoothed, course.smoothed)
    return InflectionState(smoothed, slope), jax.tree.map(jnp.less, slope, course.slope)
