"""What `"weights"` decays, leaf by leaf, on the parameter trees people have.

A case is a tree and, per role, the paths that must get it. Every leaf is matched by exactly one
role; a leaf that nothing matches fails. Flax and Equinox trees are built by their own layers
under `jax.eval_shape`; other libraries' trees are written down as `path shape role`.
F2, F9 and F10 are footguns of the same number: NNX's `.value`, two-dimensional attention
biases, stacked norm scales.
"""

import ast
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.core
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from helpers import shape

import wd_optax as wd
from wd_optax import masking
from wd_optax.masking.roles import ROLES

STACK = 3  # layers in a stack
KEY = jax.random.key(0)
X = jnp.ones((1, 4, 4), jnp.float32)
CARRY = jnp.ones((1, 3), jnp.float32)


# --- Builders: each returns a tree of shapes, without computing anything.


def linen(module: nn.Module, *inputs: Any, **kwargs: Any) -> Any:
    return jax.eval_shape(lambda: module.init(KEY, *inputs, **kwargs))["params"]


def module_nnx(build: Callable[[nnx.Rngs], Any]) -> nnx.Module:
    return nnx.eval_shape(lambda: build(nnx.Rngs(0)))


def state(build: Callable[[nnx.Rngs], Any]) -> nnx.State:
    return nnx.state(module_nnx(build), nnx.Param)


def equinox(build: Callable[[jax.Array], Any]) -> Any:
    return eqx.filter_eval_shape(lambda: eqx.filter(build(KEY), eqx.is_inexact_array))


class Block(nn.Module):
    """One transformer-like linen layer with the norms and biases that ranks get wrong."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        x = nn.MultiHeadAttention(2, normalize_qk=True, name="attn")(nn.LayerNorm()(x))
        x = nn.WeightNorm(nn.Dense(4))(nn.GroupNorm(2)(x))
        x = nn.BatchNorm(use_running_average=True)(nn.PReLU()(x))
        return nn.RMSNorm()(x), None


class NNXBlock(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.attn = nnx.MultiHeadAttention(2, 4, normalize_qk=True, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs))
        self.wn = nnx.WeightNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.lora_proj = nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)
        self.act = nnx.PReLU()


def nnx_vmapped(rngs: nnx.Rngs) -> NNXBlock:
    return nnx.split_rngs(splits=STACK)(nnx.vmap(NNXBlock))(rngs)


def nnx_scanned(rngs: nnx.Rngs) -> nnx.Module:
    @nnx.split_rngs(splits=STACK)
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def build(carry: jax.Array, rngs: nnx.Rngs) -> tuple[jax.Array, nnx.Module]:
        return carry, nnx.Sequential(nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs))

    return build(jnp.zeros(()), rngs)[1]


class EqxBlock(eqx.Module):
    """An Equinox layer; its second norm hides in a Sequential, where only shapes distinguish it."""

    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.RMSNorm
    mlp: eqx.nn.Sequential
    cell: eqx.nn.GRUCell
    conv: eqx.nn.Conv1d
    wn: eqx.nn.WeightNorm

    def __init__(self, key: jax.Array):
        self.attention = eqx.nn.MultiheadAttention(2, 4, use_query_bias=True, key=key)
        self.norm = eqx.nn.RMSNorm(4, use_bias=False)
        self.mlp = eqx.nn.Sequential(
            [eqx.nn.Linear(4, 4, key=key), eqx.nn.LayerNorm(4), eqx.nn.GroupNorm(2, 4), eqx.nn.PReLU()]
        )
        self.cell = eqx.nn.GRUCell(4, 3, key=key)
        self.conv = eqx.nn.Conv1d(4, 3, 2, key=key)
        self.wn = eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=key))


def eqx_stack(key: jax.Array) -> EqxBlock:
    return eqx.filter_vmap(EqxBlock)(jax.random.split(key, STACK))


class Pair(NamedTuple):
    w: Any
    b: Any


@flax.struct.dataclass
class StructNorm:
    scale: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any
    norm: StructNorm


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass
class Keyless:
    """A pytree that gives JAX no names; they are its attributes'."""

    first: Any
    second: Any

    def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
        return (self.first, self.second), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, Any]) -> "Keyless":
        return cls(*children)


# --- Trees of layers: role -> regular expression for the whole path.

ATTENTION = {
    "weight": r"(query|key|value|out)/kernel",
    "bias": r"(query|key|value|out)/bias",
    "norm": r"(query|key)_ln/scale",
}
KERNEL_BIAS = {"weight": r"kernel", "bias": r"bias"}
SCALE_BIAS = {"norm": r"scale", "bias": r"bias"}
BLOCK = {
    "weight": r"(attn/(query|key|value|out)|Dense_0)/kernel",
    "bias": r"(attn/(query|key|value|out)|Dense_0|(Layer|Group|Batch)Norm_0)/bias",
    "norm": r"((Layer|Group|Batch|RMS)Norm_0|attn/(query|key)_ln)/scale|WeightNorm_0/Dense_0/kernel/scale",
    "other": r"PReLU_0/negative_slope",
}
NNX_BLOCK = {
    "weight": r"(attn/(query|key|value|out)|mlp/layers/1|wn/layer_instance|lora_proj)/kernel|lora_proj/lora/lora_[ab]",
    "bias": r"(attn/(query|key|value|out)|mlp/layers/[01]|wn/layer_instance|lora_proj|norm)/bias",
    "norm": r"(attn/(query|key)_ln|mlp/layers/0|norm)/scale|wn/scales/kernel",  # a Param since flax 0.12.12
    "other": r"act/negative_slope",
}
EQX_BLOCK = {
    "weight": r"(attention/\w+_proj|mlp/layers/0|conv|wn/layer)/weight|cell/weight_[ih]h",
    "bias": r"(attention/query_proj|mlp/layers/[012]|conv|wn/layer)/bias|cell/bias(_n)?",
    "norm": r"(norm|mlp/layers/[12])/weight|wn/g",
    "other": r"mlp/layers/3/negative_slope",
}


def nnx_scales() -> dict[str, str]:
    """The scales of NNX's WeightNorm are trained since flax 0.12.12."""
    flat = nnx.to_flat_state(state(lambda r: nnx.WeightNorm(nnx.Linear(4, 3, rngs=r), rngs=r)))
    return {"norm": r"scales/kernel"} if any(path[0] == "scales" for path, _ in flat) else {}


def stacked(module: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    return nn.vmap(module, in_axes=None, axis_size=STACK, variable_axes={"params": 0}, split_rngs={"params": True})(
        *args, **kwargs
    )


def partitioned_dense() -> nn.Module:
    kernel = nn.with_partitioning(nn.initializers.zeros, (None, "model"))
    return nn.Dense(3, kernel_init=kernel, bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("model",)))


def rnn_pair(cell: type, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return nn.RNN(cell(*args, **kwargs)), nn.RNN(cell(*args, **kwargs))


LAYERS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    # linen
    "linen attention (F9)": (lambda: linen(nn.MultiHeadAttention(2, normalize_qk=True), X), ATTENTION),
    "linen dot-product attention (F9)": (
        lambda: linen(nn.MultiHeadDotProductAttention(2, normalize_qk=True), X, X),
        ATTENTION,
    ),
    "linen Dense": (lambda: linen(nn.Dense(3), X), KERNEL_BIAS),
    "linen DenseGeneral, 2-D bias": (lambda: linen(nn.DenseGeneral((2, 3)), X), KERNEL_BIAS),
    "linen Einsum, 2-D bias": (lambda: linen(nn.Einsum((4, 2, 3), "abc,cde->abde"), X), KERNEL_BIAS),
    "linen Conv": (lambda: linen(nn.Conv(3, (2,)), X), KERNEL_BIAS),
    "linen ConvTranspose": (lambda: linen(nn.ConvTranspose(3, (2,)), X), KERNEL_BIAS),
    "linen ConvLocal, 2-D bias": (lambda: linen(nn.ConvLocal(3, (2,)), X), KERNEL_BIAS),
    "linen Embed": (lambda: linen(nn.Embed(3, 2), jnp.ones((1,), int)), {"embedding": r"embedding"}),
    "linen LSTMCell": (
        lambda: linen(nn.LSTMCell(3), (CARRY, CARRY), X[:, 0]),
        {"weight": r"[ih][ifgo]/kernel", "bias": r"h[ifgo]/bias"},
    ),
    "linen OptimizedLSTMCell": (
        lambda: linen(nn.OptimizedLSTMCell(3), (CARRY, CARRY), X[:, 0]),
        {"weight": r"[ih][ifgo]/kernel", "bias": r"h[ifgo]/bias"},
    ),
    "linen GRUCell": (
        lambda: linen(nn.GRUCell(3), CARRY, X[:, 0]),
        {"weight": r"[ih][rzn]/kernel", "bias": r"(i[rzn]|hn)/bias"},
    ),
    "linen ConvLSTMCell": (
        lambda: linen(nn.ConvLSTMCell(3, (2,)), (jnp.ones((1, 4, 3), jnp.float32),) * 2, X),
        {"weight": r"[ih]h/kernel", "bias": r"[ih]h/bias"},
    ),
    "linen Bidirectional": (
        lambda: linen(nn.Bidirectional(*rnn_pair(nn.GRUCell, 3)), X),
        {"weight": r"(for|back)ward_rnn/cell/[ih][rzn]/kernel", "bias": r"(for|back)ward_rnn/cell/(i[rzn]|hn)/bias"},
    ),
    "linen BatchNorm": (lambda: linen(nn.BatchNorm(use_running_average=True), X), SCALE_BIAS),
    "linen LayerNorm": (lambda: linen(nn.LayerNorm(), X), SCALE_BIAS),
    "linen LayerNorm over two axes": (
        lambda: linen(nn.LayerNorm(reduction_axes=(1, 2), feature_axes=(1, 2)), X),
        SCALE_BIAS,
    ),
    "linen RMSNorm": (lambda: linen(nn.RMSNorm(), X), {"norm": r"scale"}),
    "linen GroupNorm": (lambda: linen(nn.GroupNorm(2), X), SCALE_BIAS),
    "linen InstanceNorm": (lambda: linen(nn.InstanceNorm(), X), SCALE_BIAS),
    "linen WeightNorm": (
        lambda: linen(nn.WeightNorm(nn.Dense(3)), X),
        {"weight": r"layer_instance/kernel", "bias": r"layer_instance/bias", "norm": r"layer_instance/kernel/scale"},
    ),
    "linen WeightNorm of everything": (
        lambda: linen(nn.WeightNorm(nn.Dense(3), variable_filter=None), X),
        {
            "weight": r"layer_instance/kernel",
            "bias": r"layer_instance/bias",
            "norm": r"layer_instance/(kernel|bias)/scale",
        },
    ),
    "linen SpectralNorm": (
        lambda: linen(nn.SpectralNorm(nn.Dense(3)), X, update_stats=False),
        {"weight": r"layer_instance/kernel", "bias": r"layer_instance/bias"},
    ),
    "linen PReLU": (lambda: linen(nn.PReLU(), X), {"other": r"negative_slope"}),
    "linen Sequential": (
        lambda: linen(nn.Sequential([nn.Dense(3), nn.LayerNorm()]), X),
        {"weight": r"layers_0/kernel", "bias": r"layers_[01]/bias", "norm": r"layers_1/scale"},
    ),
    "linen Partitioned boxes": (lambda: linen(partitioned_dense(), X), KERNEL_BIAS),
    "linen block": (lambda: linen(Block(), X), BLOCK),
    "linen nn.scan stack (F10)": (
        lambda: linen(
            nn.scan(Block, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=STACK)(),
            X,
            None,
        ),
        BLOCK,
    ),
    "linen nn.vmap stack (F10)": (
        lambda: linen(
            nn.vmap(
                Block,
                in_axes=None,
                axis_size=STACK,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
            )(),
            X,
        ),
        BLOCK,
    ),
    "linen nn.vmap LSTM": (
        lambda: linen(stacked(nn.OptimizedLSTMCell, 3), (CARRY, CARRY), X[:, 0]),
        {"weight": r"[ih][ifgo]/kernel", "bias": r"h[ifgo]/bias"},
    ),
    "linen nn.vmap Embed": (
        lambda: linen(stacked(nn.Embed, 3, 2), jnp.ones((1,), int)),
        {"embedding": r"embedding"},
    ),
    # NNX
    "nnx attention (F9)": (
        lambda: state(lambda r: nnx.MultiHeadAttention(2, 4, normalize_qk=True, decode=False, rngs=r)),
        ATTENTION,
    ),
    "nnx Linear": (lambda: state(lambda r: nnx.Linear(4, 3, rngs=r)), KERNEL_BIAS),
    "nnx LinearGeneral, 2-D bias": (lambda: state(lambda r: nnx.LinearGeneral(4, (2, 3), rngs=r)), KERNEL_BIAS),
    "nnx Einsum, 2-D bias": (
        lambda: state(lambda r: nnx.Einsum("abc,cde->abde", (4, 2, 3), (2, 3), rngs=r)),
        KERNEL_BIAS,
    ),
    "nnx Conv": (lambda: state(lambda r: nnx.Conv(4, 3, (2,), rngs=r)), KERNEL_BIAS),
    "nnx ConvTranspose": (lambda: state(lambda r: nnx.ConvTranspose(4, 3, (2,), rngs=r)), KERNEL_BIAS),
    "nnx Embed": (lambda: state(lambda r: nnx.Embed(3, 2, rngs=r)), {"embedding": r"embedding"}),
    "nnx LSTMCell": (
        lambda: state(lambda r: nnx.LSTMCell(4, 3, rngs=r)),
        {"weight": r"[ih][ifgo]_?/kernel", "bias": r"h[ifgo]/bias"},
    ),
    "nnx OptimizedLSTMCell": (
        lambda: state(lambda r: nnx.OptimizedLSTMCell(4, 3, rngs=r)),
        {"weight": r"dense_[ih]/kernel", "bias": r"dense_h/bias"},
    ),
    "nnx GRUCell in RNN": (
        lambda: state(lambda r: nnx.RNN(nnx.GRUCell(4, 3, rngs=r), rngs=r)),
        {"weight": r"cell/dense_[ih]/kernel", "bias": r"cell/dense_i/bias"},
    ),
    "nnx BatchNorm": (lambda: state(lambda r: nnx.BatchNorm(4, rngs=r)), SCALE_BIAS),
    "nnx LayerNorm": (lambda: state(lambda r: nnx.LayerNorm(4, rngs=r)), SCALE_BIAS),
    "nnx RMSNorm": (lambda: state(lambda r: nnx.RMSNorm(4, rngs=r)), {"norm": r"scale"}),
    "nnx GroupNorm": (lambda: state(lambda r: nnx.GroupNorm(4, 2, rngs=r)), SCALE_BIAS),
    "nnx InstanceNorm": (lambda: state(lambda r: nnx.InstanceNorm(4, rngs=r)), SCALE_BIAS),
    "nnx WeightNorm": (
        lambda: state(lambda r: nnx.WeightNorm(nnx.Linear(4, 3, rngs=r), rngs=r)),
        {"weight": r"layer_instance/kernel", "bias": r"layer_instance/bias", **nnx_scales()},
    ),
    "nnx SpectralNorm": (
        lambda: state(lambda r: nnx.SpectralNorm(nnx.Linear(4, 3, rngs=r), rngs=r)),
        {"weight": r"layer_instance/kernel", "bias": r"layer_instance/bias"},
    ),
    "nnx PReLU": (lambda: state(lambda r: nnx.PReLU()), {"other": r"negative_slope"}),
    "nnx LoRA": (lambda: state(lambda r: nnx.LoRA(4, 2, 3, rngs=r)), {"weight": r"lora_[ab]"}),
    "nnx LoRA around Linear": (
        lambda: state(lambda r: nnx.LoRA(4, 2, 3, base_module=nnx.Linear(4, 3, rngs=r), rngs=r)),
        {"weight": r"lora_[ab]|base_module/kernel", "bias": r"base_module/bias"},
    ),
    "nnx LoRALinear": (
        lambda: state(lambda r: nnx.LoRALinear(4, 3, lora_rank=2, rngs=r)),
        {"weight": r"kernel|lora/lora_[ab]", "bias": r"bias"},
    ),
    "nnx block": (lambda: state(NNXBlock), NNX_BLOCK),
    "nnx.vmap stack (F10)": (lambda: state(nnx_vmapped), NNX_BLOCK),
    "nnx.scan stack (F10)": (
        lambda: state(nnx_scanned),
        {"weight": r"layers/1/kernel", "bias": r"layers/[01]/bias", "norm": r"layers/0/scale"},
    ),
    "nnx.split": (lambda: nnx.split(module_nnx(NNXBlock), nnx.Param, ...)[1], NNX_BLOCK),
    "nnx everything in the state": (
        lambda: nnx.state(
            module_nnx(
                lambda r: nnx.Sequential(nnx.BatchNorm(4, rngs=r), nnx.Dropout(0.1, rngs=r), nnx.Linear(4, 4, rngs=r))
            )
        ),
        {
            "weight": r"layers/2/kernel",
            "bias": r"layers/[02]/bias",
            "norm": r"layers/0/scale",
            "other": r"layers/0/(mean|var)|layers/1/rngs/(key|count)",
        },
    ),
    "nnx WeightNorm, everything in the state": (
        lambda: nnx.state(nnx.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))),
        {"weight": r"layer_instance/kernel", "bias": r"layer_instance/bias", "norm": r"scales/.*kernel.*"},
    ),
    # Equinox
    "eqx MLP": (
        lambda: equinox(lambda k: eqx.nn.MLP(4, 3, 2, 2, key=k)),
        {"weight": r"layers/\d/weight", "bias": r"layers/\d/bias"},
    ),
    "eqx Conv2d, 3-D bias": (
        lambda: equinox(lambda k: eqx.nn.Conv2d(4, 3, 2, key=k)),
        {"weight": r"weight", "bias": r"bias"},
    ),
    "eqx ConvTranspose2d": (
        lambda: equinox(lambda k: eqx.nn.ConvTranspose2d(4, 3, 2, key=k)),
        {"weight": r"weight", "bias": r"bias"},
    ),
    "eqx LayerNorm": (lambda: equinox(lambda k: eqx.nn.LayerNorm(4)), {"norm": r"weight", "bias": r"bias"}),
    "eqx LayerNorm over two axes": (
        lambda: equinox(lambda k: eqx.nn.LayerNorm((2, 3))),
        {"norm": r"weight", "bias": r"bias"},
    ),
    "eqx RMSNorm": (lambda: equinox(lambda k: eqx.nn.RMSNorm(4)), {"norm": r"weight", "bias": r"bias"}),
    "eqx RMSNorm without bias": (lambda: equinox(lambda k: eqx.nn.RMSNorm(4, use_bias=False)), {"norm": r"weight"}),
    "eqx GroupNorm": (lambda: equinox(lambda k: eqx.nn.GroupNorm(2, 4)), {"norm": r"weight", "bias": r"bias"}),
    "eqx GRUCell": (
        lambda: equinox(lambda k: eqx.nn.GRUCell(4, 3, key=k)),
        {"weight": r"weight_[ih]h", "bias": r"bias(_n)?"},
    ),
    "eqx LSTMCell": (
        lambda: equinox(lambda k: eqx.nn.LSTMCell(4, 3, key=k)),
        {"weight": r"weight_[ih]h", "bias": r"bias"},
    ),
    "eqx attention": (
        lambda: equinox(
            lambda k: eqx.nn.MultiheadAttention(
                2, 4, use_query_bias=True, use_key_bias=True, use_value_bias=True, use_output_bias=True, key=k
            )
        ),
        {"weight": r"(query|key|value|output)_proj/weight", "bias": r"(query|key|value|output)_proj/bias"},
    ),
    "eqx Embedding": (
        lambda: equinox(lambda k: {"embedding": eqx.nn.Embedding(3, 2, key=k)}),
        {"embedding": r"embedding/weight"},
    ),
    "eqx WeightNorm": (
        lambda: equinox(lambda k: eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=k))),
        {"weight": r"layer/weight", "bias": r"layer/bias", "norm": r"g"},
    ),
    "eqx norms in a list": (
        lambda: equinox(lambda k: [eqx.nn.Linear(4, 4, key=k), eqx.nn.LayerNorm(4), eqx.nn.RMSNorm(4, use_bias=False)]),
        {"weight": r"0/weight", "bias": r"[01]/bias", "norm": r"[12]/weight"},
    ),
    "eqx block": (lambda: equinox(EqxBlock), EQX_BLOCK),
    "eqx.filter_vmap stack (F10)": (lambda: equinox(eqx_stack), EQX_BLOCK),
    # containers
    "FrozenDict": (lambda: flax.core.freeze(linen(Block(), X)), BLOCK),
    "NamedTuples": (
        lambda: {"dense": Pair(shape(4, 3), shape(3)), "attn": Pair(shape(4, 2, 3), shape(2, 3))},
        {"weight": r"(dense|attn)/w", "bias": r"(dense|attn)/b"},
    ),
    "dataclasses": (
        lambda: [Layer(shape(4, 3), shape(3), StructNorm(shape(2, 3), shape(2, 3)))],
        {"weight": r"0/kernel", "bias": r"0/(norm/)?bias", "norm": r"0/norm/scale"},
    ),
    "plain list": (
        lambda: [(shape(4, 3), shape(3)), (shape(3, 2), shape(2))],
        {"weight": r"[01]/0", "other": r"[01]/1"},
    ),
    "pytree without names": (
        lambda: {"dense": Keyless(shape(4, 3), shape(3))},
        {"weight": r"dense/first", "other": r"dense/second"},
    ),
    "named lists": (
        lambda: {"w": [shape(4, 3), shape(3, 2)], "b": [shape(3), shape(2, 2)]},
        {"weight": r"w/[01]", "bias": r"b/[01]"},
    ),
    "numbered names": (
        lambda: {"W1": shape(4, 3), "b1": shape(3), "W2": shape(3, 2), "b2": shape(2)},
        {"weight": r"W[12]", "bias": r"b[12]"},
    ),
    "None and integers": (
        lambda: {
            "kernel": shape(4, 3),
            "bias": None,
            "step": shape(dtype=jnp.int32),
            "ids": shape(4, 3, dtype=jnp.int32),
        },
        {"weight": r"kernel", "other": r"step|ids"},
    ),
}

# --- Trees of other libraries, by name: path, shape, role.

NAMES = {
    "haiku": """
        mlp/~/linear_0/w                    4,3    weight
        mlp/~/linear_0/b                    3      bias
        conv1_d/w                           2,4,3  weight
        conv1_d/b                           3      bias
        depthwise_conv1_d/w                 3,1,4  weight
        embed/embeddings                    5,2    embedding
        gru/w_i                             4,9    weight
        gru/w_h                             3,9    weight
        gru/b                               9      bias
        lstm/linear/w                       7,12   weight
        lstm/linear/b                       12     bias
        multi_head_attention/query/w        4,4    weight
        multi_head_attention/query/b        4      bias
        multi_head_attention/value/w        4,4    weight
        layer_norm/scale                    4      norm
        layer_norm/offset                   4      bias
        batch_norm/scale                    1,4    norm
        batch_norm/offset                   1,4    bias
        group_norm/scale                    4      norm
        instance_norm/offset                4      bias
        rms_norm/scale                      4      norm
        bias/b                              4      bias
        __layer_stack_no_per_layer/layer_norm/scale   3,4    norm
        __layer_stack_no_per_layer/layer_norm/offset  3,4    bias
        __layer_stack_no_per_layer/linear/w           3,4,4  weight
        __layer_stack_no_per_layer/linear/b           3,4    bias
    """,
    "t5": """
        shared/embedding                                                         8,4  embedding
        encoder/block/0/layer/0/SelfAttention/q/kernel                           4,4  weight
        encoder/block/0/layer/0/SelfAttention/o/kernel                           4,4  weight
        encoder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding  6,2  bias
        encoder/block/0/layer/0/layer_norm/weight                                4    norm
        encoder/block/0/layer/1/DenseReluDense/wi_0/kernel                       4,8  weight
        encoder/final_layer_norm/weight                                          4    norm
        encoder/relpos_bias/rel_embedding                                        2,6  bias
        decoder/block/0/layer/0/SelfAttention/relative_attention_bias/weight     6,2  bias
    """,
    "llama": """
        model/embed_tokens/weight                        8,4  embedding
        model/layers/0/input_layernorm/weight            4    norm
        model/layers/0/self_attn/q_proj/weight           4,4  weight
        model/layers/0/self_attn/q_proj/bias             4    bias
        model/layers/0/self_attn/q_norm/weight           2    norm
        model/layers/0/self_attn/k_norm/weight           2    norm
        model/layers/0/post_attention_layernorm/weight   4    norm
        model/layers/0/mlp/gate_proj/weight              8,4  weight
        model/layers/0/block_sparse_moe/gate/weight      2,4  weight
        model/layers/0/block_sparse_moe/experts/w1       2,8,4  weight
        model/norm/weight                                4    norm
        lm_head/weight                                   8,4  weight
    """,
    "llama in jax": """
        tok_embeddings/embedding     8,4    embedding
        layers/attention_norm/w      3,4    norm
        layers/attention/wq          3,4,4  weight
        layers/attention/wq_bias     3,2,2  bias
        layers/feed_forward/w1       3,4,8  weight
        norm/w                       4      norm
        output/kernel                4,8    weight
    """,
    "gemma": """
        embedder/input_embedding                8,4      embedding
        layer_0/attn/q_einsum/w                 2,4,2    weight
        layer_0/attn/kv_einsum/w                2,1,4,2  weight
        layer_0/attn/attn_vec_einsum/w          2,2,4    weight
        layer_0/attn/_query_norm/scale          2        norm
        layer_0/mlp/gating_einsum               2,4,8    weight
        layer_0/mlp/linear                      8,4      weight
        layer_0/pre_attention_norm/scale        4        norm
        layer_0/post_ffw_norm/scale             4        norm
        final_norm/scale                        4        norm
    """,
    "gpt-2": """
        transformer/wte/weight              8,4     embedding
        transformer/wpe/weight              6,4     embedding
        transformer/h/0/ln_1/weight         4       norm
        transformer/h/0/ln_1/bias           4       bias
        transformer/h/0/attn/c_attn/weight  12,4    weight
        transformer/h/0/attn/c_attn/bias    12      bias
        transformer/ln_f/weight             4       norm
        lm_head/weight                      8,4     weight
    """,
    "gpt-2, first release": """
        wte                 8,4     embedding
        wpe                 6,4     embedding
        h/0/ln_1/g          4       norm
        h/0/ln_1/b          4       bias
        h/0/attn/c_attn/w   1,4,12  weight
        h/0/attn/c_attn/b   12      bias
        h/0/mlp/c_fc/w      1,4,16  weight
        ln_f/g              4       norm
        ln_f/b              4       bias
    """,
    "transformer-lens": """
        embed/W_E           8,4    weight
        pos_embed/W_pos     6,4    weight
        blocks/0/attn/W_Q   2,4,2  weight
        blocks/0/attn/b_Q   2,2    bias
        blocks/0/mlp/W_in   4,8    weight
        blocks/0/mlp/b_in   8      bias
        blocks/0/ln1/w      4      norm
        blocks/0/ln1/b      4      bias
        unembed/b_U         8      bias
    """,
    "keras": """
        dense/kernel                            4,3    weight
        dense/bias                              3      bias
        embedding/embeddings                    8,4    embedding
        multi_head_attention/query/bias         2,2    bias
        lstm/lstm_cell/recurrent_kernel         3,12   weight
        gru/gru_cell/bias                       2,9    bias
        separable_conv2d/depthwise_kernel       2,2,3,1  weight
        separable_conv2d/pointwise_kernel       1,1,3,4  weight
        layer_normalization/gamma               4      norm
        layer_normalization/beta                4      bias
        batch_normalization_1/gamma             4      norm
    """,
    "transformer-engine": """
        LayerNormDenseGeneral_0/kernel      4,3,2,2  weight
        LayerNormDenseGeneral_0/bias        3,2,2  bias
        LayerNormDenseGeneral_0/scale       4      norm
        LayerNormDenseGeneral_0/ln_bias     4      bias
        LayerNormMLP_0/wi_kernel            4,2,8  weight
        LayerNormMLP_0/wi_bias              2,8    bias
        layernorm_linear/layer_norm_weight  4      norm
        layernorm_linear/layer_norm_bias    4      bias
    """,
    "bert": """
        embeddings/word_embeddings/weight            8,4  embedding
        embeddings/LayerNorm/weight                  4    norm
        embeddings/LayerNorm/bias                    4    bias
        encoder/layer/0/attention/self/query/weight  4,4  weight
        encoder/layer/0/attention/output/LayerNorm/gamma  4  norm
        encoder/layer/0/attention/output/LayerNorm/beta   4  bias
        cls/predictions/transform/dense/kernel       4,4  weight
        cls/predictions/bias                         8    bias
    """,
    "vit": """
        cls_token                              1,1,4  other
        cls                                    1,1,4  other
        mask_token                             1,4    other
        register_tokens                        1,2,4  other
        dist_token                             1,1,4  other
        Transformer/posembed_input/pos_embedding  1,6,4  embedding
        pos_embed                              1,6,4  embedding
        patch_embed/proj/weight                4,3,2,2  weight
        patch_embed/proj/bias                  4      bias
        embedding/kernel                       2,2,3,4  weight
        embedding/bias                         4      bias
        Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias  2,2  bias
        Transformer/encoder_norm/scale         4      norm
        blocks/0/norm1/weight                  4      norm
        blocks/0/ls1/gamma                     4      norm
        blocks/0/gamma_1                       4      norm
        blocks/0/layer_scale1/lambda1          4      norm
        token_mixing/Dense_0/kernel            4,4    weight
        head/kernel                            4,3    weight
    """,
    "scalars": """
        logit_scale                -      other
        temperature                -      other
        log_temperature            1      other
        PReLU_0/negative_slope     -      other
        gate/alpha                 -      other
        layer_0/skip_scale         -      other
        attn/logit_scale           2,1,1  norm
        attn/temperature           2,1,1  other
    """,
    "torch": """
        conv1/weight            4,3,2,2  weight
        bn1/weight              4        norm
        bn1/bias                4        bias
        layer1/0/downsample/0/weight  4,4,1,1  weight
        layer1/0/downsample/1/weight  4        norm
        layer1/0/downsample/1/bias    4        bias
        lstm/weight_ih_l0       12,4     weight
        lstm/bias_ih_l0         12       bias
        attn/in_proj_weight     12,4     weight
        attn/in_proj_bias       12       bias
        attn/bias_k             1,1,4    bias
        wn/weight_g             4,1      norm
        wn/weight_v             4,4      weight
        q_proj/lora_A/default/weight  2,4  weight
        q_proj/lora_B/default/weight  4,2  weight
        q_proj/lora/a           4,2      weight
        q_proj/lora/b           2,4      weight
    """,
    "pairs": """
        attn/gating_w            8,2,4  weight
        attn/gating_b            2,4    bias
        attn/output_w            2,4,8  weight
        attn/output_b            8      bias
        attention_with_pair_bias/feat_2d_weights  8,4  weight
        mla/q_a                  8,4    weight
        mla/q_b                  4,2,6  weight
        mla/kv_b                 4,2,6  weight
        cell/Wq                  4,8    weight
        cell/bq                  8      bias
        cell/W_head              4,8    weight
        cell/b_head              8      bias
        film/scale_w             4,8    weight
        film/scale_b             8      bias
    """,
    "named by themselves": """
        block/ln1                8      norm
        block/q_norm             4      norm
        block/attention_norm     8      norm
        block/subln/weight       8      norm
        block/lambda_1           8      norm
        block/sinks              4      other
        block/token_type         8      other
        block/cls_pooler_query   1,1,8  other
        block/global_token_0     1,8    other
        prelu/alpha              8      other
        wn/scales/kernel         8      norm
        vision/class_embedding   8      other
        vision/mask_embedding    1,8    other
        token_embedding          32,8   embedding
        head/probe               1,1,8  other
        rpb/rel_pos_bias/weight  32,2   bias
    """,
    "state spaces": """
        s5/B                     16,8,2  other
        s5/C                     8,16,2  weight
        s5/D                     8       other
        s5/Lambda_re             16      other
        s5/log_step              16,1    other
        s4/A_re                  16      other
        s4/log_dt                8       other
        s4/B                     16,8    other
        mamba/A_log              16,4    other
        mamba/D                  16      other
        mamba/dt_bias            4       other
        control/B                4,8     weight
        control/A                4,4     weight
        rwkv/time_decay          8       other
        rwkv/time_mix_k          1,1,8   other
    """,
    # A word for a norm, a bias or a token that names something else.
    "false friends": """
        normal_head/weight      4,3  weight
        normal_head/bias        3    bias
        norm1/linear/weight     8,4  weight
        norm1/linear/bias       8    bias
        norm_mlp/weight         4,3  weight
        norm_mlp/bias           4    bias
        film/scale/kernel       4,4  weight
        film/scale/weight       4,4  weight
        film/scale/bias         4    bias
        film/shift/weight       4,4  weight
        film/shift/bias         4    bias
        bias_net/kernel         4,4  weight
        ffn_norm/kernel         4,4  norm
        ffn_norm_proj/kernel    4,4  weight
        b/kernel                4,4  weight
        g/weight                4,3  weight
        g/bias                  3    bias
        lora_proj/kernel        4,4  weight
        lora_proj/bias          2,2  bias
        norms/0/weight          4    norm
        norm_layers/0/weight    2,3  norm
        post_embedding_norm/weight  4  norm
        embed_norm/weight       4    norm
        tokens_to_x/kernel      4,4  weight
        critic/value            4,3  weight
    """,
}
UNSTACKABLE = {"scalars", "false friends"}  # no bare name distinguishes a stacked scalar from a matrix


def named(text: str, stack: tuple[int, ...] = ()) -> tuple[Any, dict[str, str]]:
    """Nested dicts of shapes from lines of `path shape role`, each with `stack` axes in front."""
    tree: dict[str, Any] = {}
    roles = {}
    for path, sizes, role in map(str.split, filter(str.strip, text.splitlines())):
        assert path not in roles, f"{path} twice"
        assert role in ROLES, role
        roles[path] = role
        *parents, leaf = path.split("/")
        node = functools.reduce(lambda node, name: node.setdefault(name, {}), parents, tree)
        node[leaf] = shape(*stack, *map(int, sizes.split(",") if sizes != "-" else ()))
    return tree, roles


def rows(params: Any) -> dict[str, Any]:
    """`explain`'s rows by path, once they are known to agree with `multipliers` and the tree."""
    leaves = jax.tree.leaves(params)
    multipliers = wd.multipliers("weights", params)
    explanation = wd.explain("weights", params)
    table = str(explanation)
    assert jax.tree.structure(multipliers) == jax.tree.structure(params)
    assert len(explanation.rows) == len(leaves)
    for leaf, multiplier, row in zip(leaves, jax.tree.leaves(multipliers), explanation.rows, strict=True):
        assert type(multiplier) is float
        assert multiplier == row.multiplier == float(row.role in ("weight", "embedding")), row
        assert tuple(row.shape) == leaf.shape, row
        assert row.role in ROLES, row
        assert isinstance(row.reason, str), row
        assert row.reason, row
        assert row.path in table, row
    by_path = {row.path: row for row in explanation.rows}
    assert len(by_path) == len(leaves), "two leaves of one path"
    return by_path


def check_names(tree: Any, expected: dict[str, str]) -> None:
    found = rows(tree)
    wrong = {p: (expected.get(p), r.role, r.reason) for p, r in found.items() if expected.get(p) != r.role}
    assert not wrong, f"path: (expected, got, reason) {wrong}"
    assert set(found) == set(expected)


@pytest.mark.parametrize("name", LAYERS)
def test_roles_of_layers(name: str) -> None:
    build, expected = LAYERS[name]
    found = rows(build())
    wrong = {}
    for path, row in found.items():
        roles = [role for role, pattern in expected.items() if re.fullmatch(pattern, path)]
        if roles != [row.role]:
            wrong[path] = (roles, row.role, row.reason)
    assert not wrong, f"path: (expected, got, reason) {wrong}"
    unused = [p for p in expected.values() if not any(re.fullmatch(p, path) for path in found)]
    assert not unused, f"no leaf is called {unused}, but {list(found)}"


@pytest.mark.parametrize("name", NAMES)
def test_roles_by_name(name: str) -> None:
    check_names(*named(NAMES[name]))


@pytest.mark.parametrize("name", sorted(NAMES.keys() - UNSTACKABLE))
def test_f10_a_stack_has_the_roles_of_its_layer(name: str) -> None:
    """Leading axes of `scan` and `vmap` say nothing about what a parameter is."""
    check_names(*named(NAMES[name], (STACK,)))
    check_names(*named(NAMES[name], (2, STACK)))


def test_haiku_keys_hold_slashes() -> None:
    """Haiku's dicts are two deep, `{"mlp/~/linear_0": {"w": ...}}`, with the same paths."""
    nested, expected = named(NAMES["haiku"])
    flat: dict[str, dict[str, Any]] = {}
    for path in expected:
        module, leaf = path.rsplit("/", 1)
        flat.setdefault(module, {})[leaf] = functools.reduce(lambda node, key: node[key], path.split("/"), nested)
    check_names(flat, expected)


def answers(params: Any) -> dict[str, tuple[Any, ...]]:
    return {path: tuple(row) for path, row in rows(params).items()}


def test_f2_nnx_forms_agree() -> None:
    """Wrapped (`tx.init` of `nnx.Optimizer`), pure (its `tx.update`), dict, split, the module itself."""
    model = NNXBlock(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    expected = answers(params)
    assert expected["attn/value/kernel"][2] == "weight"  # a submodule called `value` keeps its name
    pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure  # renamed after flax 0.12.0
    assert answers(pure(params)) == expected
    assert answers(nnx.to_pure_dict(params)) == expected
    assert answers(nnx.split(model, nnx.Param, ...)[1]) == expected
    assert answers(state(NNXBlock)) == expected  # shapes only
    attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    assert answers(attention) == answers(nnx.state(attention, nnx.Param))


def test_containers_agree() -> None:
    params = linen(Block(), X)
    expected = answers(params)
    assert answers(flax.core.freeze(params)) == expected
    assert answers(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)) == expected
    assert answers(jax.tree.map(lambda leaf: shape(*leaf.shape, dtype=jnp.bfloat16), params)) == expected
    in_list = answers([params])
    assert {path.removeprefix("0/"): row[1:] for path, row in in_list.items()} == {
        p: r[1:] for p, r in expected.items()
    }


def test_real_parameters_agree_with_their_shapes() -> None:
    module = eqx.filter(EqxBlock(KEY), eqx.is_inexact_array)
    assert answers(module) == answers(equinox(EqxBlock))
    params = nn.MultiHeadDotProductAttention(2, normalize_qk=True).init(KEY, X, X)["params"]
    assert answers(params) == answers(linen(nn.MultiHeadDotProductAttention(2, normalize_qk=True), X, X))


def test_f9_f10_rank_alone_would_decay_these() -> None:
    """The table above would prove little if no bias or norm scale had two axes."""
    scan = LAYERS["linen nn.scan stack (F10)"][0]()
    spared = [row.path for row in rows(scan).values() if row.multiplier == 0.0 and len(row.shape) >= 2]
    assert len(spared) == len([p for p in answers(scan) if not p.endswith(("/kernel", "/negative_slope"))])
    attention = rows(LAYERS["linen attention (F9)"][0]())
    assert attention["query/bias"].shape == (2, 2)
    assert attention["query/bias"].multiplier == 0.0


@pytest.mark.parametrize("sizes", [(1, 1, 8), (8, 1, 1), (1, 8), (8, 1), (1, 1)])
def test_axes_of_one_are_no_axes_where_no_name_tells(sizes: tuple[int, ...]) -> None:
    """A vector that broadcasts is a vector; what is called a weight is a matrix with one row or column."""
    found = rows({"mystery": shape(*sizes), "head": {"kernel": shape(*sizes)}})
    assert found["mystery"].role == "other"
    assert found["head/kernel"].role == "weight"


def test_position_tables_decay_and_the_rule_of_the_docs_spares_them() -> None:
    params = {"pos_embed": shape(1, 6, 4), "wpe": shape(6, 4), "wte": shape(9, 4), "bias": shape(4)}
    assert {path: row.multiplier for path, row in rows(params).items()} == {
        "pos_embed": 1.0, "wpe": 1.0, "wte": 1.0, "bias": 0.0,
    }  # fmt: skip
    rule = '[("pos_?emb|wpe", 0), (".*", "weights")]'
    assert rule in str(masking.__doc__)
    mask = ast.literal_eval(rule)
    assert wd.multipliers(mask, params) == {"pos_embed": 0.0, "wpe": 0.0, "wte": 1.0, "bias": 0.0}
