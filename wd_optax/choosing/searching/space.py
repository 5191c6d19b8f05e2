"""The space of a search, in Optuna's distributions: floats and integers are traced, categories are static."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from wd_optax.choosing.sweeping import values
from wd_optax.choosing.sweeping.grid import RESERVED, StaticGroup
from wd_optax.optional import require

Space = dict[str, Any]  # {name: a distribution of Optuna}
TAKEN = (*RESERVED, "trial", "value", "steps")  # names of the dataset's own variables
MAKE_STATIC = "make it a CategoricalDistribution, one compilation for each value"


def check_space(space: Any) -> Space:
    """The space as a dict.

    Raises:
      TypeError: unless it maps names to Optuna's distributions.
      ValueError: for a name that is taken, categories with equal names, or bounds that JAX's type can't hold.

    """
    known = require("optuna").distributions
    example = "{'weight_decay': optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)}"
    if not isinstance(space, Mapping) or not space:
        raise TypeError(f"space={space!r}: pass a dict such as {example}")
    for name, given in space.items():
        if not isinstance(name, str) or not name or name in TAKEN:
            raise ValueError(f"space: {name!r} can't be a name: pass a text other than {', '.join(TAKEN)}")
        if not isinstance(given, known.BaseDistribution):
            raise TypeError(f"space[{name!r}]={given!r}: pass one of Optuna's distributions, such as {example}")
        if isinstance(given, known.CategoricalDistribution):
            if twice := values.duplicates(map(str, given.choices)):
                raise ValueError(f"space[{name!r}] has {twice[0]!r} twice: leave one out")
            continue
        limits = np.iinfo(dtype) if (dtype := _traced_dtype(given)).kind == "i" else np.finfo(dtype)
        if given.low < limits.min or given.high > limits.max or (given.low and not dtype.type(given.low)):
            raise ValueError(f"space[{name!r}]={given}: pass bounds that {dtype} can hold")
    return dict(space)


def first_point(space: Space) -> dict[str, Any]:
    """The lower bounds, and the first of each category."""
    return {name: d.choices[0] if is_category(d) else d.low for name, d in space.items()}


def group_points(space: Space, points: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[StaticGroup]:
    """The runs of the points, each with every seed, one group for each combination of categories.

    Example: two points of one optimizer share a program; a run's position is 2·point + seed.
      >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
      >>> from wd_optax.choosing.searching import space
      >>> given = {"x": FloatDistribution(0.0, 1.0), "kind": CategoricalDistribution(["a", "b"])}
      >>> points = [{"x": 0.5, "kind": "b"}, {"x": 0.1, "kind": "a"}, {"x": 0.7, "kind": "b"}]
      >>> for group in space.group_points(given, points, [0, 1]):
      ...     print(group, group.traced["x"], group.seeds, group.runs)
      kind='b' [0.5 0.5 0.7 0.7] [0 1 0 1] [0 1 4 5]
      kind='a' [0.1 0.1] [0 1] [2 3]

    """
    categories = [name for name, d in space.items() if is_category(d)]
    members: dict[tuple[str, ...], list[int]] = {}
    for i, point in enumerate(points):
        members.setdefault(tuple(str(point[name]) for name in categories), []).append(i)
    seed = np.asarray(seeds, np.uint32)
    return [
        StaticGroup(
            labels=dict(zip(categories, labels, strict=True)),
            static={name: points[rows[0]][name] for name in categories},
            traced={
                name: np.repeat(np.asarray([points[i][name] for i in rows], _traced_dtype(d)), len(seed))
                for name, d in space.items()
                if not is_category(d)
            },
            seeds=np.tile(seed, len(rows)),
            runs=(np.array(rows)[:, None] * len(seed) + np.arange(len(seed))).reshape(-1),
        )
        for labels, rows in members.items()
    ]


def is_category(distribution: Any) -> bool:
    """Whether its values are passed to `train` as they are."""
    return hasattr(distribution, "choices")


def _traced_dtype(distribution: Any) -> np.dtype:
    whole = isinstance(distribution, require("optuna").distributions.IntDistribution)
    return np.dtype(jnp.result_type(int if whole else float))
