"""A search trains what Optuna asks for as `train` alone does, tells it the truth, and shares a study among workers."""

import contextlib
import fcntl
import json
import os
import sys
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from test_sweep import elementwise

import wd_optax as wd
from wd_optax.choosing.searching import space as spaces
from wd_optax.choosing.searching.journal import JournalFile
from wd_optax.choosing.searching.workers import BEAT, GONE, OWNER, RESULT, Worker
from wd_optax.choosing.sweeping import trace
from wd_optax.choosing.sweeping.execute import Executor

Float, Int = optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution
Categorical = optuna.distributions.CategoricalDistribution
State = optuna.trial.TrialState
RATES = {"learning_rate": Float(0.01, 1.0, log=True), "weight_decay": Float(0.0, 0.1)}
X = {"x": Float(-1.0, 1.0)}
WORST = {"min": np.inf, "max": -np.inf}

optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(train, space, **options):
    options = {"metric": "loss", "mode": "min", "seeds": 1, "progress": False, "devices": jax.devices()[:1]} | options
    options.setdefault("sampler", optuna.samplers.RandomSampler(seed=0))
    return wd.search(train, space, **options)


def square(hparams, key):
    return {"loss": hparams["x"] ** 2 + 0 * jax.random.uniform(key)}


def init(hparams, key):
    return {"w": jax.random.normal(key), "key": key, "t": jnp.int32(0)}


def step(hparams, state):
    key, noise = jax.random.split(state["key"])
    w = state["w"] - hparams["x"] * (state["w"] - 1) + 0.01 * jax.random.normal(noise)
    return {"w": w, "key": key, "t": state["t"] + 1}, {"loss": (w - 1) ** 2, "t": state["t"] + 1}


@pytest.mark.quick_compile(False)
def test_each_trial_equals_train_alone_bit_for_bit(compiled):
    train = lambda h, key: (out := elementwise(h, key)) | {"loss": out["curve"][-1]}
    data = search(train, RATES, trials=11, batch=4, seeds=[3, 5], devices=jax.devices()[:2]).data
    assert dict(data.sizes) == {"trial": 11, "seed": 2, "curve_0": 30}
    alone = jax.jit(train)
    for i in range(11):
        hparams = {name: jnp.float32(data[name].values[i]) for name in RATES}
        for k, seed in enumerate((3, 5)):
            expected = alone(hparams, jax.random.key(seed, impl="threefry2x32"))
            for name, array in expected.items():
                np.testing.assert_array_equal(data[name].values[i, k], array)
    assert (data["start"] == data["start"][0]).all()  # seeds are paired
    assert len(compiled) == 1  # for three batches, the last of which is smaller
    np.testing.assert_array_equal(data["value"], data["loss"].astype(float).mean("seed"))


def test_numbers_are_traced_and_categories_are_static():
    seen = []

    def train(hparams, key):
        seen.append({name: getattr(x, "dtype", x) for name, x in hparams.items()})
        return {"loss": hparams["x"] * hparams["n"].astype(float) * (2 if hparams["kind"] == "b" else hparams["size"])}

    space = X | {"n": Int(1, 9), "kind": Categorical(["a", "b"]), "size": Categorical([1, 32])}
    data = search(train, space, trials=40, batch=20).data
    types = {"x": jnp.float32, "n": jnp.int32}
    combinations = [types | {"kind": kind, "size": size} for kind in "ab" for size in (1, 32)]
    assert all(seen.count(combination) == 1 for combination in combinations)
    factor = np.where(data["kind"] == "b", 2, data["size"])
    np.testing.assert_allclose(data["loss"][:, 0], data["x"] * data["n"] * factor, rtol=1e-6)  # x in float32


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_diverged_trial_is_told_as_the_worst_and_never_wins(mode):
    def train(hparams, key):
        return {"loss": jnp.where(hparams["x"] > 0, jnp.nan, hparams["x"]), "count": 3}

    result = search(train, X, trials=20, batch=10, mode=mode, seeds=2)
    diverged = result.data["x"].values > 0
    assert 3 < diverged.sum() < 17
    np.testing.assert_array_equal(result.data["diverged"].values, np.stack([diverged] * 2, axis=1))
    assert [t.state for t in result.study.trials] == [State.COMPLETE] * 20  # samplers ignore what failed
    assert [t.value == WORST[mode] for t in result.study.trials] == diverged.tolist()
    assert np.isnan(result.data["count"].values[diverged]).all()
    best = result.best
    expected = result.data["x"].values[~diverged]
    assert best.hyperparams == {"x": expected.min() if mode == "min" else expected.max()}
    assert best.hyperparams == result.study.best_params
    assert (best.mean, best.standard_error, best.diverged) == (result.study.best_value, 0, 2 * diverged.sum())


def test_the_samplers_learn_to_stay_away_from_divergence():
    """Diverging at the better side of a cliff: of 64 later trials a random sampler loses 3/4."""
    space = {"x": Float(-1.0, 1.0), "y": Float(-1.0, 1.0)}
    train = lambda h, key: {"loss": jnp.where((h["x"] > 0) | (h["y"] > 0), jnp.inf, -h["x"] - h["y"])}
    samplers = [optuna.samplers.TPESampler(seed=0), optuna.samplers.CmaEsSampler(seed=0, popsize=16)]
    for sampler in samplers:
        data = search(train, space, trials=112, batch=16, sampler=sampler).data
        assert data["diverged"].values[48:].mean() < 0.5, sampler
        assert data["diverged"].values.any()


def test_all_diverged_has_no_best():
    result = search(lambda h, key: {"loss": h["x"] * jnp.nan}, X, trials=2)
    with pytest.raises(ValueError, match="'loss': every trial has a diverged run"):
        _ = result.best


def test_best_lists_what_it_cannot_be_distinguished_from():
    train = lambda h, key: {"loss": jnp.round(h["x"] * 4) + jax.random.normal(key) * 10}
    best = search(train, X, trials=8, seeds=4).best
    assert best.standard_error > 1
    assert len(best.neighbours) >= 5
    assert all(p.mean >= best.mean for p in best.neighbours)
    assert str(best).splitlines()[0].split() == ["x", "mean", "±", "standard", "error"]


# --- one study, again and together -----------------------------------------------------------------------------------


def test_the_same_call_resumes_and_more_trials_go_on(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "folder"
    train = lambda h, key: square(h, key) | {"curve": jnp.array([1.0, jnp.nan]) * h["x"], "n": jnp.arange(2)}
    first = search(train, X, trials=5, batch=3, directory=folder).data
    monkeypatch.setattr(Executor, "launch", None)
    assert search(train, X, trials=5, directory=folder).data.identical(first)
    monkeypatch.undo()
    more = search(train, X, trials=7, directory=folder).data
    assert more.isel(trial=slice(5)).identical(first)
    assert more.sizes["trial"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"x": Float(-2.0, 1.0)}}, r"space.x: FloatDistribution\(high=1.0.*low=-1.0.* there, .*low=-2.0"),
        ({"train": lambda h, key: {"loss": h["x"] ** 4}}, "train: "),
        ({"seeds": 2}, r"seeds: \[0\] there, \[0, 1\] here"),
        ({"metric": "other", "train": lambda h, key: square(h, key) | {"other": h["x"]}}, "objective and rungs"),
    ],
)
def test_another_search_is_refused_by_name(change, message, tmp_path):
    call = {"train": square, "space": X, "trials": 2, "directory": tmp_path}
    run = lambda call: search(call.pop("train"), call.pop("space"), **call)
    before = run(dict(call)).data
    with pytest.raises(ValueError, match="belongs to another search") as error:
        run(call | change)
    assert error.match(message)
    assert run(dict(call)).data.identical(before)


def test_a_study_with_enqueued_and_foreign_trials():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    study.add_trial(optuna.create_trial(params={"x": 0.5}, distributions=X, value=7.0))  # nobody's: not counted
    study.enqueue_trial({"x": 0.25})
    result = search(square, X, trials=3, study=study, mode="max", sampler=None)
    assert result.study is study
    assert result.data["trial"].values.tolist() == [1, 2, 3]
    assert result.data["x"].values[0] == 0.25
    assert len(study.trials) == 4


@pytest.fixture(params=["memory", "journal", "sqlite", "sqlite with heartbeats"])
def study(request, tmp_path):
    storage = None
    if request.param == "journal":
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "log"))
        storage = optuna.storages.JournalStorage(backend)
    elif "sqlite" in request.param:
        beats = {"heartbeat_interval": 60} if "heart" in request.param else {}
        with pytest.warns(optuna.exceptions.ExperimentalWarning) if beats else contextlib.nullcontext():
            storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/db", **beats)
    yield optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    if "sqlite" in request.param:
        storage.engine.dispose()


def half_made(study, owner, params):
    """A trial that its worker left running."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # Optuna's own
        trial = study.ask()
    if owner:
        trial.set_user_attr(OWNER, owner)
    for name in params:
        trial.suggest_float(name, X[name].low, X[name].high)
    return trial.number


def test_trials_of_dead_workers_are_trained_by_the_others(study):
    """One that said goodbye, one of another machine whose heart doesn't beat, one killed before it wrote anything."""
    study.set_user_attr(BEAT + "gone 1 a", GONE)
    study.set_user_attr(BEAT + "far 2 b", 17)
    left = [half_made(study, owner, params) for owner, params in [("gone 1 a", "x"), ("far 2 b", "x"), (None, "")]]
    data = search(square, X, trials=6, batch=2, patience=0.2, study=study, sampler=None).data
    assert data["trial"].values.tolist() == list(range(6))
    np.testing.assert_allclose(data["loss"][:, 0], data["x"] ** 2, rtol=1e-6)  # float32
    trials = study.get_trials(deepcopy=False)
    assert {trial.state for trial in trials} == {State.COMPLETE}
    me = trials[-1].user_attrs[OWNER]
    assert [trials[number].user_attrs[OWNER] for number in left] == [me] * 3
    assert study.user_attrs[BEAT + me] == GONE


def test_a_beating_worker_keeps_its_trials_and_a_dead_process_does_not(monkeypatch):
    study = optuna.create_study()
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    worker = Worker(study, X, total=10, patience=10.0)
    number = half_made(study, "far 2 b", "x")
    orphans = lambda: [trial.number for trial in worker._orphans(worker._trials())]
    for beat in range(4):
        study.set_user_attr(BEAT + "far 2 b", beat)
        assert orphans() == []
        clock[0] += 9.0
    assert orphans() == []
    clock[0] += 2.0
    assert orphans() == [number]
    study.set_user_attr(BEAT + "far 2 b", 5)  # it was only slow
    assert orphans() == []
    host = worker.name.rsplit(" ", 2)[0]
    dead = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
    mine = [half_made(study, f"{host} {pid} c", "x") for pid in (os.getpid(), dead)]
    os.waitpid(dead, 0)
    assert orphans() == mine[1:]  # at once


def test_workers_that_ask_for_the_last_trials_at_once_give_back_the_surplus():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    first, second = (Worker(study, X, total=5, patience=60.0) for _ in range(2))
    asked = [first._ask(), second._ask(), first._ask(), second._ask(), first._ask(), second._ask(), second._ask()]
    mine = [first._without_surplus([asked[i] for i in (0, 2, 4)])]
    mine.append(second._without_surplus([asked[i] for i in (1, 3, 5, 6)]))
    assert [[trial.number for trial in trials] for trials in mine] == [[0, 2, 4], [1, 3]]
    assert [trial.state for trial in study.trials[5:]] == [State.FAIL] * 2
    for worker, trials in zip((first, second), mine, strict=True):
        for trial in trials:
            worker.tell(trial, 1.0, {"metrics": {}, "diverged": [False], "steps": None})
    assert first.claim(3) == second.claim(3) == []


def test_a_result_is_told_once(study):
    """Two workers trained the same trial; the second is too late, also with a value before the end."""
    workers = [Worker(study, X, total=1, patience=60.0) for _ in range(2)]
    trial = workers[0]._ask()
    again = workers[1]._adopt(study.get_trials(deepcopy=False)[0])
    workers[1].tell(again, 1.0, {"metrics": {"loss": [1.0]}})
    workers[0].report(trial, 3.0, 1)
    workers[0].tell(trial, 2.0, {"metrics": {"loss": [2.0]}})
    (told,) = study.trials
    assert (told.value, told.user_attrs[RESULT]) == (1.0, {"metrics": {"loss": [1.0]}})
    assert told.intermediate_values == {}


def test_an_error_says_goodbye_and_loses_nothing(monkeypatch, tmp_path):
    real, calls = Executor.launch, iter(range(1))

    def launch(*args):
        if next(calls, None) is None:
            raise KeyError("mine")
        return real(*args)

    monkeypatch.setattr(Executor, "launch", launch)
    call = lambda: search(square, X, trials=6, batch=3, directory=tmp_path)
    with pytest.raises(KeyError, match="mine"):
        call()
    monkeypatch.undo()
    data = call().data  # without waiting for a heartbeat
    assert data["trial"].values.tolist() == list(range(6))


@pytest.mark.parametrize("size", [5, 200_000])
def test_half_a_line_of_a_killed_writer_is_removed(size, tmp_path):
    curve = lambda h, key: {"loss": h["x"], "curve": jnp.zeros(size // 4)}
    first = search(curve, X, trials=2, directory=tmp_path).data
    with (tmp_path / "study.log").open("ab") as file:
        file.write(b'{"op_code":7' + b"." * size)
    assert search(curve, X, trials=2, directory=tmp_path).data.identical(first)
    more = search(curve, X, trials=3, directory=tmp_path).data
    assert more.isel(trial=slice(2)).identical(first)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))  # Optuna's own can read it
    (name,) = optuna.get_all_study_names(optuna.storages.JournalStorage(backend))
    assert name == "wd_optax"


def test_a_journal_is_not_read_while_half_a_line_is_replaced(tmp_path):
    """Half of what a killed worker left, with half of what another writes in its place, is no damage."""
    journal = JournalFile(tmp_path / "log")
    journal.append_logs([{"i": 0}])
    found = []
    reader = threading.Thread(target=lambda: found.extend(journal.read_logs(0)))
    with journal.path.open("r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        file.write(b'{"i":1,"x":')
        reader.start()
        reader.join(0.1)
        assert reader.is_alive()  # it waits
        file.seek(end)
        file.write(b'{"i":1,"x":"longer than before"}\n')
    reader.join()
    assert [log["i"] for log in found] == [0, 1]


def test_a_journal_is_read_from_any_number_and_written_in_order(tmp_path):
    writers = [JournalFile(tmp_path / "log") for _ in range(2)]
    for i in range(6):
        writers[i % 2].append_logs([{"i": 2 * i}, {"i": 2 * i + 1}])
    for first in (0, 7, 3, 12):
        assert [log["i"] for log in writers[0].read_logs(first)] == list(range(first, 12))
    assert [log["i"] for log in JournalFile(tmp_path / "log").read_logs(5)] == list(range(5, 12))


def test_what_is_stored_is_json_without_nan(tmp_path):
    search(lambda h, key: {"loss": h["x"], "curve": jnp.array([h["x"], jnp.nan])}, X, trials=1, directory=tmp_path)
    content = (tmp_path / "study.log").read_text()
    refuse = lambda name: pytest.fail(name)
    assert [json.loads(line, parse_constant=refuse) for line in content.splitlines()]


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space={}: pass a dict such as"),
        ({"x": [1.0, 2.0]}, r"space\['x'\]=\[1.0, 2.0\]: pass one of Optuna's distributions"),
        ({"seed": Float(0.0, 1.0)}, "space: 'seed' can't be a name"),
        ({"steps": Float(0.0, 1.0)}, "space: 'steps' can't be a name"),
        ({1: Float(0.0, 1.0)}, "space: 1 can't be a name"),
        ({"x": Float(1e-60, 1.0, log=True)}, r"space\['x'\]=.*: pass bounds that float32 can hold"),
        ({"x": Int(0, 2**40)}, r"space\['x'\]=.*: pass bounds that int32 can hold"),
        ({"x": Categorical(["1", 1])}, r"space\['x'\] has '1' twice"),
        ({"loss": Float(0.0, 1.0)}, "train returned 'loss', a name that the dataset has already"),
    ],
)
def test_bad_spaces(space, message):
    with pytest.raises((TypeError, ValueError), match=message):
        search(lambda h, key: {"loss": 1.0}, space)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials=0: pass a whole number"),
        ({"batch": 1.5}, "batch=1.5: pass a whole number"),
        ({"seeds": 0}, "seeds=0"),
        ({"metric": "los"}, "metric='los': train returned curve, loss"),
        ({"metric": "curve"}, "metric='curve' is a curve"),
        ({"mode": "minimize"}, "mode='minimize': pass 'max' or 'min'"),
        ({"rungs": (1, 2)}, r"rungs=\(1, 2\) needs train in steps"),
        ({"train": 3}, "train=3: pass a function"),
        ({"train": lambda h, key: {"value": 1.0}}, "train returned 'value', a name"),
        ({"train": (square, square)}, "rungs=None: pass rising numbers of steps"),
        ({"train": (square, square), "rungs": (3, 2)}, r"rungs=\(3, 2\): pass rising numbers"),
        ({"train": (square, square), "rungs": (0, 2)}, r"rungs=\(0, 2\): pass rising numbers"),
        ({"train": (init, lambda h, s: {"loss": h["x"]}), "rungs": (1, 2)}, r"step must return \(state, \{metric"),
        (
            {"train": (init, lambda h, s: (0, {"loss": h["x"]})), "rungs": (1, 2)},
            "step must return a state of the types",
        ),
        ({"patience": 0}, "patience=0: pass seconds"),
        ({"sampler": "tpe"}, "sampler='tpe': pass one of Optuna's"),
        ({"directory": 3}, "directory=3: pass a folder's name"),
        ({"study": "name"}, "study='name': pass an optuna.Study"),
        ({"study": optuna.create_study(direction="maximize")}, "direction is maximize, and mode='min'"),
        ({"study": optuna.create_study(directions=["minimize"] * 2)}, "direction is minimize, minimize, and mode"),
        ({"study": optuna.create_study(), "directory": "x"}, "study and directory: pass one"),
    ],
)
def test_bad_arguments(options, message):
    train = options.pop("train", lambda h, key: square(h, key) | {"curve": jnp.ones(3)})
    with pytest.raises((TypeError, ValueError), match=message):
        search(train, X, **options)


def test_host_calls_are_refused_with_a_directory(tmp_path):
    host = lambda h, key: {"loss": jax.pure_callback(np.sin, h["x"], h["x"])}
    with pytest.raises(TypeError, match=r"train has pure_callback of sin: .* pass directory=None"):
        search(host, X, directory=tmp_path)


# --- successive halving ----------------------------------------------------------------------------------------------


def alone(hparams, seed, steps):
    """The loss after so many steps."""
    key = jax.random.key(seed, impl="threefry2x32")
    body = lambda _, carry: (lambda state, found: (state, found["loss"]))(*step(hparams, carry[0]))
    return jax.lax.fori_loop(0, steps, body, (init(hparams, key), 0.0))[1]


@pytest.mark.parametrize("devices", [1, 3])
def test_halving_trains_the_survivors_on_from_their_states(devices):
    result = search(
        (init, step),
        {"x": Float(0.0, 2.5)},
        trials=18,
        batch=9,
        seeds=2,
        rungs=(2, 6, 18),
        devices=jax.devices()[:devices],
    )
    data = result.data
    assert sorted(data["steps"].values.tolist()) == [2] * 12 + [6] * 4 + [18] * 2
    np.testing.assert_array_equal(data["t"], np.stack([data["steps"]] * 2, axis=1))
    run = jax.jit(alone, static_argnums=2)
    for i, steps in enumerate(data["steps"].values):
        expected = [run({"x": jnp.float32(data["x"].values[i])}, seed, int(steps)) for seed in range(2)]
        np.testing.assert_allclose(data["loss"].values[i], expected, rtol=1e-5)  # up to 18 steps in float32
    for bracket in (slice(0, 9), slice(9, 18)):
        trials = result.study.trials[bracket]
        for rung, after in ((2, 3), (6, 1)):
            reported = {t.number: t.intermediate_values[rung] for t in trials if rung in t.intermediate_values}
            going = {t.number for t in trials if max(t.intermediate_values) > rung}
            assert going == set(sorted(reported, key=reported.get)[:after])
        assert [t.state == State.COMPLETE for t in trials] == [18 in t.intermediate_values for t in trials]
    assert [t.state for t in result.study.trials if 18 not in t.intermediate_values] == [State.PRUNED] * 16
    assert result.best.mean == min(data["value"].values[data["steps"] == 18])


def test_a_trial_of_a_killed_worker_starts_again_at_the_first_rung():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    left = study.ask({"x": Float(0.0, 2.0)})
    left.set_user_attr(OWNER, "gone 1 a")
    left.report(5.0, 1)
    study.set_user_attr(BEAT + "gone 1 a", GONE)
    options = {"trials": 3, "batch": 3, "rungs": (1, 3), "study": study, "sampler": None}
    data = search((init, step), {"x": Float(0.0, 2.0)}, **options).data
    assert data["trial"].values.tolist() == [0, 1, 2]
    assert sorted(data["steps"].values.tolist()) == [1, 1, 3]


def test_each_rung_is_one_program_for_all_batches():
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        record := lambda name, *_, **k: names.append(str(k)) if name.endswith("backend_compile_duration") else None
    )
    try:
        search((init, step), {"x": Float(0.0, 2.0)}, trials=27, batch=9, rungs=(1, 3, 9))
    finally:
        jax.monitoring.unregister_event_duration_listener(record)
    assert sum("program" in name for name in names) == 3, names


def test_halving_drops_diverged_trials_first_and_handles_categories():
    space = {"x": Float(1.5, 4.0), "kind": Categorical(["a", "b"])}  # x > 2 diverges

    def explode(hparams, state):
        x = hparams["x"] * (1.0 if hparams["kind"] == "a" else 0.5)
        w = jnp.where(x > 2, jnp.nan, state - x * (state - 1))
        return w, {"loss": (w - 1) ** 2}

    result = search((lambda h, key: jax.random.normal(key), explode), space, trials=16, batch=16, rungs=(1, 4))
    data = result.data
    bad = (data["x"] > 2) & (data["kind"] == "a")
    np.testing.assert_array_equal(data["diverged"][:, 0], bad)
    assert (data["value"].values[bad] == np.inf).all()
    assert (data["steps"] == 4).sum() == 4
    assert (data["steps"].values[bad] == 1).all()
    assert result.best.hyperparams["kind"] in ("a", "b")


def test_all_diverged_at_the_first_rung_ends_the_batch():
    train = (lambda h, key: h["x"], lambda h, s: (s, {"loss": s * jnp.nan}))
    data = search(train, X, trials=6, batch=3, rungs=(1, 2, 4)).data
    assert (data["steps"] == 1).all()
    assert data["diverged"].all()


def test_a_step_that_needs_a_static_number_names_it():
    train = (lambda h, key: jnp.zeros(3), lambda h, s: (s, {"loss": s[: h["n"]].sum()}))
    with pytest.raises(TypeError, match=r"train uses 'n' where JAX needs a fixed value .*; make it a Categorical"):
        search(train, {"n": Int(1, 3)}, rungs=(1, 2))


# --- the picture, and pieces -----------------------------------------------------------------------------------------


def test_the_history_draws_trials_the_best_so_far_and_what_failed(tmp_path):
    train = lambda h, key: {"loss": jnp.where(h["x"] > 0.5, jnp.nan, h["x"])}
    result = search(train, X, trials=12, batch=4)
    (axes,) = result.history(tmp_path / "history.png").axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["trials", "diverged", "best so far"]
    told = np.isfinite(result.data["value"].values)
    np.testing.assert_array_equal(lines["trials"].get_ydata(), result.data["loss"].values[told, 0])
    assert lines["diverged"].get_xdata().tolist() == np.flatnonzero(~told).tolist()
    best = lines["best so far"].get_ydata()
    assert best[-1] == result.best.mean
    assert (np.diff(best[np.isfinite(best)]) <= 0).all()
    assert (tmp_path / "history.png").stat().st_size > 5000
    pruned = search((init, step), {"x": Float(0.0, 2.0)}, trials=4, batch=4, rungs=(1, 4)).history().axes[0]
    assert [line.get_label() for line in pruned.lines] == ["trials", "pruned", "best so far"]


def test_groups_hold_the_runs_of_their_points():
    space = {"x": Float(0.0, 1.0), "kind": Categorical(["a", None])}
    points = [{"x": i / 8, "kind": None if i % 3 else "a"} for i in range(7)]
    groups = spaces.group_points(space, points, [4, 9])
    assert sorted(np.concatenate([group.runs for group in groups]).tolist()) == list(range(14))
    for group in groups:
        for x, seed, run in zip(group.traced["x"], group.seeds, group.runs, strict=True):
            assert (float(x), seed) == (points[run // 2]["x"], [4, 9][run % 2])
            assert points[run // 2]["kind"] == group.static["kind"]
    assert trace.key_of(0).dtype == jax.random.key(0, impl="threefry2x32").dtype


@pytest.mark.parametrize("sampler", [optuna.samplers.GridSampler, optuna.samplers.BruteForceSampler])
def test_a_sampler_without_other_points_ends_the_search(sampler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        points = [{"x": [-1.0, 0.0, 1.0]}] if sampler is optuna.samplers.GridSampler else []
        found = search(square, {"x": Float(-1.0, 1.0, step=1.0)}, trials=20, batch=2, sampler=sampler(*points, seed=0))
    assert {*found.data["x"].values.tolist()} == {-1.0, 0.0, 1.0}
    assert found.data.sizes["trial"] < 20
    assert not [t for t in found.study.trials if t.state == State.RUNNING]
    assert found.best.mean == 0


def test_a_file_of_something_else_is_not_written_to(tmp_path):
    for text in ("my notes", "my notes\nmore\n"):
        (tmp_path / "study.log").write_text(text)
        with pytest.raises(ValueError, match=r"study.log' isn't the journal of a search: pass another directory"):
            search(square, X, trials=1, directory=tmp_path)
        assert (tmp_path / "study.log").read_text() == text


@pytest.mark.parametrize("damage", [b"garbage", b"\0" * 50, b"\xff\xfe{"], ids=["text", "zeros", "utf-16"])
def test_a_damaged_line_is_named(tmp_path, damage):
    search(square, X, trials=2, batch=1, directory=tmp_path)
    path = tmp_path / "study.log"
    lines = path.read_bytes().splitlines(keepends=True)
    broken = b"".join([*lines[:5], damage + b"\n", *lines[6:]])
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"study.log' is damaged in line 6: .*head -n 5; nothing in it was changed"):
        search(square, X, trials=2, batch=1, directory=tmp_path)
    assert path.read_bytes() == broken
    path.write_bytes(b"".join(lines[:5]))  # as the message says
    again = search(square, X, trials=2, batch=1, directory=tmp_path, patience=0.2)  # a trial may have no owner yet
    assert again.data.sizes["trial"] == 2


def test_earlier_trials_with_another_kind_of_distribution_are_named():
    for before in (Categorical(["a", "b"]), Float(1e-3, 1.0, log=True)):
        study = optuna.create_study()
        study.tell(study.ask({"x": before}), 0.0)
        with pytest.raises(ValueError, match=r"space\['x'\]=FloatDistribution.*but trial 0 of the study has"):
            search(square, X, trials=2, study=study)
        assert not study.user_attrs
        assert len(study.trials) == 1


def test_the_only_metric_is_the_objective_and_a_loss_is_minimised():
    space = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    options = {"trials": 2, "batch": 2, "seeds": 1, "progress": False}
    found = wd.search(lambda h, key: {"loss": h["x"], "curve": jnp.stack([h["x"]] * 2)}, space, **options)
    assert (found.metric, found.mode) == ("loss", "min")
    with pytest.raises(ValueError, match=r"mode=None: pass 'max' or 'min', as metric='accuracy'"):
        wd.search(lambda h, key: {"accuracy": h["x"]}, space, **options)
    with pytest.raises(ValueError, match=r"metric=None: train returned loss, size; pass the name"):
        wd.search(lambda h, key: {"loss": h["x"], "size": h["x"]}, space, **options)
