"""`weight_norm`: which leaves it counts, in which precision. The penalties' laws are in `test_equivalences.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wd_optax as wd

PARAMS = {"kernel": jnp.array([[3.0, 4.0]]), "embed": {"embedding": jnp.full((2, 2), 6.0)}, "bias": jnp.array([9.0])}


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("weights", 13.0),  # √(3² + 4² + 4·6²)
        (None, 250**0.5),
        ([("kernel", "weights")], 5.0),
        ([("kernel", 0.1), ("embed", 0)], 5.0),  # a multiplier scales the decay, not the weight
        (lambda params: {"kernel": True, "embed": False, "bias": 2.0}, 106**0.5),
        ([(".*", 0)], 0.0),
    ],
)
def test_parameters_that_decay_count_fully(mask, expected):
    assert float(wd.weight_norm(PARAMS, mask)) == pytest.approx(expected, rel=1e-7)
    assert float(jax.jit(wd.weight_norm, static_argnames="mask")(PARAMS, mask=None)) == pytest.approx(250**0.5)


def test_multipliers_may_be_traced():
    norm = jax.jit(lambda m: wd.weight_norm(PARAMS, {"kernel": m, "embed": 0.0, "bias": 0.0}))
    assert [float(norm(m)) for m in (0.0, 0.5, 2.0)] == [0.0, 5.0, 5.0]


@pytest.mark.usefixtures("x64")
def test_it_is_float32_or_wider_and_real():
    for dtype, expected in ((jnp.bfloat16, "float32"), (jnp.float32, "float32"), (jnp.float64, "float64")):
        found = wd.weight_norm({"kernel": jnp.full((64, 64), 3.0, dtype)})
        assert (found.dtype, float(found)) == (expected, 192.0)
    assert float(wd.weight_norm({"kernel": jnp.array([[3 + 4j]], jnp.complex64)})) == 5.0


def test_it_has_a_gradient_everywhere():
    np.testing.assert_array_equal(jax.grad(wd.weight_norm)({"kernel": jnp.zeros((1, 2))})["kernel"], [[0, 0]])
    np.testing.assert_allclose(jax.grad(wd.weight_norm)(PARAMS, [("kernel", 1)])["kernel"], [[0.6, 0.8]], rtol=1e-6)
