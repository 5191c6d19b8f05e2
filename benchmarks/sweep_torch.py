"""The loop of `sweep.py` in PyTorch: `python sweep_torch.py WAY FILE DEVICE`. It needs only torch and NumPy."""

import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import serving
import torch


def main(way: str, path: str, device: str) -> None:
    """Serves the problem in a file."""
    torch.set_default_device({"gpu": "cuda"}.get(device, device))
    problem = {name: torch.as_tensor(array, device=torch.get_default_device()) for name, array in np.load(path).items()}
    x, y, rows = problem["x"], problem["y"].long(), problem["rows"].long()
    fused = way == "fused" or None  # None lets torch choose: a loop over parameters on a CPU, foreach on a GPU
    loss_fn = torch.nn.CrossEntropyLoss()

    def train_one(learning_rate: float, weight_decay: float, rows: torch.Tensor) -> float:
        width = problem["kernel1"].shape[0]
        model = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, 10),
        )
        with torch.no_grad():
            for i in range(3):
                model[2 * i].weight.copy_(problem[f"kernel{i}"].T)
                model[2 * i].bias.zero_()
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=fused)
        for batch in rows:
            optimizer.zero_grad()
            loss_fn(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            return float(loss_fn(model(x), y))

    rates = list(itertools.product(problem["learning_rate"].tolist(), problem["weight_decay"].tolist()))
    torch.set_num_threads(fastest(lambda rows: train_one(*rates[0], rows), rows) if device == "cpu" else 1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", file=sys.stderr)
    memory = serving.peak_bytes if device == "cpu" else torch.cuda.max_memory_allocated
    serving.serve(lambda points: [train_one(*pair, rows) for pair in rates[:points]], memory=memory)


def fastest(train: Callable[[torch.Tensor], Any], rows: torch.Tensor) -> int:
    """One thread or all, whichever trains faster."""
    spent = {}
    for threads in (1, os.cpu_count() or 1):
        torch.set_num_threads(threads)
        train(rows[:1])
        began = time.perf_counter()
        train(rows)
        spent[threads] = time.perf_counter() - began
    return min(spent, key=lambda threads: spent[threads])


if __name__ == "__main__":
    main(*sys.argv[1:])
