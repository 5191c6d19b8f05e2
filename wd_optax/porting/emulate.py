"""`emulate`: the optimizer of another framework by its own call, with that call's exact numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optax

from wd_optax import tables
from wd_optax.hyperparams import Schedule
from wd_optax.porting import (
    big_vision,
    bitsandbytes,
    composer,
    hugging_face,
    jax_frameworks,
    keras,
    megatron,
    modded_nanogpt,
    optimi,
    pytorch_optimizer,
    tf_addons,
    timm,
    timm_factory,
    timm_layerwise,
    timm_muon,
    torch_optim,
)
from wd_optax.porting.calls import Call, find
from wd_optax.porting.group_table import GroupTable
from wd_optax.porting.layers import LayerDecay
from wd_optax.porting.plan import make_plan

MODULES = (
    torch_optim, timm, timm_layerwise, timm_muon, timm_factory, hugging_face, bitsandbytes, composer, optimi, keras,
    tf_addons, big_vision, jax_frameworks, megatron, modded_nanogpt,
    pytorch_optimizer,
)  # fmt: skip
CALLS: Mapping[str, Call] = {known.name: known for module in MODULES for known in module.CALLS}


class CallRow(NamedTuple):
    """A call that `wd.emulate` knows."""

    call: str
    version: str  # whose defaults and numbers
    formula: str
    coupling: str  # the default first
    mask: str  # which parameters decay by default
    eps: str  # where ε is added
    golden: str  # how close its recorded runs are held, and how many; "no" without
    note: str


class CallTable(NamedTuple):
    """What `wd.emulate` knows; prints as a table, also in notebooks."""

    rows: tuple[CallRow, ...]

    def __str__(self) -> str:
        return tables.align(self._lines())

    def _repr_html_(self) -> str:
        return tables.to_html(self._lines())

    def _lines(self) -> list[tuple[str, ...]]:
        return [CallRow._fields, *self.rows]


class Emulate:
    """The optimizer that another framework's call builds, with its exact numbers: names and defaults are its own.

    `wd.emulate("torch.optim.AdamW", params=params, lr=1e-3, betas=(0.9, 0.95))` is PyTorch's AdamW.
    `wd.emulate.table()` lists the calls, `wd.emulate.explain(call, ...)` shows the groups, η and λ of every parameter.
    All about it is in the docstrings of these three.

    Example: PyTorch's SGD accumulates the decay in the momentum, and its first buffer is undamped.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> params = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}
      >>> tx = wd.emulate("torch.optim.SGD", params=params, lr=0.1, momentum=0.9, dampening=0.9, weight_decay=0.01)
      >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      >>> print(f"{updates['kernel'].item():.4f} {updates['bias'].item():.4f}")
      -0.0020 -0.0020
    """

    def __call__(
        self,
        call: str,
        *,
        params: optax.Params,
        groups: Sequence[Mapping[str, Any]] | None = None,
        layer_decay: float | LayerDecay | None = None,
        schedule: Schedule | None = None,
        **arguments: Any,
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer of another framework's call.

        Args:
          call: its name, "torch.optim.AdamW"; `print(wd.emulate.table())` lists all.
          params: the parameters that it is for, arrays or `jax.ShapeDtypeStruct`s.
          groups: as in torch, [{"params": regex, "weight_decay": 0.0, "lr": 1e-4}, ...]; every argument can be a
            group's own. The first regex found in a path decides; the rest is a group with `arguments` alone.
          layer_decay: a factor of η per layer below the last, 0.75 as in BEiT's fine-tuning, or a `wd.LayerDecay`.
          schedule: step -> factor; each group's η_t is its lr times the factor, as under torch's `LambdaLR`. Couplings
            that divide by the peak learning rate take lr for it.
          **arguments: the framework's own, with its defaults. η and λ may be numbers, arrays, or schedules
            step -> number.

        Returns:
          A transformation; for several groups a `wd.partition`, whose state is `state.inner_states[name]` with the
          names that `wd.emulate.explain` shows. η and λ given as numbers are leaves of each group's state: editing
          `learning_rate` there changes the group's step and decay. A schedule's leaf only records.

        Raises:
          ValueError: for an unknown call, with the nearest ones; what has no exact twin, with the reason and the
            nearest that has; groups and layers that don't fit the parameters.
          TypeError: for an argument that the framework's call doesn't have: the message lists its own.

        Example: nanoGPT's AdamW, which decays matrices only.
          >>> import jax.numpy as jnp, optax, wd_optax as wd
          >>> params = {"kernel": jnp.array([[2.0]]), "bias": jnp.array([2.0])}
          >>> tx = wd.emulate(
          ...     "torch.optim.AdamW", params=params, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1,
          ...     groups=[{"params": "bias", "weight_decay": 0.0}],
          ... )
          >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
          >>> print(f"{updates['kernel'].item():.4f}", updates["bias"].item() == 0)
          -0.0020 True
        """
        return make_plan(find(call, CALLS), params, groups, layer_decay, schedule, arguments).build()

    def explain(
        self,
        call: str,
        *,
        params: optax.Params,
        groups: Sequence[Mapping[str, Any]] | None = None,
        layer_decay: float | LayerDecay | None = None,
        schedule: Schedule | None = None,
        **arguments: Any,
    ) -> GroupTable:
        """The group, η and λ of every parameter under `wd.emulate` with the same arguments, and what decided.

        Args:
          call, params, groups, layer_decay, schedule, **arguments: as for `wd.emulate`.

        Returns:
          A table with a row per parameter: path, shape, group, learning_rate, weight_decay, because.

        Example:
          >>> import jax.numpy as jnp, wd_optax as wd
          >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
          >>> no_decay = [{"params": "bias", "weight_decay": 0.0, "name": "no decay"}]
          >>> print(wd.emulate.explain("torch.optim.AdamW", params=params, groups=no_decay, weight_decay=0.1))
          path    shape  group     lr     weight_decay  because
          bias    (2,)   no decay  0.001  0             groups[0] 'bias'
          kernel  (2,2)  rest      0.001  0.1           no group's regex is in its path
        """
        return make_plan(find(call, CALLS), params, groups, layer_decay, schedule, arguments).tabulate()

    def table(self, match: str = "") -> CallTable:
        """The calls that `wd.emulate` knows: version, formula, coupling, mask, ε's place, and what holds the numbers.

        Args:
          match: only calls whose name contains it: "torch", "AdamW".

        Returns:
          A table with a row per call.

        Example: in `torch.optim.Adam` the decay is L2, unless an argument decouples it.
          >>> import wd_optax as wd
          >>> row = wd.emulate.table("torch.optim.Adam").rows[0]
          >>> print(row.call, "|", row.coupling, "|", row.eps, "|", row.golden.split(",")[0])
          torch.optim.Adam | L2, or lr (decoupled_weight_decay=True) | √v̂ + ε | 1e-12
        """
        return CallTable(tuple(_row(call) for call in CALLS.values() if match in call.name))


emulate = Emulate()


def _row(call: Call) -> CallRow:
    chosen = [
        coupling + f" ({', '.join(f'{k}={v!r}' for k, v in own.items())})" * bool(i)
        for i, (coupling, own) in enumerate(call.couplings.items())
    ]
    golden = f"{call.accuracy}, {len(call.goldens)} runs" if call.goldens else "no"
    return CallRow(
        call.name, call.version, call.formula, ", or ".join(chosen), call.mask_rule, call.eps, golden, call.note
    )
