"""The bits behind stochastic rounding: the published hash, bit for bit, and statistics that would see it misused.

Seeds are fixed, so the tests can't flicker; "false alarm" is the chance that ideal bits would have failed.
"""

import functools
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import wd_optax as wd
from wd_optax.precision import random_bits

N = 2**16
WORDS = np.random.default_rng(0).integers(0, 2**32, (64, 4), dtype=np.uint32)
STREAMS = [tuple(map(int, words)) for words in WORDS[:, :2]]
FIELDS = ("position", "seed", "low", "high", "step")  # low, high: the words that name a leaf


def pcg3d(x, y, z):
    """Jarzynski & Olano 2020, listing of pcg3d, on Python's unbounded integers in uint64 arrays."""
    low = np.uint64(2**32 - 1)
    multiply = lambda a, b: (a * b) & low  # below 2⁶⁴: both factors are below 2³²
    v = [(multiply(np.uint64(w), np.uint64(1664525)) + np.uint64(1013904223)) & low for w in (x, y, z)]
    for mix in (True, False):
        v[0] = (v[0] + multiply(v[1], v[2])) & low
        v[1] = (v[1] + multiply(v[2], v[0])) & low
        v[2] = (v[2] + multiply(v[0], v[1])) & low
        if mix:
            v = [w ^ (w >> np.uint64(16)) for w in v]
    return v


def reference(position, seed, low, high, step):
    """The bits of entries of leaves, from the references here: every argument an array of words."""
    x, y, z = pcg3d(seed, low, step)
    return triple32(position, pcg3d(x, y ^ np.uint64(high), z)[1:])


def triple32(x, key):
    """Wellons 2018, hash-prospector's listing of triple32, with a word of the key added before its last two rounds."""
    low, x = np.uint64(2**32 - 1), np.uint64(x)
    rounds = zip((np.uint64(0), *key), (17, 11, 15), (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB), strict=True)
    for word, shift, factor in rounds:
        x = (x + word) & low
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & low
    return x ^ (x >> np.uint64(14))


@jax.jit
def at(position, seed, low, high, step):
    """The library's bits at any position: an entry of a leaf of rank one, through the offsets of a shard."""
    draw = lambda p, *words: random_bits.bits((1,), random_bits.leaf_key(*words), offsets=((1,), (p,)))
    return jax.vmap(draw)(position, seed, low, high, step)[:, 0]


@functools.partial(jax.jit, static_argnames="shape")
def compiled(seed, low, high, step, shape):
    return random_bits.bits(shape, random_bits.leaf_key(seed, low, high, step))


def leaf(seed=0, stream=(0x5EED1EAF, 0), step=0, shape=(N,)):
    return np.asarray(compiled(np.uint32(seed), *map(np.uint32, stream), np.int32(step), shape))


def uniform(bits):
    """The 16 bits that bfloat16 uses, as numbers in (−½, ½)."""
    return ((bits >> np.uint32(16)).astype(float) + 0.5) / 2**16 - 0.5


def score(a, b):
    """The correlation of two samples in standard deviations."""
    return 12 * np.mean(uniform(a) * uniform(b)) * np.sqrt(len(a))


def test_the_hash_is_the_published_one():
    words = np.concatenate([WORDS[:, :3], [[0, 0, 0], [2**32 - 1] * 3, [0, 2**32 - 1, 1], [1, 0, 2**31]]]).astype(
        np.uint32
    )
    ours = random_bits.pcg3d(*map(jnp.asarray, words.T))
    chex.assert_trees_all_equal([np.uint64(x) for x in ours], pcg3d(*words.T))


def test_bits_are_a_function_of_seed_stream_step_and_position():
    position = np.arange(4 * len(WORDS), dtype=np.uint32) * np.uint32(16769023)  # far into leaves of 2³² entries
    seed, low, high, step = np.tile(WORDS, (4, 1)).T
    step = step >> np.uint32(1)  # an int32
    ours = at(*map(jnp.asarray, (position, seed, low, high, step.astype(np.int32))))
    np.testing.assert_array_equal(np.uint64(ours), reference(position, seed, low, high, step))


@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (2, 3, 4), (3, 1, 2, 2), (0, 3)])
def test_positions_count_row_major(shape):
    size = int(np.prod(shape))
    np.testing.assert_array_equal(leaf(shape=shape).ravel(), leaf(shape=(size,)))
    assert len(np.unique(leaf(shape=(size,)))) == size


@pytest.mark.parametrize(("whole", "axis", "parts"), [((8, 6), 0, 4), ((8, 6), 1, 3), ((2, 4, 6), 1, 2), ((12,), 0, 3)])
def test_a_shard_has_the_bits_of_its_place_in_the_whole_leaf(whole, axis, parts):
    shard = tuple(n // parts if i == axis else n for i, n in enumerate(whole))
    found = []
    for part in range(parts):
        starts = tuple(part * shard[axis] if i == axis else 0 for i in range(len(whole)))
        found.append(random_bits.bits(shard, random_bits.leaf_key(*map(jnp.uint32, (3, 7, 8, 5))), (whole, starts)))
    np.testing.assert_array_equal(np.concatenate(found, axis), leaf(3, (7, 8), 5, whole))


def test_bits_are_equidistributed():
    """χ² over every byte and over 2¹⁰ buckets of the upper 16 bits; 5 × 40 tests at 10⁻⁷: false alarm 2·10⁻⁵."""
    p_values = []
    for i in range(40):
        bits = leaf(i % 4, random_bits.stream_of(f"layers/{i}/kernel"), i // 4)
        for shift, buckets in [(0, 256), (8, 256), (16, 256), (24, 256), (22, 1024)]:
            counts = np.bincount((bits >> np.uint32(shift)) % np.uint32(buckets), minlength=buckets)
            p_values.append(stats.chisquare(counts).pvalue)
    assert min(p_values) > 1e-7
    # and not too even either: the p-values themselves are uniform (false alarm 10⁻⁴)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


LAGS = {  # of a number i and a distance 2ᵏ: the arguments of one leaf, and of another
    "position": lambda i, lag: ({"step": i}, {"step": i}),
    "seed": lambda i, lag: ({"seed": i}, {"seed": i ^ lag}),
    "low": lambda i, lag: ({"seed": 1, "stream": (10**8 * i, 5)}, {"seed": 1, "stream": ((10**8 * i) ^ lag, 5)}),
    "high": lambda i, lag: ({"seed": 1, "stream": (5, 10**8 * i)}, {"seed": 1, "stream": (5, (10**8 * i) ^ lag)}),
    "step": lambda i, lag: ({"step": i}, {"step": i + lag}),
}


@pytest.mark.parametrize(
    ("field", "k"),
    [("position", k) for k in (0, 1, 2, 4, 8, 12, 15)]
    + [(field, k) for field in ("seed", "low", "high") for k in (0, 1, 8, 16, 24, 28, 30, 31)]
    + [("step", k) for k in (0, 1, 8, 16, 24, 28, 30)],
)
def test_neighbours_are_uncorrelated(field, k):
    """Entries, keys, leaves and steps 2ᵏ apart; 38 × 8 normal scores, |z| < 6: false alarm 6·10⁻⁷."""
    shift = 2**k if field == "position" else 0
    for i in range(8):
        one, other = (leaf(**arguments) for arguments in LAGS[field](i, 2**k))
        assert abs(score(one[: N - shift], other[shift:])) < 6


def test_both_halves_of_a_word_are_random():
    """Two fields of a state share a word: the lower halves of two leaves and both halves of one, 16 scores, 6σ."""
    for i in range(8):
        one, other = leaf(step=i), leaf(step=i + 1)
        low = one << np.uint32(16)
        assert max(abs(score(low, one)), abs(score(low, other << np.uint32(16)))) < 6


def test_keys_of_many_leaves_at_once_are_the_hashes_of_each():
    streams = STREAMS[:8]
    keys = random_bits.leaf_keys([*streams, streams[3]], seed=jnp.uint32(2**32 - 3), step=jnp.int32(11))
    assert list(keys) == streams
    low, high = np.uint64(streams).T
    x, y, z = pcg3d(np.full(8, 2**32 - 3), low, np.full(8, 11))
    np.testing.assert_array_equal(np.uint64(list(keys.values())).T, pcg3d(x, y ^ high, z)[1:])
    assert random_bits.leaf_keys([], seed=jnp.uint32(0), step=jnp.int32(0)) == {}


def test_keys_of_more_leaves_are_no_more_hashes():
    """Scalars leaf by leaf were small programs of their own on TPUs and GPUs."""
    draw = lambda n: jax.make_jaxpr(
        lambda seed, step: [*random_bits.leaf_keys(STREAMS[:n], seed=seed, step=step).values()]
    )
    multiplied = [str(draw(n)(jnp.uint32(1), jnp.int32(2))).count(" = mul ") for n in (4, 64)]
    assert multiplied[0] == multiplied[1] > 0


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    ("rounding", "nu", "names"),
    [
        ("stochastic", jnp.bfloat16, ["", "0 bfloat16"]),  # both moments share a word
        ("compensated", jnp.bfloat16, ["0 bfloat16", "residual of "]),
        ("compensated", jnp.float8_e5m2, ["0 bfloat16", "1 nu", "residual of "]),  # takes 24 bits
    ],
)
def test_every_hash_of_a_step_has_a_stream_of_its_own(monkeypatch, rounding, nu, names):
    """Of two leaves: moments, weights and residuals, whose wrappers have the same seed and step."""
    known, drawn, bits = {}, [], random_bits.bits
    stream_of = random_bits.stream_of
    monkeypatch.setattr(random_bits, "stream_of", lambda name: known.setdefault(name, stream_of(name)))
    monkeypatch.setattr(random_bits, "bits", lambda *args: drawn.append(args) or bits(*args))
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    tx = wd.adamw(1e-3, weight_decay=0.1, rounding=rounding, mask=None, mu_dtype=jnp.bfloat16, nu_dtype=nu)
    state = jax.eval_shape(tx.init, params)
    assert not drawn  # an initial state is rounded to the nearest value
    jax.eval_shape(tx.update, params, state, params)
    assert sorted({name.rstrip("[]'ab") for name in known}) == sorted(names)
    assert len(set(known.values())) == len(known) == len(drawn) == 2 * len(names)


@pytest.mark.optax_promotes
def test_two_moments_flip_coins_of_their_own():
    """They share a word: both means are exact, and what was rounded up is uncorrelated; 3 scores, |z| < 6."""
    tx = wd.precision.low_precision_state(optax.scale_by_adam(b1=0.0, b2=0.0), mu=jnp.bfloat16, nu=jnp.bfloat16)
    params, gradient = {"w": jnp.zeros(N)}, np.float32(1 + 3 * 2.0**-9)  # three quarters on the way to 1 + 2⁻⁷
    _, state = jax.jit(tx.update)({"w": jnp.full(N, gradient)}, tx.init(params), params)
    moments = [np.float64(moment["w"]) for moment in (state.inner.mu, state.inner.nu)]
    for moment, exact in zip(moments, (gradient, gradient**2), strict=True):
        assert len(set(moment)) == 2
        assert abs(moment.mean() - exact) < 6 * moment.std() / np.sqrt(N)
    assert abs(np.corrcoef(*moments)[0, 1]) * np.sqrt(N) < 6


def test_residuals_draw_anew_for_each_step_and_key():
    """What is left over is half a unit of the residual, so a coin decides: |z| < 6, false alarm 2·10⁻⁹ each."""
    p, u = jnp.ones(N, jnp.bfloat16), jnp.full(N, 2.0**-10 * (1 + 2.0**-8), jnp.float32)

    def coins(key, step):
        tx = wd.precision.round_updates("compensated", key=key)
        residual = tx.update(u, tx.init(p)._replace(step=jnp.int32(step)), p)[1].residual
        return np.float64(residual) / 2.0**-10 > 1

    first = coins(0, 0)
    for coin in (first, first ^ coins(0, 1), first ^ coins(1, 0)):
        assert abs(coin.mean() - 0.5) * 2 * np.sqrt(N) < 6


@pytest.mark.parametrize("k", range(17, 32))
def test_far_entries_of_a_huge_leaf_are_uncorrelated(k):
    """Entries 2ᵏ apart, 15 × 8 scores, |z| < 6: false alarm 2·10⁻⁷."""
    for i in range(8):
        words = [jnp.full(N, w) for w in (jnp.uint32(i), *map(jnp.uint32, WORDS[i, :2]), jnp.int32(i))]
        position = jnp.arange(N, dtype=jnp.uint32)
        assert abs(score(*(np.asarray(at(p, *words)) for p in (position, position + jnp.uint32(2**k))))) < 6


def test_one_entry_over_the_steps_is_white():
    """Mean and correlation at lags 1, 2, 4 over 4096 steps, for 4096 entries: 16384 scores, |z| < 6.5: 1.3·10⁻⁶."""
    steps = jnp.arange(4096, dtype=jnp.int32)
    draw = lambda step: random_bits.bits(
        (4096,), random_bits.leaf_key(jnp.uint32(0), jnp.uint32(99), jnp.uint32(0), step)
    )
    series = uniform(np.asarray(jax.jit(jax.vmap(draw))(steps)))
    assert np.abs(series.mean(0)).max() * np.sqrt(12 * 4096) < 6.5
    for lag in (1, 2, 4):
        assert np.abs((series[lag:] * series[:-lag]).mean(0)).max() * 12 * np.sqrt(4096 - lag) < 6.5


@pytest.mark.parametrize("field", FIELDS)
def test_one_flipped_bit_of_the_input_flips_half_of_the_output(field):
    """Avalanche into the 16 bits that bfloat16 uses, over 2¹² inputs.

    Each output bit flips with ½ ± 0.04 (5σ, 28 × 16 × 5 of them: false alarm 1.3·10⁻³ on ideal bits), up to
    input bit 27; above, positions and steps don't come, and seeds and leaves are tested by correlation.
    """
    rng = np.random.default_rng(1)
    words = dict(zip(FIELDS, rng.integers(0, 2**31, (len(FIELDS), 2**12), dtype=np.uint32), strict=True))
    words_of = lambda w: (jnp.asarray(w[f].astype(np.int32) if f == "step" else w[f]) for f in FIELDS)
    draw = lambda w: np.asarray(at(*words_of(w)))
    base = draw(words)
    for k in range(28):
        changed = base ^ draw(words | {field: words[field] ^ np.uint32(2**k)})
        rates = [np.mean(changed >> np.uint32(bit) & np.uint32(1)) for bit in range(16, 32)]
        assert max(abs(rate - 0.5) for rate in rates) < 0.04, f"bit {k}: {rates}"


def test_structured_words_do_not_break_it():
    """pcg3d alone is weak where its second and third word are both multiples of 2²² after its first line.

    Leaves and steps chosen to that end correlate by more than 0.2, with the position as first word; ours by nothing.
    """
    words = [(a << 22) - 1013904223 for a in (3, 5)]
    stream, step = (w * pow(1664525, -1, 2**32) % 2**32 for w in words)
    position = np.arange(N, dtype=np.uint32)
    plain = pcg3d(position, np.full(N, stream), np.full(N, step))[0].astype(np.uint32)
    assert max(abs(score(plain[:-lag], plain[lag:])) for lag in (4096, 16384, 32768)) / np.sqrt(N) > 0.2
    ours = leaf(0, (stream, 0), np.uint32(step).view(np.int32))
    assert max(abs(score(ours[:-lag], ours[lag:])) for lag in (1, 64, 4096, 16384, 32768)) < 6


def test_seeds():
    assert int(random_bits.seed(7)) == 7
    assert random_bits.seed(7).dtype == jnp.uint32
    assert random_bits.seed(jnp.int32(7)) == 7
    keys = [int(random_bits.seed(jax.random.key(i))) for i in range(64)]
    assert len(set(keys)) == 64
    swept = jax.vmap(random_bits.seed)(jax.random.split(jax.random.key(0), 3))
    chex.assert_shape(swept, (3,))


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_a_legacy_key_is_the_key_it_holds(implementation):
    with jax.default_prng_impl(implementation):
        for key in (jax.random.PRNGKey(3), np.asarray(jax.random.PRNGKey(3))):
            chex.assert_trees_all_equal(random_bits.seed(key), random_bits.seed(jax.random.key(3)))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (0.5, "key is 0.5: pass an int in"),
        (-1, "key is -1: pass an int in"),
        (2**32, "key is 4294967296: pass an int in"),
        (True, "key is True"),
        ("seed", "key is 'seed'"),
        (None, "key is None"),
        (np.zeros(3, np.uint32), r"an array of type uint32 and shape \(3,\)"),
        (jnp.zeros(2), r"an array of type float32 and shape \(2,\)"),
        (jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)), r"shape \(2,\): .*one key"),
    ],
)
def test_what_is_no_key(key, says):
    with pytest.raises(ValueError, match=says):
        random_bits.seed(key)


def test_words_that_crc_32_takes_for_one_another():
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    one, other = (random_bits.stream_of(name) for name in ("plumless", "buckeroo"))
    assert one[0] != other[0]
    assert one[1] != other[1]
    assert abs(score(leaf(stream=one), leaf(stream=other))) < 6


def test_names_of_many_leaves_are_distinct():
    names = [f"layers/{i}/{block}/{leaf}" for i in range(200) for block in "abcde" for leaf in ("kernel", "bias", "0")]
    assert len({random_bits.stream_of(name) for name in names}) == len(names)
