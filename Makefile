# `make demo` and `make test` do all the set-up; they need Python ≥ 3.11 and nothing else.
# Each version of Python has an environment of its own: `make test PYTHON=/usr/bin/python3.13` makes .venv-3.13.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV ?= .venv-$(VERSION)
BIN := $(VENV)/bin
comma := ,

GPU_PARTS := step bits sweep bytes suite
# `make gpu GPU_PYTHON=python3` runs with the packages of that Python (JAX for CUDA, torch, pytest), and installs nothing.
GPU_PYTHON ?= $(VENV)-gpu/bin/python

.PHONY: claims demo docs test-docs map transfer examples faults gallery test test-all test-fast test-interop test-lowest test-tpu format clean
.PHONY: gpu find-gpu $(addprefix gpu-,$(GPU_PARTS))

# $(call environment,FOLDER,CONSTRAINTS,EXTRAS). A folder that this rule made with another Python is made anew.
define environment
$(1)/.installed-$(VERSION): pyproject.toml $(2)
	@test -n "$(VERSION)" || { echo "PYTHON=$(PYTHON) doesn't run: make ... PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wd_optax needs Python 3.11 or newer: PYTHON=$(PYTHON) is $(VERSION)")'
	@test ! -e $(1) || test -e $(1)/pyvenv.cfg || { echo "VENV=$(1) is a folder of other things: name another" >&2; exit 1; }
	@echo "pip installs wd_optax and what it needs into $(1), once. This takes a minute or more ..."
	@$(PYTHON) -m venv $$(if $$(wildcard $$@),,$$(if $$(wildcard $(1)/.installed*),--clear)) $(1)
	@$(1)/bin/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)" and "VENV=$(1) belongs to another Python than PYTHON=$(PYTHON): name another folder")'
	@echo '*' > $(1)/.gitignore
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(2) --editable ".[$(3)]"
	@touch $$@
endef
$(eval $(call environment,$(VENV),constraints.txt,test))
$(eval $(call environment,$(VENV)-tpu,constraints.txt,test$(comma)tpu))
$(eval $(call environment,$(VENV)-interop,constraints.txt,test$(comma)interop))
$(eval $(call environment,$(VENV)-gpu,constraints.txt,test$(comma)cuda))
$(eval $(call environment,$(VENV)-site,constraints.txt,test$(comma)browser))
$(eval $(call environment,$(VENV)-lowest,constraints-lowest.txt,test))

demo: $(VENV)/.installed-$(VERSION)
	$(BIN)/python examples/digits_mlp.py

# The AdamW paper's map: every optimizer over a grid of (η, λ), for an MLP and a CNN.
map: $(VENV)/.installed-$(VERSION)
	$(BIN)/python examples/lr_wd_map.py

# The exponents of the best λ over width, dataset and batch: measured, and what papers say.
transfer: $(VENV)/.installed-$(VERSION)
	$(BIN)/python examples/transfer.py

# Every example at its defaults: writes docs/gallery.md and its pictures. `python examples/gallery.py rnn gan` reruns some.
gallery: $(VENV)/.installed-$(VERSION)
	$(BIN)/python examples/gallery.py

# Published claims, each measured by a small program: writes docs/claims.md, its pictures, and what docs/rules shows of it; about three minutes.
claims: $(VENV)/.installed-$(VERSION)
	$(BIN)/python -m claims.run --docs=docs/claims.md

# Every example in a short setting.
examples: $(VENV)/.installed-$(VERSION)
	$(BIN)/python examples/linear_regression.py
	$(BIN)/python examples/digits_mlp.py --epochs=5
	$(BIN)/python examples/classifier_784.py --epochs=60 --seeds=4
	$(BIN)/python examples/cnn.py --epochs=3 --seeds=4
	$(BIN)/python examples/rnn.py --epochs=3 --seeds=4
	$(BIN)/python examples/transformer.py --epochs=2 --seeds=4 --weight_decay=3
	$(BIN)/python examples/gan.py --steps=300 --seeds=4 --weight_decay=1
	$(BIN)/python examples/reinforce.py --updates=10 --seeds=4
	$(BIN)/python examples/watch.py --steps=200
	$(BIN)/python examples/muon.py --epochs=3
	$(BIN)/python examples/learning_rate_schedules.py --steps=400
	$(BIN)/python examples/ema_momentum_rmsprop_adam.py
	$(BIN)/python examples/finetune_anchor.py --steps=100 --epochs=10 --seeds=4
	$(BIN)/python examples/learn_decay.py --steps=50 --outer=4 --seeds=4
	$(BIN)/python examples/bf16_decay.py --task=digits --steps=100 --seeds=4
	$(BIN)/python examples/lr_wd_map.py --model=mlp --points=4 --seeds=2 --epochs=10
	$(BIN)/python examples/transfer.py --task=width --points=5 --seeds=2 --epochs=10
	$(BIN)/python examples/tpu_run.py --steps=20 --log_every=10 --layers=2 --width=64 --context=64

test: $(VENV)/.installed-$(VERSION)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m sphinx --builder html --fail-on-warning --quiet docs out/site-without-outputs
	$(BIN)/python -m pytest

# The site, with its notebooks and pictures made anew: out/site/index.html.
docs: $(VENV)/.installed-$(VERSION)
	$(BIN)/python docs/home_picture.py
	NOTEBOOKS=force $(BIN)/python -m sphinx --builder html --fail-on-warning --fresh-env docs out/site

# Every page of the site in Chromium, which Debian's packages bring where it is missing: links, screens, search, calculator.
test-docs: docs $(VENV)-site/.installed-$(VERSION)
	@command -v chromium chromium-browser google-chrome >/dev/null || apt-get install --yes chromium
	$(VENV)-site/bin/python -m pytest -n 2 -m site tests/site

# The inner loop: all but the tests marked slow. What is compiled is kept for the next time.
test-fast: $(VENV)/.installed-$(VERSION)
	JAX_COMPILATION_CACHE_DIR=$(abspath $(VENV))/compiled $(BIN)/python -m pytest -m 'not slow and not tpu and not interop and not site and not gpu and not exhaustive'

# The long tests too.
test-all: $(VENV)/.installed-$(VERSION)
	$(BIN)/python -m pytest -m 'not tpu and not interop and not site and not gpu'

# The TPU's compiler needs no TPU; it has an environment of its own, for JAX looks for a TPU wherever libtpu is.
test-tpu: $(VENV)-tpu/.installed-$(VERSION)
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 $(VENV)-tpu/bin/python -m pytest -n 0 -m tpu tests/tpu

# On a machine with an NVIDIA GPU: what benchmarks/gpu.py measures, or one of its parts. Without one it fails at once.
gpu: find-gpu $(if $(filter $(VENV)-gpu/%,$(GPU_PYTHON)),$(VENV)-gpu/.installed-$(VERSION))
	$(GPU_PYTHON) benchmarks/gpu.py

$(addprefix gpu-,$(GPU_PARTS)): gpu-%: find-gpu $(if $(filter $(VENV)-gpu/%,$(GPU_PYTHON)),$(VENV)-gpu/.installed-$(VERSION))
	$(GPU_PYTHON) benchmarks/gpu.py --parts=$*

find-gpu:
	@nvidia-smi -L 2>/dev/null | grep -q GPU || { echo "make gpu needs an NVIDIA GPU, and nvidia-smi lists none. Nothing was measured." >&2; exit 1; }

# Kills, damage, full disks and the rest, many times each; writes docs/reliability.md. Fails if wrong numbers are accepted.
faults: $(VENV)/.installed-$(VERSION)
	$(BIN)/python -m tests.faults --docs docs/reliability.md

# Roles on the trees of Haiku, Haliax, Keras and Penzai, in an environment of its own.
test-interop: $(VENV)-interop/.installed-$(VERSION)
	KERAS_BACKEND=jax $(VENV)-interop/bin/python -m pytest -n 0 -m interop tests/interop

# With Python 3.11 or 3.12: numpy 2.0 and scipy 1.13 have no wheels for later ones.
test-lowest: $(VENV)-lowest/.installed-$(VERSION)
	$(VENV)-lowest/bin/python -m pytest

format: $(VENV)/.installed-$(VERSION)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* $(VENV) $(VENV)-gpu $(VENV)-interop $(VENV)-lowest $(VENV)-site $(VENV)-tpu out
