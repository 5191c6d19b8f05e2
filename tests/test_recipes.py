"""The recipes of docs/coming_from.md beside 100 recorded steps of the originals (goldens/generate_recipes.py)."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wd_optax as wd

FOLDER = Path(__file__).with_name("goldens")
sys.path.insert(0, str(FOLDER))
from recipe_trees import EVERY, STEPS, TREES, gradients, initial  # noqa: E402  # the folder is not a package

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.quick_compile, pytest.mark.optax_promotes]
RECORDED = dict(np.load(FOLDER / "recipes.npz"))
PAGE = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text()
BLOCK = re.findall(r"```python\n(.*?)```", PAGE.partition("## Recipes")[2], re.DOTALL)[0]
FUNCTIONS = BLOCK.partition("\nvit = ")[0]
SHORTER = {  # steps per epoch, and nanoGPT's durations, as in the recorded runs
    "nano_gpt": {"warmup": 10, "steps": 80}, "deit": {"steps_per_epoch": 1},
    "mae_fine_tuning": {"steps_per_epoch": 1}, "resnet50": {"steps_per_epoch": 1},
    "run_clm": {"steps": STEPS}, "keras_vit": {},
}  # fmt: skip
RTOL = 1e-12  # float64 on both sides


def recipe(name):
    namespace = {"jnp": jnp, "optax": optax, "wd": wd}
    exec(FUNCTIONS, namespace)
    return namespace[name]


def nested(name, each):
    tree = {}
    for key, (path, _) in TREES[name].items():
        *folders, last = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[last] = jnp.asarray(each[key])
    return tree


def leaves(name, tree):
    """In the order of the recording."""
    each = []
    for path, _ in TREES[name].values():
        at = tree
        for folder in path.split("/"):
            at = at[folder]
        each.append(np.asarray(at).ravel())
    return np.concatenate(each)


def trajectory(tx, name):
    params, out = nested(name, initial(name)), []
    state, step = tx.init(params), jax.jit(tx.update)
    for i in range(STEPS):
        updates, state = step(nested(name, gradients(name, i)), state, params)
        params = optax.apply_updates(params, updates)
        if (i + 1) % EVERY == 0:
            out.append(leaves(name, params))
    return np.stack(out)


@pytest.mark.parametrize("name", SHORTER)
def test_a_recipe_is_the_original(name):
    tx = recipe(name)(nested(name, initial(name)), **SHORTER[name])
    np.testing.assert_allclose(trajectory(tx, name), RECORDED[name], rtol=RTOL)


def test_every_recording_has_a_recipe():
    assert RECORDED.keys() == SHORTER.keys() == TREES.keys()


@pytest.mark.parametrize(
    ("name", "off"), [("nano_gpt", "0.101"), ("deit", "0.0505"), ("mae_fine_tuning", "0.0505"), ("resnet50", "1.01e-4")]
)
def test_a_decay_that_is_one_per_cent_off_shows(name, off):
    """λ is written once in each function; its effect is far above the tolerance."""
    start = FUNCTIONS.index(f"def {name}(")
    namespace = {"jnp": jnp, "optax": optax, "wd": wd}
    exec(FUNCTIONS[:start] + re.sub(r"weight_decay=[\d.e-]+", f"weight_decay={off}", FUNCTIONS[start:]), namespace)
    tx = namespace[name](nested(name, initial(name)), **SHORTER[name])
    assert np.max(np.abs(trajectory(tx, name) / RECORDED[name] - 1)) > 1e6 * RTOL


def test_big_visions_vit_is_its_chain():
    """JAX on both sides: google-research/big_vision's optax.make, written out for its config."""
    name = "deit"
    params = nested(name, initial(name))

    def schedule(step):  # in float32, as big_vision runs it: without x64
        step = step.astype(jnp.float32)
        progress = jnp.clip((step - 10) / 90.0, 0.0, 1.0)
        return jnp.asarray(0.5 * (1.0 + jnp.cos(jnp.pi * progress)) * jnp.minimum(1.0, step / 10), jnp.float32)

    is_kernel = jax.tree_util.tree_map_with_path(lambda path, p: path[-1].key == "kernel", params)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(mu_dtype="bfloat16"), optax.scale(0.001),
        optax.add_decayed_weights(0.0001, is_kernel), optax.scale_by_schedule(schedule), optax.scale(-1.0),
    )  # fmt: skip
    ours = recipe("big_vision_vit_s16")(params, warmup=10, steps=100)
    np.testing.assert_allclose(trajectory(ours, name), trajectory(theirs, name), rtol=RTOL)


MODDED = {  # adam_betas, lr_mul, wd_mul of modded-nanogpt's param_table
    "scalars": ((0.9, 0.99), 5.0, 0.0), "smear_gate": ((0.9, 0.99), 0.01, 0.0),
    "ve_gate_bank": ((0.9, 0.99), 1.0, 1.0), "lm_head": ((0.5, 0.95), 1.0, 150.0),
    "bigram_embed": ((0.75, 0.95), 75.0, 5.0), "post_lambdas": ((0.9, 0.95), 1.0, 0.0),
    "resid_lambdas": ((0.9, 0.95), 5.0, 0.0), "value_embeds": ((0.75, 0.95), 75.0, 5.0),
    "embed": ((0.5, 0.95), 1.0, 150.0), "mudd_w1": ((0.9, 0.99), 0.25, 1.0), "mudd_b2": ((0.9, 0.99), 0.25, 0.0),
    "mudd_gate_w1": ((0.9, 0.99), 0.1, 1.0), "mudd_gate_b2": ((0.9, 0.99), 0.1, 0.0),
    "mudd_gate_scale": ((0.9, 0.99), 0.1, 0.0),
}  # fmt: skip


def test_modded_nanogpts_adam_is_its_equations():
    """NumPy, as _adam_update and get_lr of the script have it: 100 of Adam's steps, which are 200 of the script's."""
    rng, steps = np.random.Generator(np.random.PCG64(0)), 2 * STEPS
    theirs = {name: rng.uniform(0.5, 1.5, (2, 3)) for name in MODDED}
    ours = jax.tree.map(jnp.asarray, theirs)
    tx = recipe("modded_nanogpt_adam")(ours, steps=steps)
    state, update = tx.init(ours), jax.jit(tx.update)
    m, v = (dict.fromkeys(MODDED, 0.0) for _ in range(2))
    cooldown = int(steps * (1 - 0.60))
    for t in range(1, STEPS + 1):
        step = 2 * t - 1
        rate = next(mul for end, mul in ((67, 1.0), (133, 1.52), (200, 1.73)) if step < end)
        if step >= cooldown:
            rate = rate * (1 - (step - cooldown) / (steps - cooldown)) + 0.15 * (step - cooldown) / (steps - cooldown)
        grads = {name: rng.standard_normal((2, 3)) for name in MODDED}
        for name, ((b1, b2), lr_mul, wd_mul) in MODDED.items():
            p, g, lr = theirs[name], grads[name], 0.008 * rate * lr_mul
            m[name], v[name] = b1 * m[name] + (1 - b1) * g, b2 * v[name] + (1 - b2) * g**2
            u = m[name] / (np.sqrt(v[name]) + 1e-10) * (lr * np.sqrt(1 - b2**t) / (1 - b1**t))
            theirs[name] = p - (u + lr * lr * 0.005 * wd_mul * (u * p > 0) * p)
        updates, state = update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name in MODDED:  # weights pass through 0, so the tolerance is absolute: sums of 100 steps of up to 1
        np.testing.assert_allclose(ours[name], theirs[name], rtol=RTOL, atol=1e-12, err_msg=name)
