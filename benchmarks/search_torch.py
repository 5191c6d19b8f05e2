"""The loop of `search.py` in PyTorch, driven by Optuna: `python search_torch.py FILE TRIALS SPACE`.

It needs torch, NumPy and Optuna, and prints its seconds and the loss at one point as JSON.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np
import optuna
import torch


def main(path: str, trials: int, space: dict[str, tuple[float, float, bool]]) -> None:
    """Runs the study with one thread or all, whichever is faster for a trial."""
    problem = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    x, rows = problem["x"], problem["rows"].long()
    y, y_valid = problem["y"].long(), problem["y_valid"].long()
    loss_fn = torch.nn.CrossEntropyLoss()

    def train(hparams: dict[str, float], rows: torch.Tensor) -> float:
        width = problem["kernel1"].shape[0]
        sizes = [(x.shape[1], width), (width, width), (width, 10)]
        layers: list[Any] = [layer for size in sizes for layer in (torch.nn.Linear(*size), torch.nn.ReLU())][:-1]
        model = torch.nn.Sequential(*layers)
        with torch.no_grad():
            for i in range(3):
                model[2 * i].weight.copy_(problem[f"kernel{i}"].T)
                model[2 * i].bias.zero_()
        betas = (1 - hparams["one_minus_b1"], 1 - hparams["one_minus_b2"])
        decay, peak = hparams["weight_decay"], hparams["learning_rate"]
        optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=betas, weight_decay=decay, fused=True)
        warm = max(hparams["warm_up"] * len(problem["rows"]), 1.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min((t + 1) / warm, 1.0))
        for batch in rows:
            optimizer.zero_grad()
            loss_fn(model(x[batch]), y[batch]).backward()
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            return float(loss_fn(model(problem["x_valid"]), y_valid))

    point = {name: (low * high) ** 0.5 if log else (low + high) / 2 for name, (low, high, log) in space.items()}
    spent = {}
    for threads in (1, os.cpu_count() or 1):
        torch.set_num_threads(threads)
        train(point, rows[:1])
        began = time.perf_counter()
        loss = train(point, rows)
        spent[threads] = time.perf_counter() - began
    torch.set_num_threads(min(spent, key=lambda threads: spent[threads]))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(low, high, log=log) for name, (low, high, log) in space.items()
    }
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    began = time.perf_counter()
    for _ in range(trials):
        trial = study.ask(given)
        study.tell(trial, train(trial.params, rows))
    answer = {"seconds": time.perf_counter() - began, "trials": trials, "threads": torch.get_num_threads()}
    print(json.dumps(answer | {"point": point, "loss": loss, "version": f"torch {torch.__version__}"}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
