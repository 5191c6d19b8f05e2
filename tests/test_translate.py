"""`wd.translate`: where it claims the same numbers both calls are run; where it says by how much, that is measured."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd
from wd_optax.porting.calls import Call
from wd_optax.porting.decay_words import translate_mask
from wd_optax.porting.emulate import CALLS
from wd_optax.porting.meaning import read
from wd_optax.porting.translate import _gap

pytestmark = [pytest.mark.quick_compile, pytest.mark.optax_promotes, pytest.mark.usefixtures("x64")]

STEPS = 12
RANDOM = np.random.default_rng(7)  # not the problem that `translate` measures on
START = RANDOM.uniform(0.5, 1.5, (3, 2))
GRADS = RANDOM.standard_normal((STEPS, 3, 2))


def warm_up(step):
    t = jnp.asarray(step, float)  # float64: an integer divided is float32
    return jnp.minimum((t + 1) / 4, 1.0) / (1 + t / 20)


def weights(call, schedule, arguments, grads=GRADS):
    """The weights after each step of a call, (steps, 3, 2)."""
    start = {"kernel": jnp.asarray(START)}
    tx = wd.emulate(call, params=start, schedule=schedule, **arguments)

    def step(carry, g):
        updates, state = tx.update({"kernel": g}, carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), params["kernel"]

    return np.asarray(jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(grads))[1])


def both(result, schedule, arguments, grads=GRADS):
    return weights(result.from_, schedule, arguments, grads), weights(result.to, schedule, result.arguments, grads)


EQUAL = [
    # decoupled, each coupling that a schedule allows
    ("optimi.AdamW", "torch.optim.AdamW", {"lr": 1e-2, "weight_decay": 1e-3, "decouple_lr": True}, warm_up),
    ("optimi.AdamW", "torch.optim.AdamW", {"lr": 1e-2, "decouple_lr": True, "max_lr": 3e-2}, warm_up),
    ("torch.optim.AdamW", "optimi.AdamW", {"lr": 1e-2, "weight_decay": 0.3, "betas": (0.8, 0.9)}, warm_up),
    ("timm.optim.AdamWLegacy", "torch.optim.Adam", {"lr": 1e-2, "weight_decay": 0.3, "amsgrad": True}, warm_up),
    ("timm.optim.AdamWLegacy", "torch.optim.AdamW", {"lr": 1e-2, "corrected_weight_decay": True}, None),
    ("tfa.optimizers.AdamW", "keras.optimizers.AdamW", {"learning_rate": 1e-2, "weight_decay": 1e-3}, None),
    ("tfa.optimizers.AdamW", "torch.optim.AdamW", {"learning_rate": 1e-2, "weight_decay": 1e-3, "epsilon": 0.0}, None),
    # L2 to L2
    ("torch.optim.Adam", "optimi.Adam", {"lr": 1e-2, "weight_decay": 0.3}, warm_up),
    ("torch.optim.SGD", "optimi.SGD", {"lr": 1e-1, "weight_decay": 0.3, "momentum": 0.9}, warm_up),
    # L2 is decoupled decay in SGD without momentum
    ("torch.optim.SGD", "timm.optim.SGDW", {"lr": 1e-1, "weight_decay": 0.3, "maximize": True}, warm_up),
    ("keras.optimizers.SGD", "torch.optim.SGD", {"learning_rate": 1e-1, "weight_decay": 0.3}, warm_up),
    ("tfa.optimizers.SGDW", "torch.optim.SGD", {"learning_rate": 1e-1, "weight_decay": 1e-2}, None),
    # η inside the momentum, while η is constant
    ("keras.optimizers.SGD", "timm.optim.SGDW", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}, None),
    ("timm.optim.Lion", "keras.optimizers.Lion", {"lr": 1e-2, "weight_decay": 0.3}, warm_up),
]


@pytest.mark.parametrize(("from_", "to", "arguments", "schedule"), EQUAL)
def test_the_same_numbers_where_it_says_so(from_, to, arguments, schedule):
    result = wd.translate(from_=from_, to=to, schedule=schedule, steps=STEPS, **arguments)
    assert result.equal, str(result)
    assert result.differs == ()
    before, after = both(result, schedule, arguments)
    np.testing.assert_allclose(after, before, rtol=1e-12)
    assert result.drift <= 1e-12
    assert "The same numbers" in str(result)


@pytest.mark.parametrize(("from_", "to", "arguments", "schedule"), EQUAL)
def test_there_and_back(from_, to, arguments, schedule):
    there = wd.translate(from_=from_, to=to, schedule=schedule, steps=STEPS, **arguments)
    back = wd.translate(from_=to, to=from_, schedule=schedule, steps=STEPS, **there.arguments)
    assert back.equal
    np.testing.assert_allclose(*both(back, schedule, there.arguments), rtol=1e-12)
    call = CALLS[from_]
    given = read(call, arguments, schedule, STEPS)
    again = read(call, back.arguments, schedule, STEPS)
    if again.coupling == given.coupling and given.words.get("peak") is None:
        assert again.decay[0] == pytest.approx(given.decay[0], rel=1e-12)
        assert {**again.words, "eps": 0} == {**given.words, "eps": 0}
    else:  # another of its couplings, with what it removes
        np.testing.assert_allclose(again.removed(), given.removed(), rtol=1e-12)


DIFFERENT = [
    ("torch.optim.Adam", "torch.optim.AdamW", {"lr": 1e-2, "weight_decay": 0.3}, None, "no λ makes them the same"),
    ("torch.optim.AdamW", "keras.optimizers.AdamW", {"lr": 1e-2, "eps": 1e-3}, None, "ε is added in another place"),
    ("torch.optim.AdamW", "optimi.AdamW", {"lr": 1e-2, "amsgrad": True}, None, "no counterpart of amsgrad=True"),
    ("timm.optim.AdamWLegacy", "torch.optim.AdamW", {"lr": 1e-2, "caution": True}, None, "no counterpart of caution"),
    (
        "tfa.optimizers.AdamW", "torch.optim.AdamW", {"learning_rate": 1e-2, "weight_decay": 0.01, "epsilon": 0.0},
        warm_up, "No number λ of torch.optim.AdamW",
    ),
    (
        "timm.optim.AdamWLegacy", "torch.optim.AdamW", {"lr": 1e-2, "corrected_weight_decay": True}, warm_up,
        "No number λ",
    ),
    ("torch.optim.SGD", "timm.optim.SGDW", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, None, "accumulates"),
    ("torch.optim.SGD", "keras.optimizers.SGD", {"lr": 0.1, "momentum": 0.9}, warm_up, "holds η"),
    ("torch.optim.SGD", "optimi.SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, None, "becomes the factor 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("from_", "to", "arguments", "schedule", "words"), DIFFERENT)
def test_what_differs_is_said_and_measured(from_, to, arguments, schedule, words):
    result = wd.translate(from_=from_, to=to, schedule=schedule, steps=STEPS, **arguments)
    assert not result.equal
    assert len([sentence for sentence in result.differs if words in sentence]) == 1, str(result)
    assert words in str(result)
    assert result.drift > 1e-9
    before, after = both(result, schedule, arguments)
    apart = np.max(np.linalg.norm(after - before, axis=(1, 2)) / np.linalg.norm(before, axis=(1, 2)))
    assert result.drift / 30 < apart < result.drift * 30  # on other gradients, of the same size


@pytest.mark.parametrize("weight_decay", [0.01, 0.1])
@pytest.mark.parametrize("to", ["torch.optim.AdamW", "keras.optimizers.AdamW"])
def test_what_is_left_of_a_weight_without_gradient(to, weight_decay):
    """By how much the decays differ during the run, and that they agree at its end: both calls without gradients."""
    given = {"learning_rate": 1e-2, "weight_decay": weight_decay}
    result = wd.translate(from_="tfa.optimizers.AdamW", to=to, schedule=warm_up, steps=STEPS, **given)
    before, after = both(result, warm_up, given, np.zeros_like(GRADS))
    np.testing.assert_allclose(after[-1], before[-1], rtol=1e-9)
    assert result.decay_gap == pytest.approx(np.max(np.abs(after / before - 1)), rel=1e-6)
    assert f"{100 * result.decay_gap:.3g} %" in str(result)
    assert result.before.remaining == pytest.approx(float((before[-1] / START)[0, 0]))
    assert result.after.timescale_steps == pytest.approx(result.before.timescale_steps)
    assert "timescale, steps" in str(result)


def test_momentums_decay_is_converted_to_what_it_amounts_to():
    """After the first steps L2 under momentum removes (1 − τ)/(1 − μ) times η·λ per step."""
    given = {"lr": 1e-3, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}
    result = wd.translate(from_="torch.optim.SGD", to="timm.optim.SGDW", steps=400, **given)
    assert result.arguments["weight_decay"] == pytest.approx(0.01 * 0.5 / 0.1)
    before, after = both(result, None, given, np.zeros((400, 3, 2)))
    rates = [1 - run[300:] / run[299:-1] for run in (before, after)]
    np.testing.assert_allclose(*rates, rtol=1e-3)


def test_a_decay_that_follows_the_learning_rate_is_a_number_where_it_is_multiplied():
    """TF-Addons' users schedule λ with η; PyTorch multiplies λ by η itself."""
    given = {"learning_rate": 1e-2, "epsilon": 0.0, "weight_decay": lambda step: 1e-3 * warm_up(step)}
    result = wd.translate(from_="tfa.AdamW", to="torch.AdamW", schedule=warm_up, steps=STEPS, **given)
    assert (result.from_, result.to) == ("tfa.optimizers.AdamW", "torch.optim.AdamW")
    assert result.arguments["weight_decay"] == pytest.approx(0.1, rel=1e-12)
    assert result.equal


def test_epsilon_whose_place_differs_is_told_by_its_factors():
    result = wd.translate(
        from_="keras.AdamW", to="torch.optim.AdamW", learning_rate=1e-2, beta_2=0.99, weight_decay=0.1, steps=STEPS
    )
    first, last = (1 / math.sqrt(1 - 0.99**t) for t in (1, STEPS))
    assert f"ε·{first:.3g} in step 1 and ε·{last:.3g} in step {STEPS}" in result.differs[0]
    assert result.arguments == {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-7, "weight_decay": 0.1}


def test_a_learning_rate_of_0():
    result = wd.translate(from_="tfa.AdamW", to="torch.AdamW", learning_rate=0.0, weight_decay=0.1, epsilon=0.0)
    assert result.differs == (
        "torch.optim.AdamW removes η_t·λ of a weight per step, and η is 0: nothing, whatever λ is.",
    )
    assert result.drift > 0.1


def test_what_moved_is_said():
    result = wd.translate(from_="keras.AdamW", to="optimi.AdamW", epsilon=0.0)
    names, *rest = result.moved
    assert names == "Names: learning_rate → lr; beta_1, beta_2 → betas; epsilon → eps."
    assert rest == [
        "betas=(0.9, 0.999) is given, because it is keras.optimizers.AdamW's default and optimi.AdamW's is (0.9, 0.99)."
    ]
    chosen = wd.translate(from_="torch.optim.AdamW", to="torch.optim.Adam").moved
    assert chosen == ("decoupled_weight_decay=True chooses this decay in torch.optim.Adam.",)
    back = wd.translate(from_="torch.optim.AdamW", to="keras.AdamW", eps=0.0).moved
    assert back[0] == "Names: lr → learning_rate; betas → beta_1, beta_2; eps → epsilon."


def test_masks_become_groups():
    """A call that spares biases, in one that decays everything."""
    source = CALLS["torch.optim.AdamW"]._replace(name="spares", mask="weights", mask_rule="weights only")
    target = CALLS["torch.optim.AdamW"]
    params = {"a.b": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "a/b/bias2": jnp.ones(2)}
    meaning = read(source, {}, None, None)
    made = translate_mask(meaning, target, params)
    tx = wd.emulate(target.name, params=params, lr=1.0, weight_decay=0.5, **made.arguments)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert float(updates["a.b"]["kernel"][0, 0]) == -0.5
    assert not np.any(np.asarray(updates["a.b"]["bias"]))
    assert "weights only" in made.moved[0]
    assert "pass params" in translate_mask(meaning, target, None).differs[0]
    # the other way round: what the target spares no group brings back
    lost = translate_mask(read(target, {}, None, None), source, params)
    assert "decays otherwise" in lost.differs[0]
    assert translate_mask(read(source, {}, None, None), source, None).differs == ()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"from_": "torch.optim.SGD", "to": "torch.optim.Adam"}, ValueError, "torch.optim.SGD is sgd and torch.optim"),
        ({"from_": "torch.optim.ADAMZ", "to": "torch.optim.Adam"}, ValueError, "is not known"),
        ({"from_": "torch.optim.Adam", "to": "optimi.Adam", "momentum": 0.9}, TypeError, "no argument 'momentum'"),
        ({"from_": "torch.optim.Adam", "to": "optimi.Adam", "schedule": warm_up}, ValueError, "pass steps"),
        ({"from_": "timm.optim.create_optimizer_v2", "to": "torch.AdamW"}, ValueError, "of its own kind"),
        ({"from_": "tfa.AdamW", "to": "torch.AdamW", "weight_decay": 1.5}, ValueError, "below 1"),
    ],
)
def test_what_cant_be_translated_is_refused(arguments, error, words):
    with pytest.raises(error) as raised:
        wd.translate(**arguments)
    assert words in str(raised.value)


def test_equality_is_measured_and_not_only_derived(monkeypatch):
    """A call whose record is wrong isn't called the same."""
    wrong = CALLS["torch.optim.AdamW"]._replace(name="x.AdamW", build=CALLS["torch.optim.Adam"].build)
    monkeypatch.setattr("wd_optax.porting.translate.CALLS", {**CALLS, "x.AdamW": wrong})
    assert isinstance(wrong, Call)
    result = wd.translate(from_="torch.optim.AdamW", to="x.AdamW", weight_decay=0.3)
    assert not result.equal
    assert "the numbers differ" in result.differs[0]


def test_the_gap_is_unknown_for_l2_that_moments_change():
    meaning = read(CALLS["torch.optim.Adam"], {"weight_decay": 0.1}, None, None)
    assert _gap(meaning, meaning) is None
    assert wd.translate(from_="torch.optim.Adam", to="optimi.Adam", weight_decay=0.1).before is None
