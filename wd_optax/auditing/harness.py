"""Runs real steps of one optimizer from one state, at any scale of parameters and gradients.

Steps are computed in float64 whatever the parameters' dtypes are, so that a decay of 1e-9 per step can be measured
next to a gradient step of 1. `s` scales the parameters and `k` the gradients: `harness.step(-1, 0)` is the step from
−p with a zero gradient.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing.probes import Probes, ProbeTrees, sample
from wd_optax.auditing.update_call import UpdateCall, apply_updates, one_program
from wd_optax.auditing.vectors import norm, odd_parts, removed_fraction, to_host
from wd_optax.rules.stand_ins import use_stand_ins

COMPILED = 2048  # leaves; larger trees run operation by operation, because compiling them takes longer

Edit = Callable[[optax.OptState], optax.OptState]


class StepResult(NamedTuple):
    """One real step."""

    updates: list[np.ndarray]  # per leaf, a sample
    norms: np.ndarray  # per leaf, of all entries
    state: optax.OptState  # after the step


@contextlib.contextmanager
def numerics(float64: bool) -> Iterator[None]:
    """Enables float64, and lets optimizers mix dtypes and ranks as they like."""
    with contextlib.ExitStack() as stack:
        if float64:
            stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


@dataclasses.dataclass(frozen=True, eq=False)
class Harness:
    """An optimizer, a state of it, and the probes it is run on.

    It is immutable: `dataclasses.replace(harness, state=...)` makes a variant, which shares the compiled update.
    """

    optimizer: optax.GradientTransformationExtraArgs
    trees: ProbeTrees
    update: UpdateCall
    state: optax.OptState
    copies: tuple[bool, ...]  # per leaf of the state: it is a copy of the parameters, and is scaled with them
    counts: tuple[int, ...]  # per leaf of the state: by how much a real step raises it
    extra_args: dict[str, Any]
    anchors: tuple[int, ...] = ()  # leaves of the state that are anchors: copies of the parameters that are held
    given: bool = False  # the state is the caller's
    period: int = 1  # calls of `update` in a real step
    least_gradient: float = 0.0  # used as k in place of zero, where the update isn't finite there
    edit: Edit = lambda state: state  # applied to the state before each step

    @property
    def probes(self) -> Probes:
        """What the optimizer is run on."""
        return self.trees.probes

    @property
    def float64(self) -> bool:
        """Whether steps are computed in float64, or in the parameters' own dtypes."""
        return self.trees.float64

    @property
    def eps(self) -> float:
        """The relative rounding error of a step."""
        return float(np.finfo(np.float64 if self.float64 else np.float32).eps)

    def scaled(self, s: float) -> optax.OptState:
        """The edited state, with its copies of the parameters scaled as the parameters are."""
        leaves, treedef = jax.tree.flatten(self.state)
        with numerics(self.float64):
            scaled = [_rescaled(x, s) if copy else x for x, copy in zip(leaves, self.copies, strict=True)]
            return self.edit(jax.tree.unflatten(treedef, scaled))

    def enlarged(self, s: float) -> "Harness":
        """The harness with probes at s·p, where the copies go with them and anchors and norms stay."""
        probes = self.probes
        values = [x * s if jnp.issubdtype(x.dtype, jnp.inexact) else x for x in probes.values]
        trees = ProbeTrees(probes._replace(values=values), self.float64)
        return dataclasses.replace(self, trees=trees, state=self.scaled(s), edit=lambda state: state)

    def step(self, s: float, k: float, state: optax.OptState = None, flipped: bool = False) -> StepResult:
        """One real step: `period` calls of `update` with one gradient, each from where the previous one ended."""
        total, state = self._step(s, k, state, flipped)
        leaves = to_host(total)
        return StepResult([*map(sample, leaves)], _norms(leaves), state)

    def updates(self, s: float, k: float, state: optax.OptState = None, flipped: bool = False) -> list[np.ndarray]:
        """The updates of `step`, without their norms, which take longer than the step of a large leaf."""
        total, _ = self._step(s, k, state, flipped)
        return [*map(sample, to_host(total))]

    def after(self, s: float, k: float, state: optax.OptState) -> optax.OptState:
        """The state of `step`."""
        return self._step(s, k, state, False)[1]

    def norms_after(self, s: float, k: float) -> np.ndarray:
        """The norm of each leaf, all of its entries, after one real step."""
        with numerics(self.float64):
            new = apply_updates(self.trees.params(s), self._step(s, k, None, False)[0])
            return _norms(to_host(new))

    def _step(self, s: float, k: float, state: optax.OptState, flipped: bool) -> tuple[optax.Updates, optax.OptState]:
        with numerics(self.float64):
            state = self.scaled(s) if state is None else state
            params, gradients = self.trees.params(s), self.trees.gradients(k or self.least_gradient, flipped)
            total, state = self.update(gradients, state, params)
            for _ in range(1, self.period):
                updates, state = self.update(gradients, state, _after_updates(params, total))
                total = _added(total, updates)
            return total, state

    def mean(self, s: float, k: float, state: optax.OptState = None) -> list[np.ndarray]:
        """The updates of a step, averaged over both signs of unpaired gradients."""
        once = self.updates(s, k, state)
        if not self.probes.unpaired or not k:
            return once
        again = self.updates(s, k, state, flipped=True)
        with np.errstate(invalid="ignore"):  # infinite updates
            return [(a + b) / 2 for a, b in zip(once, again, strict=True)]

    def odd(self, k: float, states: tuple[optax.OptState, optax.OptState] = (None, None)) -> list[np.ndarray]:
        """Half the difference of the steps from p and −p, per leaf: the part that depends on the parameter's sign."""
        return odd_parts(self.mean(1, k, states[0]), self.mean(-1, k, states[1]))

    def removed(self, k: float = 0, states: tuple[optax.OptState, optax.OptState] = (None, None)) -> np.ndarray:
        """The fraction of the weight that one step removes, per leaf."""
        values = map(sample, self.probes.values)
        return np.array([removed_fraction(d, p) for d, p in zip(self.odd(k, states), values, strict=True)])

    def drive(self, steps: int, k: float = 1) -> tuple[optax.Params, optax.OptState]:
        """Parameters and state after many real steps on a paraboloid: the gradient grows with the distance travelled.

        Where the run starts, the gradient is k times the probe's.
        """

        def slope(g: jax.Array, p: jax.Array, start: jax.Array) -> jax.Array:
            return (g + k * (p - start)).astype(g.dtype) if jnp.issubdtype(g.dtype, jnp.inexact) else g

        def one(_: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            params, state = carry
            gradients = jax.tree.map(slope, first, params, start) if k else first
            updates, state = self.update.traced(gradients, state, params)
            return apply_updates(params, updates), state

        with numerics(self.float64):
            first, start = self.trees.gradients(k or self.least_gradient), self.trees.params(1)
            loop = jax.jit(lambda carry, n: jax.lax.fori_loop(0, n, one, carry))
            params, state = loop(jax.tree.map(jnp.asarray, (start, self.state)), steps * self.period)
        return params, state

    def edit_scalars(self, names: tuple[str, ...], change: Callable[[np.ndarray], Any]) -> Edit | None:
        """An edit of the floating-point scalars of these names in the state; None where the state has none."""

        def one(path: tuple[Any, ...], x: Any) -> Any:
            return np.asarray(change(np.asarray(x)), x.dtype) if is_scalar(path, x, names, jnp.inexact) else x

        found = jax.tree_util.tree_flatten_with_path(self.state)[0]
        edit = functools.partial(jax.tree_util.tree_map_with_path, one)
        return edit if any(is_scalar(path, x, names, jnp.inexact) for path, x in found) else None


_after_updates = jax.jit(apply_updates)  # additions alone, which no compiler fuses with what is before or after them
_added = jax.jit(lambda one, other: jax.tree.map(jnp.add, one, other))


def _rescaled(x: Any, s: float) -> Any:
    return np.asarray(x) * np.asarray(s, x.dtype)  # NumPy compiles nothing for a new shape


def _norms(leaves: list[np.ndarray]) -> np.ndarray:
    return np.array([norm(x.astype(complex if np.iscomplexobj(x) else float)) for x in leaves])


def build_harness(
    optimizer: optax.GradientTransformation,
    probes: Probes,
    opt_state: optax.OptState = None,
    extra_args: dict[str, Any] | None = None,
    *,
    float64: bool = True,
    compiled: bool = True,
) -> Harness:
    """The harness of an optimizer at its first state or at the caller's."""
    optimizer, trees = optax.with_extra_args_support(optimizer), ProbeTrees(probes, float64)
    extra_args = dict(extra_args or {})
    with numerics(float64), use_stand_ins(probes.real_shapes):
        init = one_program(optimizer.init, trees.entries) if compiled and trees.cached else optimizer.init
        fresh = init(trees.params(1))
        copies = _copies(fresh, init(trees.params(-2)))
        state = fresh if opt_state is None else _adopt(opt_state, fresh, copies)
    few = compiled and len(probes.parameters) <= COMPILED
    update = UpdateCall(optimizer, extra_args, trees.entries if few else None)
    given = opt_state is not None
    return Harness(optimizer, trees, update, state, copies, (0,) * len(copies), extra_args, given=given)


def _copies(one: optax.OptState, two: optax.OptState) -> tuple[bool, ...]:
    """Which leaves of the state are copies of the parameters, such as averages and anchors, from states at p and −2p.

    A norm isn't one: it is the same at −p.
    """

    def is_copy(a: Any, b: Any) -> bool:
        if not jnp.issubdtype(jnp.asarray(a).dtype, jnp.inexact):
            return False
        a, b = np.asarray(a), np.asarray(b)  # NumPy compiles nothing for a new shape
        return bool(np.any(a != 0) and np.all(b == a * np.asarray(-2, a.dtype)))

    return tuple(map(is_copy, jax.tree.leaves(one), jax.tree.leaves(two)))


def _adopt(opt_state: optax.OptState, fresh: optax.OptState, copies: tuple[bool, ...]) -> optax.OptState:
    """The caller's state in the harness's dtypes, with the probes in place of its copies of the parameters."""
    leaves, treedef = jax.tree.flatten(opt_state)
    expected, expected_treedef = jax.tree.flatten(fresh)
    same_tree = treedef == expected_treedef  # type: ignore[operator]
    if not same_tree or [*map(jnp.shape, leaves)] != [*map(jnp.shape, expected)]:
        raise ValueError(
            "opt_state is not a state of this optimizer for these params: pass what optimizer.update returned"
        )
    adopted = []
    for old, new, copy in zip(leaves, expected, copies, strict=True):
        adopted.append(new if copy else jnp.asarray(old, jnp.asarray(new).dtype))
    return jax.tree.unflatten(treedef, adopted)


def last_name(path: tuple[Any, ...]) -> str:
    """The last name in the path of a leaf, or ""."""
    return next((str(getattr(path[-1], a)) for a in ("key", "name") if hasattr(path[-1], a)), "") if path else ""


def is_scalar(path: tuple[Any, ...], x: Any, names: tuple[str, ...], kind: Any) -> bool:
    """Whether a leaf of the state is a scalar array of this kind under one of these names."""
    return last_name(path) in names and jnp.shape(x) == () and hasattr(x, "dtype") and jnp.issubdtype(x.dtype, kind)
