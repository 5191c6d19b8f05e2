"""Calls of training frameworks: which parameters their rules spare, and those without a recording against a transcript.

big_vision, AXLearn and MaxText are JAX, so their optimizers are written out here as chains of Optax, stage by stage.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd

pytestmark = [pytest.mark.quick_compile, pytest.mark.optax_promotes]
STEPS = 20
SHAPES = {
    "embed/embedding": (5, 4), "block_0/attention/kernel": (4, 4), "block_0/attention/bias": (4,),
    "block_0/LayerNorm_0/scale": (4,), "head/kernel": (4, 3), "head/bias": (3,),
}  # fmt: skip
RTOL = 1e-12  # float64: the factors of η and of λ are multiplied in another order


def tree(leaf):
    nested = {}
    for path, shape in SHAPES.items():
        *folders, name = path.split("/")
        at = nested
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = leaf(path, shape)
    return nested


def problem():
    rng = np.random.Generator(np.random.PCG64(0))
    params = tree(lambda path, shape: jnp.asarray(rng.uniform(0.5, 2.0, shape)))
    return params, [tree(lambda path, shape: jnp.asarray(rng.standard_normal(shape))) for _ in range(STEPS)]


def run(tx, params, grads):
    step, state = jax.jit(tx.update), tx.init(params)
    for g in grads:
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_same(ours, theirs, rtol=RTOL):
    params, grads = problem()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), run(ours(params), params, grads),
        run(theirs(params), params, grads),
    )  # fmt: skip


def mask_of(regex):
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, p: bool(re.fullmatch(regex, "/".join(k.key for k in path))), params
    )


def explained(call, **arguments):
    params = tree(lambda path, shape: jnp.ones(shape))
    return {row.path: row for row in wd.emulate.explain(call, params=params, **arguments).rows}


# --- big_vision ------------------------------------------------------------------------------------------------------

BIG_VISION = "big_vision.optax.make"
COSINE = {"warmup_steps": 5, "decay_type": "cosine"}


def big_vision_cosine(step):  # create_learning_rate_schedule, total_steps=20; in float32, as it runs without x64
    step = step.astype(jnp.float32)
    progress = jnp.clip((step - 5) / 15.0, 0.0, 1.0)
    return jnp.asarray(0.5 * (1.0 + jnp.cos(jnp.pi * progress)) * jnp.minimum(1.0, step / 5), jnp.float32)


def big_vision_chain(direction, lr, wd_mults, lr_mults, clip, schedule):
    def make(params):
        return optax.chain(
            optax.clip_by_global_norm(clip) if clip else optax.identity(),
            direction,
            optax.scale(lr),
            *(optax.masked(optax.scale(mult), mask_of(regex)(params)) for regex, mult in lr_mults),
            *(optax.add_decayed_weights(0.05 * mult, mask_of(regex)(params)) for regex, mult in wd_mults),
            optax.scale_by_schedule(schedule),
            optax.scale(-1.0),
        )

    return make


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            (optax.scale_by_adam(), 0.01, [(".*/kernel$", 1.0)], [], 1.0, big_vision_cosine),
            {"lr": 0.01, "wd": 0.05, "grad_clip_norm": 1.0, "schedule_config": COSINE, "total_steps": STEPS},
        ),
        (
            (
                optax.scale_by_adam(b2=0.95), 0.01, [("head/.*", 3.0), (".*/attention/.*|.*scale", 0.5)],
                [("head/.*", 0.1)], None, lambda step: jnp.float32(1),
            ),
            {
                "lr": 0.01, "wd": 0.05, "optax": {"b2": 0.95}, "lr_mults": [("head/.*", 0.1)],
                "wd_mults": [("head/.*", 3.0), (".*/attention/.*|.*scale", 0.5), ("head/bias", 9.0)],
            },
        ),
    ],
)  # fmt: skip
def test_big_visions_config_is_its_chain(theirs, ours):
    assert_same(lambda params: wd.emulate(BIG_VISION, params=params, **ours), big_vision_chain(*theirs))


@pytest.mark.usefixtures("x64")
def test_big_visions_adafactor():
    def decay_rate(i, exponent):
        return jnp.minimum(0.999, 1.0 - (jnp.array(i, jnp.float32) + 1.0) ** (-exponent))

    direction = optax.chain(
        optax.scale_by_factored_rms(
            factored=True, decay_rate=0.8, step_offset=0, min_dim_size_to_factor=4, epsilon=1e-30,
            decay_rate_fn=decay_rate,
        ),
        optax.clip_by_block_rms(1.0),
        optax.ema(0.9, debias=False, accumulator_dtype=jnp.bfloat16),
    )  # fmt: skip
    own = {"min_dim_size_to_factor": 4, "clipping_threshold": 1.0}
    given = {"lr": 0.01, "wd": 0.05, "optax_name": "big_vision.scale_by_adafactor", "optax": own}
    chain = big_vision_chain(direction, 0.01, [(".*/kernel$", 1.0)], [], None, lambda step: jnp.float32(1))
    assert_same(lambda params: wd.emulate(BIG_VISION, params=params, **given), chain)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"decay_type": "linear", "linear_end": 0.1}, [1.0, 0.55, 0.1]),
        ({"decay_type": "rsqrt", "timescale": 10, "cooldown_steps": 10}, [1.0, 0.5**0.5, 0.0]),
        ({"decay_type": "stair", "steps": [5, 15], "mults": [0.5, 0.25]}, [1.0, 0.5, 0.25]),
        ({"decay_type": "cosine", "warmup_percent": 0.5}, [0.0, 1.0, 0.0]),
        ({"decay_type": "polynomial", "power": 2}, [1.0, 0.25, 0.0]),
        ({}, [1.0, 1.0, 1.0]),
    ],
)
def test_big_visions_schedules(config, expected):
    from wd_optax.porting.big_vision import factors

    factor = factors(config, 20, None, None)
    np.testing.assert_allclose([factor(step) for step in (0, 10, 20)], expected, atol=1e-7)


def test_big_vision_decays_kernels_by_the_schedules_factor():
    rows = explained(BIG_VISION, lr=0.01, wd=0.1, lr_mults=[("head/.*", 0.5)])
    assert {path for path, row in rows.items() if row.weight_decay} == {"block_0/attention/kernel", "head/kernel"}
    assert rows["head/kernel"].learning_rate == pytest.approx(0.005)
    assert rows["head/kernel"].weight_decay == 0.1  # lr_mults don't scale the decay
    assert rows["head/kernel"].because == "wd_mults '.*/kernel$': 1; lr_mults 'head/.*': 0.5"


# --- AXLearn and MaxText ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_axlearns_two_adamw():
    adam, factor = {"b1": 0.9, "b2": 0.95, "eps": 1e-3}, lambda step: 1.0 / (1 + step)
    scales = [(".*(bias|scale)", 0.0), ("head/.*", 0.5)]

    def decays(params, decay):
        paths = mask_of(".*(bias|scale)")(params)
        head = mask_of("head/kernel")(params)
        return optax.chain(
            optax.add_decayed_weights(decay, jax.tree.map(lambda a, b: not a and not b, paths, head)),
            optax.add_decayed_weights(decay / 2, head),
        )

    common = {"learning_rate": 0.02, **adam, "weight_decay": 0.1, "weight_decay_per_param_scale": scales}
    assert_same(
        lambda params: wd.emulate("axlearn.adamw_optimizer", params=params, **common),
        lambda params: optax.chain(optax.scale_by_adam(**adam), decays(params, 0.1), optax.scale(-0.02)),
    )
    assert_same(
        lambda params: wd.emulate(
            "axlearn.adamw_decoupled_optimizer", params=params, update_schedule=factor, **common
        ),
        lambda params: optax.chain(
            optax.scale_by_adam(**adam), optax.scale(0.02), decays(params, 0.1), optax.scale_by_schedule(factor),
            optax.scale(-1.0),
        ),
    )  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("opt_type", ["adamw", "adam_pax"])
def test_maxtexts_adamw(opt_type):
    def adam_pax(params):  # MaxText's, whose βs are corrected in place of the moments
        def corrected(count, beta):
            t = count.astype(jnp.float32) + 1.0
            return (beta * (1.0 - beta ** (t - 1.0)) / (1.0 - beta**t)).astype(jnp.float64)

        def update(updates, state, params):
            count, mu, nu = state
            b1, b2 = corrected(count, 0.9), corrected(count, 0.95)
            mu = jax.tree.map(lambda g, m: (1 - b1) * g + b1 * m, updates, mu)
            nu = jax.tree.map(lambda g, v: (1 - b2) * g**2 + b2 * v, updates, nu)
            move = lambda m, v, p: -0.02 * (m / (jnp.sqrt(v + 1e-2) + 1e-8) + 0.1 * p)
            return jax.tree.map(move, mu, nu, params), (count + 1, mu, nu)

        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.GradientTransformation(lambda params: (jnp.zeros((), jnp.int32), zeros, zeros), update)

    adamw = lambda params: optax.adamw(0.02, b2=0.95, eps_root=1e-2, weight_decay=0.1)
    given = {"learning_rate": 0.02, "opt_type": opt_type, "adam_eps_root": 1e-2}
    assert_same(
        lambda params: wd.emulate("maxtext.get_optimizer", params=params, **given),
        adamw if opt_type == "adamw" else adam_pax,
        RTOL if opt_type == "adamw" else 1e-6,  # its corrections are float32
    )


# --- modded-nanogpt --------------------------------------------------------------------------------------------------

MODDED = "modded_nanogpt.NorMuonAndAdam"


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weight_decay", [0.0, 0.005, 0.15])
def test_modded_nanogpts_adam(weight_decay):
    """Against NumPy, as its _adam_update has it: η² in the decay, strictly cautious; ε is added to √v."""
    params, grads = problem()
    grads[0] = jax.tree.map(lambda g: g.at[0].set(0.0), grads[0])  # no step, no decay
    factors = np.linspace(1.0, 0.15, STEPS)
    given = {"adam_betas": (0.75, 0.95), "eps": 1e-3, "lr": 0.008 * 4.0, "weight_decay": weight_decay * 5.0}
    schedule = lambda step: jnp.asarray(factors)[step]
    ours = run(wd.emulate(MODDED, params=params, schedule=schedule, **given), params, grads)
    theirs = [np.asarray(p) for p in jax.tree.leaves(params)]
    m, v = ([np.zeros_like(p) for p in theirs] for _ in range(2))
    for t, (g, factor) in enumerate(zip(grads, factors, strict=True), 1):
        lr = 0.008 * factor * 4.0
        for i, x in enumerate(np.asarray(leaf) for leaf in jax.tree.leaves(g)):
            m[i], v[i] = 0.75 * m[i] + 0.25 * x, 0.95 * v[i] + 0.05 * x**2
            u = m[i] / (np.sqrt(v[i]) + 1e-3) * (lr * np.sqrt(1 - 0.95**t) / (1 - 0.75**t))
            decays = u * theirs[i] > 0
            theirs[i] = theirs[i] - (u + lr * lr * weight_decay * 5.0 * decays * theirs[i])
    for x, y in zip(jax.tree.leaves(ours), theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=RTOL)


# --- rules that spare parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "shape", "because"),
    [
        ("h/0/ln_1/scale", (4,), "of a torch.nn.LayerNorm, by its name"),
        ("layers_0/input_layernorm/weight", (4,), "the Trainer's pattern 'layernorm' is in its name"),
        ("block/q_norm/scale", (4,), r"the Trainer's pattern '_norm(?:$|\\.)' is in its name"),
        ("attention/query/bias", (2, 4), "the Trainer's pattern 'bias' is in its name"),
        ("block/rmsnorm_1/scale", (4,), "the Trainer's pattern 'rmsnorm' is in its name"),
        ("decoder/norm/scale", (4,), r"the Trainer's pattern '(?:^|\\.)norm(?:$|\\.)' is in its name"),
        ("BatchNorm_0/scale", (4,), ""),
        ("pos_embed", (1, 5, 4), ""),
        ("cls_token", (1, 1, 4), ""),
        ("dense/kernel", (4, 4), ""),
    ],
)
def test_what_the_trainer_of_transformers_spares(path, shape, because):
    nested = jnp.ones(shape)
    for name in reversed(path.split("/")):
        nested = {name: nested}
    row = wd.emulate.explain("transformers.Trainer", params=nested, weight_decay=0.1, max_steps=9).rows[0]
    assert row.because == (because or "no rule spares it")
    assert row.weight_decay == (0.0 if because else 0.1)


def test_megatrons_multipliers():
    call = "megatron.core.optimizer.get_megatron_optimizer"
    rows = explained(call, lr=0.1, weight_decay=0.1, scale_lr_cond=lambda name, p: "head" in name, lr_mult=10.0)
    assert {path for path, row in rows.items() if not row.weight_decay} == {
        "block_0/attention/bias", "block_0/LayerNorm_0/scale", "head/bias"
    }  # fmt: skip
    assert [rows[path].learning_rate for path in ("head/bias", "head/kernel", "embed/embedding")] == [1.0, 1.0, 0.1]
    assert rows["head/bias"].because == "wd_mult 0: rank 1; scale_lr_cond: lr_mult"
    own = explained(call, lr=0.1, no_weight_decay_cond=lambda name, p: p.role == "embedding")
    assert {path for path, row in own.items() if not row.weight_decay} == {"embed/embedding"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_megatrons_numbers(optimizer):
    """Against a NumPy oracle of its clip, groups, and Adam or SGD."""
    params, grads = problem()
    given = {"lr": 0.02, "weight_decay": 0.1, "optimizer": optimizer, "adam_eps": 1e-3, "clip_grad": 2.0}
    ours = run(wd.emulate("megatron.core.optimizer.get_megatron_optimizer", params=params, **given), params, grads)
    theirs = [np.asarray(p) for p in jax.tree.leaves(params)]
    m, v = ([np.zeros_like(p) for p in theirs] for _ in range(2))
    for t, g in enumerate(([np.asarray(x) for x in jax.tree.leaves(g)] for g in grads), 1):
        scale = min(1.0, 2.0 / (np.sqrt(sum((x**2).sum() for x in g)) + 1e-6))
        for i, p in enumerate(theirs):
            decay, x = 0.1 if p.ndim > 1 else 0.0, g[i] * scale
            if optimizer == "sgd":
                x = x + decay * p
                m[i] = x if t == 1 else 0.9 * m[i] + x
                theirs[i] = p - 0.02 * m[i]
                continue
            m[i], v[i] = 0.9 * m[i] + 0.1 * x, 0.999 * v[i] + 0.001 * x**2
            u = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-3)
            theirs[i] = p * (1 - 0.02 * decay) - 0.02 * u
    for x, y in zip(jax.tree.leaves(ours), theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=RTOL)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        ("transformers.Trainer", {}, "pass max_steps="),
        ("transformers.Trainer", {"optim": "adafactor", "max_steps": 9}, "only its AdamW is ported"),
        ("transformers.Trainer", {"lr_scheduler_type": "polynomial", "max_steps": 9}, "one of linear, cosine"),
        ("transformers.Trainer", {"optim_args": "a=1", "max_steps": 9}, "lr_scheduler_type='constant'"),
        ("bitsandbytes.optim.Adam", {"optim_bits": 8}, "low_precision_state"),
        ("bitsandbytes.optim.Lion", {"args": object()}, "args=None"),
        ("composer.optim.DecoupledSGDW", {"lr": lambda step: 0.1}, "pass lr=<the peak>"),
        ("composer.optim.DecoupledSGDW", {"lr": 0.1, "nesterov": True}, "requires a momentum"),
        ("composer.optim.DecoupledSGDW", {}, "argument: 'lr'; its arguments are"),
        (BIG_VISION, {"lr": 0.1, "schedule_config": [(".*", None)]}, "wd.partition"),
        (BIG_VISION, {"lr": 0.1, "schedule_config": {"decay_type": "cosine"}}, "need the steps of the run"),
        (BIG_VISION, {"lr": 0.1, "schedule_config": {"warmup": 5}}, "'warmup'"),
        (BIG_VISION, {"lr": 0.1, "optax_name": "scale_by_adamm"}, "Optax has none of this name"),
        ("axlearn.adamw_optimizer", {"learning_rate": 0.1}, "missing a required argument: 'b1'"),
        ("maxtext.get_optimizer", {"opt_type": "sgd"}, "'adamw' or 'adam_pax'"),
        ("megatron.core.optimizer.get_megatron_optimizer", {"lr": 0.1, "optimizer": "lion"}, "'adam' or 'sgd'"),
        (MODDED, {"adam_betas": (0.9, 0.95), "optim": "normuon"}, "whose mask is u·p ≥ 0"),
        ("pytorch_optimizer.Adan", {"max_grad_norm": 1.0}, "optax.clip_by_global_norm"),
        ("pytorch_optimizer.AdaBelief", {"rectify": True, "n_sma_threshold": 4}, "the threshold here is 5"),
        ("pytorch_optimizer.AdaBelief", {"rectify": True, "ams_bound": True}, "don't keep the maximum"),
        ("pytorch_optimizer.SGDW", {"momentum": 0.9, "nesterov": True, "dampening": 0.1}, "undamped buffer"),
        ("pytorch_optimizer.StableAdamW", {"weight_decouple": False}, "torch.optim.Adam"),
        ("pytorch_optimizer.Lion", {"use_gc": True}, "has no argument 'use_gc'"),
    ],
)
def test_what_has_no_twin_is_refused(call, arguments, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        wd.emulate(call, params={"kernel": jnp.ones((2, 2))}, **arguments)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("transformers.Trainer", {"max_steps": 9}),
        (BIG_VISION, {"lr": 0.1, "wd": 0.1, "grad_clip_norm": 1.0}),
        ("megatron.core.optimizer.get_megatron_optimizer", {"lr": 0.1}),
        ("axlearn.adamw_optimizer", {"learning_rate": 0.1, "b1": 0.9, "b2": 0.9, "eps": 1e-8}),
        (MODDED, {"adam_betas": (0.9, 0.95)}),
        ("pytorch_optimizer.SGDW", {"momentum": 0.9, "weight_decay": 0.1}),
        ("pytorch_optimizer.Adan", {"weight_decay": 0.1}),
        ("pytorch_optimizer.StableAdamW", {"kahan_sum": False}),
    ],
)
def test_none_integers_low_precision_and_an_empty_tree(call, arguments):
    params = {"kernel": jnp.ones((2, 2), jnp.bfloat16), "none": None, "steps": jnp.arange(3)}
    for tree_of in (params, {}):
        tx = wd.emulate(call, params=tree_of, **arguments)
        grads = jax.tree.map(jnp.ones_like, tree_of)
        updates, _ = tx.update(grads, tx.init(tree_of), tree_of)
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, tree_of)


def test_a_trainers_schedule_clip_and_rule_are_not_translated_away():
    """They have no counterpart in a bare optimizer, so `translate` promises nothing."""
    with pytest.raises(ValueError, match="is of its own kind"):
        wd.translate(from_="transformers.Trainer", to="torch.AdamW", max_steps=9)
    found = wd.translate(from_="composer.DecoupledAdamW", to="torch.AdamW", lr=1e-3, weight_decay=1e-5)
    assert found.arguments["weight_decay"] == pytest.approx(1e-2)


@pytest.mark.parametrize(("lr", "removed"), [(0.1, 0.01 * 0.5), (0.2, 0.04 * 0.5)])
def test_modded_nanogpts_decay_is_by_the_square_of_a_live_rate(lr, removed):
    """1 has a step that shrinks it, −1 one that grows it, and 2 none."""
    params = jnp.array([1.0, -1.0, 2.0])
    tx = wd.emulate(MODDED, params=params, adam_betas=(0.9, 0.99), lr=0.1, weight_decay=0.5)
    state = optax.tree.set(tx.init(params), learning_rate=jnp.float32(lr))
    updates, _ = jax.jit(tx.update)(jnp.array([1.0, 1.0, 0.0]), state, params)
    np.testing.assert_allclose(updates, [-lr - removed, -lr, 0.0], rtol=1e-6)  # float32
