"""Writes pytorch_optimizer.npz. Needs pytorch-optimizer and torch==2.13.0."""

from cases_pytorch_optimizer import PYTORCH_OPTIMIZER
from problem import save
from torch_runs import run_all

if __name__ == "__main__":
    import pytorch_optimizer

    find = lambda call: getattr(pytorch_optimizer, call.partition(".")[2])
    save("pytorch_optimizer", ["pytorch_optimizer", "torch"], run_all(PYTORCH_OPTIMIZER, find))
