"""The example that measures exponents: what its rules claim, its muP networks, and a short run."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from example_loading import load

pytestmark = [pytest.mark.slow, pytest.mark.optax_promotes]  # Optax's cosine and Adam


@pytest.fixture(scope="module")
def example() -> Any:
    return load("transfer")


def test_the_claims_are_the_papers_exponents(example: Any) -> None:
    with jax.numpy_dtype_promotion("standard"):
        found = {name: example.claims(name, epochs=60) for name in example.TASKS}
    # the smallest datasets lose an incomplete batch, and schedules of other lengths another last step
    assert found["width"]["mup_angle"] == pytest.approx(1.0)
    assert found["width"]["mup_sqrt_width"] == pytest.approx(0.5)
    assert found["examples"]["timescale_epochs"] == pytest.approx(-1.0, abs=0.03)
    assert found["examples"]["normalised"] == pytest.approx(-0.5, abs=0.03)
    assert found["examples"]["angle"] == pytest.approx(0.0)
    assert found["batch"]["timescale_run"] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("model", ["mlp", pytest.param("transformer", marks=pytest.mark.exhaustive)])
def test_the_first_step_changes_logits_alike_at_every_width(example: Any, model: str) -> None:
    init, logits = getattr(example, model), getattr(example, f"{model}_logits")
    x = jax.random.normal(jax.random.key(0), (8, 64))
    if model == "transformer":
        x = jax.random.randint(jax.random.key(0), (2, example.LENGTH), 0, example.CHARACTERS)

    def change(width: int) -> jax.Array:
        params = init(jax.random.key(1), width)
        tx = example.optimizer(width, 0.0, 100, params)
        score = lambda p: logits(p, x)[..., 0].mean()
        updates, _ = tx.update(jax.grad(score)(params), tx.init(params), params)
        return score(jax.tree.map(jnp.add, params, updates)) - score(params)

    narrow, wide = (float(jax.jit(change, static_argnums=0)(width)) for width in (64, 256))
    assert 0.5 < wide / narrow < 2  # it would be 4 without the multiplier; means over 64 and over 256 random units


def test_a_short_run_prints_measured_and_claimed(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(example.TASKS, "width", example.TASKS["width"]._replace(values=(16, 32)))
    results = example.run(task=["width"], points=5, seeds=2, epochs=2)
    printed, found = example.report(results), results["optima"]["width"]
    assert [point.at for point in found.points] == [16, 32]
    assert re.search(r"^width +best weight_decay +95 % interval +diverged", printed, re.M)
    assert re.search(r"^mup_sqrt_width +\+0.50 +(yes|no|-)$", printed, re.M)
    law = re.search(r"rules inside their intervals: width (no law|([+-][\d.]+) \((.+)\))\.$", printed)
    yes = re.findall(r"^(\w+) +[+-][\d.]+ +yes$", printed, re.M)
    assert (law[3] or "none") == (", ".join(yes) or "none")
