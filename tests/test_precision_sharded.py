"""Stochastic rounding gives the same bits on one device, on eight for any sharding, and inside `shard_map`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_same_bits
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_precision_composes import normal, step, trained

import wd_optax as wd

pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]

MESHES = {"8": ((8,), ("x",)), "2x4": ((2, 4), ("x", "y"))}
SHARDINGS = [
    ("8", P("x")),
    ("8", P(None, "x")),
    ("8", P()),
    ("2x4", P("x", "y")),
    ("2x4", P("y", "x")),
    ("2x4", P(("y", "x"))),
]
each_sharding = pytest.mark.parametrize(("mesh", "spec"), SHARDINGS, ids=str)


def mesh_of(name):
    shape, axes = MESHES[name]
    return jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * len(axes))


def matrices():
    return {"a": {"kernel": normal(0, (8, 16))}, "b": {"kernel": normal(1, (16, 8))}}


@functools.cache
def rounder(partition=None):
    """Nothing but the rounding: float32 arithmetic before it may differ by a unit from one sharding to the next."""
    return wd.precision.round_updates("stochastic", key=2, partition=partition)


@functools.cache
def compensating(partition=None):
    return wd.precision.round_updates("compensated", key=2, partition=partition)


each_rounder = pytest.mark.parametrize("rounder", [rounder, compensating])


def tiny(p):
    return jax.tree.map(lambda x: normal(5, x.shape, jnp.float32) * 2.0**-9, p)


@each_sharding
@each_rounder
def test_any_sharding_has_the_bits_of_one_device(mesh, spec, rounder):
    p, u, tx = matrices(), tiny(matrices()), rounder()
    alone, state = trained(tx, p, u)
    placed, placed_u = jax.device_put((p, u), NamedSharding(mesh_of(mesh), spec))
    steps = jax.jit(
        lambda p, state: jax.lax.scan(lambda c, _: (step(tx, placed_u, *c[::-1]), None), (p, state), length=3)[0]
    )
    program = steps.lower(placed, tx.init(placed)).compile()
    text = program.as_text()
    assert not [c for c in ("all-reduce", "all-gather", "all-to-all", "collective-permute") if c in text]
    end, placed_state = program(placed, tx.init(placed))
    assert_same_bits((end, placed_state.residual), (alone, state.residual))


@each_sharding
@each_rounder
def test_shard_map_has_the_bits_of_one_device(mesh, spec, rounder):
    p, u = matrices(), tiny(matrices())
    alone, alone_state = trained(rounder(), p, u)
    tx = rounder(partition=spec)  # one spec for all leaves: a tree prefix
    mesh = mesh_of(mesh)
    of = lambda x: spec if x.ndim else P()
    u, state, end = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, of(x))), (u, tx.init(p), p))
    place = jax.tree.map(of, state)
    mapped = jax.shard_map(
        functools.partial(step, tx), mesh=mesh, in_specs=(spec, place, spec), out_specs=(spec, place)
    )
    one = jax.jit(mapped)
    for _ in range(3):
        end, state = one(u, state, end)
    assert_same_bits((end, state.residual), (alone, alone_state.residual))


def test_shard_map_on_replicas_needs_no_partition():
    p, u = matrices(), tiny(matrices())
    mapped = jax.shard_map(functools.partial(step, rounder()), mesh=mesh_of("8"), in_specs=P(), out_specs=P())
    end, _ = jax.jit(mapped)(u, rounder().init(p), p)
    assert_same_bits(end, trained(rounder(), p, u, 1)[0])


def test_shards_without_partition_would_repeat_the_same_bits():
    p = {"w": jnp.ones((8, 512), jnp.bfloat16)}
    u = optax.tree.full_like(p, 2.0**-8, jnp.float32)
    for partition, repeats in ((None, True), (P("x"), False)):
        tx = rounder(partition)
        mapped = jax.shard_map(
            functools.partial(step, tx), mesh=mesh_of("8"), in_specs=(P("x"), P(), P("x")), out_specs=(P("x"), P())
        )
        rows = np.float32(jax.jit(mapped)(u, tx.init(p), p)[0]["w"])
        assert bool(np.all(rows == rows[:1])) is repeats
