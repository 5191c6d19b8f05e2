"""One leaf of each kind: what a large tree is audited on.

Leaves are one kind if the update does the same with each: the operations from the parameter and from its gradient are
compared in the traced program (`dataflow`). Tracing more than `TRACED` leaves takes long; there leaves are one kind if
their paths differ only in numbers and their shapes and dtypes agree, if the optimizer takes a part of the tree.

All leaves (of more than `CHECKED` a sample) take one step on stand-ins, to check that each is treated as its kind; one
that isn't becomes a kind of its own. It finds what a program doesn't show: values in the state.
"""

import dataclasses
import itertools
import math
import re
import warnings
from collections.abc import Hashable, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.auditing import clock, dataflow
from wd_optax.auditing.harness import Harness, build_harness, numerics
from wd_optax.auditing.probes import LARGEST, Probes, build_probes
from wd_optax.auditing.vectors import norm
from wd_optax.masking import roles
from wd_optax.rules.stand_ins import use_stand_ins

FEW = 48  # leaves that are audited one by one
TRACED = 4096  # leaves; a program of more is traced only if the optimizer takes no part of the tree
CHECKED = 128
LOOPED = 96  # in place of `CHECKED` if an update has loops, which are compiled
ENTRIES = 2**22  # of all stand-ins together, where large ones are needed
SIZES = (LARGEST, 128, 512, 2048, 8192)


# What stands for the leaves that aren't chosen: nothing, dicts without a chosen leaf are left out; None; or what
# `optax.masked` hides leaves with, which rules and trees for the whole tree accept.
Cut = Literal["pruned", "none", "hidden"]


class Kinds(NamedTuple):
    """A tree, and one leaf of each kind."""

    params: optax.Params
    chosen: tuple[int, ...]  # leaves, in JAX's order
    kind_of: tuple[int, ...]  # per leaf of the tree the position of its kind in `chosen`
    cut: Cut = "none"

    def tree(self) -> optax.Params:
        """The tree of the chosen leaves."""
        return self.part(self.params, set(self.chosen))

    def part(self, params: optax.Params, keep: set[int]) -> optax.Params:
        """The tree of some leaves."""
        leaves, treedef = jax.tree.flatten(params)
        other = optax.MaskedNode() if self.cut == "hidden" else None
        tree = jax.tree.unflatten(treedef, [leaf if i in keep else other for i, leaf in enumerate(leaves)])
        return _prune(tree) if self.cut == "pruned" else tree


class StandIns(NamedTuple):
    """Small probes in place of the real shapes."""

    probes: Probes
    faithful: list[bool]  # per leaf, whether the optimizer treats it as it treats the real shape
    loops: bool  # whether an update has loops


def _prune(tree: Any) -> Any:
    """Removes the entries of dicts that hold nothing; a list keeps its positions."""
    if type(tree) is not dict:
        return tree
    return {key: _prune(value) for key, value in tree.items() if jax.tree.leaves(value)}


def group_leaves(params: optax.Params, keys: Iterable[Hashable], cut: Cut = "none") -> Kinds:
    """One kind for every key, represented by its first leaf."""
    keys, first = list(keys), dict[Hashable, int]()
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    position = {key: n for n, key in enumerate(first)}
    return Kinds(params, tuple(first.values()), tuple(position[key] for key in keys), cut)


def one_each(params: optax.Params) -> Kinds:
    """Every leaf is a kind of its own."""
    return group_leaves(params, range(len(jax.tree.leaves(params))))


def group(optimizer: optax.GradientTransformation, params: optax.Params, parameters: list[roles.Parameter]) -> Kinds:
    """Kinds by program, or by path; every leaf is one if the tree is small or the optimizer takes only all of it."""
    if len(parameters) <= FEW:
        return one_each(params)
    paths = [(re.sub(r"\d+", "*", p.path), p.shape, str(p.dtype)) for p in parameters]
    by_path = [group_leaves(params, paths, "pruned"), group_leaves(params, paths, "none")]
    if len(parameters) > TRACED and _accepts(optimizer, by_path[0].tree()):
        return by_path[0]
    programs = _programs(optimizer, params)
    if programs is None:  # it needs values, or extra arguments
        return next((kinds for kinds in by_path if _accepts(optimizer, kinds.tree())), one_each(params))
    by_program: list[tuple[Hashable, ...]] = [
        (*both, len(p.shape), str(p.dtype)) for both, p in zip(programs, parameters, strict=True)
    ]
    for i, path in enumerate(paths):
        if True in programs[i]:  # it depends on all leaves, and no operation can be said to be its own
            by_program[i] += path
    siblings: list[tuple[Hashable, ...]] = [*zip(by_program, paths, strict=True)]  # which roles may look at
    cuts: tuple[Cut, ...] = ("pruned", "hidden")
    for keys, cut in itertools.product((by_program, siblings), cuts):
        kinds = group_leaves(params, keys, cut)
        if _programs(optimizer, kinds.tree()) == [programs[i] for i in kinds.chosen]:
            return kinds
    return one_each(params)


def _accepts(optimizer: optax.GradientTransformation, tree: optax.Params) -> bool:
    """Whether the optimizer accepts part of the tree."""
    with warnings.catch_warnings(), numerics(False):
        warnings.simplefilter("ignore")
        try:
            state = jax.eval_shape(optimizer.init, tree)
            jax.eval_shape(optimizer.update, tree, state, tree)
        except Exception:  # whatever it raises here, it may not raise on the whole tree
            return False
    return True


def _programs(
    optimizer: optax.GradientTransformation, tree: optax.Params
) -> list[tuple[dataflow.Digest, dataflow.Digest]] | None:
    """Per leaf what the update does with the parameter and with its gradient, in float32, where nothing is rounded."""
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, _at_least_float32(x.dtype)), tree)
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(tree)]
    traced = _trace(optimizer, tree)
    if traced is None:
        return None
    both = (dataflow.digests(traced, sizes, of_gradients) for of_gradients in (False, True))
    return list(zip(*both, strict=True))


def _at_least_float32(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype


def split_unlike(harness: Harness, step: int, kinds: Kinds, loops: bool) -> Kinds:
    """Splits off leaves whose step differs from that of their kind, after one step of all leaves or of a sample."""
    n = len(kinds.kind_of)
    if len(kinds.chosen) == n:
        return kinds
    random = np.random.default_rng(0).permutation(n)
    sample = random[: LOOPED if loops else CHECKED].tolist()
    # Programs may be equal at several shapes, on whose stand-ins steps have other sizes: each is compared with its own.
    shapes = [jnp.shape(x) for x in jax.tree.leaves(kinds.params)]
    of_shape = {key: i for i, key in reversed([*enumerate(zip(kinds.kind_of, shapes, strict=True))])}
    shown = sorted({*kinds.chosen, *of_shape.values(), *sample})
    digits = dict(zip(shown, _steps_in_two_digits(harness, step, kinds, shown, loops), strict=True))
    keys = []
    for i, key in enumerate(zip(kinds.kind_of, shapes, strict=True)):
        unlike = digits.get(i, digits[of_shape[key]]) != digits[of_shape[key]]
        keys.append((key[0], digits[i] if unlike else None))
    return group_leaves(kinds.params, keys, kinds.cut)


def _steps_in_two_digits(
    harness: Harness, step: int, kinds: Kinds, shown: list[int], compiled: bool
) -> list[tuple[float, float]]:
    """Per leaf the norms of the difference and the sum of the steps from p and −p; leaves of a kind agree in them."""
    part = kinds.part(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kinds.params), set(shown))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probes = build_probes(part, True)
        large = build_harness(harness.optimizer, probes, None, harness.extra_args, compiled=compiled)
    large = dataclasses.replace(large, period=harness.period, least_gradient=harness.least_gradient)
    large = clock.at_named_step(large, step)
    steps = []
    for a, b, p in zip(large.step(1, 1).updates, large.step(-1, 1).updates, large.probes.values, strict=True):
        size = norm(p) or 1.0
        steps.append((_two_digits(norm(a - b), size), _two_digits(norm(a + b), size)))
    return steps


def _two_digits(x: float, size: float) -> float:
    return float(f"{x / size:.1e}") if x > 1e-12 * size else 0.0


def stand_ins(optimizer: optax.GradientTransformation, tree: optax.Params) -> StandIns:
    """The smallest stand-ins that the optimizer treats like the real shapes, or those of most leaves."""
    real, loops = _digests(
        optimizer, jax.tree.map(_without_weak_type, tree), [math.prod(x.shape) for x in jax.tree.leaves(tree)]
    )
    best: StandIns | None = None
    for largest in SIZES:
        probes = build_probes(tree, True, largest)
        sizes = [int(np.size(x)) for x in probes.values]
        if best and sum(sizes) > ENTRIES:
            break
        small = [jax.ShapeDtypeStruct(x.shape, p.dtype) for x, p in zip(probes.values, probes.parameters, strict=True)]
        with use_stand_ins(probes.real_shapes):
            mine, _ = _digests(optimizer, probes.treedef.unflatten(small), sizes)
        faithful = [a == b for a, b in zip(real, mine, strict=True)] if real and mine else [real == mine] * len(sizes)
        if best is None or sum(faithful) > sum(best.faithful):
            best = StandIns(probes, faithful, loops)
        if all(faithful):
            break
    assert best is not None
    return best


def _without_weak_type(x: Any) -> Any:
    """A shape that `jax.eval_shape` found to be of a Python number's type is traced differently from an array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x


def _digests(
    optimizer: optax.GradientTransformation, tree: optax.Params, sizes: list[int]
) -> tuple[list[dataflow.Digest], bool]:
    """Per leaf the digest of its update, and whether the update has loops; nothing if it can't be traced."""
    traced = _trace(optimizer, tree)
    return ([], False) if traced is None else (dataflow.digests(traced, sizes), dataflow.has_loops(traced))


def _trace(optimizer: optax.GradientTransformation, tree: optax.Params) -> dataflow.Traced | None:
    """The program of an update; None if it needs values, or extra arguments."""
    with warnings.catch_warnings(), numerics(False):
        warnings.simplefilter("ignore")
        try:
            return dataflow.trace_update(optimizer, tree)
        except Exception:  # whatever it raises here, it may not raise on arrays
            return None
