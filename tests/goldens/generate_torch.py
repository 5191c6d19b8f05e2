"""Writes torch.npz, and torch_muon.npz with one larger orthogonalised matrix. Needs torch==2.13.0."""

from pathlib import Path

import numpy as np
from cases_torch import TORCH
from problem import save
from torch_runs import run_all

if __name__ == "__main__":
    import torch
    from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, EPS, _zeropower_via_newtonschulz

    save("torch", ["torch"], run_all(TORCH, lambda call: getattr(torch.optim, call.rpartition(".")[2])))
    matrix = np.random.Generator(np.random.PCG64(7)).standard_normal((64, 32)).astype(np.float32)
    out = _zeropower_via_newtonschulz(torch.tensor(matrix), (DEFAULT_A, DEFAULT_B, DEFAULT_C), 5, EPS)
    bits = out.contiguous().view(torch.int16).numpy().astype(np.uint16)
    np.savez_compressed(Path(__file__).with_name("torch_muon.npz"), matrix=matrix, bfloat16_bits=bits)
