"""Published runs: complete and cited rows, schedules and timescales by independent sums, clean audits."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd
from wd_optax.choosing import schedules
from wd_optax.choosing.published import PublishedRuns, shares_of_run

RUNS = wd.published()
NAMES = [run.name for run in RUNS]
each = pytest.mark.parametrize("name", NAMES)
# Prefixes of sources. The text up to the next prefix is a place in the source.
PLACES = re.compile(r"^(arXiv \d{4}\.\d{5}, |huggingface\.co/[\w.-]+/[\w.-]+|[\w.-]+/[\w.-]+ [\w./-]+)")


# The table


def test_there_are_runs_of_every_kind():
    assert len(RUNS) >= 25
    assert len(set(NAMES)) == len(NAMES)
    assert {"AdamW", "SGD", "Lion", "Muon", "Adafactor"} <= {run.optimizer for run in RUNS}
    assert {"lr", "schedule", "corrected"} <= {run.coupling for run in RUNS}
    assert {"decoupled", "coupled"} == {run.decay for run in RUNS}
    assert {"tokens", "sequences", "images", "audio samples"} <= {run.unit for run in RUNS}


@each
def test_every_row_is_complete_and_cited(name):
    run = wd.published(name)
    assert run.name == name
    for text in (run.model, run.optimizer, run.dataset, run.unit):
        assert text
        assert isinstance(text, str)
    assert run.coupling in ("lr", "schedule", "corrected", "constant")
    assert run.decay in ("decoupled", "coupled")
    assert run.learning_rate > 0
    assert run.weight_decay > 0
    assert isinstance(run.steps, int)
    assert run.steps > 0
    for count in (run.batch_size, run.examples):
        assert count is None or (isinstance(count, int) and count > 0)
    assert (run.momentum > 0) == run.optimizer.startswith("SGD")
    assert run.decay == "decoupled" or run.optimizer.startswith("SGD")
    assert run.source
    assert PLACES.match(run.source[0])
    assert all(isinstance(source, str) for source in run.source)


@each
def test_a_row_is_hashable_and_equal_to_itself(name):
    assert {wd.published(name): 1}[wd.published(name)] == 1


def test_an_error_for_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match="name='nanogpt124m' is not a published run: use one of 'nanogpt-124m'"):
        wd.published("nanogpt124m")
    with pytest.raises(ValueError, match="'llama2-7b'"):
        wd.published("Llama-2-7B")


@pytest.mark.parametrize("name", ["", "?", 7, b"x"])
def test_a_name_near_to_none_lists_them_all(name):
    with pytest.raises(ValueError, match="is not a published run") as error:
        wd.published(name)
    assert NAMES[0] in str(error.value)
    assert NAMES[-1] in str(error.value)


# What it prints


def test_the_table_has_a_line_per_run_and_fits_a_terminal_of_150():
    lines = str(RUNS).splitlines()
    assert repr(RUNS) == str(RUNS)
    assert len(lines) == len(RUNS) + 1
    assert [line.split()[0] for line in lines[1:]] == NAMES
    assert max(map(len, lines)) <= 150
    nanogpt = lines[1 + NAMES.index("nanogpt-124m")]
    share = wd.published("nanogpt-124m").share_of_run
    assert f"{share:.3g}" in nanogpt.split()


@each
def test_a_run_prints_its_figures_timescale_and_sources(name):
    run = wd.published(name)
    text = str(run)
    for part in (name, run.model, run.optimizer, f"{run.weight_decay:g}", run.dataset, *run.source):
        assert part in text
    assert f"{run.timescale().timescale_steps:,.0f} steps" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_selection_is_a_table_too():
    tokens = PublishedRuns(run for run in RUNS if run.unit == "tokens")
    assert 1 < len(tokens) < len(RUNS)
    assert len(str(tokens).splitlines()) == len(tokens) + 1


def test_notebooks_get_escaped_tables():
    html = RUNS._repr_html_()
    assert html.count("<tr>") == len(RUNS) + 1
    assert "&quot;lr&quot;" in html
    one = wd.published("olmo2-7b")._repr_html_()
    assert "<th>" not in one
    assert "OLMo 2&#x27;s" in one


# Schedules


def independent(run):
    """η_t in float64 by textbook formulas, written differently from the package."""
    t = np.arange(run.steps, dtype=np.float64)
    eta, start, a = np.full(run.steps, np.nan), 0, 0.0
    for shape, until, b in run.phases:
        here = (start <= t) & (t < until)
        f = (t[here] - start) / (until - start) if until > start else t[here]
        eta[here] = {
            "constant": lambda b=b, f=f: np.full(len(f), b),
            "linear": lambda a=a, b=b, f=f: (1 - f) * a + f * b,
            "cosine": lambda a=a, b=b, f=f: b + (a - b) * np.cos(np.pi * f / 2) ** 2,
            "exponential": lambda a=a, b=b, f=f: a ** (1 - f) * b**f,
            "rsqrt": lambda a=a, start=start, here=here: a * np.sqrt(start / t[here]),
        }[shape]()
        start, a = until, b
    return eta


@each
def test_phases_cover_the_run_in_order(name):
    run = wd.published(name)
    ends = [until for _, until, _ in run.phases]
    assert ends == sorted(set(ends))
    assert ends[-1] >= run.steps
    assert all(shape in schedules.SHAPES for shape, _, _ in run.phases)
    assert all(eta >= 0 for _, _, eta in run.phases)


@each
def test_learning_rates_are_those_of_the_phases(name):
    run = wd.published(name)
    got = run.learning_rates()
    assert got.shape == (run.steps,)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, independent(run), rtol=1e-8, atol=1e-12 * run.learning_rate)
    np.testing.assert_allclose(got.max(), run.learning_rate, rtol=1e-12)


@each
def test_the_schedule_is_the_learning_rates(name):
    run = wd.published(name)
    ends = [until for _, until, _ in run.phases]
    at = sorted({int(t) for end in (0, *ends) for t in (end - 1, end, end + 1) if 0 <= t < run.steps})
    at += [run.steps // 3, run.steps - 1]
    got = np.asarray(jax.jit(jax.vmap(run.schedule()))(np.int32([*at, *ends, 0, 1])))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[: len(at)], run.learning_rates()[at], rtol=2e-6, atol=1e-6 * run.learning_rate)
    np.testing.assert_allclose(got[len(at) :].max(), run.learning_rate, rtol=1e-6)


def test_the_schedule_is_a_scalar_for_any_count_and_stays_at_its_end():
    run = wd.published("nanogpt-124m")
    schedule = run.schedule()
    for count in (2000, np.int64(2000), jnp.int32(2000), jnp.int16(2000), 2000.0):
        chex.assert_shape(schedule(count), ())
        assert float(schedule(count)) == pytest.approx(6e-4, rel=2e-7)
    assert float(schedule(10**8)) == pytest.approx(6e-5, rel=2e-7)
    assert schedule(-5) == 0


@pytest.mark.optax_promotes
def test_a_schedule_is_that_of_optax():
    run = wd.published("nanogpt-124m")
    theirs = optax.join_schedules(
        [optax.linear_schedule(0, 6e-4, 2000), optax.cosine_decay_schedule(6e-4, 598_000, alpha=0.1)], [2000]
    )
    at = jnp.linspace(0, 599_999, 1001).astype(jnp.int32)
    np.testing.assert_allclose(jax.vmap(run.schedule())(at), jax.vmap(theirs)(at), rtol=2e-6, atol=1e-9)


def test_words_for_schedules():
    say = {run.name: schedules.summary(run.phases) for run in RUNS}
    assert say["nanogpt-124m"] == "cosine; warm-up 2,000"
    assert say["resnet50-imagenet"] == "constant, step"
    assert say["deepseek-v3"] == "constant, cosine, step; warm-up 2,000"
    assert say["deit-b"] == "cosine; warm-up 6,255"
    assert say["uvit-h2"] == "constant; warm-up 5,000"
    assert say["mobilenetv2-imagenet"] == "exponential"
    assert schedules.describe(wd.published("deit-b").phases) == (
        "from 1e-06, linear to 0.001 until 6,255, cosine to 1e-05 until 375,300"
    )


# Timescales


def removed(run):
    """c_t by the definitions of the couplings; SGD's momentum accumulates L2."""
    eta, decay = independent(run), run.weight_decay
    if run.decay == "coupled":
        decay /= 1 - run.momentum
    return {
        "lr": eta * decay,
        "schedule": eta / run.learning_rate * decay,
        "corrected": eta**2 / run.learning_rate * decay,
        "constant": np.full(run.steps, decay),
    }[run.coupling]


@each
def test_timescales_equal_an_independent_sum(name):
    run = wd.published(name)
    scale = run.timescale()
    mean = -math.expm1(math.fsum(np.log1p(-removed(run))) / run.steps)
    np.testing.assert_allclose(scale.timescale_steps, 1 / mean, rtol=1e-9)
    np.testing.assert_allclose(run.share_of_run, 1 / mean / run.steps, rtol=1e-9)
    assert scale.steps == run.steps
    if run.examples and run.batch_size:
        np.testing.assert_allclose(scale.timescale_epochs, run.batch_size / mean / run.examples, rtol=1e-9)
    else:
        assert scale.timescale_epochs is None


@pytest.mark.parametrize("name", ["nanogpt-124m", "bit-r50-bigvision", "palm-540b", "airbench94-cifar10"])
def test_a_timescale_is_that_of_the_schedule(name):
    run = wd.published(name)
    scale = wd.timescale(
        run.weight_decay / (1 - run.momentum if run.decay == "coupled" else 1),
        learning_rate=run.schedule(),
        steps=run.steps,
        coupling=run.coupling,
    )
    np.testing.assert_allclose(scale.timescale_steps, run.timescale().timescale_steps, rtol=1e-5)


def test_momentum_sums_the_decay_of_l2():
    """Without gradient a weight follows the larger root of z² − (1 + μ − ηλ)z + μ, near 1 − ηλ/(1 − μ)."""
    mu, c = 0.9, 1e-4
    optimizer = wd.sgd_l2(1e-3, weight_decay=c / 1e-3, momentum=mu)
    params = {"kernel": jnp.ones(())}
    zero = jax.tree.map(jnp.zeros_like, params)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(zero, state, params)
        return (optax.apply_updates(params, updates), state), params["kernel"]

    _, kernel = jax.lax.scan(step, (params, optimizer.init(params)), length=2000)
    rate = -np.log(np.float64(kernel[-1]) / np.float64(kernel[999])) / 1000
    b = 1 + mu - c
    np.testing.assert_allclose(rate, -np.log((b + np.sqrt(b * b - 4 * mu)) / 2), rtol=1e-4)
    assert abs(rate / (c / (1 - mu)) - 1) <= c / (1 - mu) ** 2


def test_shares_are_the_quartiles_of_decoupled_runs():
    shares = sorted(run.share_of_run for run in RUNS if run.decay == "decoupled")
    got = shares_of_run()
    assert got.runs == len(shares)
    assert (got.smallest, got.largest) == (shares[0], shares[-1])
    half = len(shares) // 2
    assert shares[half - 1] <= got.median <= shares[half]
    below = sum(share < got.lower_quartile for share in shares) / len(shares)
    above = sum(share > got.upper_quartile for share in shares) / len(shares)
    assert abs(below - 0.25) <= 1 / len(shares)
    assert abs(above - 0.25) <= 1 / len(shares)


# wd.timescale of an array of rates


def test_timescale_takes_the_rates_of_all_steps():
    rates = np.linspace(1e-3, 1e-4, 50)
    scale = wd.timescale(0.1, learning_rate=rates, steps=50)
    by_step = wd.timescale(0.1, learning_rate=lambda count: rates[int(count)], steps=50)
    assert scale == by_step
    single = wd.timescale(0.1, learning_rate=jnp.asarray(rates), steps=50)
    assert single.timescale_steps == pytest.approx(scale.timescale_steps, rel=1e-6)
    solved = wd.weight_decay_for(timescale_steps=1e5, learning_rate=rates, steps=50)
    np.testing.assert_allclose(wd.timescale(solved, learning_rate=rates, steps=50).timescale_steps, 1e5, rtol=1e-9)


@pytest.mark.parametrize("rates", [np.full(50, 1e-3), jnp.full(50, 1e-3)])
@pytest.mark.parametrize("steps", [None, 49, 51])
def test_an_array_of_another_length_is_named(steps, rates):
    with pytest.raises(ValueError, match=r"learning_rate has the shape \(50,\).*one rate for each of `steps` steps"):
        wd.timescale(0.1, learning_rate=rates, steps=steps)


def test_a_negative_rate_in_an_array_is_named():
    with pytest.raises(ValueError, match="learning_rate is -1 in step 2"):
        wd.timescale(0.1, learning_rate=np.array([1e-3, 1e-3, -1.0]), steps=3)


# Audits

S = jax.ShapeDtypeStruct
TRANSFORMER = {
    "attention": {"kernel": S((16, 16), jnp.float32), "bias": S((16,), jnp.float32)},
    "norm": {"scale": S((16,), jnp.float32)},
    "mlp": {"kernel": S((16, 64), jnp.float32)},
}


def optimizer_of(run):
    """The optimizer of a row, from Optax and this package."""
    eta, coupling = run.schedule(), {"coupling": run.coupling, "peak_learning_rate": run.learning_rate}
    if run.decay == "coupled":
        return wd.sgd_l2(
            eta, weight_decay=run.weight_decay, momentum=run.momentum, nesterov="Nesterov" in run.optimizer
        )
    if run.optimizer == "AdamW":
        b1, b2 = run.betas or (0.9, 0.999)
        return wd.adamw(eta, weight_decay=run.weight_decay, b1=b1, b2=b2, **coupling)
    if run.optimizer == "SGD":
        return wd.sgdw(eta, weight_decay=run.weight_decay, momentum=run.momentum, **coupling)
    plain = {
        "Adafactor": lambda: optax.adafactor(eta),
        "Lion": lambda: optax.lion(eta, weight_decay=0.0),
        "Muon": lambda: optax.contrib.muon(eta),
    }[run.optimizer]()
    return wd.with_decay(plain, learning_rate=eta, weight_decay=run.weight_decay, **coupling)


def kinds():
    """A run of each kind, and those with the smallest and the largest share; the others are for `make test-all`."""
    first = {(run.optimizer, run.decay, run.coupling): run.name for run in reversed(RUNS)}
    shares = {run.share_of_run: run.name for run in RUNS}
    cheap = {*first.values(), shares[min(shares)], shares[max(shares)]}
    slow = {run.name for run in RUNS if run.optimizer == "Muon"}  # ten seconds to compile
    return [name if name in cheap - slow else pytest.param(name, marks=pytest.mark.exhaustive) for name in NAMES]


@pytest.mark.slow
@pytest.mark.optax_promotes
@pytest.mark.parametrize("name", kinds())
def test_no_published_run_is_condemned(name):
    run = wd.published(name)
    report = wd.audit(optimizer_of(run), TRANSFORMER, horizon=run.steps)
    assert [finding for finding in report.findings if finding.severity in ("warning", "error")] == []
    report.check(decays=["kernel"], spares=["bias", "scale"])
    scales = [row.timescale_steps for row in report.rows if row.path.endswith("kernel")]
    assert scales == pytest.approx([run.timescale().timescale_steps] * 2, rel=1 / 16)  # the audit probes 16 steps
    assert f"within the range of {shares_of_run().runs} published runs" in " ".join(str(report).split())
