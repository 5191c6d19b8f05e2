"""Transfer of λ by published rules: exact identities, an oracle in NumPy, published runs, and bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd
from wd_optax.choosing.transfer_rules import DECAY_RULES, LEARNING_RATE_RULES
from wd_optax.couplings import COUPLINGS

COSINE = lambda t: 1 + jnp.cos(jnp.asarray(t, jnp.float32) * (math.pi / 400))  # a peak of 2: only its shape matters
RAMP = lambda t: jnp.minimum(jnp.asarray(t + 1, jnp.float32) / 50, 1.0)
SMALL = {"batch": 32, "steps": 400, "examples": 3200, "width": 64, "parameters": 1e5, "schedule": COSINE}
WIDE = {"batch": 64, "steps": 300, "examples": 9600, "width": 256, "parameters": 8e5, "schedule": RAMP}
LONG = {"batch": 16, "steps": 900, "examples": 1600, "width": 128, "parameters": 3e5, "schedule": None}
ADAM = [name for name, rule in DECAY_RULES.items() if rule.optimizers is None or "adamw" in rule.optimizers]
SGD = [name for name, rule in DECAY_RULES.items() if rule.optimizers is None or "sgd_l2" in rule.optimizers]
ETA = 2e-3


def strength(coupling, share):
    """A λ that removes 1e-3 to 1e-2 per step at the peak, under a coupling."""
    return share if coupling in ("schedule", "constant") else share / ETA


def rates(run):
    """c_t of a run from the four couplings' formulas."""
    s = np.ones(run.steps) if run.schedule is None else np.asarray(run.schedule)
    eta, peak = run.learning_rate * s, run.learning_rate
    at = {"lr": eta, "schedule": eta / peak, "corrected": eta**2 / peak, "constant": np.ones(run.steps)}
    return run.weight_decay * at[run.coupling] / (1 - run.momentum * (run.optimizer == "sgd_l2"))


def held(name, run):
    """What a rule holds, from the papers' formulas."""
    c = rates(run)
    total, peak = -np.log1p(-c).sum(), c.max()
    tokens = run.batch * run.steps
    return {
        "angle": peak,
        "norm": run.learning_rate**2 / peak,
        "timescale_epochs": total / (tokens / run.examples),
        "timescale_run": total,
        "tokens_per_parameter": (1 / total) * (tokens / run.parameters) ** 0.527,
        "normalised": peak * math.sqrt(tokens / run.batch),
        "mup_angle": peak,
        "mup_sqrt_width": math.sqrt(run.learning_rate**2 / peak) * run.width**0.75,
        "same_decay": peak / run.learning_rate,
    }[name]


def pairs():
    """Runs of every pair of couplings, and every optimizer that has rules."""
    for optimizer, names in (("adamw", ADAM), ("sgd_l2", SGD)):
        for there in COUPLINGS if optimizer == "adamw" else ("lr",):
            for here in COUPLINGS if optimizer == "adamw" else ("lr",):
                yield optimizer, names, here, there


@pytest.mark.parametrize(("optimizer", "names", "here", "there"), list(pairs()))
def test_what_a_rule_holds_is_held_and_there_and_back_is_the_identity(optimizer, names, here, there):
    extra = {"momentum": 0.9} if optimizer == "sgd_l2" else {}
    source = wd.Run(**SMALL, coupling=here, optimizer=optimizer, **extra)
    target = wd.Run(**WIDE, coupling=there)
    given = {"weight_decay": strength(here, 4e-4 if extra else 4e-3), "learning_rate": ETA}
    found = wd.transfer(source=source, target=target, **given)
    assert [row.rule.name for row in found.rows] == names
    start = found.source
    for name in names:
        new = found[name].run
        # float64: sums of 400 logarithms, and a bisection down to neighbouring numbers
        assert held(name, new) == pytest.approx(held(name, start), rel=1e-11), name
        back = wd.transfer(source=new, target=source, hold=name)
        assert back.weight_decay == pytest.approx(given["weight_decay"], rel=1e-11), name
        assert back.learning_rate == pytest.approx(ETA, rel=1e-14), name


@pytest.mark.parametrize("hold", ADAM)
def test_one_rule_applied_twice_is_that_rule_once(hold):
    start = wd.Run(**SMALL, learning_rate=ETA, weight_decay=2.0)
    middle = wd.transfer(source=start, target=wd.Run(**WIDE, coupling="schedule"), hold=hold).run
    twice = wd.transfer(source=middle, target=wd.Run(**LONG, coupling="lr"), hold=hold)
    once = wd.transfer(source=start, target=twice.target.replace(learning_rate=None), hold=hold)
    assert twice.weight_decay == pytest.approx(once.weight_decay, rel=1e-11)  # float64, as above
    assert twice.learning_rate == pytest.approx(once.learning_rate, rel=1e-14)


def test_the_exponents_are_those_of_the_papers():
    base = {"batch": 100, "steps": 1000, "examples": 10_000, "width": 64, "parameters": 1e5}
    source = wd.Run(**base, learning_rate=1e-4, weight_decay=1e-3)
    exponents = {}
    for field in base:
        # a dataset twice as large is seen as often only by twice the steps, which are their own row here
        run = wd.Run(**base | {field: 2 * base[field]})
        found = wd.transfer(source=source, target=run)
        exponents[field] = {row.rule.name: round(math.log2(row.weight_decay / 1e-3), 3) for row in found.rows}
    zero = dict.fromkeys(ADAM, 0.0)
    assert exponents == {
        "batch": zero | {"timescale_epochs": 1.0, "tokens_per_parameter": 0.527},
        "steps": zero | {"timescale_run": -1.0, "tokens_per_parameter": -0.473, "normalised": -0.5},
        "examples": zero | {"timescale_epochs": -1.0},
        "width": zero | {"mup_angle": 1.0, "mup_sqrt_width": 0.5},
        "parameters": zero | {"tokens_per_parameter": -0.527},
    }


def test_rules_for_the_learning_rate():
    source = wd.Run(batch=256, steps=100, examples=1000, width=64, learning_rate=0.1, weight_decay=1e-4)
    target = wd.Run(batch=1024, steps=25, examples=1000, width=128)
    adam = wd.transfer(source=source, target=target)
    assert adam.learning_rates == pytest.approx({"batch_sqrt": 0.2, "mup": 0.05})
    assert adam["mup_angle"].learning_rate == pytest.approx(0.05)
    assert adam["angle"].learning_rate == pytest.approx(0.1)
    by_root = wd.transfer(source=source, target=target, learning_rate_rule="batch_sqrt", hold="timescale_epochs")
    assert by_root.learning_rate == pytest.approx(0.2)
    assert by_root.weight_decay == pytest.approx(2e-4, rel=1e-4)  # to first order in c = 1e-5
    sgd = wd.transfer(source=source, target=target, optimizer="sgd_l2")
    assert sgd.learning_rates == pytest.approx({"batch_linear": 0.4})
    assert sgd["same_decay"].learning_rate == pytest.approx(0.4)
    assert sgd["same_decay"].weight_decay == pytest.approx(1e-4)
    # the linear rule with λ kept is the rule that holds the timescale in epochs, to first order
    linear = wd.transfer(
        source=source, target=target, optimizer="sgd_l2", learning_rate_rule="batch_linear", hold="timescale_epochs"
    )
    assert linear.weight_decay == pytest.approx(1e-4, rel=1e-4)
    pinned = wd.transfer(source=source, target=target.replace(learning_rate=0.02))
    assert {row.learning_rate for row in pinned.rows} == {0.02}


def test_another_batch_keeps_what_is_left_after_each_epoch():
    source = wd.Run(
        batch=50, steps=80, examples=1000, learning_rate=0.5, weight_decay=0.2
    )  # c = 0.1: far from first order
    target = wd.transfer(source=source, target=wd.Run(batch=200, steps=20, examples=1000), hold="timescale_epochs").run

    @jax.jit
    def left(params, learning_rate, weight_decay, steps):
        tx = wd.sgdw(learning_rate, weight_decay=weight_decay, mask=None)
        zero = jnp.zeros(())
        body = lambda _, carry: (lambda updates, state: (optax.apply_updates(carry[0], updates), state))(
            *tx.update(zero, carry[1], carry[0])
        )
        return jax.lax.fori_loop(0, steps, body, (params, tx.init(params)))[0]

    small, large = (
        left(jnp.ones(()), r.learning_rate, r.weight_decay, round(r.steps / r.epochs)) for r in (source, target)
    )
    assert float(small) == pytest.approx(0.9**20, rel=1e-5)  # an epoch of 20 steps; roundings of 2⁻²⁴
    assert float(large) == pytest.approx(float(small), rel=1e-5)


@pytest.mark.optax_promotes
def test_a_scale_invariant_network_does_not_notice_powers_of_two():
    x, y = jax.random.normal(jax.random.key(0), (16, 8)), jnp.arange(16) % 4
    start = {
        "hidden": jax.random.normal(jax.random.key(1), (8, 12)),
        "out": jax.random.normal(jax.random.key(2), (12, 4)),
    }
    unit = lambda w: w / jnp.sqrt((w * w).sum())

    def loss(params):
        logits = 20 * jnp.tanh(x @ unit(params["hidden"]) * 3) @ unit(params["out"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def train(params, learning_rate, weight_decay, eps):
        tx = wd.adamw(learning_rate, weight_decay=weight_decay, eps=eps, mask=None)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), None, length=30)

    (params, _), losses = train(start, 0.01, 0.5, 1e-3)
    assert losses[-1] < 0.8 * losses[0]
    for k in (4.0, 0.125):
        scaled = jax.tree.map(lambda w, k=k: k * w, start)
        (other, _), same = train(scaled, k * 0.01, 0.5 / k, 1e-3 / k)
        np.testing.assert_array_equal(losses, same)
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(k * a, b), params, other)
    assert not np.array_equal(losses, train(start, 0.04, 0.5, 1e-3)[1])


@pytest.mark.optax_promotes
@pytest.mark.slow
def test_eta_lambda_held_under_mup_collapses_the_norm_curves():
    source = wd.Run(batch=64, steps=100, width=32, learning_rate=2e-4, weight_decay=80.0)
    x = jax.random.normal(jax.random.key(0), (64, 16))
    y = jnp.tanh(x @ jax.random.normal(jax.random.key(1), (16, 1)))

    def loss(p):
        width = len(p["hidden"])
        return ((jnp.tanh(jnp.tanh(x @ p["in"]) @ p["hidden"]) @ p["out"] / width**0.5 - y) ** 2).mean()

    @jax.jit
    def norms(params, learning_rate, weight_decay):
        hidden, rest = wd.adamw(learning_rate, weight_decay=weight_decay, mask=None), optax.adam(2e-3)
        tx = wd.partition({"hidden": hidden, "rest": rest}, lambda p: "hidden" if p.path == "hidden" else "rest")

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.sqrt((params["hidden"] ** 2).mean() * len(params["hidden"]))

        return jax.lax.scan(step, (params, tx.init(params)), None, length=source.steps)[1]

    def start(width):
        keys = jax.random.split(jax.random.key(2), 2)
        first, hidden = jax.random.normal(keys[0], (16, width)), jax.random.normal(keys[1], (width, width))
        return {"in": first / 4, "hidden": hidden / width**0.5, "out": jnp.zeros((width, 1))}

    narrow = norms(start(32), source.learning_rate, source.weight_decay)
    wide = wd.transfer(source=source, target=wd.Run(batch=64, steps=100, width=128), hold="mup_angle")
    assert (wide.learning_rate, wide.weight_decay) == pytest.approx((5e-5, 320.0))
    same, root = (norms(start(128), 5e-5, weight_decay) for weight_decay in (wide.weight_decay, 160.0))
    # the curves fall from 1 to 0.2; what is left between them are the updates, which random starts make differ
    assert abs(same - narrow).max() < 0.05
    assert abs(root - narrow).max() > 0.2  # λ ∝ √width, at η ∝ 1/width


@pytest.mark.parametrize("row", wd.published(), ids=lambda row: row.name)
def test_published_runs_are_runs(row):
    if row.batch_size is None:
        with pytest.raises(ValueError, match="has no published batch"):
            row.run()
        return
    run = row.run(width=64)
    assert (run.learning_rate, run.weight_decay, run.width) == (row.learning_rate, row.weight_decay, 64)
    families = {"AdamW": "adamw", "SGD": "sgd_l2" if row.decay == "coupled" else "sgdw"}
    assert run.optimizer == families.get(row.optimizer.partition(",")[0], "other")
    if row.steps < 200_000:  # time
        # a warm-up whose end falls between two steps never quite reaches its peak, which the shape does
        assert run.timescale().timescale_steps == pytest.approx(row.timescale().timescale_steps, rel=1e-4)


def test_my_run_if_it_were_trained_like_gpt2():
    mine = wd.Run(batch=8192, steps=3000, examples=8192 * 1000)
    found = wd.transfer(source=wd.published("nanogpt-124m").run(), target=mine)
    assert found["angle"].learning_rate == 6e-4
    assert found["angle"].weight_decay == pytest.approx(0.1, rel=1e-3)
    share = wd.published("nanogpt-124m").share_of_run
    run = found["timescale_run"].run
    assert run.timescale().timescale_steps / run.steps == pytest.approx(share, rel=1e-2)  # to first order in c = 0.007
    shape = np.asarray(run.schedule)  # GPT-2's, stretched: a warm-up of 2000/600000 of the run
    assert shape[5] == pytest.approx(0.5, abs=0.01)
    assert shape[10:].argmax() == 0
    assert shape[-1] == pytest.approx(0.1, abs=1e-3)


def test_the_grid_spans_what_the_rules_say():
    source = wd.Run(batch=256, steps=10_000, examples=50_000, learning_rate=1e-3, weight_decay=0.1)
    found = wd.transfer(source=source, target=wd.Run(batch=8192, steps=1250, examples=50_000))
    decays = [row.weight_decay for row in found.rows]
    grid = found.grid(points=4)
    assert grid[0] == pytest.approx(min(decays))
    assert grid[-1] == pytest.approx(max(decays))
    np.testing.assert_allclose(np.diff(np.log(grid)), np.log(max(decays) / min(decays)) / 3)
    same = wd.transfer(source=source, target=source.replace(weight_decay=None, learning_rate=None))
    np.testing.assert_allclose(same.grid(3), [0.05, 0.1, 0.2], rtol=1e-10)
    wide = wd.transfer(source=source.replace(width=8), target=wd.Run(batch=256, steps=100, width=16))
    with pytest.raises(ValueError, match=r"different learning rates \(0.0005, 0.001\).*learning_rate_rule"):
        wide.grid()
    with pytest.raises(ValueError, match="points=1"):
        found.grid(1)


def test_it_prints_every_rule_its_source_and_how_far_they_are_apart():
    source = wd.Run(**SMALL, learning_rate=ETA, weight_decay=0.1)
    found = wd.transfer(source=source, target=wd.Run(**WIDE), hold="normalised")
    text = str(found)
    for rule in (*(row.rule for row in found.rows), *map(LEARNING_RATE_RULES.get, found.learning_rates)):
        assert rule.source in text
        assert rule.validated in text
    least, most = (f(row.weight_decay for row in found.rows) for f in (min, max))
    assert f"disagree by a factor of {most / least:.3g}" in text
    assert "→ normalised" in text
    assert "same_decay: is for sgdw and sgd_l2, not adamw" in text
    assert "<table>" in found._repr_html_()
    with pytest.raises(KeyError, match="is for sgdw"):
        found["same_decay"]


def test_there_is_no_default_that_pretends():
    found = wd.transfer(source=wd.Run(**SMALL), target=wd.Run(**WIDE), weight_decay=0.1, learning_rate=ETA)
    for field in ("run", "weight_decay", "learning_rate"):
        with pytest.raises(ValueError, match="no rule was picked, and they disagree: pass hold="):
            getattr(found, field)


def wrong():
    """(changes to the call, what the error says)."""
    yield {"hold": "tau"}, "hold='tau' is not a rule: use one of 'angle'"
    yield {"hold": "same_decay"}, "hold='same_decay': is for sgdw and sgd_l2, not adamw"
    yield {"hold": "mup_angle", "target": wd.Run(batch=1, steps=1)}, r"hold='mup_angle': needs target.width: pass"
    yield {"weight_decay": None}, "weight_decay of the source is unknown: pass weight_decay=..."
    yield {"learning_rate": None}, "learning_rate of the source is unknown"
    yield {"weight_decay": 0.0}, "weight_decay=0 has no strength to hold"
    yield {"weight_decay": -1.0}, r"weight_decay=-1.0 must be finite and not negative"
    yield {"weight_decay": 600.0}, "removes 1.2 of each weight"
    yield {"target": wd.Run(batch=1, steps=1, weight_decay=0.1)}, "target has weight_decay=0.1, which is what transfer"
    yield {"optimizer": "adam"}, "optimizer='adam': use one of 'adamw'"
    yield {"target": wd.Run(batch=1, steps=1, optimizer="sgdw")}, "no rule carries λ from one optimizer to another"
    yield {"optimizer": "sgdw", "target": wd.Run(batch=1, steps=1, optimizer="adamw")}, "drop one of them"
    yield {"learning_rate_rule": "linear"}, "learning_rate_rule='linear' is not a rule: use one of 'batch_linear'"
    yield {"learning_rate_rule": "batch_linear"}, "'batch_linear' is for sgdw and sgd_l2, not adamw"
    yield {"learning_rate_rule": "mup", "target": wd.Run(batch=1, steps=1)}, "needs target.width"
    yield {"learning_rate_rule": "mup", "target": wd.Run(**WIDE, learning_rate=1.0)}, "drop one"
    yield {"hold": "timescale_run", "weight_decay": 100.0, "target": wd.Run(batch=1, steps=1)}, "hold='timescale_run': "


@pytest.mark.parametrize(("changes", "message"), list(wrong()))
def test_mistakes_are_explained(changes, message):
    call = {"source": wd.Run(**SMALL), "target": wd.Run(**WIDE), "weight_decay": 0.1, "learning_rate": ETA} | changes
    with pytest.raises(ValueError, match=message):
        wd.transfer(**call)


def test_a_published_run_is_converted_first():
    with pytest.raises(TypeError, match=r"source must be a wd.Run, got PublishedRun: pass source=....run\(\)"):
        wd.transfer(source=wd.published("deit-b"), target=wd.Run(batch=1, steps=1))
    with pytest.raises(TypeError, match=r"target must be a wd\.Run"):
        wd.transfer(source=wd.published("deit-b").run(), target=None)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps=0 must be a whole number"),
        ({"steps": 10.0}, ValueError, "steps=10.0 must be a whole number"),
        ({"steps": True}, ValueError, "steps=True must be"),
        ({"batch": 0}, ValueError, "batch=0 must be above 0$"),
        ({"batch": None}, TypeError, "batch must be a number"),
        ({"examples": 0}, ValueError, "examples=0 must be above 0; leave it out"),
        ({"width": -1}, ValueError, "width=-1 must be"),
        ({"learning_rate": COSINE}, TypeError, "learning_rate is a schedule: pass a number"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate=0.0 must be above 0"),
        ({"schedule": lambda t: jnp.zeros(())}, ValueError, "schedule is 0 in every step"),
        ({"schedule": np.ones(3)}, ValueError, r"schedule has the shape \(3,\)"),
        ({"coupling": "l2"}, ValueError, "coupling='l2' is not a coupling"),
        ({"optimizer": "adam"}, ValueError, "optimizer='adam': use one of"),
        (
            {"coupling": "schedule", "optimizer": "sgd_l2"},
            ValueError,
            "'schedule' with optimizer='sgd_l2': λ in the grad",
        ),
        ({"momentum": 1.0}, ValueError, "momentum=1.0 must be below 1"),
    ],
)
def test_a_run_checks_its_fields(fields, error, message):
    with pytest.raises(error, match=message):
        wd.Run(**{"batch": 32, "steps": 10} | fields)


def test_a_run_takes_numbers_of_any_library():
    run = wd.Run(batch=np.int64(4), steps=np.int32(10), learning_rate=jnp.float32(0.5), weight_decay=np.float64(0.1))
    assert run.timescale().largest_removed_per_step == pytest.approx(0.05)
    assert run.epochs is None
    for missing in ("weight_decay", "learning_rate"):
        with pytest.raises(ValueError, match=f"this run has no {missing}"):
            run.replace(**{missing: None}).timescale()


@pytest.mark.parametrize("optimizer", ["sgdw", "sgd_l2"])
@pytest.mark.parametrize("hold", ["norm", "angle"])
def test_another_momentum_keeps_the_measured_norm_and_angle(optimizer, hold):
    """SGD on a scale-invariant loss: gradients are orthogonal to w, and ∝ 1/‖w‖."""

    def measured(run, size=100, steps=8_000):
        rng = np.random.default_rng(0)
        w, m = rng.normal(size=size), np.zeros(size)
        w *= (size * run.learning_rate / (2 * run.weight_decay * (1 - run.momentum))) ** 0.25 / np.linalg.norm(w)
        norms, angles = [], []
        for _ in range(steps):
            noise, before = rng.normal(size=size), w
            coupled = run.weight_decay * w * (optimizer == "sgd_l2")
            m = run.momentum * m + (noise - w * (w @ noise) / (w @ w)) / np.linalg.norm(w) + coupled
            w = w - run.learning_rate * (m + run.weight_decay * w * (optimizer == "sgdw"))
            norms.append(np.linalg.norm(w))
            angles.append(np.arccos(w @ before / norms[-1] / np.linalg.norm(before)))
        return np.mean((norms if hold == "norm" else angles)[steps // 2 :])

    # λ that are reached within the steps
    source = wd.Run(batch=1, steps=9, learning_rate=0.1, weight_decay=0.01, momentum=0.5, optimizer=optimizer)
    source = source.replace(weight_decay=0.05) if hold == "norm" else source
    there = wd.Run(batch=1, steps=9, momentum=0.8 if hold == "angle" else 0.0)
    target = wd.transfer(source=source, target=there, hold=hold).run
    assert measured(target) == pytest.approx(measured(source), rel=0.02)  # noise of 4,000 steps
    same = source.replace(momentum=there.momentum)
    assert abs(measured(same) / measured(source) - 1) > 0.05


def test_the_linear_rule_keeps_the_decay_at_another_momentum():
    for optimizer in ("sgdw", "sgd_l2"):
        source = wd.Run(batch=1, steps=9, learning_rate=0.1, weight_decay=1e-4, momentum=0.9, optimizer=optimizer)
        found = wd.transfer(source=source, target=wd.Run(batch=4, steps=9, momentum=0.0), hold="same_decay")
        assert (found.weight_decay, found.learning_rate) == pytest.approx((1e-4, 0.4))


def test_a_rule_whose_rate_would_be_1_says_so_in_the_callers_words():
    source = wd.Run(batch=256, steps=1000, examples=1e4, learning_rate=1e-3, weight_decay=999.0)
    target = wd.Run(batch=25_600, steps=10, examples=1e4)
    with pytest.raises(ValueError, match="hold='timescale_run': needs a rate of 1 per step or more: the target has"):
        wd.transfer(source=source, target=target, hold="timescale_run")
    with pytest.raises(TypeError, match=r"got NoneType: pass source=wd\.Run\(batch"):
        wd.transfer(source=None, target=target)
