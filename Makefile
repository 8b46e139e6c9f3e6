# make serve | test | test-ray | check | measure | bench | soak | fuzz | pictures | demo-model | clean
# Variables: HOST PORT MODEL ARGS PYTHON ENGINE BENCH SOAK FUZZ
HOST ?= 127.0.0.1
PORT ?= 8000
ENGINE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
MODEL ?= $(if $(filter cpu,$(ENGINE)),llava-demo)
ARGS ?=
BENCH ?=
SOAK ?=
FUZZ ?=
BIN := .venv/bin
INSTALL := pyproject.toml $(wildcard deploy/install/*)

.PHONY: serve test test-ray check measure bench soak fuzz pictures demo-model clean

serve: .venv/serve-$(ENGINE)  ## Serve MODEL (the demo on a CPU, llava-hf/llava-1.5-7b-hf on an NVIDIA GPU)
	@exec $(BIN)/llava-gateway serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: .venv/test-$(ENGINE)  ## The whole suite, on the real engine
	$(BIN)/python -m pytest $(ARGS)

test-ray: .venv/test-$(ENGINE)  ## A real Ray cluster of several gateways and engines on this machine, and what kills some of them
	$(BIN)/python -m pytest tests/cluster $(ARGS)

check: .venv/check-$(ENGINE)  ## Lint, types, and the whole suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

measure: .venv/test-$(ENGINE)  ## How often the demo model tells the truth, through the real engine
	$(BIN)/python -m llava_gateway.demo.evaluate

bench: .venv/test-$(ENGINE)  ## This gateway beside `vllm serve` in one run (ten minutes on two cores); BENCH="--rounds 1" for less
	$(BIN)/python tests/bench/run.py $(BENCH)

soak: .venv/test-$(ENGINE)  ## Ten minutes of mixed traffic; fails if anything grows. SOAK="--minutes 60" for more
	$(BIN)/python tests/soak.py $(SOAK)

fuzz: .venv/test-$(ENGINE)  ## Ten minutes of valid requests in all combinations, many at once; none may end the engine. FUZZ="--minutes 60" for more
	$(BIN)/python tests/fuzz.py $(FUZZ)

pictures: .venv/test-$(ENGINE)  ## The pictures of the chat page in docs/pictures, taken anew; needs Chromium
	$(BIN)/python tests/page_pictures.py

demo-model: .venv/test-$(ENGINE)  ## Train the demo model anew (about half an hour on two cores)
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

clean:  ## Remove the environment and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
