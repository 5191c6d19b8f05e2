"""Steps of torch.optim for `step.py`, in a process that needs only torch and NumPy.

`python torch_steps.py cpu` reads lines of JSON, [method, arguments...], and answers each with a line of JSON.
"""

import functools
import json
import os
import sys
from typing import Any

import torch
import trees

RATES = {"lr": 1e-3, "weight_decay": 0.1}
OPTIMIZERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam_l2": torch.optim.Adam,
    "sgdw": functools.partial(torch.optim.SGD, momentum=0.9),  # torch's decay is coupled, but moves as many bytes
}


class TorchSteps:
    """Times blocks of steps of one tree at a time. Parameters and state last for a block; gradients are reused."""

    def __init__(self, device: str) -> None:
        self.device, self.floor = device, 0
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def load(self, tree: str, optimizer: str, dtype: str) -> list[dict[str, Any]]:
        """Draws the gradients; returns the properties of each variant, with one thread and with all."""
        drawn = trees.values(trees.TREES[tree]()).values()
        self.grads = [torch.from_numpy(x).to(self.device, getattr(torch, dtype)) for x in drawn]
        kind = OPTIMIZERS.get(optimizer.removesuffix("_bf16"))
        make: dict[str, Any] = {
            f"torch {way}": functools.partial(kind, **RATES, **{way: True}) for way in ("fused", "foreach") if kind
        }
        make["stream, torch"] = None
        self.make, counts = make, sorted({1, os.cpu_count() or 1})
        self.variants = [(name, threads) for name in make for threads in counts]
        return [self._about(i) for i in range(len(self.variants))]

    def _about(self, variant: int) -> dict[str, Any]:
        self.block(variant, 1)
        name, threads = self.variants[variant]
        return {"variant": name, "threads": threads, "floor": self.floor}

    def block(self, variant: int, steps: int) -> float:
        """Seconds per step; sets `floor` to the bytes that a step must move."""
        name, threads = self.variants[variant]
        torch.set_num_threads(threads)
        make = self.make[name]
        if make is None:
            buffer = torch.ones(trees.STREAM, device=self.device)
            self.floor = 2 * buffer.nbytes
            return trees.timed(lambda: buffer.mul_(0.999), self.wait, steps)
        params = [g.clone().requires_grad_() for g in self.grads]
        for p, g in zip(params, self.grads, strict=True):
            p.grad = g
        optimizer = make(params)
        seconds = trees.timed(optimizer.step, self.wait, steps)
        state = [x.nbytes for of in optimizer.state.values() for x in of.values() if torch.is_tensor(x)]
        self.floor = 3 * sum(g.nbytes for g in self.grads) + 2 * sum(state)
        return seconds


if __name__ == "__main__":
    steps = TorchSteps(*sys.argv[1:])
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(steps, method)(*arguments)), flush=True)
