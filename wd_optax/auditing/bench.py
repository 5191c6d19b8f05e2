"""The test stand of an audit: real steps of one optimizer from one state, at any scale of parameters and gradients.

It computes in float64 whatever the parameters' types are, so that a decay of 1e-9 per step stands out behind a
gradient step of 1. `s` scales the parameters, `k` the gradients: `bench.step(-1, 0)` is the step from −p with a
zero gradient.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing import probes

COUNTS = ("count", "step", "step_count", "gradient_step")  # what schedules are evaluated at
PATIENCE = 64  # calls of `update` that may move nothing before it is taken at its word


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


class Bench:
    """See the module; `wide=False` computes in the parameters' own types."""

    def __init__(
        self,
        optimizer: Any,
        subject: probes.Probes,
        opt_state: Any = None,
        extra_args: dict[str, Any] | None = None,
        wide: bool = True,
    ) -> None:
        self.optimizer, self.subject, self.wide = optax.with_extra_args_support(optimizer), subject, wide
        self.extra_args, self.eps = dict(extra_args or {}), float(np.finfo(float if wide else np.float32).eps)
        self.period, self.quiet = 1, 0.0
        self.edit: Callable[[Any], Any] = lambda state: state
        self.call: Callable[..., Any] | None = None
        self.trees: dict[tuple[str, float], Any] = {}
        with precision(wide):
            self.fresh = self.optimizer.init(self.params(1))
            self.copies = self._copies()
            self.state = self.fresh if opt_state is None else self._adopt(opt_state)

    def params(self, s: float) -> Any:
        """The probe parameters, scaled."""
        return self._tree("values", s)

    def gradients(self, k: float) -> Any:
        """The probe gradients, scaled."""
        return self._tree("gradients", k)

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

        # a thousand small leaves take seconds to compile and a moment to run
        compiled = (lambda f: f) if self.subject.small and not self.wide else jax.jit
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

    def step(self, s: float, k: float, state: Any = None) -> Seen:
        """One real step: `period` calls of `update` with the same gradient."""
        with precision(self.wide):
            state = self.scaled(s) if state is None else state
            params, gradients = self.params(s), self.gradients(k or self.quiet)
            for _ in range(self.period):
                updates, state = self.micro(gradients, state, params)
            leaves = jax.device_get(jax.tree.leaves(updates))
        wide = lambda u: np.linalg.norm(u.astype(complex if np.iscomplexobj(u) else float))
        return Seen([*map(probes.sample, leaves)], np.array([*map(wide, leaves)]), [u.dtype for u in leaves], state)

    def run(self, steps: int) -> list[Any]:
        """The parameters after that many real steps without a gradient, in the bench's types."""
        gradients = self.gradients(self.quiet)

        def one(_: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            updates, state = self.optimizer.update(gradients, carry[1], carry[0], **self.extra_args)
            return optax.apply_updates(carry[0], updates), state

        with precision(self.wide):
            loop = jax.jit(lambda carry: jax.lax.fori_loop(0, steps * self.period, one, carry))
            return jax.device_get(jax.tree.leaves(loop((self.params(1), self.state))[0]))

    def hold_anchors(self) -> None:
        """Leaves copies of parameters where they are if they are what the weights decay to.

        Those are copies that steps never change, as starting points are, too; anchors are told by a decay that
        shows only while they stay.
        """
        where = [path for path, _ in jax.tree_util.tree_flatten_with_path(self.params(1))[0]]
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(self.state)[0]]
        trees = [next((path[: -len(p)] for p in where if p and path[-len(p) :] == p), path) for path in paths]
        before, after = (jax.tree.leaves(state) for state in (self.scaled(1), self.step(1, 1).state))
        changed = lambda a, b: np.shape(a) != np.shape(b) or bool(jnp.any(a != b))
        moving = {t for t, a, b, c in zip(trees, before, after, self.copies, strict=True) if c and changed(a, b)}
        everything = self.copies
        held = [copy and tree in moving for copy, tree in zip(everything, trees, strict=True)]
        if held == everything:
            return
        follows = self._pulls()
        self.copies = held
        if not np.any((self._pulls() > 0) & (follows == 0)):
            self.copies = everything

    def _pulls(self) -> np.ndarray:
        """How far apart the steps from p and −p are, per leaf; 0 within rounding."""
        plus, minus = self.step(1, 0), self.step(-1, 0)
        pulls = [np.linalg.norm(a - b) for a, b in zip(plus.updates, minus.updates, strict=True)]
        sizes = [np.linalg.norm(probes.sample(p)) for p in self.subject.values]
        return np.where(np.array(pulls) > 1e4 * self.eps * (np.array(sizes) + plus.norms), pulls, 0.0)

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

    def at(self, state: Any, step: int) -> Any:
        """The state with every step count set."""
        with precision(self.wide):
            return jax.tree_util.tree_map_with_path(
                lambda path, x: jnp.asarray(step, x.dtype) if is_scalar(path, x, COUNTS, jnp.integer) else x, state
            )

    def counts(self) -> bool:
        """Whether the state counts steps."""
        found = jax.tree_util.tree_flatten_with_path(self.state)[0]
        return any(is_scalar(path, x, COUNTS, jnp.integer) for path, x in found)

    def find_period(self) -> bool:
        """How many calls of `update` make one real step (MultiSteps), and whether the first real step moves."""
        state, moved = self.state, [-1]
        if not np.isfinite(self.step(1, 0).norms).all():
            self.quiet = 1e-6  # Prodigy divides 0 by 0
        for i in range(PATIENCE):
            seen = self.step(1, 1, state)
            state = seen.state
            if seen.norms.any():
                moved.append(i)
            if len(moved) == 3:
                break
        if len(moved) < 3:
            return False
        self.period = moved[2] - moved[1]
        begin = moved[1] + 1
        if self.period > 1 and begin < self.period:  # the caller's state stands in the middle of a cycle
            for _ in range(begin):
                with precision(self.wide):
                    self.state = self.micro(self.gradients(0), self.state, self.params(1))[1]
        return self.period > 1 or begin == 1


def is_scalar(path: Any, x: Any, names: tuple[str, ...], kind: Any) -> bool:
    """Whether a leaf of the state is a scalar array of this kind under one of these names."""
    name = next((str(getattr(path[-1], a)) for a in ("key", "name") if hasattr(path[-1], a)), "") if path else ""
    return name in names and jnp.shape(x) == () and hasattr(x, "dtype") and bool(jnp.issubdtype(x.dtype, kind))
