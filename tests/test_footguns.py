"""Silent wrong results that users of other decay implementations met, one test each: the right number or a good error.

The numbers are those of the project's list of footguns; each test does what its user did.
"""

import inspect
import re

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import pytest

import wd_optax as wd

pytestmark = pytest.mark.optax_promotes

PARAMS = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}}
KERNEL_ONLY = {"dense": {"kernel": True, "bias": False}}
ZEROS, ONES = optax.tree.zeros_like(PARAMS), optax.tree.ones_like(PARAMS)
BFLOAT16 = optax.tree.cast(PARAMS, jnp.bfloat16)
GIVEN = {
    "optimizer": optax.sgd(0.1),
    "direction": optax.identity(),
    "learning_rate": 0.1,
    "weight_decay": 0.1,
    "rate": 0.1,
}


def parameters(name):
    return inspect.signature(getattr(wd, name)).parameters


DECAYING = [  # `transfer` decays nothing: its λ is that of a run, which may know it
    name
    for name in wd.__all__
    if inspect.isfunction(getattr(wd, name)) and {"weight_decay", "rate"} & {*parameters(name)} and name != "transfer"
]
TRANSFORMS = [
    name
    for name in DECAYING
    if inspect.signature(getattr(wd, name)).return_annotation is optax.GradientTransformationExtraArgs
]
OPTIMIZERS = [name for name in TRANSFORMS if "learning_rate" in parameters(name)]
all_transforms = pytest.mark.parametrize("name", TRANSFORMS)


def make(name, **options):
    """The transformation `name`, λ = η = 0.1 unless said."""
    return getattr(wd, name)(**{k: v for k, v in GIVEN.items() if k in parameters(name)} | options)


def adamw(weight_decay=0.1, **options):
    return wd.adamw(0.1, weight_decay=weight_decay, **options)


def stepped(tx, params=PARAMS, grads=None, steps=1):
    """The parameters after some steps, with zero gradients unless given."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(optax.tree.zeros_like(params) if grads is None else grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def random_grads(step, params=PARAMS):
    return optax.tree.random_like(jax.random.key(step), params)


def run(tx, params, state, steps):
    for step in steps:
        updates, state = tx.update(random_grads(step, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_left(params, kernel, bias=1.0):
    """What is left of ones."""
    np.testing.assert_allclose(params["dense"]["kernel"], np.full((2, 2), kernel), rtol=1e-6)  # float32, a few steps
    np.testing.assert_array_equal(params["dense"]["bias"], np.full((2,), bias))


def test_the_list_is_wd_optax():
    assert {"adamw", "sgd_l2", "with_decay"} <= {*OPTIMIZERS} < {*TRANSFORMS} < {*DECAYING}
    assert {"shrink", "proximal", "add_l2_to_loss", "add_decayed_weights"} <= {*TRANSFORMS}


def by_rank(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def by_path(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "bias" not in jax.tree_util.keystr(path), params)


def test_f01_mask_function_inside_inject_hyperparams():
    injected = optax.inject_hyperparams(wd.adamw)
    for function, became in ((by_rank, False), (by_path, True)):
        with pytest.raises(TypeError, match=rf'mask={became} .*inject_hyperparams.*mask="weights".*static_args') as e:
            injected(0.1, weight_decay=0.5, mask=function).init(PARAMS)
        assert "as a schedule" in str(e.value)
        mended = optax.inject_hyperparams(wd.adamw, static_args="mask")
        assert_left(stepped(mended(0.1, weight_decay=0.5, mask=function)), 0.95)
    for mask, kernel in (("weights", 0.95), ([("kernel", 0.5), (".*", 0)], 0.975), (KERNEL_ONLY, 0.95)):
        assert_left(stepped(injected(0.1, weight_decay=0.5, mask=mask)), kernel)
    tx = adamw()  # and it isn't needed: λ and η are leaves of the state
    for leaf, kernel in (("weight_decay", 0.95), ("learning_rate", 0.95)):
        state = optax.tree.set(tx.init(PARAMS), **{leaf: 0.5})
        assert_left(optax.apply_updates(PARAMS, tx.update(ZEROS, state, PARAMS)[0]), kernel)


def test_f03_rule_with_a_typo():
    with pytest.raises(
        ValueError,
        match=r"mask rule 'kernal' matches no parameter: correct the regex .* nearest are\n.*\ndense/kernel",
    ):
        adamw(mask=[("kernal", 1.0)]).init(PARAMS)
    with pytest.raises(
        ValueError, match=r"mask rule 'dense/bias' decides nothing, because earlier rules .*put it before them"
    ):
        adamw(mask=[("dense", 1.0), ("dense/bias", 0.0)]).init(PARAMS)
    renamed = {"dense": KERNEL_ONLY["dense"], "output": {"kernel": True}}
    with pytest.raises(
        ValueError,
        match=r"mask entry 'output/kernel' belongs to no parameter: drop it .* nearest are\n.*\ndense/kernel",
    ):
        adamw(mask=renamed).init(PARAMS)


@all_transforms
def test_f04_a_mask_says_what_decays_and_leaves_gradients_alone(name):
    """`optax.masked(sgd, mask)` lets the raw gradient of the rest through: ascent. A mask here does no such thing."""
    tx, without = make(name, mask=KERNEL_ONLY), make(name, mask=[(".*", 0.0)])
    decayed, plain = (run(tx, PARAMS, tx.init(PARAMS), range(2))[0]["dense"] for tx in (tx, without))
    np.testing.assert_array_equal(decayed["bias"], plain["bias"])
    assert (decayed["kernel"] != plain["kernel"]).all()
    if name in OPTIMIZERS:
        np.testing.assert_allclose(stepped(tx, grads=ONES)["dense"]["bias"], 0.9, rtol=1e-6)  # p − η·1, float32
        ascent = stepped(optax.masked(optax.sgd(0.1), KERNEL_ONLY), grads=ONES)
        np.testing.assert_array_equal(ascent["dense"]["bias"], 2.0)


def test_f05_mask_leaves_that_are_not_bools():
    tree = lambda kernel: {"dense": {"kernel": kernel, "bias": 0.0}}
    assert_left(stepped(adamw(mask=tree(0.5))), 1 - 0.5 * 0.01)
    with pytest.raises(
        TypeError, match=r"'dense/kernel' is 'False': a multiplier is a bool or a number ≥ 0, such as True"
    ):
        adamw(mask=tree("False")).init(PARAMS)
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"'dense/kernel' is {bad}: a multiplier .*must be finite and ≥ 0"):
            adamw(mask=tree(bad)).init(PARAMS)


def shapes_of(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def decays(params):
    """The last two components of each path that the default mask decays."""
    left = stepped(wd.sgdw(0.1, weight_decay=0.1), jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), params))
    flat = jax.tree_util.tree_flatten_with_path(left)[0]
    return {"/".join(entry.key for entry in path[-2:]) for path, p in flat if (p != 1).all()}


def test_f09_attention_biases_have_rank_two():
    x = jnp.ones((1, 3, 8))
    params = shapes_of(nn.MultiHeadDotProductAttention(num_heads=2), x)
    assert params["query"]["bias"].ndim == 2
    assert decays(params) == {"query/kernel", "key/kernel", "value/kernel", "out/kernel"}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(8)(nn.LayerNorm()(x)), None


@pytest.mark.parametrize("lift", ["scan", "vmap"])
def test_f10_stacked_norm_scales_have_rank_two(lift):
    options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    if lift == "scan":
        params = shapes_of(nn.scan(Block, length=3, **options)(), jnp.ones((4, 8)), None)
    else:
        params = shapes_of(nn.vmap(Block, axis_size=3, in_axes=None, **options)(), jnp.ones((4, 8)), None)
    assert params["LayerNorm_0"]["scale"].shape == params["Dense_0"]["bias"].shape == (3, 8)
    assert decays(params) == {"Dense_0/kernel"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_f12_second_positional_argument(name):
    taken = ["direction", "learning_rate"] if "direction" in parameters(name) else [next(iter(parameters(name)))]
    with pytest.raises(TypeError, match=rf"{name}\(\) takes {len(taken)} positional arguments? but"):
        getattr(wd, name)(*(GIVEN[argument] for argument in taken), 0.1)


def test_f13_decay_after_the_learning_rate():
    after = lambda decay: stepped(optax.chain(optax.adam(1e-3), decay))
    assert_left(after(optax.add_decayed_weights(0.1, KERNEL_ONLY)), 1.1)  # what the user got: it grows
    assert_left(after(wd.shrink(0.1, "weights")), 0.9)


def test_f14_second_learning_rate():
    """A second `scale_by_learning_rate`, to mend the sign of F13's decay, turns the gradient's around, at lr²."""
    lr, λ = 0.1, 0.5
    mended = optax.chain(optax.sgd(lr), optax.add_decayed_weights(λ, KERNEL_ONLY), optax.scale_by_learning_rate(lr))
    moved = lambda tx: stepped(tx, grads=ONES)["dense"]["kernel"]
    np.testing.assert_allclose(moved(mended), 1 + lr**2 - lr * λ, rtol=1e-6)
    for tx in (
        wd.with_decay(optax.sgd(lr), learning_rate=lr, weight_decay=λ),
        optax.chain(optax.sgd(lr), wd.shrink(wd.decay_rate(λ, learning_rate=lr), "weights")),
    ):
        np.testing.assert_allclose(moved(tx), 1 - lr - lr * λ, rtol=1e-6)


NUMBERS = [  # equilibrium takes arrays, too: it has its own test below
    (name, arg)
    for name in sorted(set(DECAYING) - {"equilibrium"})
    for arg in ("weight_decay", "rate", "learning_rate")
    if arg in parameters(name)
]


@pytest.mark.parametrize(("name", "argument"), NUMBERS)
def test_f17_numbers_that_cannot_be_meant(name, argument):
    rest = {"params": PARAMS, "from_coupling": "lr", "to_coupling": "schedule"}
    call = lambda value: make(name, **{k: v for k, v in rest.items() if k in parameters(name)}, **{argument: value})
    call(0.01)
    for bad in (-0.1, float("nan"), float("inf"), np.float32(-1.0)):
        with pytest.raises(ValueError, match=re.escape(f"{argument}={bad!r} must be ") + f".*: pass {argument} in "):
            call(bad)
    for bad in ("0.1", None, [0.1]):  # YAML reads 1e-3 as a string
        with pytest.raises(
            TypeError, match=re.escape(f"{argument} must be a number, an array or a schedule") + ".*, got"
        ):
            call(bad)


@pytest.mark.parametrize("argument", ["learning_rate", "weight_decay"])
def test_f17_an_equilibrium_needs_numbers_that_can_be_meant(argument):
    call = lambda value: wd.equilibrium(**{"learning_rate": 0.1, "weight_decay": 0.1} | {argument: value})
    assert call(0.01).angle > 0
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=re.escape(f"{argument}={bad!r} must be ")):
            call(bad)
    for bad in ("0.1", None):
        with pytest.raises(TypeError, match=f"{argument} must be a number"):
            call(bad)


@pytest.mark.parametrize("argument", ["size", "gradient_rms"])
def test_f17_an_equilibrium_of_nothing(argument):
    call = lambda value: wd.equilibrium(
        0.1, weight_decay=0.1, optimizer="sgdw", **{"size": 10, "gradient_rms": 1.0} | {argument: value}
    )
    assert call(5).norm > 0
    for bad in (-5, 0, float("nan"), jnp.float32(-1), jnp.array([1.0, -5.0])):
        with pytest.raises(ValueError, match=rf"{argument}=.* must be "):
            call(bad)
    with pytest.raises(TypeError, match=f"{argument} must be a number"):
        call("5")


def test_f17_an_equilibrium_of_arrays_is_checked_in_every_entry():
    for bad in ([0.1, -0.1], [0.1, float("nan")]):
        with pytest.raises(ValueError, match=r"learning_rate=.* must be finite and not negative"):
            wd.equilibrium(jnp.array(bad), weight_decay=0.1)
    with pytest.raises(ValueError, match="removes 2 of each weight per step"):
        wd.equilibrium(jnp.array([0.1, 2.0]), weight_decay=1.0)
    chex.assert_shape(wd.equilibrium(jnp.array([0.1, 0.2]), weight_decay=0.1, size=4).norm, (2,))


@pytest.mark.parametrize(
    ("coupling", "weight_decay", "removes"),
    [("lr", 20, 2), ("schedule", 1, 1), ("corrected", 10, 1), ("constant", 1.5, 1.5)],
)
def test_f17_removing_the_whole_weight(coupling, weight_decay, removes):
    """And more than that: it would flip the sign."""
    message = f"weight_decay={weight_decay} .*learning_rate=0.1 .*'{coupling}' removes {removes} .*lower weight_decay"
    for build in (adamw, lambda wd_, **options: wd.decay_rate(wd_, learning_rate=0.1, **options)):
        with pytest.raises(ValueError, match=message):
            build(weight_decay, coupling=coupling)
        build(weight_decay * 0.49, coupling=coupling)
    with pytest.raises(ValueError, match=r"rate=1.0 must be below 1 .*pass rate in \[0, 1\)"):
        wd.shrink(1.0)


def test_f18_hyperparameters_of_bfloat16_parameters():
    """`inject_hyperparams` rounds b2 = 0.999 to 1 for these, and the first update is NaN."""
    tx = adamw(weight_decay=0.01)
    state = tx.init(BFLOAT16)
    assert {name: float(leaf) for name, leaf in state.hyperparams.items()} == {
        "learning_rate": float(np.float32(0.1)),
        "weight_decay": float(np.float32(0.01)),
    }
    for dtype in (BFLOAT16, PARAMS):
        assert {leaf.dtype for leaf in tx.init(dtype).hyperparams.values()} == {jnp.result_type(float)}
    grads = optax.tree.ones_like(BFLOAT16)
    updates, _ = tx.update(grads, state, BFLOAT16)
    np.testing.assert_allclose(
        updates["dense"]["bias"].astype(float), -0.1, rtol=2**-8
    )  # one step of Adam, in bfloat16
    for name in ("adamw", "adam_l2"):
        with pytest.raises(TypeError, match=r"b2.* bfloat16 .*are in the state without optax.inject_hyperparams"):
            stepped(optax.inject_hyperparams(getattr(wd, name))(0.1, weight_decay=0.01), BFLOAT16, grads)
    mended = optax.inject_hyperparams(wd.adamw, static_args=("b1", "b2", "eps", "eps_root"))(0.1, weight_decay=0.01)
    assert optax.tree.norm(stepped(mended, BFLOAT16, grads)) < optax.tree.norm(BFLOAT16)


WIDE = {
    "array": lambda value: jnp.float32(value),
    "numpy": lambda value: np.float64(value),
    "schedule": lambda value: lambda step: jnp.float32(value) / (1 + step.astype(jnp.float32)),
}


@all_transforms
@pytest.mark.parametrize("kind", WIDE)
def test_f19_updates_keep_their_dtype(name, kind):
    options = {k: WIDE[kind](0.1) for k in ("learning_rate", "weight_decay", "rate") if k in parameters(name)}
    tx = make(name, mask=None, **options)
    state = tx.init(BFLOAT16)
    updates, new_state = tx.update(BFLOAT16, state, BFLOAT16)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, BFLOAT16)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


@pytest.mark.parametrize("name", DECAYING)
def test_f20_there_is_no_default(name):
    """It would be 1e-4 in Optax, 1e-2 in PyTorch, 1e-3 in Optax's lion."""
    number = "rate" if "rate" in parameters(name) else "weight_decay"
    assert parameters(name)[number].default is inspect.Parameter.empty
    given = {k: GIVEN.get(k) for k, v in parameters(name).items() if v.default is v.empty and k != number}
    with pytest.raises(TypeError, match=f"missing 1 required .*argument: '{number}'"):
        getattr(wd, name)(**given)


@pytest.mark.parametrize(
    ("theirs", "coupling", "value", "lr", "ported"),
    [
        ("TF-Addons", "constant", 1e-4, 0.1, 1e-3),
        ("big_vision", "schedule", 1e-4, 1e-3, 0.1),
        ("optimī decouple_lr", "schedule", 1e-5, 1e-3, 0.01),
        ("AdamC", "corrected", 0.05, 0.1, 0.05),
    ],
)
def test_f21_porting_a_number_between_couplings(theirs, coupling, value, lr, ported):
    """Each removes the same after porting, and something else by the factor lr before."""
    got = wd.convert_weight_decay(value, learning_rate=lr, from_coupling=coupling, to_coupling="lr")
    np.testing.assert_allclose(got, ported, rtol=1e-12)  # one product in float64
    left = lambda λ, coupling: stepped(wd.adamw(lr, weight_decay=λ, coupling=coupling), steps=5)["dense"]["kernel"]
    c = lr * value if coupling == "corrected" else value
    for exact in (left(value, coupling), left(got, "lr")):
        np.testing.assert_allclose(exact, (1 - c) ** 5, rtol=1e-6)  # float32, five steps
    back = wd.convert_weight_decay(got, learning_rate=lr, from_coupling="lr", to_coupling=coupling)
    np.testing.assert_allclose(back, value, rtol=1e-12)


def test_f21_what_no_number_can_port():
    decaying = optax.linear_schedule(0.1, 0.0, 10)
    number = {"learning_rate": decaying, "to_coupling": "lr"}
    with pytest.raises(
        ValueError, match=r"no weight_decay under to_coupling='lr' equals 0.1 .*: keep .*coupling.* wd_optax\.shrink"
    ):
        wd.convert_weight_decay(0.1, from_coupling="constant", **number)
    with pytest.raises(ValueError, match="pass peak_learning_rate"):
        wd.convert_weight_decay(0.1, from_coupling="schedule", **number)
    assert wd.convert_weight_decay(0.1, from_coupling="schedule", peak_learning_rate=0.1, **number) == 1.0
    with pytest.raises(ValueError, match="coupling='decoupled' is not a coupling: use one of 'lr', 'schedule'"):
        adamw(coupling="decoupled")


def test_f23_muon_masks_every_leaf():
    """Muon hands rank-1 leaves to Adam, where its own mask doesn't reach."""
    tx = wd.with_decay(optax.contrib.muon(0.1), learning_rate=0.1, weight_decay=0.5, mask=KERNEL_ONLY)
    assert_left(stepped(tx), 0.95)
    assert_left(stepped(wd.with_decay(optax.contrib.muon(0.1), learning_rate=0.1, weight_decay=0.5)), 0.95)


# F24: checkpoints. Everything that may change between runs leaves the state's tree as it is.
def schedule(step):
    return 0.1 * 0.5**step


VARIANTS = {
    "constant": adamw(),
    "NumPy": wd.adamw(np.float32(0.1), weight_decay=np.float64(0.1)),
    "schedules": wd.adamw(schedule, weight_decay=schedule),
    "no mask": adamw(mask=None),
    "rules": adamw(mask=[("kernel", 0.5), (".*", 0)]),
    "tree": adamw(mask=KERNEL_ONLY),
    "function": adamw(mask=by_rank),
    "cautious": adamw(rule=wd.rules.cautious()),
    "constant coupling": adamw(coupling="constant"),
    "adam_l2": wd.adam_l2(0.1, weight_decay=0.1),
}


def through_flax(state, target, path):
    del path
    return flax.serialization.from_bytes(target, flax.serialization.to_bytes(state))


def through_orbax(state, target, path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", *(() if target is None else (target,)))


@pytest.mark.parametrize("through", [through_flax, through_orbax])
@pytest.mark.parametrize("after", VARIANTS)
def test_f24_restore_into_another_variant(after, through, tmp_path):
    before = VARIANTS["adam_l2" if after == "constant" else "constant"]
    params, state = run(before, PARAMS, before.init(PARAMS), range(3))
    tx = VARIANTS[after]
    target = tx.init(PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, target)
    restored = through(state, target, tmp_path)
    chex.assert_trees_all_equal(restored, state)  # moments, count, λ and η
    (resumed, end), (kept, _) = (run(tx, params, s, range(3, 5)) for s in (restored, state))
    chex.assert_trees_all_equal(resumed, kept)
    chex.assert_trees_all_equal_shapes_and_dtypes(end, state)
    assert int(end.step) == int(end.inner.count) == 5


def as_made(state, path):
    del path
    return state


def raw_flax(state, path):
    del path
    return flax.serialization.msgpack_restore(
        flax.serialization.msgpack_serialize(flax.serialization.to_state_dict(state))
    )


def raw_orbax(state, path):
    """Without a target Orbax returns lists, dicts and None for the named tuples."""
    raw = through_orbax(state, None, path)
    assert isinstance(raw, list | dict)
    return raw


LION = optax.lion(0.1, weight_decay=0.0)
OLD_AND_NEW = {
    "adamw": (optax.adamw(0.1, weight_decay=0.1, mask=KERNEL_ONLY), adamw()),
    "adamw, no mask": (optax.adamw(0.1, weight_decay=0.1), adamw(mask=None)),
    "adamw, schedule": (optax.adamw(schedule, weight_decay=0.1, mask=by_rank), wd.adamw(schedule, weight_decay=0.1)),
    "adamw, injected": (optax.inject_hyperparams(optax.adamw)(0.1, weight_decay=0.1), adamw(mask=None)),
    "adamw, injected schedule": (
        optax.inject_hyperparams(optax.adamw)(schedule, weight_decay=0.1),
        wd.adamw(schedule, weight_decay=0.1, mask=None),
    ),
    "adam": (optax.adam(0.1), adamw(0.0)),
    "adam with L2": (
        optax.chain(optax.add_decayed_weights(0.1, KERNEL_ONLY), optax.adam(0.1)),
        wd.adam_l2(0.1, weight_decay=0.1),
    ),
    "clipped adamw": (
        optax.chain(optax.clip(10.0), optax.adamw(0.1, weight_decay=0.1, mask=KERNEL_ONLY)),
        adamw(),
    ),
    "sgd, momentum, L2": (
        optax.chain(optax.add_decayed_weights(0.1, KERNEL_ONLY), optax.sgd(0.1, momentum=0.9)),
        wd.sgd_l2(0.1, weight_decay=0.1, momentum=0.9),
    ),
    "sgd, momentum, schedule": (optax.sgd(schedule, momentum=0.9), wd.sgdw(schedule, weight_decay=0.0, momentum=0.9)),
    "lion": (LION, wd.with_decay(LION, learning_rate=0.1, weight_decay=0.0)),
}


@pytest.mark.parametrize("read", [as_made, raw_flax, raw_orbax])
@pytest.mark.parametrize("name", OLD_AND_NEW)
def test_f24_migrate_from_optax(name, read, tmp_path):
    old, new = OLD_AND_NEW[name]
    params, old_state = run(old, PARAMS, old.init(PARAMS), range(3))
    state = wd.migrate_state(read(old_state, tmp_path), new, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new.init(params))
    counts = [int(x) for _, x in optax.tree.get_all_with_path(old_state, "count")]
    assert {int(x) for _, x in optax.tree.get_all_with_path(state, "count")} == {3 if counts else 0}
    for moment in ("mu", "nu", "trace"):
        chex.assert_trees_all_equal(optax.tree.get(state, moment), optax.tree.get(old_state, moment))
    uninterrupted, _ = run(old, params, old_state, range(3, 6))
    resumed, _ = run(new, params, state, range(3, 6))
    assert optax.tree.norm(optax.tree.sub(resumed, params)) > 0.01
    chex.assert_trees_all_close(resumed, uninterrupted, rtol=1e-5, atol=1e-6)  # float32, sums in another order


@pytest.mark.parametrize("layer", ["mu", "nu", "trace", "count", "inner_state"])
@pytest.mark.parametrize("momentum", [True, False])
def test_f24_migrate_parameters_named_like_fields(layer, momentum):
    """The heads of a VAE are called mu and logvar."""
    params = {layer: {"kernel": jnp.ones((2, 2))}, "dense": PARAMS["dense"], "logvar": {layer: jnp.ones((2, 2))}}
    old, new = optax.adam(0.1), adamw()
    if momentum:
        old, new = optax.sgd(schedule, momentum=0.9), wd.sgdw(0.1, weight_decay=0.1, momentum=0.9)
    params, old_state = run(old, params, old.init(params), range(2))
    state = wd.migrate_state(old_state, new, params)
    for field in old_state[0]._fields:
        chex.assert_trees_all_equal(getattr(state.inner, field), getattr(old_state[0], field))
    assert int(state.step) == int(state.inner.count) == 2


def test_f24_migrate_what_does_not_fit():
    adam, momentum = optax.adam(0.1), optax.sgd(0.1, momentum=0.9)
    sgdw = wd.sgdw(0.1, weight_decay=0.1, momentum=0.9)
    wider = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones((2,))}}
    renamed = {"output": PARAMS["dense"]}
    multi = optax.MultiSteps(adam, 2)
    twice = optax.chain(adam, adam)
    bad = {
        r"0 trees named 'trace', .* needs one; .*of the same kind": (adam, PARAMS, sgdw),
        r"0 trees named 'mu', .* needs one; .*of the same kind": (momentum, PARAMS, adamw()),
        r"2 trees named 'mu', .* needs one": (twice, PARAMS, adamw()),
        r"mu of 'dense/kernel' has shape \(2, 3\), expected \(2, 2\)": (adam, wider, adamw()),
        r"no 'mu' for parameter 'dense/bias'; it has output/bias, output/kernel": (adam, renamed, adamw()),
        r"different step counts \[1, 2\]: migrate the state of the inner optimizer": (
            optax.chain(multi, optax.scale_by_schedule(schedule)), PARAMS, adamw(),
        ),
        r"optimizer makes a tuple: pass an optimizer of wd_optax": (adam, PARAMS, adam),
    }  # fmt: skip
    for message, (old, params, new) in bad.items():
        _, old_state = run(old, params, old.init(params), range(2))
        with pytest.raises(ValueError, match=message):
            wd.migrate_state(old_state, new, PARAMS)


@all_transforms
def test_f25_update_without_params(name):
    tx = make(name)
    for inside in (tx, optax.chain(optax.clip(1.0), tx)):
        with pytest.raises(ValueError, match=rf"^{name} decays .*: tx\.update\(grads, state, params\)"):
            inside.update(ONES, inside.init(PARAMS))


@pytest.mark.parametrize(
    ("updates", "what"),
    [
        (None, "updates is None"),
        (jnp.float32(0.5), r"updates is an array of shape \(\)"),
        ((jnp.float32(0.5), ZEROS), "'0' is in updates alone"),
        (ZEROS | {"head": jnp.ones(2)}, "'head' is in updates alone"),
        ({}, "'dense/bias' is in params alone"),
        (
            jax.tree.map(lambda p: p[None], ZEROS),
            r"'dense/bias' has shape \(.*\) in params and \(1, .*\) in updates",
        ),
        (
            {"dense": ZEROS["dense"] | {"bias": {"deep": ZEROS["dense"]["bias"]}}},
            "'dense/bias/deep' is in updates alone",
        ),
    ],
)
def test_f25_updates_of_other_parameters(updates, what):
    split = wd.partition({"all": adamw()}, lambda _: "all")
    for tx in (adamw(), wd.shrink(0.1), split, wd.precision.round_updates("nearest")):
        with pytest.raises(ValueError, match=rf"^\w+: {what}.*tx\.update\(grads, state, params\)"):
            tx.update(updates, tx.init(PARAMS), PARAMS)


def test_f28_one_decay_per_real_step():
    tx = optax.MultiSteps(adamw(0.5), every_k_schedule=3)
    params, state, update = PARAMS, tx.init(PARAMS), jax.jit(tx.update)
    for left in (1.0, 1.0, 0.95, 0.95, 0.95, 0.95**2):
        updates, state = update(ZEROS, state, params)
        params = optax.apply_updates(params, updates)
        assert_left(params, left)


def test_f28_no_decay_in_a_skipped_step():
    tx = optax.apply_if_finite(adamw(0.5), max_consecutive_errors=5)
    params, state = PARAMS, tx.init(PARAMS)
    for grads, left, count in ((ZEROS, 0.95, 1), (optax.tree.scale(jnp.nan, ONES), 0.95, 1), (ZEROS, 0.95**2, 2)):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert_left(params, left)
        assert int(state.inner_state.step) == count


@all_transforms
def test_f30_a_mask_function_always_gets_params(name):
    """It reads values: positive in the parameters, negative in the gradients that Optax passes at update."""
    seen = []

    def positive(tree):
        seen.append(tree)
        return jax.tree.map(lambda x: jnp.mean(x) > 0, tree)

    tx, everything = make(name, mask=positive), make(name, mask=None)
    grads = optax.tree.scale(-1.0, ONES)
    state = tx.init(PARAMS)
    updates, _ = tx.update(grads, state, PARAMS)
    for tree in seen:
        chex.assert_trees_all_equal(tree, PARAMS)
    expected, _ = everything.update(grads, everything.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates, expected)
    jitted, _ = jax.jit(tx.update)(grads, state, PARAMS)
    chex.assert_trees_all_close(jitted, expected, rtol=1e-6)  # XLA fuses
