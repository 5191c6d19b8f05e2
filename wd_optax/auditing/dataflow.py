"""How each update depends on its own parameter: a digest of the program, which no array is needed to read.

A mask that reads sizes decides while `update` is traced. So the digest on the real shapes says whether a stand-in is
treated as the real leaf is.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

MANY = "many parameters"
NONE = ""
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint")

# Per variable (owner, digest): the leaf that it depends on, NONE or MANY, and what was done to it.
Mark = tuple[Any, Any]


def trace(optimizer: Any, params: Any) -> Any:
    """The program of one update on the shapes of `params`, gradients of the same types."""
    state = jax.eval_shape(optimizer.init, params)
    return jax.make_jaxpr(lambda p, g, s: optimizer.update(g, s, p)[0])(params, params, state)


def loops(traced: Any) -> bool:
    """Whether the program has loops, which take long operation by operation."""
    return any(name in str(equation.primitive) for equation in traced.jaxpr.eqns for name in ("while", "scan"))


def digests(traced: Any, sizes: list[int]) -> list[Any]:
    """Per leaf, of so many entries, a hash of the operations between the parameter and its update, shapes left out."""
    marks: list[Mark] = [(i, "parameter") for i in range(len(sizes))]
    marks += [(NONE, None)] * (len(traced.jaxpr.invars) - len(sizes))
    out = _run(traced.jaxpr, [*map(_constant, traced.consts)], marks, sizes)
    return [digest if owner == i else owner == MANY for i, (owner, digest) in enumerate(out)]


def _run(jaxpr: Any, consts: list[Mark], marks: list[Mark], sizes: list[int]) -> list[Mark]:
    """The marks of the outputs."""
    known: dict[Any, Mark] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *marks], strict=True))
    read = lambda x: _constant(x.val) if isinstance(x, core.Literal) else known[x]
    for equation in jaxpr.eqns:
        outputs = _equation(equation, [read(x) for x in equation.invars], sizes)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _equation(equation: Any, inputs: list[Mark], sizes: list[int]) -> list[Mark]:
    if all(mark == (NONE, None) for mark in inputs):
        return [(NONE, None)] * len(equation.outvars)
    name, params = equation.primitive.name, equation.params
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if name == "cond":
        branches = [_run(*_open(branch), inputs[1:], sizes) for branch in params["branches"]]
        return [_join(name, [inputs[0], *marks]) for marks in zip(*branches, strict=True)]
    if name in CALLS and inner is not None:
        return _run(*_open(inner), inputs, sizes)
    owner, _ = mark = _join(name, inputs)
    full = lambda x: x.aval.size >= sizes[owner] if isinstance(owner, int) else x.aval.size == 1
    if all(map(full, equation.outvars)):
        return [mark] * len(equation.outvars)
    if owner == NONE:
        return [(NONE, None)] * len(equation.outvars)
    # a sum over the leaf: the numbers that divide it are its size
    return [_join(name, [one for one in inputs if one[0] != NONE])] * len(equation.outvars)


def _open(jaxpr: Any) -> tuple[Any, list[Mark]]:
    """A jaxpr and the marks of its constants."""
    return (jaxpr.jaxpr, [*map(_constant, jaxpr.consts)]) if hasattr(jaxpr, "consts") else (jaxpr, [])


def _join(name: str, inputs: list[Mark]) -> Mark:
    """What comes of several inputs: whole-tree quantities such as a global norm are one kind of input."""
    owners = {owner for owner, _ in inputs} - {NONE, MANY}
    if len(owners) > 1 or (not owners and any(owner == MANY for owner, _ in inputs)):
        return MANY, MANY
    return (owners.pop() if owners else NONE), hash((name, *(digest for _, digest in inputs)))


def _constant(x: Any) -> Mark:
    """A scalar counts by its value, for a multiplier is one; an array by its being one."""
    return NONE, (float(np.real(x)) if np.shape(x) == () and jnp.issubdtype(np.asarray(x).dtype, jnp.inexact) else None)
