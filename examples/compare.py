"""What the examples share that compare decays over seeds: flags, the training loop, the sweep, a table and curves."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import console
import intervals
import jax
import numpy as np
import optax
import plots
from absl import flags

import wd_optax as wd
from wd_optax.tables import align

flags.disclaim_key_flags()  # they belong to the example, in its --help too


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


def sweep(train: Any, seeds: int, **axes: Any) -> Any:
    """An `xarray.Dataset` of every metric of `train(hparams, key)`; dimensions: the axes, "seed", "point" of curves."""
    found = wd.sweep(train, axes, seeds=seeds).data
    return found.map(lambda v: v.rename({f"{v.name}_0": "point"}) if v.ndim == len(axes) + 2 else v)


def last(data: Any) -> Any:
    """The dataset with the last point of each curve."""
    return data.isel(point=-1)


def kinds(data: Any) -> Iterator[tuple[list[str], Any]]:
    """The labels of each kind of run on the axes, and its part of the dataset."""
    axes = [dim for dim in data.dims if dim not in ("seed", "point")]
    for kind in np.ndindex(*(data.sizes[axis] for axis in axes)):
        part = data.isel(dict(zip(axes, kind, strict=True)))
        yield [f"{v:g}" if isinstance(v := part[axis].item(), float) else str(v) for axis in axes], part


def table(data: Any, **columns: str) -> str:
    """A line for each kind of run: mean ± half of the 95 % interval of each column over seeds, in this format."""
    head = [{"weight_decay": "λ"}.get(str(dim), str(dim)) for dim in data.dims if dim not in ("seed", "point")]
    rows = [[*kind, *(intervals.mean(r[c].values, f) for c, f in columns.items())] for kind, r in kinds(data)]
    return align([[*head, *columns], *rows])


def change(values: Any, digits: str = "+.3f", **kind: Any) -> str:
    """How a kind of run differs from the first on its axes, paired over seeds: mean, interval, verdict."""
    gaps = values.sel(kind) - values.isel(dict.fromkeys(kind, 0))
    return intervals.change(gaps.values, digits)


def curves(data: Any, unit: str, /, **panels: str) -> Any:
    """A figure with a panel for each metric: mean and 95 % band of every kind of run over the points, in `unit`s."""
    figure, axes = plots.figure(len(panels))
    for panel, (metric, label) in zip(axes, panels.items(), strict=True):
        for i, (kind, r) in enumerate(kinds(data)):
            runs = r[metric].transpose("seed", "point").values
            plots.band(panel, np.arange(1, runs.shape[1] + 1), runs, ", ".join(kind), plots.line(i))
        panel.set(xlabel=unit, ylabel=f"{label}; band: 95 % interval")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure
