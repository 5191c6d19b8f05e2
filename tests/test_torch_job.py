"""Runs of real PyTorch optimizers that go on here: from step 50, 50 more steps, to the same weights.

goldens/torch_job.npz was written by goldens/generate_torch_job.py; torch isn't needed to run this.
"""

import json
import re
from pathlib import Path

import equinox as eqx
import fake_torch
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import wd_optax as wd

pytestmark = [pytest.mark.quick_compile, pytest.mark.optax_promotes]

FILE = dict(np.load(Path(__file__).with_name("goldens") / "torch_job.npz"))
CASES = sorted({key.split("/")[0] for key in FILE})
# The largest difference after 50 steps, of weights of about 1. float64: sums in another order. float32: PyTorch rounds
# 1 − η·λ and then the product, up to half an ulp at a time in one direction; and 1 − β₂ᵗ is in double precision there.
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}


def convert_mlp(state_dict):
    def dense(i):
        return {"kernel": state_dict[f"{i}.weight"].T, "bias": state_dict[f"{i}.bias"]}

    norm = {"scale": state_dict["1.weight"], "bias": state_dict["1.bias"]}
    assert state_dict["1.running_mean"].shape == norm["bias"].shape
    return {"Dense_0": dense(0), "BatchNorm_0": norm, "Dense_1": dense(3)}


def convert_transformer(state_dict):
    """Separate q, k, v with an axis for the heads, and the table by the head's name, to which it is tied."""

    def norm(name):
        return {"scale": state_dict[f"{name}.weight"], "bias": state_dict[f"{name}.bias"]}

    def block(name):
        dense = {x: {"kernel": state_dict[f"{name}.{x}.weight"].T, "bias": state_dict[f"{name}.{x}.bias"]}
                 for x in ("proj", "fc")}  # fmt: skip
        weights, biases = (np.split(state_dict[f"{name}.qkv.{x}"], 3) for x in ("weight", "bias"))
        qkv = {x: {"kernel": w.T.reshape(-1, 2, 2), "bias": b.reshape(2, 2)}
               for x, w, b in zip("qkv", weights, biases, strict=True)}  # fmt: skip
        return {**dense, **qkv, "ln_1": norm(f"{name}.ln_1"), "ln_2": norm(f"{name}.ln_2")}

    table = {"embedding": state_dict["head.weight"]}
    return {"wte": table, "h_0": block("h.0"), "h_1": block("h.1"), "ln_f": norm("ln_f")}


CONVERT = {"transformer": convert_transformer}
NAMES = {"transformer": [(r"qkv\.(\w+)", [r"q.\1", r"k.\1", r"v.\1"])]}
MLP_NAMES = [(r"^0\.", "Dense_0/"), (r"^1\.", "BatchNorm_0/"), (r"^3\.", "Dense_1/")]


class Job:
    """A recorded run: the optimizer as it was at step 50, and what came after."""

    def __init__(self, case, dtype):
        arrays = {key.split("/")[2]: x for key, x in FILE.items() if key.startswith(f"{case}/{dtype}/")}
        job = json.loads(str(arrays.pop("job")))
        self.dtype, self.job, self.shapes = np.dtype(dtype), job, job["shapes"]
        self.named, self.convert = fake_torch.model(self.shapes), CONVERT.get(case, convert_mlp)
        self.names = NAMES.get(case, MLP_NAMES)
        self.weights, self.gradients = arrays.pop("weights"), arrays.pop("gradients").astype(dtype)
        by_index = dict(zip(job["indices"], self.named.values(), strict=True))
        groups = [{**g, "params": [by_index[i] for i in g["params"]]} for g in job["param_groups"]]
        slots = {slot: fake_torch.split(flat, self.shapes) for slot, flat in arrays.items()}
        state = {x: {slot: by_name[name] for slot, by_name in slots.items()} for name, x in self.named.items()}
        for x, count in zip(self.named.values(), job["steps"], strict=True):
            state[x] |= {} if count < 0 else {"step": np.float32(count)}
        module, name = job["class"]
        self.optimizer = fake_torch.optimizer(name, groups, state, module)
        self.schedule = (lambda t: 1 / (1 + jnp.asarray(t, dtype) / 50)) if "initial_lr" in groups[0] else None
        self.step = 50 if job["steps"][0] < 0 else None

    def state_dict(self, flat):
        """The model's, with buffers and the other names of tied weights."""
        own = fake_torch.split(flat, self.shapes)
        buffers = {name: np.array(x, self.dtype) for name, x in self.job["buffers"].items()}
        return own | buffers | {name: own[other] for name, other in self.job["tied"].items()}

    def tree(self, flat):
        return jax.tree.map(jnp.asarray, self.convert(self.state_dict(flat)))

    def resume(self):
        params = self.tree(self.weights[0])
        tx, table = wd.from_torch(self.optimizer, self.named, params, self.names, schedule=self.schedule)
        state = wd.torch_state(
            self.optimizer, self.convert, tx, params, named_parameters=self.named.items(), step=self.step,
            weights=self.state_dict(self.weights[0]),
        )  # fmt: skip
        return params, tx, table, state

    def farthest(self, params, tx, state):
        """The largest difference to PyTorch's weights at steps 60, 70, ..., 100, relative for those above 1."""

        def step(carry, gradients):
            params, state = carry
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        gradients = jax.tree.map(lambda *g: np.stack(g), *map(self.convert, map(self.state_dict, self.gradients)))
        _, ours = jax.lax.scan(step, (params, state), gradients)
        theirs = jax.tree.map(lambda *p: np.stack(p), *map(self.convert, map(self.state_dict, self.weights[1:])))
        pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
        return max(float((abs(np.asarray(a)[9::10] - b) / np.maximum(abs(b), 1)).max()) for a, b in pairs)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.mark.parametrize("case", CASES)
def test_the_run_goes_on(case, dtype, capsys):
    job = Job(case, dtype)
    params, tx, _, state = job.resume()
    assert jax.tree.leaves(params)[0].dtype == dtype
    worst = job.farthest(params, tx, state)
    with capsys.disabled():
        print(f"\n{case} {dtype}: {worst:.1e} after 50 steps")
    assert worst <= TOLERANCE[dtype]


PARAMS = {"fc": {"kernel": jnp.arange(6.0).reshape(3, 2), "bias": jnp.ones(2)}}
WEIGHTS = {"fc.weight": np.arange(6.0, dtype=np.float32).reshape(3, 2).T, "fc.bias": np.ones(2, np.float32)}
SHAPES = {name: x.shape for name, x in WEIGHTS.items()}
ADAMW = wd.adamw(1e-2, weight_decay=0.1)


def convert(state_dict):
    return {"fc": {"kernel": state_dict["fc.weight"].T, "bias": state_dict["fc.bias"]}}


def adam_state(**counts):
    """A state_dict with names: exp_avg is 1, 2, ... in each tensor."""
    slots = lambda shape, n: {"step": np.float32(n), "exp_avg": 1 + np.arange(np.prod(shape), dtype=np.float32)}
    state = {}
    for i, (name, size) in enumerate(SHAPES.items()):
        if (count := counts.get(name.split(".")[1], 7)) is not None:
            own = slots(size, count)
            own["exp_avg"] = own["exp_avg"].reshape(size)
            state[i] = own | {"exp_avg_sq": own["exp_avg"] ** 2}
    return {"state": state, "param_groups": [{"params": [0, 1], "param_names": list(SHAPES), "lr": 1e-2}]}


def resume(state_dict, convert=convert, tx=ADAMW, params=PARAMS, **rest):
    return wd.torch_state(state_dict, convert, tx, params, **rest)


def test_moments_are_transposed_and_every_count_is_set():
    state = resume(adam_state())
    assert [int(x) for x in (state.step, state.inner.count)] == [7, 7]
    np.testing.assert_array_equal(state.inner.mu["fc"]["kernel"], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(state.inner.nu["fc"]["kernel"], [[1, 16], [4, 25], [9, 36]])
    assert state.hyperparams == ADAMW.init(PARAMS).hyperparams


@pytest.mark.parametrize(
    ("wrap", "counts"),
    [
        (lambda: optax.chain(optax.clip(1.0), ADAMW), 2),
        (lambda: wd.partition({"a": ADAMW, "b": ADAMW}, lambda p: "a" if p.role == "bias" else "b"), 4),
        (lambda: wd.partition({"a": ADAMW, "b": optax.set_to_zero()}, lambda p: "b" if p.role == "bias" else "a"), 2),
        (lambda: wd.monitor_decay(ADAMW), 2),
        (lambda: wd.precision.with_master_weights(ADAMW), 2),
        (lambda: wd.adamw(1e-2, weight_decay=0.1, rule=wd.rules.toward("init")), 2),
        (lambda: wd.adam_l2(lambda t: 1e-2, weight_decay=0.1), 2),
        (lambda: optax.adamw(1e-2), 1),
    ],
)
def test_wherever_the_moments_are(wrap, counts):
    state = resume(adam_state(), tx=wrap())
    leaves = [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(state)]
    assert sum(x.dtype == jnp.int32 and int(x) == 7 for _, x in leaves) >= counts
    kernel = [x for path, x in leaves if "mu" in path and "kernel" in path]
    np.testing.assert_array_equal(kernel[0], [[1, 4], [2, 5], [3, 6]])
    assert len(kernel) == 1


def test_the_state_is_the_one_of_a_run_here():
    """Adam's after 7 steps here, written as PyTorch's and read again, is the same to the bit."""
    params, state = PARAMS, ADAMW.init(PARAMS)
    for i in range(7):
        grads = optax.tree.random_like(jax.random.key(i), params)
        _, state = ADAMW.update(grads, state, params)
    slots = {"exp_avg": state.inner.mu["fc"], "exp_avg_sq": state.inner.nu["fc"]}
    torch = adam_state()
    for i, (name, transpose) in enumerate((("kernel", True), ("bias", False))):
        own = {slot: np.asarray(x[name]).T if transpose else np.asarray(x[name]) for slot, x in slots.items()}
        torch["state"][i] = own | {"step": 7}
    again = resume(torch)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


CONVERTS = {
    "multiplies by 0.5": lambda s: {"fc": {"kernel": s["fc.weight"].T * np.float32(0.5), "bias": s["fc.bias"]}},
    "multiplies by -1": lambda s: {"fc": {"kernel": -s["fc.weight"].T, "bias": s["fc.bias"]}},
    "adds 1 in 'fc/bias'": lambda s: {"fc": {"kernel": s["fc.weight"].T, "bias": 1 + s["fc.bias"]}},
    "multiplies by 2 or adds entries up": lambda s: {
        "fc": {"kernel": s["fc.weight"].T, "bias": s["fc.bias"] + s["fc.weight"][:, 0]}
    },
    "isn't linear": lambda s: {"fc": {"kernel": np.maximum(s["fc.weight"].T, 0) ** 2, "bias": s["fc.bias"]}},
    "rounds in 'fc/kernel'": lambda s: {
        "fc": {"kernel": jnp.asarray(s["fc.weight"].T, jnp.bfloat16), "bias": s["fc.bias"]}
    },
    "uses an entry twice": lambda s: {"fc": {"kernel": s["fc.weight"].T, "bias": s["fc.weight"][:, 0]}},
    "makes 'fc/kernel' of shape (2, 3), expected (3, 2)": lambda s: {
        "fc": {"kernel": s["fc.weight"], "bias": s["fc.bias"]}
    },
    "'params/fc/bias' is a leaf of what convert makes": lambda s: {"params": convert(s)} | convert(s),
    "'fc/kernel' is a leaf of params, and convert makes none": lambda s: {"fc": {"bias": s["fc.bias"]}},
    "convert reads 'fc.scale', which isn't among 'fc.weight', 'fc.bias'": lambda s: s["fc.scale"],
    "is no tensor of PyTorch's": lambda s: {"fc": {"kernel": s["fc.weight"].T, "bias": np.zeros(2, np.float32)}},
}


@pytest.mark.parametrize("message", CONVERTS)
def test_a_convert_that_does_more_than_rearrange_is_refused(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resume(adam_state(), convert=CONVERTS[message])


def test_a_swap_of_entries_is_a_rearrangement():
    state = resume(adam_state(), lambda s: {"fc": {"kernel": s["fc.weight"].T[::-1], "bias": s["fc.bias"]}})
    np.testing.assert_array_equal(state.inner.mu["fc"]["kernel"], [[3, 6], [2, 5], [1, 4]])


def test_new_rows_start_from_zero():
    params = {"fc": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    pad = lambda s: {"fc": {"kernel": np.pad(s["fc.weight"].T, ((0, 1), (0, 0))), "bias": s["fc.bias"]}}
    mu = resume(adam_state(), pad, params=params).inner.mu["fc"]["kernel"]
    np.testing.assert_array_equal(mu, [[1, 4], [2, 5], [3, 6], [0, 0]])


def test_step_counts_must_agree():
    with pytest.raises(ValueError, match=r"step counts differ, 3: 'fc.bias'; 7: 'fc.weight'"):
        resume(adam_state(bias=3))
    with pytest.raises(ValueError, match=r"step=6 differs from the count in the optimizer's state, 7"):
        resume(adam_state(), step=6)
    assert int(resume(adam_state(), step=7).step) == 7


def test_a_parameter_without_steps_must_not_train():
    with pytest.raises(ValueError, match=r"'fc/bias' is 'fc.bias' of PyTorch, which took no step.*no exp_avg for it"):
        resume(adam_state(bias=None), named_parameters=fake_torch.model(SHAPES))
    frozen = wd.partition({"a": ADAMW, "b": optax.set_to_zero()}, lambda p: "b" if p.role == "bias" else "a")
    state = resume(adam_state(bias=None), tx=frozen, named_parameters=fake_torch.model(SHAPES))
    assert int(optax.tree.get(state, "step")) == 7
    named = fake_torch.model(SHAPES)
    named["fc.bias"].requires_grad = False  # since step 3
    assert int(optax.tree.get(resume(adam_state(bias=3), tx=frozen, named_parameters=named), "step")) == 7


def test_an_optimizer_without_steps_starts():
    named = fake_torch.model(SHAPES)
    fresh = resume(fake_torch.optimizer("AdamW", [{"params": list(named.values())}]), named_parameters=named)
    jax.tree.map(np.testing.assert_array_equal, fresh, ADAMW.init(PARAMS))
    with pytest.raises(ValueError, match="without names: pass named_parameters"):
        wd.torch_state({"state": {}, "param_groups": [{"params": [0, 1]}]}, convert, ADAMW, PARAMS)


def sgd_state(buffer):
    state = adam_state()
    for slots in state["state"].values():
        shape = slots["exp_avg"].shape
        slots.clear()
        slots["momentum_buffer"] = None if buffer is None else np.full(shape, buffer, np.float32)
    return state


def test_sgd_counts_nothing_so_the_steps_must_be_given():
    momentum = wd.sgd_l2(1e-2, weight_decay=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="step: this optimizer doesn't count its steps"):
        resume(sgd_state(2.0), tx=momentum)
    state = resume(sgd_state(2.0), tx=momentum, step=50)
    assert (int(state.step), int(state.inner.count)) == (50, 50)
    assert (state.inner.trace["fc"]["kernel"] == 2).all()
    unstepped = resume(sgd_state(None), tx=momentum)
    jax.tree.map(np.testing.assert_array_equal, unstepped, momentum.init(PARAMS))
    plain = wd.sgdw(1e-2, weight_decay=0.1)
    with pytest.raises(ValueError, match="pass step="):
        resume(sgd_state(None), tx=plain)
    assert int(resume(sgd_state(None), tx=plain, step=50).step) == 50


def test_moments_of_another_optimizer_are_refused():
    with pytest.raises(
        ValueError, match=r"tx has 'trace' in a MomentumState, and PyTorch's state has exp_avg, exp_avg_sq"
    ):
        resume(adam_state(), tx=wd.sgdw(1e-2, weight_decay=0.1, momentum=0.9))
    with pytest.raises(ValueError, match=r"'exp_avg' of 'fc.weight' has no place in tx"):
        resume(adam_state(), tx=wd.sgdw(1e-2, weight_decay=0.1))
    with pytest.raises(ValueError, match=r"tx has 'mu' in a ScaleByAmsgradState.*PyTorch the largest v\)"):
        resume(adam_state(), tx=wd.with_decay(optax.amsgrad(1e-2), learning_rate=1e-2, weight_decay=0.1))
    with pytest.raises(ValueError, match="ScaleByBeliefState"):
        resume(adam_state(), tx=optax.adabelief(1e-2))
    largest = adam_state()
    for slots in largest["state"].values():
        slots["max_exp_avg_sq"] = slots["exp_avg_sq"]
    with pytest.raises(ValueError, match=r"'max_exp_avg_sq' of 'fc.weight' has no place in tx"):
        resume(largest)


def test_a_slot_without_counterpart_is_refused():
    state = adam_state()
    for slots in state["state"].values():
        slots["row_var"] = slots.pop("exp_avg_sq")
    with pytest.raises(ValueError, match=r"keeps 'row_var' for 'fc.weight', which has no counterpart"):
        resume(state)


def test_weights_are_checked_and_bring_buffers_and_tied_names():
    tied = lambda s: {"fc": {"kernel": s["module.head.weight"].T, "bias": s["module.fc.bias"]}}
    weights = {f"module.{name}": x for name, x in WEIGHTS.items()} | {"module.head.weight": WEIGHTS["fc.weight"]}
    weights |= {"module.bn.num_batches_tracked": np.array(3), "module.bn.running_mean": np.zeros(2, np.float32)}
    state = resume(adam_state(), tied, weights=weights)
    np.testing.assert_array_equal(state.inner.mu["fc"]["kernel"], [[1, 4], [2, 5], [3, 6]])
    with pytest.raises(ValueError, match="pass what it is made for, weights="):
        resume(adam_state(), tied)
    with pytest.raises(ValueError, match=r"'fc/kernel' isn't what convert makes of weights"):
        resume(adam_state(), tied, params=jax.tree.map(jnp.ones_like, PARAMS), weights=weights)
    with pytest.raises(ValueError, match=r"weights has no 'fc.bias'"):
        resume(adam_state(), weights={"fc.weight": WEIGHTS["fc.weight"]})


def test_constant_tensors_are_not_tied():
    """A frozen bias that is 1, as one that trains."""
    both = lambda s: convert(s) | {"norm": {"bias": s["norm.bias"]}}
    params = PARAMS | {"norm": {"bias": jnp.ones(2)}}
    tx = wd.partition({"a": ADAMW, "b": optax.set_to_zero()}, lambda p: "b" if "norm" in p.path else "a")
    state = resume(adam_state(), both, tx, params, weights=WEIGHTS | {"norm.bias": WEIGHTS["fc.bias"].copy()})
    assert int(optax.tree.get(state, "step")) == 7


def test_names_in_another_order_than_the_state_are_found_by_shape():
    state = adam_state()
    del state["param_groups"][0]["param_names"]
    assert int(resume(state, named_parameters=fake_torch.model(SHAPES)).step) == 7
    with pytest.raises(ValueError, match=r"'fc.bias' has shape \(2,\), but its exp_avg in the optimizer's state has"):
        resume(state, named_parameters=dict(reversed(fake_torch.model(SHAPES).items())))


def test_low_precision_moments_keep_their_type():
    tx = wd.adamw(1e-2, weight_decay=0.1, mu_dtype=jnp.bfloat16)
    assert resume(adam_state(), tx=tx).inner.mu["fc"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize("case", ["adamw", "transformer"])
def test_a_state_dict_gives_the_same_as_the_optimizer(case):
    with jax.enable_x64(True):
        job = Job(case, "float64")
        params, tx, _, state = job.resume()
        names = {x: name for name, x in job.named.items()}
        per_group = [[names[x] for x in group["params"]] for group in job.optimizer.param_groups]
        again = wd.torch_state(
            job.optimizer.state_dict(), job.convert, tx, params, named_parameters=per_group,
            weights=job.state_dict(job.weights[0]),
        )  # fmt: skip
        jax.tree.map(np.testing.assert_array_equal, state, again)


def test_what_each_group_of_the_transformer_gets():
    with jax.enable_x64(True):
        _, _, table, state = Job("transformer", "float64").resume()
    rows = {row.path: (row.other_name, row.group, str(row.weight_decay)) for row in table.rows}
    assert rows["h_1/q/kernel"] == ("h.1.qkv.weight", "group0", "0.1")
    assert rows["h_1/q/bias"] == ("h.1.qkv.bias", "group1", "0.0")
    assert rows["wte/embedding"] == ("wte.weight", "group0", "0.1")
    assert {int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32} == {50}


def test_nnx_and_equinox_trees():
    """`convert` may return another container than the parameters: paths count."""
    state = nnx.State({"fc": {"kernel": nnx.Param(PARAMS["fc"]["kernel"]), "bias": nnx.Param(jnp.ones(2))}})
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    named = fake_torch.model({"weight": (2, 3), "bias": (2,)})
    for params, names, to in (
        (state, SHAPES, convert),
        (eqx.filter(linear, eqx.is_array), named, lambda s: {"weight": s["fc.weight"], "bias": s["fc.bias"]}),
    ):
        group = {"params": [0, 1], "lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
        tx, table = wd.from_torch({"param_groups": [group]}, list(names), params, call="torch.optim.AdamW")
        assert {row.other_name for row in table.rows} == set(names)
        moments = resume(adam_state(), to, tx, params)
        assert jax.tree.structure(moments.inner.mu) == jax.tree.structure(params)
        assert float(jax.tree.leaves(moments.inner.mu)[0].sum()) > 0
        updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), moments, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
