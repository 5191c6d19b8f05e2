"""The calculator's numbers are those of `wd.timescale`, `wd.convert_weight_decay` and `wd.transfer`, to 1e-9."""

import itertools
import math

import numpy as np
import pytest

import wd_optax as wd
from wd_optax.couplings import COUPLINGS

pytestmark = pytest.mark.site
RTOL = 1e-9  # sums over thousands of steps, in another order


def cosine(t, n):
    return 0.5 * (1 + np.cos(np.pi * t / n))


SHAPES = {  # step, steps, warm-up -> η_t/η_max
    "constant": lambda t, n, warm: np.ones(len(t)),
    "cosine": lambda t, n, warm: cosine(t, n),
    "linear": lambda t, n, warm: 1 - t / n,
    "warm-up, cosine": lambda t, n, warm: np.where(t < warm, t / warm, cosine(t - warm, n - warm)),
    "warm-up, linear": lambda t, n, warm: np.where(t < warm, t / warm, 1 - (t - warm) / (n - warm)),
}
CASES = list(itertools.product(COUPLINGS, SHAPES))
DECAY = {"lr": 0.1, "schedule": 1e-4, "corrected": 0.1, "constant": 1e-4}
RUN = {"peak": 3e-3, "steps": 4000, "warmup": 300, "batch": 256, "examples": 50_000}
OTHER = {"peak": 2e-3, "steps": 1500, "warmup": 112, "batch": 1024, "examples": 50_000}


def etas(schedule, run):
    return run["peak"] * SHAPES[schedule](np.arange(run["steps"]), run["steps"], run["warmup"])


@pytest.fixture(scope="module")
def calculator(browser, address):
    """Calls a function of the page."""
    page = browser.new_page()
    page.goto(f"{address}/calculator.html")
    yield lambda call: page.evaluate(f"() => {{ const c = globalThis.calculator; return {call}; }}")
    page.close()


def js(run, coupling, schedule):
    fields = run | {"coupling": coupling, "schedule": schedule}
    return repr(fields)


@pytest.mark.parametrize(("coupling", "schedule"), CASES)
def test_timescale(calculator, coupling, schedule):
    run = js(RUN, coupling, schedule)
    rates = f"c.rates('{coupling}', c.learningRates({run}), {DECAY[coupling]}, {RUN['peak']})"
    found = calculator(f"c.timescale({rates}, {RUN['examples'] / RUN['batch']})")
    expected = wd.timescale(
        DECAY[coupling],
        learning_rate=etas(schedule, RUN),
        steps=RUN["steps"],
        steps_per_epoch=RUN["examples"] / RUN["batch"],
        coupling=coupling,
        peak_learning_rate=RUN["peak"],
    )
    pairs = {
        "mean": expected.removed_per_step,
        "largest": expected.largest_removed_per_step,
        "halfLife": expected.half_life,
        "steps": expected.timescale_steps,
        "epochs": expected.timescale_epochs,
        "share": expected.timescale_steps / RUN["steps"],
        "remaining": expected.remaining,
    }
    assert found.keys() == pairs.keys()
    for name, value in pairs.items():
        np.testing.assert_allclose(found[name], value, rtol=RTOL, err_msg=name)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(COUPLINGS, COUPLINGS)))
@pytest.mark.parametrize("constant", [True, False])
def test_conversion(calculator, source, target, constant):
    options = f"{{from: '{source}', to: '{target}', peak: {RUN['peak']}, constant: {str(constant).lower()}}}"
    found = calculator(f"c.convert({DECAY[source]}, {options})")
    learning_rate = RUN["peak"] if constant else lambda step: RUN["peak"] / (1 + step)
    try:
        expected = wd.convert_weight_decay(
            DECAY[source], learning_rate=learning_rate, from_coupling=source, to_coupling=target,
            peak_learning_rate=RUN["peak"],
        )  # fmt: skip
    except ValueError:
        assert found is None
    else:
        np.testing.assert_allclose(found, expected, rtol=RTOL)


@pytest.mark.parametrize(("coupling", "schedule"), CASES)
def test_transfer(calculator, coupling, schedule):
    source, target = js(RUN, coupling, schedule), js(OTHER, coupling, schedule)
    found = calculator(f"c.transfer({source}, {target}, {DECAY[coupling]})")

    def run(numbers, **more):
        return wd.Run(
            batch=numbers["batch"], steps=numbers["steps"], examples=numbers["examples"],
            learning_rate=numbers["peak"], schedule=etas(schedule, numbers), coupling=coupling, **more,
        )  # fmt: skip

    expected = wd.transfer(source=run(RUN, weight_decay=DECAY[coupling]), target=run(OTHER))
    rules = {row.rule.name: row.weight_decay for row in expected.rows}
    assert {name for name, x in found.items() if x is not None} == rules.keys()
    for name, value in rules.items():
        np.testing.assert_allclose(found[name], value, rtol=RTOL, err_msg=name)


def test_what_rounding_loses(calculator):
    """Half the gap to the next number is between 2⁻⁹ and 2⁻⁸ of a bfloat16, 2⁻²⁵ and 2⁻²⁴ of a float32."""
    found = calculator("c.lostSteps(Float64Array.from([0, 2 ** -9.5, 2 ** -9, 2 ** -8.5, 2 ** -8]), 8)")
    assert found == {"always": 1, "sometimes": 2}


def test_the_page_shows_these_numbers(visit):
    page = visit("calculator.html")
    for name, value in {"decay": "0.05", "peak": "0.002", "steps": "1000", "batch": "100", "examples": "10000"}.items():
        page.fill(f"input[name={name}]", value)
    page.select_option("select[name=schedule]", "constant")
    shown = page.inner_text("#calculator-scale")
    expected = wd.timescale(0.05, learning_rate=0.002, steps=1000, steps_per_epoch=100)
    assert f"{expected.half_life:,.0f} steps" in shown or f"{expected.half_life:,.4g} steps" in shown
    assert f"{expected.remaining:.4g}" in shown
    assert math.isclose(expected.timescale_epochs, 100)
    assert "100 epochs" in shown
    page.fill("input[name=decay]", "2000")
    assert "lower it" in page.inner_text("[role=alert]")
    assert not page.locator("#calculator-output").is_visible()
