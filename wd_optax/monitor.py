"""Monitor decay during training: norms, rotation and the share of decay, recorded in any optimizer's state."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeGuard, overload

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wd_optax.decay_groups import Groups, assign_groups, check_groups
from wd_optax.masking import roles
from wd_optax.masking.roles import ROLES
from wd_optax.masking.slices import Slices, check_slices
from wd_optax.measure import DecayInfo, DecayTable, each_layer, empty_table, measure_groups, refuse_wrong_order
from wd_optax.step_derivative import Program
from wd_optax.step_sums import SMALL


class DecayMonitorState(NamedTuple):
    """State of `monitor_decay`: arrays only. By role it is the same tree for any model."""

    inner: optax.OptState  # the optimizer's state
    # Rows of `step_sums.Norms` of the last step, float32; zeros before the first, except size. By role shape=(6, 5), in
    # the order of `ROLES`; by other groups {group: shape=(6, 1) or (6, layers)}. With `slices` there are 7 rows.
    norms: jax.Array | dict[str, jax.Array]


def monitor_decay(
    optimizer: optax.GradientTransformation, *, groups: Groups = "roles", slices: Slices = None
) -> optax.GradientTransformationExtraArgs:
    """Wraps `optimizer` and records, per role, ‖p‖, ‖u‖, the decay share and the angle between p and p + u.

    Updates are the optimizer's own: bit for bit outside jit, and to an ulp under jit, because XLA may contract products
    and sums differently in another program. Each step is also measured: sums over the parameters, and the decay d, the
    part of the step that is proportional to the weights: d = ∂u(s·p)/∂s at s = 1, with gradients and state fixed. It
    detects decay wherever it is placed: in ours, in `optax.adamw`, in any chain. Where d is a number times p, as for
    any decoupled decay without a rule, it is read off the traced update; else the update is differentiated. The sums
    read once more what the step reads, before the step and without copies of leaves above 16,384 entries: 16 bytes per
    float32 parameter, where AdamW moves 28. On a CPU, which doesn't vectorise sums, a monitored step takes 4 to 7 times
    a plain one (`benchmarks/step.py`; 1.2 times for 2000 leaves of 1,000 entries); this is usually small next to the
    backward pass. `state.inner` is the plain optimizer's state, to step without the monitor.

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
    check_groups(groups)
    check_slices(slices)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> DecayMonitorState:
        state = inner.init(params)
        refuse_wrong_order(state)
        return DecayMonitorState(state, recorded(empty_table(assign_groups(groups, slices, params))))

    def update(
        updates: optax.Updates, state: DecayMonitorState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, DecayMonitorState]:
        if params is None:
            raise ValueError(
                "monitor_decay measures the parameters, so update needs them: tx.update(grads, state, params)"
            )
        grouping = assign_groups(groups, slices, params)
        refuse_wrong_order(state.inner)
        program = Program(inner, updates, state.inner, params, extra)
        updates, inner_state = program(program.grads, program.params)
        measured = measure_groups(program, updates, grouping)
        if program.is_traced and any(map(_is_large, jax.tree.leaves(program.grads))):
            later = _after(program.grads, measured)
            updates, inner_state = program(later, program.params)
        return updates, DecayMonitorState(inner_state, recorded(measured))

    def recorded(measured: DecayTable) -> jax.Array | dict[str, jax.Array]:
        return measured.arrays[0] if groups == "roles" else measured.columns()

    return optax.GradientTransformationExtraArgs(init, update)


@overload
def read_decay(opt_state: optax.OptState, *, flat: Literal[False] = False) -> Mapping[str, DecayInfo]: ...
@overload
def read_decay(opt_state: optax.OptState, *, flat: Literal[True]) -> dict[str, float]: ...
def read_decay(opt_state: optax.OptState, *, flat: bool = False) -> Mapping[str, DecayInfo] | dict[str, float]:
    """Reads what `monitor_decay` recorded in the last step, from anywhere in a state; or flattens `measure_decay`'s.

    Args:
      opt_state: the state of an optimizer with one `monitor_decay` somewhere in it, or any tree that holds it (a
        `TrainState`; `nnx.Optimizer.opt_state`); or what `measure_decay` returned. Traced or not.
      flat: return {"weight/size": ..., "weight/weight_norm": ..., ...}, for a logger: Python floats, of the roles that
        the model has, of each layer as "blocks/0/size". Under `jit` they are traced scalars of all roles: return them,
        and take `float` of each outside.

    Returns:
      {"weight": DecayInfo, "embedding": ..., "bias": ..., "norm": ..., "other": ...}, or the monitor's other groups,
      each of scalars or of one entry per layer (with a leading axis where the state is batched by `vmap`). A role that
      the model doesn't have is all zeros.

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
    read = _recorded_in(opt_state) if not _is_measured(opt_state) else opt_state
    return _for_logger(read) if flat else read


def _is_measured(x: Any) -> TypeGuard[Mapping[str, DecayInfo]]:
    return isinstance(x, Mapping) and bool(x) and all(isinstance(info, DecayInfo) for info in x.values())


def _recorded_in(opt_state: optax.OptState) -> Mapping[str, DecayInfo]:
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, DecayMonitorState))
    found = [x for x in nodes if isinstance(x, DecayMonitorState)]
    if len(found) != 1:
        fix = "wrap the optimizer as wd_optax.monitor_decay(optimizer)" if not found else "pass the part that holds one"
        raise ValueError(f"opt_state has {len(found)} monitors, and read_decay reads one: {fix}")
    if not isinstance(norms := found[0].norms, dict):
        return DecayTable((roles.unwrap(norms),), tuple((role, 0, i) for i, role in enumerate(ROLES)))
    arrays = {name: roles.unwrap(x) for name, x in norms.items()}
    places = ((name, i, 0 if x.shape[-1] == 1 else None) for i, (name, x) in enumerate(arrays.items()))
    return DecayTable(tuple(arrays.values()), tuple(places))


def _for_logger(read: Mapping[str, DecayInfo]) -> dict[str, float]:
    if isinstance(read, DecayTable) and read.is_batched:
        shape = read.arrays[0].shape[:-2]
        raise ValueError(
            f"flat=True: opt_state is batched, shape {shape}, and a logger takes one number: pass the state of "
            "one run, read_decay(jax.tree.map(lambda x: x[0], opt_state), flat=True)"
        )
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(read))
    return {
        f"{name}/{field}": x if traced else float(x)
        for name, info in each_layer(read).items()
        if traced or info.size > 0
        for field, x in [*info._asdict().items(), ("weight_rms", info.weight_rms)]
    }


def _is_large(x: jax.Array) -> bool:
    return x.size > SMALL


def _after(grads: optax.Updates, measured: DecayTable) -> optax.Updates:
    """Makes large gradients depend on the sums, so that XLA sums before the step overwrites what the sums read.

    Otherwise it copies p or writes u, and `lax.optimization_barrier` is dropped on a CPU (tests/test_bytes.py:
    test_the_monitor_reads_once_more_what_the_step_reads). A small leaf may be copied: its update is computed once.
    """
    # No norm is below −1, so this is −0.0; XLA can't prove it, and keeps the dependency.
    norms = lax.concatenate([x[1] for x in measured.arrays], 0)
    zero = jnp.max(jnp.where(norms < -1, jnp.float32(1), jnp.float32(-0.0)))

    def depend(g: jax.Array) -> jax.Array:
        if not _is_large(g) or not jnp.issubdtype(g.dtype, jnp.inexact):
            return g
        is_complex = jnp.issubdtype(g.dtype, jnp.complexfloating)
        return g + (lax.complex(zero, zero) if is_complex else zero).astype(g.dtype)

    return jax.tree.map(depend, grads)
