"""`with_decay` on every optimizer of `optax` and `optax.contrib` that takes a learning rate, found by introspection.

A new optimizer in Optax falls under these tests by itself; where it needs arguments, the failure says in which table.
"""

import contextlib
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import wd_optax as wd

# Optax keeps deprecated optimizers and arguments (optimistic_adam, dpsgd's seed) until it removes them: so do we.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")

STEPS = 3
LR = 0.01
RATES = jnp.array([1.0, 0.5, 0.2, 0.1]) * LR  # four, for schedule_free looks one step ahead
EPS = float(jnp.finfo(jnp.float32).eps)

# A factory's arguments beside the learning rate.
NEEDS = {
    "dpsgd": {"l2_norm_clip": 1.0, "noise_multiplier": 0.1, "seed": 0},
    "noisy_sgd": {"key": 0},
    "scale_by_backtracking_linesearch": {"max_backtracking_steps": 3},
    "scale_by_zoom_linesearch": {"max_linesearch_steps": 3},
    "schedule_free": {"base_optimizer": optax.sgd(LR)},
}
# The extra arguments of its `update`.
EXTRA = {
    "lbfgs": ("value", "grad", "value_fn"),
    "momo": ("value",),
    "momo_adam": ("value",),
    "polyak_sgd": ("value",),
    "scale_by_backtracking_linesearch": ("value", "grad", "value_fn"),
    "scale_by_polyak": ("value",),
    "scale_by_zoom_linesearch": ("value", "grad", "value_fn"),
    "sophia": ("obj_fn",),
}
# Their loops compile anew at each call, unless the whole update is compiled once.
LOOPS = {"lbfgs", "muon", "scale_by_zoom_linesearch", "sophia"}
# Not for `with_decay`, which wants finished optimizers: the update of these has the sign of what they are given.
STAGES = {
    "scale_by_backtracking_linesearch": "rescales the step that stands before it",
    "scale_by_polyak": "rescales the step that stands before it; polyak_sgd is the optimizer",
    "scale_by_rprop": "an ascent direction; rprop is the optimizer",
    "scale_by_zoom_linesearch": "rescales the step that stands before it; lbfgs is the optimizer",
}
# The rate of these is a number, a first guess or a bound; a schedule is an error.
NO_SCHEDULE = {"optimistic_adam", "polyak_sgd", "rprop", "sm3"}
# These keep a copy of the weights that decay doesn't reach, and pull the weights back to it. The step holds the decay
# that was asked for, but the steps after it take part of it back.
TAKE_BACK = {
    "cocob": "computes p from p₀: takes all of it back",
    "madgrad": "averages p with a point computed from p₀",
    "scale_by_madgrad": "averages p with a point computed from p₀",
    "schedule_free": "averages p with z: schedule_free(with_decay(...)) decays both",
    "schedule_free_adamw": "averages p with z: schedule_free(with_decay(adam(..., b1=0)))",
    "schedule_free_sgd": "averages p with z: schedule_free(with_decay(sgd(...)))",
}


def rate_argument(factory):
    """The parameter of `factory` that is a learning rate, or None."""
    try:
        names = [name for name in inspect.signature(factory).parameters if "learning_rate" in name]
    except (TypeError, ValueError):  # no signature to read: a type of typing, a builtin
        return None
    return "learning_rate" if "learning_rate" in names else next(iter(names), None)


def discover():
    """Every public function of optax and optax.contrib with a learning rate, by name; nadam is a partial one."""
    members = {**vars(optax), **vars(optax.contrib)}
    return {
        name: member
        for name, member in sorted(members.items())
        if not name.startswith("_") and callable(member) and not inspect.isclass(member) and rate_argument(member)
    }


FOUND = discover()
FINISHED = [name for name in FOUND if name not in STAGES]

PARAMS = {
    "query": {"kernel": jnp.array([[0.5, -0.4], [0.3, 0.6]]), "bias": jnp.array([[0.1, 0.2], [0.3, 0.4]])},
    "norm": {"scale": jnp.array([1.0, 0.9])},
}
TARGET = optax.tree.random_like(jax.random.key(0), PARAMS)


def schedule(step):
    return RATES[step]


@jax.jit
def loss(params):
    return 0.5 * optax.tree.norm(optax.tree.sub(params, TARGET), squared=True)


value_and_grad = jax.jit(jax.value_and_grad(loss))


@contextlib.contextmanager
def loosely():
    """Optax mixes int32 counts with Python floats (`b1**count`), which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class UnknownOptimizerError(Exception):
    """Says what to do about an optimizer that these tests can't run."""


def build(name, learning_rate):
    """Optax's optimizer, which computes under standard promotion, whereas whatever wraps it is held to strict."""

    def known(function):
        def call(*args, **kwargs):
            try:
                with loosely():
                    return function(*args, **kwargs)
            except Exception as error:
                raise UnknownOptimizerError(
                    f"optax's {name} fails: {error!r}. Add its arguments to NEEDS, those of its update to EXTRA, its "
                    "refusal of schedules to NO_SCHEDULE, or, if it is no optimizer, the reason to STAGES"
                ) from error

        return call

    tx = known(FOUND[name])(**{rate_argument(FOUND[name]): learning_rate}, **NEEDS.get(name, {}))
    update = optax.with_extra_args_support(tx).update
    if name in LOOPS:
        update = jax.jit(update, static_argnames=("value_fn", "obj_fn"))
    return optax.GradientTransformationExtraArgs(known(tx.init), known(update))


def inputs(name, params):
    """Gradients, as random as TARGET, and the extra arguments that the optimizer asks for."""
    value, grads = value_and_grad(params)
    extra = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss}
    given = jax.tree.map(lambda g: jnp.stack([g, g]), grads) if name == "dpsgd" else grads  # one per example
    return given, {key: extra[key] for key in EXTRA.get(name, ())}


def dot(a, b):
    return sum(np.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def run(name, learning_rate, c, **options):
    """Steps with decay next to steps without it from the same state; c is what each step should remove."""
    base = build(name, learning_rate)
    tx = wd.with_decay(base, learning_rate=learning_rate, **options)
    params, state, slope = PARAMS, tx.init(PARAMS), 0.0
    chex.assert_trees_all_equal(state.inner, base.init(PARAMS))
    for step in range(STEPS):
        given, extra = inputs(name, params)
        plain, inner = base.update(given, state.inner, params, **extra)
        updates, state = tx.update(given, state, params, **extra)
        chex.assert_trees_all_equal(state.inner, inner)
        assert_decayed(updates, plain, c(step), params)
        slope += dot(plain, value_and_grad(params)[1])
        params = optax.apply_updates(params, updates)
    assert slope < 0, f"{name} climbs: if it is no finished optimizer, add it to STAGES"
    return base, state.inner, params


def assert_decayed(updates, plain, c, params):
    """updates = plain − c·p on the kernel, bitwise plain elsewhere.

    Against float64: c = λ·η·m and ·p are five roundings of the decay to float32, and one of the sum, half an ulp each.
    """
    kernel = lambda tree: np.asarray(tree["query"]["kernel"], np.float64)
    decay = c * kernel(params)
    bound = 0.5 * EPS * (5 * abs(decay) + abs(kernel(updates)))
    np.testing.assert_array_less(abs(kernel(updates) - (kernel(plain) - decay)), bound)
    np.testing.assert_array_less(bound, 1e-3 * abs(decay), "a missing decay must be seen")
    chex.assert_trees_all_equal(*(optax.tree.set(tree, kernel=None) for tree in (updates, plain)))


@pytest.mark.parametrize("name", FINISHED)
def test_constant_rate(name):
    base, state, params = run(name, LR, lambda _: 5.0 * LR, weight_decay=5.0)
    # How much of a displacement of the weights does a step undo, with the same gradient? About the learning rate
    # for trust ratios; 0.1 for MADGRAD, 1/t for schedule_free, 1 for COCOB.
    given, extra = inputs(name, params)
    moved = jax.tree.map(lambda p: p - 0.01 * p, params)
    here, there = (base.update(given, state, p, **extra)[0] for p in (params, moved))
    by, answer = (jax.tree.map(lambda a, b: np.asarray(b) - a, *pair) for pair in ((params, moved), (here, there)))
    undone = -dot(answer, by) / dot(by, by)
    assert (undone > 0.05) == (name in TAKE_BACK), f"{undone:.3f} of the decay is taken back"


@pytest.mark.parametrize("name", FINISHED)
def test_scheduled_rate(name):
    refusal = pytest.raises(UnknownOptimizerError, match=f"{name} fails: (Type|Value)Error")
    with refusal if name in NO_SCHEDULE else contextlib.nullcontext():
        run(
            name,
            schedule,
            lambda step: 0.5 * 0.1 * float(RATES[step]) / LR,  # m·λ·η_t/η_max
            weight_decay=0.1,
            mask=[("kernel", 0.5), (".*", 0.0)],
            coupling="schedule",
            peak_learning_rate=LR,
        )


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_not_finished_steps(name):
    with pytest.raises(AssertionError, match=f"{name} climbs"):
        run(name, LR, lambda _: 5.0 * LR, weight_decay=5.0)


def test_the_list_is_optax():
    known = {"adafactor", "adam", "adamw", "dpsgd", "lamb", "lars", "lbfgs", "lion", "momo", "muon", "nadam"}
    known |= {"polyak_sgd", "prodigy", "schedule_free", "schedule_free_adamw", "sgd", "sophia"}
    assert known <= set(FINISHED)
    tables = {*NEEDS, *EXTRA, *STAGES, *NO_SCHEDULE, *TAKE_BACK}
    assert tables <= set(FOUND), "the tables name what Optax no longer has"


def test_an_unknown_optimizer_says_what_to_add(monkeypatch):
    monkeypatch.setitem(FOUND, "newest", lambda learning_rate, sharpness: optax.sgd(learning_rate))
    with pytest.raises(UnknownOptimizerError, match=r"newest fails: .*'sharpness'.* to NEEDS"):
        build("newest", LR)


def test_extra_arguments_reach_the_optimizer():
    seen = {}

    def update(updates, state, params, **extra):
        seen.update(extra)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    tx = wd.with_decay(spy, learning_rate=LR, weight_decay=0.1)
    extra = {"value": jnp.ones(()), "grad": PARAMS, "value_fn": loss, "anything": "else"}
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, **extra)
    assert seen == extra


def test_schedule_free_around_with_decay_decays_both_sequences():
    """Against Algorithm 1 of arXiv 2405.15682, decay at y as there: z ← z − η·∇f(y) − c·y; x averages z; y mixes."""
    η, c, b1 = 0.1, 0.02, 0.9
    tx = optax.contrib.schedule_free(wd.with_decay(optax.sgd(η), learning_rate=η, weight_decay=c / η), η, b1=b1)
    y, target = (np.asarray(tree["query"]["kernel"], np.float64) for tree in (PARAMS, TARGET))
    x, z = y, y
    params, state = PARAMS, tx.init(PARAMS)
    for t in range(1, 6):
        with loosely():
            updates, state = tx.update(value_and_grad(params)[1], state, params)
        params = optax.apply_updates(params, updates)
        z = z - η * (y - target) - c * y
        x = (1 - 1 / t) * x + z / t
        y = (1 - b1) * z + b1 * x
    for ours, exact in ((params, y), (state.z, z), (optax.contrib.schedule_free_eval_params(state, params), x)):
        np.testing.assert_allclose(ours["query"]["kernel"], exact, rtol=1e-5)  # float32, x = (y − (1−b1)z)/b1


def test_with_decay_around_schedule_free_leaves_z_alone():
    tx = wd.with_decay(build("schedule_free", LR), learning_rate=LR, weight_decay=5.0)
    params, state, zeros = PARAMS, tx.init(PARAMS), optax.tree.zeros_like(PARAMS)
    for _ in range(3):
        updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal(state.inner.z, PARAMS)
    ratio = params["query"]["kernel"] / PARAMS["query"]["kernel"]
    assert (ratio > 0.95**3 + 0.01).all()  # what decay alone leaves, were it not taken back


@pytest.mark.parametrize("outside", [True, False])
def test_lookahead(outside):
    """Zero gradient: around lookahead fast and slow weights shrink by c a step; inside it slow ones follow at α."""
    period, α, c = 2, 0.5, 0.05
    options = {"learning_rate": LR, "weight_decay": c / LR}
    with loosely():
        if outside:
            tx = wd.with_decay(optax.lookahead(optax.sgd(LR), period, α), **options)
            left = (1 - c) ** (2 * period)
        else:
            tx = optax.lookahead(wd.with_decay(optax.sgd(LR), **options), period, α)
            left = (1 - α + α * (1 - c) ** period) ** 2
        params, zeros = optax.LookaheadParams.init_synced(PARAMS), optax.tree.zeros_like(PARAMS)
        state = tx.init(params)
        for _ in range(2 * period):
            updates, state = tx.update(zeros, state, params)
            params = optax.apply_updates(params, updates)
    for tree in params:
        chex.assert_trees_all_equal(tree["norm"], PARAMS["norm"])
        ratio = tree["query"]["kernel"] / PARAMS["query"]["kernel"]
        np.testing.assert_allclose(ratio, left, rtol=1e-6)  # four steps of float32


def skipping(optimizer):
    """Optax's wrappers that return no step from some updates, and where they may hide."""
    multi = lambda tx: optax.MultiSteps(tx, 4).gradient_transformation()
    return {
        "MultiSteps": optax.MultiSteps(optimizer, 4),
        "MultiSteps, as a transformation": multi(optimizer),
        "ApplyIfFinite": optax.apply_if_finite(optimizer, 5),
        "ConditionallyMask": optax.conditionally_mask(optimizer, lambda step: step % 2 == 0),
        "MultiSteps in a chain": optax.chain(optax.clip(1.0), optax.chain(multi(optimizer), optax.scale(1.0))),
        "ApplyIfFinite, injected": optax.inject_hyperparams(lambda b: optax.apply_if_finite(optimizer, 5))(b=1.0),
        "MultiSteps in a partition": optax.partition({"a": multi(optimizer)}, "a"),
        "MultiSteps, masked": optax.masked(multi(optimizer), {"query": True, "norm": False}),
    }


@pytest.mark.parametrize("place", skipping(optax.identity()))
def test_optimizers_that_skip_updates_go_outside(place):
    base = skipping(optax.sgd(LR))[place]
    wrapper = place.split(",")[0].split(" ")[0]
    for name, tx in (
        ("with_decay", wd.with_decay(base, learning_rate=LR, weight_decay=5.0)),
        ("decoupled", wd.decoupled(base, LR, weight_decay=5.0)),
        ("coupled", wd.coupled(base, LR, weight_decay=5.0)),
        ("with_decay", wd.with_decay(base, learning_rate=LR, weight_decay=5.0, rounding="nearest")),
    ):
        with pytest.raises(ValueError, match=rf"{name}: the optimizer has a {wrapper} inside.*Put {wrapper} outside"):
            tx.init(PARAMS)


@pytest.mark.optax_promotes
def test_the_order_that_the_error_names_decays_on_real_steps_only():
    tx = optax.MultiSteps(wd.with_decay(optax.sgd(LR), learning_rate=LR, weight_decay=1.0), 4)
    params, state, zeros = PARAMS, tx.init(PARAMS), optax.tree.zeros_like(PARAMS)
    for _ in range(8):
        updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    ratio = params["query"]["kernel"] / PARAMS["query"]["kernel"]
    np.testing.assert_allclose(ratio, 0.99**2, rtol=1e-6)
    tx = optax.apply_if_finite(wd.with_decay(optax.sgd(LR), learning_rate=LR, weight_decay=1.0), 5)
    nan = optax.tree.full_like(PARAMS, jnp.nan)
    updates, _ = tx.update(nan, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates, zeros)
