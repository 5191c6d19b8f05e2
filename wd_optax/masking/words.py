"""The vocabulary of parameter names: what `attention_norm`, `gating_b` or `wte` means, word by word.

The last known word decides, as in English: a `norm_proj` is a projection, a `proj_norm` is a norm.
"""

import functools
import itertools
import re
from collections.abc import Iterable

_SPLIT = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # LayerNorm_0 → Layer, Norm, 0; RMSNorm → RMS, Norm
_KINDS = {
    "bias": r"bias(es)?|beta|offset|shift",
    "norm": r"\w*norm(s|ali[sz]ation)?|\w{0,4}ln|(ln|bn|gn|rms)f?",
    "scale": r"\w*scales?|gamma|gain|lambda",
    "embedding": r"\w*embed\w*|\w*emb|wte|wpe|codebook",
    "token": r"cls|tokens?|temperature|temp|tau|freqs?|frequenc(y|ies)|probe|sinks?|alpha|slope|skip",
    "matrix": r"\w*kernels?|\w*proj|projections?|projector|linear|dense|einsum|matrix|conv\w*|filters?|fc|mlp|ffn?|head"
    r"|net|router|qkv|lora|modulation",
}
_WORDS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}
_LAYER_KINDS = {"bias": {"bias"}, "token": {"cls", "token", "tokens"}}  # `shift` and `skip` may be layers of any kind
_NEUTRAL = {"weight", "weights", "param", "params", "table", "layer", "layers", "vector", "values"}
_STATISTICS = {"mean", "var", "variance", "std", "stddev"}  # as a last word
_OF_MATRICES = {"q", "k", "v", "o", "qkv", "kv", "query", "key", "value", "out", "output", "attn", "attention"}
_OF_MATRICES |= {"gate", "up", "down"}
_KERNEL = re.compile(r".*kernel|[wW]\d*|[wW]_.*|W[A-Za-z]{1,2}|w[a-z]")
_SHORT_BIAS = re.compile(r"b(?:\d+|_[A-Za-z0-9]+)?")  # b, b1, b_Q; "B" is a matrix
_ONE_VECTOR = re.compile(r"(cls|class|mask|masked_spec|sep|pad|bos|eos|null\w*|uncond\w*|no_\w+)_emb(ed(ding)?)?")
_STATE = re.compile(
    r"a_log|log_a(_real)?|a_(re|im|real|imag|param)|dt_bias|(log|inv)_(step|dt|delta)|lambda_(re|im)"
    r"|(nu|theta|gamma)_log|time_(decay|first|mix\w*|maa\w*|faaaa)"
)
_OF_STATE_SPACES = {"b", "b_re", "b_im", "d", "p", "nu", "theta"}  # with a sibling that only state spaces have


@functools.cache
def split(name: str) -> tuple[str, ...]:
    """The words of a name, lower case."""
    return tuple(word.lower() for word in _SPLIT.findall(name))


@functools.cache
def of_leaf(name: str) -> str:
    """The kind of a leaf by its name: a key of `_KINDS`, "state" or ""."""
    if is_state_space(name):
        return "state"
    words = split(name)
    kinds = [kind for word in reversed(words) if (kind := _kind(word))]
    if _SHORT_BIAS.fullmatch(name) and kinds[:1] in ([], ["matrix"]) and not name.endswith("kernel"):
        return "bias"
    if words[-1:] == ("g",) or [word for word in words if not word.isdigit()] == ["ls"]:
        return "scale"
    if "token" in kinds and "embedding" in kinds:  # token_embedding, embed_tokens
        return "embedding"
    if kinds and not (kinds[0] == "matrix" and words[-1] == "b"):  # kv_b is the second of two matrices or a bias
        return kinds[0]
    if words and words[-1] in _STATISTICS:
        return "token"
    return "matrix" if _KERNEL.fullmatch(name) else ""


@functools.cache
def of_layer(name: str) -> str:
    """The kind of a layer by its name: "norm" or "embedding" if any word says so, another kind by the last word."""
    words = [word for word in split(name) if word not in _NEUTRAL and not word.isdigit()]
    words = list(itertools.takewhile(lambda word: word != "with", words))  # attention_with_pair_bias is an attention
    kinds = [_kind(word) for word in words]
    if kinds[-1:] == ["matrix"]:
        return "matrix"
    if re.search(r"(weight|spectral)_?norm", name.lower()):  # around a layer of any kind
        return ""
    if "norm" in kinds or words == ["ls"]:
        return "norm"
    if "embedding" in kinds:
        return "embedding"
    last = next((pair for pair in zip(words[::-1], kinds[::-1], strict=True) if len(pair[0]) > 1), ("", ""))
    return last[1] if last[0] in _LAYER_KINDS.get(last[1], {last[0]}) else ""


@functools.cache
def is_plain(name: str) -> bool:
    """Whether the name says nothing, so that the layer's name decides: `weight`, `weights_0`."""
    return all(word in _NEUTRAL or word.isdigit() for word in split(name))


@functools.cache
def contains_weight(name: str) -> bool:
    """Whether the name has the word weight, which may be a matrix or a norm's scale."""
    return not {"weight", "weights"}.isdisjoint(split(name))


@functools.cache
def is_kernel(name: str) -> bool:
    """Whether the name is that of a weight at any rank: `kernel`, `w`, `W_Q`."""
    return _KERNEL.fullmatch(name) is not None


@functools.cache
def is_matrix_layer(name: str) -> bool:
    """Whether a layer's name says that its weight is a matrix."""
    return any(_kind(word) == "matrix" or word in _OF_MATRICES for word in split(name))


@functools.cache
def is_one_vector(name: str) -> bool:
    """Whether an embedding is that of one thing: `mask_embedding`."""
    return _ONE_VECTOR.fullmatch(name.lower()) is not None


@functools.cache
def is_lora(layer: str, name: str) -> bool:
    """Whether it is one of LoRA's two matrices."""
    return "lora" in name.lower() or ("lora" in layer.lower() and name in ("a", "b"))


def is_state_space(name: str, siblings: Iterable[str] = ()) -> bool:
    """Whether a leaf with these siblings is a parameter of a state space (S4, S5, LRU, Mamba, RWKV), not a weight."""
    return _names_state_space(name) or (name.lower() in _OF_STATE_SPACES and any(map(_names_state_space, siblings)))


@functools.cache
def weights_of(name: str) -> list[str]:
    """Possible names of its weight, if the name is that of a bias: gating_b → gating_w, bq → wq."""
    if match := re.fullmatch(r"(.+_)b", name):
        return [match[1] + w for w in ("w", "W", "weight", "weights", "kernel")]
    if match := re.fullmatch(r"b(_?[A-Za-z0-9]+)", name):
        return ["w" + match[1], "W" + match[1]]
    return []


@functools.cache
def biases_of(name: str) -> list[str]:
    """Possible names of its bias, if the name is that of a weight: kernel → bias, gating_w → gating_b."""
    if contains_weight(name) and of_leaf(name) != "scale":
        return ["bias", name.replace("weights", "bias").replace("weight", "bias")]
    if match := re.fullmatch(r"(.+_)[wW]", name):
        return [match[1] + "b", match[1] + "bias"]
    if match := re.fullmatch(r"[wW](_?[A-Za-z0-9]*)", name):
        return ["b" + match[1]]
    return ["bias"] if is_kernel(name) else []


@functools.cache
def _names_state_space(name: str) -> bool:
    return _STATE.fullmatch(name.lower()) is not None


@functools.cache
def _kind(word: str) -> str:
    return next((kind for kind, pattern in _WORDS.items() if pattern.fullmatch(word)), "")
