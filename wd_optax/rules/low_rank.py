"""Decay of the product of two factors, as LoRA's AB, in place of each factor's own."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wd_optax.hyperparams import Scalar, check_number
from wd_optax.masking import paths, roles
from wd_optax.masking.errors import most_similar, refuse
from wd_optax.masking.matching import Regex, compile_regex
from wd_optax.rules.checks import check_is_first

Pairs = Sequence[tuple[Regex, str, Scalar]]
_Matched = dict[tuple[str, str], Scalar]  # the paths of A and B -> s
_PAIRS_FORM = r'[(path of A, path of B, scale), ...], as [("(.*)/lora_a", r"\1/lora_b", 2.0)]'


def low_rank(pairs: Pairs) -> optax.GradientTransformation:
    r"""r(A) = s²·A(BBᵀ), r(B) = s²·(AᵀA)B: the gradient of ½‖s·AB‖², so the product decays and not its factors.

    Plain decay of A and B is a penalty on the nuclear norm of AB, and shrinks AB by (1 − c)² per step: to shrink AB by
    exactly c, no rule is needed, only `wd.shrink(1 - (1 - c) ** 0.5)`, or multipliers that give both this rate. This
    rule is ridge on the weight that LoRA adds. It goes through the r×r matrices BBᵀ and AᵀA, O((m + n)r²), and never
    forms AB. It is stable while c·s²·‖B‖₂² and c·s²·‖A‖₂² are below 2.

    Args:
      pairs: [(a, b, scale), ...]. a is a regex for the whole path of A (…, m, r), or just that path; b is the path of
        B (…, r, n), where \1 is a's first group; s is what multiplies AB, such as alpha/r. Leading axes are a batch,
        such as stacked layers. A factor of several pairs gets the sum. PEFT's weight is B·A, with lora_B (m, r): there
        a is lora_B's path, and b lora_A's. All other leaves have r(p) = p.

    Returns:
      A rule without arrays; the first in a chain.

    Raises:
      ValueError, TypeError: for pairs of another form at once; at `init` for a path that is missing, with the nearest
        ones, for shapes that don't multiply, and where one of the two doesn't decay.

    Example: with B = 0, as LoRA starts, nothing decays.
      >>> import jax.numpy as jnp, optax, wd_optax as wd
      >>> tx = wd.sgdw(0.1, weight_decay=1.0, rule=wd.rules.low_rank([("(.*)/lora_a", r"\1/lora_b", 2.0)]))
      >>> for b in (0.0, 0.5):
      ...     params = {"up": {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.full((1, 2), b)}}
      ...     updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
      ...     print(*(f"{updates['up'][name][0, 0] + 0:.2f}" for name in ("lora_a", "lora_b")))  # A: −0.1·4·(2·b²)
      0.00 0.00
      -0.20 -0.60

    References: Hu et al. 2022, arXiv 2106.09685 (LoRA); Srebro, Rennie & Jaakkola 2004, "Maximum-Margin Matrix
      Factorization" (decay of two factors and the nuclear norm).
    """
    compiled = _compile(pairs)

    def init(params: optax.Params) -> optax.EmptyState:
        _match(compiled, params)
        return optax.EmptyState()

    def update(
        updates: optax.Params, state: optax.EmptyState, params: Any = None
    ) -> tuple[optax.Params, optax.EmptyState]:
        fix = "it goes first, as in optax.chain(wd.rules.low_rank([...]), wd.rules.cautious())"
        check_is_first("low_rank(...)", updates, params, fix)
        flat, _ = paths.flatten(updates)
        factors: dict[str, jax.Array] = dict(flat)
        r: dict[str, jax.Array] = {}
        for (a, b), scale in _match(compiled, updates).items():
            for path, gradient in zip((a, b), _gradients(factors[a], factors[b], scale), strict=True):
                r[path] = r[path] + gradient if path in r else gradient
        return jax.tree.unflatten(jax.tree.structure(updates), [r.get(path, p) for path, p in flat]), state

    return optax.GradientTransformation(init, update)


def _gradients(a: jax.Array, b: jax.Array, scale: Scalar) -> tuple[jax.Array, jax.Array]:
    """s²·A(BBᵀ) and s²·(AᵀA)B, in full precision also where a device would round factors to fewer bits."""

    def times(x: jax.Array, y: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(x.dtype, y.dtype)
        return jnp.matmul(x.astype(dtype), y.astype(dtype), precision=jax.lax.Precision.HIGHEST)

    def scaled(x: jax.Array) -> jax.Array:
        return x * jnp.square(jnp.asarray(scale)).astype(x.dtype)

    a_adjoint, b_adjoint = (jnp.conj(x).mT for x in (a, b))
    return scaled(times(a, times(b, b_adjoint))), scaled(times(times(a_adjoint, a), b))


def _compile(pairs: Any) -> list[tuple[re.Pattern[str], str, Scalar]]:
    if isinstance(pairs, str) or not isinstance(pairs, Sequence) or not pairs:
        raise TypeError(f"pairs={pairs!r}: expected {_PAIRS_FORM}")
    if isinstance(pairs[0], str):
        raise TypeError(f"pairs={pairs!r} is one pair: write [{tuple(pairs)!r}]")
    compiled = []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 3 or not isinstance(pair[1], str):
            raise TypeError(f"pairs: {pair!r} is no pair: expected {_PAIRS_FORM}")
        check_number("scale", pair[2])
        compiled.append((compile_regex("pairs", pair[0]), pair[1], pair[2]))
    return compiled


def _match(compiled: list[tuple[re.Pattern[str], str, Scalar]], params: optax.Params) -> _Matched:
    """The pairs of these parameters; those of which both factors are hidden, as `optax.masked` does, are left out."""
    found, hidden = roles.parameters_and_hidden(params)
    by_path = {p.path: p for p in found}
    matched: _Matched = {}
    for pattern, template, scale in compiled:
        matches = [match for path in (*by_path, *hidden) if (match := pattern.fullmatch(path))]
        if found and not matches:
            text = f"low_rank: {pattern.pattern!r} is the whole path of no parameter; the nearest are"
            refuse(text, most_similar(pattern.pattern, found))
        for match in matches:
            a, b = match.string, _expand(match, template)
            if a in hidden and b in hidden:
                continue
            _check_pair(a, b, by_path, hidden, found)
            matched.setdefault((a, b), scale)
    return matched


def _expand(match: re.Match[str], template: str) -> str:
    try:
        return match.expand(template)
    except (re.error, IndexError) as error:
        raise ValueError(f"low_rank: {template!r} doesn't fit the groups of {match.re.pattern!r}: {error}") from None


def _check_pair(
    a: str, b: str, by_path: dict[str, roles.Parameter], hidden: list[str], found: list[roles.Parameter]
) -> None:
    for path, other in ((b, a), (a, b)):
        if path in hidden:
            raise ValueError(
                f"low_rank: {other!r} decays and {path!r}, the other factor, doesn't: give both the same mask, since "
                "the decay of each needs the other"
            )
        if path not in by_path:
            refuse(
                f"low_rank: the partner of {other!r}, {path!r}, is no parameter; the nearest are",
                most_similar(path, found),
            )
    shape_a, shape_b = by_path[a].shape, by_path[b].shape
    if min(len(shape_a), len(shape_b)) < 2 or shape_a[:-2] != shape_b[:-2] or shape_a[-1] != shape_b[-2]:
        refuse(
            f"low_rank: {a!r} and {b!r} don't multiply: expected (…, m, r) and (…, r, n), got {shape_a} and {shape_b}. "
            "The left factor of the product comes first: in PEFT that is lora_B",
            [by_path[a], by_path[b]],
        )
