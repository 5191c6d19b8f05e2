"""`to_torch_groups`: a mask found here as PyTorch's parameter groups."""

import pprint
from typing import NamedTuple

import jax.numpy as jnp
import optax

from wd_optax.hyperparams import check_number
from wd_optax.masking import masks, roles
from wd_optax.masking.masks import Mask
from wd_optax.porting.torch_job import NamedParameters, TorchParameter, read_names
from wd_optax.porting.torch_names import TorchNames, rename, sources

LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # names of leaves here and in PyTorch


class TorchGroups(NamedTuple):
    """PyTorch's parameter groups; prints as the Python that makes them of `model.named_parameters()`."""

    groups: tuple[tuple[float, tuple[str, ...]], ...]  # λ, and the names of its parameters
    lr: float | None

    def __str__(self) -> str:
        """Python source: `model` is the PyTorch model; leaves `groups`, and with `lr` an optimizer."""
        lines = ["parameters = dict(model.named_parameters())", "names = ["]
        lines += [f"    ({decay!r}, {_indented(names)})," for decay, names in self.groups]
        lines += [
            "]",
            "missing = set(parameters) ^ {name for _, group in names for name in group}",
            'assert not missing, f"in the model or in the groups, but not in both: {sorted(missing)}"',
            'groups = [{"params": [parameters[name] for name in group], "weight_decay": λ} for λ, group in names]',
        ]
        lines += [] if self.lr is None else [f"optimizer = torch.optim.AdamW(groups, lr={self.lr!r})"]
        return "\n".join(lines)


def to_torch_groups(
    params: optax.Params,
    mask: Mask = "weights",
    *,
    weight_decay: float,
    lr: float | None = None,
    names: TorchNames | None = None,
    named_parameters: NamedParameters = None,
) -> TorchGroups:
    """The parameter groups with which PyTorch decays what `mask` does: one per λ, multipliers included.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s.
      mask: as everywhere here, see `wd_optax.masking`.
      weight_decay: λ; a leaf with the multiplier m gets m·λ.
      lr: PyTorch's η, for an optimizer in what is printed.
      names: path -> PyTorch's name, a function or regex pairs that are all substituted in turn, such as
        [("layers_", "layers.")]. `/` is `.`, and `kernel`, `scale` and `embedding` are `weight` by themselves. With
        `named_parameters`, PyTorch's name -> path, as for `wd_optax.from_torch`.
      named_parameters: those of PyTorch's model, or their names, which are then matched as in `wd_optax.from_torch`.

    Returns:
      The groups; `print` them for the Python that makes them there.

    Raises:
      ValueError: where names don't fit, two leaves get one name, or parts of one PyTorch parameter different λ.

    Example:
      >>> import jax.numpy as jnp, wd_optax as wd
      >>> params = {"embed": {"embedding": jnp.ones((9, 2))}, "out": {"kernel": jnp.ones((2, 9)), "bias": jnp.ones(9)}}
      >>> mask = [("embed", 0.5), (".*", "weights")]
      >>> print(wd.to_torch_groups(params, mask, weight_decay=0.1, lr=1e-3))
      parameters = dict(model.named_parameters())
      names = [
          (0.05, ['embed.weight']),
          (0.0, ['out.bias']),
          (0.1, ['out.weight']),
      ]
      missing = set(parameters) ^ {name for _, group in names for name in group}
      assert not missing, f"in the model or in the groups, but not in both: {sorted(missing)}"
      groups = [{"params": [parameters[name] for name in group], "weight_decay": λ} for λ, group in names]
      optimizer = torch.optim.AdamW(groups, lr=0.001)
    """
    for name, value in {"weight_decay": weight_decay, "lr": 0.0 if lr is None else lr}.items():
        check_number(name, value)
    leaves = roles.parameters(params)
    decays = [_decay_of(row, float(weight_decay)) for row in masks.tabulate(mask, params, "to_torch_groups").rows]
    found: dict[str, tuple[float, str]] = {}
    for leaf, decay, own in zip(leaves, decays, _names_of_leaves(leaves, names, named_parameters), strict=True):
        for name in own:
            before, path = found.get(name, (decay, ""))
            if name in found and (named_parameters is None or before != decay):
                raise ValueError(
                    f"params: {path!r} and {leaf.path!r} are both {name!r} in PyTorch, of λ {before:g} and {decay:g}: "
                    + ("correct names" if named_parameters is None else "give them one multiplier")
                )
            found[name] = decay, leaf.path
    groups: dict[float, list[str]] = {}
    for name, (decay, _) in found.items():
        groups.setdefault(decay, []).append(name)
    return TorchGroups(tuple((decay, tuple(own)) for decay, own in groups.items()), None if lr is None else float(lr))


def _decay_of(row: masks.MaskRow, weight_decay: float) -> float:
    if not isinstance(row.multiplier, float):
        raise ValueError(f"mask: the multiplier of {row.path!r} is traced, and PyTorch's groups need numbers")
    return row.multiplier * weight_decay


def _names_of_leaves(
    leaves: list[roles.Parameter], names: TorchNames | None, named_parameters: NamedParameters
) -> list[list[str]]:
    """Per leaf its names in PyTorch."""
    if named_parameters is not None:
        torch = [TorchParameter(own, shape, None, {}) for own, shape in read_names(named_parameters)]
        return [[torch[i].name for i in own] for own in sources(torch, leaves, names)]
    trained = [leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else None for leaf in leaves]
    return [[] if leaf is None else [_default(new) for new in rename(leaf.path, names)] for leaf in trained]


def _default(path: str) -> str:
    layer, _, last = path.replace("/", ".").rpartition(".")
    return f"{layer}.{LAST.get(last, last)}" if layer else LAST.get(last, last)


def _indented(names: tuple[str, ...]) -> str:
    return pprint.pformat(list(names), width=100, compact=True).replace("\n", "\n     ")
