"""How fast: the four couplings as schedules, conversions between them, and what is refused."""

from typing import get_args

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wd_optax as wd
from wd_optax.couplings import COUPLINGS, Coupling

WARM_UP = lambda t: 1e-3 * jnp.minimum(t / 10, 1.0)


@pytest.mark.parametrize(
    ("coupling", "expected"),
    [("lr", 0.5e-3 * 0.1), ("schedule", 0.5 * 0.1), ("corrected", 0.25e-3 * 0.1), ("constant", 0.1)],
)
def test_c_t_halfway_through_the_warm_up(coupling, expected):
    rate = wd.decay_rate(0.1, learning_rate=WARM_UP, coupling=coupling, peak_learning_rate=1e-3)
    assert float(rate(jnp.float32(5))) == pytest.approx(expected, rel=1e-6)
    assert float(rate(jnp.float32(0))) == (pytest.approx(0.1) if coupling == "constant" else 0.0)
    assert tuple(COUPLINGS) == get_args(Coupling)


@pytest.mark.optax_promotes
def test_both_rates_may_be_optax_schedules():
    lr, decay = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100), optax.linear_schedule(0.1, 0.2, 100)
    rate = wd.decay_rate(decay, learning_rate=lr, coupling="schedule", peak_learning_rate=1e-3)
    for step in (0, 10, 55, 100):
        assert float(rate(step)) == pytest.approx(float(lr(step)) / 1e-3 * float(decay(step)), rel=1e-6)


rates_of = st.floats(1e-6, 1.0)
couplings = st.sampled_from(list(COUPLINGS))


def removed(weight_decay, coupling, learning_rate, peak):
    """c_t by its definition, for any coupling."""
    ratio, power = COUPLINGS[coupling]
    return weight_decay * (learning_rate / peak) ** ratio * learning_rate**power


@given(decay=st.floats(0, 1), lr=rates_of, peak=rates_of, a=couplings, b=couplings, given_peak=st.booleans())
def test_a_conversion_removes_the_same_fraction_at_the_learning_rate_that_is_named(decay, lr, peak, a, b, given_peak):
    peak = peak if given_peak else lr
    converted = wd.convert_weight_decay(
        decay, learning_rate=lr, from_coupling=a, to_coupling=b, peak_learning_rate=peak if given_peak else None
    )
    assert removed(converted, b, lr, peak) == pytest.approx(removed(decay, a, lr, peak), rel=1e-12, abs=1e-300)


@given(decay=st.floats(0, 1), factor=st.floats(0.01, 1), peak=rates_of, pair=st.permutations(["lr", "schedule"]))
def test_a_conversion_of_a_schedule_holds_at_every_step(decay, factor, peak, pair):
    a, b = pair
    options = {"from_coupling": a, "to_coupling": b, "peak_learning_rate": peak}
    converted = wd.convert_weight_decay(decay, learning_rate=lambda t: peak * factor, **options)
    expected = removed(decay, a, peak * factor, peak)
    assert removed(converted, b, peak * factor, peak) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_a_constant_rate_at_a_learning_rate_below_the_peak():
    """At η = 1e-3 a λ of 100 removes 0.1, whatever the peak is; 10 would remove 0.01."""
    options = {"from_coupling": "constant", "to_coupling": "lr", "peak_learning_rate": 1e-2}
    assert wd.convert_weight_decay(0.1, learning_rate=1e-3, **options) == pytest.approx(100, rel=1e-15)
    assert wd.convert_weight_decay(0.1, learning_rate=1e-2, **options) == pytest.approx(10, rel=1e-15)
    with pytest.raises(ValueError, match=r"learning_rate=0\.0: pass the learning rate at which both remove the same"):
        wd.convert_weight_decay(0.1, learning_rate=0.0, **options)
    with pytest.raises(ValueError, match=r"weight_decay=Array.-1.* must be finite and not negative"):
        wd.convert_weight_decay(jnp.float32(-1), learning_rate=1e-3, **options)


def test_f21_porting_a_value_is_a_conversion_and_refused_where_none_is_exact():
    port = lambda value, **options: wd.convert_weight_decay(value, to_coupling="lr", **options)
    assert port(1e-4, learning_rate=1e-3, from_coupling="constant") == pytest.approx(0.1)  # TF-Addons
    assert port(1e-4, learning_rate=1e-3, from_coupling="schedule") == pytest.approx(0.1)  # big_vision, optimī
    assert port(1e-4, learning_rate=WARM_UP, peak_learning_rate=1e-3, from_coupling="schedule") == pytest.approx(0.1)
    assert port(0.1, learning_rate=WARM_UP, from_coupling="lr") == 0.1
    for coupling in ("constant", "corrected"):
        with pytest.raises(ValueError, match=r"no weight_decay under to_coupling='lr' .* keep that coupling"):
            port(0.1, learning_rate=WARM_UP, peak_learning_rate=1e-3, from_coupling=coupling)
    with pytest.raises(ValueError, match="pass peak_learning_rate"):
        port(0.1, learning_rate=WARM_UP, from_coupling="schedule")


@pytest.mark.parametrize("coupling", ["schedule", "corrected"])
@pytest.mark.parametrize("lr", [WARM_UP, jnp.ones(())], ids=["schedule", "array"])
def test_an_unknown_peak_is_asked_for(coupling, lr):
    for make in (wd.sgdw, wd.adamw):
        with pytest.raises(ValueError, match=r"learning_rate is an? (schedule|array).* pass peak_learning_rate"):
            make(lr, weight_decay=0.1, coupling=coupling)
        assert make(lr, weight_decay=0.1, coupling=coupling, peak_learning_rate=1.0)


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ({"coupling": "linear"}, ValueError, "coupling='linear' is not a coupling: use one of 'lr', 'schedule'"),
        ({"weight_decay": "0.1"}, TypeError, "weight_decay must be a number, an array or a schedule.*'0.1'"),
        ({"weight_decay": "a"}, TypeError, "weight_decay must be a number, an array or a schedule.*'a'"),
        ({"weight_decay": None}, TypeError, "weight_decay must be a number"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate=-1.0 must be finite and not negative"),
        ({"peak_learning_rate": 0.0, "coupling": "schedule"}, ValueError, "peak_learning_rate=0.0.*divides by it"),
        ({"peak_learning_rate": -1.0, "coupling": "schedule"}, ValueError, "peak_learning_rate=-1.0"),
        (
            {"learning_rate": 2.0, "weight_decay": 0.5},
            ValueError,
            "removes 1 of each weight per step.*lower",
        ),
        ({"weight_decay": 1.0, "coupling": "constant"}, ValueError, "must be below 1"),
    ],
)
def test_bad_numbers_are_refused_at_construction(bad, error, says):
    options = {"learning_rate": 0.1, "weight_decay": 0.1} | bad
    for make in (wd.adamw, wd.decay_rate):
        arguments = dict(options)
        first = arguments.pop("learning_rate" if make is wd.adamw else "weight_decay")
        with pytest.raises(error, match=says):
            make(first, **arguments)


def test_tracers_and_arrays_are_taken_as_they_come():
    losses = jax.vmap(lambda wd_: wd.decay_rate(wd_, learning_rate=jnp.asarray(0.5, jnp.float32))(0))(jnp.ones(3) * 4)
    assert losses.tolist() == [2.0, 2.0, 2.0]
