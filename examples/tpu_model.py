"""The transformer of `tpu_run.py` and its sharding, as pure functions of a parameter tree."""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ASCII = 128


class Size(NamedTuple):
    """Sizes of the model and the batch."""

    layers: int
    width: int
    heads: int
    context: int
    batch_size: int
    accumulate: int


def make_mesh(axes: str | None, devices: Any, size: Size) -> Mesh:
    """Mesh of the first devices, data × model; raises unless all sharded axes divide evenly."""
    axes = axes or f"{len(devices)}x1"
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", axes):
        raise ValueError(f"--mesh={axes}: write DATAxMODEL, two numbers of devices such as --mesh=4x2")
    rows, columns = map(int, axes.split("x"))
    if rows * columns > len(devices) or (jax.process_count() > 1 and rows * columns < len(devices)):
        raise ValueError(f"--mesh={axes}: {len(devices)} devices are available: try --mesh={len(devices)}x1")
    divisors = {"batch_size": rows * size.accumulate, "width": math.lcm(rows, size.heads), "heads": columns}
    for flag, parts in divisors.items():
        if (number := getattr(size, flag)) % parts:
            multiple = math.ceil(number / parts) * parts
            raise ValueError(f"--{flag}={number} isn't divisible by {parts}, as --mesh={axes} requires: try {multiple}")
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((rows, columns), ("data", "model"), auto, devices=devices[: rows * columns])


def parameters(size: Size, dtype: Any, mesh: Mesh) -> Any:
    """Shape and sharding of every parameter; those in `blocks` are stacked over the layers."""
    n, d, h = size.layers, size.width, size.heads
    table = {
        "tokens": {"embedding": ((ASCII, d), P(None, "data"))},
        "positions": {"embedding": ((1, size.context, d), P(None, None, "data"))},
        "blocks": {
            "attention_norm": {"scale": ((n, d), P())},
            "query_key_value": {"kernel": ((n, d, 3, h, d // h), P(None, "data", None, "model"))},
            "output": {"kernel": ((n, h, d // h, d), P(None, "model", None, "data"))},
            "mlp_norm": {"scale": ((n, d), P())},
            "up": {"kernel": ((n, d, 4 * d), P(None, "data", "model"))},
            "down": {"kernel": ((n, 4 * d, d), P(None, "model", "data"))},
        },
        "norm": {"scale": ((d,), P())},
        "logits": {"kernel": ((d, ASCII), P("data", None))},
    }
    leaf = lambda entry: jax.ShapeDtypeStruct(entry[0], dtype, sharding=NamedSharding(mesh, entry[1]))
    return jax.tree.map(leaf, table, is_leaf=lambda x: isinstance(x, tuple))


def sharded(tree: Any, params: Any) -> Any:
    """Shapes of the optimizer's state: leaves that mirror a parameter are sharded like it, scalars are replicated."""
    known = [(jax.tree_util.keystr(path), p) for path, p in jax.tree.leaves_with_path(params)]
    replicated = NamedSharding(known[0][1].sharding.mesh, P())

    def leaf(path: Any, s: Any) -> Any:
        key = jax.tree_util.keystr(path)
        mirrored = (p.sharding for name, p in known if key.endswith(name) and p.shape == s.shape)
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=next(mirrored, replicated))

    return jax.tree.map_with_path(leaf, tree)


def initial(params: Any, seed: int) -> Any:
    """Weights from N(0, 0.02²), scales of 1: the same bits for any sharding."""
    draw = lambda key, p: (0.02 * jax.random.normal(key, p.shape)).astype(p.dtype)
    start = lambda path, key, p: jnp.ones(p.shape, p.dtype) if path[-1].key == "scale" else draw(key, p)
    return jax.tree.map_with_path(start, optax.tree.split_key_like(jax.random.key(seed), params), params)


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """RMSNorm, in float32."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + 1e-6)).astype(x.dtype) * scale[None, None]


def block(h: jax.Array, p: Any) -> jax.Array:
    """Causal self-attention, then an MLP: (batch, context, width) → the same."""
    q, k, v = jnp.einsum("btd,dche->cbthe", norm(h, p["attention_norm"]["scale"]), p["query_key_value"]["kernel"])
    h += jnp.einsum("bthe,hed->btd", jax.nn.dot_product_attention(q, k, v, is_causal=True), p["output"]["kernel"])
    return h + jax.nn.gelu(norm(h, p["mlp_norm"]["scale"]) @ p["up"]["kernel"]) @ p["down"]["kernel"]


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of the characters y that follow x, both (batch, context); activations are sharded by rows.

    Look-ups are one-hot products: the gradient of indexing, a scatter-add, isn't deterministic on GPUs.
    """
    place = lambda h: jax.lax.with_sharding_constraint(h, P("data"))
    table = params["tokens"]["embedding"]
    h = place(jax.nn.one_hot(x, ASCII, dtype=table.dtype) @ table + params["positions"]["embedding"])
    h, _ = jax.lax.scan(jax.checkpoint(lambda h, p: (place(block(h, p)), None)), h, params["blocks"])
    logits = (norm(h, params["norm"]["scale"]) @ params["logits"]["kernel"]).astype(jnp.float32)
    return optax.softmax_cross_entropy(logits, jax.nn.one_hot(y, ASCII, dtype=jnp.float32)).mean()
