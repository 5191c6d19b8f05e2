"""The numbers of PyTorch, timm, optimī, Keras and TF-Addons, step by step, from the call here that equals each.

goldens/*.npz were written by goldens/generate.py from the real packages; nothing of theirs is needed to run this.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd

RTOL = 1e-12  # float64 on both sides, Keras and TF-Addons too: reordered sums over ten steps reach 3e-14
FOLDER = Path(__file__).with_name("goldens")
FILES = {
    framework: dict(np.load(FOLDER / f"{framework}.npz")) for framework in ("torch", "timm", "optimi", "keras", "tfa")
}
GIVEN = ("p0", "gradients", "learning_rates", "weight_decay")
P0, GRADS, LR, WD = (FILES["torch"][name] for name in GIVEN)
PEAK = float(LR.max())
GOLDENS = {
    f"{framework}/{key}": trajectory
    for framework, arrays in FILES.items()
    for key, trajectory in arrays.items()
    if key not in (*GIVEN, "version")
}


pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.optax_promotes]


def lr(step):
    return jnp.asarray(LR)[step]


by_lr = optax.scale_by_learning_rate(lr)
ETA = {"learning_rate": lr, "mask": None}  # with_decay's axes, as the row needs them
SCHEDULE, CORRECTED, CONSTANT = (
    {**ETA, "coupling": coupling, "peak_learning_rate": PEAK} for coupling in ("schedule", "corrected", "constant")
)


def after(λ, **coupling):
    """Decay after the step, (1 − c)·(p + u), as a proximal step: (p + u)/(1 + c/(1 − c)) is the same number."""
    c = wd.decay_rate(λ, learning_rate=lr, **coupling)
    return wd.proximal(lambda step: c(step) / (1 - c(step)), None)


def root_bc2(step, b2=0.999):
    return jnp.sqrt(1 - b2 ** (step + 1))


def eps_not_corrected(direction, eps):
    """u = m̂·√(1−β₂ᵗ)/(√v + ε): Optax's m̂/(√v̂ + ε_t) with ε_t = ε/√(1−β₂ᵗ)."""
    return optax.inject_hyperparams(direction)(eps=lambda step: eps / root_bc2(step))


def amsgrad(eps, corrected=True):
    """u = m̂/(√(max v/(1−β₂ᵗ)) + ε): PyTorch takes the maximum before it corrects, Optax after or not at all.

    Keras corrects neither v nor ε: `corrected` False leaves ε as it is.
    """
    direction = optax.inject_hyperparams(optax.scale_by_amsgrad)(
        bias_correction_nu=False, eps=lambda step: eps * root_bc2(step) if corrected else jnp.asarray(eps)
    )
    return optax.chain(direction, optax.scale_by_schedule(root_bc2))


def asgd_eta(step, lambd=1e-4, alpha=0.75):
    """PyTorch's ASGD uses at step t the η that step t − 1 left behind."""
    last = lr(jnp.maximum(step - 1, 0))
    return last / (1 + lambd * last * step) ** alpha


# golden: λ -> the call that gives the same numbers
TWINS = {
    # g += λp, first b undamped, maximize flips g before λp is added
    "torch/sgd": lambda λ: wd.sgd_l2(lr, weight_decay=λ, mask=None),
    "torch/sgd_momentum": lambda λ: wd.sgd_l2(lr, weight_decay=λ, momentum=0.9, mask=None),
    "torch/sgd_dampening": lambda λ: wd.sgd_l2(lr, weight_decay=λ, momentum=0.9, dampening=0.3, mask=None),
    "torch/sgd_nesterov": lambda λ: wd.sgd_l2(lr, weight_decay=λ, momentum=0.9, nesterov=True, mask=None),
    "torch/sgd_maximize": lambda λ: optax.chain(optax.scale(-1), wd.sgd_l2(lr, weight_decay=λ, mask=None)),
    "torch/sgd_maximize_momentum": lambda λ: optax.chain(
        optax.scale(-1), wd.sgd_l2(lr, weight_decay=λ, momentum=0.9, dampening=0.3, mask=None)
    ),
    # g += λp before the moments
    "torch/adam": lambda λ: wd.adam_l2(lr, weight_decay=λ, mask=None),
    "torch/adam_amsgrad": lambda λ: optax.chain(wd.add_l2_to_loss(λ, None), amsgrad(1e-8), by_lr),
    "torch/rmsprop": lambda λ: optax.chain(
        wd.add_l2_to_loss(λ, None), optax.scale_by_rms(0.99, 1e-8, eps_in_sqrt=False), by_lr
    ),
    "torch/rmsprop_momentum": lambda λ: optax.chain(
        wd.add_l2_to_loss(λ, None), optax.scale_by_rms(0.99, 1e-8, eps_in_sqrt=False), optax.trace(0.9), by_lr
    ),
    "torch/rmsprop_centered": lambda λ: optax.chain(
        wd.add_l2_to_loss(λ, None), optax.scale_by_stddev(0.99, 1e-8, eps_in_sqrt=False), optax.trace(0.9), by_lr
    ),
    "torch/radam": lambda λ: optax.chain(
        wd.add_l2_to_loss(λ, None), eps_not_corrected(optax.scale_by_radam, 1e-8), by_lr
    ),
    "torch/adagrad_eps0": lambda λ: optax.chain(wd.add_l2_to_loss(λ, None), optax.scale_by_rss(0.0, 0.0), by_lr),
    "torch/adadelta": lambda λ: optax.chain(wd.add_l2_to_loss(λ, None), optax.scale_by_adadelta(0.9, 1e-6), by_lr),
    "torch/adamax": lambda λ: optax.chain(wd.add_l2_to_loss(λ, None), optax.scale_by_adamax(), by_lr),
    "torch/asgd": lambda λ: optax.chain(
        wd.add_l2_to_loss(λ, None), optax.sgd(asgd_eta), wd.shrink(lambda step: 1e-4 * asgd_eta(step), None)
    ),
    # p *= 1 − ηλ, then the step
    "torch/adamw": lambda λ: wd.adamw(lr, weight_decay=λ, mask=None),
    "torch/adam_decoupled": lambda λ: wd.adamw(lr, weight_decay=λ, mask=None),
    "torch/adamw_amsgrad": lambda λ: wd.with_decay(optax.chain(amsgrad(1e-8), by_lr), weight_decay=λ, **ETA),
    "torch/radam_decoupled": lambda λ: wd.with_decay(
        optax.chain(eps_not_corrected(optax.scale_by_radam, 1e-8), by_lr), weight_decay=λ, **ETA
    ),
    "timm/sgdw": lambda λ: wd.sgdw(lr, weight_decay=λ, mask=None),
    "timm/sgdw_momentum": lambda λ: wd.sgdw(lr, weight_decay=λ, momentum=0.9, dampening=0.3, mask=None),
    "timm/sgdw_nesterov": lambda λ: wd.sgdw(lr, weight_decay=λ, momentum=0.9, nesterov=True, mask=None),
    "timm/adamw": lambda λ: wd.adamw(lr, weight_decay=λ, mask=None),
    "timm/adamw_amsgrad": lambda λ: wd.with_decay(optax.chain(amsgrad(1e-8), by_lr), weight_decay=λ, **ETA),
    "timm/lion": lambda λ: wd.with_decay(optax.chain(optax.scale_by_lion(0.9, 0.99), by_lr), weight_decay=λ, **ETA),
    "timm/rmsproptf": lambda λ: optax.chain(
        wd.add_l2_to_loss(λ, None), optax.rmsprop(lr, 0.9, 1e-10, initial_scale=1.0, momentum=0.9)
    ),
    "timm/rmsproptf_decoupled": lambda λ: wd.with_decay(
        optax.rmsprop(lr, 0.9, 1e-10, initial_scale=1.0, momentum=0.9), weight_decay=λ, **ETA
    ),
    # timm's corrected_weight_decay: p *= 1 − (η_t²/η_base)·λ
    "timm/sgdw_corrected": lambda λ: wd.sgdw(
        lr, weight_decay=λ, momentum=0.9, coupling="corrected", peak_learning_rate=PEAK, mask=None
    ),
    "timm/adamw_corrected": lambda λ: wd.adamw(
        lr, weight_decay=λ, coupling="corrected", peak_learning_rate=PEAK, mask=None
    ),
    "timm/lion_corrected": lambda λ: wd.with_decay(
        optax.chain(optax.scale_by_lion(0.9, 0.99), by_lr), weight_decay=λ, **CORRECTED
    ),
    "timm/rmsproptf_corrected": lambda λ: wd.with_decay(
        optax.rmsprop(lr, 0.9, 1e-10, initial_scale=1.0, momentum=0.9), weight_decay=λ, **CORRECTED
    ),
    # timm's LAMB clips the global norm to 1; decay inside the trust ratio, or before it: then the ratio sees (1 − c)·p,
    # which scales the whole step by 1 − c, as decay after the step does
    "timm/lamb": lambda λ: optax.chain(
        optax.clip_by_global_norm(1.0),
        wd.scale_by_adam(eps=1e-6),
        wd.add_decayed_weights(λ),
        optax.scale_by_trust_ratio(),
        by_lr,
    ),
    "timm/lamb_decoupled": lambda λ: optax.chain(
        optax.clip_by_global_norm(1.0), optax.lamb(lr, eps=1e-6, weight_decay=0.0), after(λ)
    ),
    "timm/lamb_corrected": lambda λ: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.lamb(lr, eps=1e-6, weight_decay=0.0),
        after(λ, coupling="corrected", peak_learning_rate=PEAK),
    ),
    # optimī: L2, decouple_wd, and decouple_lr: p *= 1 − (η_t/η_max)·λ
    "optimi/sgd": lambda λ: wd.sgd_l2(lr, weight_decay=λ, mask=None),
    "optimi/sgd_momentum": lambda λ: wd.sgd_l2(lr, weight_decay=λ, momentum=0.9, mask=None),
    "optimi/sgd_dampening": lambda λ: optax.chain(wd.add_l2_to_loss(λ, None), optax.ema(0.9, debias=False), by_lr),
    "optimi/sgd_decouple_wd": lambda λ: wd.sgdw(lr, weight_decay=λ, momentum=0.9, mask=None),
    "optimi/sgd_decouple_lr": lambda λ: wd.sgdw(
        lr, weight_decay=λ, momentum=0.9, coupling="schedule", peak_learning_rate=PEAK, mask=None
    ),
    "optimi/adam": lambda λ: wd.adam_l2(lr, weight_decay=λ, b2=0.99, eps=1e-6, mask=None),
    "optimi/adam_decouple_wd": lambda λ: wd.adamw(lr, weight_decay=λ, b2=0.99, eps=1e-6, mask=None),
    "optimi/adam_decouple_lr": lambda λ: wd.adamw(
        lr, weight_decay=λ, b2=0.99, eps=1e-6, coupling="schedule", peak_learning_rate=PEAK, mask=None
    ),
    "optimi/adamw": lambda λ: wd.adamw(lr, weight_decay=λ, b2=0.99, eps=1e-6, mask=None),
    "optimi/adamw_decouple_lr": lambda λ: wd.adamw(
        lr, weight_decay=λ, b2=0.99, eps=1e-6, coupling="schedule", peak_learning_rate=PEAK, mask=None
    ),
    # Keras: p *= 1 − ηλ on every optimizer; the learning rate inside the momentum; ε not corrected
    "keras/sgd": lambda λ: wd.sgdw(lr, weight_decay=λ, mask=None),
    "keras/sgd_momentum": lambda λ: wd.with_decay(optax.chain(by_lr, optax.trace(0.9)), weight_decay=λ, **ETA),
    "keras/sgd_nesterov": lambda λ: wd.with_decay(
        optax.chain(by_lr, optax.trace(0.9, nesterov=True)), weight_decay=λ, **ETA
    ),
    "keras/adam": lambda λ: wd.with_decay(
        optax.chain(eps_not_corrected(optax.scale_by_adam, 1e-7), by_lr), weight_decay=λ, **ETA
    ),
    "keras/adamw": lambda λ: wd.with_decay(
        optax.chain(eps_not_corrected(optax.scale_by_adam, 1e-7), by_lr), weight_decay=λ, **ETA
    ),
    "keras/adam_amsgrad": lambda λ: wd.with_decay(
        optax.chain(amsgrad(1e-7, corrected=False), by_lr), weight_decay=λ, **ETA
    ),
    "keras/rmsprop": lambda λ: wd.with_decay(optax.rmsprop(lr, 0.9, 1e-7), weight_decay=λ, **ETA),
    "keras/rmsprop_momentum": lambda λ: wd.with_decay(
        optax.rmsprop(lr, 0.9, 1e-7, centered=True, momentum=0.9), weight_decay=λ, **ETA
    ),
    "keras/lion": lambda λ: wd.with_decay(optax.chain(optax.scale_by_lion(0.9, 0.99), by_lr), weight_decay=λ, **ETA),
    "keras/lamb": lambda λ: optax.chain(optax.lamb(lr, eps=1e-7, weight_decay=0.0), after(λ)),
    # TF-Addons: p −= λp whatever the learning rate, unless the caller schedules λ; LAMB decays inside the trust ratio
    "tfa/sgdw": lambda λ: wd.sgdw(lr, weight_decay=λ, coupling="constant", mask=None),
    "tfa/sgdw_momentum": lambda λ: wd.with_decay(optax.chain(by_lr, optax.trace(0.9)), weight_decay=λ, **CONSTANT),
    "tfa/sgdw_nesterov": lambda λ: wd.with_decay(
        optax.chain(by_lr, optax.trace(0.9, nesterov=True)), weight_decay=λ, **CONSTANT
    ),
    "tfa/sgdw_scheduled": lambda λ: wd.with_decay(optax.chain(by_lr, optax.trace(0.9)), weight_decay=λ, **SCHEDULE),
    "tfa/adamw": lambda λ: wd.with_decay(
        optax.chain(eps_not_corrected(optax.scale_by_adam, 1e-7), by_lr), weight_decay=λ, **CONSTANT
    ),
    "tfa/adamw_scheduled": lambda λ: wd.with_decay(
        optax.chain(eps_not_corrected(optax.scale_by_adam, 1e-7), by_lr), weight_decay=λ, **SCHEDULE
    ),
    "tfa/lamb": lambda λ: optax.chain(
        wd.scale_by_adam(eps=1e-6), wd.add_decayed_weights(λ), optax.scale_by_trust_ratio(), by_lr
    ),
}


# Where Optax has no such optimizer the reference direction u is written out, in NumPy, and the decay is still ours.
def nadam(g, t, m=0.0, v=0.0, b1=0.9, b2=0.999, psi=0.004):
    μ = b1 * (1 - 0.5 * 0.96 ** (psi * np.arange(1, t + 2)))
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    blend = (1 - μ[-2]) / (1 - μ[:-1].prod()) * g + μ[-1] / (1 - μ.prod()) * m
    return blend / (np.sqrt(v / (1 - b2**t)) + 1e-8), (m, v)


def nadamw(g, t, m=0.0, v=0.0, b1=0.9, b2=0.999):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    return (b1 * m + (1 - b1) * g) / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8), (m, v)


def adan(g, t, m=0.0, d=0.0, n=0.0, last=None, b1=0.98, b2=0.92, b3=0.99):
    diff = 0.0 if last is None else g - last
    m, d, n = b1 * m + (1 - b1) * g, b2 * d + (1 - b2) * diff, b3 * n + (1 - b3) * (g + b2 * diff) ** 2
    return (m / (1 - b1**t) + b2 * d / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + 1e-8), (m, d, n, g)


def adagrad(g, t, total=0.0):
    return g / (np.sqrt(total + g**2) + 1e-10), (total + g**2,)


def by_hand(direction):
    """p ← p − η·u as an Optax optimizer (outside jit): u and its moments come from the NumPy function."""

    def update(g, state, params=None):
        t, moments = state
        u, moments = direction(np.asarray(g), t + 1, *moments)
        return jnp.asarray(u), (t + 1, moments)

    return optax.chain(optax.GradientTransformation(lambda p: (0, ()), update), by_lr)


def recorded(key):
    """An optimizer that takes the steps of a run without decay; these read no parameters."""
    steps = jnp.diff(jnp.stack([jnp.asarray(P0), *GOLDENS[key]]), axis=0)
    return optax.GradientTransformation(lambda p: 0, lambda g, t, p=None: (steps[t], t + 1))


NADAM = "PyTorch schedules NAdam's momentum, μ_t = β₁(1 − ½·0.96^(ψt)); Optax's Nesterov Adam holds β₁"
NADAMW = "timm corrects both halves of the Nesterov blend by 1 − β₁ᵗ; Optax the first by 1 − β₁ᵗ⁺¹"
ADAN = "timm weighs the gradient difference by β₂ = 0.92, as Adan's authors do; Optax by 1 − β₂ = 0.08"
ADAGRAD = "PyTorch's ε stands outside the root, Optax's inside; with ε = 0 there is a twin, torch/adagrad_eps0"
MUON = "Newton-Schulz runs in bfloat16 whatever the parameters' dtype; the decay is compared on its recorded steps"

# golden: (why no call here gives its direction, λ -> the reference direction under our decay)
NO_TWIN = {
    "torch/nadam": (NADAM, lambda λ: optax.chain(wd.add_l2_to_loss(λ, None), by_hand(nadam))),
    "torch/nadam_decoupled": (NADAM, lambda λ: wd.with_decay(by_hand(nadam), weight_decay=λ, **ETA)),
    "torch/adagrad": (ADAGRAD, lambda λ: optax.chain(wd.add_l2_to_loss(λ, None), by_hand(adagrad))),
    "torch/muon": (MUON, lambda λ: wd.with_decay(recorded("torch/undecayed/muon"), weight_decay=λ, **ETA)),
    "torch/muon_match_rms": (
        MUON,
        lambda λ: wd.with_decay(recorded("torch/undecayed/muon_match_rms"), weight_decay=λ, **ETA),
    ),
    "timm/nadamw": (NADAMW, lambda λ: wd.with_decay(by_hand(nadamw), weight_decay=λ, **ETA)),
    "timm/nadamw_corrected": (NADAMW, lambda λ: wd.with_decay(by_hand(nadamw), weight_decay=λ, **CORRECTED)),
    # (p − ηu)/(1 + ηλ)
    "timm/adan": (ADAN, lambda λ: optax.chain(by_hand(adan), wd.proximal(wd.decay_rate(λ, learning_rate=lr), None))),
    "timm/adan_no_prox": (ADAN, lambda λ: wd.with_decay(by_hand(adan), weight_decay=λ, **ETA)),
    "timm/muon": (MUON, lambda λ: wd.with_decay(recorded("timm/undecayed/muon"), weight_decay=λ, **ETA)),
}
ROWS = TWINS | {key: row for key, (_, row) in NO_TWIN.items()}


def trajectory(optimizer):
    p, out = jnp.asarray(P0), []
    state = optimizer.init(p)
    for g in GRADS:
        u, state = optimizer.update(jnp.asarray(g), state, p)
        p = optax.apply_updates(p, u)
        out.append(p)
    return np.stack(out)


def worst(key, λ):
    return np.max(np.abs(trajectory(ROWS[key](λ)) / GOLDENS[key] - 1))


def test_every_golden_has_a_row():
    assert TWINS.keys().isdisjoint(NO_TWIN)
    assert ROWS.keys() == {key for key in GOLDENS if "undecayed" not in key}
    for arrays in FILES.values():  # one problem for all frameworks
        for name in GIVEN:
            np.testing.assert_array_equal(arrays[name], FILES["torch"][name])


@pytest.mark.parametrize("key", ROWS)
def test_golden(key):
    assert worst(key, float(WD)) <= RTOL


@pytest.mark.parametrize("key", ROWS)
def test_golden_notices_a_different_decay(key):
    assert worst(key, 0.99 * float(WD)) > 1e-8  # λ one per cent off is ten thousand tolerances off, at the very least


def test_optax_adafactor_decays_at_any_learning_rate():
    """Optax's own row of the table: p −= λp after the learning rate, so shrink(λ) behind the undecayed optimizer."""
    theirs = trajectory(optax.adafactor(lr, weight_decay_rate=float(WD)))
    ours = trajectory(optax.chain(optax.adafactor(lr), wd.shrink(float(WD), None)))
    np.testing.assert_allclose(ours, theirs, rtol=RTOL)
