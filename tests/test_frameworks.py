"""The same small model trained in four frameworks: a plain loop, linen `TrainState`, `nnx.Optimizer`, Equinox.

A `Loop` holds one model and one optimizer. Its weights go in and out as a dict of NumPy arrays by
path, named and shaped as Flax does it, so that every test says one thing of four frameworks.
F2, F26 and F27 are footguns of the same number: what NNX wraps at init and not at update, masks in another
container than the parameters, callable trees as masks.
"""

import functools
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.core
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from helpers import nested

import wd_optax as wd

pytestmark = pytest.mark.slow

RANDOM = np.random.default_rng(0)
WIDTH = 8
SHAPES = {
    "hidden/kernel": (3, WIDTH),
    "hidden/bias": (WIDTH,),
    "norm/scale": (WIDTH,),
    "norm/bias": (WIDTH,),
    "out/kernel": (WIDTH, 1),
    "out/bias": (1,),
}
START = {path: RANDOM.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
X = RANDOM.normal(size=(32, 3)).astype(np.float32)
Y = np.sin(X.sum(axis=1, keepdims=True))
EPS = 1e-5  # of the layer norm

Weights = dict[str, np.ndarray]


def flat(tree: Any) -> Weights:
    return {path: np.array(tree[path.split("/")[0]][path.split("/")[1]]) for path in SHAPES}


class Loop:
    """The plain loop: parameters in a dict, a forward pass in jax.numpy. The frameworks change what they must."""

    def __init__(self, tx: optax.GradientTransformationExtraArgs) -> None:
        self.tx = tx
        self.params = jax.tree.map(jnp.array, nested(START))
        self.opt_state = tx.init(self.params)
        self._update = jax.jit(self.update)

    @staticmethod
    def forward(params: Any, x: jax.Array) -> jax.Array:
        h = x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]
        h = (h - h.mean(axis=1, keepdims=True)) / jnp.sqrt(h.var(axis=1, keepdims=True) + EPS)
        h = jnp.tanh(h * params["norm"]["scale"][None] + params["norm"]["bias"][None])
        return h @ params["out"]["kernel"] + params["out"]["bias"][None]

    def update(self, params: Any, opt_state: Any, scale: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(lambda p: scale * jnp.mean((self.forward(p, X) - Y) ** 2))(params)
        updates, opt_state = self.tx.update(grads, opt_state, params)
        return loss, optax.apply_updates(params, updates), opt_state

    def step(self, scale: float = 1.0) -> float:
        """One step on `scale` times the loss: 0.0 makes every gradient zero."""
        loss, self.params, self.opt_state = self._update(self.params, self.opt_state, jnp.float32(scale))
        return float(loss)

    @property
    def weights(self) -> Weights:
        return flat(self.params)

    @weights.setter
    def weights(self, weights: Weights) -> None:
        self.params = jax.tree.map(jnp.array, nested(weights))

    def set_weight_decay(self, value: float) -> None:
        self.opt_state = optax.tree.set(self.opt_state, weight_decay=value)

    def save(self) -> bytes:
        return flax.serialization.to_bytes((self.params, self.opt_state))

    def restore(self, saved: bytes) -> None:
        self.params, self.opt_state = flax.serialization.from_bytes((self.params, self.opt_state), saved)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.LayerNorm(epsilon=EPS, name="norm")(nn.Dense(WIDTH, name="hidden")(x))
        return nn.Dense(1, name="out")(nn.tanh(h))


class Linen(Loop):
    def __init__(self, tx: optax.GradientTransformationExtraArgs) -> None:
        params = jax.tree.map(jnp.array, nested(START))
        self.state = train_state.TrainState.create(apply_fn=LinenNet().apply, params=params, tx=tx)
        self._update = jax.jit(self.update)

    def update(self, state: train_state.TrainState, scale: jax.Array) -> Any:
        loss_fn = lambda p: scale * jnp.mean((state.apply_fn({"params": p}, X) - Y) ** 2)
        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return loss, state.apply_gradients(grads=grads)

    def step(self, scale: float = 1.0) -> float:
        loss, self.state = self._update(self.state, jnp.float32(scale))
        return float(loss)

    @property
    def opt_state(self) -> Any:
        return self.state.opt_state

    @property
    def weights(self) -> Weights:
        return flat(self.state.params)

    @weights.setter
    def weights(self, weights: Weights) -> None:
        self.state = self.state.replace(params=jax.tree.map(jnp.array, nested(weights)))

    def set_weight_decay(self, value: float) -> None:
        self.state = self.state.replace(opt_state=optax.tree.set(self.state.opt_state, weight_decay=value))

    def save(self) -> bytes:
        return flax.serialization.to_bytes(self.state)

    def restore(self, saved: bytes) -> None:
        self.state = flax.serialization.from_bytes(self.state, saved)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(3, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=EPS, rngs=rngs)
        self.out = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.tanh(self.norm(self.hidden(x))))


class Nnx(Loop):
    def __init__(self, tx: optax.GradientTransformationExtraArgs) -> None:
        self.model = NnxNet(nnx.Rngs(0))
        self.weights = START
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)
        self._update = nnx.jit(self.update)

    @staticmethod
    def update(model: NnxNet, optimizer: nnx.Optimizer, scale: jax.Array) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda m: scale * jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    def step(self, scale: float = 1.0) -> float:
        return float(self._update(self.model, self.optimizer, jnp.float32(scale)))

    @property
    def opt_state(self) -> Any:
        return self.optimizer.opt_state

    @property
    def weights(self) -> Weights:
        return flat(nnx.to_pure_dict(nnx.state(self.model, nnx.Param)))

    @weights.setter
    def weights(self, weights: Weights) -> None:
        for path, leaf in weights.items():
            layer, name = path.split("/")
            getattr(getattr(self.model, layer), name)[...] = jnp.array(leaf)

    def set_weight_decay(self, value: float) -> None:
        self.opt_state.hyperparams["weight_decay"][...] = value  # nnx.Optimizer holds variables, so not optax.tree.set

    def save(self) -> bytes:
        return flax.serialization.msgpack_serialize(
            [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state((self.model, self.optimizer)))]
        )

    def restore(self, saved: bytes) -> None:
        leaves = map(jnp.asarray, flax.serialization.msgpack_restore(saved))
        structure = jax.tree.structure(nnx.state((self.model, self.optimizer)))
        nnx.update((self.model, self.optimizer), jax.tree.unflatten(structure, leaves))


class EquinoxNet(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jnp.tanh(self.norm(self.hidden(x))))


class Equinox(Loop):
    def __init__(self, tx: optax.GradientTransformationExtraArgs) -> None:
        key = jax.random.key(0)
        self.tx = tx
        self.model = EquinoxNet(
            eqx.nn.Linear(3, WIDTH, key=key), eqx.nn.LayerNorm(WIDTH, eps=EPS), eqx.nn.Linear(WIDTH, 1, key=key)
        )
        self.weights = START
        self.opt_state = tx.init(eqx.filter(self.model, eqx.is_inexact_array))
        self._update = eqx.filter_jit(self.update)

    def update(self, model: EquinoxNet, opt_state: Any, scale: jax.Array) -> Any:
        loss_fn = lambda m: scale * jnp.mean((jax.vmap(m)(X) - Y) ** 2)
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
        updates, opt_state = self.tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return loss, eqx.apply_updates(model, updates), opt_state

    def step(self, scale: float = 1.0) -> float:
        loss, self.model, self.opt_state = self._update(self.model, self.opt_state, jnp.float32(scale))
        return float(loss)

    @staticmethod
    def leaves(model: EquinoxNet) -> tuple[jax.Array, ...]:
        hidden, norm, out = model.hidden, model.norm, model.out
        return hidden.weight, hidden.bias, norm.weight, norm.bias, out.weight, out.bias

    @property
    def weights(self) -> Weights:
        leaves = zip(SHAPES, self.leaves(self.model), strict=True)
        return {path: np.array(leaf).T for path, leaf in leaves}  # (out, in) there, (in, out) here

    @weights.setter
    def weights(self, weights: Weights) -> None:
        self.model = eqx.tree_at(self.leaves, self.model, tuple(jnp.array(weights[path].T) for path in SHAPES))

    def save(self) -> bytes:
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, (self.model, self.opt_state))
        return file.getvalue()

    def restore(self, saved: bytes) -> None:
        self.model, self.opt_state = eqx.tree_deserialise_leaves(io.BytesIO(saved), (self.model, self.opt_state))


FRAMEWORKS = {"plain": Loop, "linen": Linen, "nnx": Nnx, "equinox": Equinox}
STEPS = 30
WEIGHT_DECAY = 0.2
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgdw": lambda **options: wd.sgdw(0.1, weight_decay=WEIGHT_DECAY, momentum=0.9, **options),
    "adamw": lambda **options: wd.adamw(0.05, weight_decay=WEIGHT_DECAY, **options),
}
RATE = {"sgdw": 0.1 * WEIGHT_DECAY, "adamw": 0.05 * WEIGHT_DECAY}
RULES = [("^out/(kernel|weight)$", 0.5), ("^norm/", 0), (".*", "weights")]
MASKS = {"weights": "weights", "rules": RULES}
MULTIPLIERS = {"weights": {"hidden/kernel": 1.0, "out/kernel": 1.0}, "rules": {"hidden/kernel": 1.0, "out/kernel": 0.5}}

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)
every_optimizer = pytest.mark.parametrize(
    "optimizer", ["sgdw", pytest.param("adamw", marks=pytest.mark.optax_promotes)]
)
RULES_OF = {None: None, "init": wd.rules.toward("init")}
every_case = pytest.mark.parametrize(("mask", "rule"), [("weights", None), ("rules", "init")])


def build(framework: str, optimizer: str, **options: Any) -> Loop:
    return FRAMEWORKS[framework](OPTIMIZERS[optimizer](**options))


def layout(loop: Loop) -> Any:
    leaves = [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(loop.opt_state)]
    return jax.tree.structure(loop.opt_state), leaves


class Trained(NamedTuple):
    layouts: tuple[Any, Any]  # of the optimizer's state, before and after
    count: int
    losses: list[float]
    weights: Weights


@functools.cache
def trained(framework: str, optimizer: str, mask: str, rule: str | None) -> Trained:
    loop = build(framework, optimizer, mask=MASKS[mask], rule=RULES_OF[rule])
    before = layout(loop)
    losses = [loop.step() for _ in range(STEPS)]
    return Trained((before, layout(loop)), int(jnp.asarray(loop.opt_state.step)), losses, loop.weights)


@every_framework
@every_optimizer
@every_case
def test_trains(framework: str, optimizer: str, mask: str, rule: str | None) -> None:
    run = trained(framework, optimizer, mask, rule)
    assert run.losses[-1] < 0.2 * run.losses[0]
    assert run.layouts[0] == run.layouts[1]
    assert run.count == STEPS


@pytest.mark.parametrize("framework", [name for name in FRAMEWORKS if name != "plain"])
@every_optimizer
@every_case
def test_same_numbers_as_the_plain_loop(framework: str, optimizer: str, mask: str, rule: str | None) -> None:
    run, plain = (trained(name, optimizer, mask, rule) for name in (framework, "plain"))
    # Four programs in float32, each rounding its own way, 30 steps: measured 1e-6, and Adam may amplify more elsewhere.
    np.testing.assert_allclose(run.losses, plain.losses, rtol=1e-5)
    for path, weight in plain.weights.items():
        np.testing.assert_allclose(run.weights[path], weight, rtol=1e-5, atol=1e-5, err_msg=path)


@every_framework
@every_optimizer
@every_case
def test_zero_gradient_shrinks_kernels_by_the_rate_and_nothing_else(
    framework: str, optimizer: str, mask: str, rule: str | None
) -> None:
    loop = build(framework, optimizer, mask=MASKS[mask], rule=RULES_OF[rule])
    loop.weights = moved = {path: 3 * leaf for path, leaf in START.items()}  # an anchor stays where init was
    for _ in range(5):
        assert loop.step(scale=0.0) == 0.0
    for path, leaf in loop.weights.items():
        if path in MULTIPLIERS[mask]:
            kept = (1 - RATE[optimizer] * MULTIPLIERS[mask][path]) ** 5
            expected = (3 * kept if rule is None else 1 + 2 * kept) * START[path].astype(np.float64)
            np.testing.assert_allclose(leaf, expected, rtol=1e-6, err_msg=path)  # 5 steps, a few roundings of 6e-8 each
        else:
            np.testing.assert_array_equal(leaf, moved[path], err_msg=path)


@every_framework
@every_optimizer
def test_weight_decay_is_live(framework: str, optimizer: str) -> None:
    """Edited in the state in the middle of a run: off, then doubled, without building anything anew."""
    loop = build(framework, optimizer)
    loop.set_weight_decay(0.0)
    loop.step(scale=0.0)
    for path, leaf in loop.weights.items():
        np.testing.assert_array_equal(leaf, START[path], err_msg=path)
    loop.set_weight_decay(2 * WEIGHT_DECAY)
    loop.step(scale=0.0)
    for path, leaf in loop.weights.items():
        c = 2 * RATE[optimizer] * MULTIPLIERS["weights"].get(path, 0.0)
        np.testing.assert_allclose(leaf, START[path].astype(np.float64) * (1 - c), rtol=2e-7, err_msg=path)


@every_framework
@every_optimizer
def test_saved_and_restored_it_goes_on_as_if_uninterrupted(framework: str, optimizer: str) -> None:
    loop = build(framework, optimizer, mask=RULES, rule=RULES_OF["init"])
    loop.step()
    saved = loop.save()
    expected = [loop.step() for _ in range(3)]
    again = build(framework, optimizer, mask=RULES, rule=RULES_OF["init"])
    again.weights = {path: 0 * leaf for path, leaf in START.items()}
    again.restore(saved)
    assert [again.step() for _ in range(3)] == expected
    for path, leaf in again.weights.items():
        np.testing.assert_array_equal(leaf, loop.weights[path], err_msg=path)


# --- F2: NNX wraps every array in a variable at init, and not at update.


def kernels_by_path(params: Any) -> Any:
    """What people write; the paths of NNX variables, as at init, end in an attribute `value` that has no key."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def kernels_by_rank(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@pytest.mark.parametrize(
    "mask", [kernels_by_path, kernels_by_rank, [("kernel$", 1.0)], nested({p: p.endswith("kernel") for p in SHAPES})]
)
def test_f2_nnx_mask_says_the_same_at_init_and_at_update(mask: Any) -> None:
    loop = build("nnx", "sgdw", mask=mask)
    variables = nnx.state(loop.model, nnx.Param)
    at_init, at_update = (wd.multipliers(mask, params) for params in (variables, nnx.to_pure_dict(variables)))
    assert jax.tree.leaves(at_init) == jax.tree.leaves(at_update) == [p.endswith("kernel") for p in sorted(SHAPES)]
    loop.step(scale=0.0)
    for path, leaf in loop.weights.items():
        c = RATE["sgdw"] * path.endswith("kernel")
        np.testing.assert_allclose(leaf, START[path].astype(np.float64) * (1 - c), rtol=2e-7, err_msg=path)


def test_f2_nnx_mask_that_needs_variables_is_an_error_at_init() -> None:
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)
    mask = lambda params: jax.tree.map(is_variable, params, is_leaf=is_variable)
    with pytest.raises(ValueError, match=r'(?s)mask: .* in an NNX variable.* mask="weights".*hidden/kernel'):
        build("nnx", "sgdw", mask=mask)


# --- F26: parameters in one container, the mask in another. F27: a container that can be called.


class CallableLayer(eqx.Module):
    kernel: Any
    bias: Any

    def __call__(self, x: Any) -> Any:
        raise AssertionError("a mask that is a tree was called")


class CallableNet(eqx.Module):
    hidden: CallableLayer
    out: CallableLayer

    def __call__(self, x: Any) -> Any:
        raise AssertionError("a mask that is a tree was called")


def as_equinox(tree: Any) -> CallableNet:
    return CallableNet(**{name: CallableLayer(**layer) for name, layer in tree.items()})


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda tree: tree,
    "FrozenDict": flax.core.freeze,
    "nnx.State": lambda tree: nnx.State(jax.tree.map(nnx.Param, tree)),
    "pure nnx.State": nnx.State,
    "equinox": as_equinox,
}
PARAMS = nested({path: jnp.array(START[path]) for path in SHAPES if not path.startswith("norm")})
MASK = {"hidden": {"kernel": True, "bias": False}, "out": {"kernel": 0.5, "bias": 0.0}}


@pytest.mark.parametrize("params", CONTAINERS)
@pytest.mark.parametrize("mask", CONTAINERS)
def test_f26_f27_mask_and_parameters_in_different_containers(mask: str, params: str) -> None:
    tree = CONTAINERS[params](PARAMS)
    tx = wd.sgdw(0.1, weight_decay=WEIGHT_DECAY, mask=CONTAINERS[mask](MASK))
    updates, _ = tx.update(optax.tree.zeros_like(tree), tx.init(tree), tree)
    expected = jax.tree.map(lambda p, m: -0.1 * WEIGHT_DECAY * float(m) * p, PARAMS, MASK)
    assert jax.tree.structure(updates) == jax.tree.structure(tree)
    for got, want in zip(jax.tree.leaves(updates), jax.tree.leaves(CONTAINERS[params](expected)), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-7)


def test_f26_rules_do_not_know_the_container() -> None:
    rules = [("^out/kernel$", 0.5), (".*", "weights")]
    answers = {name: jax.tree.leaves(wd.multipliers(rules, make(PARAMS))) for name, make in CONTAINERS.items()}
    assert sorted(answers["dict"]) == [0.0, 0.0, 0.5, 1.0]
    paths = [[row.path for row in wd.explain(rules, make(PARAMS)).rows] for make in CONTAINERS.values()]
    assert all(sorted(p) == ["hidden/bias", "hidden/kernel", "out/bias", "out/kernel"] for p in paths)
    by_path = [dict(zip(p, m, strict=True)) for p, m in zip(paths, answers.values(), strict=True)]
    assert all(answer == by_path[0] for answer in by_path)


def test_f27_equinox_module_of_bools_is_a_tree_not_a_function() -> None:
    model = eqx.nn.MLP(2, 1, width_size=4, depth=1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    assert callable(mask)
    tx = wd.sgdw(0.1, weight_decay=WEIGHT_DECAY, mask=mask)
    updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    after = eqx.apply_updates(model, updates)
    for old, new in zip(model.layers, after.layers, strict=True):
        np.testing.assert_allclose(new.weight, 0.98 * np.asarray(old.weight, np.float64), rtol=2e-7)
        np.testing.assert_array_equal(new.bias, old.bias)
