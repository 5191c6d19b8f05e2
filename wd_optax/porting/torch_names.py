"""Which leaf of a JAX tree a PyTorch parameter is, by name and shape.

Names are compared word by word: `transformer.h.0.attn.c_attn.weight` is `h_0/attn/c_attn/kernel`. The last word may be
another one of its kind (`weight` of torch is `kernel`, `scale` or `embedding`), and one of the names may have more
words in front. The shapes must hold the same number of entries: transposed, or with the heads on an axis of their own.
"""

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, NoReturn

import jax.numpy as jnp

from wd_optax import tables
from wd_optax.masking.matching import Regex, compile_regex
from wd_optax.masking.roles import Parameter
from wd_optax.porting.torch_job import TorchParameter

To = str | Sequence[str] | None  # the new name; several where a tensor is split; () leaves it out; None changes nothing
TorchNames = Callable[[str], To] | Sequence[tuple[Regex, str | Sequence[str]]]

KINDS = {
    **dict.fromkeys(("weight", "kernel", "scale", "embedding", "w", "gamma"), "weight"),
    **dict.fromkeys(("bias", "b", "offset", "beta"), "bias"),
}


class _Key(NamedTuple):
    words: tuple[str, ...]  # of the layer: ("h", "0", "attn")
    kind: str  # of the leaf
    last: str  # its own name

    def is_like(self, other: "_Key") -> bool:
        """Whether one ends as the other does."""
        n = min(len(self.words), len(other.words))
        return self.kind == other.kind and self.words[len(self.words) - n :] == other.words[len(other.words) - n :]


def _key(name: str) -> _Key:
    layer, _, last = name.replace(".", "/").rpartition("/")
    last = last.lower()
    return _Key(tuple(re.findall(r"[^\W\d_]+|\d+", layer.lower())), KINDS.get(last, last), last)


class _Item(NamedTuple):
    """Something of torch's that is to be found: a tensor, or a part of one that is split."""

    number: int  # of the tensor
    keys: tuple[_Key, ...]  # one for each name of a tied tensor
    size: int | None  # how many entries it has, if that is known

    def could_be(self, leaf: Parameter) -> bool:
        key, fits = _key(leaf.path), self.size in (None, math.prod(leaf.shape))
        return fits and any(own.is_like(key) for own in self.keys)


_Links = dict[int, set[int]]  # torch parameter -> leaves

# From the surest to the least sure.
AGREES: tuple[Callable[[_Key, _Key], bool], ...] = (
    lambda a, b: a == b,
    lambda a, b: a[:2] == b[:2],
    lambda a, b: a.is_like(b),
)


def sources(torch: Sequence[TorchParameter], leaves: Sequence[Parameter], names: TorchNames | None) -> list[list[int]]:
    """Per leaf, the indices of the torch parameters that it is made of: one, or those of a stack.

    Args:
      torch: PyTorch's parameters.
      leaves: those of the JAX tree.
      names: torch's name -> the path, or a name that has more of it: None is by the rules of this module. A function,
        or regex pairs, all of which are substituted in turn.

    Raises:
      ValueError: for a parameter or leaf without partner, or one that has several.
    """
    links: _Links = {i: set() for i in range(len(torch))}
    by_path, items = {leaf.path: j for j, leaf in enumerate(leaves)}, []
    for i, p in enumerate(torch):
        renamed = [(name, rename(name, names)) for name in p.names]
        found = [(by_path.get(new.replace(".", "/")), new, len(to)) for name, to in renamed for new in to]
        links[i] = {j for j, new, _ in found if j is not None and (new not in p.names or _same_size(p, leaves[j]))}
        items += [_Item(i, (_key(new),), None) for j, new, parts in found if parts > 1 and j is None]
        whole = tuple(_key(new) for _, new, parts in found if parts == 1)
        items += [_Item(i, whole, _entries_of([p]))] if whole and not links[i] else []
    items = _stacks(_by_words(items, leaves, links), leaves, links)
    if items:
        taken = {j for js in links.values() for j in js}
        _refuse_torch(torch[items[0].number], items[0], [x for j, x in enumerate(leaves) if j not in taken])
    _check_partners(torch, leaves, links)
    return [[i for i in links if j in links[i]] for j in range(len(leaves))]


def rename(name: str, names: TorchNames | None) -> list[str]:
    """What `names` makes of a name: the name itself, another one, several, or none."""
    if names is None:
        return [name]
    if callable(names):
        to = names(name)
        return [name] if to is None else [to] if isinstance(to, str) else list(to)
    found = [name]
    for pair in names:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"names: {pair!r} is not a (regex, replacement), as ('^blocks.', 'layers/')")
        pattern = compile_regex("names", pair[0])
        to = [pair[1]] if isinstance(pair[1], str) else list(pair[1])
        found = [
            new
            for old in found
            for new in ([pattern.sub(r, old) for r in to] if pattern.search(old) else [old])
        ]  # fmt: skip
    return found


def _by_words(items: list[_Item], leaves: Sequence[Parameter], links: _Links) -> list[_Item]:
    """Links items that have one candidate, the surest first, until nothing changes; returns the others."""
    for agrees in AGREES:
        changed = True
        while changed:
            free = _by_last_word(leaves, links)
            wanted = defaultdict(list)
            for item in items:
                near = {j for key in item.keys for j, other in free(key) if agrees(key, other)}
                near = {j for j in near if item.size in (None, math.prod(leaves[j].shape))}
                if len(near) == 1:
                    wanted[near.pop()].append(item)
            sure = {j: found[0] for j, found in wanted.items() if len(found) == 1}
            for j, item in sure.items():
                links[item.number].add(j)
            items = [item for item in items if item not in sure.values()]
            changed = bool(sure)
    return items


def _by_last_word(leaves: Sequence[Parameter], links: _Links) -> Callable[[_Key], list[tuple[int, _Key]]]:
    """The leaves without partner that a key could be, as a look-up."""
    taken = {j for js in links.values() for j in js}
    by_word, by_kind = defaultdict(list), defaultdict(list)
    for j, leaf in [(j, leaf) for j, leaf in enumerate(leaves) if j not in taken]:
        key = _key(leaf.path)
        by_word[key.kind, key.words[-1:]].append((j, key))
        by_kind[key.kind].append((j, key))

    def look_up(key: _Key) -> list[tuple[int, _Key]]:
        return by_word[key.kind, key.words[-1:]] + by_word[key.kind, ()] if key.words else by_kind[key.kind]

    return look_up


def _stacks(items: list[_Item], leaves: Sequence[Parameter], links: _Links) -> list[_Item]:
    """Links layers 0, 1, ... of torch to the leaf that stacks them all; returns the others."""
    taken = {j for js in links.values() for j in js}
    numbered = [(item, key, at) for item in items for key in item.keys for at, x in enumerate(key.words) if x.isdigit()]
    linked: list[_Item] = []
    for j, leaf in [(j, leaf) for j, leaf in enumerate(leaves) if j not in taken]:
        own = _key(leaf.path)
        layers: dict[tuple[str, ...], dict[int, _Item]] = defaultdict(dict)
        for item, key, at in numbered:
            rest = key.words[:at] + key.words[at + 1 :]
            if key._replace(words=rest).is_like(own):
                layers[(*key.words[:at], "*", *rest[at:])][int(key.words[at])] = item
        full = [x for x in layers.values() if sorted(x) == list(range(len(x))) and len(x) in leaf.shape]
        full = [x for x in full if {item.size for item in x.values()} <= {None, math.prod(leaf.shape) // len(x)}]
        if len(full) == 1:
            linked += full[0].values()
            for item in full[0].values():
                links[item.number].add(j)
    return [item for item in items if item not in linked]


def _same_size(p: TorchParameter, leaf: Parameter) -> bool:
    return p.shape is None or math.prod(p.shape) == math.prod(leaf.shape)


def _entries_of(parameters: Iterable[TorchParameter]) -> int | None:
    """Their entries, None where a shape isn't known."""
    shapes = [p.shape for p in parameters]
    return None if None in shapes else sum(math.prod(shape) for shape in shapes if shape is not None)


def _check_partners(torch: Sequence[TorchParameter], leaves: Sequence[Parameter], links: _Links) -> None:
    """Raises for a leaf without partner, and where several share and their sizes differ."""
    for j, leaf in enumerate(leaves):
        own = [i for i in links if j in links[i]]
        if not own and jnp.issubdtype(leaf.dtype, jnp.inexact):
            near = _nearest(leaf.path, [name for p in torch for name in p.names])
            pair = ((near or ["regex"])[0], leaf.path)
            raise ValueError(
                f"params: {leaf.path!r} of shape {leaf.shape} has no PyTorch parameter; the nearest are "
                f"{', '.join(map(repr, near)) or 'none'}: say which it is, names=[{pair!r}]; a weight that "
                "is tied in PyTorch must be tied here, too"
            )
        group = {k for i in own for k in links[i]}
        whole = sum(math.prod(leaves[k].shape) for k in group)
        if len(own) + len(group) > 2 and _entries_of(torch[i] for i in links if links[i] & group) not in (None, whole):
            parts = ", ".join(f"{torch[i].name!r} {_show_shape(torch[i].shape)}" for i in own)
            raise ValueError(
                f"params: {', '.join(repr(leaves[k].path) for k in sorted(group))} with {whole} entries in all "
                f"{'are' if len(group) > 1 else 'is'} {parts} of PyTorch, which has another size: correct names; a "
                "weight that is tied in PyTorch must be tied here, too"
            )


def _refuse_torch(p: TorchParameter, item: _Item, free: list[Parameter]) -> NoReturn:
    """Raises for a parameter that could be no leaf, or several."""
    regex = "^" + re.escape(p.name) + "$"
    could = [leaf for leaf in free if item.could_be(leaf)]
    if len(could) > 1:
        raise ValueError(
            f"named_parameters: {p.name!r} {_show_shape(p.shape)} could be any of "
            f"{', '.join(repr(leaf.path) for leaf in could[:5])}: say which, "
            f"names=[({regex!r}, {could[0].path!r})]"
            + "; it is tied in PyTorch, and must be here, too"
            * (len(item.keys) > 1)
        )
    by_path = {leaf.path: leaf for leaf in sorted(free, key=lambda leaf: not _same_size(p, leaf))}
    near = _nearest(p.name, list(by_path))
    shown = ", ".join(f"{path!r} {_show_shape(by_path[path].shape)}" for path in near)
    raise ValueError(
        f"named_parameters: {p.name!r} {_show_shape(p.shape)} matches no path of params; of those without a partner "
        f"the nearest are {shown or 'none'}: say which it is, names=[({regex!r}, {(near or ['path'])[0]!r})], or leave "
        f"it out, names=lambda name: () if name == {p.name!r} else None"
    )


def _nearest(text: str, among: list[str]) -> list[str]:
    """The three names most like a name, with the kinds of leaves (`weight` for `kernel`) as their last words."""
    words = " ".join([*_key(text).words, _key(text).kind])

    def likeness(other: str) -> float:
        key = _key(other)
        return difflib.SequenceMatcher(None, words, " ".join([*key.words, key.kind])).ratio()

    return sorted(among, key=likeness, reverse=True)[:3]


def _show_shape(shape: tuple[int, ...] | None) -> str:
    return "of unknown shape" if shape is None else tables.show_shape(shape)
