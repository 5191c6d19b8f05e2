"""Bytes that rules add to a step, as the TPU's own compiler makes it: `make test-tpu`."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import tpu_bytes

import wd_optax as wd

pytestmark = [pytest.mark.tpu, pytest.mark.optax_promotes]

# rule -> bytes per parameter beyond sgdw's 12 and adamw's 28
RULES = {
    "elastic": (wd.rules.elastic(0.3), 0, 0),
    "cautious, strict": (wd.rules.cautious(strict=True), 0, 0),
    "toward_average": (wd.rules.toward_average(0.9), 8, 8),  # the average is read and written
    "toward_norm": (wd.rules.toward_norm("init"), 4, 4),  # a norm reads p once more
    "group": (wd.rules.group(), 4, 4),
    "constrained": (wd.rules.constrained("warm", steps=3), 8, 12),  # p and g once more; p, m and v: it needs the step
}


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x4"])
@pytest.mark.parametrize("name", RULES)
def test_bytes_beyond_a_step_without_a_rule(topology, name):
    rule, sgdw, adamw = RULES[name]
    for make, least in ((wd.sgdw, 12 + sgdw), (wd.adamw, 28 + adamw)):
        tx = make(1e-3, weight_decay=0.1, rule=rule)
        found = tpu_bytes.compiled_for(topology, tpu_bytes.Case(tpu_bytes.F32, least, lambda tx=tx: tx))
        assert found.bytes == pytest.approx(least, abs=0.06)  # and a few scalars
        assert found.copies == 0
