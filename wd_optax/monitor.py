"""Monitor decay during training: norms, rotation and the share of decay, recorded in any optimizer's state."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wd_optax import step_sums
from wd_optax.masking import roles
from wd_optax.masking.roles import ROLES, Role
from wd_optax.masking.slices import SliceAxes, Slices, check_slices, slice_axes


class DecayInfo(NamedTuple):
    """The decay of one step. In the state each field is an array over `ROLES`, shape=(5,); as read, it is a scalar.

    All are float32, and 0 for a role that the model doesn't have. On a CPU the sums are float64: norms are right to
    float32's last digit and the angle to 1e-4·‖u‖/‖p‖, for any shape up to 10⁸ entries. On GPUs and TPUs they are
    `jnp.sum`'s in float32 (float64 of float64 parameters), and the angle is right to about 1e-3·‖u‖/‖p‖.
    """

    size: jax.Array  # entries of this role
    weight_norm: jax.Array  # ‖p‖, before the step
    update_norm: jax.Array  # ‖u‖, as the optimizer returns it: before `apply_updates` rounds it to the parameters' type
    decay_share: jax.Array  # ‖d‖/(‖d‖ + ‖u − d‖): 0 no decay, 1 only decay, NaN not proportional; see `monitor_decay`
    angle: (
        jax.Array
    )  # ∠(p, p + u) in radians, the role as one vector, or the mean over slices; 0 where p is 0; see above


class DecayMonitorState(NamedTuple):
    """State of `monitor_decay`: arrays only, the same tree for any model."""

    inner: optax.OptState  # the optimizer's state
    info: DecayInfo  # shapes=(5,), dtype=float32: the last step; zeros before the first, except size


def monitor_decay(
    optimizer: optax.GradientTransformation, *, slices: Slices = None
) -> optax.GradientTransformationExtraArgs:
    """Wraps `optimizer` and records, per role, ‖p‖, ‖u‖, the decay share and the angle between p and p + u.

    Updates are the optimizer's own: bit for bit outside jit, and to an ulp under jit, because XLA may contract products
    and sums differently in another program. Each step is also measured: sums over the parameters, and the decay d, the
    part of the step that is proportional to the weights: d = ∂u(s·p)/∂s at s = 1, with gradients and state fixed. It
    detects decay wherever it is placed: in ours, in `optax.adamw`, in any chain. The sums read once more what the step
    reads, before the step and without copies: 16 bytes per float32 parameter, where AdamW moves 28. On a CPU, which
    doesn't vectorise sums, a monitored step takes 4 to 9 times a plain one (`benchmarks/step.py`); this is usually
    small next to the backward pass. `state.inner` is the plain optimizer's state, to step without the monitor.

    d is exactly the decay −c·m·p for every decoupled decay to zero without a rule, for `cautious` and `active_rows`,
    for proximal L2, and for `constrained`, where it is −c·m·λ·p.
    The share of a role is NaN where d is not a decay: where more than 1 % of ‖d‖² is on entries that it grows,
    overwrites (c ≥ 1), or moves in the same direction when the weights are −p. So it is NaN for
      - a step whose size follows the weights: LAMB, LARS, DoWG, Adafactor's `multiply_by_parameter_scale`,
        `adaptive_grad_clip` where it clips.
      - steps onto a constraint where it is active: `keep_params_nonnegative`, and `project` and `hyperball`, whose
        steps depend on where p is and not on how far it has come from 0.
      - penalties "l1" and "elastic" where they set weights to 0, as in Adam's metric, where the threshold is
        lr·λ/(√v̂ + ε); and the penalty "group".
      - a `with_master_weights` inside, which sets the weights from its copy: monitor inside it.
      - L2 in the gradient where Adam cancels it, as in its first step.
    And it is a number, but not −c·m·(p − a) or all of λ·p, for
      - decay toward an anchor a or a norm: d is −c·m·p (times β for `toward_average`), also where p is at it.
      - rules and penalties that bound or normalise r(p), such as `optax.clip`, `l1` or `group`: only the part that
        grows with p counts, and a constant doesn't. r(p) of `low_rank` is cubic, and counts three times.
      - L2 in the gradient: what this step's λ·p does to this step; what momentum holds of earlier ones isn't counted.
      - wrappers that evaluate the loss in `update` (line searches): put the monitor inside.

    Around a rounding ‖u‖ and the angle are those of the rounded step, and the decay is that before rounding.

    Args:
      optimizer: any complete Optax optimizer: the monitor goes around a chain. Extra arguments reach it.
      slices: which axes count weights, see `wd_optax.explain_slices`: then the angle of a role is the mean over its
        weights. Else the role is one vector, in which large weights hide how far small ones turn.

    Returns:
      A transformation with a `DecayMonitorState`; read it with `read_decay`. `update` needs the parameters.

    Raises:
      ValueError: `update` without the parameters; around `optax.lookahead`, `optax.contrib.schedule_free` and wrappers
        that change the tree, with the right order.
      TypeError: around a `jax.custom_vjp` function, which has no derivative along the parameters.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.monitor_decay(optax.adamw(1e-2, weight_decay=0.1))
      >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
      >>> updates, state = tx.update({"kernel": jnp.array([[1.0, -0.75]])}, tx.init(params), params)
      >>> info = wd.read_decay(state)["weight"]
      >>> print(f"{info.weight_norm:.3f} {info.update_norm:.4f} {info.decay_share:.3f} {info.angle:.5f}")
      5.000 0.0143 0.261 0.00280

    Reference: the angle as the effective learning rate: Kosson, Messmer & Jaggi 2023, arXiv 2305.17212. The angle to
    expect: `wd_optax.equilibrium`.

    """
    check_slices(slices)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> DecayMonitorState:
        state = inner.init(params)
        _refuse_wrong_order(state)
        _leaf_axes(slices, params)  # raises where they don't fit
        zeros = (jnp.zeros((len(ROLES),), jnp.float32) for _ in step_sums.StepSummary._fields)
        return DecayMonitorState(state, DecayInfo(_sizes(params), *zeros))

    def update(
        updates: optax.Updates, state: DecayMonitorState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, DecayMonitorState]:
        if params is None:
            raise ValueError(
                "monitor_decay measures the parameters, so update needs them: tx.update(grads, state, params)"
            )
        # `inner.update` is traced twice: here for the sums, which need its derivative, and below for the step. XLA
        # recomputes the update there; one trace would write it to memory, because the sums come before the step.
        steps = step_sums.leaf_steps(lambda p: inner.update(updates, state.inner, p, **extra)[0], params)
        groups = [ROLES.index(parameter.role) for parameter in roles.parameters(params)]
        squares, summaries = step_sums.summarize(steps, groups, len(ROLES), _leaf_axes(slices, params))
        updates = _add_dependency(updates, squares, jax.tree.structure(params))
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        columns = map(jnp.stack, zip(*summaries, strict=True))
        return updates, DecayMonitorState(inner_state, DecayInfo(_sizes(params), *columns))

    return optax.GradientTransformationExtraArgs(init, update)


@overload
def read_decay(opt_state: optax.OptState, *, flat: Literal[False] = False) -> dict[Role, DecayInfo]: ...
@overload
def read_decay(opt_state: optax.OptState, *, flat: Literal[True]) -> dict[str, float]: ...
def read_decay(opt_state: optax.OptState, *, flat: bool = False) -> dict[Role, DecayInfo] | dict[str, float]:
    """Reads what `monitor_decay` recorded in the last step, by role, from anywhere in a state.

    Args:
      opt_state: the state of an optimizer with one `monitor_decay` somewhere in it, or any tree that holds it (a
        `TrainState`; `nnx.Optimizer.opt_state`); traced or not.
      flat: return {"weight/size": ..., "weight/weight_norm": ..., ...}, for a logger: Python floats, of the roles that
        the model has. Under `jit` they are traced scalars of all roles: return them, and take `float` of each outside.

    Returns:
      {"weight": DecayInfo, "embedding": ..., "bias": ..., "norm": ..., "other": ...}, each of scalars (with a leading
      axis where the state is batched by `vmap`). A role that the model doesn't have is all zeros.

    Raises:
      ValueError: where no monitor is found, or more than one; with `flat`, where the state is batched.

    Example: a line for any logger.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), wd.monitor_decay(wd.sgdw(1.0, weight_decay=0.1)))
      >>> params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
      >>> _, state = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> {key: round(x, 3) for key, x in wd.read_decay(state, flat=True).items() if "share" in key}
      {'weight/decay_share': 1.0, 'bias/decay_share': 0.0}

    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, DecayMonitorState))
    found = [x for x in nodes if isinstance(x, DecayMonitorState)]
    if len(found) != 1:
        fix = "wrap the optimizer as wd_optax.monitor_decay(optimizer)" if not found else "pass the part that holds one"
        raise ValueError(f"opt_state has {len(found)} monitors, and read_decay reads one: {fix}")
    arrays = [roles.unwrap(x) for x in found[0].info]
    read = {role: DecayInfo(*(x[..., i] for x in arrays)) for i, role in enumerate(ROLES)}
    return _for_logger(read) if flat else read


def _for_logger(read: Mapping[Role, DecayInfo]) -> dict[str, float]:
    size = next(iter(read.values())).size
    if size.ndim:
        raise ValueError(
            f"flat=True: opt_state is batched, shape {size.shape}, and a logger takes one number: pass the state of "
            "one run, read_decay(jax.tree.map(lambda x: x[0], opt_state), flat=True)"
        )
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(read))
    return {
        f"{role}/{name}": x if traced else float(x)
        for role, info in read.items()
        if traced or info.size > 0
        for name, x in info._asdict().items()
    }


REBUILDS = {  # wrappers that compute the weights from others in their state: the type of that state; the right order
    optax.LookaheadState: "optax.lookahead(wd_optax.monitor_decay(optimizer), sync_period, slow_step_size)",
    optax.contrib.ScheduleFreeState: "optax.contrib.schedule_free(wd_optax.monitor_decay(optimizer), learning_rate)",
}


def _refuse_wrong_order(state: optax.OptState) -> None:
    """Refuses, anywhere in the optimizer, wrappers whose steps don't show the decay."""
    rebuilds = lambda x: type(x) in REBUILDS
    for found in filter(rebuilds, jax.tree.leaves(state, is_leaf=rebuilds)):
        order = REBUILDS[type(found)]
        raise ValueError(
            f"monitor_decay is around {order.split('(')[0]}, which computes the weights from others in its state: "
            f"put the monitor inside, as {order}"
        )


def _add_dependency(
    updates: optax.Updates, squares: list[jax.Array], treedef: jax.tree_util.PyTreeDef
) -> optax.Updates:
    """Makes `updates` depend on the sums, so that XLA schedules the sums before the in-place step.

    Otherwise it copies p, and `lax.optimization_barrier` is dropped on a CPU (tests/test_bytes.py:
    test_the_monitor_reads_once_more_what_the_step_reads).
    """

    def depend(square: jax.Array, u: jax.Array | None) -> jax.Array | None:
        if u is None or not jnp.issubdtype(u.dtype, jnp.inexact):
            return u
        # A sum of squares is never below −1, so this is −0.0 and the addition is a no-op. XLA can't prove it.
        zero = jnp.where(square < -1, 1, -0.0)
        is_complex = jnp.issubdtype(u.dtype, jnp.complexfloating)
        return u + (lax.complex(zero, zero) if is_complex else zero).astype(u.dtype)

    return jax.tree.map(depend, treedef.unflatten(squares), updates)


def _sizes(params: optax.Params) -> jax.Array:
    sizes = dict.fromkeys(ROLES, 0)
    for p in roles.parameters(params):
        sizes[p.role] += math.prod(p.shape)
    return jnp.stack([jnp.float32(size) for size in sizes.values()])


def _leaf_axes(slices: Slices, params: optax.Params) -> list[SliceAxes] | None:
    """The axes of each leaf that count weights; None without `slices`."""
    if slices is None:
        return None
    axes, found = slice_axes(slices, params), roles.parameters(params)
    # Integers are measured as an empty leaf.
    return [axes.get(p.path, ()) if jnp.issubdtype(p.dtype, jnp.inexact) else () for p in found]
