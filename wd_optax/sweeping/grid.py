"""The grid: traced axes (numbers), static axes (anything else), seeds, and which runs share one program."""

import collections
import itertools
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
      >>> from wd_optax.sweeping import grid
      >>> g = grid.make({"learning_rate": [0.1, 0.2], "optimizer": ["sgd", "adam"]}, seeds=1)
      >>> for program in g.programs():
      ...     print(program, program.traced["learning_rate"], program.runs)
      optimizer='sgd' [0.1 0.2] [0 2]
      optimizer='adam' [0.1 0.2] [1 3]

    """
    if not isinstance(axes, Mapping) or not axes:
        raise TypeError(f"axes={axes!r}: pass a dict such as {{'weight_decay': [1e-3, 1e-2]}}")
    return Grid(tuple(_axis(name, values) for name, values in axes.items()), _seeds(seeds))


def _seeds(seeds: Any) -> tuple[int, ...]:
    whole = lambda x: isinstance(x, numbers.Integral) and not isinstance(x, bool)
    several = isinstance(seeds, Sequence) or np.ndim(seeds) == 1
    found = tuple(range(int(seeds))) if whole(seeds) else tuple(seeds) if several else ()
    if not found or not all(whole(seed) and 0 <= seed < 2**32 for seed in found):
        raise ValueError(f"seeds={seeds!r}: pass how many, at least 1, or a list of whole numbers in [0, 2³²)")
    _refuse_duplicates("seeds", found)
    return tuple(map(int, found))


def _axis(name: Any, values: Any) -> Axis:
    """The axis; static if a value isn't a number, or if the values have names: {name: value}."""
    if not isinstance(name, str) or not name or name in RESERVED:
        raise ValueError(f"axes: {name!r} can't be an axis' name: pass a text other than {', '.join(RESERVED)}")
    named = isinstance(values, Mapping)
    if isinstance(values, str) or np.ndim(values if hasattr(values, "ndim") else [0]) != 1:
        raise TypeError(f"axes[{name!r}]={values!r}: pass a list of values, or a dict of named values")
    try:
        found = list(values.values() if named else values)
    except TypeError:
        raise TypeError(f"axes[{name!r}]={values!r}: pass a list of values") from None
    if not found:
        raise ValueError(f"axes[{name!r}] is empty: give it a value, or leave it out")
    if named or not all(map(_is_number, found)):
        labels = list(map(str, values)) if named else [_label(name, value) for value in found]
        _refuse_duplicates(f"axes[{name!r}]", labels)
        return Axis(name, found, labels, static=True)
    return _numbers(name, [np.asarray(value).item() for value in found])


def _numbers(name: str, found: list[Any]) -> Axis:
    """A traced axis."""
    dtype = jnp.result_type(int if all(isinstance(value, int) for value in found) else float)
    limits = jnp.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype)
    for value in found:
        if not limits.min <= value <= limits.max or (value and not dtype.type(value)):
            raise ValueError(f"axes[{name!r}] has {value}: pass finite numbers that {dtype} can hold")
    values = np.asarray(found, dtype)
    _refuse_duplicates(f"axes[{name!r}] in {dtype}", values.tolist())
    return Axis(name, values, found, static=False)


def _is_number(value: Any) -> bool:
    if isinstance(value, jax.Array):
        kinds = (jnp.integer, jnp.floating)
        return value.ndim == 0 and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    return isinstance(value, (numbers.Real, np.integer, np.floating)) and not isinstance(value, (bool, np.bool_))


def _label(name: str, value: Any) -> str:
    """A static value's name."""
    if isinstance(value, (str, bool, type(None))):
        return str(value)
    label = f"{value:g}" if _is_number(value) else getattr(value, "__name__", "<lambda>")
    if label == "<lambda>":
        raise TypeError(f"axes[{name!r}]: {value!r} has no name; pass a dict of named values: {{'name': value}}")
    return label


def _refuse_duplicates(where: str, values: Sequence[Any]) -> None:
    twice = [value for value, count in collections.Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{where} has {twice[0]!r} twice: leave one out, or name them: {{'name': value}}")
