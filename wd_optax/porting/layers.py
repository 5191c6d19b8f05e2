"""Layer-wise decay of η and λ: which layer a parameter belongs to, and the factor of that layer."""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax import dtypes
from wd_optax.masking import roles, words
from wd_optax.masking.matching import compile_regex

# Parameters outside the layers that come before them; the rest, such as the final norm and the head, come after.
_BEFORE = {"cls", "embed", "embeddings", "embedding", "embedder", "mask", "patch", "pos", "posemb", "stem", "token"}
_BEFORE |= {"tokens", "wpe", "wte"}
_AFTER = {"head", "lm", "logits", "rel", "relative"}


class LayerDecay(NamedTuple):
    r"""η and λ of layer i of 0 … n, times lr^(n − i) and weight_decay^(n − i): the last layer keeps them.

    Layer 0 is embeddings, patches, positions and tokens; the layers come next, in the order of the number in their
    path; the final norm, the head and whatever else is outside are layer n, as in BEiT and timm.

    Attributes:
      lr: the factor of η per layer, 0.75 in BEiT's fine-tuning.
      weight_decay: the factor of λ per layer.
      layers: a regex whose first group is the layer's number, r"blocks/(\d+)"; None: the numbered components that are
        most numerous.
      stacked: a regex of the paths whose axis 0 counts layers, as `nn.scan` stacks them.

    Example: three blocks between an embedding and a head.
      >>> import jax.numpy as jnp, wd_optax as wd
      >>> leaf = {"kernel": jnp.ones((2, 2))}
      >>> params = {"embed": leaf, "block_0": leaf, "block_1": leaf, "block_2": leaf, "head": leaf}
      >>> decay = wd.LayerDecay(lr=0.5)
      >>> table = wd.emulate.explain("torch.optim.SGD", params=params, lr=1.6, layer_decay=decay)
      >>> {row.path: row.learning_rate for row in table.rows}
      {'block_0/kernel': 0.2, 'block_1/kernel': 0.4, 'block_2/kernel': 0.8, 'embed/kernel': 0.1, 'head/kernel': 1.6}

    References: Bao et al. 2022, arXiv 2106.08254 (BEiT); Clark et al. 2020, arXiv 2003.10555 (ELECTRA).
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    layers: str | None = None
    stacked: str | None = None


class Layer(NamedTuple):
    """The layer of a parameter."""

    number: int  # 0 … last; of a stack: of its first slice
    last: int
    slices: int = 0  # how many layers axis 0 of a stacked parameter counts

    @property
    def above(self) -> int:
        """How many layers are above."""
        return self.last - self.number

    def __str__(self) -> str:
        return f"layer {self.number}" + f"–{self.number + self.slices - 1}" * bool(self.slices) + f" of 0–{self.last}"


def number_layers(found: list[roles.Parameter], decay: LayerDecay) -> list[Layer]:
    """The layer of each parameter.

    Raises:
      ValueError: where no path has a number, or several kinds of components are equally numerous.
    """
    for name, factor in (("lr", decay.lr), ("weight_decay", decay.weight_decay)):
        if isinstance(factor, bool) or not 0 < factor <= 1:
            raise ValueError(
                f"layer_decay: {name}={factor!r} is the factor per layer and must be in (0, 1], such as 0.75"
            )
    stacked = compile_regex("layer_decay.stacked", decay.stacked) if decay.stacked else None
    in_stack = [stacked is not None and stacked.search(p.path) is not None for p in found]
    depth = _stack_depth(decay, found, in_stack)
    pattern = None if depth and not decay.layers else _pattern(found, decay)
    numbers = [_layer_number(pattern, p.path) for p in found]
    order = sorted({n for n in numbers if n is not None})
    if depth and order:
        raise ValueError(f"layer_decay: {decay.stacked!r} are stacked layers and others are numbered: give one of them")
    last = max(depth, len(order)) + 1

    def layer(p: roles.Parameter, n: int | None, stack: bool) -> Layer:
        if stack:
            return Layer(1, last, p.shape[0])
        return Layer((0 if _comes_first(p) else last) if n is None else order.index(n) + 1, last)

    return [layer(p, n, stack) for p, n, stack in zip(found, numbers, in_stack, strict=True)]


def _stack_depth(decay: LayerDecay, found: list[roles.Parameter], in_stack: list[bool]) -> int:
    depths = {p.shape[:1]: p.path for p, stack in zip(found, in_stack, strict=True) if stack}
    if decay.stacked and (not depths or len(depths) > 1 or () in depths):
        raise ValueError(
            f"layer_decay.stacked={decay.stacked!r}: axis 0 of what it matches must count the layers, and be one "
            f"number; got {', '.join(f'{path!r} with {shape}' for shape, path in depths.items()) or 'no parameter'}"
        )
    return next(iter(depths))[0] if depths else 0


def _pattern(found: list[roles.Parameter], decay: LayerDecay) -> re.Pattern[str]:
    if decay.layers is not None:
        pattern = compile_regex("layer_decay.layers", decay.layers)
        if pattern.groups < 1 or not any(pattern.search(p.path) for p in found):
            raise ValueError(
                f"layer_decay.layers={decay.layers!r} must match paths, and have the number in a group, as in "
                rf"r'blocks/(\d+)'; paths are {', '.join(repr(p.path) for p in found[:5])}"
            )
        return pattern
    counts: dict[str, set[str]] = collections.defaultdict(set)
    for p in found:
        if match := re.search(r"\d+(?=/|$)", p.path):
            counts[p.path[: match.start()]].add(match[0])
    most = max(map(len, counts.values()), default=0)
    best = [prefix for prefix, numbers in counts.items() if len(numbers) == most]
    if len(best) != 1 or most < 2:
        several = "; ".join(f"{prefix}0, {prefix}1, ..." for prefix in best)
        raise ValueError(
            f"layer_decay: which numbers count layers? {several or 'no path has one'}: say it, as "
            r"wd.LayerDecay(lr=..., layers=r'blocks/(\d+)'), or stacked='blocks' where axis 0 counts layers"
        )
    return re.compile(rf"^{re.escape(best[0])}(\d+)(?=/|$)")


def _layer_number(pattern: re.Pattern[str] | None, path: str) -> int | None:
    match = pattern.search(path) if pattern else None
    if match is None:
        return None
    if not (match[1] or "").isdigit():
        raise ValueError(f"layer_decay.layers: the first group is {match[1]!r} in {path!r}, expected a number")
    return int(match[1])


def _comes_first(p: roles.Parameter) -> bool:
    named = set(words.split(p.path))
    return not named & _AFTER and bool(named & _BEFORE or p.role == "embedding")


def with_slice_factors(
    optimizer: optax.GradientTransformation, factors: Mapping[str, Sequence[float]]
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the finished step of each stacked parameter, by path, by one factor per slice of its axis 0."""
    inner = optax.with_extra_args_support(optimizer)

    def scale(path: str, u: jax.Array) -> jax.Array:
        if path not in factors:
            return u
        factor = jnp.asarray(factors[path], dtypes.arithmetic(jnp.finfo(u.dtype).dtype))
        return (u * jnp.expand_dims(factor, range(1, u.ndim))).astype(u.dtype)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = inner.update(updates, state, params, **extra)
        pairs = zip(roles.iterate(updates), jax.tree.leaves(updates), strict=True)
        return jax.tree.unflatten(jax.tree.structure(updates), [scale(p.path, u) for p, u in pairs]), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
