"""The test stand of an audit: real steps of one optimizer from one state, at any scale of parameters and gradients.

It computes in float64 whatever the parameters' types are, so that a decay of 1e-9 per step is measured beside a
gradient step of 1. `s` scales the parameters, `k` the gradients: `bench.step(-1, 0)` is the step from −p with a
zero gradient.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing import probes

COMPILED = 2048  # leaves; larger trees run operation by operation, which takes longer and needs no compilation


class Seen(NamedTuple):
    """One real step."""

    updates: list[np.ndarray]  # per leaf, a sample
    norms: np.ndarray  # per leaf, of the whole
    dtypes: list[Any]  # per leaf
    state: Any  # afterwards


@contextlib.contextmanager
def precision(wide: bool) -> Iterator[None]:
    """Float64 where `wide`; mixed types and ranks are the optimizer's business and allowed."""
    with contextlib.ExitStack() as stack:
        if wide:
            stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield


class Harness:
    """See the module; `wide=False` computes in the parameters' own types."""

    def __init__(
        self,
        optimizer: Any,
        subject: probes.Probes,
        opt_state: Any = None,
        extra_args: dict[str, Any] | None = None,
        wide: bool = True,
        compiled: bool = True,
    ) -> None:
        self.optimizer, self.subject, self.wide = optax.with_extra_args_support(optimizer), subject, wide
        self.extra_args, self.eps = dict(extra_args or {}), float(np.finfo(float if wide else np.float32).eps)
        self.compiled = compiled and len(subject.found) <= COMPILED
        self.carried = [True] * len(subject.found)  # whether the stand-in of a leaf is treated as its real shape is
        self.geometric = True  # whether all buffers of the state that were forwarded in time are geometric series
        self.period, self.quiet, self.given = 1, 0.0, opt_state is not None
        self.edit: Callable[[Any], Any] = lambda state: state
        self.call: Callable[..., Any] | None = None
        self.trees: dict[tuple[str, float], Any] = {}
        self.counts: list[int] = []  # how much a step raises each leaf of the state, found by `clock`
        with precision(wide):
            self.fresh = self.optimizer.init(self.params(1))
            self.copies = self._copies()
            self.state = self.fresh if opt_state is None else self._adopt(opt_state)

    def params(self, s: float) -> Any:
        """The probe parameters, scaled."""
        return self._tree("values", s)

    def gradients(self, k: float, flipped: bool = False) -> Any:
        """The probe gradients, scaled."""
        return self._tree("flipped" if flipped else "gradients", k)

    def _tree(self, kind: str, scale: float) -> Any:
        if (kind, scale) in self.trees:
            return self.trees[kind, scale]
        scaled = lambda x: x * scale if jnp.issubdtype(x.dtype, jnp.inexact) else x
        cast = lambda x, p: jnp.asarray(scaled(x), None if self.wide else p.dtype)
        tree = self.subject.treedef.unflatten(map(cast, getattr(self.subject, kind), self.subject.found))
        if self.subject.small:  # of a large model a few copies are too many
            self.trees[kind, scale] = tree
        return tree

    def _copies(self) -> list[bool]:
        """Which leaves of the state are copies of parameters: an average, an anchor. They scale with them."""
        pairs = zip(jax.tree.leaves(self.fresh), jax.tree.leaves(self.optimizer.init(self.params(2))), strict=True)
        is_copy = lambda one, two: (
            jnp.issubdtype(one.dtype, jnp.inexact) and bool(jnp.any(one != 0)) and bool(jnp.all(two == 2 * one))
        )
        return [is_copy(jnp.asarray(one), jnp.asarray(two)) for one, two in pairs]

    def _adopt(self, opt_state: Any) -> Any:
        """The caller's state in the bench's types, its copies of parameters replaced by those of the probes."""
        leaves, treedef = jax.tree.flatten(opt_state)
        fresh, expected = jax.tree.flatten(self.fresh)
        same = treedef == expected and [*map(jnp.shape, leaves)] == [*map(jnp.shape, fresh)]  # type: ignore[operator]
        if not same:
            raise ValueError(
                "opt_state is not a state of this optimizer for these params: pass what optimizer.update returned"
            )
        cast = lambda old, new, copy: new if copy else jnp.asarray(old, jnp.asarray(new).dtype)
        return jax.tree.unflatten(treedef, [*map(cast, leaves, fresh, self.copies)])

    def micro(self, gradients: Any, state: Any, params: Any) -> Any:
        """One call of `update`; a loss is supplied where it asks for one, as for a line search."""
        if self.call is not None:
            return self.call(gradients, state, params)
        plain = lambda g, state, p: self.optimizer.update(g, state, p, **self.extra_args)

        def with_loss(g: Any, state: Any, p: Any) -> Any:
            slope = lambda x: optax.tree.vdot(g, optax.tree.sub(x, p)).real
            loss = {"value": jnp.ones(()), "value_fn": lambda x: 1.0 + slope(x), "grad": g}
            return self.optimizer.update(g, state, p, **(loss | self.extra_args))

        compiled = jax.jit if self.compiled else lambda f: f
        reason = None
        for way in (compiled(plain), compiled(with_loss)):
            try:
                result = way(gradients, state, params)
            except Exception as error:
                reason = reason or error
            else:
                self.call = way
                return result
        raise reason or AssertionError

    def scaled(self, s: float) -> Any:
        """The state of the bench with its copies of parameters scaled as the parameters are, and edited."""
        leaves, treedef = jax.tree.flatten(self.state)
        scale = lambda x, copy: x * jnp.asarray(s, x.dtype) if copy else x
        with precision(self.wide):
            return self.edit(jax.tree.unflatten(treedef, [*map(scale, leaves, self.copies)]))

    def step(self, s: float, k: float, state: Any = None, flipped: bool = False) -> Seen:
        """One real step: `period` calls of `update` with the same gradient, each from where the last one led."""
        with precision(self.wide):
            state = self.scaled(s) if state is None else state
            params, gradients = self.params(s), self.gradients(k or self.quiet, flipped)
            total, state = self.micro(gradients, state, params)
            for _ in range(1, self.period):
                moved = moved_by(params, total)
                updates, state = self.micro(gradients, state, moved)
                total = jax.tree.map(jnp.add, total, updates)
            leaves = jax.device_get(jax.tree.leaves(total))
        wide = lambda u: np.linalg.norm(u.astype(complex if np.iscomplexobj(u) else float))
        return Seen([*map(probes.sample, leaves)], np.array([*map(wide, leaves)]), [u.dtype for u in leaves], state)

    @functools.cached_property
    def unpaired(self) -> bool:
        """Whether some leaf has an entry whose gradient takes both signs."""
        return any(np.any(a != b) for a, b in zip(self.subject.gradients, self.subject.flipped, strict=True))

    def mean(self, s: float, k: float, state: Any = None) -> list[np.ndarray]:
        """The updates of a step, averaged over both signs of unpaired gradients."""
        once = self.step(s, k, state).updates
        if not self.unpaired or not k:
            return once
        again = self.step(s, k, state, flipped=True).updates
        with np.errstate(invalid="ignore"):  # infinite ones
            return [(a + b) / 2 for a, b in zip(once, again, strict=True)]

    def odd(self, k: float, s: float = 1, states: tuple[Any, Any] = (None, None)) -> list[np.ndarray]:
        """Half the difference of the steps from s·p and −s·p, per leaf: what depends on the parameter's sign."""
        return halves(self.mean(s, k, states[0]), self.mean(-s, k, states[1]))

    def removed(self, k: float = 0, states: tuple[Any, Any] = (None, None)) -> np.ndarray:
        """The fraction that one step removes, per leaf, as the bench is set now."""
        values = [probes.sample(p) for p in self.subject.values]
        return np.array([fraction(d, p) for d, p in zip(self.odd(k, 1, states), values, strict=True)])

    def drive(self, steps: int, k: float = 1) -> tuple[Any, Any]:
        """Parameters and state after that many real steps, in the bench's types.

        The gradient is k times the probe's at the start, and grows with the distance from there: that of a parabola.
        """
        micro = self.call
        bowl = lambda g, p, p0: (g + k * (p - p0)).astype(g.dtype) if jnp.issubdtype(g.dtype, jnp.inexact) else g

        def one(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            gradients = jax.tree.map(bowl, first, carry[0], start) if k else first
            updates, state = micro(gradients, carry[1], carry[0])  # type: ignore[misc]
            return moved_by(carry[0], updates), state

        with precision(self.wide):
            first, start = self.gradients(k or self.quiet), self.params(1)
            loop = jax.jit(lambda carry, n: jax.lax.fori_loop(0, n, one, carry))
            return loop(jax.tree.map(jnp.asarray, (start, self.state)), steps * self.period)

    def forget(self, state: Any) -> Any:
        """A state after a step, with its copies of parameters at zero, where the parameters go next."""
        leaves, treedef = jax.tree.flatten(state)
        zeroed = [jnp.zeros_like(x) if copy else x for x, copy in zip(leaves, self.copies, strict=True)]
        return jax.tree.unflatten(treedef, zeroed)

    def with_leaf(self, names: tuple[str, ...], change: Callable[[Any], Any]) -> Callable[[Any], Any] | None:
        """An edit of the live floating-point leaves of these names, or None where the state has none."""

        def edit(state: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, x: change(jnp.asarray(x)) if is_scalar(path, x, names, jnp.inexact) else x, state
            )

        found = jax.tree_util.tree_flatten_with_path(self.state)[0]
        return edit if any(is_scalar(path, x, names, jnp.inexact) for path, x in found) else None

    @contextlib.contextmanager
    def trying(self, **changes: Any) -> Iterator[None]:
        """The bench with another `state` or `edit` for a while."""
        before = {name: getattr(self, name) for name in changes}
        self.__dict__.update(changes)
        try:
            yield
        finally:
            self.__dict__.update(before)


def moved_by(params: Any, updates: Any) -> Any:
    """The parameters after a step; as `optax.apply_updates`, and types of 8 bits too."""

    def one(p: Any, u: Any) -> Any:
        dtype = jnp.promote_types(u.dtype, jnp.float32) if u.dtype != p.dtype and p.dtype.itemsize == 1 else None
        return (jnp.asarray(p, dtype) + jnp.asarray(u, dtype)).astype(p.dtype)

    return jax.tree.map(one, params, updates)


def halves(plus: list[np.ndarray], minus: list[np.ndarray]) -> list[np.ndarray]:
    """Half the difference of two steps, per leaf."""
    with np.errstate(invalid="ignore"):  # infinite ones
        return [(a - b) / 2 for a, b in zip(plus, minus, strict=True)]


def fraction(d: np.ndarray, p: np.ndarray) -> float:
    """C of the best d = −c·p."""
    size = float(np.vdot(p, p).real)
    return -float(np.vdot(p, d).real) / size if size else 0.0


def name_of(path: Any) -> str:
    """The last name in the path of a leaf."""
    return next((str(getattr(path[-1], a)) for a in ("key", "name") if hasattr(path[-1], a)), "") if path else ""


def is_scalar(path: Any, x: Any, names: tuple[str, ...], kind: Any) -> bool:
    """Whether a leaf of the state is a scalar array of this kind under one of these names."""
    return name_of(path) in names and jnp.shape(x) == () and hasattr(x, "dtype") and bool(jnp.issubdtype(x.dtype, kind))
