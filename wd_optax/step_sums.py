"""One step measured: sums over the parameters, the updates and the decay in them, accurate for any shape."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from jax import lax

from wd_optax import dtypes

REPLACED = 1 - 2.0**-7  # a step that removes more than this of a weight sets it anew; bfloat16 rounds to 2⁻⁸
CONTRADICTED = 0.01  # d is no decay if more than this share of |d|² is on entries that contradict one


class Leaf(NamedTuple):
    """One leaf of a step; all four have the parameter's shape."""

    p: Any
    u: Any  # the update
    d: Any  # ∂u(s·p)/∂s at s = 1
    mirrored: Any  # ∂u(−s·p)/∂s at s = 1


class Sums(NamedTuple):
    """Sums over the entries of a leaf or of a role: scalars of float64 on a CPU, of float32 or wider elsewhere."""

    pp: Any  # |p|²
    uu: Any
    pu: Any  # Re p̄·u
    dd: Any
    rr: Any  # |u − d|²
    xx: Any  # |d|² where d contradicts a decay


class RoleSums(NamedTuple):
    """What one role did in the step, see `monitor.DecayInfo`."""

    weight_norm: Any
    update_norm: Any
    decay_share: Any
    angle: Any


def leaves(step: Callable[[Any], Any], params: Any) -> list[Leaf]:
    """Each leaf of `params` with u = step(params) and the derivatives of u along p, at p and at −p.

    Integers have no derivative and are measured as an empty leaf.
    """
    treedef: Any = jax.tree.structure(params)
    values = [jnp.asarray(p) for p in jax.tree.leaves(params)]
    is_float = [jnp.issubdtype(p.dtype, jnp.inexact) for p in values]

    def updates_of(floats: list[jax.Array]) -> list[jax.Array]:
        rest = iter(floats)
        mixed = [next(rest) if f else p for p, f in zip(values, is_float, strict=True)]
        updates = _flat_like(treedef, step(treedef.unflatten(mixed)))
        pairs = [(u, p) for u, p, f in zip(updates, mixed, is_float, strict=True) if f]
        return [jnp.zeros_like(p) if u is None else u for u, p in pairs]

    floats = [p for p, f in zip(values, is_float, strict=True) if f]
    derivative = _derivative(updates_of, floats)
    (u, d), (_, mirrored) = derivative(floats), derivative([-p for p in floats])
    measured: Iterator[Leaf] = map(Leaf, floats, u, d, mirrored)
    empty = Leaf(*[jnp.zeros((0,), jnp.float32)] * 4)
    return lax.stop_gradient([next(measured) if f else empty for f in is_float])


def measure(step: Sequence[Leaf], groups: Sequence[int], n: int) -> tuple[list[jax.Array], list[RoleSums]]:
    """(|p|² of each leaf, the `RoleSums` of each of n groups), float32 scalars; `groups`: each leaf's index.

    On a CPU each leaf takes one loop with float64 accumulators: as fast as with float32, where 3·10⁷ equal entries lose
    6 % of their norm, and nothing is written out. Elsewhere `jnp.sum` adds in a tree, in float32.
    """

    def rows(total: Callable[..., tuple[jax.Array, ...]], widest: Any, *leaves: Leaf) -> Any:
        sums = [[jnp.zeros((), widest)] * len(Sums._fields) for _ in range(n)]
        squares = []
        for leaf, group in zip(leaves, groups, strict=True):
            found = _sums(leaf, total, widest)
            squares.append(found.pp)
            sums[group] = [a + b for a, b in zip(sums[group], found, strict=True)]
        return jax.tree.map(lambda x: x.astype(jnp.float32), (squares, [_row(Sums(*s)) for s in sums]))

    def on_cpu(*leaves: Leaf) -> Any:
        with jax.enable_x64(True):
            return rows(_one_loop, jnp.float64, *leaves)

    widest = dtypes.arithmetic(*(jnp.finfo(x.dtype).dtype for leaf in step for x in leaf))  # real, for complex too
    return lax.platform_dependent(*step, cpu=on_cpu, default=lambda *leaves: rows(_each, widest, *leaves))


def _derivative(f: Callable[[list[jax.Array]], list[jax.Array]], at: list[jax.Array]) -> Callable[..., Any]:
    """The function p ↦ f(p), ∂f(s·p)/∂s at s = 1 for lists of arrays such as `at`, traced once."""
    along = lambda p: jax.jvp(f, (p,), (p,))
    jaxpr, shape = jax.make_jaxpr(along, return_shape=True)(at)
    if any(equation.primitive.name == "custom_lin" for equation in _equations(jaxpr.jaxpr)):
        raise TypeError(
            "monitor_decay takes the derivative of the update along the parameters, and the optimizer calls a "
            "jax.custom_vjp function, which has none in this direction: define it with jax.custom_jvp, or leave that "
            "part outside, as optax.chain(part, wd_optax.monitor_decay(optimizer))"
        )
    return lambda p: jax.tree.unflatten(jax.tree.structure(shape), jax.extend.core.jaxpr_as_fun(jaxpr)(*p))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All of them, those of inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                yield from _equations(inner)


def _flat_like(treedef: Any, updates: Any) -> list[Any]:
    """The updates, one for each parameter; None where there is none."""
    try:
        return treedef.flatten_up_to(updates)
    except ValueError as error:
        raise ValueError(
            f"monitor_decay: updates are {jax.tree.structure(updates)}, not a tree like the parameters, "
            f"{treedef}: a wrapper that changes the tree goes outside, as wrapper(wd_optax.monitor_decay(optimizer))"
        ) from error


def _sums(leaf: Leaf, total: Callable[..., tuple[jax.Array, ...]], widest: Any) -> Sums:
    dot = lambda a, b: jnp.real(jnp.conj(a) * b)
    p, d, mirrored = (x.astype(dtypes.arithmetic(x.dtype)) for x in (leaf.p, leaf.d, leaf.mirrored))
    shrinks = dot(d, d + REPLACED * p) < 0  # −REPLACED·p < d < 0 for p > 0: no decay grows a weight or sets it anew
    odd = ~(dot(d, mirrored) > 0)  # a decay of −p has the other sign, or waits for another gradient if it is cautious
    p, u, d = (x.astype(dtypes.arithmetic(x.dtype, widest)) for x in (leaf.p, leaf.u, leaf.d))
    dd = dot(d, d)
    contradiction = jnp.where(shrinks & odd, jnp.zeros_like(dd), dd)
    sums = Sums(*total(dot(p, p), dot(u, u), dot(p, u), dd, dot(u - d, u - d), contradiction))
    noise = 4 * float(jnp.finfo(leaf.u.dtype).eps)
    return sums._replace(xx=jnp.where(sums.xx > noise**2 * sums.uu, sums.xx, jnp.zeros_like(sums.xx)))


def _each(*terms: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(map(jnp.sum, terms))


def _one_loop(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """One `lax.reduce` of all terms: a CPU would otherwise write u and d out for each sum."""
    add = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    zeros = tuple(jnp.zeros((), x.dtype) for x in terms)
    return tuple(lax.reduce(terms, zeros, add, tuple(range(terms[0].ndim))))


def _row(sums: Sums) -> RoleSums:
    """arctan2 of the update's parts across and along p, because arccos can't resolve small angles."""
    p, u, d, r = (jnp.sqrt(x) for x in (sums.pp, sums.uu, sums.dd, sums.rr))
    some = lambda x: jnp.where(x > 0, x, jnp.ones_like(x))
    along = sums.pu / some(p)
    across = jnp.sqrt(jnp.maximum(sums.uu - along**2, jnp.zeros_like(u)))
    angle = jnp.where(p > 0, jnp.arctan2(across, p + along), jnp.zeros_like(p))
    share = jnp.where(sums.xx > CONTRADICTED * sums.dd, jnp.full_like(d, jnp.nan), d / some(d + r))
    return RoleSums(p, u, share, angle)
