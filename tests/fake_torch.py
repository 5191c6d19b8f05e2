"""Objects with what `wd.from_torch` and `wd.torch_state` read of PyTorch's, made of arrays."""

from typing import Any

import numpy as np


class Tensor:
    """A parameter: hashed and compared by identity, as PyTorch's."""

    def __init__(self, shape: tuple[int, ...], requires_grad: bool = True):
        self.shape, self.requires_grad = tuple(shape), requires_grad


class Scalar:
    """A tensor of one number."""

    shape = ()

    def __init__(self, value: float):
        self.value = value

    def item(self) -> float:
        return self.value

    def __int__(self) -> int:
        return int(self.value)


class Optimizer:
    """A PyTorch optimizer: its groups and state."""

    def __init__(self, param_groups: list[dict[str, Any]], state: dict[Any, Any] | None = None):
        self.param_groups, self.state = param_groups, state or {}

    def state_dict(self) -> dict[str, Any]:
        """Parameters are numbered in the order of the groups."""
        order = {x: i for i, x in enumerate(x for group in self.param_groups for x in group["params"])}
        groups = [{**group, "params": [order[x] for x in group["params"]]} for group in self.param_groups]
        return {"state": {order[x]: slots for x, slots in self.state.items()}, "param_groups": groups}


def optimizer(name: str, param_groups: list[dict[str, Any]], state: Any = None, module: str = "torch.optim") -> Any:
    """An optimizer whose class says that it is `name` of `module`."""
    return type(name, (Optimizer,), {"__module__": module})(param_groups, state)


def model(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A model's named parameters."""
    return {name: Tensor(shape) for name, shape in shapes.items()}


def split(flat: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A flat array as one array per name."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = np.split(flat, ends[:-1])
    return {name: x.reshape(shape) for (name, shape), x in zip(shapes.items(), parts, strict=True)}
