# One word per habit. Every target sets up .venv when it has to; nothing else is needed but Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
TORCH := 2.13.0
ARGS ?=
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: setup proxy-peer demo test lint fix bench bench-peers reproduce fuzz faults docs clean

setup: $(STAMP)  ## make .venv and install everything

$(STAMP): pyproject.toml
	@echo "setup 1/3: a virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup 2/3: torch $(TORCH) (the large one; a few minutes on a slow line)"
	@$(PIP) install torch==$(TORCH)
	@echo "setup 3/3: cloister and its tools"
	@$(PIP) install -e '.[torch,dev]'
	@touch $@
	@echo "ready. next: make demo"

demo: $(STAMP)  ## one coordinator and five sites on this machine; ARGS="--rounds 10"
	@$(BIN)/cloister demo $(ARGS)

test: $(STAMP)  ## all tests; ARGS="tests/seal -k masks"
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(STAMP)  ## style, types, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: make fix"; exit 1; }
	@$(BIN)/mypy
	@out=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$out"; exit 1; }
	@echo "lint: clean"

fix: $(STAMP)  ## mend style by machine
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

bench: $(STAMP)  ## every benchmark, each beside its ceiling; ARGS="--quick", ARGS=--write for docs/performance.md
	@$(BIN)/python benchmarks/page.py $(ARGS)

bench-peers: $(STAMP)  ## the same work in Flower and pfl-research, installed into .venv-peers; into docs/performance.md
	@$(BIN)/python benchmarks/peers.py --install --write $(ARGS)

proxy-peer:  ## mitmproxy in .venv-proxy, for the test of a proxy that opens TLS
	@test -x .venv-proxy/bin/mitmdump || { $(PYTHON) -m venv .venv-proxy && \
	 .venv-proxy/bin/python -m pip --disable-pip-version-check -qq install 'mitmproxy>=11'; }

reproduce: $(STAMP)  ## published numbers, measured again; NAME=heart, ARGS="--write"
	@$(BIN)/python benchmarks/reproduce.py $(NAME) $(ARGS)

fuzz: $(STAMP)  ## inputs into every decoder; ARGS="--inputs 1000000 --seed 1"
	@$(BIN)/python tests/fuzz/decoders.py $(ARGS)

faults: $(STAMP)  ## SIGKILL at every durable write of a site and of the coordinator
	@FAULTS=all $(BIN)/pytest tests/faults $(ARGS)

docs: $(STAMP)  ## regenerate what is generated: docs/cli.md
	@$(BIN)/python -m cloister.cli.reference > docs/cli.md.new && mv docs/cli.md.new docs/cli.md
	@echo "wrote docs/cli.md"

clean:  ## remove what setup, tests and demos left
	@rm -rf $(VENV) .venv-proxy .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
