"""Decay costs nothing: laws of memory traffic, read from the compiled program of a jitted, donated step. No clock.

Every transform and optimizer is found in its module (`catalogue.py`), so a new one falls under these laws by itself.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from catalogue import NAMES, applies, optimizer, takes
from jax.sharding import NamedSharding, PartitionSpec
from quick_compile import OPTIONS

import wd_optax as wd

ROWS, COLUMNS = 1024, 512
SIZE = ROWS * COLUMNS
SCALARS = 0.01  # bytes per parameter that scalars may add: 5 kB here, and nothing that grows with the leaf

# All that is read here is settled before LLVM, which takes half of a compilation.
BEFORE_LLVM = {name: value for name, value in OPTIONS.items() if name != "xla_cpu_use_fusion_emitters"}

pytestmark = pytest.mark.optax_promotes  # Optax's Adam


class Traffic(NamedTuple):
    bytes: float  # per parameter, as the compiler counts them
    loops: int  # fusions that write an array as large as the leaf, or several
    copies: int  # of such arrays
    not_aliased: int  # bytes of parameters and state that are not updated in place
    temporary: float  # bytes per parameter
    text: str


def traffic(tx, dtype=jnp.float32, sharding=None):
    p = {"kernel": jax.ShapeDtypeStruct((ROWS, COLUMNS), dtype)}
    state = jax.eval_shape(tx.init, p)
    if sharding is not None:
        one = NamedSharding(sharding.mesh, PartitionSpec())
        p, state = jax.tree.map(lambda x: x.update(sharding=sharding if x.ndim else one), (p, state))

    def step(p, state, g):
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(p, state, p).compile(BEFORE_LLVM)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    leaf = rf"\[{ROWS},{COLUMNS}\]"
    entry = text[text.index("\nENTRY") :]
    return Traffic(
        bytes=compiled.cost_analysis()["bytes accessed"] / SIZE,
        loops=len(re.findall(rf"= \(?[^=]*{leaf}[^=]* fusion\(", entry)),
        copies=len(re.findall(rf"{leaf}\S* copy\(", text)),
        not_aliased=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((p, state))) - memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes / SIZE,
        text=text,
    )


# Every axis that may cost something, as options; a name is tried with those that it takes.
AXES = {
    "plain": {},
    "mask": {"mask": [("kernel", 0.5)]},
    "schedule": {"coupling": "schedule"},
    "cautious": {"rule": wd.rules.cautious()},
    "clip": {"rule": optax.clip(0.5)},
    "anchor": {"rule": wd.rules.toward("init")},
    "momentum": {"momentum": 0.9},
    "l1": {"penalty": "l1"},
    "elastic": {"penalty": "elastic"},
    "coupling by rule": {"coupling": [("kernel", "corrected")]},
}
CASES = [
    (name, axis)
    for name in NAMES
    for axis, options in AXES.items()
    if all(takes(name, o) for o in options) and applies(name, axis)
]
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
TRANSFERS = "infeed|outfeed|send|recv"
OFF = {"kernel": 0.0}  # multipliers: nothing decays, and the program knows it


def allowed(name, axis, tx):
    """Bytes per parameter beyond the step without decay."""
    reads = 4 * (axis == "anchor")  # a decay toward a tree reads the tree
    state = jax.eval_shape(tx.init, {"kernel": jnp.ones((ROWS, COLUMNS))})
    moments = sum(x.shape == (ROWS, COLUMNS) for x in jax.tree.leaves(state.inner)) if name.endswith("_l2") else 0
    # g + λ·r(p) feeds each moment, and a CPU's loop writes one array: each reads p again, and the tree
    return (4 + reads) * moments if moments else reads


@functools.cache
def without_decay(name, axis):
    return traffic(optimizer(name, **(AXES[axis] | {"mask": OFF})))


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_decay_adds_no_bytes_no_loop_no_copy(name, axis):
    on = traffic(tx := optimizer(name, **AXES[axis]))
    off = without_decay(name, "plain" if axis == "mask" else axis)
    assert on.bytes - off.bytes == pytest.approx(allowed(name, axis, tx), abs=SCALARS)
    assert on.loops == off.loops
    assert on.copies == 0
    assert on.not_aliased == 0
    assert on.temporary < SCALARS


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_no_host_transfer_and_no_collective_when_sharded(name, axis):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    found = traffic(optimizer(name, **AXES[axis]), sharding=NamedSharding(mesh, PartitionSpec("data")))
    assert f"[{ROWS // 8},{COLUMNS}]" in found.text  # it is sharded
    assert not re.search(rf" ({COLLECTIVES}|{TRANSFERS})(-start)?\(|callback", found.text)


def test_a_group_penalty_takes_its_norms_before_the_step():
    """p and g once more for the norms; a CPU writes p + step between them, and reads it twice."""
    groups, plain = traffic(optimizer("sgdw", penalty="group")), traffic(optimizer("sgdw"))
    older = 8 * (jax.__version_info__ < (0, 10))  # XLA wrote a norm's input and read it again
    assert groups.bytes - plain.bytes <= 8 + 4 + 4 + 4 + older + SCALARS
    assert groups.copies == 0
    assert groups.not_aliased == 0
    assert groups.temporary <= 4 + older / 2 + SCALARS


def test_a_collective_and_a_transfer_would_be_seen():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    clipped = traffic(
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), sharding=NamedSharding(mesh, PartitionSpec("data"))
    )
    assert re.search(rf" ({COLLECTIVES})(-start)?\(", clipped.text)
    printed = optax.chain(optax.sgd(0.1), optax.stateless(lambda u, p: (jax.debug.callback(lambda: None), u)[1]))
    assert "callback" in traffic(printed).text


def test_the_laws_see_a_copy_a_loop_and_a_read():
    """What they must catch: a sign taken of old momentum costs a copy, work apart its bytes."""
    assert traffic(optax.lion(0.1)).copies == 1
    plain = traffic(optax.sgd(0.1))

    def apart(updates, state, params):
        shrunk = jax.tree.map(lambda u, p: jnp.sort(u - 0.01 * p, axis=0), updates, params)  # a sort fuses with nothing
        return shrunk, state

    worse = traffic(optax.chain(optax.sgd(0.1), optax.GradientTransformation(lambda p: optax.EmptyState(), apart)))
    assert worse.bytes > plain.bytes + 7
    assert worse.temporary > 3


def test_the_monitor_reads_once_more_what_the_step_reads():
    """Adam's p, g, m, v: 16 bytes; plain SGD's p, g: 8. Rows of sums are temporary: 5 per row."""
    for name, options, reads in [("adamw", {}, 16), ("sgdw", {}, 8), ("sgdw", {"momentum": 0.9}, 12)]:
        plain, watched = traffic(optimizer(name, **options)), traffic(wd.monitor_decay(optimizer(name, **options)))
        # the sums of the rows: written, read by the second sum and by the loops that wait, 5 + 5 + 3 floats each
        assert watched.bytes - plain.bytes == pytest.approx(reads, abs=16 * 4 / COLUMNS + SCALARS)
        assert watched.copies == 0
        assert watched.not_aliased <= 9 * 5 * 4  # of what was seen, made anew
        assert watched.temporary < 16 * 4 / COLUMNS + SCALARS


@pytest.mark.parametrize("name", [n for n in NAMES if takes(n, "rounding")])
def test_roundings_of_bfloat16(name):
    """Nearest and stochastic move the same bytes; the residual's are 2 to read and 2 to write where one loop writes
    both, and on a CPU, whose loops write one array, a float32 of p + u + r between them: see docs/performance.md."""
    found = {r: traffic(optimizer(name, rounding=r), jnp.bfloat16) for r in ("nearest", "stochastic", "compensated")}
    assert found["stochastic"].bytes == pytest.approx(found["nearest"].bytes, abs=SCALARS)
    if jax.__version_info__ < (0, 10):  # whose compiler for CPUs copies p and r
        del found["compensated"]
    for r, t in found.items():
        assert t.bytes - found["nearest"].bytes <= (2 + 2 + 4 + 4 + 8 + 2 if r == "compensated" else 0) + SCALARS
        assert t.copies == 0, r
        assert t.not_aliased == 0, r
        assert t.temporary < (4 if r == "compensated" else 0) + SCALARS, r


def test_adamw_s_bytes_are_optax_s_and_the_least_for_one_array_per_loop():
    """m: 12, v: 12, p: 16. In one pass it would be 28, which a TPU reaches (tests/tpu)."""
    ours, theirs = traffic(optimizer("adamw")), traffic(optax.adamw(0.1))
    assert ours.bytes == pytest.approx(theirs.bytes, abs=SCALARS)
    assert ours.bytes == pytest.approx(40, abs=SCALARS)
    assert ours.loops == theirs.loops == 3
