"""Steps of torch.optim for `step.py`, in a process that needs only torch and NumPy.

`python torch_steps.py cpu` reads lines of JSON, [method, arguments...], and answers each with a line of JSON.
"""

import functools
import math
import os
import sys
from typing import Any

import serving
import torch
import trees

RATES = {"lr": 1e-3, "weight_decay": 0.1}
OPTIMIZERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam_l2": torch.optim.Adam,
    "sgdw": functools.partial(torch.optim.SGD, momentum=0.9),  # torch's decay is coupled, but moves as many bytes
}

MOMENTS = {"adamw": 2, "adam_l2": 2, "sgdw": 1}  # arrays like the parameters in the state


class TorchSteps:
    """Times blocks of steps of one tree at a time. Parameters and state last for a block; gradients are reused."""

    def __init__(self, device: str) -> None:
        self.device, self.floor = {"gpu": "cuda"}.get(device, device), 0
        self.wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None

    def about(self) -> dict[str, Any]:
        """The version."""
        return {"versions": {"torch": torch.__version__}}

    def load(
        self, tree: str, optimizer: str, dtype: str, *, stream: int, without: list[str], text: str | None
    ) -> list[dict[str, Any]]:
        """Makes the gradients; returns the properties of each variant, on a CPU with one thread and with all.

        The arguments are those of `jax_steps.JaxSteps.load`.
        """
        del text
        self.grads: list[Any] = []  # of the tree before: both needn't fit
        tile, self.stream = torch.from_numpy(trees.tile()).to(self.device, getattr(torch, dtype)), stream
        self.grads = [self._leaf(tile, shape) for shape in trees.TREES[tree]().values()]
        kind = OPTIMIZERS.get(optimizer.removesuffix("_bf16"))
        make: dict[str, Any] = {
            f"torch {way}": functools.partial(kind, **RATES, **{way: True}) for way in ("fused", "foreach") if kind
        }
        self.make = {"stream, torch": None, "copy, torch": None} | make
        counts = sorted({1, os.cpu_count() or 1}) if self.device == "cpu" else [0]
        names = [name for name in self.make if not any(word in name for word in without)]
        self.variants = [(name, threads) for name in names for threads in counts]
        return [self._about(i, optimizer) for i in range(len(self.variants))]

    def _leaf(self, tile: Any, shape: tuple[int, ...]) -> Any:
        size = math.prod(shape)
        repeated = tile.repeat(-(-size // len(tile))) if size > len(tile) else tile
        return repeated[:size].clone().view(shape)  # the clone lets go of the rest

    def _about(self, variant: int, optimizer: str) -> dict[str, Any]:
        name, threads = self.variants[variant]
        moments = MOMENTS.get(optimizer.removesuffix("_bf16"), 0)
        step = (3 + 2 * moments) * sum(g.nbytes for g in self.grads)
        floor = step if self.make[name] else 8 * self.stream
        return {"variant": name, "floor": floor} | ({"threads": threads} if threads else {})

    def block(self, variant: int, steps: int) -> float:
        """Seconds per step."""
        name, threads = self.variants[variant]
        torch.set_num_threads(threads or torch.get_num_threads())
        if (make := self.make[name]) is None:
            return self._stream(name, steps)
        params = [g.clone().requires_grad_() for g in self.grads]
        for p, g in zip(params, self.grads, strict=True):
            p.grad = g
        return trees.timed(make(params).step, self.wait, steps)

    def _stream(self, name: str, steps: int) -> float:
        buffer = torch.ones(self.stream, device=self.device)
        other = torch.zeros_like(buffer)
        step = (lambda: other.copy_(buffer)) if name.startswith("copy") else (lambda: buffer.mul_(0.999))
        return trees.timed(step, self.wait, steps)


if __name__ == "__main__":
    serving.serve_methods(TorchSteps(*sys.argv[1:]))
