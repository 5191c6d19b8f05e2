"""The updates of one step and their derivative along the parameters: what of a step is proportional to the weights."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from wd_optax import step_rates
from wd_optax.masking import roles

INLINED = ("jit", "pjit", "custom_jvp_call", "closed_call", "checkpoint", "remat2")  # calls of an inner program


class LeafStep(NamedTuple):
    """One leaf of a step; arrays have the parameter's shape."""

    p: jax.Array
    u: jax.Array  # the update
    d: jax.Array | None  # ∂u(s·p)/∂s at s = 1; None where it is rate·p
    mirrored: jax.Array | None  # ∂u(−s·p)/∂s at s = 1; None where it is −d, because d is linear in p
    rate: jax.Array | None = None  # a scalar; None where d isn't a multiple of p, or is 0


class Program:
    """`optimizer.update` as a function of gradients and parameters; where it is traced, once for all calls.

    Calls are calls of one `jax.jit` there. Without tracers the optimizer runs as it does alone, operation by operation.
    """

    def __init__(
        self,
        optimizer: optax.GradientTransformationExtraArgs,
        grads: optax.Updates,
        opt_state: optax.OptState,
        params: optax.Params,
        extra: dict[str, Any],
    ) -> None:
        grads, params = _as_jax(grads), _as_jax(params)
        leaves = jax.tree.leaves((grads, opt_state, params, extra))
        treedef: Any = jax.tree.structure((grads, opt_state, params, extra))  # jaxlib's stub hides its methods

        def flat(arrays: list[Any]) -> tuple[optax.Updates, optax.OptState]:
            rest = iter(arrays)
            filled = treedef.unflatten([next(rest) if isinstance(x, jax.Array) else x for x in leaves])
            updates, state = optimizer.update(*filled[:3], **filled[3])
            return updates, state

        self.grads, self.opt_state, self.params, self.extra = grads, opt_state, params, extra
        self.is_traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
        self._run: Any = jax.jit(flat) if self.is_traced else flat

    def __call__(self, grads: optax.Updates, params: optax.Params) -> tuple[optax.Updates, optax.OptState]:
        """The updates and the new state."""
        found: tuple[optax.Updates, optax.OptState] = self._run(self.arrays(grads, params))
        return found

    def arrays(self, grads: optax.Updates, params: optax.Params) -> list[Any]:
        """The inputs of `jaxpr`."""
        return [x for x in jax.tree.leaves((grads, self.opt_state, params, self.extra)) if isinstance(x, jax.Array)]

    def jaxpr(self, arrays: list[Any]) -> Any:
        """The closed jaxpr of a call."""
        return self._run.trace(arrays).jaxpr if self.is_traced else jax.make_jaxpr(self._run)(arrays)


def _as_jax(tree: Any) -> Any:
    numbers = bool | int | float | complex | np.ndarray | np.generic
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, numbers) else x, tree)


def leaf_steps(program: Program, updates: optax.Updates) -> list[LeafStep | None]:
    """Each leaf of the parameters with its update and the derivatives of the update along p, at p and at −p.

    Integers have no derivative: None.

    Args:
      program: of the step.
      updates: what it returns at its gradients and parameters.
    """
    params = program.params
    treedef: Any = jax.tree.structure(params)  # jaxlib's stub hides its methods
    values = jax.tree.leaves(params)
    is_float = [jnp.issubdtype(p.dtype, jnp.inexact) for p in values]

    def floats_of(updates: optax.Updates) -> list[jax.Array]:
        flat = _flatten_updates(treedef, updates)
        _refuse_other_shapes(params, flat)
        pairs = [(u, p) for u, p, f in zip(flat, values, is_float, strict=True) if f]
        return [jnp.zeros_like(p) if u is None else u for u, p in pairs]

    def updates_of(floats: list[jax.Array]) -> list[jax.Array]:
        rest = iter(floats)
        mixed = [next(rest) if f else p for p, f in zip(values, is_float, strict=True)]
        return floats_of(program(program.grads, treedef.unflatten(mixed))[0])

    floats, u = lax.stop_gradient(([p for p, f in zip(values, is_float, strict=True) if f], floats_of(updates)))
    if (rates := _known_rates(program, _flatten_updates(treedef, updates), is_float)) is None:
        found = lax.stop_gradient(_evaluate(updates_of, floats))
        measured = map(LeafStep, floats, *found)
    else:
        one_each = {id(rate): lax.stop_gradient(rate) for rate in rates}  # leaves with equal rates share sums
        measured = map(LeafStep, floats, u, *[[None] * len(floats)] * 2, [one_each[id(rate)] for rate in rates])
    return [next(measured) if f else None for f in is_float]


def _known_rates(program: Program, updates: list[jax.Array | None], is_float: list[bool]) -> list[Any] | None:
    """c of each float parameter with d = c·p, None where it is 0; or None, where a derivative isn't a multiple of p."""
    outputs = itertools.count()
    numbers = [-2 - i if u is None else next(outputs) for i, u in enumerate(updates)]
    of_params = [number if f else None for number, f in zip(numbers, is_float, strict=True)]
    before, after = jax.tree.leaves((program.grads, program.opt_state)), jax.tree.leaves(program.extra)
    marks = [*[None] * len(before), *of_params, *[None] * len(after)]
    leaves = [*before, *jax.tree.leaves(program.params), *after]
    marks = [m for m, x in zip(marks, leaves, strict=True) if isinstance(x, jax.Array)]
    arrays = program.arrays(program.grads, program.params)
    found = step_rates.rates(program.jaxpr(arrays), arrays, marks, next(outputs))
    return found and [found[n] if n >= 0 else None for n, f in zip(numbers, is_float, strict=True) if f]


def _refuse_other_shapes(params: optax.Params, updates: list[jax.Array | None]) -> None:
    """Raises where an update doesn't have its parameter's shape: gradients or a state of other parameters."""
    differ = lambda u, p: u is not None and u.shape != p.shape
    if not any(map(differ, updates, jax.tree.leaves(params))):  # paths take longer
        return
    for p, u in zip(roles.parameters(params), updates, strict=True):
        if u is not None and u.shape != p.shape:
            raise ValueError(
                f"the update of {p.path!r} has shape {u.shape}, and the parameter {p.shape}: pass the gradients and "
                "the state that belong to these parameters, measure_decay(optimizer, grads, opt_state, params)"
            )


def _evaluate(
    f: Callable[[list[jax.Array]], list[jax.Array]], p: list[jax.Array]
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array | None]]:
    """f(p), ∂f(s·p)/∂s at s = 1, and this at −p, or None where it is the opposite; f is traced once.

    ∂f = J(p)·p is linear in p where J doesn't depend on p, as for every decoupled decay without a rule: then the
    derivative at −p is −J·p, to the bit, and the program isn't evaluated a second time.
    """
    from jax.extend import core  # it loads Pallas

    def along(p: list[jax.Array], tangent: list[jax.Array]) -> Any:
        return jax.jvp(f, (p,), (tangent,))

    jaxpr = jax.make_jaxpr(along)(p, p)
    if any(equation.primitive.name == "custom_lin" for equation in _equations(jaxpr.jaxpr)):
        raise TypeError(
            "measure_decay and monitor_decay take the derivative of the update along the parameters, and the optimizer "
            "calls a jax.custom_vjp function, which has none in this direction: define it with jax.custom_jvp, or "
            "leave that part outside, as optax.chain(part, wd_optax.monitor_decay(optimizer))"
        )
    n = len(p)
    run: Any = core.jaxpr_as_fun(jaxpr)
    found = run(*p, *p)
    depends = _reads(jaxpr.jaxpr, [True] * n + [False] * n)[n:]
    if not any(depends):
        return found[:n], found[n:], [None] * n
    mirrored = run(*(opposite := [-x for x in p]), *opposite)[n:]
    return found[:n], found[n:], [x if on_p else None for x, on_p in zip(mirrored, depends, strict=True)]


def _reads(jaxpr: Any, inputs: list[bool]) -> list[bool]:
    """Which outputs depend on the marked inputs."""
    from jax.extend.core import Literal

    marked = {v for v, mark in zip(jaxpr.invars, inputs, strict=True) if mark}

    def is_marked(v: Any) -> bool:
        return not isinstance(v, Literal) and v in marked

    for equation in jaxpr.eqns:
        given = [is_marked(v) for v in equation.invars]
        if not any(given):
            continue
        inner = [x for x in equation.params.values() if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
        outputs = [True] * len(equation.outvars)
        if equation.primitive.name in INLINED and len(inner) == 1:
            outputs = _reads(getattr(inner[0], "jaxpr", inner[0]), given)
        marked.update(v for v, mark in zip(equation.outvars, outputs, strict=True) if mark)
    return [is_marked(v) for v in jaxpr.outvars]


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, including those of inner jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from _equations(inner)


def _flatten_updates(treedef: Any, updates: optax.Updates) -> list[jax.Array | None]:
    """One update per parameter; None where there is none."""
    try:
        flat: list[jax.Array | None] = treedef.flatten_up_to(updates)
    except ValueError as error:
        raise ValueError(
            f"measure_decay, monitor_decay: the updates, {jax.tree.structure(updates)}, are not a tree like the "
            f"parameters, {treedef}: a wrapper that changes the tree goes outside, as "
            "wrapper(wd_optax.monitor_decay(optimizer))"
        ) from error
    return flat
