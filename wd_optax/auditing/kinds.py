"""One leaf of each kind: what a large tree is audited on.

Leaves whose paths differ in numbers only, with one shape and one type, are one kind. All are run once, on stand-ins,
to see that they are treated alike (above `CHECKED` leaves, a sample); one that isn't is a kind of its own.
"""

import math
import re
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from wd_optax.auditing import clock, dataflow, probes
from wd_optax.auditing.harness import Harness, precision
from wd_optax.masking import roles

FEW = 48  # leaves that are audited one by one
CHECKED = 128
LOOPED = 96  # in place of `CHECKED` where an update has loops, which are compiled
ENTRIES = 2**22  # of all stand-ins together, where large ones are needed
SIZES = (probes.LARGEST, 128, 512, 2048, 8192)


class Kinds(NamedTuple):
    """A tree, and one leaf of each kind."""

    params: Any
    chosen: tuple[int, ...]  # leaves, in JAX's order
    of: tuple[int, ...]  # for each leaf of the tree the place of its kind in `chosen`
    pruned: bool = False  # whether dicts without a chosen leaf are left out, which a tree of labels or bools forbids

    def tree(self) -> Any:
        """The tree of the chosen leaves, None in place of the others."""
        return self.part(self.params, set(self.chosen))

    def part(self, params: Any, keep: set[int]) -> Any:
        """A tree of these leaves."""
        leaves, treedef = jax.tree.flatten(params)
        tree = jax.tree.unflatten(treedef, [leaf if i in keep else None for i, leaf in enumerate(leaves)])
        return _prune(tree) if self.pruned else tree


def _prune(tree: Any) -> Any:
    """Without the entries of dicts that hold nothing; a list keeps its numbers."""
    if type(tree) is not dict:
        return tree
    return {key: _prune(value) for key, value in tree.items() if jax.tree.leaves(value)}


def of(params: Any, keys: list[Any], pruned: bool = False) -> Kinds:
    """The first leaf of every key."""
    first: dict[Any, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    chosen = tuple(first.values())
    place = {i: n for n, i in enumerate(chosen)}
    return Kinds(params, chosen, tuple(place[first[key]] for key in keys), pruned)


def guess(optimizer: Any, params: Any, found: list[roles.Parameter]) -> Kinds:
    """The kinds by path, shape and type; every leaf is one where the tree is small or has to be whole."""
    whole = of(params, list(range(len(found))))
    if len(found) <= FEW:
        return whole
    ways = (of(params, [_key(p) for p in found], pruned) for pruned in (True, False))
    return next((kinds for kinds in ways if accepts(optimizer, kinds.tree())), whole)


def check(bench: Harness, step: int, kinds: Kinds, found: list[roles.Parameter], loops: bool) -> Kinds:
    """The kinds after all leaves, or a sample, have taken one step: those that took another are split off."""
    if len(kinds.chosen) == len(found):
        return kinds
    most = LOOPED if loops else CHECKED
    random = np.random.default_rng(0).permutation(len(found))
    shown = sorted({*kinds.chosen, *random[:most].tolist()})
    marks = dict(zip(shown, _behaviour(bench, step, kinds, shown, loops), strict=True))
    first = {kinds.of[i]: marks[i] for i in kinds.chosen}
    return of(kinds.params, [(kind, marks.get(i, first[kind])) for i, kind in enumerate(kinds.of)], kinds.pruned)


def _key(p: roles.Parameter) -> Any:
    return re.sub(r"\d+", "*", p.path), p.shape, str(p.dtype)


def accepts(optimizer: Any, tree: Any) -> bool:
    """Whether the optimizer takes part of the tree."""
    with warnings.catch_warnings(), precision(False):
        warnings.simplefilter("ignore")
        try:
            state = jax.eval_shape(optimizer.init, tree)
            jax.eval_shape(optimizer.update, tree, state, tree)
        except Exception:  # whatever it raises, on the whole tree it may not
            return False
    return True


def _behaviour(bench: Harness, step: int, kinds: Kinds, shown: list[int], compiled: bool) -> list[Any]:
    """Of each of these leaves what one step removes and moves, in two digits: like leaves agree."""
    part = kinds.part(jax.tree.map(_shape, kinds.params), set(shown))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        large = Harness(bench.optimizer, probes.make(part, True), None, bench.extra_args, compiled=compiled)
    large.period, large.quiet = bench.period, bench.quiet
    large.state = clock.set_named_counts(large, large.state, step)
    plus, minus = large.step(1, 1).updates, large.step(-1, 1).updates
    marks = []
    for a, b, p in zip(plus, minus, large.subject.values, strict=True):
        size = float(np.linalg.norm(p)) or 1.0
        digits = lambda x, size=size: float(f"{x / size:.1e}") if x > 1e-12 * size else 0.0
        marks.append((digits(np.linalg.norm(a - b)), digits(np.linalg.norm(a + b))))
    return marks


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def stand_ins(optimizer: Any, tree: Any) -> tuple[probes.Probes, list[bool], bool]:
    """Stand-ins as small as the optimizer treats like the real shapes; per leaf whether it does; whether it loops."""
    real, loops = _digests(optimizer, tree, [math.prod(x.shape) for x in jax.tree.leaves(tree)])
    best: tuple[probes.Probes, list[bool]] | None = None
    for largest in SIZES:
        subject = probes.make(tree, True, largest)
        sizes = [np.size(x) for x in subject.values]
        if best and sum(sizes) > ENTRIES:
            break
        like = map(_like, subject.values, subject.found)
        mine, _ = _digests(optimizer, subject.treedef.unflatten(like), sizes)
        carried = [a == b for a, b in zip(real, mine, strict=True)] if real and mine else [real == mine] * len(sizes)
        if best is None or sum(carried) > sum(best[1]):
            best = subject, carried
        if all(carried):
            break
    assert best is not None
    return *best, loops


def _like(x: Any, p: roles.Parameter) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, p.dtype)


def _digests(optimizer: Any, tree: Any, sizes: list[int]) -> tuple[list[Any], bool]:
    with warnings.catch_warnings(), precision(False):
        warnings.simplefilter("ignore")
        try:
            traced = dataflow.trace(optimizer, tree)
        except Exception:  # it needs values, or arguments
            return [], False
    return dataflow.digests(traced, sizes), dataflow.loops(traced)
