# `make demo` and `make test` do all the set-up; they need Python ≥ 3.11 and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo map examples faults test test-interop test-lowest test-tpu format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "wd_optax needs Python 3.11 or newer, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/digits_mlp.py

# The AdamW paper's map: every optimizer over a grid of (η, λ), for an MLP and a CNN.
map: $(VENV)/.installed
	$(BIN)/python examples/lr_wd_map.py

# Every example in a short setting.
examples: $(VENV)/.installed
	$(BIN)/python examples/linear_regression.py
	$(BIN)/python examples/digits_mlp.py --epochs=5
	$(BIN)/python examples/classifier_784.py --epochs=60 --seeds=2
	$(BIN)/python examples/cnn.py --epochs=3 --seeds=2
	$(BIN)/python examples/rnn.py --epochs=3 --seeds=2
	$(BIN)/python examples/transformer.py --epochs=2 --seeds=2 --weight_decay=3
	$(BIN)/python examples/gan.py --steps=300 --seeds=2 --weight_decay=1
	$(BIN)/python examples/reinforce.py --updates=10 --seeds=2
	$(BIN)/python examples/muon.py --epochs=3
	$(BIN)/python examples/learning_rate_schedules.py --steps=400
	$(BIN)/python examples/ema_momentum_rmsprop_adam.py
	$(BIN)/python examples/finetune_anchor.py --steps=100 --epochs=10 --seeds=2
	$(BIN)/python examples/bf16_decay.py --task=digits --steps=100 --seeds=2
	$(BIN)/python examples/lr_wd_map.py --model=mlp --points=4 --seeds=2 --epochs=10
	$(BIN)/python examples/tpu_run.py --steps=20 --log_every=10 --layers=2 --width=64 --context=64

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# The TPU's compiler needs no TPU; it has an environment of its own, for JAX looks for a TPU wherever libtpu is.
test-tpu:
	$(PYTHON) -m venv $(VENV)-tpu
	$(VENV)-tpu/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test,tpu]"
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 $(VENV)-tpu/bin/python -m pytest -n 0 -m tpu tests/tpu

# Kills, damage, full disks and the rest, many times each; writes docs/reliability.md. Fails if wrong numbers are accepted.
faults: $(VENV)/.installed
	$(BIN)/python -m tests.faults --docs docs/reliability.md

# Roles on the trees of Haiku, Haliax, Keras and Penzai, in an environment of its own.
test-interop:
	$(PYTHON) -m venv $(VENV)-interop
	$(VENV)-interop/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test,interop]"
	KERAS_BACKEND=jax $(VENV)-interop/bin/python -m pytest -n 0 -m interop tests/interop

test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[test]"
	$(VENV)-lowest/bin/python -m pytest

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-interop $(VENV)-lowest $(VENV)-tpu out
