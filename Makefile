# FLX API from a fresh clone: every target makes what it needs first, and a second call does nothing twice.
# Needs git, cargo and Python 3.11 or newer (another one than `python3`: make PYTHON=...). `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
CASES ?= 200000
SUBMITS ?= 1000
BIN := .venv/bin
UV := $(BIN)/uv
# Meltano lives in an environment of its own: its 50 packages would constrain ours.
export FLX_MELTANO ?= $(CURDIR)/.venv-meltano
# Never let uv fetch an interpreter: the one found is the one used.
export UV_PYTHON_DOWNLOADS := never
# A virtual environment that happens to be active is not ours.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

RUST := Cargo.toml Cargo.lock $(shell find rust -name target -prune -o -type f -print)

.PHONY: help demo test check fuzz faults bench serve wheel docs requirements clean setup setup-dev prepare present bytecode

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## +/  make \1\t/' | expand -t 22

demo: setup  ## from a fresh clone to a real pipeline run through the API on real data; leaves nothing running
	@$(BIN)/flx demo --dir .demo

test: setup-dev prepare  ## from a fresh clone: all tests, Rust and Python, the end-to-end ones included
	cargo test --quiet -p flx-core -p flx-realtime -p flx-lane --lib --tests
	$(BIN)/python -m pytest

check: setup-dev  ## format, lint, types, import floors, clippy, stub, generated docs and protocol code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cargo fmt --all --check
	PYO3_PYTHON="$(CURDIR)/$(BIN)/python" cargo clippy --quiet --workspace --all-targets -- -D warnings
	MYPYPATH=python $(BIN)/python -m mypy.stubtest flx_api._core
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m benches.report --check
	tools/protocol --check

fuzz:  ## the property tests of the Rust core over many more cases: make fuzz CASES=1000000
	PROPTEST_CASES=$(CASES) cargo test --release -p flx-core -p flx-realtime -p flx-lane --lib --tests

faults: setup-dev prepare  ## accepted once under kills, over many more commands: make faults SUBMITS=1000
	FLX_SUBMITS=$(SUBMITS) $(BIN)/python -m pytest tests/faults/test_accepted_once.py

bench: setup-dev prepare  ## benchmarks beside their rivals: make bench SUITE=runs; results in benches/results
	$(BIN)/python -m benches $(SUITE)

serve: setup prepare  ## the service on the demo project, until Ctrl-C
	@$(BIN)/flx serve --project .demo

wheel: $(BIN)/.setup-tools  ## dist/*.whl: `pip install` it where there is no Rust, then `flx demo`
	@tools/wheel

docs: setup-dev  ## docs/reference anew from the code, and the protocol's generated code
	$(BIN)/python docs/generate.py
	$(BIN)/python -m benches.report
	tools/protocol

requirements: $(BIN)/.setup-tools  ## requirements/*.txt anew (exact versions and hashes); ARGS=--upgrade for newer ones
	UV=$(UV) tools/lock $(ARGS)

clean:  ## everything the targets made
	rm -rf .venv .venv-meltano .demo dist target .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf python/flx_api/_core*.so python/flx_api/cli/examples
	find python tests benches docs tools -name __pycache__ -prune -exec rm -rf {} +

# ---- set-up, each step behind a stamp ----

setup: $(BIN)/.setup-run $(BIN)/.setup-native bytecode
setup-dev: setup $(BIN)/.setup-dev

prepare: setup  # Meltano, its plugins and the demo's work folder
	@$(BIN)/flx demo --dir .demo --prepare-only

present:
	@tools/present "$(PYTHON)"

$(BIN)/.setup-tools: requirements/tools.txt | present
	@echo "set-up: .venv with uv and maturin"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/tools.txt
	@touch $@

$(BIN)/.setup-run: requirements/run.txt $(BIN)/.setup-tools
	@echo "set-up: what the service needs"
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/run.txt
	@touch $@

$(BIN)/.setup-dev: requirements/dev.txt requirements/redis.txt $(BIN)/.setup-run
	@echo "set-up: what the tests and checks need"
	@$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/dev.txt
	@$(UV) pip install --quiet --target .venv/redis --python-version 3.11 --only-binary :all: --require-hashes \
		-r requirements/redis.txt
	@touch $@

$(BIN)/.setup-native: $(RUST) pyproject.toml $(BIN)/.setup-run
	@echo "set-up: the native module (Rust, release)"
	@VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/maturin develop --release --uv --quiet
	@touch $@

# Our own modules: compiled ahead even where PYTHONDONTWRITEBYTECODE is set, or every start would compile them anew.
bytecode: $(BIN)/.setup-native
	@compgen -G 'python/flx_api/_core*.so' > /dev/null || { rm $(BIN)/.setup-native; $(MAKE) $(BIN)/.setup-native; }
	@$(BIN)/python -m compileall -qq python/flx_api || true  # a module that does not compile says so when it is imported
