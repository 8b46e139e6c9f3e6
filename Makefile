# make serve | test | test-fast | test-ray | test-clients | test-gpu | lint | check | docs | measure | bench | bench-gpu | soak | fuzz
#      | screenshots | demo-model | clean
# Variables: HOST PORT MODEL ARGS WORKERS PYTHON ENGINE BENCH SOAK FUZZ
HOST ?= 127.0.0.1
PORT ?= 8000
ENGINE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
MODEL ?= $(if $(filter cpu,$(ENGINE)),llava-demo)
ARGS ?=
WORKERS ?= 2
BENCH ?=
SOAK ?=
FUZZ ?=
PYTHON ?= python3
BIN := .venv/bin
TESTS := PYTHONPATH="$(CURDIR)/tests" $(BIN)/python -m
INSTALL := pyproject.toml $(wildcard deploy/install/*)
CLIENTS := $(patsubst tests/clients/requirements/%.txt,.venv-clients/%/installed,$(wildcard tests/clients/requirements/*.txt))

.PHONY: serve test test-fast test-ray test-clients test-gpu lint check docs measure bench bench-gpu soak fuzz screenshots demo-model clean

serve: .venv/serve-$(ENGINE)  ## Serve MODEL (the demo on a CPU, llava-hf/llava-1.5-7b-hf on an NVIDIA GPU)
	@exec $(BIN)/llava-gateway serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: .venv/test-$(ENGINE)  ## The whole suite, on the real engine, by WORKERS processes, without the Ray cluster
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: .venv/test-$(ENGINE)  ## The quick unit tests in random order, by three processes, since many tests wait: no engine, under a minute on two cores
	$(BIN)/python -m pytest -n 3 --dist worksteal -p randomly --randomly-dont-reset-seed --hypothesis-profile fast \
		-m 'not slow' tests/unit $(ARGS)

test-ray: .venv/test-$(ENGINE)  ## A Ray cluster of several gateways and engines on this machine, and faults that end some of them
	$(BIN)/python -m pytest tests/cluster $(ARGS)

test-clients: .venv/test-$(ENGINE) $(CLIENTS)  ## Other projects' clients and Open WebUI, each with the recipe of docs/clients.md
	$(BIN)/python -m pytest tests/clients $(ARGS)

test-gpu: .venv/test-$(ENGINE)  ## The tests for a GPU, in under ten minutes (docs/gpu.md); ENGINE=cpu shows on a CPU that the tests themselves work
	$(BIN)/python -m pytest tests/gpu --device $(ENGINE) $(ARGS)

lint: .venv/check-$(ENGINE)  ## Ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## Ruff, mypy and the whole suite

docs: .venv-docs/installed  ## The documentation site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

measure: .venv/test-$(ENGINE)  ## The share of the demo model's answers that are right, through the real engine
	$(BIN)/python -m llava_gateway.demo.evaluate

bench: .venv/test-$(ENGINE)  ## Compare this gateway with `vllm serve` and `vllm-rs` (fifteen minutes on two cores); BENCH="--rounds 1" takes half as long
	$(TESTS) bench.run $(BENCH)

bench-gpu: .venv/test-$(ENGINE)  ## The same comparison on a GPU, with a new image in each request (docs/gpu.md); BENCH="--streams 32 256" is a part of it
	$(TESTS) bench.gpu --device $(ENGINE) $(BENCH)

soak: .venv/test-$(ENGINE)  ## Ten minutes of mixed traffic; fails if memory, open files or tasks grow. SOAK="--minutes 60" runs longer
	$(TESTS) bench.soak $(SOAK)

fuzz: .venv/test-$(ENGINE)  ## Ten minutes of random valid requests, many at once; none may end the engine. FUZZ="--minutes 60" runs longer
	$(TESTS) bench.fuzz $(FUZZ)

screenshots: .venv/test-$(ENGINE)  ## Take the screenshots of the chat page in docs/pictures again; needs Chromium
	$(TESTS) helpers.screenshots

demo-model: .venv/test-$(ENGINE)  ## Train the demo model again (about an hour and a half on two cores)
	$(BIN)/python -m llava_gateway.demo.train

.venv/serve-%: $(INSTALL)
	@deploy/install/install.sh $*
	@touch $@

.venv/test-%: $(INSTALL)
	@deploy/install/install.sh $* test
	@touch $@ .venv/serve-$*

.venv/check-%: $(INSTALL)
	@deploy/install/install.sh $* test check
	@touch $@ .venv/test-$* .venv/serve-$*

# Clients need other versions of some packages than the gateway does, and not all agree with each other.
.venv-clients/%/installed: tests/clients/requirements/%.txt | .venv/test-$(ENGINE)
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --requirement $<
	@touch $@

# The site's tools, and the gateway without an engine, from whose code the reference pages come.
.venv-docs/installed: docs/site/requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet --requirement $< --editable . --constraint deploy/install/constraints.txt
	@touch $@

clean:  ## Remove the environments and caches
	rm -rf .venv .venv-clients .venv-docs build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
