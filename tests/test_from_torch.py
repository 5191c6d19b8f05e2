"""`wd.from_torch`: names of Hugging Face and timm against Flax trees, groups, and what it refuses."""

import re

import fake_torch
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fake_torch import Scalar, Tensor, model, optimizer
from helpers import nested, shape

import wd_optax as wd
from wd_optax.masking import roles
from wd_optax.porting.torch_job import TorchParameter
from wd_optax.porting.torch_names import sources

pytestmark = [pytest.mark.quick_compile, pytest.mark.optax_promotes]


def matched(torch, params, names=None):
    """Path -> the torch names of its leaf."""
    leaves = roles.parameters(params)
    own = [TorchParameter((name,), shape, 0, {}) for name, shape in torch.items()]
    return {leaf.path: [own[i].name for i in ii] for leaf, ii in zip(leaves, sources(own, leaves, names), strict=True)}


def tree(**leaves):
    return nested({path: shape(*sizes) for path, sizes in leaves.items()})


def flax(leaves):
    return nested({path: shape(*sizes) for path, sizes in leaves.items()})


def gpt2_torch(layers=12, d=8):
    """Hugging Face's GPT2LMHeadModel: Conv1D's weight is (in, out), and the head is tied, so it isn't listed."""
    names = {"transformer.wte.weight": (32, d), "transformer.wpe.weight": (16, d)}
    for i in range(layers):
        block = {"ln_1.weight": (d,), "ln_1.bias": (d,), "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
                 "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
                 "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,), "mlp.c_proj.weight": (4 * d, d),
                 "mlp.c_proj.bias": (d,)}  # fmt: skip
        names |= {f"transformer.h.{i}.{name}": size for name, size in block.items()}
    return names | {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}


def gpt2_path(name, layer="h/{}"):
    """Hugging Face's Flax path, or that of another container of the layers."""
    *layers, last = name.split(".")
    norm, table = layers[-1].startswith("ln"), layers[-1] in ("wte", "wpe")
    last = {"weight": "scale" if norm else "embedding" if table else "kernel"}.get(last, last)
    path = "/".join([*layers, last])
    return path.replace(f"h/{layers[2]}", layer.format(layers[2])) if layers[1] == "h" else path


@pytest.mark.parametrize("layer", ["h/{}", "h_{}", "layers_{}", "block{}"])
def test_hugging_faces_gpt2(layer):
    """Twelve layers: layer 1 isn't layer 11."""
    torch = gpt2_torch()
    paths = {gpt2_path(name, layer): name for name in torch}
    names = None if "h" in layer else [(r"\.h\.", ".layers." if "layers" in layer else ".block.")]
    found = matched(torch, flax({path: torch[name][::-1] for path, name in paths.items()}), names)
    assert found == {path: [name] for path, name in paths.items()}


def test_more_words_in_front_and_transposed_keys():
    torch = {name.removeprefix("transformer."): size for name, size in gpt2_torch(2).items()}
    params = {f"params/gpt/{gpt2_path('x.' + name)[2:]}": size[::-1] for name, size in torch.items()}
    params = {path.replace("h/", "h_"): size for path, size in params.items()}
    assert sorted(x for own in matched(torch, flax(params)).values() for x in own) == sorted(torch)
    assert matched(torch, flax(params))["params/gpt/h_1/ln_2/scale"] == ["h.1.ln_2.weight"]


LLAMA = {"self_attn.q_proj.weight": (8, 8), "self_attn.k_proj.weight": (4, 8), "self_attn.v_proj.weight": (4, 8),
         "self_attn.o_proj.weight": (8, 8), "mlp.gate_proj.weight": (16, 8), "mlp.up_proj.weight": (16, 8),
         "mlp.down_proj.weight": (8, 16), "input_layernorm.weight": (8,),
         "post_attention_layernorm.weight": (8,)}  # fmt: skip
LLAMA_ENDS = {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,), "lm_head.weight": (32, 8)}
LLAMA_FLAX = {"model/embed_tokens/embedding": (32, 8), "model/norm/weight": (8,), "lm_head/kernel": (8, 32)}


def llama(layers=3):
    return LLAMA_ENDS | {f"model.layers.{i}.{name}": size for i in range(layers) for name, size in LLAMA.items()}


def test_hugging_faces_llama_in_a_list_of_layers():
    kernel = lambda name: name.replace(".", "/").replace("proj/weight", "proj/kernel")
    params = LLAMA_FLAX | {f"model/layers/{i}/{kernel(n)}": s[::-1] for i in range(3) for n, s in LLAMA.items()}
    found = matched(llama(), flax(params))
    assert found["model/layers/2/mlp/down_proj/kernel"] == ["model.layers.2.mlp.down_proj.weight"]
    assert found["model/norm/weight"] == ["model.norm.weight"]
    assert all(len(own) == 1 for own in found.values())


def test_stacked_layers():
    params = LLAMA_FLAX | {f"model/layers/{n.replace('.', '/')}": (3, *s[::-1]) for n, s in LLAMA.items()}
    found = matched(llama(), flax(params))
    wanted = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    assert found["model/layers/mlp/up_proj/weight"] == wanted
    with pytest.raises(ValueError, match="matches no path"):
        matched(llama(2), flax(params))
    from_one = {re.sub(r"layers\.(\d)", lambda m: f"layers.{int(m[1]) + 1}", name): s for name, s in llama().items()}
    with pytest.raises(ValueError, match="matches no path"):
        matched(from_one, flax(params))


VIT = {"cls_token": (1, 1, 8), "pos_embed": (1, 17, 8), "patch_embed.proj.weight": (8, 3, 4, 4),
       "patch_embed.proj.bias": (8,), "norm.weight": (8,), "norm.bias": (8,), "head.weight": (10, 8),
       "head.bias": (10,)}  # fmt: skip
VIT_BLOCK = {"norm1.weight": (8,), "norm1.bias": (8,), "attn.qkv.weight": (24, 8), "attn.qkv.bias": (24,),
             "attn.proj.weight": (8, 8), "attn.proj.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,),
             "mlp.fc1.weight": (32, 8), "mlp.fc1.bias": (32,), "mlp.fc2.weight": (8, 32),
             "mlp.fc2.bias": (8,)}  # fmt: skip
BIG_VISION_BLOCK = {
    **{f"MultiHeadDotProductAttention_0/{x}/kernel": (8, 2, 4) for x in ("query", "key", "value")},
    **{f"MultiHeadDotProductAttention_0/{x}/bias": (2, 4) for x in ("query", "key", "value")},
    "MultiHeadDotProductAttention_0/out/kernel": (2, 4, 8), "MultiHeadDotProductAttention_0/out/bias": (8,),
    "LayerNorm_0/scale": (8,), "LayerNorm_0/bias": (8,), "LayerNorm_1/scale": (8,), "LayerNorm_1/bias": (8,),
    "MlpBlock_0/Dense_0/kernel": (8, 32), "MlpBlock_0/Dense_0/bias": (32,),
    "MlpBlock_0/Dense_1/kernel": (32, 8), "MlpBlock_0/Dense_1/bias": (8,),
}  # fmt: skip
BIG_VISION = {"cls": (1, 1, 8), "pos_embedding": (1, 17, 8), "embedding/kernel": (4, 4, 3, 8), "embedding/bias": (8,),
              "Transformer/encoder_norm/scale": (8,), "Transformer/encoder_norm/bias": (8,),
              "head/kernel": (8, 10), "head/bias": (10,)}  # fmt: skip
TIMM_TO_BIG_VISION = [
    (r"^blocks\.(\d+)", r"Transformer/encoderblock_\1"), (r"^norm\b", "Transformer/encoder_norm"),
    (r"\bnorm1\b", "LayerNorm_0"), (r"\bnorm2\b", "LayerNorm_1"), (r"mlp\.fc1", "MlpBlock_0/Dense_0"),
    (r"mlp\.fc2", "MlpBlock_0/Dense_1"), (r"attn\.proj", "MultiHeadDotProductAttention_0/out"),
    (r"attn\.qkv", [f"MultiHeadDotProductAttention_0/{x}" for x in ("query", "key", "value")]),
    (r"^patch_embed\.proj", "embedding"), ("^cls_token$", "cls"), ("^pos_embed$", "pos_embedding"),
]  # fmt: skip


def test_timms_vit_with_fused_heads_to_big_visions():
    torch = VIT | {f"blocks.{i}.{name}": size for i in range(11) for name, size in VIT_BLOCK.items()}
    block = {f"Transformer/encoderblock_{i}/{x}": s for i in range(11) for x, s in BIG_VISION_BLOCK.items()}
    params = flax(BIG_VISION | block)
    found = matched(torch, params, TIMM_TO_BIG_VISION)
    query = "Transformer/encoderblock_10/MultiHeadDotProductAttention_0/query"
    assert found[f"{query}/kernel"] == ["blocks.10.attn.qkv.weight"]
    assert found[f"{query}/bias"] == ["blocks.10.attn.qkv.bias"]
    assert found["Transformer/encoder_norm/scale"] == ["norm.weight"]
    assert all(len(own) == 1 for own in found.values())
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.qkv\.weight' \(24,8\) matches no path"):
        matched(torch, params, [pair for pair in TIMM_TO_BIG_VISION if "qkv" not in pair[0]])


def test_a_part_that_is_lost_is_found_by_the_size():
    torch, params = {"qkv.weight": (24, 8)}, tree(**{"q/kernel": (8, 8), "k/kernel": (8, 8)})
    with pytest.raises(ValueError, match=r"128 entries in all are 'qkv.weight' \(24,8\)"):
        matched(torch, params, [("qkv", ["q", "k"])])


def test_a_name_that_is_a_suffix_of_another():
    torch = {"norm.weight": (8,), "blocks.0.norm.weight": (8,)}
    found = matched(torch, tree(**{"encoder/norm/scale": (8,), "encoder/blocks_0/norm/scale": (8,)}))
    assert found == {"encoder/norm/scale": ["norm.weight"], "encoder/blocks_0/norm/scale": ["blocks.0.norm.weight"]}


def test_names_as_a_function_and_what_it_leaves_alone():
    torch = {"old.weight": (3, 2), "fc.weight": (2, 3), "fc.bias": (2,)}
    params = tree(**{"fc/kernel": (3, 2), "fc/bias": (2,)})
    assert matched(torch, params, lambda name: () if name == "old.weight" else None)["fc/kernel"] == ["fc.weight"]
    with pytest.raises(ValueError, match=r"'old.weight' \(3,2\) matches no path.*names=lambda name: \(\) if name =="):
        matched(torch, params)


def test_what_could_be_several_is_refused():
    with pytest.raises(ValueError, match=r"'fc.weight' \(2,3\) could be any of 'a/fc/kernel', 'b/fc/kernel'.*names="):
        matched({"fc.weight": (2, 3), "x.fc.weight": (2, 3)}, tree(**{"a/fc/kernel": (3, 2), "b/fc/kernel": (3, 2)}))


def test_what_has_no_partner_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"'fc2/kernel' of shape \(3, 2\) has no PyTorch parameter; the nearest are 'fc1"
    ):
        matched({"fc1.weight": (2, 3)}, tree(**{"fc1/kernel": (3, 2), "fc2/kernel": (3, 2)}))
    with pytest.raises(ValueError, match=r"'fc.weight' \(2,4\) matches no path.*nearest are 'fc/kernel' \(3,2\)"):
        matched({"fc.weight": (2, 4)}, tree(**{"fc/kernel": (3, 2)}))
    with pytest.raises(TypeError, match=r"not a \(regex, replacement\)"):
        matched({"fc.weight": (2, 3)}, tree(**{"fc/kernel": (3, 2)}), ["fc"])


PARAMS = {"fc": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(3)}}
SHAPES = {"fc.weight": (2, 3), "fc.bias": (2,), "norm.weight": (3,)}


def job(named, groups=None, name="AdamW", **options):
    groups = groups or [{"params": list(named.values())}]
    options = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True, **options}
    options |= {"decoupled_weight_decay": True} if name == "AdamW" else {}
    return optimizer(name, [{**options, **group} for group in groups], module=f"torch.optim.{name.lower()}")


def decayed(tx, params=PARAMS):
    """How much of each leaf is removed in a step without gradient."""
    updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    return {
        p.path: float(-u.ravel()[0]) for p, u in zip(roles.parameters(params), jax.tree.leaves(updates), strict=True)
    }


def two_groups(named):
    return [{"params": [named["fc.weight"]], "lr": 2e-2},
            {"params": [named["norm.weight"], named["fc.bias"]], "weight_decay": 0.0}]  # fmt: skip


WRAPPED = ["{}", "module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_fsdp_wrapped_module.{}"]


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_groups_by_name_in_another_order_also_of_wrapped_models(wrapped):
    named = model(SHAPES)
    wrapped_names = [(wrapped.format(name), x) for name, x in named.items()]
    tx, table = wd.from_torch(job(named, two_groups(named)), iter(wrapped_names), PARAMS)
    assert decayed(tx) == pytest.approx({"fc/bias": 0, "fc/kernel": 2e-3, "norm/scale": 0})
    assert {row.path: (row.other_name, row.group, row.learning_rate, row.weight_decay) for row in table.rows} == {
        "fc/bias": ("fc.bias", "group1", 1e-2, 0.0),
        "fc/kernel": ("fc.weight", "group0", 2e-2, 0.1),
        "norm/scale": ("norm.weight", "group1", 1e-2, 0.0),
    }
    assert "from" in str(table)


def test_a_state_dict_needs_the_call_and_names_per_group():
    named = model(SHAPES)
    state_dict = job(named, two_groups(named)).state_dict()
    per_group = [["fc.weight"], ["norm.weight", "fc.bias"]]
    tx, _ = wd.from_torch(state_dict, per_group, PARAMS, call="torch.optim.AdamW")
    assert decayed(tx) == pytest.approx({"fc/bias": 0, "fc/kernel": 2e-3, "norm/scale": 0})
    with pytest.raises(ValueError, match="doesn't say its class: pass call="):
        wd.from_torch(state_dict, per_group, PARAMS)
    with pytest.raises(ValueError, match=r"2 groups without names.*one list of names per group"):
        wd.from_torch(state_dict, named, PARAMS, call="torch.optim.AdamW")
    with pytest.raises(ValueError, match=r"has 1 parameters, and named_parameters 2"):
        wd.from_torch(state_dict, per_group[::-1], PARAMS, call="torch.optim.AdamW")
    for group, names in zip(state_dict["param_groups"], per_group, strict=True):
        group["param_names"] = [f"module.{name}" for name in names]
    assert decayed(wd.from_torch(state_dict, None, PARAMS, call="torch.optim.AdamW")[0]) == decayed(tx)
    unwrapped, _ = wd.from_torch(state_dict, named, PARAMS, call="torch.optim.AdamW")
    assert decayed(unwrapped) == decayed(tx)
    with pytest.raises(TypeError, match="got a dict with 'model', 'optimizer', expected"):
        wd.from_torch({"model": {}, "optimizer": state_dict}, None, PARAMS)


def test_a_state_dict_of_one_group_in_the_models_order():
    named = model(SHAPES)
    tx, _ = wd.from_torch(job(named).state_dict(), named, PARAMS, call="torch.optim.AdamW")
    assert decayed(tx) == pytest.approx(dict.fromkeys(("fc/bias", "fc/kernel", "norm/scale"), 1e-3))


def test_what_is_in_no_group_or_needs_no_gradient_stays():
    named = model(SHAPES)
    named["norm.weight"].requires_grad = False
    groups = [{"params": [named["fc.weight"], named["norm.weight"]]}, {"params": []}]
    tx, table = wd.from_torch(job(named, groups), named.items(), PARAMS)
    assert decayed(tx) == pytest.approx({"fc/bias": 0, "fc/kernel": 1e-3, "norm/scale": 0})
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = tx.update(ones, tx.init(PARAMS), PARAMS)
    assert not updates["fc"]["bias"].any()
    assert not updates["norm"]["scale"].any()
    assert {row.path: row.because for row in table.rows}["fc/bias"] == "in no group, or requires no gradient"
    with pytest.raises(ValueError, match="nothing trains"):
        wd.from_torch(job(named, [{"params": [named["norm.weight"]]}]), named, PARAMS)


def test_tied_weights_are_one_leaf():
    table = Tensor((9, 2))
    named = [("wte.weight", table), ("lm_head.weight", table)]
    job_of = optimizer("SGD", [{"params": [table], "lr": 0.1, "weight_decay": 0.1}], module="torch.optim.sgd")
    for path in ("wte/embedding", "lm_head/embedding", "decoder/wte/embedding"):
        _, found = wd.from_torch(job_of, named, nested({path: shape(9, 2)}))
        assert found.rows[0].other_name == "wte.weight"
    untied = nested({"wte/embedding": shape(9, 2), "lm_head/kernel": shape(2, 9)})
    with pytest.raises(ValueError, match="tied"):
        wd.from_torch(job_of, named, untied)
    with pytest.raises(ValueError, match="tied"):
        wd.from_torch(job_of, named[:1], untied)


def test_the_optimizers_own_tensors_are_needed():
    named = model(SHAPES)
    with pytest.raises(ValueError, match=r"no name for a parameter of group 0, of shape \(2, 3\)"):
        wd.from_torch(job(named), model(SHAPES), PARAMS)
    twice = [{"params": [named["fc.weight"]]}, {"params": list(named.values())}]
    with pytest.raises(ValueError, match=r"'fc.weight' is in two groups, the second is group 1"):
        wd.from_torch(job(named, twice), named, PARAMS)
    with pytest.raises(TypeError, match="expected a PyTorch optimizer"):
        wd.from_torch(3, named, PARAMS)


def test_a_scheduler_must_be_given_and_its_peak_is_the_groups():
    named = model(SHAPES)
    scheduled = job(named, initial_lr=4e-2, lr=1e-2)
    with pytest.raises(ValueError, match=r"initial_lr=0.04 and now lr=0.01, so a scheduler moves it: pass schedule="):
        wd.from_torch(scheduled, named, PARAMS)
    tx, table = wd.from_torch(scheduled, named, PARAMS, schedule=lambda step: 0.5)
    assert decayed(tx)["fc/kernel"] == pytest.approx(0.5 * 4e-2 * 0.1)
    assert "0.04·schedule" in str(table)
    layered = job(named, initial_lr=4e-2, lr=1e-3, lr_scale=0.25)  # timm's layer decay
    assert decayed(wd.from_torch(layered, named, PARAMS, schedule=lambda step: 1.0)[0])["fc/bias"] == pytest.approx(
        1e-3
    )


def test_options_that_a_call_lacks():
    named = model(SHAPES)
    tx, _ = wd.from_torch(job(named, lr=Scalar(1e-2), betas=[0.9, 0.95], tag="all", capturable=True), named, PARAMS)
    assert decayed(tx)["fc/kernel"] == pytest.approx(1e-3)
    with pytest.raises(ValueError, match=r"wd_mult=0.5, which torch.optim.AdamW doesn't know.*group.pop\('wd_mult'\)"):
        wd.from_torch(job(named, wd_mult=0.5), named, PARAMS)
    l2 = job(named)
    l2.param_groups[0]["decoupled_weight_decay"] = False
    with pytest.raises(ValueError, match=r"decoupled_weight_decay=False, and torch.optim.AdamW"):
        wd.from_torch(l2, named, PARAMS)
    with pytest.raises(ValueError, match=r"'apex.optimizers.FusedAdamW' is not known: the nearest are"):
        wd.from_torch(optimizer("FusedAdamW", [{"params": [*named.values()]}], module="apex.optimizers"), named, PARAMS)


def test_a_wrapper_of_accelerates_is_its_optimizer():
    named = model(SHAPES)
    inner = job(named)
    wrapper = optimizer("AcceleratedOptimizer", inner.param_groups, module="accelerate.optimizer")
    wrapper.optimizer = inner
    assert decayed(wd.from_torch(wrapper, named, PARAMS)[0])["fc/kernel"] == pytest.approx(1e-3)


def test_a_stack_must_be_in_one_group():
    shapes = {f"layers.{i}.fc.weight": (2, 3) for i in range(2)}
    named, params = model(shapes), {"layers": {"fc": {"kernel": jnp.ones((2, 3, 2))}}}
    groups = [{"params": [x], "lr": lr} for x, lr in zip(named.values(), (1e-2, 2e-2), strict=True)]
    with pytest.raises(
        ValueError, match=r"'layers/fc/kernel' is 'layers.0.fc.weight' and 'layers.1.fc.weight'.*group 1"
    ):
        wd.from_torch(job(named, groups), named, params)
    alike = [{"params": [x]} for x in named.values()]
    assert decayed(wd.from_torch(job(named, alike), named, params)[0], params) == pytest.approx(
        {"layers/fc/kernel": 1e-3}
    )


def test_a_step_of_the_whole_tensor_needs_pytorchs_layout():
    """Muon's factor is √max(1, rows/columns), of PyTorch's (out, in); LAMB's a norm of q, k and v together."""
    named = model({"fc.weight": (6, 3)})
    options = {"params": list(named.values()), "lr": 1e-2}
    muon = optimizer("Muon", [options], module="torch.optim")
    assert wd.from_torch(muon, named, flax({"fc/weight": (6, 3)}))
    with pytest.raises(ValueError, match=r"a step of torch.optim.Muon depends on the order of axes"):
        wd.from_torch(muon, named, flax({"fc/kernel": (3, 6)}))
    lamb = optimizer("Lamb", [options], module="timm.optim.lamb")
    assert wd.from_torch(lamb, named, flax({"fc/kernel": (3, 6)}))
    split, names = flax({"q/kernel": (3, 3), "k/kernel": (3, 3)}), [("fc", ["q", "k"])]
    assert wd.from_torch(optimizer("AdamW", [options]), named, split, names)
    for whole in (lamb, optimizer("AdamWLegacy", [options | {"caution": True}], module="timm.optim.adamw")):
        with pytest.raises(ValueError, match=r"'k/kernel' .*'fc.weight' \(6, 3\).*depends on the whole tensor"):
            wd.from_torch(whole, named, split, names)


def test_integers_are_left_alone():
    params = PARAMS | {"step": jnp.zeros((), jnp.int32)}
    _, table = wd.from_torch(job(named := model(SHAPES)), named, params)
    assert {row.path: row.group for row in table.rows}["step"] == "not trained"


MASKS = ["weights", None, [("fc/kernel", 0.5), (".*", "weights")], [("norm", 1.0), (".*", 0.0)]]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("known", [False, True])
def test_there_and_back(mask, known):
    """The printed source, run on a model, gives groups that are the same mask here."""
    named = model(SHAPES)
    groups = wd.to_torch_groups(PARAMS, mask, weight_decay=0.1, lr=1e-2, named_parameters=named if known else None)
    adamw = lambda groups, lr: job(named, groups, lr=lr)
    names = {
        "torch": type("torch", (), {"optim": type("optim", (), {"AdamW": staticmethod(adamw)})}),
        "model": type("Model", (), {"named_parameters": lambda self: iter(named.items())})(),
    }
    exec(compile(str(groups), "printed", "exec"), names)
    tx, _ = wd.from_torch(names["optimizer"], named, PARAMS)
    assert decayed(tx) == pytest.approx(decayed(wd.adamw(1e-2, weight_decay=0.1, mask=mask)))


def test_the_source_names_what_the_model_lacks():
    source = str(wd.to_torch_groups(PARAMS, weight_decay=0.1, names=[("^fc/", "linear/")]))
    assert "'linear.weight'" in source
    assert "torch" not in source
    names = {"model": type("Model", (), {"named_parameters": lambda self: iter(model(SHAPES).items())})()}
    with pytest.raises(AssertionError, match=r"'fc.bias', 'fc.weight', 'linear.bias', 'linear.weight'"):
        exec(source, names)


def test_parts_of_one_parameter_have_one_decay():
    params = flax({"q/kernel": (2, 2), "k/kernel": (2, 2)})
    names, torch = [("qk", ["q", "k"])], model({"qk.weight": (4, 2)})
    made = wd.to_torch_groups(params, weight_decay=0.1, names=names, named_parameters=torch)
    assert made.groups == ((0.1, ("qk.weight",)),)
    with pytest.raises(ValueError, match=r"'k/kernel' and 'q/kernel' are both 'qk.weight'.*one multiplier"):
        wd.to_torch_groups(params, [("q", 1.0), ("k", 0.5)], weight_decay=0.1, names=names, named_parameters=torch)
    with pytest.raises(ValueError, match=r"are both 'x.weight'.*correct names"):
        wd.to_torch_groups(params, weight_decay=0.1, names=lambda path: "x/kernel")


def test_a_stack_becomes_its_layers():
    torch = model({f"layers.{i}.fc.weight": (2, 3) for i in range(3)})
    params = flax({"layers/fc/kernel": (3, 3, 2)})
    made = wd.to_torch_groups(params, weight_decay=0.1, named_parameters=torch)
    assert made.groups == ((0.1, tuple(torch)),)
    assert np.size(fake_torch.split(np.zeros(18), {n: x.shape for n, x in torch.items()})["layers.1.fc.weight"]) == 6
