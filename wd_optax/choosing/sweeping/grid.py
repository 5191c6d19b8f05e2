"""The grid: traced axes (numbers), static axes (anything else), seeds, and which runs share one program."""

import itertools
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from wd_optax.choosing.sweeping import values

RESERVED = ("seed", "diverged")  # what the dataset calls its own


class Axis(NamedTuple):
    """One hyperparameter."""

    name: str
    values: Any  # traced: an array of JAX's default float or int type; static: a list of anything
    labels: list[Any]  # the coordinate: the numbers as they were given, or the names of the static values
    static: bool


class Program(NamedTuple):
    """The runs that one compiled program does: those of one combination of static values."""

    labels: dict[str, str]  # of the static axes
    static: dict[str, Any]
    traced: dict[str, np.ndarray]  # of the traced axes; each of shape=(runs,)
    seeds: np.ndarray  # shape=(runs,), dtype=uint32
    runs: np.ndarray  # shape=(runs,): positions in the flattened grid

    def __str__(self) -> str:
        """Static values as text: optimizer='adamw'."""
        return ", ".join(f"{name}={label!r}" for name, label in self.labels.items()) or "the grid"


class Grid(NamedTuple):
    """Axes in the order given; a run is a point and a seed, flattened with the seed fastest."""

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes, then the number of seeds."""
        return (*(len(axis.labels) for axis in self.axes), len(self.seeds))

    @property
    def size(self) -> int:
        """Runs in all."""
        return math.prod(self.shape)

    def programs(self) -> Iterator[Program]:
        """One for each combination of static values."""
        index = np.unravel_index(np.arange(self.size), self.shape)
        static = [i for i, axis in enumerate(self.axes) if axis.static]
        for chosen in itertools.product(*(range(self.shape[i]) for i in static)):
            here = [(self.axes[i], k) for i, k in zip(static, chosen, strict=True)]
            same = [index[i] == k for i, k in zip(static, chosen, strict=True)]
            runs = np.flatnonzero(np.logical_and.reduce(same)) if same else np.arange(self.size)
            yield Program(
                labels={axis.name: axis.labels[k] for axis, k in here},
                static={axis.name: axis.values[k] for axis, k in here},
                traced={a.name: a.values[index[i][runs]] for i, a in enumerate(self.axes) if not a.static},
                seeds=np.asarray(self.seeds, np.uint32)[index[-1][runs]],
                runs=runs,
            )


def make(axes: Any, seeds: Any) -> Grid:
    """The grid, checked.

    Args:
      axes: {name: values}; see `wd_optax.sweep`.
      seeds: how many, or which.

    Raises:
      TypeError: for what isn't a mapping of sequences, or values that need names.
      ValueError: for an empty axis, no seeds, duplicates, numbers that aren't finite or don't fit, reserved names.

    Example: two runs share a program, those of one optimizer.
      >>> from wd_optax.choosing.sweeping import grid
      >>> g = grid.make({"learning_rate": [0.1, 0.2], "optimizer": ["sgd", "adam"]}, seeds=1)
      >>> for program in g.programs():
      ...     print(program, program.traced["learning_rate"], program.runs)
      optimizer='sgd' [0.1 0.2] [0 2]
      optimizer='adam' [0.1 0.2] [1 3]

    """
    if not isinstance(axes, Mapping) or not axes:
        raise TypeError(f"axes={axes!r}: pass a dict such as {{'weight_decay': [1e-3, 1e-2]}}")
    return Grid(tuple(_axis(name, given) for name, given in axes.items()), _seeds(seeds))


def _seeds(seeds: Any) -> tuple[int, ...]:
    whole = lambda x: isinstance(x, numbers.Integral) and not isinstance(x, bool)
    several = (isinstance(seeds, Sequence) and not isinstance(seeds, str)) or values.rank(seeds) == 1
    alone = values.plain(seeds)
    found = tuple(range(int(alone))) if whole(alone) else tuple(map(values.plain, seeds)) if several else ()
    if not found or not all(whole(seed) and 0 <= seed < 2**32 for seed in found):
        raise ValueError(f"seeds={seeds!r}: pass how many, at least 1, or a list of whole numbers in [0, 2³²)")
    if twice := values.twice(found):
        once = list(dict.fromkeys(map(int, found)))
        raise ValueError(f"seeds has {twice[0]} twice, which would train the same run again: seeds={once}")
    return tuple(map(int, found))


def _axis(name: Any, given: Any) -> Axis:
    """The axis; static if a value isn't a number, or if the values have names: {name: value}."""
    if not isinstance(name, str) or not name or name in RESERVED:
        raise ValueError(f"axes: {name!r} can't be an axis' name: pass a text other than {', '.join(RESERVED)}")
    if isinstance(given, (set, frozenset)):
        raise TypeError(f"axes[{name!r}] is a set, which has no order: axes[{name!r}]=sorted(...), or a list")
    named = isinstance(given, Mapping)
    if isinstance(given, (str, bytes)) or values.rank(given) not in (None, 1):
        raise TypeError(f"axes[{name!r}]={given!r}: pass a list of values, or a dict of named values")
    try:
        found = list(given.values() if named else given)
    except TypeError:
        raise TypeError(f"axes[{name!r}]={given!r}: pass a list of values") from None
    if not found:
        raise ValueError(f"axes[{name!r}] is empty: give it a value, or leave it out")
    if named:
        return Axis(name, found, _distinct(name, list(map(str, given))), static=True)
    found = list(map(values.plain, found))
    if all(map(values.is_number, found)):
        return _numbers(name, found)
    return Axis(name, found, _distinct(name, [_label(name, value) for value in found]), static=True)


def _numbers(name: str, found: list[Any]) -> Axis:
    """A traced axis."""
    whole = all(isinstance(value, numbers.Integral) for value in found)
    dtype = jnp.result_type(int if whole else float)
    try:
        found = list(map(int if whole else float, found))
    except OverflowError:
        raise ValueError(f"axes[{name!r}]={found}: pass finite numbers that {dtype} can hold") from None
    limits = jnp.iinfo(dtype) if whole else jnp.finfo(dtype)
    for value in found:
        if not limits.min <= value <= limits.max or (value and not dtype.type(value)):
            raise ValueError(f"axes[{name!r}] has {value}: pass finite numbers that {dtype} can hold")
    traced = np.asarray(found, dtype)
    if twice := values.twice(traced.tolist()):
        raise ValueError(f"axes[{name!r}] in {dtype} has {twice[0]!r} twice: leave one out")
    return Axis(name, traced, found, static=False)


def _label(name: str, value: Any) -> str:
    """A static value's name."""
    if isinstance(value, (str, bool, type(None))):
        return str(value)
    label = f"{value:g}" if values.is_number(value) else getattr(value, "__name__", "<lambda>")
    if label == "<lambda>":
        raise TypeError(f"axes[{name!r}]: {value!r} has no name; pass a dict of named values: {{'name': value}}")
    return label


def _distinct(name: str, labels: list[str]) -> list[str]:
    if twice := values.twice(labels):
        raise ValueError(f"axes[{name!r}] has {twice[0]!r} twice: leave one out, or name them: {{'name': value}}")
    return labels
