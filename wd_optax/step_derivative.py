"""The updates of one step and their derivative along the parameters: what of a step is proportional to the weights."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wd_optax.masking import roles

INLINED = ("jit", "pjit", "custom_jvp_call", "closed_call", "checkpoint", "remat2")  # calls of an inner program


class LeafStep(NamedTuple):
    """One leaf of a step; all have the parameter's shape."""

    p: jax.Array
    u: jax.Array  # the update
    d: jax.Array  # ∂u(s·p)/∂s at s = 1
    mirrored: jax.Array | None  # ∂u(−s·p)/∂s at s = 1; None where it is −d, because d is linear in p


def leaf_steps(step: Callable[[optax.Params], optax.Updates], params: optax.Params) -> list[LeafStep | None]:
    """Each leaf of `params` with u = step(params) and the derivatives of u along p, at p and at −p.

    Integers have no derivative: None.
    """
    treedef: Any = jax.tree.structure(params)  # jaxlib's stub hides its methods
    values = [jnp.asarray(p) for p in jax.tree.leaves(params)]
    is_float = [jnp.issubdtype(p.dtype, jnp.inexact) for p in values]

    def updates_of(floats: list[jax.Array]) -> list[jax.Array]:
        rest = iter(floats)
        mixed = [next(rest) if f else p for p, f in zip(values, is_float, strict=True)]
        updates = _flatten_updates(treedef, step(treedef.unflatten(mixed)))
        _refuse_other_shapes(params, updates)
        pairs = [(u, p) for u, p, f in zip(updates, mixed, is_float, strict=True) if f]
        return [jnp.zeros_like(p) if u is None else u for u, p in pairs]

    floats = [p for p, f in zip(values, is_float, strict=True) if f]
    measured = map(LeafStep, floats, *_evaluate(updates_of, floats))
    return lax.stop_gradient([next(measured) if f else None for f in is_float])


def _refuse_other_shapes(params: optax.Params, updates: list[jax.Array | None]) -> None:
    """Raises where an update doesn't have its parameter's shape: gradients or a state of other parameters."""
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
