"""Writes tests/goldens/torch_job.npz: PyTorch training runs at step 50, and the 50 steps after it.

    python tests/goldens/generate_torch_job.py

Run it where torch==2.13.0 is installed. The tests read only the file.

Each case is one run of 100 steps, in float64 and in float32. Gradients are those of the model's loss, rounded to
float16 before the optimizer sees them, so that the file can hold them exactly in two bytes each. Per case and dtype:
  job: JSON of the optimizer's class, its `state_dict()["param_groups"]`, its step counts, and the model's names,
    shapes and buffers, with `tied` names of one tensor;
  weights (6, n): all parameters at steps 50, 60, ..., 100, flat, in the order of `model.named_parameters()`;
  gradients (50, n): of steps 51 to 100, in the same order;
  one array (n,) per slot of the optimizer's state at step 50, in the same order.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn, optim

VOCABULARY, WIDTH, LENGTH = 6, 4, 4


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in self.qkv(self.ln_1(x)).chunk(3, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(-2))
        return x + torch.tanh(self.fc(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, WIDTH)
        self.h = nn.ModuleList([Block(), Block()])
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens)
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


def mlp_loss(model, dtype):
    x = torch.randn(16, 3, dtype=dtype)
    return nn.functional.cross_entropy(model(x), (x.prod(-1) > 0).long())


def transformer_loss(model, dtype):
    tokens = torch.randint(VOCABULARY, (8, LENGTH + 1)).cumsum(-1) % VOCABULARY
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def by_rank(model, **rest):
    """nanoGPT's groups: what has two axes decays. Their order isn't the model's."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, **rest},
    ]


CASES = {  # model, loss, model -> optimizer, whether a scheduler runs
    "sgd": (mlp, mlp_loss, lambda m: optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=1e-2), False),
    "adam": (mlp, mlp_loss, lambda m: optim.Adam(m.named_parameters(), 2e-3, weight_decay=1e-2), True),
    "adamw": (mlp, mlp_loss, lambda m: optim.AdamW(by_rank(m, lr=2e-3), 1e-3), False),
    "amsgrad": (mlp, mlp_loss, lambda m: optim.AdamW(m.parameters(), 1e-3, weight_decay=0.05, amsgrad=True), False),
    "transformer": (
        Transformer,
        transformer_loss,
        lambda m: optim.AdamW(by_rank(m, lr=1e-3, betas=(0.8, 0.95)), 2e-3, betas=(0.9, 0.95)),
        True,
    ),
}


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors]).numpy()


def snapshot(model, optimizer):
    """The job at this step, as JSON, and the optimizer's state by slot."""
    parameters, named = list(model.parameters()), dict(model.named_parameters(remove_duplicate=False))
    groups, ids = optimizer.state_dict()["param_groups"], {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            ids[p] = len(ids)
    slots = {
        slot: flat([optimizer.state[p][slot] for p in parameters]).astype(parameters[0].detach().numpy().dtype)
        for slot in optimizer.state[parameters[0]]
        if slot != "step"
    }
    job = {
        "torch": torch.__version__,
        "class": [type(optimizer).__module__, type(optimizer).__name__],
        "param_groups": groups,
        "indices": [ids[p] for p in parameters],
        "steps": [int(optimizer.state[p].get("step", -1)) for p in parameters],
        "shapes": {name: list(p.shape) for name, p in model.named_parameters()},
        "tied": {a: b for a, p in named.items() for b, q in model.named_parameters() if p is q and a != b},
        "buffers": {name: buffer.tolist() for name, buffer in model.named_buffers()},
    }
    return {"job": np.array(json.dumps(job)), **slots}


def run(build, loss, make, scheduled, dtype):
    torch.manual_seed(0)
    model = build().to(dtype)
    optimizer = make(model)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t / 50)) if scheduled else None
    weights, gradients, arrays = [], [], {}
    for step in range(1, 101):
        optimizer.zero_grad()
        loss(model, dtype).backward()
        for p in model.parameters():
            p.grad = p.grad.half().to(dtype)
        if step > 50:
            gradients.append(flat(p.grad for p in model.parameters()).astype(np.float16))
        optimizer.step()
        if schedule:
            schedule.step()
        if step == 50:
            arrays = snapshot(model, optimizer)
        if step >= 50 and step % 10 == 0:
            weights.append(flat(model.parameters()))
    return {"weights": np.stack(weights), "gradients": np.stack(gradients), **arrays}


def main():
    out = {}
    for name, case in CASES.items():
        for dtype in (torch.float64, torch.float32):
            for key, array in run(*case, dtype).items():
                out[f"{name}/{str(dtype).removeprefix('torch.')}/{key}"] = array
    np.savez_compressed(Path(__file__).with_name("torch_job.npz"), **out)


if __name__ == "__main__":
    main()
