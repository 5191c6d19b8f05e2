"""The numbers of PyTorch, timm, Transformers and others, step by step, from the call here that equals each.

goldens/*.npz were written by goldens/generate_*.py from the real packages; nothing of theirs is needed to run this.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd
from wd_optax.porting.emulate import CALLS
from wd_optax.porting.torch_directions import newton_schulz

RTOL = 1e-12  # float64 on both sides, Keras and TF-Addons too: reordered sums over ten steps reach 6e-13
FOLDER = Path(__file__).with_name("goldens")
sys.path.insert(0, str(FOLDER))
from cases_bitsandbytes import BITSANDBYTES  # noqa: E402  # the folder is not a package: its scripts run as they are
from cases_composer import COMPOSER  # noqa: E402
from cases_keras import KERAS  # noqa: E402
from cases_optimi import OPTIMI  # noqa: E402
from cases_pytorch_optimizer import PYTORCH_OPTIMIZER  # noqa: E402
from cases_tfa import TFA, TFA_SCHEDULED  # noqa: E402
from cases_timm import TIMM  # noqa: E402
from cases_torch import TORCH  # noqa: E402
from cases_transformers import TRANSFORMERS  # noqa: E402
from problem import GRADS, LR, P0, PEAK, WDS, groups  # noqa: E402
from problem import parts as split  # noqa: E402

RECORDED = {
    "torch": TORCH, "timm": TIMM, "optimi": OPTIMI, "keras": KERAS, "tfa": TFA, "transformers": TRANSFORMERS,
    "bitsandbytes": BITSANDBYTES, "composer": COMPOSER, "pytorch_optimizer": PYTORCH_OPTIMIZER,
}  # fmt: skip
FILES = {framework: dict(np.load(FOLDER / f"{framework}.npz")) for framework in RECORDED}
GIVEN = ("p0", "gradients", "learning_rates", "weight_decays", "version")
WD = WDS[1]
CASES = {f"{framework}/{key}": case for framework, cases in RECORDED.items() for key, case in cases.items()}
SCHEDULED = {f"tfa/{key}": case for key, case in TFA_SCHEDULED.items()}
GOLDENS = {
    f"{framework}/{key}": trajectory
    for framework, arrays in FILES.items()
    for key, trajectory in arrays.items()
    if key not in GIVEN
}


pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.optax_promotes]


def lr(step):
    return jnp.asarray(LR)[step]


def recorded_at(key, i):
    """The run with the i-th λ."""
    return GOLDENS[key][i]


def trajectory(optimizer, params, grads):
    """The parameters after each step."""

    def step(carry, g):
        updates, state = optimizer.update(g, carry[1], carry[0])
        params = optax.apply_updates(carry[0], updates)
        return (params, state), params

    return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]


def emulated(cases, weight_decays, decay=lambda weight_decay: weight_decay):
    """For each case the parameters after each step, from the call as its framework writes it, (λ, 10, 4, 3)."""
    runs = {key: emulated_run(case, decay) for key, case in cases.items()}
    every = lambda weight_decay: {key: run(weight_decay) for key, run in runs.items()}
    return jax.device_get(jax.jit(jax.vmap(every))(jnp.asarray(weight_decays)))


def emulated_run(case, decay):
    """As a function of λ."""
    given, grads = ({k: jnp.asarray(x) for k, x in split(case, given).items()} for given in (P0, GRADS))
    factor, call = jnp.asarray(LR / PEAK), CALLS[case.call]

    def run(weight_decay):
        own = groups(weight_decay) if case.form == "groups" else None
        tx = wd.emulate(
            case.call, params=given, groups=own, schedule=lambda step: factor[step],
            **{call.learning_rate: PEAK, "weight_decay": decay(weight_decay), **case.arguments},
        )  # fmt: skip
        out = trajectory(tx, given, grads)
        real = [y for x in (out[name] for name in given) for y in ([x.real, x.imag] if jnp.iscomplexobj(x) else [x])]
        return jnp.concatenate([x.reshape(len(GRADS), -1) for x in real], 1).reshape(GRADS.shape)

    return run


@functools.cache
def emulated_by(call):
    """All cases of a call, from one program; the last λ is another one."""
    return emulated({key: case for key, case in CASES.items() if case.call == call}, [*WDS, 0.99 * WD])


def test_every_golden_has_a_row():
    assert CASES.keys() | SCHEDULED.keys() == GOLDENS.keys()
    for arrays in FILES.values():  # one problem for all frameworks
        for name, value in {"p0": P0, "gradients": GRADS, "learning_rates": LR}.items():
            np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.quick_compile
@pytest.mark.parametrize("key", CASES)
def test_emulate_has_the_numbers_of_the_framework(key):
    *runs, off = emulated_by(CASES[key].call)[key]
    # bfloat16: a product's sum in another order may round otherwise, which moves an entry of Muon's step by 2⁻⁸ and a
    # weight of at least 0.4 by 1.2·0.05·2⁻⁸. XLA keeping bits beyond bfloat16 is ten times that.
    rtol = RTOL if CALLS[CASES[key].call].accuracy == "1e-12" else 6e-4
    for i, run in enumerate(runs):
        np.testing.assert_allclose(run, recorded_at(key, i), rtol=rtol, err_msg=f"λ = {WDS[i]}")
    # λ one per cent off is ten thousand tolerances off, at the very least
    assert np.max(np.abs(off / recorded_at(key, 1) - 1)) > 1e-8


def test_muon_on_a_larger_matrix():
    """PyTorch's own (64, 32): sums of 32 products come in another order, which flips roundings of bfloat16."""
    recorded = np.load(FOLDER / "torch_muon.npz")
    theirs = recorded["bfloat16_bits"].view(jnp.bfloat16).astype(np.float32)
    coefficients = [CALLS["torch.optim.Muon"].signature.parameters["ns_coefficients"].default] * 5
    ours = jax.jit(lambda g: newton_schulz(g, coefficients, 1e-7))(jnp.asarray(recorded["matrix"]))
    apart = np.linalg.norm(np.asarray(ours, np.float32) - theirs) / np.linalg.norm(theirs)
    assert apart < 2**-9  # half a unit in the last place of bfloat16; 5e-5 on the CPU that wrote this


def test_the_table_names_the_goldens():
    named = [golden for call in CALLS.values() for golden in call.goldens]
    assert sorted(named) == sorted(CASES)
    assert all(golden in CALLS[case.call].goldens for golden, case in CASES.items())


@pytest.mark.quick_compile
@pytest.mark.parametrize("key", SCHEDULED)
def test_a_schedule_of_the_callers_for_the_decay(key):
    """TF-Addons' decay follows a schedule only where the caller gives it one: here λ·η_t/η_max."""
    scheduled = lambda weight_decay: lambda step: weight_decay * jnp.asarray(LR / PEAK)[step]
    np.testing.assert_allclose(emulated({key: SCHEDULED[key]}, WDS, scheduled)[key], GOLDENS[key], rtol=RTOL)


@pytest.mark.quick_compile
def test_optax_adafactor_decays_at_any_learning_rate():
    """Optax's own row of the table: p −= λp after the learning rate, so shrink(λ) behind the undecayed optimizer."""
    both = (
        optax.adafactor(lr, weight_decay_rate=float(WD)),
        optax.chain(optax.adafactor(lr), wd.shrink(float(WD), None)),
    )
    theirs, ours = jax.jit(lambda *given: [trajectory(tx, *given) for tx in both])(jnp.asarray(P0), jnp.asarray(GRADS))
    np.testing.assert_allclose(ours, theirs, rtol=RTOL)
