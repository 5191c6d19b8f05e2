"""Watch decay during training: norms, turning and the share of decay, kept in any optimizer's state."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes, roles

ROLES = ("weight", "embedding", "bias", "norm", "other")  # the order of the arrays in the state


class Info(NamedTuple):
    """One step in numbers. In the state each is an array over the roles, shape=(5,); as read, one role's, shape=().

    All are float32, measured in float32 or wider, and 0 for a role that the model doesn't have.
    """

    size: jax.Array  # entries of this role
    weight_norm: jax.Array  # ‖p‖, before the step
    update_norm: jax.Array  # ‖u‖, as the optimizer returns it: before `apply_updates` rounds it to the parameters' type
    decay_share: jax.Array  # ‖d‖/(‖d‖ + ‖u − d‖): 0 no decay, 1 nothing but decay; see `monitor` for d
    angle: jax.Array  # ∠(p, p + u) in radians, the role as one vector; 0 where p is 0; to about 3e-4·‖u‖/‖p‖


class MonitorState(NamedTuple):
    """State of `monitor`: arrays only, the same tree for any model."""

    inner: Any  # the optimizer's state
    info: Info  # shapes=(5,), dtype=float32: the last step; zeros before the first, except size


def monitor(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, that also keeps ‖p‖, ‖u‖, the share of decay and the angle turned per step, by role.

    Updates are the optimizer's own: bit for bit outside jit, and compiled up to how XLA contracts products and sums in
    another program (an ulp). Each step is also measured: five sums over the parameters, and the decay d, the part of
    the step that is proportional to the weights: d = ∂u(s·p)/∂s at s = 1, gradients and state held. It sees decay
    wherever it stands: in ours, in `optax.adamw`, in any chain. The sums are one more pass over what the step reads,
    before the step and without copies: 16 bytes per float32 parameter beside AdamW's 28. A CPU, which doesn't vectorise
    sums, needs 3 to 6 times a plain step's time (`benchmarks/step.py`): little beside a gradient, much beside a step;
    `state.inner` is the plain optimizer's state, for a step without the monitor.

    It is exactly the decay −c·m·p for every decoupled decay to zero, cautious and proximal L2 included. It is not:
      - decay to an anchor a: d is −c·m·p and not −c·m·(p − a); and L1: not proportional, not counted.
      - L2 in the gradient: what this step's λ·p does to this step; what momentum holds of earlier ones isn't counted.
      - a step whose size follows the weights (LAMB, LARS, Adafactor's `multiply_by_parameter_scale`): all of it counts.
      - wrappers that rebuild the parameters or evaluate the loss in `update` (schedule-free, SAM, line searches): put
        the monitor inside, as `optax.contrib.schedule_free(wd.monitor(...), lr)`.

    Around a rounding ‖u‖ and the angle are those of the rounded step. `with_master_weights` computes decay from a copy
    in its state: put the monitor inside, as `wd.with_master_weights(wd.monitor(...))`.

    Args:
      optimizer: any Optax optimizer, finished: in a chain the monitor stands around it. Extra arguments reach it.

    Returns:
      A transformation with a `MonitorState`; read it with `read_monitor`. `update` needs the parameters.

    Example:
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.monitor(optax.adamw(1e-2, weight_decay=0.1))
      >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
      >>> updates, state = tx.update({"kernel": jnp.array([[1.0, -0.75]])}, tx.init(params), params)
      >>> info = wd.read_monitor(state)["weight"]
      >>> print(f"{info.weight_norm:.3f} {info.update_norm:.4f} {info.decay_share:.3f} {info.angle:.5f}")
      5.000 0.0143 0.261 0.00280

    Reference: the angle as the effective learning rate: Kosson, Messmer & Jaggi 2023, arXiv 2305.17212; what to
    expect of it: `wd_optax.equilibrium`.

    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> MonitorState:
        return MonitorState(inner.init(params), _info({}, _sizes(params)))

    def update(updates: Any, state: MonitorState, params: Any = None, **extra: Any) -> tuple[Any, MonitorState]:
        if params is None:
            raise ValueError("monitor measures the parameters, so update needs them: tx.update(grads, state, params)")
        sums = _sums_of(lambda p: inner.update(updates, state.inner, p, **extra)[0], params)
        step, inner_state = inner.update(_behind(updates, sums), state.inner, params, **extra)
        return step, MonitorState(inner_state, _by_role(params, sums))

    return optax.GradientTransformationExtraArgs(init, update)


def read_monitor(opt_state: Any) -> dict[str, Info]:
    """What `monitor` saw in the last step, by role: found by its type, anywhere in a state.

    Args:
      opt_state: the state of an optimizer that has a `monitor` somewhere in it, or any tree that holds it (a
        `TrainState`; `nnx.Optimizer.opt_state`); traced or not.

    Returns:
      {"weight": Info, "embedding": ..., "bias": ..., "norm": ..., "other": ...}, each of scalars (with a leading axis
      where the state is batched by `vmap`). A role that the model doesn't have is all zeros.

    Raises:
      ValueError: where no monitor is found, or more than one.

    Example: a line for any logger.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), wd.monitor(wd.sgdw(1.0, weight_decay=0.1)))
      >>> params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
      >>> _, state = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> {role: round(float(info.decay_share), 3) for role, info in wd.read_monitor(state).items() if info.size}
      {'weight': 1.0, 'bias': 0.0}

    """
    is_monitor = lambda x: isinstance(x, MonitorState)
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_monitor) if is_monitor(x)]
    if len(found) != 1:
        mend = "wrap the optimizer as wd_optax.monitor(optimizer)" if not found else "pass the part that holds one"
        raise ValueError(f"opt_state has {len(found)} monitors, and read_monitor reads one: {mend}")
    arrays = [roles.unwrap(x) for x in found[0].info]
    return {role: Info(*(x[..., i] for x in arrays)) for i, role in enumerate(ROLES)}


class _Sums(NamedTuple):
    """Sums over entries, added up over the leaves of a role."""

    pp: Any = 0.0  # |p|²
    uu: Any = 0.0
    pu: Any = 0.0  # Re p̄·u
    dd: Any = 0.0
    rr: Any = 0.0  # |u − d|²


def _sums_of(step: Callable[[Any], Any], params: Any) -> Any:
    """Per leaf the sums over p, u = step(p) and the decay d = ∂step(s·p)/∂s at s = 1."""
    leaves, treedef = jax.tree.flatten(params)
    is_float = [jnp.issubdtype(jnp.result_type(p), jnp.inexact) for p in leaves]

    def of(floats: list[Any]) -> Any:
        rest = iter(floats)
        mixed = [next(rest) if f else p for p, f in zip(leaves, is_float, strict=True)]
        return step(jax.tree.unflatten(treedef, mixed))

    floats = [jnp.asarray(p) for p, f in zip(leaves, is_float, strict=True) if f]
    updates, decay = jax.jvp(of, (floats,), (floats,))
    return jax.tree.map(_sums, params, updates, decay)


def _sums(p: Any, u: Any, d: Any) -> _Sums:
    if not jnp.issubdtype(jnp.result_type(p), jnp.inexact):
        return _Sums()
    p = jnp.asarray(p)
    dtype = dtypes.arithmetic(p.dtype, *(() if u is None else (u.dtype,)))
    p, u, d = (jnp.zeros(p.shape, dtype) if x is None else x.astype(dtype) for x in (p, u, d))
    dot = lambda a, b: jnp.real(jnp.conj(a) * b)
    terms = jax.lax.stop_gradient((dot(p, p), dot(u, u), dot(p, u), dot(d, d), dot(u - d, u - d)))
    return _Sums(*jax.lax.platform_dependent(*terms, cpu=_in_one_loop, default=_each))


def _each(*terms: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(map(jnp.sum, terms))


def _in_one_loop(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """Row by row, for a CPU, which would write u and d out for each sum; over many chips the rows would be gathered."""
    zeros = tuple(jnp.zeros((), x.dtype) for x in terms)
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    rows = jax.lax.reduce(terms, zeros, add, (terms[0].ndim - 1,)) if terms[0].ndim else terms
    return _each(*rows)


def _behind(updates: Any, sums: Any) -> Any:
    """The same updates, available only when the sums are: else the step, which overwrites p in place, needs a copy."""

    def wait(u: Any, s: _Sums) -> Any:
        if u is None or not jnp.issubdtype(u.dtype, jnp.inexact):
            return u
        nothing = jnp.where(s.pp < -1, 1, -0.0)  # always −0.0, and u + (−0.0) is u; XLA knows neither
        complex_ = jnp.issubdtype(u.dtype, jnp.complexfloating)
        return u + (jax.lax.complex(nothing, nothing) if complex_ else nothing).astype(u.dtype)

    return jax.tree.map(wait, updates, sums, is_leaf=lambda x: x is None)


def _sizes(params: Any) -> dict[str, int]:
    sizes = dict.fromkeys(ROLES, 0)
    for p in roles.parameters(params):
        sizes[p.role] += math.prod(p.shape)
    return sizes


def _by_role(params: Any, sums: Any) -> Info:
    total = dict.fromkeys(ROLES, _Sums())
    each = jax.tree.leaves(sums, is_leaf=lambda x: isinstance(x, _Sums))
    for about, leaf in zip(roles.parameters(params), each, strict=True):
        total[about.role] = _Sums(*map(jnp.add, total[about.role], leaf))
    return _info(total, _sizes(params))


def _info(sums: dict[str, _Sums], sizes: dict[str, int]) -> Info:
    """One row per role, stacked."""
    rows = [Info(jnp.float32(sizes[role]), *_row(sums.get(role, _Sums()))) for role in ROLES]
    return Info(
        *(jnp.stack([jnp.asarray(x).astype(jnp.float32) for x in column]) for column in zip(*rows, strict=True))
    )


def _row(sums: _Sums) -> tuple[Any, ...]:
    """(‖p‖, ‖u‖, share, angle); the turn is ‖u⊥‖ against ‖p‖ + u∥, for arccos can't resolve small angles."""
    p, u, d, r = (jnp.sqrt(x) for x in (sums.pp, sums.uu, sums.dd, sums.rr))
    some = lambda x: jnp.where(x > 0, x, jnp.ones_like(x))
    along = sums.pu / some(p)
    across = jnp.sqrt(jnp.maximum(sums.uu - along**2, 0))
    angle = jnp.where(p > 0, jnp.arctan2(across, p + along), 0)
    return p, u, d / some(d + r), angle
