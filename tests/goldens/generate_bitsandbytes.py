"""Writes bitsandbytes.npz. Needs bitsandbytes and torch==2.13.0.

Its CPU step computes in float32 whatever the parameters are: `.float()` and states of torch.float32. Both names are
made to mean float64 before bitsandbytes is loaded, so that its own step runs in float64.
"""

from cases_bitsandbytes import BITSANDBYTES
from problem import save
from torch_runs import run_all


def double_floats() -> None:
    import torch

    torch.float = torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double


if __name__ == "__main__":
    double_floats()
    import bitsandbytes.optim

    runs = run_all(BITSANDBYTES, lambda call: getattr(bitsandbytes.optim, call.rpartition(".")[2]))
    save("bitsandbytes", ["bitsandbytes", "torch"], runs)
