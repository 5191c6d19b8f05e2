"""What the audit says of standard recipes, how it counts and prints, and what it accepts as arguments."""

import html.parser
import math
import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import wd_optax as wd
from wd_optax.choosing.published import shares_of_run

pytestmark = pytest.mark.slow

BLOCK = {
    "ln_1": {"scale": jnp.ones(8), "bias": jnp.ones(8)},
    "attn": {"kernel": jnp.ones((8, 24)), "bias": jnp.ones(24)},
    "mlp": {"kernel": jnp.ones((8, 32)), "bias": jnp.ones(32)},
}
GPT = {"wte": {"embedding": jnp.ones((16, 8))}, **{f"h_{i}": BLOCK for i in range(2)}}
P = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
ADAMW = wd.adamw(1e-3, weight_decay=0.1)
RECIPES = {  # peak learning rate, λ, steps, warm-up
    "nanoGPT 124M": (6e-4, 0.1, 600_000, 2000),
    "DeiT": (1e-3, 0.05, 375_000, 6250),
    "Llama-2": (3e-4, 0.1, 500_000, 2000),
    "ConvNeXt": (4e-3, 0.05, 94_000, 6250),
    "MAE": (2.4e-3, 0.05, 250_000, 12_500),
    "no warm-up": (1e-3, 0.1, 100_000, 0),
    "forty timescales": (1e-2, 0.1, 40_000, 100),
}


def cosine(peak, steps, warmup):
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, peak / 10)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_standard_recipe_gets_no_warning_and_passes_the_check(recipe):
    peak, weight_decay, steps, warmup = RECIPES[recipe]
    report = wd.audit(
        wd.adamw(cosine(peak, steps, warmup), weight_decay=weight_decay), GPT, horizon=steps, steps_per_epoch=steps / 30
    )
    assert [f.severity for f in report.findings] == ["information"]
    report.check(decays=["kernel", "embedding"], spares=["bias", "scale"])
    assert report.totals().startswith("5 of 13 leaves decay, ")
    line = report.timescale()
    number = r"[\d,.]+"
    place = "(shorter than in|within the range of|longer than in)" if warmup < 1000 else "within the range of"
    pattern = (
        f"EMA timescale: {number} steps = {number} % of the run = {number} epochs, "
        rf"{place} \d+ published runs \({number} % to {number} %, half of them {number} % to {number} %\)"
    )
    assert re.fullmatch(pattern, line)
    assert line in " ".join(str(report).split()).replace("    ", " ")


def test_the_timescale_is_that_of_the_run_and_is_placed_among_published_ones():
    shares = shares_of_run()
    for share, word in (
        (shares.smallest / 2, "shorter than in"),
        (shares.median, "within the range of"),
        (shares.largest * 2, "longer than in"),
    ):
        steps = 1000
        tx = wd.adamw(1e-3, weight_decay=1 / (1e-3 * share * steps))
        report = wd.audit(tx, P, horizon=steps)
        assert f", {word} {shares.runs} published runs (" in report.timescale()
        assert report.rows[1].timescale_steps == pytest.approx(share * steps, rel=1e-6)
        assert not report.findings
    two = {**P, "head": {"kernel": jnp.ones((4, 2))}}
    short = shares.smallest / 2
    tx = wd.adamw(1e-3, weight_decay=1 / short, mask=[("head", short / shares.median), ("kernel", 1.0)])
    assert ", partly outside the range of " in wd.audit(tx, two, horizon=1000).timescale()
    scale = wd.timescale(0.1, learning_rate=1e-3, steps=1000, steps_per_epoch=50)
    report = wd.audit(ADAMW, P, horizon=1000, steps_per_epoch=50)
    assert report.rows[1].timescale_steps == pytest.approx(scale.timescale_steps)
    assert "10,000 steps = 10 times the run = 200 epochs" in report.timescale()
    assert wd.audit(ADAMW, P).timescale() == "EMA timescale: 10,000 steps"
    assert wd.audit(optax.adam(1e-3), P).timescale() == ""


@pytest.mark.parametrize("c", [0.3, 0.49, 0.5, 0.9, 1.0, 1.5, 2.5])
def test_too_much_is_a_rate_near_one_and_the_finding_says_what_it_does(c):
    tx = optax.chain(optax.add_decayed_weights(c, {"kernel": True, "bias": False}), optax.sgd(1.0))
    report = wd.audit(tx, P, horizon=100, learning_rate=1.0)
    found = {f.rule: f for f in report.findings}
    assert ("too much" in found) == (c >= 0.5) == (report.rows[1].verdict == "too much")
    assert report.totals().startswith("1 of 2 leaves decay, 12 of 16 parameters")
    if c >= 0.5:
        says = {0.5: "only 0.5 of it", 0.9: "only 0.1 of it", 1.0: "all of it", 1.5: "flips its sign", 2.5: "grows"}
        assert says[c] in found["too much"].what
        assert found["too much"].severity == "error"


def test_totals_count_every_leaf_that_decays_whatever_else_is_wrong():
    twice = optax.chain(optax.add_decayed_weights(0.1), optax.adamw(1e-2))
    lamb, coupled = optax.lamb(1e-2, weight_decay=0.1), wd.adam_l2(1e-2, weight_decay=0.1)
    starts = {
        "2 of 2 leaves decay, 16 of 16 parameters (2 decays twice)": twice,
        "2 of 2 leaves decay, 16 of 16 parameters (2 normalised away)": lamb,
        "1 of 2 leaves decay, 12 of 16 parameters (1 no decay, 1 coupled: λ cancels)": coupled,
        "0 of 2 leaves decay, 0 of 16 parameters (2 growing)": optax.chain(
            optax.sgd(1e-2), optax.add_decayed_weights(0.1)
        ),
    }
    for totals, tx in starts.items():
        assert wd.audit(tx, P).totals() == totals
    low = {"kernel": jnp.ones((9, 9), jnp.bfloat16)}  # rounds back to where it was
    assert wd.audit(ADAMW, low).totals() == "0 of 1 leaves decay, 0 of 81 parameters (1 lost in rounding)"


def test_no_mask_is_missed_where_there_is_none():
    """A fix for a mask made the kernel decay twice."""
    adamw = optax.adamw(1e-2, weight_decay=0.1)
    tx = optax.partition({"matrices": adamw, "vectors": adamw}, {"kernel": "matrices", "bias": "vectors"})
    found = {f.rule: f for f in wd.audit(tx, P).findings}
    assert set(found) == {"bias decays"}
    assert "weight_decay=0.0 in every branch" in found["bias decays"].fix
    masked = optax.adamw(1e-2, weight_decay=0.1, mask=wd.optax_mask("weights"))
    both = {"a": dict(P), "b": dict(P)}
    split = optax.partition({"a": masked, "b": adamw}, {"a": "a", "b": "b"})
    assert {f.rule: f.paths for f in wd.audit(split, both).findings} == {"mask misses a branch": ("b/bias",)}


def test_optax_mask_is_a_mask_for_optax():
    """Optax takes the string "weights", and numbers, as true."""
    tree = {**P, "embed": {"embedding": jnp.ones((5, 3))}, "frozen": None}
    assert wd.optax_mask("weights")(tree) == {
        "kernel": True, "bias": False, "embed": {"embedding": True}, "frozen": None
    }  # fmt: skip
    for make in (optax.adamw, optax.lion, optax.lamb):
        report = wd.audit(make(1e-2, weight_decay=0.1, mask=wd.optax_mask("weights")), P)
        assert [row.verdict == "no decay" for row in report.rows] == [True, False]
    text = 'mask="weights", as a string'
    assert wd.audit(optax.adamw(1e-2, mask="weights"), P).rows[0].verdict == "decays", text
    with pytest.raises(ValueError, match=r"gives 'embed/embedding' the multiplier 0.1.*use wd.with_decay"):
        wd.optax_mask([("embed", 0.1), (".*", 1)])(tree)
    with pytest.raises(ValueError, match="matches no parameter"):
        wd.optax_mask([("kernal", 1)])(tree)


class Linear(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))


def test_what_frameworks_hold_is_unpacked():
    model, mlp = Linear(), eqx.nn.MLP(3, 4, 8, 1, key=jax.random.key(0))
    verdicts = lambda report: {row.path: row.verdict for row in report.rows}
    nnx_rows = {"dense/bias": "no decay", "dense/kernel": "decays", "norm/bias": "no decay", "norm/scale": "no decay"}
    assert verdicts(wd.audit(ADAMW, model)) == nnx_rows
    assert verdicts(wd.audit(nnx.Optimizer(model, ADAMW, wrt=nnx.Param), model)) == nnx_rows
    assert verdicts(wd.audit(nnx.Optimizer(model, ADAMW, wrt=nnx.Param), nnx.state(model, nnx.Param))) == nnx_rows
    assert verdicts(wd.audit(ADAMW, nnx.eval_shape(Linear))) == nnx_rows
    layers = verdicts(wd.audit(ADAMW, mlp))
    assert layers == {
        f"layers/{i}/{name}": verdict for i in (0, 1) for name, verdict in (("weight", "decays"), ("bias", "no decay"))
    }
    assert layers == verdicts(wd.audit(ADAMW, eqx.filter(mlp, eqx.is_array)))
    assert verdicts(wd.audit(ADAMW, eqx.nn.Sequential([mlp, eqx.nn.Dropout(0.5), eqx.nn.Lambda(jax.nn.relu)])))
    state = train_state.TrainState.create(apply_fn=lambda: None, params=P, tx=ADAMW)
    for args in ((ADAMW, state), (state, state), (state, P)):
        assert verdicts(wd.audit(*args)) == {"kernel": "decays", "bias": "no decay"}
    assert verdicts(wd.audit(ADAMW, {"w": 1.0, "b": np.zeros(())})) == {"w": "decays", "b": "no decay"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((P, ADAMW), r"wrong way round: wd\.audit\(optimizer, params\)"),
        ((jax.eval_shape(lambda: P), optax.sgd(0.1)), r"wrong way round: wd\.audit\(optimizer, params\)"),
        ((Linear, ADAMW), r"wrong way round"),
        ((ADAMW, ADAMW), r"params is an optimizer.*wd\.audit\(optimizer, params\)"),
        ((nnx.Optimizer, P), r"'Optimizer', a class: .*wd\.audit\(nnx\.Optimizer\(model, tx, wrt=nnx\.Param"),
        ((optax.adamw, P), r"'adamw', a function that makes one: call it.*wd\.audit\(optax\.adam\(1e-3\)"),
        ((ADAMW, None), r"params is None: wd\.audit\(optimizer, params\)"),
        ((0.1, P), r"optimizer is 'float', not an Optax transformation"),
        ((ADAMW, nn.Dense(3)), r"params is 'Dense', .*jax\.eval_shape\(model\.init, key, x\)\['params'\]"),
        ((ADAMW, Linear), r"params is 'Linear', a function or class: .*the model itself"),
        ((ADAMW, nn.Dense(3).init), r"a function or class: .*jax\.eval_shape\(model\.init, key, x\)"),
        ((ADAMW, {"a": {"b": "text"}}), r"params: \['a'\]\['b'\] is 'str'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named_with_the_line_that_works(args, says):
    with pytest.raises(TypeError, match=says):
        wd.audit(*args)


def test_the_lines_that_the_errors_name_work():
    names = {"wd": wd, "optax": optax, "nnx": nnx, "jax": jax, "model": Linear(), "tx": ADAMW, "params": P}
    names |= {"optimizer": ADAMW, "key": jax.random.key(0), "x": jnp.ones((1, 2))}
    for line in ("wd.audit(nnx.Optimizer(model, tx, wrt=nnx.Param), model)", "wd.audit(optax.adam(1e-3), params)"):
        assert eval(line, names).rows
    names["model"] = nn.Dense(3)
    assert wd.audit(ADAMW, eval("jax.eval_shape(model.init, key, x)['params']", names)).rows


@pytest.mark.parametrize("bad", [0, -1, math.inf, math.nan, "10"])
def test_epochs_need_a_length(bad):
    with pytest.raises(ValueError, match=r"steps_per_epoch=.* must be above 0"):
        wd.audit(ADAMW, P, steps_per_epoch=bad)


def test_whole_numbers_of_numpy_are_steps_and_bools_are_not():
    with pytest.raises(ValueError, match="horizon=True: pass a whole number of steps"):
        wd.audit(ADAMW, P, horizon=True)
    assert wd.audit(ADAMW, P, horizon=np.int64(10)) == wd.audit(ADAMW, P, horizon=10)


class Cells(html.parser.HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_a_report_is_a_table_in_notebooks_with_everything_escaped():
    tree = {"<script>alert(1)</script>": {"kernel": jnp.ones((3, 4)), "bias & more": jnp.ones(4)}}
    report = wd.audit(optax.chain(optax.adam(1e-2), optax.add_decayed_weights(0.1)), tree)
    page = Cells(report._repr_html_())
    assert "script" not in page.tags
    assert {"table", "th", "td", "li", "code"} <= {*page.tags}
    text = " ".join(page.text)
    names = ("<script>alert(1)</script>/kernel", "bias & more")
    for words in (*names, "growing", report.findings[0].fix, report.totals()):
        assert words in text
    assert page.tags.count("tr") == 3


@pytest.mark.optax_promotes
def test_a_timescale_is_a_table_in_notebooks():
    scale = wd.timescale(0.1, learning_rate=cosine(1e-3, 1000, 100), steps=1000, steps_per_epoch=10)
    page = Cells(scale._repr_html_())
    assert page.tags.count("tr") == len(str(scale).splitlines()) == 4
    for line, name, value in zip(str(scale).splitlines(), page.text[::2], page.text[1::2], strict=True):
        assert line.split("  ")[0] == name
        assert line.endswith(value)
