"""How each update depends on its own parameter: a digest of the traced program, which needs shapes only.

A mask that reads sizes decides while `update` is traced. Therefore a stand-in is treated like the real leaf if the
digests on the real shapes and on the stand-ins agree, and leaves whose programs agree are audited as one.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

MANY = "many parameters"
NONE = ""
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")

Owner = int | str  # the leaf that a variable depends on, NONE or MANY
Digest = int | float | str | bool | None
Mark = tuple[Owner, Digest]  # per variable: its owner, and what was done to it


class Traced(NamedTuple):
    """The program of one update (parameters, gradients, state) -> updates."""

    program: core.ClosedJaxpr
    state: list[Mark]  # per leaf of the state


def trace_update(optimizer: optax.GradientTransformation, params: optax.Params) -> Traced:
    """The program of one update on the shapes of `params`, with gradients of the same dtypes."""
    state = jax.eval_shape(optimizer.init, params)
    program = jax.make_jaxpr(lambda p, g, s: optimizer.update(g, s, p)[0])(params, params, state)
    return Traced(program, [_of_state(path, x) for path, x in jax.tree_util.tree_flatten_with_path(state)[0]])


def _of_state(path: tuple[Any, ...], x: Any) -> Mark:
    """A number in the state is marked by its path, without numbers of layers: it may be a multiplier of some leaves."""
    is_number = x.shape == () and jnp.issubdtype(x.dtype, jnp.inexact)
    return NONE, re.sub(r"\d+", "*", jax.tree_util.keystr(path)) if is_number else None


def has_loops(traced: Traced) -> bool:
    """Whether the program has loops, which are slow operation by operation."""
    equations = traced.program.jaxpr.eqns
    return any(name in str(equation.primitive) for equation in equations for name in ("while", "scan"))


def digests(traced: Traced, sizes: list[int], of_gradients: bool = False) -> list[Digest]:
    """Per leaf a hash of the operations from the parameter, or from its gradient, to its update, without shapes.

    False if the update doesn't depend on it, True if it depends on several leaves; `sizes` are the leaves' entries.
    """
    own: list[Mark] = [(i, "parameter") for i in range(len(sizes))]
    others: list[Mark] = [(NONE, None)] * len(sizes)
    marks = [*others, *own, *traced.state] if of_gradients else [*own, *others, *traced.state]
    jaxpr = traced.program.jaxpr
    out = _propagate(jaxpr, [*map(_constant, traced.program.consts)], marks, sizes)
    return [digest if owner == i else owner == MANY for i, (owner, digest) in enumerate(out)]


def _propagate(jaxpr: core.Jaxpr, consts: list[Mark], marks: list[Mark], sizes: list[int]) -> list[Mark]:
    """The marks of the outputs."""
    known: dict[Any, Mark] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *marks], strict=True))

    def read(x: Any) -> Mark:
        return _constant(x.val) if isinstance(x, core.Literal) else known[x]

    for equation in jaxpr.eqns:
        outputs = _equation(equation, [read(x) for x in equation.invars], sizes)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _equation(equation: core.JaxprEqn, inputs: list[Mark], sizes: list[int]) -> list[Mark]:
    """The marks of the outputs of one operation."""
    if all(mark == (NONE, None) for mark in inputs):
        return [(NONE, None)] * len(equation.outvars)
    name, params = equation.primitive.name, equation.params
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if name == "cond":
        branches = [_propagate(*_without_closure(branch), inputs[1:], sizes) for branch in params["branches"]]
        return [_join(name, [inputs[0], *marks]) for marks in zip(*branches, strict=True)]
    if name in CALLS and inner is not None:
        return _propagate(*_without_closure(inner), inputs, sizes)
    name += str(params.get("axes", ""))  # a norm of columns isn't one of the leaf
    owner, _ = mark = _join(name, inputs)
    full = sizes[owner] if isinstance(owner, int) else None  # entries of the leaf
    avals: list[Any] = [x.aval for x in equation.outvars]
    outputs = [aval.size for aval in avals]
    if all(size >= full if full is not None else size == 1 for size in outputs):
        return [mark] * len(outputs)
    if owner == NONE:
        return [(NONE, None)] * len(outputs)
    if any(one == MANY for one, _ in inputs):  # a sum over many leaves, to which one more is added
        return [(MANY, MANY)] * len(outputs)
    # A sum over the leaf: the numbers that divide it depend on its size, and are left out.
    return [_join(name, [one for one in inputs if one[0] != NONE])] * len(outputs)


def _without_closure(jaxpr: Any) -> tuple[core.Jaxpr, list[Mark]]:
    """A jaxpr and the marks of its constants."""
    return (jaxpr.jaxpr, [*map(_constant, jaxpr.consts)]) if hasattr(jaxpr, "consts") else (jaxpr, [])


def _join(name: str, inputs: list[Mark]) -> Mark:
    """The mark of an operation on several inputs; all quantities of the whole tree, such as a norm, have one owner."""
    owners = {owner for owner, _ in inputs} - {NONE, MANY}
    if len(owners) > 1 or (not owners and any(owner == MANY for owner, _ in inputs)):
        return MANY, MANY
    return (owners.pop() if owners else NONE), hash((name, *(digest for _, digest in inputs)))


def _constant(x: Any) -> Mark:
    """A scalar is marked by its value, because multipliers are scalars; all arrays are alike."""
    is_number = np.shape(x) == () and jnp.issubdtype(np.asarray(x).dtype, jnp.inexact)
    return NONE, float(np.real(x)) if is_number else None
