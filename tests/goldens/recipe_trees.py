"""The parameters and gradients of the recorded recipes: names in PyTorch or Keras, our paths, shapes.

Weights have one shape in both, so nothing is transposed.
"""

import numpy as np

STEPS = 100
EVERY = 10  # the parameters after each tenth step are kept

GPT = {
    "transformer.wte.weight": ("wte/embedding", (5, 4)),
    "transformer.wpe.weight": ("wpe/embedding", (3, 4)),
    "transformer.h.0.ln_1.weight": ("h_0/ln_1/scale", (4,)),
    "transformer.h.0.ln_1.bias": ("h_0/ln_1/bias", (4,)),
    "transformer.h.0.attn.c_attn.weight": ("h_0/attn/c_attn/kernel", (4, 6)),
    "transformer.h.0.attn.c_attn.bias": ("h_0/attn/c_attn/bias", (6,)),
}
VIT = {
    "cls_token": ("cls_token", (1, 1, 4)),
    "pos_embed": ("pos_embed", (1, 3, 4)),
    "blocks.0.norm1.weight": ("blocks_0/norm1/scale", (4,)),
    "blocks.0.attn.qkv.weight": ("blocks_0/attn/qkv/kernel", (4, 6)),
    "blocks.0.attn.qkv.bias": ("blocks_0/attn/qkv/bias", (6,)),
    "head.weight": ("head/kernel", (4, 3)),
    "head.bias": ("head/bias", (3,)),
}
FINE_TUNED = {
    "cls_token": ("cls_token", (1, 1, 4)),
    "pos_embed": ("pos_embed", (1, 3, 4)),
    "patch_embed.proj.weight": ("patch_embed/proj/kernel", (3, 4)),
    "patch_embed.proj.bias": ("patch_embed/proj/bias", (4,)),
    "blocks.0.norm1.weight": ("blocks_0/norm1/scale", (4,)),
    "blocks.0.attn.qkv.weight": ("blocks_0/attn/qkv/kernel", (4, 6)),
    "blocks.1.norm1.weight": ("blocks_1/norm1/scale", (4,)),
    "blocks.1.attn.qkv.weight": ("blocks_1/attn/qkv/kernel", (4, 6)),
    "fc_norm.weight": ("fc_norm/scale", (4,)),
    "head.weight": ("head/kernel", (4, 3)),
    "head.bias": ("head/bias", (3,)),
}
RESNET = {
    "conv1.weight": ("conv1/kernel", (3, 3, 1, 2)),
    "bn1.weight": ("bn1/scale", (2,)),
    "bn1.bias": ("bn1/bias", (2,)),
    "fc.weight": ("fc/kernel", (4, 3)),
    "fc.bias": ("fc/bias", (3,)),
}
KERAS_VIT = {
    "patch_encoder/position_embedding/embeddings": ("position_embedding/embedding", (3, 4)),
    "layer_normalization/gamma": ("layer_normalization/scale", (4,)),
    "dense/kernel": ("dense/kernel", (4, 6)),
    "dense/bias": ("dense/bias", (6,)),
}
TREES = {
    "nano_gpt": GPT,
    "deit": VIT,
    "mae_fine_tuning": FINE_TUNED,
    "resnet50": RESNET,
    "run_clm": GPT,
    "keras_vit": KERAS_VIT,
}


def initial(recipe: str) -> dict[str, np.ndarray]:
    """By the framework's names; between 0.5 and 1.5, so that comparisons can be relative."""
    each = {}
    for k, (name, (_, shape)) in enumerate(TREES[recipe].items()):
        each[name] = 1 + 0.5 * np.sin(1.0 + 3 * k + np.arange(np.prod(shape))).reshape(shape)
    return each


def gradients(recipe: str, step: int) -> dict[str, np.ndarray]:
    """Fixed in advance, so that both sides see the same; their signs and sizes vary."""
    each = {}
    for k, (name, (_, shape)) in enumerate(TREES[recipe].items()):
        i = np.arange(np.prod(shape))
        each[name] = (np.cos(1.7 * step + 2.3 * i + k) * np.exp(np.sin(0.9 * i + 0.05 * step))).reshape(shape)
    return each


def flat(recipe: str, params: dict[str, np.ndarray]) -> np.ndarray:
    """All parameters in the order of the tree."""
    return np.concatenate([np.asarray(params[name]).ravel() for name in TREES[recipe]])
