"""Adam's b2, eps and eps_root, measured: its state doesn't hold them, and the metric of a proximal step needs them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wd_optax.prox.metrics import ProxMetric, adam_metric
from wd_optax.state_fields import is_namedtuple

STEPS_TAKEN = (
    1,
    10,
    100,
    1000,
    10_000,
)  # where to measure: at the first of them the learning rate of a warm-up may be 0
CLOSE = 1e-4  # relative, of float32
LARGE_NU = 2.0**40  # of ν, beside which eps is nothing


class _Response(NamedTuple):
    """One step without a gradient, from a state in which every weight has these moments."""

    update: float
    mu: float  # after the step
    nu: float


def infer_adam_metric(optimizer: optax.GradientTransformation) -> ProxMetric | None:
    """`adam_metric` of an optimizer with one `optax.scale_by_adam` in it, from its steps on a tree of one weight.

    Without a gradient ν ← b2·ν, and the step is proportional to m̂/(√v̂ + ε). Both are measured at several ν with
    whatever is around Adam at work: clips see a gradient of zero, decays cancel between m and −m, and learning rates in
    ratios. Every other formula, such as Adamax's or a trust ratio's, fails the comparison at the end.

    Returns:
      The metric; None where the steps aren't Adam's or can't be taken so, as in an `optax.partition`.
    """
    try:
        with jax.ensure_compile_time_eval():
            numbers = next(filter(None, (_infer(optimizer, count) for count in STEPS_TAKEN)), None)
    except Exception:  # whatever an optimizer raises on a strange tree; the caller then asks for the metric
        return None
    return None if numbers is None else adam_metric(*numbers)


def is_adam(node: Any) -> bool:
    """Whether a node is the state of `optax.scale_by_adam`."""
    return type(node).__name__ == "ScaleByAdamState"


def _infer(optimizer: optax.GradientTransformation, count: int) -> tuple[float, float, float] | None:
    """(b2, eps, eps_root), or None where the step is 0 at this count, or not Adam's."""
    zeros, ones = ({"kernel": jnp.full((1, 1), x, jnp.float32)} for x in (0, 1))
    optimizer, state = optax.with_extra_args_support(optimizer), optimizer.init(ones)
    if sum(map(is_adam, jax.tree.leaves(state, is_leaf=is_adam))) != 1:
        return None

    def respond(mu: float, nu: float) -> _Response:
        """Half of the difference between m and −m, in which a decay of the weight cancels."""
        (up, new), (down, _) = (optimizer.update(zeros, _edit(state, m, nu, count), ones) for m in (mu, -mu))
        node = next(filter(is_adam, jax.tree.leaves(new, is_leaf=is_adam)))
        up, down, mu, nu = (float(jnp.squeeze(x["kernel"])) for x in (up, down, node.mu, node.nu))
        return _Response((up - down) / 2, mu, nu)

    large = respond(1.0, LARGE_NU)
    b2 = large.nu / LARGE_NU
    if not (0 < b2 < 1 and large.update and math.isfinite(large.update)):
        return None
    unbiased = b2 / (1 - b2 ** (count + 1))  # v̂/ν before the step
    scale = large.update / large.mu * math.sqrt(unbiased * LARGE_NU)  # the step is scale·mu/(√(v̂ + eps_root) + eps)
    at_zero = respond(1.0, 0.0)
    total = 0.0 if math.isinf(at_zero.update) else scale * at_zero.mu / at_zero.update  # √eps_root + eps
    root = 0.0
    if total:
        again = respond(1.0, total**2 / unbiased)  # v̂ = total²
        q = scale * again.mu / again.update / total - 1  # √(1 + x²) − x, with x = √eps_root/total
        x = (1 - q**2) / (2 * q)
        root = 0.0 if x < 10 * CLOSE else min(x, 1.0) * total
    eps = max(total - root, 0.0)
    for mu, nu in ((1.0, 1.0), (-2.0, 1e-4), (1.0, (3 * total) ** 2 / unbiased)):
        got = respond(mu, nu)
        denominator = math.sqrt(unbiased * nu + root**2) + eps
        if denominator and not math.isclose(got.update, scale * got.mu / denominator, rel_tol=10 * CLOSE):
            return None
    return b2, eps, root**2


def _edit(state: optax.OptState, mu: float, nu: float, count: int) -> optax.OptState:
    """The state with these moments, and this count wherever one is called so."""

    def change(node: Any) -> Any:
        if not is_namedtuple(node):
            return node
        fields = node._asdict()
        if "count" in fields and jnp.ndim(fields["count"]) == 0:
            fields["count"] = jnp.full_like(fields["count"], count)
        if is_adam(node):
            fields |= {name: jax.tree.map(lambda x, v=v: jnp.full_like(x, v), fields[name]) for name, v in moments}
        return type(node)(**{name: walk(value) for name, value in fields.items()})

    def walk(tree: Any) -> Any:
        return jax.tree.map(change, tree, is_leaf=is_namedtuple)

    moments = (("mu", mu), ("nu", nu))
    return walk(state)
