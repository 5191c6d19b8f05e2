"""What the examples share: flags, an MLP, the training loop, the sweep over seeds, a table and curves."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import console
import flax.linen as nn
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import flags

import wd_optax as wd

flags.disclaim_key_flags()  # they belong to the example, in its --help too

NAMES = {"weight_decay": "λ", "kind": ""}  # of axes, in tables and pictures


class Setting:
    """The flags of an example: `Setting("rnn", epochs=(40, "Passes over the text."), seeds=4)`, and --out."""

    def __init__(self, name: str, *, seeds: int | None = None, **knobs: tuple[Any, str]) -> None:
        """A list of numbers is a flag that may be repeated, a tuple of words one that chooses some of them.

        Integers are at least 1, where the default is.
        """
        self.name, self._flags = name, {}
        if seeds:
            self._flags["seeds"] = flags.DEFINE_integer("seeds", seeds, "Runs of each kind.", 2)
        for knob, (default, text) in knobs.items():
            define: Any = {int: flags.DEFINE_integer, float: flags.DEFINE_float, list: flags.DEFINE_multi_float}
            allowed: Any = {"lower_bound": min(default, 1)} if isinstance(default, int) else {}
            if isinstance(default, tuple):
                define, allowed = {tuple: flags.DEFINE_multi_enum}, {"enum_values": default}
            self._flags[knob] = define.get(type(default), flags.DEFINE_string)(knob, default, help=text, **allowed)
        self._out = flags.DEFINE_string("out", "out", f"Folder for {name}.png; created if missing.")

    def values(self) -> dict[str, Any]:
        """The flags but --out."""
        return {knob: flag.value for knob, flag in self._flags.items()}

    def show(self, decays: Callable[[], Any], run: Callable[..., Any], report: Any, plot: Any) -> None:
        """Prints which parameters decay, runs with the flags, then prints the report and where the picture is.

        `plot` returns a figure, or {name: figure} of several.
        """
        console.plain()
        jax.config.update("jax_num_cpu_devices", os.cpu_count())  # a device for each core: a sweep uses all
        print(decays(), end="\n\n", flush=True)
        results = run(**self.values())
        figures = made if isinstance(made := plot(results), dict) else {self.name: made}
        paths = [str(plots.save(figure, self._out.value, f"{name}.png")) for name, figure in figures.items()]
        print(report(results))
        over = f"{self._flags['seeds'].value} seeds ({intervals.MEANING}). " if "seeds" in self._flags else ""
        print(f"{over}Picture{'s' * (len(paths) > 1)}: {' '.join(paths)}")


class MLP(nn.Module):
    """64 pixels → 128 → 128 → 10 logits; smooth, because at ReLU's kink rounding makes two equal runs diverge."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(n, 64) → (n, 10)."""
        for width in (128, 128):
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def fit(tx: Any, params: Any, loss_fn: Any, batches: Any, measure: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Trains on batches (points, steps, ...) with `loss_fn(params, batch)`.

    Returns:
      The last parameters, and curves (points,): the mean "training" loss, and the values of `measure(params)`.

    """

    def step(carry: Any, batch: Any) -> Any:
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def point(carry: Any, batches: Any) -> Any:
        carry, losses = jax.lax.scan(step, carry, batches)
        return carry, {"training": losses.mean(), **measure(carry[0])}

    (params, _), curves = jax.lax.scan(point, (params, tx.init(params)), batches)
    return params, curves


def sweep(train: Any, seeds: int, *, chunk: int | None = None, **axes: Any) -> Any:
    """An `xarray.Dataset` of every metric of `train(hparams, key)`; dimensions: the axes, "seed", "point" of curves.

    On an axis {label: numbers} `train` gets an array of the numbers, traced as numbers are.
    """
    rows = {axis: jnp.asarray(list(v.values())) for axis, v in axes.items() if isinstance(v, dict)}
    grid = axes | {axis: range(len(v)) for axis, v in rows.items()}
    traced = lambda hparams: hparams | {axis: v[hparams[axis]] for axis, v in rows.items()}
    used = jax.devices()[: os.cpu_count()]
    found = wd.sweep(lambda h, key: train(traced(h), key), grid, seeds=seeds, devices=used, chunk=chunk).data
    found = found.map(lambda v: v.rename({f"{v.name}_0": "point"}) if v.ndim == len(axes) + 2 else v)
    return found.assign_coords({axis: list(axes[axis]) for axis in rows})


def last(data: Any) -> Any:
    """The dataset with the last point of each curve."""
    return data.isel(point=-1)


def kinds(data: Any, *inner: str) -> Iterator[tuple[list[str], str, Any]]:
    """Of each kind of run on the axes but `inner`: the labels, a text such as "λ = 0.3", and its part of the data."""
    axes = [dim for dim in data.dims if dim in data.coords and dim not in ("seed", "point", *inner)]
    for kind in np.ndindex(*(data.sizes[axis] for axis in axes)):
        part = data.isel(dict(zip(axes, kind, strict=True)))
        values = [part[axis].item() for axis in axes]
        labels = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
        texts = (
            f"{NAMES.get(a, a)} = {x}" if isinstance(v, float) else x
            for a, v, x in zip(axes, values, labels, strict=True)
        )
        yield labels, ", ".join(texts), part


def table(data: Any, **columns: str) -> str:
    """A line for each kind of run: mean ± half of the 95 % interval of each column over seeds, in this format."""
    head = [NAMES.get(dim, dim) for dim in data.dims if dim in data.coords and dim != "seed"]
    rows = [[*labels, *(intervals.mean(r[c].values, f) for c, f in columns.items())] for labels, _, r in kinds(data)]
    return align([[*head, *columns], *rows])


def align(rows: list[list[str]]) -> str:
    """The rows with their cells padded to columns that are two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def change(values: Any, digits: str = "+.3f", **kind: Any) -> str:
    """How a kind of run differs from the first on its axes, paired over seeds: mean, interval, verdict."""
    gaps = values.sel(kind) - values.isel(dict.fromkeys(kind, 0))
    return intervals.change(gaps.values, digits)


def draw(panel: Any, values: Any, x: str = "point") -> None:
    """Draws mean and 95 % interval over seeds of every kind of run: bands over points, bars over another axis."""
    at = values[x].values + (x not in values.coords)  # points without coordinates are 1, 2, ...
    for i, (_, text, r) in enumerate(kinds(values, x)):
        runs = r.transpose("seed", x).values
        if x == "point":
            plots.band(panel, at, runs, text, plots.line(i))
        else:
            plots.bars(panel, np.arange(len(at)) + 0.1 * i, runs, plots.line(i), label=text)
    if x != "point":
        panel.set_xticks(range(len(at)), [f"{v:g}" for v in at])


def curves(data: Any, unit: str, /, x: str = "point", **panels: str) -> Any:
    """A figure with a panel for each metric over x, in `unit`s."""
    figure, axes = plots.figure(len(panels))
    for panel, (metric, text) in zip(axes, panels.items(), strict=True):
        draw(panel, data[metric], x)
        panel.set(xlabel=unit, ylabel=f"{text}; 95 % interval")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure
