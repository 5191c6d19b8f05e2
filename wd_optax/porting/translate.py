"""`translate`: the arguments with which another framework's call does the same, or what can't be the same."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wd_optax.choosing.timescales import Timescale, timescale
from wd_optax.hyperparams import Schedule
from wd_optax.porting.calls import find
from wd_optax.porting.decay_words import gap, translate_decay, translate_mask
from wd_optax.porting.direction_words import check_families, translate_direction, words_of
from wd_optax.porting.drift import SHAPE, drift, trajectory
from wd_optax.porting.emulate import CALLS
from wd_optax.porting.meaning import Meaning, read
from wd_optax.porting.plan import make_plan
from wd_optax.porting.translation import Translation

NO_DRIFT = (
    1e-9  # float64 sums in another order drift apart by 1e-12 in a few thousand steps; differences of kind by more
)
FEWEST, MOST = 10, 10_000  # steps that are run to measure the drift


def translate(
    *,
    from_: str,
    to: str,
    schedule: Schedule | None = None,
    steps: int | None = None,
    params: optax.Params | None = None,
    **arguments: Any,
) -> Translation:
    """The arguments with which the call `to` does what `from_` does with these, or what can't be the same.

    λ is converted so that a step removes what it removed, c_t = λ·(η_t/η_max)^r·η_t^k. Where no number does that at
    every step, the result's removes as much over the whole run, and says so. Both calls are then run on the same random
    gradients, in float64: `equal` is claimed only if their weights agree, and `drift` is by how much they differ.

    Args:
      from_: the call that the arguments are of, "tfa.AdamW"; `print(wd.emulate.table())` lists all.
      to: the call to translate into.
      schedule: step -> factor of η, as in `wd.emulate`, the same for both.
      steps: the length of the run; required where η or λ is scheduled.
      params: for calls that decay other parameters by default: the result then has the groups that make up for it.
      **arguments: of `from_`, with its names and defaults.

    Returns:
      A `Translation`: `arguments` for `to`, `equal`, `moved` and `differs` with a sentence each, `drift`, and the
      decays `before` and `after` as `wd.timescale` has them. It prints.

    Raises:
      ValueError: for calls of different kinds, such as SGD and Adam, and for a schedule without `steps`.
      TypeError: for an argument that `from_` doesn't have.

    Example: PyTorch's `Adam(weight_decay)` is L2; its AdamW can't do the same. Decoupled, both are one.
      >>> import wd_optax as wd
      >>> l2 = dict(from_="torch.optim.Adam", to="torch.optim.AdamW", lr=1e-3, weight_decay=0.1, steps=100)
      >>> wd.translate(**l2).equal, wd.translate(**l2, decoupled_weight_decay=True).equal
      (False, True)
      >>> wd.translate(**l2, decoupled_weight_decay=True).arguments["weight_decay"]
      0.1
    """
    source, target = find(from_, CALLS), find(to, CALLS)
    check_families(source, target)
    meaning = read(source, arguments, schedule, steps)
    direction = translate_direction(meaning, target)
    decay = translate_decay(meaning, target, direction.eta_factor)
    spared = translate_mask(meaning, target, params)
    found = {target.learning_rate: direction.learning_rate, **direction.arguments, **decay.arguments}
    result = read(target, found, schedule, steps)
    length = min(steps or FEWEST, MOST)
    apart = _measure(meaning, result, schedule, length)
    differs = (*direction.differs, *decay.differs, *spared.differs)
    if not differs and not apart <= NO_DRIFT:
        differs = ("The arguments of both say the same, and the numbers differ: compare their formulas.",)
    moved = (*direction.moved, *decay.moved, *_defaults(result, meaning, arguments), *spared.moved)
    before, after = (_timescale_of(x, steps) for x in (meaning, result))
    return Translation(
        from_=source.name, to=target.name, arguments={**found, **spared.arguments}, equal=not differs, moved=moved,
        differs=differs, drift=apart, decay_gap=_gap(meaning, result), steps=length, before=before, after=after,
    )  # fmt: skip


def _measure(before: Meaning, after: Meaning, schedule: Schedule | None, steps: int) -> float:
    """The drift of both calls."""
    with jax.enable_x64(True):
        params = {"kernel": jax.ShapeDtypeStruct(SHAPE, jnp.float64)}
        calls = ((x.call, x.arguments) for x in (after, before))
        runs = [trajectory(make_plan(call, params, None, None, schedule, own).build(), steps) for call, own in calls]
    return drift(*runs)


def _gap(before: Meaning, after: Meaning) -> float | None:
    rates = [x.removed() for x in (before, after)]
    if any(c is None or c.max() >= 1 for c in rates):
        return None
    return gap(*rates)  # type: ignore[arg-type]  # None is excluded above


def _timescale_of(meaning: Meaning, steps: int | None) -> Timescale | None:
    rates = meaning.removed()
    if rates is None or rates.max() >= 1:
        return None
    given: Any = rates if steps else float(rates[0])
    return timescale(1.0, learning_rate=given, steps=steps)


def _defaults(result: Meaning, meaning: Meaning, given: Mapping[str, Any]) -> list[str]:
    """A sentence for each argument that was left to its default, where the other call has another one."""
    theirs = {name: p.default for name, p in result.call.signature.parameters.items()}
    by_word = {word: name for name, parts in words_of(meaning.call).items() for word in parts}
    out = []
    for name, parts in words_of(result.call).items():
        mine = {by_word[word] for word in parts if word in by_word}
        if not mine or mine & set(given) or np.array_equal(theirs[name], result.arguments[name]):
            continue
        out.append(
            f"{name}={result.arguments[name]!r} is given, because it is {meaning.call.name}'s default and "
            f"{result.call.name}'s is {theirs[name]!r}."
        )
    return out
