"""Writes torch.npz. Needs torch==2.13.0."""

from cases_torch import TORCH
from problem import save
from torch_runs import run_all

if __name__ == "__main__":
    import torch

    save("torch", ["torch"], run_all(TORCH, lambda call: getattr(torch.optim, call.rpartition(".")[2])))
