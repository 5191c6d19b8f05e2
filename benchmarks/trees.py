"""Shared by all benchmark processes, without any framework: the shapes of well-known models, and timing.

A tree is {path: shape}, with paths as in Flax.
"""

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Tree = dict[str, tuple[int, ...]]
TILE = 2**22  # normally distributed numbers that every process draws and repeats in its leaves


def _layer(path: str, kernel: tuple[int, ...], bias: tuple[int, ...]) -> Tree:
    return {f"{path}/kernel": kernel, f"{path}/bias": bias}


def _norm(path: str, width: int) -> Tree:
    return {f"{path}/scale": (width,), f"{path}/bias": (width,)}


def _blocks(layers: int, width: int) -> Tree:
    """Pre-norm transformer blocks, with fused queries, keys and values: 12 leaves each."""
    tree: Tree = {}
    for i in range(layers):
        at = f"block{i}"
        tree |= _norm(f"{at}/norm1", width) | _layer(f"{at}/qkv", (width, 3 * width), (3 * width,))
        tree |= _layer(f"{at}/out", (width, width), (width,)) | _norm(f"{at}/norm2", width)
        tree |= _layer(f"{at}/up", (width, 4 * width), (4 * width,))
        tree |= _layer(f"{at}/down", (4 * width, width), (width,))
    return tree


def gpt2(layers: int = 12, width: int = 768) -> Tree:
    """GPT-2 small, output tied to the embedding: Radford et al. 2019."""
    tree: Tree = {"wte/embedding": (50257, width), "wpe/embedding": (1024, width)}
    return tree | _blocks(layers, width) | _norm("norm", width)


def vit(layers: int = 12, width: int = 768, patch: int = 16, classes: int = 1000) -> Tree:
    """ViT-B/16 for images of 224 × 224: Dosovitskiy et al. 2021, arXiv 2010.11929."""
    tree: Tree = {"cls": (1, 1, width), "pos_embedding": (1, 1 + (224 // patch) ** 2, width)}
    tree |= _layer("patches", (patch, patch, 3, width), (width,)) | _blocks(layers, width)
    return tree | _norm("norm", width) | _layer("head", (width, classes), (classes,))


def resnet(stages: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> Tree:
    """ResNet-50: He et al. 2016, arXiv 1512.03385."""

    def conv(path: str, size: int, inputs: int, outputs: int) -> Tree:
        return {f"{path}/kernel": (size, size, inputs, outputs)} | _norm(f"{path}_norm", outputs)

    tree, inputs = conv("stem", 7, 3, 64), 64
    for stage, blocks in enumerate(stages):
        width = 64 * 2**stage
        for block in range(blocks):
            at = f"stage{stage}/block{block}"
            tree |= conv(f"{at}/conv1", 1, inputs, width) | conv(f"{at}/conv2", 3, width, width)
            tree |= conv(f"{at}/conv3", 1, width, 4 * width)
            if not block:
                tree |= conv(f"{at}/shortcut", 1, inputs, 4 * width)
            inputs = 4 * width
    return tree | _layer("head", (inputs, classes), (classes,))


def mlp(widths: tuple[int, ...] = (784, 128, 10)) -> Tree:
    """Dense layers."""
    tree: Tree = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        tree |= _layer(f"dense{i}", (inputs, outputs), (outputs,))
    return tree


def llama(layers: int = 32, width: int = 4096, hidden: int = 11008, vocabulary: int = 32000) -> Tree:
    """Llama 2 7B, with an output of its own: Touvron et al. 2023, arXiv 2307.09288. 9 leaves per layer."""
    tree: Tree = {"embed/embedding": (vocabulary, width)}
    for i in range(layers):
        at = f"layers{i}"
        tree |= {f"{at}/attention/{name}/kernel": (width, width) for name in ("q", "k", "v", "o")}
        tree |= {f"{at}/mlp/{name}/kernel": (width, hidden) for name in ("gate", "up")}
        tree |= {f"{at}/mlp/down/kernel": (hidden, width)}
        tree |= {f"{at}/{name}/scale": (width,) for name in ("attention_norm", "mlp_norm")}
    return tree | {"norm/scale": (width,), "head/kernel": (width, vocabulary)}


def many(leaves: int, size: int = 1000) -> Tree:
    """Equal leaves, every other one a bias."""
    return {f"layer{i // 2}/{('kernel', 'bias')[i % 2]}": (size,) for i in range(leaves)}


def llama3(layers: int, width: int, hidden: int, *, stacked: bool = False) -> Tree:
    """Llama 3, with 8 heads of 128 for keys and values: Grattafiori et al. 2024, arXiv 2407.21783, table 3.

    Unrolled there are 9 leaves per layer; stacked, layers are axis 0 of 9 leaves, as `scan` has them.
    """
    keys, words = 8 * 128, 128_256
    layer: Tree = {f"attention/{name}/kernel": (width, width) for name in ("wq", "wo")}
    layer |= {f"attention/{name}/kernel": (width, keys) for name in ("wk", "wv")}
    layer |= {f"feed_forward/{name}/kernel": (width, hidden) for name in ("w1", "w3")}
    layer |= {"feed_forward/w2/kernel": (hidden, width)}
    layer |= {"attention_norm/scale": (width,), "ffn_norm/scale": (width,)}
    ends: Tree = {"embed/embedding": (words, width), "norm/scale": (width,), "lm_head/kernel": (width, words)}
    return ends | (_stack("layers", layers, layer) if stacked else _unroll("layers", layers, layer))


def deepseek_v3(layers: int = 61, dense: int = 3, experts: int = 256) -> Tree:
    """DeepSeek-V3 without its second head, stacked: DeepSeek-AI 2024, arXiv 2412.19437, section 4.2.

    Latent attention, `dense` layers with an MLP, then layers with one shared expert and `experts` routed ones.
    """
    width, heads, words = 7168, 128, 129_280
    queries, latents, rotary, each = 1536, 512, 64, 128
    attention: Tree = {
        "attention/q_a/kernel": (width, queries),
        "attention/q_a_norm/scale": (queries,),
        "attention/q_b/kernel": (queries, heads * (each + rotary)),
        "attention/kv_a/kernel": (width, latents + rotary),
        "attention/kv_a_norm/scale": (latents,),
        "attention/kv_b/kernel": (latents, heads * 2 * each),
        "attention/out/kernel": (heads * each, width),
        "attention_norm/scale": (width,),
        "mlp_norm/scale": (width,),
    }
    mixture: Tree = {"router/kernel": (width, experts), "router/bias": (experts,)}
    mixture |= {f"shared/{path}": shape for path, shape in _gated(width, 2048).items()}
    mixture |= {f"experts/{path}": (experts, *shape) for path, shape in _gated(width, 2048).items()}
    mlp: Tree = {f"mlp/{path}": shape for path, shape in _gated(width, 18_432).items()}
    ends: Tree = {"embed/embedding": (words, width), "norm/scale": (width,), "lm_head/kernel": (width, words)}
    stacks = _stack("dense_layers", dense, attention | mlp) | _stack("moe_layers", layers - dense, attention | mixture)
    return ends | stacks


def _gated(width: int, hidden: int) -> Tree:
    """An MLP with a gate."""
    return {"gate/kernel": (width, hidden), "up/kernel": (width, hidden), "down/kernel": (hidden, width)}


def _stack(at: str, layers: int, layer: Tree) -> Tree:
    return {f"{at}/{path}": (layers, *shape) for path, shape in layer.items()}


def _unroll(at: str, layers: int, layer: Tree) -> Tree:
    return {f"{at}/{i}/{path}": shape for i in range(layers) for path, shape in layer.items()}


def blocks(leaves: int) -> Tree:
    """Layers of two kernels, two biases and a norm's scale, of four sizes."""
    tree: Tree = {}
    for i in range(leaves // 5):
        width = 64 * (1 + i % 4)
        tree |= _layer(f"layer_{i}/in", (width, 4 * width), (4 * width,)) | {f"layer_{i}/norm/scale": (width,)}
        tree |= _layer(f"layer_{i}/out", (4 * width, width), (width,))
    return tree


TREES: dict[str, Callable[[], Tree]] = {
    "leaf": lambda: {"kernel": (8192, 8192)},
    "leaf256": lambda: {"kernel": (16384, 16384)},
    "gpt2": gpt2,
    "llama7b": llama,
    "many": lambda: many(2000),
    "mlp": mlp,
    "resnet50": resnet,
    "vit_b16": vit,
    "tiny": lambda: mlp((4, 3)),  # for tests of the benchmark
}


def size(tree: Tree) -> int:
    """Parameters in a tree."""
    return sum(map(math.prod, tree.values()))


def tile() -> Any:
    """Normally distributed float32 numbers, the same in every process; large trees repeat them on their device."""
    return np.random.default_rng(0).standard_normal(TILE, np.float32)


def timed(step: Callable[[], Any], wait: Callable[[], Any], steps: int) -> float:
    """Seconds per step over one block, after a fifth as many warm-up steps; `wait` blocks until all are done."""
    for _ in range(1 + steps // 5):
        step()
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - began) / steps
