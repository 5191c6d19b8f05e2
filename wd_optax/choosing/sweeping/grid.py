"""The grid of a sweep: traced axes (numbers), static axes (anything else), seeds, and the runs of each static group."""

import itertools
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wd_optax.choosing.sweeping import values

RESERVED = ("seed", "diverged")  # names of the dataset's own variables


class Axis(NamedTuple):
    """One hyperparameter."""

    name: str
    values: Sequence[Any] | np.ndarray  # traced: an array in JAX's default float or int type; static: a list
    labels: list[Any]  # the coordinate: the numbers as given, or the names of the static values
    static: bool

    @property
    def type(self) -> str:
        """The dtype of a traced axis, or "static"."""
        return "static" if self.static else str(np.asarray(self.values).dtype)


class StaticGroup(NamedTuple):
    """All runs that share a combination of static values, and therefore one compiled program."""

    labels: dict[str, str]  # of the static axes
    static: dict[str, Any]
    traced: dict[str, np.ndarray]  # {traced axis: values of shape=(runs,)}
    seeds: np.ndarray  # shape=(runs,), dtype=uint32
    runs: np.ndarray  # shape=(runs,): positions in the flattened grid

    def __str__(self) -> str:
        """The static values as text: optimizer='adamw'."""
        return ", ".join(f"{name}={label!r}" for name, label in self.labels.items()) or "the grid"


class Grid(NamedTuple):
    """Axes in the order given. A run is a point and a seed; runs are flattened with the seed fastest."""

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes, then the number of seeds."""
        return (*(len(axis.labels) for axis in self.axes), len(self.seeds))

    @property
    def size(self) -> int:
        """The number of runs."""
        return math.prod(self.shape)

    def static_groups(self) -> Iterator[StaticGroup]:
        """One group for each combination of static values."""
        index = np.unravel_index(np.arange(self.size), self.shape)
        static = [i for i, axis in enumerate(self.axes) if axis.static]
        for chosen in itertools.product(*(range(self.shape[i]) for i in static)):
            mask = np.full(self.size, True)
            for i, k in zip(static, chosen, strict=True):
                mask &= index[i] == k
            runs, here = np.flatnonzero(mask), [(self.axes[i], k) for i, k in zip(static, chosen, strict=True)]
            yield StaticGroup(
                labels={axis.name: axis.labels[k] for axis, k in here},
                static={axis.name: axis.values[k] for axis, k in here},
                traced={a.name: np.asarray(a.values)[index[i][runs]] for i, a in enumerate(self.axes) if not a.static},
                seeds=np.asarray(self.seeds, np.uint32)[index[-1][runs]],
                runs=runs,
            )


def make_grid(axes: Mapping[str, Any], seeds: int | Iterable[int]) -> Grid:
    """Builds and checks the grid.

    Args:
      axes: {name: values}; see `wd_optax.sweep`.
      seeds: how many, or which.

    Raises:
      TypeError: if axes isn't a mapping of sequences, or values need names.
      ValueError: for an empty axis, no seeds, duplicates, numbers that aren't finite or don't fit, reserved names.

    Example: the runs of one optimizer share a program.
      >>> from wd_optax.choosing.sweeping import grid
      >>> g = grid.make_grid({"learning_rate": [0.1, 0.2], "optimizer": ["sgd", "adam"]}, seeds=1)
      >>> for group in g.static_groups():
      ...     print(group, group.traced["learning_rate"], group.runs)
      optimizer='sgd' [0.1 0.2] [0 2]
      optimizer='adam' [0.1 0.2] [1 3]

    """
    if not isinstance(axes, Mapping) or not axes:
        raise TypeError(f"axes={axes!r}: pass a dict such as {{'weight_decay': [1e-3, 1e-2]}}")
    return Grid(tuple(_axis(name, given) for name, given in axes.items()), _seeds(seeds))


def _seeds(seeds: Any) -> tuple[int, ...]:
    count = values.to_python(seeds)
    several = (isinstance(seeds, Sequence) and not isinstance(seeds, str)) or values.ndim(seeds) == 1
    found = range(count) if values.is_whole(count) else list(map(values.to_python, seeds)) if several else []
    if not found or not all(values.is_whole(seed) and 0 <= seed < 2**32 for seed in found):
        raise ValueError(f"seeds={seeds!r}: pass how many, at least 1, or a list of whole numbers in [0, 2³²)")
    if twice := values.duplicates(found):
        once = list(dict.fromkeys(map(int, found)))
        raise ValueError(f"seeds has {twice[0]} twice, which would train the same run again: seeds={once}")
    return tuple(map(int, found))


def _axis(name: Any, given: Any) -> Axis:
    """The axis, which is static if the values have names ({name: value}) or one of them isn't a number."""
    if not isinstance(name, str) or not name or name in RESERVED:
        raise ValueError(f"axes: {name!r} can't be an axis' name: pass a text other than {', '.join(RESERVED)}")
    if isinstance(given, (set, frozenset)):
        raise TypeError(f"axes[{name!r}] is a set, which has no order: axes[{name!r}]=sorted(...), or a list")
    named = isinstance(given, Mapping)
    try:
        if isinstance(given, (str, bytes)) or values.ndim(given) not in (None, 1):
            raise TypeError("not a sequence of values")
        found = list(given.values() if named else given)
    except TypeError:
        raise TypeError(f"axes[{name!r}]={given!r}: pass a list of values, or a dict of named values") from None
    if not found:
        raise ValueError(f"axes[{name!r}] is empty: give it a value, or leave it out")
    if named:
        return Axis(name, found, _distinct(name, list(map(str, given))), static=True)
    found = list(map(values.to_python, found))
    if all(map(values.is_number, found)):
        return _traced_axis(name, found)
    return Axis(name, found, _distinct(name, [_static_label(name, value) for value in found]), static=True)


def _traced_axis(name: str, found: list[Any]) -> Axis:
    whole = all(isinstance(value, numbers.Integral) for value in found)
    dtype = np.dtype(jnp.result_type(int if whole else float))
    try:
        found = list(map(int if whole else float, found))
    except OverflowError:
        raise ValueError(f"axes[{name!r}]={found}: pass finite numbers that {dtype} can hold") from None
    limits = np.iinfo(dtype) if whole else np.finfo(dtype)
    for value in found:
        if not limits.min <= value <= limits.max or (value and not dtype.type(value)):
            raise ValueError(f"axes[{name!r}] has {value}: pass finite numbers that {dtype} can hold")
    traced = np.asarray(found, dtype)
    if twice := values.duplicates(traced.tolist()):
        raise ValueError(f"axes[{name!r}] in {dtype} has {twice[0]!r} twice: leave one out")
    return Axis(name, traced, found, static=False)


def _static_label(name: str, value: Any) -> str:
    if isinstance(value, (str, bool, type(None))):
        return str(value)
    label = f"{value:g}" if values.is_number(value) else getattr(value, "__name__", "<lambda>")
    if label == "<lambda>":
        raise TypeError(f"axes[{name!r}]: {value!r} has no name; pass a dict of named values: {{'name': value}}")
    return str(label)


def _distinct(name: str, labels: list[str]) -> list[str]:
    if twice := values.duplicates(labels):
        raise ValueError(f"axes[{name!r}] has {twice[0]!r} twice: leave one out, or name them: {{'name': value}}")
    return labels
