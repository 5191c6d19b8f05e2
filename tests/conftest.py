"""Eight host devices; strict promotion of dtypes and ranks wherever Optax itself allows it."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    config.addinivalue_line("markers", "optax_promotes: runs Optax code that mixes int and float, such as b1 ** count")


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    with jax.numpy_dtype_promotion("standard" if request.node.get_closest_marker("optax_promotes") else "strict"):
        yield


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
